"""Video files through PyAV: hardened reading, and writing that never leaves half a file under its final name.

The only file that imports `av`. While a video is written it lies beside its final name as a part file that already plays;
when it is whole it is given its chapters, synced and renamed. Untrusted files are opened with a whitelist of formats and
strict error detection: a default `av.open` follows playlists to other files and passes damaged pictures on.
"""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image, ImageSequence

from phenaki.nal_units import damage_of, length_size

VIDEO_ENDINGS = (".mp4", ".webm", ".gif")
OUTPUT_ENDINGS = (*VIDEO_ENDINGS, ".png")
READ_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,gif"
STRICT = "crccheck+bitstream+buffer+explode"
MAX_SIDE = 4096  # pixels
MAX_FRAMES = 200_000  # of one file read whole
MAX_BYTES = 8 << 30  # of its frames in memory
MAX_GIF_FPS = 100  # a GIF counts hundredths of a second
FRAMES_TAG = "PHENAKI_FRAMES"  # how many a .webm holds; .mp4 says so by itself
MAX_SCRIPT_BYTES = 1 << 22  # of the script that travels in a file
CODECS = {
    ".mp4": ("libx264", {"crf": "14", "preset": "fast"}),
    ".webm": ("libvpx-vp9", {"crf": "18", "b": "0", "cpu-used": "5", "deadline": "realtime", "lag-in-frames": "0"}),
}
GROWING = {  # a player can read the file up to about a second before its end, while it is still written
    ".mp4": {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"},
    ".webm": {"cluster_time_limit": "1000", "flush_packets": "1"},
}
Container, Stream, Frame = av.container.InputContainer, av.VideoStream, av.VideoFrame  # for files that read videos through this one
DECODE_ERRORS = (av.error.FFmpegError, IndexError, EOFError, ValueError, AttributeError)


class VideoError(ValueError):
    """A video file that cannot be read or written; the message says which, why and what to do. kind: a few words from a small set."""

    def __init__(self, message: str, kind: str = "damaged"):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class VideoScene:
    """A chapter of a video: what it was told, its first frame and how many it has."""

    prompt: str
    start_frame: int
    num_frames: int


@dataclass(frozen=True)
class Decoded:
    """What a file holds. frames: (f h w 3) uint8."""

    frames: np.ndarray
    fps: float
    scenes: tuple[VideoScene, ...]
    script: dict[str, Any] | None


def check_output_path(path: str | Path) -> Path:
    """A path that a video can be written to; VideoError before any work is done where it is not one."""
    path = Path(path)
    if os.path.isdir(path):
        raise VideoError(f"{path}: is a folder; give a file name in it, such as {path / 'story.mp4'}")
    if path.suffix.lower() not in OUTPUT_ENDINGS:
        raise VideoError(f"{path}: unknown ending {path.suffix!r}; known are {', '.join(OUTPUT_ENDINGS)} (and frame_%05d.png for single frames)")
    folder = path.parent
    if not os.path.isdir(folder):
        raise VideoError(f"{path}: the folder {folder} does not exist; make it first")
    probe = folder / f".{path.name}.part-probe"
    try:
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: cannot write in {folder} ({reason}); choose another folder") from error
    return path


Resize = Callable[[np.ndarray], np.ndarray]  # (h w 3) uint8 -> the same of another size


def decode_video(path: Path, resize: Resize | None = None, max_frames: int = MAX_FRAMES) -> Decoded:
    """Decodes a whole video file, each frame resized as it comes. VideoError names the file and what is wrong with it."""
    with open_strictly(path) as (container, stream):
        return _decode(path, container, stream, resize, max_frames)


@contextlib.contextmanager
def open_strictly(path: Path, file: BinaryIO | None = None) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens an untrusted video (`file`, where it lies inside another file): container and first video stream.

    Every error of decoding that happens inside becomes a VideoError that names `path`.
    """
    options = {"format_whitelist": READ_FORMATS, "protocol_whitelist": "file", "err_detect": STRICT}
    opened = False
    try:
        with av.open(address(path) if file is None else file, mode="r", options=options, timeout=20) as container:
            opened = True
            if not container.streams.video:
                raise VideoError(f"{path}: holds no video stream", "no video stream")
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": STRICT}
            stream.codec_context.thread_count = 1
            if not 0 < max(stream.width, stream.height) <= MAX_SIDE:
                raise VideoError(f"{path}: {stream.width}x{stream.height} pixels; at most {MAX_SIDE} a side are read", "size")
            yield container, stream
    except VideoError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        raise VideoError(f"{path}: {error.strerror or 'no such file'}", "no such file") from error
    except DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise VideoError(f"{path}: not a whole video file ({reason})", "damaged" if opened else "not a video") from error


def strict_frames(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Frames of a stream from where the container stands, in the order they are shown; VideoError at the first damaged one."""
    for packet in container.demux(stream):
        yield from _packet_frames(path, packet, (stream.width, stream.height))


def whole_frames(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Every frame of a stream; at the end VideoError where there were none, or not as many as the header promises.

    Frames that an edit list hides (a phone's trimmed video) count as there.
    """
    shown = hidden = 0
    unit_length = length_size(stream.codec_context.name, stream.codec_context.extradata)
    for packet in container.demux(stream):
        hidden += packet.is_discard
        wrong = damage_of(bytes(packet), unit_length) if unit_length else None
        if wrong is not None:
            raise VideoError(f"{path}: frame {shown} is damaged: {wrong}")
        for frame in _packet_frames(path, packet, (stream.width, stream.height)):
            shown += 1
            yield frame
    if not shown:
        raise VideoError(f"{path}: holds no frames", "no frames")
    promised = _promised_frames(stream)
    if promised is not None and promised != shown + hidden:
        raise VideoError(f"{path}: its header promises {promised} frames, {shown + hidden} could be decoded: it is damaged", "frames missing")


def _packet_frames(path: Path, packet: av.Packet, size: tuple[int, int]) -> Iterator[av.VideoFrame]:
    for frame in packet.decode():
        if packet.is_corrupt or frame.is_corrupt:
            raise VideoError(f"{path}: the frame at {float(frame.time or 0):.2f} s is damaged")
        if (frame.width, frame.height) != size:
            raise VideoError(f"{path}: its frames change their size", "size")
        yield frame


def _decode(path: Path, container: av.container.InputContainer, stream: av.VideoStream, resize: Resize | None, max_frames: int) -> Decoded:
    reformatter, frames, num_bytes = VideoReformatter(), [], 0
    for frame in whole_frames(path, container, stream):
        if len(frames) >= max_frames:
            raise VideoError(f"{path}: more than {max_frames} frames; cut it into shorter files", "too long")
        pixels = reformatter.reformat(frame, format="rgb24").to_ndarray()
        frames.append(pixels if resize is None else resize(pixels))
        num_bytes += frames[-1].nbytes
        if num_bytes > MAX_BYTES:
            raise VideoError(f"{path}: its frames take more than {MAX_BYTES >> 30} GiB of memory; cut it into shorter files", "too long")
    scenes = tuple(_scene(chapter, frame_rate(path, stream)) for chapter in container.chapters())
    return Decoded(np.stack(frames), frame_rate(path, stream), scenes, parse_script(_metadata(container).get("comment", "")))


def scaled_pixels(frame: av.VideoFrame, reformatter: VideoReformatter, size: tuple[int, int]) -> np.ndarray:
    """A frame as uint8 (h w 3) of another size (h, w), turned as its file says: phones store upright pictures lying down."""
    turns = frame.rotation // 90 % 4
    height, width = reversed(size) if turns % 2 else size
    scaled = reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    return np.rot90(scaled.to_ndarray(), turns)


def shown_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(h, w) of a frame as it is shown."""
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


def frame_rate(path: Path, stream: av.VideoStream) -> float:
    """Frames a second, on average."""
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    if not 0 < fps < 1000:
        raise VideoError(f"{path}: {fps} frames a second is not a rate", "rate")
    return fps


def _promised_frames(stream: av.VideoStream) -> int | None:
    """How many frames the header speaks of; None where it does not."""
    tag = stream.metadata.get(FRAMES_TAG)
    if tag is not None:
        return int(tag)
    return stream.frames or None


def _metadata(container: av.container.InputContainer) -> dict[str, str]:
    return {key.lower(): value for key, value in container.metadata.items()}


def _scene(chapter: dict[str, Any], fps: float) -> VideoScene:
    base = float(chapter["time_base"] or 1)
    start, end = (round(chapter[key] * base * fps) for key in ("start", "end"))
    return VideoScene(chapter["metadata"].get("title", ""), start, max(end - start, 0))


def parse_script(text: str) -> dict[str, Any] | None:
    """The script that travels in a file; None where there is none, or something else stands in its place."""
    values = parse_json_object(text)
    return values if "scenes" in values else None


def parse_json_object(text: str) -> dict[str, Any]:
    """A JSON object from a file's metadata; {} where the text is anything else."""
    if not text.startswith("{") or len(text) > MAX_SCRIPT_BYTES:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def decode_gif(path: Path, resize: Resize | None = None, max_frames: int = MAX_FRAMES) -> Decoded:
    """Decodes a GIF, each frame resized as it comes; its rate is that of the script in its comment, else that of its shortest frame."""
    try:
        with Image.open(path, formats=("GIF",)) as picture:
            if max(picture.size) > MAX_SIDE or picture.n_frames > max_frames:
                raise VideoError(f"{path}: {picture.n_frames} frames of {picture.width}x{picture.height}; that is more than is read")
            parts = []
            for part in ImageSequence.Iterator(picture):
                pixels = np.asarray(part.convert("RGB"))
                parts.append((pixels if resize is None else resize(pixels), part.info.get("duration") or 100))
                if len(parts) * parts[0][0].nbytes > MAX_BYTES:
                    raise VideoError(f"{path}: its frames take more than {MAX_BYTES >> 30} GiB of memory; cut it into shorter files")
            comment = picture.info.get("comment", b"").decode("utf-8", "replace")
    except VideoError:
        raise
    except (OSError, ValueError, SyntaxError, IndexError, EOFError) as error:
        raise VideoError(f"{path}: not a whole GIF ({error})") from error
    values = parse_json_object(comment)
    fps = values.get("fps")
    fps = float(fps) if isinstance(fps, (int, float)) and 0 < fps < 1000 else float(max(round(1000 / min(ms for _, ms in parts)), 1))
    frames, elapsed = [], 0
    for pixels, milliseconds in parts:
        elapsed += milliseconds
        frames += [pixels] * max(min(round(elapsed * fps / 1000), max_frames) - len(frames), 0)
    return Decoded(np.stack(frames or [parts[0][0]]), fps, (), values if "scenes" in values else None)


class StreamEncoder:
    """Encodes frames as they come into a part file that plays at any moment; `finish` makes the whole file of it."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int], gop_size: int | None = None):
        self.path, self.fps = path, Fraction(fps).limit_denominator(100_000)
        self.part = path.with_name(f".{path.stem}.part{path.suffix}")
        codec, options = CODECS[path.suffix.lower()]
        self.container = av.open(address(self.part), mode="w", options=GROWING[path.suffix.lower()])
        self.stream = self.container.add_stream(codec, rate=self.fps, options=options)
        self.stream.height, self.stream.width = size
        self.stream.pix_fmt = "yuv420p" if size[0] % 2 == 0 and size[1] % 2 == 0 else "yuv444p"
        self.stream.gop_size = gop_size or max(round(fps), 1)  # a second, so that a killed run loses no more
        self.stream.codec_context.max_b_frames = 0
        self.stream.codec_context.colorspace = Colorspace.ITU709
        self.stream.codec_context.color_range = ColorRange.MPEG
        self.reformatter, self.count, self.closed = VideoReformatter(), 0, False

    def write(self, frames: np.ndarray) -> None:
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = self.reformatter.reformat(
                frame, format=self.stream.pix_fmt, dst_colorspace=Colorspace.ITU709, src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = self.count, 1 / self.fps
            self.container.mux(self.stream.encode(frame))
            self.count += 1

    def close(self) -> None:
        """Ends the part file, as far as it got."""
        if self.closed:
            return
        self.closed = True
        try:
            self.container.mux(self.stream.encode(None))
        finally:
            self.container.close()

    def finish(self, scenes: Sequence[VideoScene], script: dict[str, Any] | None) -> Path:
        """Ends the part file and copies its packets into a whole file with chapters and script; returns that file."""
        self.close()
        whole = self.path.with_name(f".{self.path.stem}.whole{self.path.suffix}")
        options = {"movflags": "faststart"} if self.path.suffix.lower() == ".mp4" else {}
        with av.open(address(self.part)) as source, av.open(address(whole), mode="w", options=options) as target:
            if script is not None:
                target.metadata["comment"] = json.dumps(script, ensure_ascii=False)
                target.metadata["title"] = str(script.get("title") or "")
            in_order = sorted(scenes, key=lambda scene: scene.start_frame)
            target.set_chapters([self._chapter(number, scene) for number, scene in enumerate(in_order)])
            stream = target.add_stream_from_template(source.streams.video[0])
            stream.codec_context.framerate = self.fps  # else a reader of .webm guesses it from rounded milliseconds
            stream.metadata[FRAMES_TAG] = str(self.count)
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        kept, written = checksums(self.part), checksums(whole)
        lost_chapters = {scene.prompt for scene in scenes} - chapter_titles(whole)
        if kept != written or len(written) != self.count or lost_chapters:
            raise VideoError(f"{self.path}: what was written does not read back; is the disk full?")
        return whole

    def _chapter(self, number: int, scene: VideoScene) -> dict[str, Any]:
        milliseconds = [round(1000 * frame / self.fps) for frame in (scene.start_frame, scene.start_frame + scene.num_frames)]
        base = Fraction(1, 1000)
        return {"id": number, "start": milliseconds[0], "end": milliseconds[1], "time_base": base, "metadata": {"title": scene.prompt}}


class GifEncoder:
    """Keeps frames in 256 colours each and writes them at the end: GIF has no way to grow that players accept.

    Equal frames in a row become one that is shown longer; `decode_gif` takes them apart again by the rate in the comment.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]):
        if fps > MAX_GIF_FPS:
            raise VideoError(f"{path}: {fps:g} frames a second: a GIF has at most {MAX_GIF_FPS}; write .mp4 or .webm")
        self.path, self.fps, self.frames = path, fps, []
        self.part = path.with_name(f".{path.stem}.part.gif")

    def write(self, frames: np.ndarray) -> None:
        self.frames += [Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE) for pixels in frames]

    def close(self) -> None:
        """Nothing lies on disk yet."""

    def finish(self, scenes: Sequence[VideoScene], script: dict[str, Any] | None) -> Path:
        ends = [round(100 * (n + 1) / self.fps) for n in range(len(self.frames))]  # GIF counts hundredths of a second
        durations = [10 * (end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        comment = json.dumps({**(script or {}), "fps": self.fps}).encode()
        first, *rest = self.frames
        first.save(self.part, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0, comment=comment, optimize=False)
        return self.part


class SequenceEncoder:
    """Single frames as PNG: path holds a place for the number, such as frame_%05d.png."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]):
        self.path, self.count = path, 0
        try:
            self.path.name % 0
        except (TypeError, ValueError) as error:
            raise VideoError(f"{path}: needed one number in the name, as in frame_%05d.png") from error

    def write(self, frames: np.ndarray) -> None:
        for pixels in frames:
            target = self.path.with_name(self.path.name % self.count)
            part = target.with_name(f".{target.name}.part")
            Image.fromarray(pixels).save(part, format="PNG")
            os.replace(part, target)
            self.count += 1

    def close(self) -> None:
        """Every frame is whole already."""

    def finish(self, scenes: Sequence[VideoScene], script: dict[str, Any] | None) -> None:
        return None


def checksums(path: Path) -> list[int]:
    """One of every whole encoded frame of a file: `av` does not always notice that a disk is full."""
    with av.open(address(path)) as container:
        return [zlib.crc32(packet) for packet in container.demux(video=0) if packet.dts is not None and not packet.is_corrupt]


def chapter_titles(path: Path) -> set[str]:
    """The prompts of a file's scenes."""
    with av.open(address(path)) as container:
        return {chapter["metadata"].get("title", "") for chapter in container.chapters()}


def plays(path: Path) -> bool:
    """Whether a player would show at least the first frame of a file, however it ends."""
    try:
        with av.open(address(path)) as container:
            return next(container.decode(video=0), None) is not None
    except DECODE_ERRORS:
        return False


def address(path: Path) -> str:
    """The name under which `av` opens a file: a relative one such as night:bear.mp4 would be taken for a network address."""
    return str(path.absolute())


def resampled_indices(num_frames: int, from_fps: float, to_fps: float) -> Iterator[int]:
    """The frames that show a video at another rate: floor(i * from / to) for each new frame i."""
    for index in range(max(round(num_frames * to_fps / from_fps), 1)):
        yield min(math.floor(index * from_fps / to_fps), num_frames - 1)
