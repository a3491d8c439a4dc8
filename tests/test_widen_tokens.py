"""A model whose tokens have more bits computes what it did before (tools/widen_tokens.py)."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from phenaki.checkpoint import Model, ModelInfo, load_model, save_model
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.maskgit import MaskGIT, MaskGITConfig, split_token
from phenaki.text import TextConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from widen_tokens import main, widened

TOKENIZER = CViViTConfig(
    image_size=16, patch_size=8, dim=32, heads=2, mlp_dim=64, stem_dim=16, encoder_layers="st", decoder_layers="st", fsq_levels=(3,) * 4
)
GENERATOR = MaskGITConfig(codebook_size=81, token_factors=2, dim=32, depth=1, heads=2, mlp_dim=64, text_dim=8)


@pytest.fixture
def small() -> Model:
    torch.manual_seed(0)
    networks = (network.eval().requires_grad_(False) for network in (CViViT(TOKENIZER), MaskGIT(GENERATOR)))
    return Model(ModelInfo("toy", TOKENIZER, GENERATOR, TextConfig(), 8.0), *networks)


def old_part(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens of 2 x 3 digits of base 3 without the last digit of each factor."""
    low, high = split_token(tokens, 27, 2)
    return low % 9 + 9 * (high % 9)


def test_tokens_say_what_they_said_and_more_and_are_decoded_alike(small):
    large, video = widened(small), torch.rand(4, 3, 5, 16, 16) * 2 - 1
    assert large.info.tokenizer.fsq_levels == (3,) * 6 and large.info.generator.codebook_size == 729 == large.tokenizer.codebook_size
    before, tokens = small.tokenizer.encode(video), large.tokenizer.encode(video)
    assert torch.equal(old_part(tokens), before) and not torch.equal(tokens, before)
    assert len({(token // 9 % 3, token // 243) for token in tokens.flatten().tolist()}) > 1, "the new channels say something"
    torch.testing.assert_close(large.tokenizer.decode(tokens), small.tokenizer.decode(before))


def test_the_generator_gives_each_new_value_the_same_share_of_the_old_ones_chance(small):
    large, features = widened(small, 2), torch.randn(40, 32)
    tokens = torch.randint(small.tokenizer.codebook_size * 3**4, (40,))
    low, high = split_token(tokens, 81, 2)
    before = small.generator.score(features, low % 9 + 9 * (high % 9)).log_probs
    torch.testing.assert_close(large.generator.score(features, tokens).log_probs, before - torch.log(torch.tensor(9.0)))
    text = torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    chunks = torch.randint(large.tokenizer.codebook_size, (1, 2, 2, 2))
    low, high = split_token(chunks, 81, 2)
    one, other = (
        model.generator.features(given, model.generator.encode_text(*text), None, True)
        for model, given in ((large, chunks), (small, low % 9 + 9 * (high % 9)))
    )
    torch.testing.assert_close(one, other)


def test_it_is_a_model_folder_like_any_other(small, tmp_path):
    large = widened(small)
    save_model(tmp_path, large.info, large.tokenizer, large.generator)
    assert load_model(tmp_path).info.tokenizer == large.info.tokenizer


def test_what_cannot_be_widened_is_told(small):
    with pytest.raises(ValueError, match="toy: holds a tokenizer alone"):
        widened(Model(small.info, small.tokenizer, None))
    with pytest.raises(ValueError, match="channels 0: needed 1 at least"):
        widened(small, 0)
    uneven = replace(TOKENIZER, fsq_levels=(3, 3, 9))
    with pytest.raises(ValueError, match="as many levels, equally many in each of the 2 factors"):
        widened(Model(replace(small.info, tokenizer=uneven), CViViT(uneven), small.generator))


def test_the_program_says_what_it_made_and_what_was_wrong(small, tmp_path, monkeypatch, capsys):
    save_model(tmp_path / "small", small.info, small.tokenizer, small.generator)
    told = lambda *words: monkeypatch.setattr(sys, "argv", ["widen_tokens.py", *map(str, words)])
    told(tmp_path / "small", tmp_path / "large", "--channels", 2)
    main()
    assert capsys.readouterr().out == f"{tmp_path / 'large'}: tokens of 8 channels, 6561 kinds\n"
    assert load_model(tmp_path / "large").generator.config.factor_size == 81
    (tmp_path / "file").write_text("here")
    for words, said in (((tmp_path / "large", "--channels", 0), "needed 1 at least"), ((tmp_path / "file",), "File exists")):
        told(tmp_path / "small", *words)
        with pytest.raises(SystemExit, match=f"^widen_tokens: .*{said}"):
            main()
    assert (tmp_path / "file").read_text() == "here"
