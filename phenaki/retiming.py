"""A video shown at another rate than it is made at, part by part: no part depends on where the seams between parts lie."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

MAX_DENOMINATOR = 100_000  # of a rate as files state it
MIN_FPS = 1 / MAX_DENOMINATOR


def rate(fps: float) -> Fraction:
    """A number of frames a second as files state it: 8.4 is 42/5, and not the binary number beside it."""
    return Fraction(fps).limit_denominator(MAX_DENOMINATOR)


def frame_at(frame: int, from_fps: float, to_fps: float) -> int:
    """The frame of a video at one rate that is on screen when `frame` of another rate begins."""
    pace = rate(from_fps) / rate(to_fps)
    return frame * pace.numerator // pace.denominator


@dataclass(frozen=True)
class Retiming:
    """A video of num_frames at one rate, shown as `total` frames at another; each shows what was on screen at its time."""

    num_frames: int
    from_fps: float
    to_fps: float
    total: int

    def start(self, frame: int) -> int:
        """The first frame at the new rate that shows `frame` or a later one; `total` for the end."""
        if frame >= self.num_frames:
            return self.total
        return min(math.ceil(frame * rate(self.to_fps) / rate(self.from_fps)), self.total)

    def shown(self, frames: np.ndarray, start_frame: int) -> np.ndarray:
        """What shows `frames`, which begin at `start_frame`; the video's last frame also what time is left after it."""
        if self.from_fps == self.to_fps:
            return frames
        first, end = self.start(start_frame), self.start(start_frame + len(frames))
        source = np.array([frame_at(frame, self.from_fps, self.to_fps) - start_frame for frame in range(first, end)], dtype=int)
        return frames[source.clip(0, len(frames) - 1)]
