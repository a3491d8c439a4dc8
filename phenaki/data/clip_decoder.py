"""Untrusted clips: a whole file checked, one clip cut out of it, or all of it encoded anew for training.

Everything here runs in the decoding worker (decoding_worker.py), never in a training process. A video of any length is read as
a stream; a clip from its middle is reached by seeking. Frames are chosen by their time stamps, so a file whose frames come at
uneven times (phones) plays at its true speed.
"""

import hashlib
import io
import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from phenaki.data.clip_files import ClipFile
from phenaki.pictures import read_image
from phenaki.video_encoders import StreamEncoder
from phenaki.video_files import (
    MAX_FRAMES,
    Container,
    Frame,
    Stream,
    VideoError,
    VideoReformatter,
    comment_of,
    frame_rate,
    open_strictly,
    scaled_pixels,
    shown_size,
    strict_frames,
    whole_frames,
)

MAX_SECONDS = 24 * 3600  # of one file
MAX_DECODED = MAX_SECONDS * 120  # frames of one file
MAX_PICTURE_BYTES = 1 << 28
SHARD_GOP = 12  # frames from one that can be sought to the next
OnWork = Callable[[], None]  # called now and then while the work proceeds


@dataclass(frozen=True)
class ClipFacts:
    """What a check found. seconds, fps: 0 of a picture."""

    width: int
    height: int
    num_frames: int
    seconds: float
    fps: float

    def frames_at(self, fps: float) -> int:
        """How many frames the clip has at another rate."""
        return max(round(self.seconds * fps), 1)


@dataclass(frozen=True)
class Cut:
    """What a clip shows of its file: `num_frames` at `fps`, from a place in time and space, resized to `size` pixels a side.

    place, left, top: in [0, 1], from the first possible start to the last; zoom: side of the square as a share of the shorter
    side; seconds: length of the whole file where a check has measured it; 0 = as its header states.
    """

    num_frames: int
    fps: float
    size: int
    place: float = 0.0
    left: float = 0.5
    top: float = 0.5
    zoom: float = 1.0
    flip: bool = False
    seconds: float = 0.0


class Window(io.RawIOBase):
    """Bytes offset .. offset + num_bytes - 1 of a file, as a file of its own."""

    def __init__(self, path: str, offset: int, num_bytes: int):
        self.file, self.offset, self.num_bytes, self.at = open(path, "rb", buffering=0), offset, num_bytes, 0  # noqa: SIM115 - closed by close()

    def readinto(self, buffer) -> int:
        view = memoryview(buffer)[: max(self.num_bytes - self.at, 0)]
        self.file.seek(self.offset + self.at)
        count = self.file.readinto(view) if len(view) else 0
        self.at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max({io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.num_bytes}[whence] + offset, 0)
        return self.at

    def tell(self) -> int:
        return self.at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()


def open_bytes(file: ClipFile) -> Window:
    """A clip's bytes, in a file of its own or inside a tar, as a readable file."""
    return Window(file.path, file.offset, file.num_bytes)


def open_video(file: ClipFile) -> AbstractContextManager[tuple[Container, Stream]]:
    """Opens a clip: its container and video stream (see `open_strictly`). VideoError where it is no video, or for damage met while it is open."""
    return open_strictly(Path(file.name), open_bytes(file))


def check_clip(file: ClipFile, on_progress: OnWork) -> ClipFacts:
    """Decodes the whole file and throws the frames away. VideoError says what is wrong with it, wherever in the file it is."""
    return check_times(file, on_progress)[0]


def check_times(file: ClipFile, on_progress: OnWork) -> tuple[ClipFacts, array]:
    """As `check_clip`, and the time of each frame in seconds (the first MAX_FRAMES)."""
    check_hash(file, on_progress)
    if file.is_picture:
        height, width, _ = open_picture(file).shape
        return ClipFacts(width, height, 1, 0.0, 0.0), array("d", [0.0])
    path, times = Path(file.name), array("d")
    with open_video(file) as (container, stream):
        frames = whole_frames(path, container, stream)
        begin = next(frames)  # a file without frames says so, before it is asked for a rate
        fps, first, last, count = frame_rate(path, stream), math.inf, -math.inf, 0
        for seconds, frame in timed_frames(itertools.chain([begin], frames), fps):
            first, last, (height, width), count = min(first, seconds), max(last, seconds), shown_size(frame), count + 1
            on_progress()
            if count <= MAX_FRAMES:
                times.append(seconds)
            if count > MAX_DECODED:
                raise VideoError(f"{file.name}: more than {MAX_DECODED} frames; cut it into shorter files", "too long")
            if last - first > MAX_SECONDS:
                raise VideoError(f"{file.name}: longer than {MAX_SECONDS // 3600} hours; cut it into shorter files", "too long")
        return ClipFacts(width, height, count, last - first + 1 / fps, fps), times


