"""tools/measure_tokenizer.py: clips are drawn at the size that the tokenizer was trained on; the figures say what they are of."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from test_training import TINY

from phenaki.checkpoint import ModelInfo, read_info, save_model
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
    assert found["seen_pairs"]["clips"] == 8 and found["held_out_pairs"]["code_use"]["tokens"] == 8 * 2 * (TINY.tokenizer.image_size // 8) ** 2
