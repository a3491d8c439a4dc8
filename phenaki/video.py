"""Video: frames with their rate, their scenes and the script they were made from; to and from files, pictures, notebooks.

Axis letters: `f` frames, `h w` rows and columns, `c` colours (RGB). At this border pixels are uint8 (f, h, w, c); inside the
package a video is a float tensor (b c f h w) in [-1, 1]. `b` batch, `t` token time, `n` flattened tokens, `l` text length,
`d` width, `v` codebook size.
"""

import base64
import html
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phenaki.atomic import put
from phenaki.contact_sheet import SheetEncoder, contact_sheet
from phenaki.gif_files import decode_gif
from phenaki.output_paths import check_output_path, is_sequence
from phenaki.part_file import set_aside
from phenaki.pictures import IMAGE_ENDINGS, middle_square, pictures_in, read_image
from phenaki.video_encoders import Encoder, GifEncoder, SequenceEncoder, StreamEncoder, part_path
from phenaki.video_files import (
    MAX_BYTES,
    VideoError,
    VideoScene,
    check_bytes,
    check_fps,
    check_script,
    decode_video,
    resampled_indices,
    stacked,
)

MAX_CHAPTER_FRAMES = 1 << 31  # a year at 68 frames a second


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
