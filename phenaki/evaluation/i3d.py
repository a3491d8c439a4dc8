"""I3D (Carreau & Zisserman 2017, arXiv 1705.07750): Inception blown up to three dimensions, trained on Kinetics-400.

Its 400 logits are what FVD compares (Unterthiner et al. 2018, arXiv 1812.01717); its features are what C-ViViT's video perceptual
loss compares. Padding is TensorFlow's "SAME": what a stride needs, the odd one behind. Batch normalisation has no scale and
epsilon 1e-3; it is folded into the convolutions when the weights are converted.
"""

from math import ceil

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki.evaluation.weights import filled

NUM_CLASSES = 400
SIZE = 224  # pixels a side, for the logits
MIN_FRAMES = 9  # for the logits: two frames must be left after three halvings
MIN_SIZE = 32  # pixels a side, for features

# Channels of an Inception block: 1x1; 1x1 then 3x3; 1x1 then 3x3; pooling then 1x1.
BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# In order; pooling as (window, stride). The names are the original network's.
LAYERS = {
    "Conv3d_1a_7x7": None,
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": None,
    "Conv3d_2c_3x3": None,
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": None,
    "Mixed_3c": None,
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": None,
    "Mixed_4c": None,
    "Mixed_4d": None,
    "Mixed_4e": None,
    "Mixed_4f": None,
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": None,
    "Mixed_5c": None,
}
FEATURES = ("Conv3d_2c_3x3", "Mixed_3c", "Mixed_4f", "Mixed_5c")  # the end of each stage


def pad_same(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...], value: float) -> Tensor:
    """x (b c f h w) padded so that ceil(size / stride) windows cover each axis (TensorFlow's "SAME")."""
    padding: list[int] = []
    for size, one, step in reversed(list(zip(x.shape[2:], window, stride, strict=True))):
        total = max((ceil(size / step) - 1) * step + one - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value) if any(padding) else x


def max_pool_same(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Max pooling of x (b c f h w) with "SAME" padding."""
    return F.max_pool3d(pad_same(x, window, stride, -torch.inf), window, stride)


class Unit3D(nn.Module):
    """Convolution with "SAME" padding, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, window: int, stride: int = 1):
        super().__init__()
        self.window, self.stride = (window,) * 3, (stride,) * 3
        self.conv = nn.Conv3d(in_channels, out_channels, window, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(pad_same(x, self.window, self.stride, 0.0)))


class Inception(nn.Module):
    """Four branches, side by side in the channels of what comes out."""

    def __init__(self, in_channels: int, widths: tuple[int, ...]):
        super().__init__()
        self.b0 = Unit3D(in_channels, widths[0], 1)
        self.b1a, self.b1b = Unit3D(in_channels, widths[1], 1), Unit3D(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit3D(in_channels, widths[3], 1), Unit3D(widths[3], widths[4], 3)
        self.b3b = Unit3D(in_channels, widths[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = max_pool_same(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class I3D(nn.Module):
    """Random weights until they are loaded: `load_i3d` gives the published ones."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict(
            {"Conv3d_1a_7x7": Unit3D(3, 64, 7, stride=2), "Conv3d_2b_1x1": Unit3D(64, 64, 1), "Conv3d_2c_3x3": Unit3D(64, 192, 3)}
        )
        channels = 192
        for name, widths in BLOCKS.items():
            self.layers[name] = Inception(channels, widths)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.to_logits = nn.Conv3d(channels, NUM_CLASSES, 1)

    def features(self, video: Tensor, size: int | None = None) -> list[Tensor]:
        """video (b 3 f h w) in [-1, 1], resized to `size` pixels a side (None: as it is) -> maps (b c f' h' w') of FEATURES."""
        x, maps = resized(video, size), []
        for name, pool in LAYERS.items():
            x = self.layers[name](x) if pool is None else max_pool_same(x, *pool)
            if name in FEATURES:
                maps.append(x)
        return maps

    def logits(self, video: Tensor) -> Tensor:
        """video (b 3 f h w) in [-1, 1], at least 9 frames, resized to 224x224 -> (b, 400), averaged over time."""
        if video.ndim == 5 and video.shape[2] < MIN_FRAMES:
            raise ValueError(f"{video.shape[2]} frames: I3D's logits need at least {MIN_FRAMES} (FVD is usually taken on 16)")
        x = F.avg_pool3d(self.features(video, SIZE)[-1], (2, 7, 7), stride=1)
        return rearrange(self.to_logits(x), "b v f 1 1 -> b v f").mean(2).float()

    forward = logits


def resized(video: Tensor, size: int | None) -> Tensor:
    """video (b 3 f h w) with frames of size x size pixels, bilinear as in FVD's own code; the shape of a frame is not kept."""
    if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
        raise ValueError(f"video of shape {tuple(video.shape)}, {video.dtype}: I3D needs float (b 3 f h w) in [-1, 1]")
    smallest = min(video.shape[3:]) if size is None else size
    if smallest < MIN_SIZE:
        raise ValueError(f"frames of {smallest} pixels a side: I3D needs at least {MIN_SIZE}; it was trained on {SIZE}")
    if size is None or tuple(video.shape[3:]) == (size, size):
        return video
    flat = F.interpolate(rearrange(video, "b c f h w -> (b f) c h w"), size=(size, size), mode="bilinear", align_corners=False)
    return rearrange(flat, "(b f) c h w -> b c f h w", b=video.shape[0])


def load_i3d(device: str | torch.device = "cpu") -> I3D:
    """The published network, frozen. MetricWeightsError (a ValueError) where `phenaki metrics install` has not been run."""
    return filled(I3D(), "i3d", device)
