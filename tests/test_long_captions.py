"""Captions longer than the text encoder reads, of which training takes the first words, and captions that are missing: both are told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phenaki.checkpoint import ModelInfo, save_model
from phenaki.contact_sheet import LABEL_HEIGHT
from phenaki.cvivit import CViViT
from phenaki.data.tokens import StoryTokens
from phenaki.text import TextConfig, TextEncoder
from phenaki.training.generator import run_generator_training
from phenaki.training.settings import load_settings
from phenaki.training.stories import tokenize_data
from phenaki.video import Video

CONFIG = Path(__file__).resolve().parents[1] / "configs/tiny.toml"
pytestmark = pytest.mark.usefixtures("synced")


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.load()


def test_a_prompt_is_shortened_at_the_limit_by_whole_words(encoder):
    assert encoder.shortened("a bear \n on  the beach") == "a bear \n on  the beach", "what fits is left as it is"
    for prompt in ("bear " * 300, "an antidisestablishmentarian " * 40, "one\ntwo  three " * 200):
        short = encoder.shortened(prompt)
        count = len(short.split())
        assert short.split() == prompt.split()[:count] and len(encoder.tokenize(short)) <= 64
        with pytest.raises(ValueError, match="64 at most"):
            encoder.tokenize(" ".join(prompt.split()[: count + 1]))
    assert len(encoder.shortened("bear " * 300).split()) == 62


def test_a_word_too_long_by_itself_is_shortened_by_letters(encoder):
    word = "".join(chr(0x4E00 + n) for n in range(200))  # every sign of it is a token
    short = encoder.shortened(word + " and more")
    assert word.startswith(short) and len(encoder.tokenize(short)) == 64
    narrow = TextEncoder(TextConfig(max_length=3), encoder.model, encoder.tokenizer, encoder.folder)
    assert narrow.shortened("bear with a hat") == "bear"


@pytest.fixture
def footage(tmp_path) -> Path:
    folder = tmp_path / "footage"
    folder.mkdir()
    for number, caption in enumerate(("a grey wall", "a wall " * 100 + "in the rain", "a wall " * 2000)):
        Video(np.full((12, 32, 32, 3), 60 * number, np.uint8), 8.0).save(folder / f"clip{number}.mp4")
        (folder / f"clip{number}.txt").write_text(caption)
    return folder


def test_long_captions_of_footage_are_cut_counted_and_trained_on(footage, tmp_path, encoder):
    settings, notes = load_settings(CONFIG), []
    torch.manual_seed(0)
    save_model(tmp_path / "model", ModelInfo("tiny", settings.tokenizer, None, settings.text, 8.0), CViViT(settings.tokenizer), None)
    path = tmp_path / "tokens.safetensors"
    tokenize_data(footage, tmp_path / "model", path, num_clips=6, num_frames=11, on_note=notes.append)
    told = [note for note in notes if "captions" in note]
    assert len(told) == 1 and told[0].startswith("2 of 3 captions have more than the 64 tokens") and told[0].endswith("that of clip1.mp4")

    stories = StoryTokens.load(path)
    assert "a wall " * 100 + "in the rain" in stories.captions, "the words are kept whole"
    longest = stories.captions.index("a wall " * 100 + "in the rain")
    text, mask = stories.text(torch.tensor([longest]))
    wanted = encoder.encode([("a wall " * 31).strip()])
    torch.testing.assert_close(text[mask], wanted.text[wanted.text_mask], atol=2e-3, rtol=1e-2)

    out = tmp_path / "out"
    run_generator_training(CONFIG, out, data=path, tokenizer=tmp_path / "model", steps=1, on_log=notes.append, on_note=notes.append)
    looks = np.asarray(Image.open(out / "generator/sample-0000001.png"))
    assert looks.shape == (4 * (LABEL_HEIGHT + 32), 13 * 32, 3), "looks are told what was learnt from"


MISSING = "a model learns to follow prompts from them alone; write NAME.txt beside NAME.mp4"


def test_clips_without_captions_are_counted_wherever_they_come_from(footage, tmp_path, monkeypatch):
    settings = load_settings(CONFIG)
    save_model(tmp_path / "model", ModelInfo("tiny", settings.tokenizer, None, settings.text, 8.0), CViViT(settings.tokenizer), None)
    monkeypatch.setattr("phenaki.training.generator.show_stories", lambda *_: None)
    path, model = tmp_path / "tokens.safetensors", tmp_path / "model"

    def told(program, *arguments, **options) -> list[str]:
        notes: list[str] = []
        program(*arguments, **options, on_note=notes.append)
        return [note for note in notes if MISSING in note]

    train = {"tokenizer": model, "steps": 1, "on_log": lambda line: None}
    config = tmp_path / "tiny.toml"
    config.write_text(CONFIG.read_text().replace("num_stories = 8", "num_stories = 3").replace("num_slices = 9", "num_slices = 6"))
    assert told(tokenize_data, footage, model, path, num_clips=3, num_frames=11) == [], "all have captions"
    assert told(run_generator_training, config, tmp_path / "all", data=path, **train) == []
    for number in range(3):
        (footage / f"clip{number}.txt").rename(footage / f"CLIP{number}.txt")
    assert told(tokenize_data, footage, model, path, num_clips=3, num_frames=11) == [f"{footage}: 0 of 3 clips have captions: {MISSING}"]
    assert told(run_generator_training, config, tmp_path / "stored", data=path, **train) == [f"{path}: 0 of 3 clips have captions: {MISSING}"]
    (footage / "CLIP0.txt").rename(footage / "clip0.txt")
    assert told(run_generator_training, config, tmp_path / "direct", data=footage, **train) == [f"{footage}: 1 of 3 clips have captions: {MISSING}"]
