"""Which part of a clip is made anew: pixels to tokens against a slow reference, and what a clip does not have."""

import json
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from phenaki.regions import ClipRegion, Region, RegionError


def slow_grid(picture: np.ndarray, side: int) -> np.ndarray:
    """A place of the grid is True where any pixel is, of those that it covers in whole or in part."""
    short = min(picture.shape)
    top, left = ((length - short) // 2 for length in picture.shape)
    out = np.zeros((side, side), bool)
    for row in range(side):
        for column in range(side):
            rows, columns = (range(math.floor(n * short / side), math.ceil((n + 1) * short / side)) for n in (row, column))
            out[row, column] = any(picture[top + y, left + x] for y in rows for x in columns)
    return out


def picture_of(region: Region, height: int, width: int) -> np.ndarray:
    x, y, w, h = region.box
    rows, columns = np.mgrid[:height, :width]
    inside = (columns >= x) & (columns < x + w) & (rows >= y) & (rows < y + h)
    return ~inside if region.outside else inside


@pytest.mark.parametrize("seed", range(20))
def test_a_token_is_hidden_where_any_of_its_pixels_is_in_the_region(seed):
    draw = random.Random(seed)
    height, width, side = draw.randint(8, 60), draw.randint(8, 60), draw.randint(1, 12)
    w, h = draw.randint(1, width), draw.randint(1, height)
    region = Region((draw.randint(0, width - w), draw.randint(0, height - h), w, h), outside=draw.random() < 0.5)
    clip = ClipRegion(region, 5, height, width)
    picture = picture_of(region, height, width)
    assert np.array_equal(clip.grid(0, side).numpy(), slow_grid(picture, side))
    assert torch.equal(ClipRegion(Region(mask=picture), 5, height, width).grid(4, side), clip.grid(0, side))


def test_one_pixel_hides_one_token():
    grid = ClipRegion(Region((17, 8, 1, 1)), 1, 32, 32).grid(0, 4)
    assert grid.nonzero().tolist() == [[1, 2]]


def test_frames_are_the_first_and_the_last():
    clip = ClipRegion(Region((0, 0, 8, 8), frames=(3, 5)), 9, 16, 16)
    assert [bool(clip.grid(frame, 2).any()) for frame in range(9)] == [False] * 3 + [True] * 3 + [False] * 3
    whole = ClipRegion(Region(frames=(0, 0)), 9, 16, 16)
    assert whole.grid(0, 2).all() and not whole.grid(1, 2).any()


def test_a_mask_for_each_frame():
    mask = np.zeros((3, 16, 16), bool)
    mask[1, :8, :8] = mask[2] = True
    clip = ClipRegion(Region(mask=mask, frames=(0, 1)), 3, 16, 16)
    assert [clip.grid(frame, 2).sum().item() for frame in range(3)] == [0, 1, 0]


def test_what_lies_outside_of_the_middle_square_is_not_seen():
    assert not ClipRegion(Region((0, 0, 8, 16)), 1, 16, 32).grid(0, 4).any()
    assert ClipRegion(Region((0, 0, 9, 16)), 1, 16, 32).grid(0, 4).any()


@pytest.mark.parametrize(
    "region, words",
    [
        (Region((0, 0, 33, 8)), ["box 0,0,33,8", "9 frames of 32x16 pixels"]),
        (Region((-1, 0, 4, 4)), ["box -1,0,4,4"]),
        (Region((0, 0, 0, 4)), ["box 0,0,0,4", "hold a pixel"]),
        (Region((0, 10, 4, 7)), ["box 0,10,4,7"]),
        (Region(frames=(3, 9)), ["frames 3-9", "0-8 at most"]),
        (Region(frames=(5, 4)), ["frames 5-4"]),
        (Region(frames=(-1, 4)), ["frames -1-4"]),
        (Region(mask=np.ones((32, 16), bool)), ["mask of (32, 16)", "(16, 32) or (9, 16, 32)"]),
        (Region(mask=np.ones((8, 16, 32), bool)), ["mask of (8, 16, 32)"]),
    ],
)
def test_parts_that_a_clip_does_not_have(region, words):
    with pytest.raises(RegionError) as caught:
        ClipRegion(region, 9, 16, 32)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"box": (1, 2, 3)}, "box (1, 2, 3): needed 4 whole numbers, x, y, width, height"),
        ({"box": (1, 2, 3, 4.5)}, "needed 4 whole numbers"),
        ({"frames": (1, 2, 3)}, "needed 2 whole numbers, first, last"),
        ({"outside": True}, "outside: needs a box"),
        ({"box": (0, 0, 1, 1), "mask": np.ones((4, 4), bool)}, "box and mask"),
        ({"mask": np.ones((4, 4))}, "mask is float64 (4, 4): needed a bool array"),
        ({"mask": np.ones(4, bool)}, "mask is bool (4,)"),
        ({"mask": [[True]]}, "mask is list"),
    ],
)
def test_regions_that_are_none(values, words):
    with pytest.raises(RegionError) as caught:
        Region(**values)
    assert words in str(caught.value)


def test_a_region_of_numpys_numbers_is_one_of_plain_ones():
    region = Region(np.array([1, 2, 3, 4]), np.bool_(True), [np.int64(5), np.uint8(6)])
    assert region == Region((1, 2, 3, 4), True, (5, 6))
    assert json.dumps([region.box, region.outside, region.frames]) == "[[1, 2, 3, 4], true, [5, 6]]"


def test_regions_of_a_command_line(tmp_path):
    assert Region.parse(None, False, None, None) is None
    assert Region.parse(" 1, 2,3,4", True, "10-30", None) == Region((1, 2, 3, 4), True, (10, 30))
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[2:, 3:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert np.array_equal(Region.parse(None, False, None, tmp_path / "mask.png").mask, pixels[..., 0] > 0)


@pytest.mark.parametrize("box, frames", [("1,2,3", None), ("1,2,3,-4", None), ("a,b,c,d", None), ("", None), (f"1,2,3,{'9' * 5000}", None)])
def test_boxes_that_are_none(box, frames):
    with pytest.raises(RegionError, match=r"box .*: needed x,y,width,height, each a whole number"):
        Region.parse(box, False, frames, None)


@pytest.mark.parametrize("frames", ["5", "1-2-3", "-3", "a-b", "1,2", "1.5-2"])
def test_frames_that_are_none(frames):
    with pytest.raises(RegionError, match=r"frames .*: needed first-last, each a whole number"):
        Region.parse(None, False, frames, None)
