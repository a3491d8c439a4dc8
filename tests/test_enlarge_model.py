"""A model of pictures twice as large computes what the small one computes (tools/enlarge_model.py)."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from phenaki.checkpoint import Model, ModelInfo, load_model, save_model
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.text import TextConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from enlarge_model import enlarged, main

CONFIG = CViViTConfig(image_size=16, patch_size=8, dim=32, heads=2, mlp_dim=64, stem_dim=16, encoder_layers="st", decoder_layers="st", head_blocks=1)


def model_of(config: CViViTConfig) -> Model:
    torch.manual_seed(0)
    tokenizer = CViViT(config).eval().requires_grad_(False)
    for name, weight in tokenizer.named_parameters():
        if "blocks" in name:
            torch.nn.init.normal_(weight, std=0.1)  # blocks that start as the identity would hide what happens in them
    return Model(ModelInfo("toy", config, None, TextConfig(), 8.0), tokenizer, None)


ODD = replace(CONFIG, image_size=16, patch_size=2, quantizer="vq", codebook_size=64, code_dim=8, stem_blocks=0)


@pytest.mark.parametrize("config, widen", [(CONFIG, 1), (CONFIG, 2), (CONFIG, 3), (ODD, 2)])
def test_the_larger_model_makes_the_same_tokens_and_the_same_video_in_larger_pixels(config, widen):
    small = model_of(config)
    large = enlarged(small, widen)
    assert large.info.tokenizer == replace(config, image_size=32, patch_size=2 * config.patch_size, stem_dim=16 * widen) == large.tokenizer.config
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    tokens = small.tokenizer.encode(F.avg_pool3d(video, (1, 2, 2)))
    assert (large.tokenizer.encode(video) == tokens).float().mean() > 0.999  # a level may lie on its edge
    truth = small.tokenizer.decode(tokens).repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(large.tokenizer.decode(tokens), truth, atol=1e-4, rtol=0)


def test_copies_of_a_channel_learn_different_things():
    large = enlarged(model_of(CONFIG), 2).tokenizer.requires_grad_(True)
    large.decode(torch.randint(large.codebook_size, (1, 2, 2, 2))).square().mean().backward()
    first, second = large.head.blocks[0].second.weight.grad.unflatten(0, (-1, 2)).unbind(1)
    assert (first - second).abs().max() > 0.1 * first.abs().max()


def test_what_cannot_be_enlarged_is_told():
    linear = model_of(replace(CONFIG, stem="linear"))
    with pytest.raises(ValueError, match="toy: stem 'linear'; only a convolutional stem"):
        enlarged(linear)
    with pytest.raises(ValueError, match="toy: refiner_dim 8; a refined head cannot be enlarged"):
        enlarged(model_of(replace(CONFIG, refiner_dim=8)))
    with pytest.raises(ValueError, match="widen 0: needed 1 at least"):
        enlarged(model_of(CONFIG), 0)
    largest = Model(replace(linear.info, tokenizer=replace(CONFIG, image_size=4096, patch_size=32)), linear.tokenizer, None)
    with pytest.raises(ValueError, match="image_size 8192 with patch_size 64: needed at most 4096 pixels"):
        enlarged(largest)


def test_the_program_writes_a_model_in_the_place_of_the_old_one_too(tmp_path, monkeypatch, capsys):
    model = model_of(CONFIG)
    save_model(tmp_path / "model", model.info, model.tokenizer, None)
    for size in (32, 64):
        monkeypatch.setattr(sys, "argv", ["enlarge_model.py", *[str(tmp_path / "model")] * 2, "--widen", "2"])
        main()
        assert f"{size}x{size} pixels" in capsys.readouterr().out
        again = load_model(tmp_path / "model")
        assert again.generator is None and again.info.tokenizer.image_size == size
