"""Frames into video files, as they come: .mp4 and .webm by pieces, .gif and single pictures.

An encoder takes frames by `write`, and either makes the whole file (`finish`, then `discard` once it has its name) or is
given up (`abandon`). What was written of an .mp4 or .webm lies meanwhile in a part file beside its final name (part_file.py):
each `write` is encoded by a coder of its own and so is a piece that needs no other. That costs a key frame a piece, and for it
the part file plays to the last one, and the bytes of a piece do not depend on whether the run was stopped before it.
"""

import contextlib
import io
import itertools
import json
import os
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image, PngImagePlugin

from phenaki.atomic import drop_part, fresh_part
from phenaki.part_file import BOX, PartFile
from phenaki.retiming import rate
from phenaki.video_files import FRAMES_TAG, VideoError, VideoScene, address

MIN_GIF_FPS, MAX_GIF_FPS = 0.002, 100  # a GIF counts hundredths of a second, up to 655 s a picture
EXACT = "cpu-independent=1"  # without it one piece in a hundred of tiny frames (34x18) was encoded to other bytes; it costs nothing
CODECS = {
    ".mp4": ("libx264", {"crf": "14", "preset": "fast", "x264-params": EXACT}),
    ".webm": ("libvpx-vp9", {"crf": "18", "b": "0", "cpu-used": "5", "deadline": "realtime", "lag-in-frames": "0"}),
}
FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof+frag_discont+skip_trailer"
FRAME_MARK = "phenaki_frame"  # under this name a single frame says whose it is
WITHOUT_SEI = "filter_units=remove_types=6"  # x264 names itself in every piece's first frame: 700 bytes


@dataclass(frozen=True)
class Coding:
    """How frames are encoded. size: (h, w) in pixels; gop_size: frames from a key frame to the next at most."""

    codec: str
    options: tuple[tuple[str, str], ...]
    size: tuple[int, int]
    fps: Fraction
    gop_size: int


class Encoder(Protocol):
    """What `VideoWriter` writes with; made of a path, a rate and (h, w) in pixels."""

    @property
    def count(self) -> int:
        """Frames that were written, those of a resumed run included."""

    def write(self, frames: np.ndarray, note: bytes = b"") -> None:
        """frames: uint8 (f h w 3). note: kept with them where there is a part file that can be resumed."""

    def finish(self, scenes: Sequence[VideoScene], script: dict[str, Any] | None) -> Path | None:
        """Makes the whole file, for the writer to give it its name; None where nothing is left to be named."""

    def discard(self) -> None:
        """Removes what is left over once the file has its name."""

    def abandon(self) -> Path | None:
        """Gives up. Returns the part file that plays, where one is left."""

    def keeps_frames(self) -> bool:
        """Whether frames that were written outlive `abandon`."""


def part_path(path: Path) -> Path:
    """Where the part file of a video lies: .story.part.mp4 for story.mp4, .story.webm.part.mp4 for story.webm."""
    return path.with_name(f".{path.stem if path.suffix.lower() == '.mp4' else path.name}.part.mp4")


def encode_piece(coding: Coding, frames: Sequence[np.ndarray], start_frame: int, number: int) -> tuple[bytes, bytes]:
    """Frames uint8 (h, w, 3) as MP4: its start (ftyp and moov, the same for every piece) and its fragments.

    start_frame: of the first in the video. number: how many pieces stand before it. The same frames give the same bytes.
    """
    memory, reformatter = io.BytesIO(), VideoReformatter()
    options = {"movflags": FRAGMENTS, "fragment_index": str(number + 1), "avoid_negative_ts": "disabled"}
    with av.open(memory, mode="w", format="mp4", options=options) as container:
        stream = _add_stream(container, coding)
        container.start_encoding()
        kept = BitStreamFilterContext(WITHOUT_SEI, stream) if coding.codec == "libx264" else None
        for index, pixels in enumerate([*frames, None]):
            frame = None if pixels is None else _to_frame(reformatter, pixels, stream.pix_fmt)
            if frame is not None:
                frame.pts, frame.time_base = start_frame + index, 1 / coding.fps
            for packet in stream.encode(frame):
                container.mux(kept.filter(packet) if kept else packet)
    return _start_and_fragments(memory.getvalue())


