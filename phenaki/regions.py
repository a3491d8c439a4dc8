"""Which part of a clip is made anew: a box, all around it, some of the frames, or a mask of one's own.

A region is told in the clip's own pixels and frames. A model sees the middle square of a clip as a grid of tokens, and a token
is hidden where any of its pixels is in the region; so what is outside of the region may be hidden, never the other way round.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phenaki.pictures import read_image


class RegionError(ValueError):
    """A region that a clip does not have; the message says what it has."""


@dataclass(frozen=True)
class Region:
    """A part of a clip. Without a box and a mask it is the whole picture, without `frames` the whole length."""

    box: tuple[int, int, int, int] | None = None  # x, y, width, height in the clip's pixels
    outside: bool = False  # all around the box, not what is in it
    frames: tuple[int, int] | None = None  # the first and the last one, by the clip's own numbers from 0
    mask: np.ndarray | None = field(default=None, compare=False)  # bool (h w) or (f h w) of the clip's size, True = made anew

    def __post_init__(self):
        if self.box is not None and self.mask is not None:
            raise RegionError("box and mask: a region has one of them")
        if self.outside and self.box is None:
            raise RegionError("outside: needs a box, to be made anew all around it")
        for name, needed in (("box", ("x", "y", "width", "height")), ("frames", ("first", "last"))):
            value = getattr(self, name)
            if value is not None and (len(value) != len(needed) or not all(isinstance(number, (int, np.integer)) for number in value)):
                raise RegionError(f"{name} {value!r}: needed {len(needed)} whole numbers, {', '.join(needed)}")
            if value is not None:  # plain ones: they travel with the result, as JSON
                object.__setattr__(self, name, tuple(int(number) for number in value))
        object.__setattr__(self, "outside", bool(self.outside))
        if self.mask is not None and (not isinstance(self.mask, np.ndarray) or self.mask.dtype != bool or self.mask.ndim not in (2, 3)):
            found = f"{self.mask.dtype} {self.mask.shape}" if isinstance(self.mask, np.ndarray) else type(self.mask).__name__
            raise RegionError(f"mask is {found}: needed a bool array (h, w) or (f, h, w), True = made anew")

    @classmethod
    def parse(cls, box: str | None, outside: bool, frames: str | None, mask: Path | None) -> "Region | None":
        """A region as it is written on a command line: "x,y,width,height", "first-last", a picture (white = made anew). None where nothing is."""
        if box is None and frames is None and mask is None and not outside:
            return None
        pixels = None if mask is None else read_image(mask).mean(axis=-1) > 127
        return cls(_numbers("box", box, ",", "x,y,width,height"), outside, _numbers("frames", frames, "-", "first-last"), pixels)


def _numbers(name: str, text: str | None, separator: str, needed: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(separator)]
    if len(parts) != len(needed.split(separator)) or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise RegionError(f"{name} {text!r}: needed {needed}, each a whole number")
    return tuple(int(part) for part in parts)


class ClipRegion:
    """A region of a clip of known size. Raises RegionError where the clip has no such part."""

    def __init__(self, region: Region, num_frames: int, height: int, width: int):
        self.region, self.size = region, (height, width)
        self.known: dict[tuple[bool, int], Tensor] = {}  # grids of a region that is the same in all of its frames
        clip = f"the clip has {num_frames} frames of {width}x{height} pixels"
        if region.frames is not None and not 0 <= region.frames[0] <= region.frames[1] < num_frames:
            raise RegionError(f"frames {region.frames[0]}-{region.frames[1]}: {clip}, so 0-{num_frames - 1} at most")
        if region.box is not None:
            x, y, w, h = region.box
            if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
                raise RegionError(f"box {x},{y},{w},{h} (x, y, width, height): {clip}; it must lie in them and hold a pixel")
        mask = region.mask
        if mask is not None and (mask.shape[-2:] != self.size or (mask.ndim == 3 and len(mask) != num_frames)):
            raise RegionError(f"mask of {mask.shape}: {clip}, so it must be {self.size} or {(num_frames, *self.size)}")

    def grid(self, frame: int, side: int) -> Tensor:
        """What is made anew of the middle square of a frame, bool (side side): a place is, where any of its pixels is."""
        region = self.region
        within = region.frames is None or region.frames[0] <= frame <= region.frames[1]
        if region.mask is not None and region.mask.ndim == 3:
            return _square_grid(region.mask[frame] & within, side)
        if (within, side) not in self.known:
            self.known[within, side] = _square_grid(self._picture() & within, side)
        return self.known[within, side]

    def _picture(self) -> np.ndarray:
        if self.region.mask is not None:
            return self.region.mask
        picture = np.full(self.size, self.region.box is None or self.region.outside)
        if self.region.box is not None:
            x, y, w, h = self.region.box
            picture[y : y + h, x : x + w] = not self.region.outside
        return picture


def seen_square(height: int, width: int) -> tuple[int, int, int]:
    """The square of a picture that a model sees, in pixels: its top, its left, its side."""
    short = min(height, width)
    return (height - short) // 2, (width - short) // 2, short


def _square_grid(picture: np.ndarray, side: int) -> Tensor:
    """The middle square of a mask (h w) on a grid (side side): True where any pixel that a place covers is."""
    top, left, short = seen_square(*picture.shape)
    square = torch.from_numpy(np.ascontiguousarray(picture[top : top + short, left : left + short]))
    return F.adaptive_max_pool2d(square[None].float(), side)[0] > 0
