"""Video: frames with their rate, their scenes and the script they were made from; to and from files, pictures, notebooks.

Axis letters: `f` frames, `h w` rows and columns, `c` colours (RGB). At this border pixels are uint8 (f, h, w, c); inside the
package a video is a float tensor (b c f h w) in [-1, 1]. `b` batch, `t` token time, `n` flattened tokens, `l` text length,
`d` width, `v` codebook size.
"""

import base64
import contextlib
import html
import json
import os
import re
import struct
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError

from phenaki.atomic import drop_part, fresh_part, put
from phenaki.gif_files import decode_gif
from phenaki.part_file import set_aside
from phenaki.video_encoders import Encoder, GifEncoder, SequenceEncoder, StreamEncoder, part_path, png_text
from phenaki.video_files import (
    MAX_BYTES,
    OUTPUT_ENDINGS,
    VideoError,
    VideoScene,
    check_bytes,
    check_fps,
    check_output_path,
    check_regular,
    check_script,
    check_spares,
    decode_video,
    is_sequence,
    parse_script,
    resampled_indices,
    stacked,
)

__all__ = [
    "OUTPUT_ENDINGS", "Video", "VideoError", "VideoScene", "VideoWriter", "check_output_path", "check_spares", "contact_sheet", "middle_square",
    "pictures_in", "read_image", "read_video",
]  # fmt: skip

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_IMAGE_PIXELS = 64_000_000
MAX_CHAPTER_FRAMES = 1 << 31  # a year at 68 frames a second
SHEET_SCRIPT = "phenaki_script"  # under this name a contact sheet holds its script
LABEL_HEIGHT = 14  # pixels of a prompt above its row in a contact sheet


@dataclass(frozen=True)
class Video:
    """Frames uint8 (f, h, w, 3) RGB at `fps` frames a second; `scenes` are its chapters, `script` what it was made from."""

    frames: np.ndarray
    fps: float
    scenes: tuple[VideoScene, ...] = ()
    script: dict[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self):
        frames = self.frames
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
            found = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
            raise VideoError(f"frames are {found}: a Video needs uint8 (f, h, w, 3), at least one frame")
        check_fps(self.fps)

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        f, h, w, _ = self.frames.shape
        return f"Video({f} frames of {w}x{h}, {self.seconds:.2f} s at {self.fps:g} fps, {len(self.scenes)} scenes)"

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps

    @classmethod
    def load(cls, path: str | Path) -> "Video":
        """Reads a video file; scenes and script come back with it."""
        return read_video(path)

    def save(self, path: str | Path) -> None:
        """Writes .mp4, .webm, .gif or .png (a contact sheet), whole or not at all, or name_%05d.png (single frames, each whole).

        What a generation that can be resumed has left unfinished there is kept under another name, with a warning that says so.
        """
        path = check_output_path(path)
        if kept := set_aside(part_path(path), only_labelled=True):
            warnings.warn(f"{path}: a generation was not finished there; what it has made is kept as {kept}", stacklevel=2)
        with VideoWriter(path, fps=self.fps, size=self.frames.shape[1:3], scenes=self.scenes, script=self.script) as writer:
            writer.write(self.frames)

    def contact_sheet(self, columns: int = 8, every: int | None = None, scale: int = 1) -> np.ndarray:
        """Frames in a grid, uint8 (h, w, 3): a row for each scene with its prompt above it, or rows of all frames. As `contact_sheet`."""
        return contact_sheet(self.frames, self.scenes, columns=columns, every=every, scale=scale)

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            self.save(path)
            data = base64.b64encode(path.read_bytes()).decode()
        prompts = "".join(f"<li>{html.escape(scene.prompt)}</li>" for scene in self.scenes)
        return f'<video controls loop src="data:video/mp4;base64,{data}" width="{max(self.frames.shape[2], 256)}"></video><ol>{prompts}</ol>'


