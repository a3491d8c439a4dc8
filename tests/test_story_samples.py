"""Looks at a generator's run: any caption can be told, by the model's own way to sample."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phenaki.checkpoint import Model, ModelInfo, save_model
from phenaki.contact_sheet import LABEL_HEIGHT
from phenaki.cvivit import CViViT
from phenaki.maskgit import MaskGIT
from phenaki.sampling import SamplingOptions
from phenaki.story import MAX_PROMPT_CHARS, Story
from phenaki.text import TextConfig, TextEncoder
from phenaki.training import story_samples
from phenaki.training.generator import run_generator_training
from phenaki.training.settings import load_settings
from phenaki.video import read_video

CONFIG = Path(__file__).resolve().parents[1] / "configs/tiny.toml"
UNTOLD = {  # what it is -> a caption, what is told in its place
    "a word of 1001 letters": ("x" * 1001, "x" * 1000),
    "ten words of 101 letters": (" ".join(["y" * 101] * 10), " ".join(["y" * 101] * 9)),  # what is left of the tenth has more tokens than it had
    "a space at the limit": ("z" * 999 + " zz", "z" * 999),
    "control characters": ("\x01\x02 \x1f\x7f", "a video"),
    "white space": (" \n\u2003", "a video"),
    "half a surrogate pair": ("\ud800", "?"),
    "nothing": ("", "a video"),
}


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.load()


@pytest.fixture(scope="module")
def base() -> Model:
    settings = load_settings(CONFIG)
    torch.manual_seed(0)
    return Model(ModelInfo("tiny", settings.tokenizer, None, settings.text, 8.0), CViViT(settings.tokenizer).eval(), None)


@pytest.mark.parametrize("name", UNTOLD)
def test_any_caption_is_told_as_a_prompt_may_be(encoder, name):
    caption, told = UNTOLD[name]
    assert story_samples.tellable(caption, encoder) == told
    assert Story.of([told]).scenes[0].prompt == told and len(told) <= MAX_PROMPT_CHARS


def test_a_caption_that_can_be_told_is_told_as_it_is(encoder):
    assert story_samples.tellable("a bear \n on\x00the  beach", encoder) == "a bear on the beach"
    narrow = TextEncoder(TextConfig(max_length=5), encoder.model, encoder.tokenizer, encoder.folder)
    assert story_samples.tellable("a bear on the beach", narrow) == "a bear on"


def test_a_look_shows_captions_that_no_script_may_have(base, encoder, tmp_path):
    generator = MaskGIT(load_settings(CONFIG).generator).eval()
    stories = [[(caption, 0.5)] for caption, _ in UNTOLD.values()]
    story_samples.save_story_sample(stories, generator, base, encoder, SamplingOptions(num_steps=1), tmp_path / "look")
    sheet, video = np.asarray(Image.open(tmp_path / "look.png")), read_video(tmp_path / "look.mp4")
    height = LABEL_HEIGHT + 32  # of a story's row: its prompts, and every second of its four frames
    assert sheet.shape == (len(stories) * height, 13 * 32, 3) and video.frames.shape == (4, len(stories) * 32, 32, 3) and video.fps == 8
    for row in sheet.reshape(len(stories), height, 13, 32, 3)[:, LABEL_HEIGHT:]:
        assert [bool((row[:, column] != 255).any()) for column in range(13)] == [True, True, *[False] * 11]


@pytest.mark.usefixtures("synced")
def test_a_look_samples_as_the_model_will(base, tmp_path, monkeypatch):
    text = CONFIG.read_text().replace("num_stories = 8", "num_stories = 2")
    (tmp_path / "own.toml").write_text(text + "\n[sampling]\nnum_steps = 2\norder = 'halton'\n")
    save_model(tmp_path / "model", base.info, base.tokenizer, None)
    told, direct = [], story_samples.direct
    monkeypatch.setattr(story_samples, "direct", lambda *how: told.append(how[4]) or direct(*how))
    silent = lambda _: None
    run_generator_training(tmp_path / "own.toml", tmp_path / "out", tokenizer=tmp_path / "model", steps=1, on_log=silent, on_note=silent)
    assert len(told) == 4 and set(told) == {replace(SamplingOptions(), num_steps=2, order="halton")}
