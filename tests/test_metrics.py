"""PSNR, SSIM, LPIPS by frame and flicker: against torchmetrics, and on videos whose figures are known."""

import math

import pytest
import torch

from phenaki.evaluation.metrics import changes, lpips_by_frame, psnr, squared_error, ssim


@pytest.fixture
def pair():
    """A smooth video with a wave in it and a noisy copy, (2 3 4 24 20)."""
    rng = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(20), indexing="ij")
    phase = torch.arange(4).view(4, 1, 1) + torch.arange(6).view(2, 3, 1, 1, 1)
    truth = torch.sin(rows / 3 + columns / 4 + phase)
    return (truth + 0.2 * torch.randn(truth.shape, generator=rng)).clamp(-1, 1), truth


@pytest.fixture(scope="module")
def reference():
    """torchmetrics' functions. Importing them takes seconds, which only the process that runs these tests is to spend."""
    from torchmetrics.functional import image

    return image


def frames(video):
    return video.transpose(1, 2).flatten(0, 1)


def test_psnr_agrees_with_torchmetrics(pair, reference):
    made, truth = pair
    ours = psnr(squared_error(made, truth).mean())
    assert float(ours) == pytest.approx(float(reference.peak_signal_noise_ratio(made, truth, data_range=2.0)), abs=1e-4)


def test_psnr_of_each_frame_agrees_with_torchmetrics(pair, reference):
    made, truth = pair
    expected = reference.peak_signal_noise_ratio(frames(made), frames(truth), data_range=2.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr(squared_error(made, truth)).flatten(), expected, atol=1e-4)


def test_psnr_of_known_errors():
    truth = torch.zeros(1, 3, 1, 12, 12)
    assert float(psnr(squared_error(truth + 0.2, truth))) == pytest.approx(20.0)  # a tenth of the range
    assert math.isinf(float(psnr(squared_error(truth, truth))))


def test_ssim_of_each_frame_agrees_with_torchmetrics(pair, reference):
    made, truth = pair
    expected = reference.structural_similarity_index_measure(
        frames(made), frames(truth), gaussian_kernel=True, sigma=1.5, kernel_size=11, data_range=2.0, reduction="none"
    )
    ours = ssim(made, truth)
    assert ours.shape == (2, 4) and 0.1 < float(ours.mean()) < 0.9
    assert torch.allclose(ours.flatten(), expected, atol=1e-4)


def test_ssim_of_known_pictures(pair):
    _, truth = pair
    assert torch.allclose(ssim(truth, truth), torch.ones(2, 4), atol=1e-5)
    flat = torch.full((1, 3, 1, 12, 12), 0.5)  # without structure only the brightness counts: (2xy + c1) / (x^2 + y^2 + c1)
    assert float(ssim(flat, flat / 2)) == pytest.approx((2 * 0.125 + 4e-4) / (0.25 + 0.0625 + 4e-4), abs=1e-4)


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(ValueError, match=r"10x32.*at least 11"):
        ssim(torch.zeros(1, 3, 1, 32, 10), torch.zeros(1, 3, 1, 32, 10))


def test_lpips_gets_every_frame_once_in_its_place(pair, monkeypatch):
    monkeypatch.setattr("phenaki.evaluation.metrics.LPIPS_IMAGES", 3)  # does not divide the eight frames
    made, truth = pair
    sizes = []

    def distance(a, b):
        sizes.append(len(a))
        return (a - b).abs().mean(dim=(1, 2, 3))

    assert torch.allclose(lpips_by_frame(distance, made, truth), (made - truth).abs().mean(dim=(1, 3, 4)))
    assert sizes == [3, 3, 2]


def test_an_error_that_stands_still_does_not_flicker(pair):
    _, truth = pair
    still = changes(truth + 0.3 * torch.rand(2, 3, 1, 24, 20), truth)
    assert float(still.flicker.max()) < 1e-4
    assert torch.allclose(still.made, still.truth, atol=1e-3)


def test_an_error_that_comes_and_goes_flickers_by_its_size():
    truth = torch.zeros(1, 3, 5, 12, 12)
    made = truth.clone()
    made[:, :, 1::2] = 2 / 255  # one level of 255, in every second frame
    changed = changes(made, truth)
    assert float(changed.flicker) == pytest.approx(1.0, abs=1e-4)
    assert float(changed.made) == pytest.approx(1.0, abs=1e-4) and float(changed.truth) == 0


def test_a_frozen_reconstruction_of_a_moving_clip_shows_in_its_liveliness(pair):
    _, truth = pair
    changed = changes(truth[:, :, :1].expand_as(truth), truth)
    assert float(changed.made.max()) == 0
    assert torch.allclose(changed.flicker, changed.truth) and float(changed.truth.min()) > 1


def test_flicker_needs_two_frames():
    with pytest.raises(ValueError, match="1 frames: flicker needs at least 2"):
        changes(torch.zeros(1, 3, 1, 12, 12), torch.zeros(1, 3, 1, 12, 12))
