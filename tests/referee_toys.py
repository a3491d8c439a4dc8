"""A world drawn by code that a referee learns in seconds, and what tests of the referee share."""

from dataclasses import replace

import pytest
import torch

from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.world import SMALL_WORLD, SceneTruth, StoryTruth
from phenaki.evaluation.referee import Referee, labels_of

TINY_WORLD = replace(SMALL_WORLD, actors=("panda", "fox", "octopus"), places=("beach", "city", "meadow"), times=("day", "night"))


@pytest.fixture(scope="session")
def tiny_world() -> StorybookWorld:
    return open_world(TINY_WORLD)


@pytest.fixture
def referee() -> Referee:
    """Random weights; its BatchNorms have seen something, so that they are no identities."""
    torch.manual_seed(3)
    network = Referee(labels_of(TINY_WORLD))
    with torch.no_grad():
        network(torch.rand(2, 3, 5, 64, 64) * 2 - 1)
    return network.eval()


def story(*scenes: dict, start_x: float = 0.5) -> StoryTruth:
    """Scenes of a panda that stands on the beach by day for 8 frames, each otherwise where it says so."""
    plain = SceneTruth("panda", "beach", "day", "clear", "stands", "still", "", 8)
    return StoryTruth(tuple(replace(plain, **scene) for scene in scenes), start_x, 44 / 64, 0)
