"""A video shown at another rate than it is made at, part by part: no part depends on where the seams between parts lie."""

import math
from fractions import Fraction

import numpy as np


def retimed_length(num_frames: int, from_fps: float, to_fps: float) -> int:
    """Frames at another rate that show the same time."""
    return round(num_frames * to_fps / from_fps)


def retimed_start(frame: int, from_fps: float, to_fps: float, total: int) -> int:
    """The first of `total` frames at another rate that shows `frame` or a later one."""
    return min(math.ceil(frame * Fraction(to_fps) / Fraction(from_fps)), total)


def retimed(frames: np.ndarray, start_frame: int, from_fps: float, to_fps: float, total: int) -> np.ndarray:
    """The part of a video of `total` frames at another rate that shows `frames`, which begin at `start_frame`.

    Each new frame shows what was on screen at its time, wherever the seams between such parts lie.
    """
    if from_fps == to_fps:
        return frames
    first, end = (retimed_start(frame, from_fps, to_fps, total) for frame in (start_frame, start_frame + len(frames)))
    source = np.floor(np.arange(first, end) * from_fps / to_fps).astype(int) - start_frame
    return frames[source.clip(0, len(frames) - 1)]
