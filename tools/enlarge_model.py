"""Makes a model of pictures twice as large that computes the same, to train on from: what it decodes is the old video, each pixel doubled.

    python tools/enlarge_model.py MODEL OUTPUT [--widen 2] [--seed 0]

Its tokens stand for twice as many pixels a side, so there are as many of them, and its generator is the old one. Of a picture it sees
the mean of 2x2 pixels, and makes the tokens that the old model makes of the smaller picture. --widen: so many times the channels in the
convolutional stem and head, each channel as so many that share its work unevenly, by chance of the seed, so that training can tell them
apart (after Net2WiderNet, Chen et al. 2016, arXiv 1511.05641, section 2.2).
"""

from dataclasses import replace

import torch
from remaking import remake
from torch import Tensor

from phenaki.checkpoint import Model
from phenaki.cvivit import CViViT

SPREAD = 0.25  # standard deviation of a copy's share of its channel's work, whose mean is 1 / copies


def enlarged(model: Model, widen: int = 1, seed: int = 0) -> Model:
    """The model at twice the picture size. ValueError where its tokenizer has no convolutional stem, or such pictures would be too large."""
    config = model.info.tokenizer
    if config.stem != "conv":
        raise ValueError(f"{model.info.name}: stem {config.stem!r}; only a convolutional stem can be enlarged")
    if config.refiner_dim:
        raise ValueError(f"{model.info.name}: refiner_dim {config.refiner_dim}; a refined head cannot be enlarged: its patterns are of single pixels")
    if widen < 1:
        raise ValueError(f"widen {widen}: needed 1 at least")
    grown = replace(config, image_size=2 * config.image_size, patch_size=2 * config.patch_size, stem_dim=widen * config.stem_dim)
    tokenizer, rng = CViViT(grown), torch.Generator().manual_seed(seed)
    state = {name: grown_weight(name, value, config.patch_size // 2, widen, rng) for name, value in model.tokenizer.state_dict().items()}
    tokenizer.load_state_dict(state)
    return Model(replace(model.info, tokenizer=grown, files={}), tokenizer.eval().requires_grad_(False), model.generator)


def grown_weight(name: str, value: Tensor, fold: int, widen: int, rng: torch.Generator) -> Tensor:
    """A weight of the tokenizer as the larger one has it. fold: pixels a side of what one position of the stem stood for."""
    layer, kind = name.rsplit(".", 1)
    if layer == "stem.stem":
        if kind == "weight":
            value = doubled(value, 1, fold) / 4
        return copied(value, 0, widen)
    if layer == "head.head":
        value = doubled(value, 0, fold)
        return shared(value, 1, widen, rng) if kind == "weight" else value
    if layer == "stem.to_vectors" and kind == "weight":
        return shared(value.unflatten(1, (-1, 4)), 1, widen, rng).flatten(1)  # four positions of each channel make a token
    if layer == "head.from_vectors":
        return copied(value.unflatten(0, (-1, 4)), 0, widen).flatten(0, 1)
    if layer.startswith(("stem.blocks.", "head.blocks.")):
        value = copied(value, 0, widen)
        return shared(value, 1, widen, rng) if value.ndim == 4 else value
    return value


def doubled(value: Tensor, axis: int, fold: int) -> Tensor:
    """Channels of fold x fold pixels along an axis, as `pixel_shuffle` orders them, as channels of twice as many a side: each pixel four times."""
    value = value.unflatten(axis, (-1, fold, fold))
    return value.repeat_interleave(2, axis + 1).repeat_interleave(2, axis + 2).flatten(axis, axis + 2)


def copied(value: Tensor, axis: int, copies: int) -> Tensor:
    """Each channel along an axis as so many like it, side by side: GroupNorm's groups keep their statistics."""
    return value.repeat_interleave(copies, axis)


def shared(value: Tensor, axis: int, copies: int, rng: torch.Generator) -> Tensor:
    """What channels along an axis are weighted with, for so many copies of each: shares that come to 1, another split for each weight."""
    if copies == 1:
        return value
    split = 1 / copies + SPREAD * torch.randn(copies, *value.shape, generator=rng)
    split = split - split.mean(0) + 1 / copies
    return (split * value).movedim(0, axis + 1).flatten(axis, axis + 1)


def told(model: Model) -> str:
    size, count = model.info.tokenizer.image_size, sum(map(torch.numel, model.tokenizer.parameters()))
    return f"{size}x{size} pixels, a tokenizer of {count / 1e6:.1f} million weights"


def main() -> None:
    remake(__doc__, "widen", enlarged, told)


if __name__ == "__main__":
    main()
