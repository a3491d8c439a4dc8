"""The discriminator of footage and reconstructions: a small 3-D convolutional network with one score for each patch of space and time.

The paper's is StyleGAN's with blurred resampling; this one keeps the blur and is PatchGAN (Isola et al. 2017) otherwise.
Group normalisation: no state, no dependence on the rest of the batch, and it can be differentiated twice (for R1).
"""

import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 8
MAX_STAGES = 16  # each halves the picture
MAX_WIDENING = 8  # channels grow to this many times `dim`


class Stage(nn.Module):
    """Convolution, then half the size, averaged over 3x3 (x3) places so that what is left out does not alias."""

    def __init__(self, in_channels: int, out_channels: int, halves_time: bool):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.time_window, self.time_stride = (3, 2) if halves_time else (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b in_channels f h w) -> (b out_channels f' h' w'): h' = h/2, w' = w/2 and, where it halves time, f' = f/2, all rounded up."""
        x = F.leaky_relu(self.norm(self.conv(x)), 0.2)
        around = self.time_window // 2
        x = F.pad(x, (1, 1, 1, 1, around, around), mode="replicate")
        return F.avg_pool3d(x, (self.time_window, 3, 3), (self.time_stride, 2, 2))


def patch_size_of(num_stages: int) -> int:
    """Pixels a side that a discriminator of so many stages has one score for."""
    return 2 ** (num_stages + 1)


class Discriminator(nn.Module):
    """dim: channels of the first layer, a multiple of 8. Each stage halves the picture; all but the first halve time too."""

    def __init__(self, dim: int = 32, num_stages: int = 3):
        super().__init__()
        if dim < NORM_GROUPS or dim % NORM_GROUPS or num_stages < 1:
            raise ValueError(f"a discriminator of dim {dim} and {num_stages} stages: needed a multiple of {NORM_GROUPS} and at least 1 stage")
        self.stem = nn.Conv3d(3, dim, (3, 4, 4), stride=(1, 2, 2), padding=1)
        widths = [dim * min(2**stage, MAX_WIDENING) for stage in range(num_stages + 1)]
        self.stages = nn.ModuleList(Stage(widths[stage], widths[stage + 1], halves_time=stage > 0) for stage in range(num_stages))
        self.last = nn.Conv3d(widths[-1], widths[-1], 3, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, widths[-1])
        self.to_score = nn.Conv3d(widths[-1], 1, 1)
        self.patch_size = patch_size_of(num_stages)

    def forward(self, video: Tensor) -> Tensor:
        """video (b 3 f h w) in [-1, 1], one frame or more -> scores (b t h' w') float32, high where it looks like footage.

        h' and w' are about h and w divided by patch_size, t is f divided by 2^(num_stages - 1), rounded up. ValueError for another
        shape, or pictures smaller than patch_size.
        """
        if video.ndim != 5 or video.shape[1] != 3 or min(video.shape[3:]) < self.patch_size:
            needed = f"(b 3 f h w), at least {self.patch_size} pixels a side"
            raise ValueError(f"video of shape {tuple(video.shape)}: the discriminator needs {needed}; fewer stages allow less")
        x = F.leaky_relu(self.stem(video), 0.2)
        for stage in self.stages:
            x = stage(x)
        x = F.leaky_relu(self.norm(self.last(x)), 0.2)
        return self.to_score(x).squeeze(1).float()