def _add_stream(container: av.container.OutputContainer, coding: Coding) -> av.VideoStream:
    stream = container.add_stream(coding.codec, rate=coding.fps, options=dict(coding.options))
    stream.height, stream.width = coding.size
    stream.pix_fmt = "yuv420p" if not any(side % 2 for side in coding.size) else "yuv444p"
    stream.gop_size = coding.gop_size
    context = stream.codec_context
    context.max_b_frames = 0
    context.thread_count = 1  # the same bytes whatever the machine; making the frames takes far longer
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    return stream


def _to_frame(reformatter: VideoReformatter, pixels: np.ndarray, pix_fmt: str) -> av.VideoFrame:
    return reformatter.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"),
        format=pix_fmt, dst_colorspace=Colorspace.ITU709, src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
    )  # fmt: skip


def _start_and_fragments(data: bytes) -> tuple[bytes, bytes]:
    """The boxes of an MP4 up to its moov, and those behind it."""
    at, kind = 0, b""
    while kind != b"moov":
        length, kind = BOX.unpack_from(data, at)
        at += length
    return data[:at], data[at:]


class StreamEncoder:
    """Encodes frames by pieces into a part file that plays at any moment; `finish` makes the whole file of it.

    label: what the video is to become, in JSON types. With `resume` the part file that is there is resumed, where it
    has the same label: `notes` are those of the pieces that it holds, and `count` is how many frames they have.
    """

    def __init__(
        self, path: Path, fps: float, size: tuple[int, int], gop_size: int | None = None, label: dict[str, Any] | None = None, resume: bool = False
    ):
        codec, options = CODECS[path.suffix.lower()]
        self.coding = Coding(codec, tuple(options.items()), size, rate(fps), gop_size or max(round(fps), 1))
        self.path, self.part, self.pieces = path, part_path(path), 0
        self.start, _ = encode_piece(self.coding, [], 0, 0)
        self.file, self.notes = PartFile(self.part), ()
        try:
            if resume:
                self.notes = self.file.go_on(self.start, label or {})
                self.pieces = len(self.notes)
            else:
                self.file.begin(self.start, label or {})
        except OSError:
            if resume:  # what is in it may still be resumed
                self.file.close()
            else:
                self.file.discard()
            raise
        except ValueError:
            self.file.close()
            raise

    @property
    def count(self) -> int:
        """Frames that lie in the part file."""
        return self.file.num_frames

    def write(self, frames: np.ndarray, note: bytes = b"") -> None:
        """Adds frames (f, h, w, 3) as one piece; there may be none, for the sake of the note."""
        _, fragments = encode_piece(self.coding, frames, self.count, self.pieces) if len(frames) else (b"", b"")
        self.file.append(fragments, len(frames), note)
        self.pieces += 1

    def finish(self, scenes: Sequence[VideoScene], script: dict[str, Any] | None) -> Path:
        """Copies the packets of the part file into a whole file with chapters and script; returns that file."""
        whole = self._whole_path()
        whole.unlink(missing_ok=True)  # never through a link of its name
        options = {"fflags": "+bitexact", "movflags": "faststart"} if self.path.suffix.lower() == ".mp4" else {"fflags": "+bitexact"}
        with av.open(address(self.part)) as source, av.open(address(whole), mode="w", options=options) as target:
            if script is not None:
                target.metadata["comment"] = json.dumps(script, ensure_ascii=False)
                target.metadata["title"] = str(script.get("title") or "")
            target.set_chapters(chapters_of(scenes, self.coding.fps))
            stream = target.add_stream_from_template(source.streams.video[0])
            stream.codec_context.framerate = self.coding.fps  # else a reader of .webm guesses it from rounded milliseconds
            stream.metadata[FRAMES_TAG] = str(self.count)
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        kept, written = checksums(self.part), checksums(whole)
        lost_chapters = {scene.prompt for scene in scenes} - chapter_titles(whole)
        if kept != written or len(written) != self.count or lost_chapters:
            raise VideoError(f"{self.path}: what was written does not read back; is the disk full?", "no room")
        return whole

    def discard(self) -> None:
        """Removes the part file."""
        self.file.discard()

    def abandon(self) -> Path | None:
        """Leaves the part file as it is and returns its name; removes it where it has no frame."""
        self._whole_path().unlink(missing_ok=True)
        if not self.count:
            self.file.discard()
            return None
        self.file.close()
        return self.part

    def keeps_frames(self) -> bool:
        return True

    def _whole_path(self) -> Path:
        return self.path.with_name(f".{self.path.stem}.whole{self.path.suffix}")


class WholeFileEncoder:
    """An encoder whose file is made at the end, of all that was written: given up before, it leaves nothing."""

    path: Path

    def discard(self) -> None:
        """The part file has become the file."""

    def abandon(self) -> None:
        drop_part(self.path)

    def keeps_frames(self) -> bool:
        return False


