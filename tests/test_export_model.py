"""tools/export_model.py: a model as it ships, with another decoder where the tokens stay what they are."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import TINY

from phenaki.checkpoint import Model, ModelInfo
from phenaki.cvivit import CViViT
from phenaki.maskgit import MaskGIT

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from export_model import with_decoder


def model(name: str, seed: int) -> Model:
    torch.manual_seed(seed)
    history = {"tokenizer_steps": seed, "generator_steps": seed}
    return Model(ModelInfo(name, TINY.tokenizer, TINY.generator, TINY.text, 8.0, training=history), CViViT(TINY.tokenizer), MaskGIT(TINY.generator))


def test_another_decoder_takes_the_place_of_its_own():
    own, other = model("own", 1), model("other", 2)
    weights = own.tokenizer.state_dict()
    other.tokenizer.load_state_dict({name: value + 1 if name.startswith("decoder.") else value for name, value in weights.items()})
    made = with_decoder(own, other)
    assert made.tokenizer is other.tokenizer and made.generator is own.generator
    assert made.info.training == {"tokenizer_steps": 2, "generator_steps": 1} and made.info.name == "own"


def test_a_decoder_of_other_tokens_is_refused():
    with pytest.raises(ValueError, match="other: its tokens are not those of own"):
        with_decoder(model("own", 1), model("other", 2))
    deeper = replace(TINY.tokenizer, stem_blocks=TINY.tokenizer.stem_blocks + 1)
    stranger = model("other", 1)
    with pytest.raises(ValueError, match="train it with decoder_only"):
        with_decoder(Model(stranger.info, CViViT(deeper), None), stranger)
