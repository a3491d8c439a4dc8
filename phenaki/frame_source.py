"""The frames of one's own clip, one after the other at a model's rate: a file is read as a stream, whatever its length.

A clip is a `Video` in memory, a video file, a GIF, a picture (one frame) or a folder of pictures. A file is read twice: to
count its frames and see that it is whole, before anything is made of it, and for its pixels; a video file the first time in a
process of its own, for a few bytes may promise millions of frames, and the promise alone takes gigabytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np

from phenaki.data.decoding import OWN_TIME_LIMIT, Worker, check_video
from phenaki.gif_files import GifFacts, gif_facts, gif_pictures
from phenaki.video import IMAGE_ENDINGS, Video, read_video
from phenaki.video_files import (
    MAX_FRAMES,
    VideoError,
    VideoReformatter,
    open_strictly,
    resampled_indices,
    scaled_pixels,
    whole_frames,
)

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
            facts = check_video(path, worker)
        if facts.num_frames > MAX_FRAMES:
            raise VideoError(f"{path}: more than {MAX_FRAMES} frames; cut it into shorter files", "too long")
        return cls(path, facts.num_frames, facts.fps, facts.height, facts.width)

    def numbers(self, fps: float) -> list[int]:
        """The clip's own frames that show it at another rate."""
        return resampled_indices(self.num_frames, self.fps, fps)

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
        back = [round(step * self.fps / fps) for step in reversed(range(count))]
        numbers = [self.num_frames - 1 - step for step in back if step < self.num_frames]
        kept = {number: pixels for number, pixels in enumerate(self.frames()) if number in numbers}
        if numbers[-1] not in kept:
            raise VideoError(f"{self.path}: {CHANGED}")
        return [kept[number] for number in numbers]


Clip = Video | str | Path | FrameSource  # what stands for a clip wherever one is asked for