def read_comment(file: ClipFile) -> str:
    """The text of a video's comment field, read without decoding its frames."""
    with open_video(file) as (container, _):
        return comment_of(container)


def check_hash(file: ClipFile, on_progress: OnWork) -> None:
    """VideoError where a file's SHA-256 is known (`ClipFile.sha256`) and its bytes have another."""
    if not file.sha256:
        return
    digest = hashlib.sha256()
    with open_bytes(file) as window:
        while block := window.read(1 << 20):
            digest.update(block)
            on_progress()
    if digest.hexdigest() != file.sha256:
        raise VideoError(f"{file.name}: SHA-256 is {digest.hexdigest()[:12]}..., {file.sha256[:12]}... was written down for it", "checksum")


def cut_clip(file: ClipFile, cut: Cut) -> np.ndarray:
    """One clip as uint8 (f h w 3). VideoError where the file is damaged on the way there, or too short."""
    if file.is_picture:
        return square(open_picture(file), cut)[None]
    try:
        with open_video(file) as (container, stream):
            return cut_video(file, cut, container, stream, sought=True)
    except VideoError as error:
        if error.kind == "too short":
            raise
    with open_video(file) as (container, stream):  # a file that cannot be sought in: from its beginning
        return cut_video(file, cut, container, stream, sought=False)


def cut_video(file: ClipFile, cut: Cut, container: Container, stream: Stream, sought: bool) -> np.ndarray:
    """One clip of an open video as uint8 (f h w 3). sought: reaches its place by seeking; otherwise by decoding from the beginning.

    VideoError where the file is damaged on the way there, too short, or where seeking went past the place.
    """
    path, reformatter = Path(file.name), VideoReformatter()
    fps = frame_rate(path, stream)
    after = start_after(file, cut, cut.seconds or header_seconds(container, stream), fps)
    start, margin = after + origin(stream), 0.25 / fps  # a time stamp rounded to milliseconds may come late
    if sought and after:
        container.seek(round(start / stream.time_base), stream=stream, backward=True)
    timed = timed_frames(strict_frames(path, container, stream), fps)
    begin = next(timed, None)
    if begin is None:
        raise VideoError(f"{path}: holds no frames", "no frames")
    if sought and begin[0] > start + margin:
        raise VideoError(f"{path}: seeking went past the place sought")
    pixels, last = [], None
    for frame in frames_at(itertools.chain([begin], timed), [start + n / cut.fps + margin for n in range(cut.num_frames)]):
        pixels.append(pixels[-1] if frame is last else square_frame(frame, reformatter, cut))
        last = frame
    return np.stack(pixels)


def start_after(file: ClipFile, cut: Cut, seconds: float, fps: float) -> float:
    """Seconds from the beginning to the frame that the clip starts with; VideoError where the file is too short for a clip."""
    available = max(round(seconds * cut.fps), 1)
    if seconds and available < cut.num_frames:
        raise VideoError(f"{file.name}: {available} frames at {cut.fps:g} fps, a clip needs {cut.num_frames}", "too short")
    num_starts = math.floor(max(seconds - cut.num_frames / cut.fps, 0.0) * fps + 1e-6) + 1
    return min(math.floor(cut.place * num_starts), num_starts - 1) / fps


