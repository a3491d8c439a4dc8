"""Truths of `phenaki train generator` as a whole: the same command goes on, whatever tokenizer it began with and wherever it was stopped."""

import shutil
from pathlib import Path

import pytest
import torch
from training_toys import Stop, newest

from phenaki import atomic, checkpoint
from phenaki.checkpoint import ModelInfo, load_model, read_info, save_model, state_sha256
from phenaki.cvivit import CViViT
from phenaki.locks import BusyError
from phenaki.text import TextEncoder
from phenaki.training import generator as generator_module
from phenaki.training.generator import run_generator_training
from phenaki.training.settings import load_settings

pytestmark = pytest.mark.usefixtures("synced")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """The settings of configs/tiny.toml with shorter stories; one text encoder for a test, few held-out stories, no looks at samples."""
    path = tmp_path / "tiny.toml"
    path.write_text((CONFIGS / "tiny.toml").read_text().replace("num_stories = 8", "num_stories = 3"))
    encoder = TextEncoder.load(load_settings(path).text)
    monkeypatch.setattr(generator_module.TextEncoder, "load", lambda *_, **__: encoder)
    monkeypatch.setattr(generator_module, "HELD_OUT_STORIES", 4)
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


def train(config: Path, out: Path, steps: int, **options) -> list[str]:
    """What a run says."""
    notes: list[str] = []
    run_generator_training(config, out, steps=steps, **options, on_log=lambda line: None, on_note=notes.append)
    return notes


def test_a_run_with_the_shipped_tokenizer_goes_on(config, shipped, tmp_path):
    """Its tokenizer comes from the package in half precision first, from the run's own model in full precision then: the same weights."""
    out = tmp_path / "out"
    assert "tokenising 3 stories" in train(config, out, 2)
    assert read_info(shipped).files != {name: value for name, value in read_info(out / "model").files.items() if name.startswith("tokenizer")}
    notes = train(config, out, 4)
    assert f"tokenizer: {out / 'model'}" in notes and not any("tokenis" in note for note in notes)
    assert newest(out / "generator").name == "step-0000004" and load_model(out / "model").info.training["generator_steps"] == 4


def test_a_first_run_stopped_before_its_model_was_whole_goes_on(config, shipped, tmp_path):
    train(config, tmp_path / "out", 1)
    (tmp_path / "out/model/config.json").unlink()
    assert "tokenizer: storybook" in train(config, tmp_path / "out", 2)
    assert load_model(tmp_path / "out/model").info.training["generator_steps"] == 2


class Cut:
    """The power cut at a call of a function that writes into `folder`; calls are counted over all functions."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, at: int):
        self.patch, self.folder, self.at, self.calls = patch, folder, at, 0

    def watch(self, owner, name: str, place: int) -> None:
        """place: of the path among the function's arguments."""
        original = getattr(owner, name)

        def call(*arguments, **options):
            if Path(arguments[place]).parent == self.folder:
                self.calls += 1
                if self.calls == self.at:
                    raise Stop
            return original(*arguments, **options)

        self.patch.setattr(owner, name, call)


def test_the_end_of_a_run_stopped_at_any_write_leaves_the_old_model_or_the_new_one(config, shipped, tmp_path):
    """Where a generator was before: each write, rename and removal fails once; the model loads, and the same command goes on."""
    train(config, tmp_path / "old", 1)
    shutil.copytree(tmp_path / "old", tmp_path / "whole")
    train(config, tmp_path / "whole", 2)
    old, new = (state_sha256([(model := load_model(tmp_path / name / "model")).tokenizer, model.generator]) for name in ("old", "whole"))
    found = []
    for at in range(1, 20):
        out = tmp_path / str(at)
        shutil.copytree(tmp_path / "old", out)
        with pytest.MonkeyPatch.context() as patch:
            cut = Cut(patch, out / "model", at)
            for owner, name, place in ((atomic.os, "replace", 1), (Path, "write_bytes", 0), (Path, "unlink", 0)):
                cut.watch(owner, name, place)
            try:
                train(config, out, 2)
            except Stop:
                model = load_model(out / "model")
                found.append(state_sha256([model.tokenizer, model.generator]))
        if cut.calls < at:
            break
        assert not any("tokenis" in note for note in train(config, out, 2))
        model = load_model(out / "model")
        assert state_sha256([model.tokenizer, model.generator]) == new and model.info.training["generator_steps"] == 2
        assert len(list((out / "model").glob("generator*.safetensors"))) == 1, "what is in use, and nothing else"
    assert found == [old] * (len(found) - 1) + [new] and len(found) >= 7, "every write stands before config.json but the removal of the old file"


def test_a_command_that_is_refused_leaves_the_tokens_of_the_run_alone(config, shipped, tmp_path, held_elsewhere):
    """Another seed or tokenizer would have the stories made anew."""
    out, wider, other = tmp_path / "out", tmp_path / "wider.toml", tmp_path / "other"
    train(config, out, 2)
    wider.write_text(config.read_text().replace("depth = 2", "depth = 3"))
    settings = load_settings(config)
    torch.manual_seed(1)
    save_model(other, ModelInfo("other", settings.tokenizer, None, settings.text, settings.world.fps), CViViT(settings.tokenizer), None)
    uneven = tmp_path / "uneven.toml"
    uneven.write_text(config.read_text().replace("[train_generator.optimizer]\n", "[train_generator.optimizer]\naccumulate = 3\n"))
    whole = {file: file.read_bytes() for file in sorted((out / "generator").rglob("*")) if file.is_file()}
    with held_elsewhere(out / "generator"), pytest.raises(BusyError, match="another process trains in this folder"):
        train(config, out, 3, seed=77)
    for words, path, changes in (
        ("was saved by a run that was not this one: depth 2 -> 3", wider, {"seed": 77}),
        ("was saved by a run that was not this one: tokens and texts", config, {"tokenizer": other}),
        ("cannot be shared by 3 equal parts", uneven, {"seed": 77}),
    ):
        with pytest.raises(ValueError, match=words):
            train(path, out, 3, **changes)
    assert {file: file.read_bytes() for file in sorted((out / "generator").rglob("*")) if file.is_file()} == whole
    assert any("making them anew" in note for note in train(config, out, 3, seed=77)), "what is not refused makes them"


def test_roll_outs_that_no_story_is_long_enough_for_are_refused(config, shipped, tmp_path):
    text = config.read_text().replace("num_stories = 3", "num_stories = 3\nrollout_prob = 0.5")
    short = tmp_path / "short.toml"
    short.write_text(text.replace("num_slices = 9", "num_slices = 6"))
    assert "num_slices = 6" in short.read_text()
    with pytest.raises(ValueError, match=r"rollout_prob 0\.5: needs context_slices, and stories of 7 slices; found 6, set num_slices"):
        train(short, tmp_path / "out", 1)
    assert not list(tmp_path.glob("out/generator/*.safetensors")), "before any work"
    long = tmp_path / "long.toml"
    long.write_text(text)
    train(long, tmp_path / "other", 1)