class GifEncoder(WholeFileEncoder):
    """Keeps frames in 256 colours each and writes them at the end: GIF has no way to grow that players accept.

    Equal frames in a row become one that is shown longer; `decode_gif` takes them apart again by the rate in the comment.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]):
        if not MIN_GIF_FPS <= fps <= MAX_GIF_FPS:
            raise VideoError(f"{path}: {fps:g} frames a second: a GIF has at least {MIN_GIF_FPS} and at most {MAX_GIF_FPS}; write .mp4 or .webm")
        self.path, self.fps, self.frames = path, fps, []

    @property
    def count(self) -> int:
        return len(self.frames)

    def write(self, frames: np.ndarray, note: bytes = b"") -> None:
        self.frames += [Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE) for pixels in frames]

    def finish(self, scenes: Sequence[VideoScene], script: dict[str, Any] | None) -> Path:
        ends = [round(100 * (n + 1) / self.fps) for n in range(len(self.frames))]  # GIF counts hundredths of a second
        durations = [10 * (end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        comment = json.dumps({**(script or {}), "fps": self.fps}).encode()
        first, *rest = self.frames
        part = fresh_part(self.path)
        try:
            first.save(part, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0, comment=comment, optimize=False)
        except OverflowError as error:
            raise VideoError(f"{self.path}: a picture stands still for longer than the 655 s that a GIF can tell; write .mp4 or .webm") from error
        return part


class SequenceEncoder:
    """Single frames as PNG: path holds a place for the number, such as frame_%05d.png (output_paths.NUMBER).

    Those of a longer video that was written there before go away at the end, as a longer .mp4 would. They are known by a mark.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]):
        self.path, self.count = path, 0

    def write(self, frames: np.ndarray, note: bytes = b"") -> None:
        mark = PngImagePlugin.PngInfo()
        mark.add_itxt(FRAME_MARK, "a frame of a video")
        for pixels in frames:
            part = fresh_part(self._of(self.count))
            Image.fromarray(pixels).save(part, format="PNG", pnginfo=mark)
            os.replace(part, self._of(self.count))
            self.count += 1

    def finish(self, scenes: Sequence[VideoScene], script: dict[str, Any] | None) -> None:
        """Every frame is whole already."""
        for number in itertools.count(self.count):
            if not is_own_frame(self._of(number)):
                return
            self._of(number).unlink()

    def discard(self) -> None:
        """There is no part file."""

    def abandon(self) -> None:
        """The frames that were written stay, but not the one that was begun."""
        drop_part(self._of(self.count))

    def keeps_frames(self) -> bool:
        return True

    def _of(self, number: int) -> Path:
        return self.path.with_name(self.path.name % number)


def png_text(path: Path, name: str) -> str | None:
    """The text that a PNG holds under a name; None where it holds none, and for any other file."""
    with contextlib.suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        if path.is_file():
            with Image.open(path, formats=("PNG",)) as picture:
                return picture.text.get(name)
    return None


def is_own_frame(path: Path) -> bool:
    """Whether a file is a single frame that this program wrote."""
    return png_text(path, FRAME_MARK) is not None


def chapters_of(scenes: Sequence[VideoScene], fps: Fraction) -> list[dict[str, Any]]:
    """The scenes in order of time, for `av`. Readers of .webm drop a chapter that takes no time, or that begins no later than the one before:
    scenes without a frame of their own take a millisecond."""
    chapters, earliest = [], 0
    for number, scene in enumerate(sorted(scenes, key=lambda scene: scene.start_frame)):
        start, end = (round(1000 * frame / fps) for frame in (scene.start_frame, scene.start_frame + scene.num_frames))
        start = max(start, earliest)
        earliest = start + 1
        chapters.append({
            "id": number, "start": start, "end": max(end, earliest), "time_base": Fraction(1, 1000), "metadata": {"title": scene.prompt},
        })  # fmt: skip
    return chapters


def checksums(path: Path) -> array:
    """CRC-32 of every whole encoded frame of a file: `av` does not always notice that a disk is full."""
    with av.open(address(path)) as container:
        return array("L", (zlib.crc32(packet) for packet in container.demux(video=0) if packet.dts is not None and not packet.is_corrupt))


def chapter_titles(path: Path) -> set[str]:
    """The prompts of a file's scenes."""
    with av.open(address(path)) as container:
        return {chapter["metadata"].get("title", "") for chapter in container.chapters()}
