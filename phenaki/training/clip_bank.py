"""Stories painted once and kept as bytes where the network is: a step of many clips then tells and paints none."""

import random

import torch
from torch import Tensor

from phenaki.data.storybook import StorybookWorld
from phenaki.devices import sent
from phenaki.pixels import from_bytes, to_bytes

PAINTED = 128  # stories at once


class ClipBank:
    """Clips cut from so many stories of a world (training/tokenizer.py: Source)."""

    def __init__(self, world: StorybookWorld, seed: int, num_stories: int, num_frames: int, align: int, max_scenes: int = 3):
        """The stories are those that `world.told_clips` tells of the same arguments."""
        size = world.config.size
        self.fingerprint = f"{world.fingerprint} {num_stories} stories of {num_frames} frames, seed {seed}, up to {max_scenes} scenes"
        self.frames = torch.empty(num_stories, num_frames, 3, size, size, dtype=torch.uint8, device=world.device)
        for first in range(0, num_stories, PAINTED):
            numbers = range(first, min(first + PAINTED, num_stories))
            stories = [world.story(seed, index, num_frames, max_scenes=max_scenes, align=align) for index in numbers]
            self.frames[first : first + len(stories)] = to_bytes(world.render(stories)).transpose(1, 2)

    def clips(self, seed: int, first: int, count: int, num_frames: int, align: int) -> Tensor:
        """Clips first .. first + count - 1 of a run, (b c f h w) float in [-1, 1]: each begins a multiple of `align` frames into a story."""
        num_stories, length = self.frames.shape[:2]
        if num_frames > length:
            told = f"clips of {num_frames} frames: the stories have {length}"
            raise ValueError(f"{told}; make them longer (story_slices) or the clips shorter (num_slices)")
        begins = []
        for index in range(first, first + count):
            rng = random.Random(f"bank {seed} {index}")
            begins.append(rng.randrange(num_stories) * length + align * rng.randrange((length - num_frames) // align + 1))
        rows = torch.tensor(begins)[:, None] + torch.arange(num_frames)
        return from_bytes(self.frames.flatten(0, 1)[sent(rows, self.frames.device)]).transpose(1, 2)
