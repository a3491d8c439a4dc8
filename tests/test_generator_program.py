"""Truths of `phenaki train generator` as a whole: the same command goes on, whatever tokenizer it began with and wherever it was stopped."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from training_toys import Stop, newest

from phenaki import atomic, checkpoint
from phenaki.checkpoint import ModelInfo, load_model, read_info, save_model, state_sha256
from phenaki.cvivit import CViViT
from phenaki.data.token_parts import drop_parts, parts_folder, tokenize_source
from phenaki.data.tokens import StoryTokens, TokensError
from phenaki.locks import BusyError
from phenaki.maskgit import MaskGIT
from phenaki.text import TextEncoder
from phenaki.training import generator as generator_module
from phenaki.training import stories as stories_module
from phenaki.training import tokenizer as tokenizer_module
from phenaki.training.generator import run_generator_training
from phenaki.training.settings import load_settings
from phenaki.training.stories import prepared_tokens, tokenize_data
from phenaki.training.tokenizer import run_tokenizer_training
from phenaki.video import Video

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
    run_generator_training(config, out, steps=steps, on_log=lambda line: None, on_note=notes.append, **options)
    return notes


def changed(config: Path, name: str, *changes: tuple[str, str]) -> Path:
    """The settings with something else in place of each text."""
    text = config.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (config.parent / name).write_text(text)
    return config.parent / name


def test_a_run_with_the_shipped_tokenizer_goes_on(config, shipped, tmp_path):
    """Its tokenizer comes from the package in half precision first, from the run's own model in full precision then: the same weights.

    Also what older versions stored, which took the hash of the decoder's weights as well.
    """
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stories_module, "tokens_sha256", lambda tokenizer: state_sha256([tokenizer]))
        assert "tokenising 3 stories" in train(config, out, 2)
    assert read_info(shipped).files != {name: value for name, value in read_info(out / "model").files.items() if name.startswith("tokenizer")}
    notes = train(config, out, 4)
    assert f"tokenizer: {out / 'model'}" in notes and not any("tokenis" in note for note in notes)
    assert newest(out / "generator").name == "step-0000004" and load_model(out / "model").info.training["generator_steps"] == 4


def test_a_run_goes_on_after_its_decoder_was_trained_on(config, shipped, tmp_path):
    """Tokens depend on the encoder alone."""
    out = tmp_path / "out"
    train(config, out, 1)
    model = load_model(out / "model")
    for value in model.tokenizer.decoder.state_dict().values():
        value.add_(0.1)
    save_model(out / "model", model.info, model.tokenizer, model.generator)
    assert not any("tokenis" in note for note in train(config, out, 2))
    other = load_model(out / "model")
    assert other.info.training["generator_steps"] == 2 and state_sha256([other.tokenizer]) == state_sha256([model.tokenizer])
    with torch.no_grad():
        other.tokenizer.encoder.norm.weight.add_(0.1)
    path, encoder = out / "generator/stories.safetensors", generator_module.TextEncoder.load()
    assert prepared_tokens(path, model, encoder).description
    with pytest.raises(TokensError, match="made with another tokenizer"):
        prepared_tokens(path, other, encoder)


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
            path = Path(arguments[place])
            if path.parent == self.folder and not (name == "unlink" and ".part-" in path.name):  # of which nothing is left, mostly
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
        if at % 3:  # to go on takes as long as the run, and is the same from most of these
            continue
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
    long = changed(config, "long.toml", ("num_stories = 3", "num_stories = 3\nrollout_prob = 0.5"))
    short = changed(long, "short.toml", ("num_slices = 9", "num_slices = 6"))
    with pytest.raises(ValueError, match=r"rollout_prob 0\.5: needs context_slices, and stories of 7 slices; found 6, set num_slices"):
        train(short, tmp_path / "out", 1)
    assert not list(tmp_path.glob("out/generator/*.safetensors")), "before any work"
    train(long, tmp_path / "other", 1)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of four, each with its caption."""
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 32), (60 * number, 0, 0)).save(tmp_path / f"pictures/{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text(f"red number {number}")
    return tmp_path / "pictures"


def test_a_generator_is_trained_and_validated_on_pictures_alone(config, shipped, pictures, tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(generator_module, "show_stories", lambda prompts, *_: looks.append(prompts))
    alone = changed(config, "alone.toml", ("num_stories = 3", "num_stories = 0\nimage_prob = 1"))
    assert "tokenising 0 stories and 4 pictures" in train(alone, tmp_path / "out", 1, data=pictures, validation=pictures)
    assert [sorted(prompt for ((prompt, _),) in prompts) for prompts in looks] == [[f"red number {number}" for number in range(4)]]
    assert '"validation": null' not in (newest(tmp_path / "out/generator") / "manifest.json").read_text()


def test_stories_too_short_for_a_step_are_refused_before_the_first(config, shipped, tmp_path):
    """Held-out ones too: a run that met them at its first checkpoint lost all steps before."""
    short = changed(config, "short.toml", ("num_slices = 9", "num_slices = 4"))
    words = r"stories of 4 slices \(\[train_generator\] num_slices\) have no room for a chunk of 3 \(\[generator\] chunk_slices\) after 2 of context"
    with pytest.raises(ValueError, match=words):
        train(short, tmp_path / "short", 1)
    assert not (tmp_path / "short").exists(), "before a story is made"
    train(changed(short, "alone.toml", ("num_slices = 4", "num_slices = 4\nfrom_text_prob = 1.0")), tmp_path / "short", 1)
    with pytest.raises(ValueError, match=r"no scene of the held-out stories has room for a chunk of 3 slices after 2 slices of context"):
        train(config, tmp_path / "out", 5, validation=tmp_path / "short/generator/stories.safetensors")
    assert not (tmp_path / "out/generator/checkpoints").exists()


def test_held_out_data_that_is_not_there_is_told_before_a_story_is_made(config, shipped, tmp_path):
    with pytest.raises(ValueError, match="nosuch: no such file or folder"):
        train(config, tmp_path / "out", 1, validation=tmp_path / "nosuch")
    assert not (tmp_path / "out").exists()


def test_tokens_prepared_apart_are_those_that_the_program_makes(config, shipped, tmp_path):
    """With its settings, which say how clips are cut."""
    rng = np.random.default_rng(0)
    (tmp_path / "footage").mkdir()
    for number in range(3):
        Video(rng.integers(0, 255, (20, 48, 72, 3), np.uint8), 8.0).save(tmp_path / f"footage/{number}.mp4")
    own = changed(config, "own.toml", ("[train_generator]\n", "[footage]\nrandom_crop = true\nmin_zoom = 0.5\n[train_generator]\n"))
    train(own, tmp_path / "out", 1, data=tmp_path / "footage")
    wanted = StoryTokens.load(tmp_path / "out/generator/stories.safetensors")
    made = tokenize_data(tmp_path / "footage", "storybook", tmp_path / "apart.safetensors", config=own, on_note=lambda note: None)
    assert torch.equal(made.tokens, wanted.tokens) and made.captions == wanted.captions and made.description == wanted.description
    shorter = tokenize_data(tmp_path / "footage", "storybook", tmp_path / "short.safetensors", config=own, num_clips=2, num_frames=5, on_note=print)
    assert shorter.tokens.shape[:2] == (2, 3)
    plain = tokenize_data(tmp_path / "footage", "storybook", tmp_path / "plain.safetensors", num_clips=3, num_frames=17, on_note=lambda note: None)
    assert plain.tokens.shape == made.tokens.shape and not torch.equal(plain.tokens, made.tokens)


def test_whose_tokens_are_learnt_where_none_are_named(config, shipped, tmp_path):
    """Those of the run's own model, of the model that it starts from, of the shipped one where it is what the settings say; else none."""
    other = changed(config, "other.toml", ("stem_dim = 16", "stem_dim = 24"))
    with pytest.raises(ValueError, match=r"is missing, and the shipped tokenizer is not that of .*other.toml \(stem_dim 16 -> 24\). Train one first"):
        train(other, tmp_path / "typo", 1)
    assert not (tmp_path / "typo").exists()
    assert f"tokenizer: {shipped.name}" in train(other, tmp_path / "asked", 1, tokenizer="storybook")
    torch.manual_seed(5)
    settings = load_settings(other)
    mine = ModelInfo("mine", settings.tokenizer, settings.generator, settings.text, settings.world.fps, words=("zebra",))
    save_model(tmp_path / "mine", mine, CViViT(settings.tokenizer), MaskGIT(settings.generator))
    notes = train(other, tmp_path / "tuned", 1, init_from=str(tmp_path / "mine"))
    assert f"tokenizer: {tmp_path / 'mine'}" in notes and not any("learn anew" in note for note in notes)
    assert read_info(tmp_path / "tuned/model").tokenizer == settings.tokenizer
    train(other, tmp_path / "tuned", 2)
    assert "zebra" in read_info(tmp_path / "tuned/model").words, "what it has known from the beginning it knows when it goes on"
    notes = train(other, tmp_path / "moved", 1, init_from=str(tmp_path / "mine"), tokenizer="storybook")
    assert f"{tmp_path / 'mine'}: its generator knows other tokens than those of storybook, which it has to learn anew" in notes
    (tmp_path / "lost/tokenizer/checkpoints/step-0000002").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"is missing, though a tokenizer was trained in .*: the same `phenaki train tokenizer` writes it"):
        train(config, tmp_path / "lost", 1)


def test_unusable_files_of_held_out_footage_are_listed_apart(config, shipped, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "held")
    for folder, name in ((pictures, "broken.png"), (tmp_path / "held", "other.png")):
        (folder / name).write_bytes(b"no picture")
    alone = changed(config, "alone.toml", ("num_stories = 3", "num_stories = 0\nimage_prob = 1"))
    train(alone, tmp_path / "out", 1, data=pictures, validation=tmp_path / "held")
    for name, met in (("stories", "broken.png"), ("held-out", "other.png")):
        (line,) = (tmp_path / f"out/generator/{name}-unusable.jsonl").read_text().splitlines()
        assert met in line


def test_held_out_clips_that_a_tokenizer_cannot_use_are_told_before_the_first_step(config, pictures, tmp_path):
    lines = []
    with pytest.raises(ValueError, match="none of 4 files gives videos to train on"):
        run_tokenizer_training(config, tmp_path / "out", validation=pictures, steps=1, on_log=lines.append, on_note=lambda note: None)
    assert not lines


def test_a_tokenizer_s_run_that_is_refused_is_refused_before_data_is_made(config, shipped, tmp_path, monkeypatch):
    """Clips may take hours to decode and stories to paint. What is wrong with the batch, the model to start from, the losses, the run."""
    run_tokenizer_training(config, tmp_path / "begun", steps=1, on_log=lambda line: None, on_note=lambda note: None)
    monkeypatch.setattr(tokenizer_module, "open_source", lambda *_: pytest.fail("data was made"))
    monkeypatch.setenv("PHENAKI_CACHE", str(tmp_path / "nothing"))
    uneven = changed(config, "uneven.toml", ("[train_tokenizer.optimizer]\n", "[train_tokenizer.optimizer]\naccumulate = 3\n"))
    wider = changed(config, "wider.toml", ("stem_dim = 16", "stem_dim = 24"))
    perceptual = changed(config, "perceptual.toml", ("lpips_weight = 0", "lpips_weight = 0.1"))
    for words, own, out, options in (
        ("cannot be shared by 3 equal parts", uneven, "out", {}),
        ("storybook: .+ is .+ there and .+ here", wider, "out", {"init_from": "storybook"}),
        ("phenaki metrics install", perceptual, "out", {}),
        ("was saved by a run that was not this one: stem_dim 16 -> 24", wider, "begun", {}),
        ("nosuch: no such file or folder", config, "out", {"validation": tmp_path / "nosuch"}),
    ):
        with pytest.raises(ValueError, match=words):
            run_tokenizer_training(own, tmp_path / out, steps=2, on_note=lambda note: None, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", [run_tokenizer_training, run_generator_training])
def test_a_machine_without_a_compiler_is_told_before_anything_is_made(config, shipped, tmp_path, monkeypatch, program):
    def refuse(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    compiled = changed(config, "compiled.toml", ("batch_size = 2", "batch_size = 2\ncompile = true"))
    with pytest.raises(ValueError, match=r"torch cannot compile for cpu here \(no C\+\+ compiler\)"):
        program(compiled, tmp_path / "out", steps=1, on_log=lambda line: None, on_note=lambda note: None)
    assert not (tmp_path / "out/generator").exists() and not (tmp_path / "out/tokenizer").exists()


def test_nothing_but_parts_is_removed_from_a_folder_of_parts_and_no_link_is_followed(tmp_path):
    path = tmp_path / "stories.safetensors"
    folder = parts_folder(path)
    folder.mkdir()
    for name in ("stories-00000000.safetensors", ".images-00000256.safetensors.part-7", "letter.txt"):
        (folder / name).write_bytes(b"1")
    drop_parts(path)
    assert [file.name for file in folder.iterdir() if file.name != ".lock"] == ["letter.txt"]
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/stories-00000000.safetensors").write_bytes(b"1")
    folder.symlink_to(tmp_path / "elsewhere")
    drop_parts(path)
    assert (tmp_path / "elsewhere/stories-00000000.safetensors").exists()
    with pytest.raises(ValueError, match="is a link, and what is made on the way would be written through it"):
        tokenize_source(None, None, None, None, path, "", print)


def test_held_out_clips_that_are_trained_on_are_told(tmp_path, config):
    folder, notes = tmp_path / "footage", []
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Video(rng.integers(0, 255, (40, 32, 32, 3), np.uint8), 8.0).save(folder / f"{number}.mp4")
        (folder / f"{number}.txt").write_text("noise")
    shutil.copytree(folder, tmp_path / "more")
    Video(rng.integers(0, 255, (40, 32, 32, 3), np.uint8), 8.0).save(tmp_path / "more/3.mp4")
    for program in (run_tokenizer_training, run_generator_training):
        for validation, told in ((folder, True), (tmp_path / "more", False)):
            notes.clear()
            program(config, tmp_path / f"run-{told}", data=folder, validation=validation, steps=1, on_log=lambda line: None, on_note=notes.append)
            assert any("these clips are trained on, too" in note for note in notes) == told, (program, validation, notes)


def test_stored_tokens_that_are_among_those_to_train_on_are_known():
    stories = lambda values: SimpleNamespace(tokens=torch.tensor(values).view(-1, 2, 1, 1))
    assert generator_module.shares_stories(stories([[1, 2], [3, 4]]), stories([[3, 4]]))
    assert not generator_module.shares_stories(stories([[1, 2], [3, 4]]), stories([[3, 5], [1, 2]]))
    assert not generator_module.shares_stories(stories([[1, 2]]), SimpleNamespace(tokens=torch.zeros(1, 3, 1, 1)))