def contact_sheet(frames: np.ndarray, scenes: Sequence[VideoScene] = (), *, columns: int = 8, every: int | None = None, scale: int = 1) -> np.ndarray:
    """Frames uint8 (f, h, w, 3) in a grid, uint8 (h, w, 3). `every` n-th frame is shown; by default each row spreads `columns` frames over its scene.

    scale: how many pixels a side each pixel becomes. VideoError where columns, every or scale is below 1.
    """
    for name, value in (("columns", columns), ("every", every), ("scale", scale)):
        if value is not None and value < 1:
            raise VideoError(f"{name} {value}: needed at least 1")
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    spans = [(scene.prompt, frames[scene.start_frame : scene.start_frame + scene.num_frames]) for scene in scenes] or [("", frames)]
    rows = []
    for prompt, part in spans:
        spread = np.linspace(0, len(part) - 1, min(columns, len(part))).round().astype(int) if scenes else np.arange(len(part))
        shown = part[::every] if every else part[spread]
        for start in range(0, len(shown), columns):
            rows.append((prompt if start == 0 else "", shown[start : start + columns]))
    labels = [LABEL_HEIGHT if prompt else 0 for prompt, _ in rows]
    sheet = Image.new("RGB", (columns * width, len(rows) * height + sum(labels)), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=11), 0
    for (prompt, shown), label in zip(rows, labels, strict=True):
        pen.text((2, top), prompt, fill="black", font=font)
        for column, pixels in enumerate(shown):
            sheet.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (column * width, top + label))
        top += height + label
    return np.asarray(sheet)


class SheetEncoder:
    """A contact sheet of all that was written, as one PNG."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]):
        self.path, self.frames = path, []

    @property
    def count(self) -> int:
        return sum(map(len, self.frames))

    def write(self, frames: np.ndarray, note: bytes = b"") -> None:
        self.frames.append(frames)

    def finish(self, scenes: Sequence[VideoScene], script: dict[str, Any] | None) -> Path:
        info = PngImagePlugin.PngInfo()
        info.add_itxt(SHEET_SCRIPT, json.dumps(script) if script is not None else "")
        part = fresh_part(self.path)
        Image.fromarray(contact_sheet(np.concatenate(self.frames), scenes, scale=2)).save(part, format="PNG", pnginfo=info)
        return part

    def discard(self) -> None:
        """The part file has become the picture."""

    def abandon(self) -> None:
        drop_part(self.path)

    def keeps_frames(self) -> bool:
        return False


class VideoWriter:
    """A context manager that writes frames as they come, in constant memory for .mp4 and .webm.

    Until the end the work of those two lies in a part file beside `path` that already plays (see `part_path`). An exception
    leaves what stood under `path` as it was, and says where the part file is. size: (h, w) in pixels.

    label: all that the frames are made from, in JSON types. With `resume`, a part file that was left behind under the same
    label is resumed: `notes` holds what `write` was given with each of its pieces, `num_frames` counts their frames.
    """

    def __init__(
        self, path: str | Path, *, fps: float, size: tuple[int, int], scenes: Sequence[VideoScene] = (), script: dict[str, Any] | None = None,
        label: dict[str, Any] | None = None, resume: bool = False,
    ):  # fmt: skip
        self.path = check_output_path(path)
        check_fps(fps)
        check_script(self.path, script)
        fps = fps if isinstance(fps, (int, float)) else float(fps)
        self.size, self.scenes, self.script, self.label = tuple(size), scenes, script, label
        for scene in scenes:
            if "\0" in scene.prompt or not 0 <= scene.start_frame <= scene.start_frame + scene.num_frames <= MAX_CHAPTER_FRAMES:
                raise VideoError(f"{scene}: cannot be a chapter; needed frames from 0 to {MAX_CHAPTER_FRAMES}, and no NUL in the prompt")
        ending, self.notes = self.path.suffix.lower(), ()
        if ending in (".gif", ".png"):
            if resume:
                raise VideoError(f"{self.path}: only .mp4 and .webm can be gone on with; make it as one of them")
            kinds = {".gif": GifEncoder, ".png": SequenceEncoder if is_sequence(self.path) else SheetEncoder}
            self.encoder: Encoder = kinds[ending](self.path, fps, self.size)
        else:
            self.encoder = StreamEncoder(self.path, fps, self.size, label=label, resume=resume)
            self.notes = self.encoder.notes

    @property
    def num_frames(self) -> int:
        """Frames that were written, those of the run before included."""
        return self.encoder.count

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, frames: np.ndarray, note: bytes = b"") -> None:
        """frames: uint8 (f, h, w, 3) of the size the writer was made for. note: kept with them in the part file, while there is one."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*self.size, 3):
            raise VideoError(f"frames are {frames.dtype} {frames.shape}: needed uint8 (f, {self.size[0]}, {self.size[1]}, 3)")
        self.encoder.write(frames, note)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._finish()
        except BaseException as failure:
            error = failure
            raise
        finally:
            if error is not None:
                part = self.encoder.abandon()
                if part is not None:
                    error.add_note(f"what was made so far plays in {part}{'; the same run goes on from there' if self.label else ''}")
                elif self.num_frames and isinstance(error, KeyboardInterrupt) and not self.encoder.keeps_frames():
                    error.add_note(f"nothing is kept of a {self.path.suffix} that is not whole; an .mp4 or .webm goes on where it was stopped")

    def _finish(self) -> None:
        if not self.num_frames:
            raise VideoError(f"{self.path}: no frames were written")
        whole = self.encoder.finish(self.scenes, self.script)
        if whole is not None:
            put(whole, self.path)
        self.encoder.discard()


