"""Which tokens are hidden: schedules over the rounds of sampling, and masks for training and for each task.

A mask is boolean, True = hidden, to be predicted. Schedules: MaskGIT (Chang et al. 2022, arXiv 2202.04200, section 3.3).
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

# progress in [0, 1) -> share of tokens still hidden in (0, 1]; all fall from 1 to 0.
MASK_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: math.cos(progress * math.pi / 2),
    "linear": lambda progress: 1 - progress,
    "square": lambda progress: 1 - progress**2,
    "square_root": lambda progress: 1 - math.sqrt(progress),
}


def mask_schedule(name: str) -> Callable[[float], float]:
    """A schedule by name; ValueError names the known ones."""
    if name not in MASK_SCHEDULES:
        raise ValueError(f"mask schedule {name!r}; known: {', '.join(MASK_SCHEDULES)}")
    return MASK_SCHEDULES[name]


def num_hidden_after(step: int, num_steps: int, num_tokens: int, schedule: Callable[[float], float]) -> int:
    """Tokens still hidden after round `step` (from 0). Every round reveals at least one, the last one reveals all."""
    if step + 1 >= num_steps:
        return 0
    hidden = num_tokens
    for earlier in range(step + 1):
        hidden = min(math.floor(schedule((earlier + 1) / num_steps) * num_tokens), hidden - 1)
    return max(hidden, 0)


def training_mask(shape: tuple[int, int, int, int], rng: torch.Generator, per_slice_prob: float) -> Tensor:
    """Random masks (b t h w) for training, at least one token hidden in each sample.

    The mask ratio is cos(pi/2 * u) for uniform u (MaskGIT's cosine); with chance per_slice_prob a sample has another
    ratio in each slice, so that a model also meets chunks whose slices are known to different degrees.
    """
    b, t, h, w = shape
    own = torch.rand(b, t, generator=rng)
    shared = torch.rand(b, 1, generator=rng).expand(b, t)
    per_slice = torch.rand(b, 1, generator=rng) < per_slice_prob
    ratio = torch.cos(torch.where(per_slice, own, shared) * math.pi / 2)
    mask = torch.rand(b, t, h, w, generator=rng) < ratio[:, :, None, None]
    empty = ~mask.flatten(1).any(1)
    return mask | empty[:, None, None, None]


def continuation_mask(shape: tuple[int, int, int, int], known_slices: int) -> Tensor:
    """All hidden but the first slices: continuing a video, or (1 known slice) animating an image."""
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:, :known_slices] = False
    return mask


def between_mask(shape: tuple[int, int, int, int], known_slices: int = 1) -> Tensor:
    """All hidden but the first and the last slices: in-betweening."""
    mask = continuation_mask(shape, known_slices)
    mask[:, shape[1] - known_slices :] = False
    return mask


def random_boxes(count: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Boxes (b 1 h w), True = inside, of random sides and place; never the whole picture, which has to have two tokens at least."""
    if height * width < 2:
        raise ValueError(f"a picture of {height} x {width} tokens: a box and what is around it need two at least")
    tall = torch.randint(1, height + 1, (count,), generator=rng)
    wide = torch.randint(1, width + 1, (count,), generator=rng)
    whole = (tall == height) & (wide == width)
    if height > 1:
        tall = torch.where(whole, height - 1, tall)
    else:
        wide = torch.where(whole, width - 1, wide)
    rows, columns = _random_spans(tall, height, rng), _random_spans(wide, width, rng)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _random_spans(lengths: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """A random span of each length (b,) in [1, size] among `size` places: (b size), True = in it."""
    begin = (torch.rand(len(lengths), generator=rng) * (size - lengths + 1)).long()[:, None]
    places = torch.arange(size)[None]
    return (begin <= places) & (places < begin + lengths[:, None])


def hide_within(mask: Tensor, region: Tensor) -> Tensor:
    """Of a random mask (b t h w) what lies in `region`, which a task leaves unknown; where nothing does, the region as a whole.

    region: of the mask's shape, or broadcast to it, and empty in no sample.
    """
    inside = mask & region
    empty = ~inside.flatten(1).any(1)
    return inside | (region & empty[:, None, None, None])


def halton_order(num_slices: int, height: int, width: int) -> Tensor:
    """Ranks (t*h*w,) of the positions in a low-discrepancy order (Besnier et al. 2025, arXiv 2503.17076).

    Positions are taken as a Halton sequence in bases 2, 3 and 5 first falls on them; any it misses come last, in raster order.
    """
    return _halton_ranks(num_slices, height, width).clone()


@lru_cache(maxsize=64)
def _halton_ranks(num_slices: int, height: int, width: int) -> Tensor:
    """Those of `halton_order`, computed once for a shape: a chunk's are asked for with every chunk."""
    total = num_slices * height * width
    ranks = torch.full((total,), -1, dtype=torch.long)
    taken, index = 0, 1
    while taken < total and index < 200 * total:
        t, y, x = (int(_radical_inverse(index, base) * size) for base, size in ((5, num_slices), (2, height), (3, width)))
        position = (t * height + y) * width + x
        if ranks[position] < 0:
            ranks[position] = taken
            taken += 1
        index += 1
    missed = ranks < 0
    ranks[missed] = torch.arange(taken, taken + int(missed.sum()))
    return ranks


def _radical_inverse(index: int, base: int) -> float:
    """The digits of `index` in `base`, mirrored at the point: a number in [0, 1)."""
    value, place = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * place
        place /= base
    return value
