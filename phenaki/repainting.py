"""Making parts of a clip anew, chunk by chunk: its tokens are known, those of a region are hidden and filled again.

The clip goes through the tokenizer as a stream and is decoded as one, and each chunk is filled in sight of the slices before
it as they have become; so any length is done in memory that does not grow. Tokens that are known are never touched. They are
not blind to the region: the tokenizer's attention has seen all of the clip's pixels, in training as here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import ceil

import torch
from einops import rearrange
from torch import Tensor

from phenaki.cvivit import CViViT, Stream
from phenaki.devices import device_of
from phenaki.director import SceneFiller, SceneText
from phenaki.maskgit import MaskGIT
from phenaki.masking import halton_order
from phenaki.past import Anchor, Past
from phenaki.sampling import NoiseKey, SamplingOptions


@dataclass(frozen=True)
class Repainted:
    """What a chunk has become. frames: (f c h w) float in [-1, 1]; tokens: (t h w) int64; known: (t h w), True = the clip's own token."""

    frames: Tensor
    tokens: Tensor
    known: Tensor


def plan_chunks(touched: Sequence[bool], chunk_slices: int) -> list[tuple[int, int]]:
    """Slices [start, stop) of each chunk of a clip, of at most chunk_slices, from which of its slices are touched.

    A run of touched slices takes the slice after it with it, so that its last chunk sees where it has to arrive.
    """
    reached = [here or before for here, before in zip(touched, [False, *touched], strict=False)]
    chunks, start = [], 0
    for _, run in groupby(reached):
        length = len(list(run))
        parts = ceil(length / chunk_slices)
        edges = [start + length * part // parts for part in range(parts + 1)]
        chunks += pairwise(edges)
        start += length
    return chunks


def spared(region: Tensor, keep: float) -> Tensor:
    """A region (t h w) without a share `keep` in [0, 1) of its places, which are spread evenly over it (in Halton order).

    A region that has a place at all keeps one.
    """
    order = halton_order(*region.shape).to(region.device)
    own = order[region.flatten()]
    if not len(own):
        return region
    bound = own.sort().values[int(keep * len(own))]
    return region & (order >= bound).view(region.shape)


class Repainter:
    """Takes a clip chunk by chunk and gives it back with parts of it made anew."""

    def __init__(self, tokenizer: CViViT, generator: MaskGIT, text: SceneText, options: SamplingOptions, seed: int, keep: float = 0.0):
        self.tokenizer, self.generator, self.seed, self.keep = tokenizer, generator, seed, keep
        self.filler = SceneFiller(generator, text, options)
        self.source, self.past, self.num_chunks = Stream(), Past(), 0

    @torch.no_grad()
    def paint(self, video: Tensor | None, region: Tensor) -> Repainted:
        """The next chunk.

        video: (f c h w) float in [-1, 1], the clip's next frames, 1 + pt*k of them at its start and pt*k later; None after its end.
        region: (t h w), True = made anew; slices of it beyond the video's are made from the prompt and the past alone.
        """
        known, hidden = self._tokens(video, region)
        key = NoiseKey(self.seed, 0, self.num_chunks)
        tokens = self.filler.fill(len(region), self.past, tuple(region.shape[1:]), key, known.masked_fill(hidden, -1)) if hidden.any() else known
        self.past.anchor = self.past.anchor or Anchor(tokens[0], 0)
        frames = self.past.decode(self.tokenizer, tokens)[0]
        self.past.remember(tokens, self.generator.config.context_slices)
        self.num_chunks += 1
        return Repainted(rearrange(frames, "c f h w -> f c h w"), tokens, ~hidden)

    def _tokens(self, video: Tensor | None, region: Tensor) -> tuple[Tensor, Tensor]:
        """The clip's tokens, -1 after its end, and which of them are hidden; (t h w) both."""
        region = region.to(device_of(self.generator))
        known = torch.full(region.shape, -1, device=region.device)
        if video is None:
            return known, torch.ones_like(region)
        own = self.tokenizer.encode(rearrange(video, "f c h w -> 1 c f h w"), self.source)[0]
        if len(own) > len(region) or own.shape[1:] != region.shape[1:]:
            raise ValueError(f"region of shape {tuple(region.shape)}: these frames are slices {tuple(own.shape)}, the region needs as many at least")
        known[: len(own)] = own
        hidden = torch.ones_like(region)
        hidden[: len(own)] = spared(region[: len(own)], self.keep)
        return known, hidden
