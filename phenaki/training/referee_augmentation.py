"""How a clip may look otherwise and still show the same: small shifts, other light, blur, noise, and the blocks of a JPEG.

Each is drawn for a clip and alike in all its frames, except noise. Nothing is mirrored: left and right are told apart.
What is done is drawn on the CPU, but for the noise of a GPU, and done where the clips are; a GPU never has to answer.
"""

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from phenaki.devices import sent

MAX_SHIFT = 3  # pixels
MAX_GAIN, MAX_BRIGHTNESS = 0.08, 0.06  # of a colour channel, and added to all; small, for the light tells the time of day
MAX_NOISE = 0.08  # standard deviation, of the range [-1, 1]
MAX_QUANTUM = 0.5  # largest step of a block's coefficients
BLOCK = 8  # pixels a side of JPEG's blocks
SHARE = 0.3  # of the clips that get blur; noise; blocks


def augmented(video: Tensor, generator: torch.Generator) -> Tensor:
    """(b 3 f h w) float in [-1, 1] -> the same shape and range. generator: of the CPU, on whatever device the clips are."""
    video = in_other_light(shifted(video, generator), generator)
    for change in (blurred, noisy, in_blocks):
        chosen = (torch.rand(len(video), generator=generator) < SHARE).nonzero()[:, 0]  # numbers: a GPU would be asked how many are true
        if len(chosen):
            chosen = sent(chosen, video.device)
            video[chosen] = change(video[chosen], generator)
    return video.clamp(-1, 1)


def shifted(video: Tensor, generator: torch.Generator) -> Tensor:
    """Clips moved by up to MAX_SHIFT pixels; what comes in repeats the edge."""
    h, w = video.shape[-2:]
    padded = F.pad(rearrange(video, "b c f h w -> b (c f) h w"), (MAX_SHIFT,) * 4, mode="replicate")
    corners = torch.randint(2 * MAX_SHIFT + 1, (len(video), 2), generator=generator).tolist()
    moved = torch.stack([clip[:, top : top + h, left : left + w] for clip, (top, left) in zip(padded, corners, strict=True)])
    return rearrange(moved, "b (c f) h w -> b c f h w", c=video.shape[1])


def in_other_light(video: Tensor, generator: torch.Generator) -> Tensor:
    """Each colour brighter or darker by a factor, all of them by a summand."""
    b, c = video.shape[:2]
    gain = 1 + MAX_GAIN * (2 * torch.rand(b, c, 1, 1, 1, generator=generator) - 1)
    brightness = MAX_BRIGHTNESS * (2 * torch.rand(b, 1, 1, 1, 1, generator=generator) - 1)
    return (video + 1) * sent(gain, video.device) - 1 + sent(2 * brightness, video.device)


def blurred(video: Tensor, generator: torch.Generator) -> Tensor:
    """Mixed with its mean over 3x3 pixels, another share of each clip."""
    share = sent(torch.rand(len(video), 1, 1, 1, 1, generator=generator), video.device)
    frames = rearrange(video, "b c f h w -> b (c f) h w")
    smooth = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return video + share * (rearrange(smooth, "b (c f) h w -> b c f h w", c=video.shape[1]) - video)


def noisy(video: Tensor, generator: torch.Generator) -> Tensor:
    """With Gaussian noise, another in every frame."""
    level = sent(MAX_NOISE * torch.rand(len(video), 1, 1, 1, 1, generator=generator), video.device)
    if video.device.type == "cuda":  # millions of numbers, too many to wait for: drawn there, from the same seed
        generator = torch.Generator(video.device).manual_seed(generator.initial_seed())
    return video + level * torch.randn(video.shape, generator=generator, device=video.device)


def in_blocks(video: Tensor, generator: torch.Generator) -> Tensor:
    """Cosine coefficients of 8x8 blocks rounded to steps that grow with frequency, as JPEG does."""
    quantum = sent(MAX_QUANTUM * torch.rand(len(video), 1, 1, 1, 1, 1, 1, generator=generator), video.device)
    frequency = torch.arange(BLOCK, device=video.device)
    steps = quantum * (1 + frequency[:, None] + frequency[None]) / (2 * BLOCK)
    basis = sent(cosine_basis(), video.device)
    blocks = rearrange(video, "b c f (i y) (j x) -> b c f i j y x", y=BLOCK, x=BLOCK)
    coefficients = einsum(basis, blocks, basis, "u y, b c f i j y x, v x -> b c f i j u v")
    rounded = torch.where(steps > 0, (coefficients / steps.clamp(min=1e-6)).round() * steps, coefficients)
    back = einsum(basis, rounded, basis, "u y, b c f i j u v, v x -> b c f i j y x")
    return rearrange(back, "b c f i j y x -> b c f (i y) (j x)")


def cosine_basis() -> Tensor:
    """The orthonormal DCT-II of BLOCK points: (frequency, point)."""
    point, frequency = torch.arange(BLOCK)[None], torch.arange(BLOCK)[:, None]
    basis = torch.cos(math.pi * (point + 0.5) * frequency / BLOCK) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis
