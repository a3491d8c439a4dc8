"""The frames of one's own clip, one after the other at a model's rate: a file is read as a stream, whatever its length.

A clip is a `Video` in memory, a video file, a GIF, a picture (one frame) or a folder of pictures. A file is read twice: to
count its frames and see that it is whole, before anything is made of it, and for its pixels; a video file the first time in a
process of its own, for a few bytes may promise millions of frames, and the promise alone takes gigabytes.
Frames of a video file are chosen by their time stamps where these are uneven, as they are in training (data/clip_decoder.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np

from phenaki.data.decoding import OWN_TIME_LIMIT, Worker, check_video
from phenaki.gif_files import GifFacts, gif_facts, gif_pictures
from phenaki.pictures import IMAGE_ENDINGS
from phenaki.video import Video, read_video
from phenaki.video_files import (
    MAX_FRAMES,
    VideoError,
    VideoReformatter,
    open_strictly,
    resampled_indices,
    resampled_length,
    scaled_pixels,
    whole_frames,
)

ROUNDING = 1e-3  # seconds by which a time stamp may come late: .webm counts milliseconds
CHANGED = "has fewer frames than a moment ago; is it still being written?"


@dataclass(frozen=True)
class FrameSource:
    """A clip that can be read from its start as often as wanted. height, width: in pixels, as it is shown."""

    path: Path | None
    num_frames: int
    fps: float
    height: int
    width: int
    video: Video | None = field(default=None, repr=False)  # None: the frames are read from the file
    gif: GifFacts | None = field(default=None, repr=False)  # of a file that is one
    times: np.ndarray | None = field(default=None, repr=False, compare=False)  # seconds after the first, rising; None: evenly, 1 / fps apart

    @classmethod
    def of(cls, clip: "Clip") -> "FrameSource":
        """The clip, checked from its first frame to its last. VideoError for a file that is not whole or not a video."""
        if isinstance(clip, FrameSource):
            return clip
        if isinstance(clip, Video):
            return cls._of_video(clip, None)
        path = Path(clip)
        if path.is_dir() or path.suffix.lower() in IMAGE_ENDINGS:
            return cls._of_video(read_video(path), path)
        if path.suffix.lower() == ".gif":
            facts = gif_facts(path)
            return cls(path, facts.num_frames, facts.fps, facts.height, facts.width, gif=facts)
        return cls._of_file(path)

    @classmethod
    def _of_video(cls, video: Video, path: Path | None) -> "FrameSource":
        return cls(path, len(video), video.fps, *video.frames.shape[1:3], video)

    @classmethod
    def _of_file(cls, path: Path) -> "FrameSource":
        with Worker(OWN_TIME_LIMIT) as worker:
            facts, times = check_video(path, worker)
        if facts.num_frames > MAX_FRAMES:
            raise VideoError(f"{path}: more than {MAX_FRAMES} frames; cut it into shorter files", "too long")
        return cls(path, facts.num_frames, facts.fps, facts.height, facts.width, times=uneven_times(times, facts.fps))

    def numbers(self, fps: float) -> list[int]:
        """The clip's own frames that show it at another rate: at second i / fps the one that is on screen then."""
        if self.times is None:
            return resampled_indices(self.path, self.num_frames, self.fps, fps)
        seconds = self.times[-1] + np.median(np.diff(self.times))  # no file says for how long its last frame is shown
        return self._shown_at(np.arange(resampled_length(self.path, seconds, fps)) / fps)

    def _shown_at(self, seconds: np.ndarray) -> list[int]:
        return (np.searchsorted(self.times, seconds + ROUNDING, side="right") - 1).tolist()

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame, uint8 (h w 3)."""
        if self.video is not None:
            yield from self.video.frames
            return
        if self.gif is not None:
            for pixels, count in gif_pictures(self.path, self.gif):
                yield from repeat(pixels, count)
            return
        reformatter = VideoReformatter()
        with open_strictly(self.path) as (container, stream):
            for frame in whole_frames(self.path, container, stream):
                yield scaled_pixels(frame, reformatter, (self.height, self.width))

    def frames_at(self, fps: float) -> Iterator[np.ndarray]:
        """The frames that show the clip at another rate, uint8 (h w 3)."""
        wanted, own = self.numbers(fps), enumerate(self.frames())
        shown, pixels = -1, None
        for number in wanted:
            while shown < number:
                shown, pixels = next(own, (number, None))
            if pixels is None:
                raise VideoError(f"{self.path}: {CHANGED}")
            yield pixels

    def last_frames(self, count: int, fps: float) -> list[np.ndarray]:
        """The last `count` frames at another rate, uint8 (h w 3), the clip's very last one at their end; fewer where it is shorter."""
        steps = np.arange(count)[::-1]
        if self.times is None:
            back = [round(step * self.fps / fps) for step in steps.tolist()]
            numbers = [self.num_frames - 1 - step for step in back if step < self.num_frames]
        else:
            seconds = self.times[-1] - steps / fps
            numbers = self._shown_at(seconds[seconds > -ROUNDING])
        kept = {number: pixels for number, pixels in enumerate(self.frames()) if number in numbers}
        if numbers[-1] not in kept:
            raise VideoError(f"{self.path}: {CHANGED}")
        return [kept[number] for number in numbers]


def uneven_times(times: np.ndarray, fps: float) -> np.ndarray | None:
    """Seconds after the first frame, rising, of frames of which one at least is half a frame or more from its place at a constant rate.

    None where none is. times: seconds, float64 (f,).
    """
    times = np.maximum.accumulate(times - times[0])
    away = np.abs(times - np.arange(len(times)) / fps)
    return times if len(times) > 1 and away.max() * fps >= 0.5 else None


Clip = Video | str | Path | FrameSource  # what stands for a clip wherever one is asked for
