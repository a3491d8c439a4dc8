"""Makes a model whose tokens have more bits, that computes the same until it is trained on.

    python tools/widen_tokens.py MODEL OUTPUT [--channels 1] [--seed 0]

Each factor of a token gets so many FSQ channels more. The encoder says something by chance in them, the decoder does not listen yet, and
the generator takes any of their values for as likely: what it draws decodes to what it did. A tokenizer that gains nothing from more steps
may lack bits, not learning (docs/LOG.md).
"""

from dataclasses import replace

import torch
from remaking import remake
from torch import Tensor

from phenaki.checkpoint import Model
from phenaki.cvivit import CViViT
from phenaki.maskgit import MaskGIT

TABLES = ("token_embedding.factors.", "to_logits.earlier.", "to_logits.heads.")  # the generator's weights that have a row for each value of a factor


def widened(model: Model, channels: int = 1, seed: int = 0) -> Model:
    """The model with `channels` more FSQ channels in each factor. ValueError where its tokens cannot be split so."""
    if model.generator is None:
        raise ValueError(f"{model.info.name}: holds a tokenizer alone; how its tokens are split into factors is the generator's")
    if channels < 1:
        raise ValueError(f"channels {channels}: needed 1 at least")
    config, factors = model.info.tokenizer, model.info.generator.token_factors
    levels = set(config.fsq_levels)
    if config.quantizer != "fsq" or len(levels) > 1 or len(config.fsq_levels) % factors:
        raise ValueError(f"{model.info.name}: needed FSQ whose channels all have as many levels, equally many in each of the {factors} factors")
    old = len(config.fsq_levels) // factors
    grown = replace(config, fsq_levels=config.fsq_levels[:1] * (factors * (old + channels)))
    kept = [index for index in range(len(grown.fsq_levels)) if index % (old + channels) < old]  # the new ones are the last of each factor
    torch.manual_seed(seed)
    tokenizer = CViViT(grown)
    fresh = tokenizer.state_dict()
    state = {name: with_channels(name, value, fresh[name], kept) for name, value in model.tokenizer.state_dict().items()}
    tokenizer.load_state_dict(state)
    generator = MaskGIT(replace(model.info.generator, codebook_size=tokenizer.codebook_size))
    copies = next(iter(levels)) ** channels
    known = model.generator.state_dict()
    generator.load_state_dict({name: torch.cat([value] * copies) if name.startswith(TABLES) else value for name, value in known.items()})
    networks = (network.eval().requires_grad_(False) for network in (tokenizer, generator))
    return Model(replace(model.info, tokenizer=grown, generator=generator.config, files={}), *networks)


def with_channels(name: str, value: Tensor, fresh: Tensor, kept: list[int]) -> Tensor:
    """A weight of the tokenizer with more channels: what they say is by chance, what is heard of them nothing. kept: where the old ones stand."""
    if not name.startswith("quantizer.") or value.shape == fresh.shape:
        return value
    if name == "quantizer.project_out.weight":
        return torch.zeros_like(fresh).index_copy(1, torch.tensor(kept), value)
    return fresh.clone().index_copy(0, torch.tensor(kept), value)


def told(model: Model) -> str:
    return f"tokens of {len(model.info.tokenizer.fsq_levels)} channels, {model.tokenizer.codebook_size} kinds"


def main() -> None:
    remake(__doc__, "channels", widened, told)


if __name__ == "__main__":
    main()
