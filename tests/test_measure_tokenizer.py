"""tools/measure_tokenizer.py: clips are drawn at the size that the tokenizer was trained on; the figures say what they are of."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_training import TINY

from phenaki.checkpoint import Model, ModelInfo, read_info, save_model
from phenaki.cvivit import CViViT
from phenaki.data.storybook import open_world

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import measure_tokenizer


def test_clips_have_the_size_of_the_models_pictures(tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_model(tmp_path / "model", ModelInfo("toy", TINY.tokenizer, None, TINY.text, 8.0), CViViT(TINY.tokenizer), None)
    drawn = []

    def open_drawn(config, data):
        drawn.append(config.size)
        return open_world(config)

    monkeypatch.setattr(measure_tokenizer, "open_world", open_drawn)
    monkeypatch.setattr(measure_tokenizer, "load_networks", lambda device: SimpleNamespace(lpips=None))
    words = ["--data", "a.safetensors", "--model", str(tmp_path / "model"), "--clips", "8", "--frames", "3", "-o", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", ["measure_tokenizer.py", *words])
    measure_tokenizer.main()
    found = json.loads((tmp_path / "a.json").read_text())
    assert drawn == [TINY.tokenizer.image_size] != [64]
    assert found["model"]["name"] == "toy" and found["model"]["files"] == read_info(tmp_path / "model").files != {}
    assert (found["world"], found["size"], found["seed"]) == ("small", TINY.tokenizer.image_size, 777) and found["data"].startswith("storybook ")
    assert found["seen_pairs"]["n"] == 8 and found["seen_pairs"]["lpips_frames"] == 0 and found["seen_pairs"]["lpips"] is None
    assert found["seen_pairs"]["clips"] == 8 and found["held_out_pairs"]["code_use"]["tokens"] == 8 * 2 * (TINY.tokenizer.image_size // 8) ** 2


@pytest.mark.parametrize("factors", [1, 2])
def test_lpips_says_how_many_pictures_it_is_of_and_codes_which_values_are_used(factors):
    torch.manual_seed(0)
    tokenizer = CViViT(TINY.tokenizer)
    generator = replace(TINY.generator, codebook_size=tokenizer.codebook_size, token_factors=factors)
    model = Model(ModelInfo("toy", TINY.tokenizer, generator, TINY.text, 8.0), tokenizer, None)
    lpips = lambda made, truth: torch.full((len(made),), 0.25)
    found = measure_tokenizer.measure(model, open_world(TINY.world), 3, 9, held_out=False, lpips=lpips)
    assert (found["n"], found["lpips"], found["lpips_frames"]) == (3, 0.25, 3 * 3), "frames 0, 4 and 8 of each clip"
    use, size = found["code_use"], round(tokenizer.codebook_size ** (1 / factors))
    assert list(use) == ["factors", "factor_size", "levels", "distinct_tokens", "tokens"]
    assert use["factor_size"] == size and len(use["factors"]) == factors and all(0 < share <= 1 for share in use["factors"])
    if factors == 1:
        assert use["factors"] == [round(use["distinct_tokens"] / size, 4)]
