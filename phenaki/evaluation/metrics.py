"""How close a video is to the truth: PSNR, SSIM, LPIPS by frame, and flicker.

Videos are float (b c f h w) in [-1, 1], so the range of the data is 2 wide. Figures come a frame at a time, (b f), to be
averaged by whoever asks; PSNR is taken of an averaged error, since decibels of averages are not averages of decibels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

DATA_RANGE = 2.0  # of pixels in [-1, 1]
LEVELS = 255 / DATA_RANGE  # 8-bit levels in one unit of a pixel
SSIM_SIDE, SSIM_SIGMA = 11, 1.5  # pixels: side and deviation of the window
SSIM_K1, SSIM_K2 = 0.01, 0.03
LPIPS_IMAGES = 32  # compared at once, whatever the batch


def squared_error(made: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each frame: (b c f h w) twice -> (b f)."""
    return (made - truth).square().mean(dim=(1, 3, 4))


def psnr(squared_error: Tensor) -> Tensor:
    """Decibels of mean squared errors of pixels in [-1, 1]: 10 log10(range^2 / error); infinite where nothing differs."""
    return 10 * torch.log10(DATA_RANGE**2 / squared_error)


def ssim(made: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame (Wang et al. 2004, Eq. 13), (b c f h w) twice -> (b f), 1 = equal.

    Window: Gaussian, 11x11 pixels, sigma 1.5, at every pixel, the picture mirrored at its edges, as torchmetrics has it;
    channels apart, then averaged. Frames must have at least 11 pixels a side.
    """
    b, c, f, h, w = truth.shape
    if min(h, w) < SSIM_SIDE:
        raise ValueError(f"frames of {w}x{h}: SSIM needs at least {SSIM_SIDE} pixels a side")
    x, y = (rearrange(video, "b c f h w -> (b f c) 1 h w") for video in (made, truth))
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * DATA_RANGE) ** 2, (SSIM_K2 * DATA_RANGE) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return rearrange(likeness, "(b f c) 1 h w -> b f (c h w)", b=b, f=f, c=c).mean(dim=-1)


def _blurred(pictures: Tensor) -> Tensor:
    """The Gaussian window over rows and then columns of pictures (n 1 h w) that are mirrored at their edges."""
    offsets = torch.arange(SSIM_SIDE, device=pictures.device, dtype=pictures.dtype) - SSIM_SIDE // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    reach = SSIM_SIDE // 2
    mirrored = F.pad(pictures, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(mirrored, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def lpips_by_frame(lpips: Callable[[Tensor, Tensor], Tensor], made: Tensor, truth: Tensor) -> Tensor:
    """LPIPS (Zhang et al. 2018) of each frame, (b c f h w) twice -> (b f). lpips: (n c h w) twice -> (n,)."""
    x, y = (rearrange(video, "b c f h w -> (b f) c h w") for video in (made, truth))
    parts = [lpips(a, b) for a, b in zip(x.split(LPIPS_IMAGES), y.split(LPIPS_IMAGES), strict=True)]
    return rearrange(torch.cat(parts), "(b f) -> b f", b=truth.shape[0])


@dataclass(frozen=True)
class Changes:
    """Mean absolute changes from a frame to the next, (b,) each, in 8-bit levels; made and truth say how lively either video is."""

    flicker: Tensor
    made: Tensor
    truth: Tensor


def changes(made: Tensor, truth: Tensor) -> Changes:
    """Flicker and liveliness of videos (b c f h w) with f >= 2.

    flicker = mean over t, c, h, w of |(made[t+1] - made[t]) - (truth[t+1] - truth[t])| * 255 / 2: how much the error itself
    changes from frame to frame. An error that stands still, like a blur of a still picture, does not flicker.
    """
    if truth.shape[2] < 2:
        raise ValueError(f"{truth.shape[2]} frames: flicker needs at least 2")
    made_steps, truth_steps = made.diff(dim=2), truth.diff(dim=2)
    mean = lambda steps: steps.abs().mean(dim=(1, 2, 3, 4)) * LEVELS
    return Changes(mean(made_steps - truth_steps), mean(made_steps), mean(truth_steps))
