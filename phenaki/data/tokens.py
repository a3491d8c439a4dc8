"""Tokenised stories: what generator training reads, made once so that a step renders, encodes and embeds nothing."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from phenaki.data.storybook import StorybookWorld, StoryTruth


@dataclass(frozen=True)
class StoryTokens:
    """N stories of T slices.

    tokens: (N T h w) int32; scene_start, scene_end: (N T) int64, first slice of the scene that a slice shows, and one past its last;
    caption: (N T) int64, index of its caption; texts: (L d) float16, all captions' encodings one after the other;
    text_spans: (C 2) int64, where each caption's encoding begins and ends.
    """

    tokens: Tensor
    scene_start: Tensor
    scene_end: Tensor
    caption: Tensor
    texts: Tensor
    text_spans: Tensor
    description: str  # of what made it: a file made by other weights is not used

    def text(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Captions by index (b,) -> text (b l d) float32 padded with zeros, text_mask (b l)."""
        parts = [self.texts[start:end].float() for start, end in self.text_spans[captions].tolist()]
        text = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        lengths = torch.tensor([len(part) for part in parts])
        return text, torch.arange(text.shape[1])[None] < lengths[:, None]

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        part = path.with_name(f".{path.name}.part")
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        save_file(tensors, part, {"description": self.description})
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> "StoryTokens":
        with safe_open(path, framework="pt") as file:
            return cls(**{name: file.get_tensor(name) for name in file.keys()}, description=file.metadata()["description"])


def slice_scenes(story: StoryTruth, temporal_patch_size: int) -> list[tuple[int, int]]:
    """The scenes of a story whose scenes change at frames 1 + pt*k, as (first slice, one past the last slice)."""
    spans, frame, first = [], 0, 0
    for scene in story.scenes:
        frame += scene.num_frames
        end = 1 + (frame - 1) // temporal_patch_size
        spans.append((first, end))
        first = end
    return spans


@torch.no_grad()
def make_story_tokens(
    world: StorybookWorld,
    encode: Callable[[Tensor], Tensor],
    encode_text: Callable[[list[str]], list[Tensor]],
    *,
    seed: int,
    num_stories: int,
    num_slices: int,
    temporal_patch_size: int,
    max_scenes: int,
    description: str,
    on_progress: Callable[[int], None] = lambda done: None,
) -> StoryTokens:
    """Renders stories seed/0 to seed/num_stories - 1, encodes them, and embeds their captions (each distinct one once)."""
    num_frames = 1 + temporal_patch_size * (num_slices - 1)
    stories = [world.story(seed, i, num_frames, max_scenes=max_scenes, align=temporal_patch_size) for i in range(num_stories)]
    captions = list(dict.fromkeys(scene.caption for story in stories for scene in story.scenes))
    number = {text: i for i, text in enumerate(captions)}
    tokens, starts, ends, said = [], [], [], []
    for begin in range(0, num_stories, 16):
        batch = stories[begin : begin + 16]
        tokens.append(encode(world.render(batch)).to(torch.int32).cpu())
        for story in batch:
            spans = slice_scenes(story, temporal_patch_size)
            by_slice = [(first, end, number[scene.caption]) for (first, end), scene in zip(spans, story.scenes, strict=True) for _ in range(first, end)]
            for column, values in zip((starts, ends, said), zip(*by_slice, strict=True), strict=True):
                column.append(torch.tensor(values))
        on_progress(begin + len(batch))
    texts = [text for at in range(0, len(captions), 256) for text in encode_text(captions[at : at + 256])]
    stops = torch.tensor([len(text) for text in texts]).cumsum(0)
    spans = torch.stack([stops - torch.tensor([len(text) for text in texts]), stops], dim=1)
    return StoryTokens(
        torch.cat(tokens), torch.stack(starts), torch.stack(ends), torch.stack(said), torch.cat(texts).half(), spans, description
    )
