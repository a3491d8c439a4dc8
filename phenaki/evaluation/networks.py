"""The networks that LPIPS and FVD need, where their weights are installed."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from phenaki.evaluation import i3d, lpips
from phenaki.evaluation.weights import MetricWeightsError

# Fewest frames of a clip and fewest pixels a side that each takes: something must be left after all its halvings.
LEAST = {"lpips": (1, lpips.MIN_SIZE), "i3d": (i3d.MIN_FRAMES, i3d.MIN_SIZE)}


@dataclass(frozen=True)
class MetricNetworks:
    """lpips: pictures (n c h w) twice -> (n,); i3d: video (b c f h w) -> features (b, 400); all pixels in [-1, 1].

    None where a network is not there; `missing` then says why, by the network's name ("lpips", "i3d").
    """

    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    i3d: Callable[[Tensor], Tensor] | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def fitting(self, frames: int, size: int) -> "MetricNetworks":
        """Those that can take clips of so many frames and pixels a side."""
        fit = self
        for name, (least_frames, least_size) in LEAST.items():
            if getattr(self, name) is not None and (frames < least_frames or size < least_size):
                reason = f"not measured: needs clips of {least_frames} frames at {least_size}x{least_size} or more, found {frames} at {size}x{size}"
                fit = replace(fit, **{name: None}, missing={**fit.missing, name: reason})
        return fit


def load_networks(device: str | torch.device) -> MetricNetworks:
    """Loads what is installed. A network that cannot be loaded costs its own figure and no other."""
    pictures, missing = None, {}
    try:
        pictures = lpips.load_lpips(device)
    except MetricWeightsError as error:
        missing["lpips"] = _reason(error)
    video = load_i3d_network(device)
    return MetricNetworks(pictures, video.i3d, {**missing, **video.missing})


def load_i3d_network(device: str | torch.device) -> MetricNetworks:
    """I3D alone, where it is installed."""
    try:
        return MetricNetworks(i3d=i3d.load_i3d(device).logits)
    except MetricWeightsError as error:
        return MetricNetworks(missing={"i3d": _reason(error)})


def _reason(error: Exception) -> str:
    """Weights that are not installed, or that are damaged: the loader's own words say which."""
    return f"not measured: run `phenaki metrics install` ({error})"
