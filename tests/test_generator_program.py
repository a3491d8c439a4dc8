"""Truths of `phenaki train generator` as a whole: the same command goes on, whatever tokenizer it began with and wherever it was stopped."""

from pathlib import Path

import pytest
import torch
from training_toys import newest

from phenaki import checkpoint
from phenaki.checkpoint import ModelInfo, load_model, read_info, save_model
from phenaki.cvivit import CViViT
from phenaki.text import TextEncoder
from phenaki.training import generator as generator_module
from phenaki.training.generator import run_generator_training
from phenaki.training.settings import load_settings

pytestmark = pytest.mark.usefixtures("synced")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """The settings of configs/tiny.toml with shorter stories; one text encoder for all runs of a test, and no looks at samples."""
    path = tmp_path / "tiny.toml"
    path.write_text((CONFIGS / "tiny.toml").read_text().replace("num_stories = 8", "num_stories = 3"))
    encoder = TextEncoder.load(load_settings(path).text)
    monkeypatch.setattr(generator_module.TextEncoder, "load", lambda *_, **__: encoder)
    monkeypatch.setattr(generator_module, "show_stories", lambda *_: None)
    return path


@pytest.fixture
def shipped(tmp_path, config, monkeypatch) -> Path:
    """A tokenizer that ships with the package under the default's name, in half precision as the real one."""
    settings = load_settings(config)
    torch.manual_seed(0)
    info = ModelInfo("storybook", settings.tokenizer, None, settings.text, settings.world.fps)
    save_model(tmp_path / "pretrained/storybook", info, CViViT(settings.tokenizer), None, dtype=torch.float16)
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "pretrained")
    return tmp_path / "pretrained/storybook"


def train(config: Path, out: Path, steps: int) -> list[str]:
    """What a run says."""
    notes: list[str] = []
    run_generator_training(config, out, steps=steps, on_log=lambda line: None, on_note=notes.append)
    return notes


def test_a_run_with_the_shipped_tokenizer_goes_on(config, shipped, tmp_path):
    """Its tokenizer comes from the package in half precision first, from the run's own model in full precision then: the same weights."""
    out = tmp_path / "out"
    assert "tokenising 3 stories" in train(config, out, 2)
    assert read_info(shipped).files != {name: value for name, value in read_info(out / "model").files.items() if name.startswith("tokenizer")}
    notes = train(config, out, 4)
    assert f"tokenizer: {out / 'model'}" in notes and not any("tokenis" in note for note in notes)
    assert newest(out / "generator").name == "step-0000004" and load_model(out / "model").info.training["generator_steps"] == 4
