"""Sharpness, colours and motion, held against answers worked out by hand and slow references."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve, gaussian_filter

from phenaki.evaluation.looks import LAPLACIAN, looks_of


def video_of(levels: np.ndarray) -> torch.Tensor:
    """(f h w 3) levels -> (c f h w) in [-1, 1]."""
    return torch.from_numpy(levels).permute(3, 0, 1, 2) / 127.5 - 1


@pytest.fixture
def levels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (3, 12, 10, 3))


def test_looks_are_those_of_a_slow_reference(levels):
    found = looks_of(video_of(levels))
    grey = levels @ np.array([0.299, 0.587, 0.114])
    laplacian = [convolve(frame, np.array(LAPLACIAN))[1:-1, 1:-1].var() for frame in grey]
    assert found.sharpness == pytest.approx(np.mean(laplacian))
    assert found.brightness == pytest.approx(grey.mean()) and found.contrast == pytest.approx(np.mean([frame.std() for frame in grey]))
    assert (found.red, found.green, found.blue) == pytest.approx(levels.mean((0, 1, 2)))
    assert found.motion == pytest.approx(np.abs(np.diff(levels, axis=0)).mean())
    red, green, blue = levels.reshape(3, -1, 3).transpose(2, 0, 1)
    rg, yb = red - green, (red + green) / 2 - blue
    each = np.sqrt(rg.var(1) + yb.var(1)) + 0.3 * np.sqrt(rg.mean(1) ** 2 + yb.mean(1) ** 2)
    assert found.colourfulness == pytest.approx(each.mean())


def test_a_grey_still_picture_has_no_colour_and_no_motion(levels):
    grey = np.repeat(np.repeat(levels[:1, ..., :1], 4, axis=0), 3, axis=3)
    found = looks_of(video_of(grey))
    assert found.colourfulness == pytest.approx(0, abs=1e-9) and found.motion == 0 and found.red == pytest.approx(found.blue)


def test_a_blurred_picture_is_less_sharp_and_a_brighter_one_as_sharp(levels):
    sharp = looks_of(video_of(levels)).sharpness
    blurred = gaussian_filter(levels, (0, 1, 1, 0))
    assert looks_of(video_of(blurred)).sharpness < sharp / 10
    brighter = looks_of(video_of(levels / 2 + 60))
    assert brighter.sharpness == pytest.approx(sharp / 4) and brighter.sharpness == pytest.approx(looks_of(video_of(levels / 2)).sharpness)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 4, 2, 8)])
def test_too_little_is_refused(shape):
    with pytest.raises(ValueError, match="needed 2 frames and 3x3 pixels"):
        looks_of(torch.zeros(shape))
