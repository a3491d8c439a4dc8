"""Between what the networks see and what is shown: floats in [-1, 1], and 8-bit frames."""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def to_pixels(frames: Tensor, size: int) -> np.ndarray:
    """(f c h w) float in [-1, 1] -> (f, size, size, 3) uint8, resized where the model's size is another."""
    if frames.shape[-1] == size:
        return _rounded(frames)
    found = np.empty((len(frames), size, size, 3), dtype=np.uint8)
    for index, frame in enumerate(frames.float()):  # one at a time: floats of a large picture are four times its bytes
        found[index] = _rounded(F.interpolate(frame[None], size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1))[0]
    return found


def _rounded(frames: Tensor) -> np.ndarray:
    return to_bytes(frames).permute(0, 2, 3, 1).cpu().numpy()


def to_video(frames: np.ndarray) -> Tensor:
    """Frames uint8 (f h w 3) -> (f 3 h w) float in [-1, 1], on the CPU."""
    return from_bytes(rearrange(torch.from_numpy(np.array(frames)), "f h w c -> f c h w"))


def to_bytes(video: Tensor) -> Tensor:
    """Floats of any shape, cut to [-1, 1] -> uint8 as a screen shows them."""
    return video.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)


def from_bytes(pixels: Tensor) -> Tensor:
    """uint8 of any shape -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1
