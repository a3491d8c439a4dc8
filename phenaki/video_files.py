"""Video files through PyAV: hardened reading (video_encoders.py writes them).

Untrusted files are opened with a whitelist of formats and strict error detection: a default `av.open` follows playlists to
other files and passes damaged pictures on.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from phenaki.nal_units import damage_of, length_size
from phenaki.retiming import MIN_FPS, frame_at
from phenaki.story_formats import FILE_FIELDS

READ_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,gif"
STRICT = "crccheck+bitstream+buffer+explode"
MAX_SIDE = 4096  # pixels
MAX_FRAMES = 200_000  # of one file read whole
MAX_BYTES = 8 << 30  # of its frames in memory
FRAMES_TAG = "PHENAKI_FRAMES"  # how many a .webm holds; .mp4 says so by itself
MAX_SCRIPT_BYTES = 1 << 22  # of the script that travels in a file
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


def check_fps(fps: float) -> None:
    """VideoError for a number of frames a second that no video has."""
    if not MIN_FPS <= fps < 1000:
        raise VideoError(f"fps {fps}: needed {MIN_FPS:.5f} or more, and less than 1000 frames a second", "rate")


def check_regular(path: str | Path) -> None:
    """VideoError where a path is a pipe, a socket or a device: whoever opens one may wait for ever."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise VideoError(f"{path}: is a pipe or a device; give a file", "not a file")


Resize = Callable[[np.ndarray], np.ndarray]  # (h w 3) uint8 -> the same of another size


def decode_video(path: Path, resize: Resize | None = None) -> Decoded:
    """Decodes a whole video file, each frame resized as it comes. VideoError names the file and what is wrong with it."""
    reformatter, frames, num_bytes = VideoReformatter(), [], 0
    with open_strictly(path) as (container, stream):
        for frame in whole_frames(path, container, stream):
            if len(frames) >= MAX_FRAMES:
                raise VideoError(f"{path}: more than {MAX_FRAMES} frames; cut it into shorter files", "too long")
            pixels = np.rot90(reformatter.reformat(frame, format="rgb24").to_ndarray(), frame.rotation // 90 % 4)
            frames.append(pixels if resize is None else resize(pixels))
            num_bytes += frames[-1].nbytes
            check_bytes(path, num_bytes)
        scenes = tuple(_scene(chapter, frame_rate(path, stream)) for chapter in container.chapters())
        return Decoded(stacked(frames), frame_rate(path, stream), scenes, parse_script(comment_of(container)))


@contextlib.contextmanager
def open_strictly(path: Path, file: BinaryIO | None = None) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens an untrusted video (`file`, where it lies inside another file): container and first video stream.

    Every error of decoding that happens inside becomes a VideoError that names `path`.
    """
    options = {"format_whitelist": READ_FORMATS, "protocol_whitelist": "file", "err_detect": STRICT}
    opened = False
    if file is None:
        check_regular(path)
    try:
        with av.open(address(path) if file is None else file, mode="r", options=options, metadata_errors="replace", timeout=20) as container:
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
        kind = "too much memory" if isinstance(error, MemoryError) else "damaged" if opened else "not a video"
        raise VideoError(f"{path}: not a whole video file ({reason})", kind) from error


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


def check_bytes(path: Path, num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise VideoError(f"{path}: its frames take more than {MAX_BYTES >> 30} GiB of memory; cut it into shorter files", "too long")


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
    if not MIN_FPS <= fps < 1000:
        raise VideoError(f"{path}: {fps} frames a second is not a rate", "rate")
    return fps


def _promised_frames(stream: av.VideoStream) -> int | None:
    """How many frames the header speaks of; None where it does not."""
    tag = stream.metadata.get(FRAMES_TAG)
    if tag is not None:
        return int(tag)
    return stream.frames or None


def comment_of(container: av.container.InputContainer) -> str:
    """Where this program puts a script; "" where a file has none."""
    return {key.lower(): value for key, value in container.metadata.items()}.get("comment", "")


def _scene(chapter: dict[str, Any], fps: float) -> VideoScene:
    base = float(chapter["time_base"] or 1)
    start, end = (round(chapter[key] * base * fps) for key in ("start", "end"))
    return VideoScene(chapter["metadata"].get("title", ""), start, max(end - start, 0))


def check_script(path: Path, script: dict[str, Any] | None) -> None:
    """VideoError for a script that cannot travel in the file `path`."""
    try:
        json.dumps(script, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise VideoError(f"{path}: its script cannot be written as JSON ({error}); give plain numbers, texts, lists and dictionaries") from error


def parse_script(text: str) -> dict[str, Any] | None:
    """The script that travels in a file; None where there is none, or something else stands in its place.

    Pictures and videos are named in it without folders, as this program writes them: who tells it again opens these names.
    """
    values = parse_json_object(text)
    scenes = values.get("scenes")
    if not isinstance(scenes, list):
        return None
    named = [scene[field] for scene in scenes if isinstance(scene, dict) for field in FILE_FIELDS if scene.get(field) is not None]
    return values if all(isinstance(name, str) and is_plain_name(name) for name in named) else None


def is_plain_name(name: str) -> bool:
    """Whether it names a file without its folder, on any system."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def parse_json_object(text: str) -> dict[str, Any]:
    """A JSON object from a file's metadata; {} where the text is anything else."""
    if not text.startswith("{") or len(text) > MAX_SCRIPT_BYTES:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def stacked(frames: list[np.ndarray]) -> np.ndarray:
    """Frames (f h w 3) of a list that is empty then: each is let go once it is copied, or they would take their memory twice."""
    whole = np.empty((len(frames), *frames[0].shape), np.uint8)
    for index in reversed(range(len(frames))):
        whole[index] = frames.pop()
    return whole


def address(path: Path) -> str:
    """The name under which `av` opens a file: a relative one such as night:bear.mp4 would be taken for a network address."""
    return str(path.absolute())


def resampled_indices(path: Path, num_frames: int, from_fps: float, to_fps: float) -> list[int]:
    """The frames that show a video at another rate: floor(i * from / to) for each new frame i. VideoError for more than are read."""
    total = max(round(num_frames * to_fps / from_fps), 1)
    _check_length(total, f"{path}: {num_frames} frames at {from_fps:.3g} fps last {num_frames / from_fps:.3g} s", to_fps)
    return [min(frame_at(index, from_fps, to_fps), num_frames - 1) for index in range(total)]


def resampled_length(path: Path, seconds: float, fps: float) -> int:
    """How many frames show a video of so many seconds. VideoError for more than are read."""
    total = max(round(seconds * fps), 1)
    _check_length(total, f"{path}: its frames last {seconds:.3g} s", fps)
    return total


def _check_length(total: int, told: str, fps: float) -> None:
    if total > MAX_FRAMES:
        raise VideoError(f"{told}: at {fps:g} fps they are {total}, at most {MAX_FRAMES} are read; cut it into shorter files", "too long")
