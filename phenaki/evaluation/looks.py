"""How a run of frames looks, in a few numbers that need no truth to compare with: sharpness, colours, motion.

Drift in a long video shows in these first: pictures blur, pale, darken, or stop moving.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from phenaki.evaluation.metrics import LEVELS

LUMA = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


@dataclass(frozen=True)
class Looks:
    """Means over frames. Unless said otherwise in 8-bit levels, 0 to 255."""

    sharpness: float  # variance of the Laplacian of the luma, in squared levels
    brightness: float  # mean luma
    contrast: float  # standard deviation of the luma in a frame
    colourfulness: float
    red: float
    green: float
    blue: float
    motion: float  # mean absolute change from a frame to the next


def looks_of(video: Tensor) -> Looks:
    """video: (c f h w) float in [-1, 1], f >= 2, at least 3 pixels a side."""
    if video.shape[1] < 2 or min(video.shape[2:]) < 3:
        raise ValueError(f"video of shape {tuple(video.shape)}: needed 2 frames and 3x3 pixels at least")
    levels = rearrange((video.double() + 1) * LEVELS, "c f h w -> f c h w")
    grey = luma(levels)
    mean = lambda by_frame: float(by_frame.mean())
    red, green, blue = (mean(levels[:, channel]) for channel in range(3))
    return Looks(
        sharpness=mean(laplacian_variance(grey)), brightness=mean(grey), contrast=mean(grey.flatten(1).std(1, correction=0)),
        colourfulness=mean(colourfulness(levels)), red=red, green=green, blue=blue, motion=mean(levels.diff(dim=0).abs()),
    )  # fmt: skip


def luma(frames: Tensor) -> Tensor:
    """(f 3 h w) -> (f h w)."""
    return (frames * frames.new_tensor(LUMA)[:, None, None]).sum(1)


def laplacian_variance(grey: Tensor) -> Tensor:
    """Variance of the Laplacian over a frame's inner pixels, (f h w) -> (f,): low where a picture is blurred.

    The Laplacian of a pixel is the sum of its four neighbours less four times itself (Pech-Pacheco et al. 2000, ICPR, "Diatom
    autofocusing in brightfield microscopy").
    """
    response = F.conv2d(grey[:, None], grey.new_tensor(LAPLACIAN)[None, None])
    return response.flatten(1).var(1, correction=0)


def colourfulness(frames: Tensor) -> Tensor:
    """M of Hasler and Süsstrunk 2003 ("Measuring colourfulness in natural images"), (f 3 h w) in levels -> (f,): 0 = grey.

    With rg = R - G and yb = (R + G) / 2 - B:  sqrt(s_rg^2 + s_yb^2) + 0.3 sqrt(m_rg^2 + m_yb^2), s = deviation, m = mean.
    """
    red, green, blue = frames.flatten(2).unbind(1)
    rg, yb = red - green, (red + green) / 2 - blue
    spread = (rg.var(1, correction=0) + yb.var(1, correction=0)).sqrt()
    return spread + 0.3 * (rg.mean(1).square() + yb.mean(1).square()).sqrt()
