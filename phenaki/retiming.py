"""A video shown at another rate than it is made at, part by part: no part depends on where the seams between parts lie."""

import math
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


def retimed_length(num_frames: int, from_fps: float, to_fps: float) -> int:
    """Frames at another rate that show the same time."""
    return round(num_frames * to_fps / from_fps)


def retimed_start(frame: int, from_fps: float, to_fps: float, total: int) -> int:
    """The first of `total` frames at another rate that shows `frame` or a later one."""
    return min(math.ceil(frame * rate(to_fps) / rate(from_fps)), total)


def retimed(frames: np.ndarray, start_frame: int, from_fps: float, to_fps: float, total: int) -> np.ndarray:
    """The part of a video of `total` frames at another rate that shows `frames`, which begin at `start_frame`.

    Each new frame shows what was on screen at its time, wherever the seams between such parts lie.
    """
    if from_fps == to_fps:
        return frames
    first, end = (retimed_start(frame, from_fps, to_fps, total) for frame in (start_frame, start_frame + len(frames)))
    source = np.array([frame_at(frame, from_fps, to_fps) - start_frame for frame in range(first, end)], dtype=int)
    return frames[source.clip(0, len(frames) - 1)]  # a total that was rounded up ends with the last frame once more
