"""Stories painted once and kept as bytes on the network's device, so that a step of many clips paints none."""

import random

import torch
from torch import Tensor

from phenaki.data.clip_source import ClipSource
from phenaki.data.storybook import StorybookWorld
from phenaki.devices import sent
from phenaki.pixels import from_bytes, to_bytes
from phenaki.training.memory import free_memory, gigabytes


class ClipBank(ClipSource):
    """Clips cut from a fixed number of stories of a world."""

    def __init__(self, world: StorybookWorld, seed: int, num_stories: int, num_frames: int, align: int, max_scenes: int = 3):
        """Paints the stories that `world.captioned_clips` gives for these arguments. ValueError where their bytes do not fit."""
        size, device = world.config.size, world.device
        self.fingerprint = f"{world.fingerprint} {num_stories} stories of {num_frames} frames, seed {seed}, up to {max_scenes} scenes"
        needed, free = num_stories * num_frames * 3 * size**2, free_memory(device)
        if free is not None and needed > free:
            lacks = f"num_stories {num_stories}: painted they take {gigabytes(needed)}, {gigabytes(free)} are free on {device}"
            raise ValueError(f"{lacks}. Lower it, or set it to 0, which paints every clip anew")
        self.frames = torch.empty(num_stories, num_frames, 3, size, size, dtype=torch.uint8, device=device)
        begin = 0
        for videos, _ in world.captioned_clips(seed, num_stories, num_frames, align, max_scenes):
            self.frames[begin : begin + len(videos)] = to_bytes(videos).transpose(1, 2)
            begin += len(videos)

    def clips(self, seed: int, first: int, count: int, num_frames: int, align: int) -> Tensor:
        """Clips first .. first + count - 1 of a run, (b c f h w) float in [-1, 1]: each begins a multiple of `align` frames into a story."""
        num_stories, length = self.frames.shape[:2]
        begins = []
        for index in range(first, first + count):
            rng = random.Random(f"bank {seed} {index}")
            begins.append(rng.randrange(num_stories) * length + align * rng.randrange((length - num_frames) // align + 1))
        rows = torch.tensor(begins)[:, None] + torch.arange(num_frames)
        return from_bytes(self.frames.flatten(0, 1)[sent(rows, self.frames.device)]).transpose(1, 2)