def header_seconds(container: Container, stream: Stream) -> float:
    """A video's length in seconds as its header states it; 0 where it states none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else 0.0


def origin(stream: Stream) -> float:
    """The time stamp of the first frame, in seconds."""
    return float(stream.start_time * stream.time_base) if stream.start_time else 0.0


def timed_frames(frames: Iterable[Frame], fps: float) -> Iterator[tuple[float, Frame]]:
    """Frames with the time of each in seconds: its time stamp, or (number / fps) where it has none."""
    for number, frame in enumerate(frames):
        known = frame.pts is not None and frame.time_base
        yield float(frame.pts * frame.time_base) if known else number / fps, frame


def frames_at(timed: Iterable[tuple[float, Frame]], times: list[float]) -> Iterator[Frame]:
    """For each of some rising times the frame shown then: the last one not later than it, or the first frame for times before it."""
    current, pending = None, list(reversed(times))
    for seconds, frame in timed:
        while pending and current is not None and pending[-1] < seconds:
            yield current
            pending.pop()
        if not pending:
            return
        current = frame
    for _ in pending:
        yield current


def reencode_clip(file: ClipFile, size: int, fps: float | None, target: Path, on_progress: OnWork) -> ClipFacts:
    """Writes a clip anew with its shorter side `size` pixels, at `fps` or its own average rate, a keyframe every SHARD_GOP frames.

    target: the file to write, .mp4, or .png for a picture.
    """
    if file.is_picture:
        picture = Image.fromarray(open_picture(file))
        height, width = even_size(picture.height, picture.width, size)
        picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3).save(target, format="PNG")
        return ClipFacts(width, height, 1, 0.0, 0.0)
    path, reformatter, encoder = Path(file.name), VideoReformatter(), None
    try:
        with open_video(file) as (container, stream):
            own_fps = frame_rate(path, stream)
            fps = fps or own_fps
            frames = resampled(timed_frames(counted_frames(whole_frames(path, container, stream), on_progress), own_fps), fps, own_fps)
            while group := list(itertools.islice(frames, SHARD_GOP)):
                shape = even_size(*shown_size(group[0]), size)
                encoder = encoder or StreamEncoder(target, fps, shape, gop_size=SHARD_GOP)
                encoder.write(np.stack([scaled_pixels(frame, reformatter, shape) for frame in group]))
                on_progress()
        encoder.finish((), None).replace(target)
    except BaseException:
        if encoder is not None and (part := encoder.abandon()) is not None:
            part.unlink()
        raise
    encoder.discard()
    return ClipFacts(shape[1], shape[0], encoder.count, encoder.count / fps, fps)


def counted_frames(frames: Iterable[Frame], on_progress: OnWork) -> Iterator[Frame]:
    """Passes frames on, and calls `on_progress` before each."""
    for frame in frames:
        on_progress()
        yield frame


def resampled(timed: Iterator[tuple[float, Frame]], rate: float, fps: float) -> Iterator[Frame]:
    """All of a video, whose own rate is `fps`, at `rate` frames a second; as many frames as its length holds."""
    begin, current, shown = None, None, 0
    for seconds, frame in timed:
        begin = seconds if begin is None else begin
        while current is not None and begin + shown / rate + 0.25 / fps < seconds:
            yield current
            shown += 1
        current, end = frame, seconds + 1 / fps
    for _ in range(max(round((end - begin) * rate), 1) - shown):
        yield current


def open_picture(file: ClipFile) -> np.ndarray:
    """A picture as uint8 (h w 3)."""
    if file.num_bytes > MAX_PICTURE_BYTES:
        raise VideoError(f"{file.name}: {file.num_bytes} bytes; at most {MAX_PICTURE_BYTES} of a picture are read", "size")
    with open_bytes(file) as window:
        data = io.BytesIO(window.read())
    try:
        return read_image(data)
    except VideoError as error:
        raise VideoError(f"{file.name}: {str(error).removeprefix(f'{data}: ')}", "damaged picture") from error


def even_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(h, w) with the shorter side `size` (an even number) and the other one in proportion, rounded to an even number: codecs need that."""
    scale = size / min(height, width)
    return tuple(max(2 * round(side * scale / 2), 2) if side != min(height, width) else size for side in (height, width))


def square_frame(frame: Frame, reformatter: VideoReformatter, cut: Cut) -> np.ndarray:
    """The square of a frame that the cut asks for, scaled before it is cut: the codec's scaler is much faster on whole frames."""
    height, width = shown_size(frame)
    scale = cut.size / max(round(min(height, width) * cut.zoom), 1)
    scaled = tuple(max(round(side * scale), cut.size) for side in (height, width))
    top, left = (round(share * (side - cut.size)) for share, side in zip((cut.top, cut.left), scaled, strict=True))
    pixels = scaled_pixels(frame, reformatter, scaled)[top : top + cut.size, left : left + cut.size]
    return pixels[:, ::-1] if cut.flip else pixels


def square(pixels: np.ndarray, cut: Cut) -> np.ndarray:
    """The square of a picture (h w 3) that the cut asks for."""
    side = max(round(min(pixels.shape[:2]) * cut.zoom), 1)
    top, left = (round(share * (length - side)) for share, length in zip((cut.top, cut.left), pixels.shape[:2], strict=True))
    picture = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    small = np.asarray(picture.resize((cut.size, cut.size), Image.Resampling.BICUBIC, reducing_gap=3))
    return small[:, ::-1] if cut.flip else small
