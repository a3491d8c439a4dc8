"""A world drawn by code that a referee learns in seconds, and what tests of the referee share."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.world import SMALL_WORLD, SceneTruth, StoryTruth
from phenaki.evaluation.referee import WIDER, Referee, labels_of
from phenaki.training.referee_bank import Bank, BankSettings

TINY_WORLD = replace(SMALL_WORLD, actors=("panda", "fox", "octopus"), places=("beach", "city", "meadow"), times=("day", "night"))
COMPANY_WORLD = replace(TINY_WORLD, companion_prob=0.5, objects=("tent",), object_prob=0.5)


@pytest.fixture(scope="session")
def tiny_world() -> StorybookWorld:
    return open_world(TINY_WORLD)


@pytest.fixture
def referee() -> Referee:
    """Random weights; its BatchNorms have seen something, so that they are no identities."""
    torch.manual_seed(3)
    return having_seen_something(Referee(labels_of(TINY_WORLD)))


@pytest.fixture
def wider_referee() -> Referee:
    """One that looks at places and at the frames around, of a world with company."""
    torch.manual_seed(3)
    return having_seen_something(Referee(labels_of(COMPANY_WORLD), replace(WIDER, width=12, motion_width=4)))


def having_seen_something(network: Referee) -> Referee:
    with torch.no_grad():
        network(torch.rand(2, 3, 5, 64, 64) * 2 - 1)
    return network.eval()


def tiny_coder() -> CViViT:
    """A tokenizer of 64x64 pixels with random weights."""
    torch.manual_seed(1)
    sizes = {"dim": 16, "heads": 2, "mlp_dim": 32, "stem_dim": 8, "stem_blocks": 0, "head_blocks": 0}
    return CViViT(CViViTConfig(patch_size=16, encoder_layers="s", decoder_layers="s", fsq_levels=(4, 4), **sizes)).eval()


def tiny_bank(folder: Path, num_clips: int) -> Bank:
    """One that any process makes alike."""
    return Bank(folder, open_world(TINY_WORLD), tiny_coder(), BankSettings(num_clips, num_frames=3, story_frames=3, max_scenes=2))


def story(*scenes: dict, start_x: float = 0.5) -> StoryTruth:
    """Scenes of a panda that stands on the beach by day for 8 frames, each otherwise where it says so."""
    plain = SceneTruth("panda", "beach", "day", "clear", "stands", "still", "", 8)
    return StoryTruth(tuple(replace(plain, **scene) for scene in scenes), start_x, 44 / 64, 0)