def read_video(path: str | Path, *, size: int | None = None, fps: float | None = None) -> Video:
    """Reads a video file, a picture (one frame) or a folder of pictures in the order of their names, numbers in these by their value.

    size: pixels a side of a square that each frame is resized and cropped to. fps: the rate it is resampled to. VideoError
    for anything that is not a whole video.
    """
    path = Path(path)
    if size is not None and size < 1:
        raise VideoError(f"size {size}: needed at least 1 pixel a side")
    if fps is not None:
        check_fps(fps)
    if os.path.isdir(path):
        return Video(_read_folder(path, size), fps or 8.0)
    if path.suffix.lower() in IMAGE_ENDINGS:
        return Video(read_image(path, size)[None], fps or 8.0)
    decode = decode_gif if path.suffix.lower() == ".gif" else decode_video
    decoded = decode(path, None if size is None else lambda pixels: middle_square(Image.fromarray(pixels), size))
    video = Video(decoded.frames, decoded.fps, decoded.scenes, decoded.script)
    if fps is None or fps == video.fps:
        return video
    shown = resampled_indices(path, len(video), video.fps, fps)
    check_bytes(path, len(shown) * video.frames[0].nbytes)
    return Video(video.frames[shown], fps, (), video.script)


def pictures_in(path: Path) -> list[Path]:
    """The pictures of a folder in the order in which they are shown, frame_9.png before frame_10.png; VideoError where there are none."""
    numbered = lambda file: [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", file.name)]
    files = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS and not file.name.startswith("."))
    files = sorted(files, key=lambda file: (numbered(file), file.name))
    if not files:
        raise VideoError(f"{path}: holds no pictures ({', '.join(IMAGE_ENDINGS)})")
    return files


def _read_folder(path: Path, size: int | None) -> np.ndarray:
    """The pictures of a folder as frames (f h w 3) uint8."""
    files, frames = pictures_in(path), []
    for file in files:
        frames.append(read_image(file, size))
        if frames[-1].shape != frames[0].shape:
            (h, w, _), (height, width, _) = frames[-1].shape, frames[0].shape
            raise VideoError(f"{file}: {w}x{h} pixels, {files[0].name} has {width}x{height}: give size=, or pictures of one size")
        if len(frames) * frames[0].nbytes > MAX_BYTES:
            raise VideoError(f"{path}: its pictures take more than {MAX_BYTES >> 30} GiB of memory; give fewer, or size=")
    return stacked(frames)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits as one of 8: Pillow's own conversion cuts all above 255 off."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture, dtype=np.int64).clip(0, 65535) // 257).astype(np.uint8))


def _turn_upright(picture: Image.Image) -> None:
    """Turns it as its camera says that it was held (EXIF), where that can be read: phones store upright pictures lying down."""
    picture.load()
    with contextlib.suppress(SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        ImageOps.exif_transpose(picture, in_place=True)  # no copy; and it is turned before what else is in the block may fail


def read_image(path: str | Path | BinaryIO, size: int | None = None) -> np.ndarray:
    """A picture as uint8 (h, w, 3), transparent parts over white; size: resized and cropped to a square of so many pixels."""
    if isinstance(path, (str, Path)):
        check_regular(path)
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP")) as picture:
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                raise VideoError(f"{path}: {picture.width}x{picture.height} pixels; at most {MAX_IMAGE_PIXELS} are read")
            _turn_upright(picture)
            rgba = _eight_bits(picture).convert("RGBA")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise VideoError(f"{path}: {error.strerror}") from error
    except Image.DecompressionBombError as error:
        raise VideoError(f"{path}: too many pixels; at most {MAX_IMAGE_PIXELS} are read") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{path}: not a whole picture ({error}); PNG, JPEG, WebP and BMP are read") from error
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return np.asarray(flat) if size is None else middle_square(flat, size)


def sheet_script(path: Path) -> dict[str, Any] | None:
    """The script in a contact sheet's PNG; None for any other file."""
    return parse_script(png_text(path, SHEET_SCRIPT) or "")


def middle_square(picture: Image.Image, size: int) -> np.ndarray:
    """The middle square, resized to `size` pixels a side."""
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3))
