"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): how far two pictures are apart to the eye, by VGG16's features.

Version 0.1 of the metric: features after the last ReLU of each of VGG16's five stages, unit length over channels; squared
differences weighted by channel (learned, never negative), averaged over places, summed over stages.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki.evaluation.weights import filled

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # channels of VGG16's convolutions
MIN_SIZE = 16  # pixels a side: four halvings must leave something
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and spread, for pictures in [-1, 1]


class LPIPS(nn.Module):
    """Random weights until they are loaded: `load_lpips` gives the published ones."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for widths in STAGES:
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if len(self.stages) else []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.stages.append(nn.Sequential(*layers))
        self.heads = nn.ParameterList(torch.rand(widths[-1]) / widths[-1] for widths in STAGES)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """pictures (b 3 h w) in [-1, 1] -> five maps (b c h' w') of unit vectors, float32."""
        _check_pictures(pictures)
        x, maps = (pictures - self.shift) / self.scale, []
        for stage in self.stages:
            x = stage(x)
            maps.append(unit_channels(x))
        return maps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: (b 3 h w) in [-1, 1], any size from 16 pixels a side -> (b,) float32, 0 for equal pictures."""
        if a.shape != b.shape:
            raise ValueError(f"pictures of shapes {tuple(a.shape)} and {tuple(b.shape)}: LPIPS compares pictures of one shape")
        pairs = zip(self.features(a), self.features(b), self.heads, strict=True)
        return sum(((x - y).square() * rearrange(head, "c -> c 1 1")).sum(1).mean((1, 2)) for x, y, head in pairs)


def unit_channels(x: Tensor) -> Tensor:
    """The vector at each place of (b c ...) at unit length, in float32; a vector of zeros stays one, and the ReLU before it keeps its gradient 0."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-20)


def load_lpips(device: str | torch.device = "cpu") -> LPIPS:
    """The published network, frozen. MetricWeightsError (a ValueError) where `phenaki metrics install` has not been run."""
    return filled(LPIPS(), "lpips", device)


def _check_pictures(pictures: Tensor) -> None:
    if pictures.ndim != 4 or pictures.shape[1] != 3 or min(pictures.shape[2:]) < MIN_SIZE or not pictures.is_floating_point():
        what = f"pictures of shape {tuple(pictures.shape)}, {pictures.dtype}"
        raise ValueError(f"{what}: LPIPS needs float (b 3 h w) in [-1, 1], at least {MIN_SIZE} pixels a side")
