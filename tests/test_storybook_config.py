"""Truths of configs/storybook.toml: it is what ships, its networks fit where they are shipped, and both programs run on it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from phenaki.checkpoint import PRETRAINED, load_model, read_info
from phenaki.cvivit import CViViT
from phenaki.data.tokens import StoryTokens
from phenaki.data.world import WIDE_WORLD
from phenaki.maskgit import MaskGIT
from phenaki.training.generator import run_generator_training
from phenaki.training.settings import load_settings
from phenaki.training.tokenizer import run_tokenizer_training

CONFIG = Path(__file__).resolve().parents[1] / "configs/storybook.toml"
TINY = {
    "dim": 32, "heads": 2, "mlp_dim": 64, "stem_dim": 16, "stem_blocks": 1, "head_blocks": 1, "depth": 2, "batch_size": 2, "num_stories": 3,
    "num_slices": 7, "compile": "false", "sample_every": "2000\nvalidation_batches = 0",
}  # fmt: skip


def test_it_is_of_the_wide_world_and_made_for_one_gpu():
    settings = load_settings(CONFIG)
    assert settings.world == replace(WIDE_WORLD, size=128, small_share=0.3) and settings.tokenizer.image_size == 128
    for training in (settings.train_tokenizer, settings.train_generator):
        own = training.optimizer
        assert own.compile and own.precision == "auto" and own.ema_decay > 0.99 and own.batch_size >= 64
    painted = settings.train_tokenizer.num_stories * 33 * 3 * 128**2
    assert painted < 40e9, "half of such a GPU's memory is left to the networks"


@pytest.mark.skipif(not (PRETRAINED / "storybook").is_dir(), reason="no trained weights in this checkout")
def test_it_is_what_ships():
    settings, info = load_settings(CONFIG), read_info(PRETRAINED / "storybook")
    assert (settings.tokenizer, settings.generator, settings.sampling) == (info.tokenizer, info.generator, info.sampling)


def test_both_networks_fit_into_60_mebibytes_of_half_precision():
    settings = load_settings(CONFIG)
    with torch.device("meta"):
        networks = (CViViT(settings.tokenizer), MaskGIT(settings.generator))
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert all(5e6 < count < 20e6 for count in counts), counts
    assert 2 * sum(counts) <= 60 * 2**20


def test_a_second_of_video_is_256_tokens():
    """What a CPU can fill: 8 frames are 4 slices of 8x8."""
    tokenizer = load_settings(CONFIG).tokenizer
    assert (tokenizer.image_size // tokenizer.patch_size) ** 2 * WIDE_WORLD.fps / tokenizer.temporal_patch_size == 256


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """Both programs with networks of a few thousand weights and two steps; all else is the file's own."""
    folder, text = tmp_path_factory.mktemp("large"), CONFIG.read_text()
    for key, value in TINY.items():
        text, count = re.subn(rf"^{key} = [^#\n]*", f"{key} = {value}  ", text, flags=re.MULTILINE)
        assert count, key
    (folder / "large.toml").write_text(text)
    for program in (run_tokenizer_training, run_generator_training):
        program(folder / "large.toml", folder / "out", steps=2, on_log=lambda line: None, on_note=lambda note: None)
    return folder / "out"


def test_both_programs_run_on_it(run_folder):
    model = load_model(run_folder / "model")
    facts = dict(model.info.training)
    assert len(facts.pop("tokenizer_data")) == 16
    assert facts == {"tokenizer_steps": 2, "tokenizer_seed": 0, "generator_steps": 2, "generator_seed": 0}
    assert model.tokenizer.codebook_size == 2**20 == model.generator.config.codebook_size and model.generator.config.factor_size == 1024
    assert all(value.isfinite().all() for network in (model.tokenizer, model.generator) for value in network.state_dict().values())


def test_its_stories_are_tokenised_with_all_their_scenes(run_folder):
    stories = StoryTokens.load(next(run_folder.rglob("*tokens*.safetensors"), None) or next(run_folder.rglob("stories*.safetensors")))
    assert stories.tokens.shape == (3, 7, 8, 8) and stories.tokens.min() >= 0 and stories.tokens.max() < 2**20
    assert all(re.fullmatch(r"[a-z, ]*", caption) for caption in stories.captions)
