"""Tokenised stories: what generator training reads, made once so that a step renders, encodes and embeds nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from phenaki.atomic import put


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
        put(part, path)

    @classmethod
    def load(cls, path: Path) -> "StoryTokens":
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return cls(**tensors, description=file.metadata()["description"])


class Told(Protocol):
    """A video whose scenes are known: each has a caption and num_frames. StoryTruth is one."""

    @property
    def scenes(self) -> Sequence: ...


class ToldSource(Protocol):
    """Where told videos come from: StorybookWorld, Footage."""

    def told_clips(self, seed: int, count: int, num_frames: int, align: int, max_scenes: int) -> Iterator[tuple[Tensor, Sequence[Told]]]: ...


def slice_scenes(story: Told, temporal_patch_size: int) -> list[tuple[int, int]]:
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
    source: ToldSource,
    encode: Callable[[Tensor], Tensor],
    encode_text: Callable[[list[str]], list[Tensor]],
    *,
    seed: int,
    num_stories: int,
    num_slices: int,
    temporal_patch_size: int,
    max_scenes: int,
    description: str,
) -> StoryTokens:
    """Encodes told videos of `num_slices` slices, and embeds their captions (each distinct one once)."""
    num_frames = 1 + temporal_patch_size * (num_slices - 1)
    number: dict[str, int] = {}
    tokens, starts, ends, said = [], [], [], []
    for video, stories in source.told_clips(seed, num_stories, num_frames, temporal_patch_size, max_scenes):
        tokens.append(encode(video).to("cpu", torch.int32))
        for story in stories:
            by_slice = []
            for (first, end), scene in zip(slice_scenes(story, temporal_patch_size), story.scenes, strict=True):
                caption = number.setdefault(scene.caption, len(number))
                by_slice += [(first, end, caption)] * (end - first)
            for column, values in zip((starts, ends, said), zip(*by_slice, strict=True), strict=True):
                column.append(torch.tensor(values))
    captions = list(number)
    texts = [text for at in range(0, len(captions), 256) for text in encode_text(captions[at : at + 256])]
    lengths = torch.tensor([len(text) for text in texts])
    spans = torch.stack([lengths.cumsum(0) - lengths, lengths.cumsum(0)], dim=1)
    stacked = [torch.stack(column) for column in (starts, ends, said)]
    return StoryTokens(torch.cat(tokens), *stacked, torch.cat(texts).half(), spans, description)
