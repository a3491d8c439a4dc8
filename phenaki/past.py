"""What carries over from chunk to chunk inside a segment of a story: recent slices, the anchor, and what the decoder remembers.

The recent slices are the last ones as they were made, or, in the paper's way (Villegas et al. 2022, on auto-regressive generation), the last
frames decoded and encoded anew, as the start of a video of its own. Either is a few slices, however long the story.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from phenaki.cuda_graphs import replayed
from phenaki.cvivit import CViViT, Stream
from phenaki.layers import KeysValues


@dataclass(frozen=True)
class Anchor:
    """A slice that a scene keeps seeing. tokens: (h w) int64."""

    tokens: Tensor
    num_before: int | None  # slices of the segment before it; None: recalled by name from an earlier scene


@dataclass
class Past:
    """What is remembered inside a segment. slices: the recent ones, (h w) int64 each.

    frames: (1 c f h w) in [-1, 1], the last ones that were decoded, f = 1 + pt*k; None where slices stay as they were made.
    """

    num_unseen: int = 0  # frames before the segment's first one: of a video that it goes on from
    decoder: Stream = field(default_factory=Stream)
    slices: list[Tensor] = field(default_factory=list)
    num_slices: int = 0
    num_frames: int = 0
    anchor: Anchor | None = None
    frames: Tensor | None = None

    @property
    def starts_a_video(self) -> bool:
        """Whether the first of the recent slices is that of a video's first frame."""
        return self.frames is not None or self.num_slices == len(self.slices)

    @property
    def distant_anchor(self) -> Tensor | None:
        """The anchor, where it is not among the recent slices. One of this scene is only seen with recent slices before the chunk."""
        if self.anchor is None:
            return None
        if self.anchor.num_before is None:
            return self.anchor.tokens
        is_recent = self.anchor.num_before >= self.num_slices - len(self.slices)
        return self.anchor.tokens if self.slices and not is_recent else None

    def remember(self, tokens: Tensor, keep: int) -> None:
        """Adds slices (t h w) and forgets all but the last `keep`."""
        self.slices = (self.slices + list(tokens))[-keep:] if keep else []
        self.num_slices += len(tokens)

    @torch.no_grad()
    def decode(self, tokenizer: CViViT, tokens: Tensor) -> Tensor:
        """Slices (t h w) -> their frames (1 c f h w) in [-1, 1], going on from what was decoded before."""
        frames, memory = replayed(decode_after, tokenizer, tokens[None], self.decoder.memory, self.decoder.num_slices == 0)
        self.decoder = Stream(self.decoder.num_slices + len(tokens), memory)
        return frames

    @torch.no_grad()
    def encode_anew(self, tokenizer: CViViT, frames: Tensor, keep: int) -> None:
        """Puts slices of the last frames in place of the recent ones, `keep` of them at most; the decoder goes on from these.

        frames: (1 c f h w) in [-1, 1], what the slices decoded to that were remembered last.
        """
        frames = frames if self.frames is None else torch.cat([self.frames, frames], dim=2)
        self.frames = frames[:, :, -tokenizer.num_frames(keep) :].clone()
        tokens, memory = replayed(begin_with, tokenizer, self.frames)
        self.slices, self.decoder = list(tokens[0]), Stream(tokens.shape[1], memory)


def decode_after(tokenizer: CViViT, tokens: Tensor, memory: list[KeysValues | None], starts: bool) -> tuple[Tensor, list[KeysValues | None]]:
    """Slices (b t h w) -> frames (b c f h w) in [-1, 1], and the decoder's memory after them. starts: they begin a video."""
    stream = Stream(0 if starts else 1, list(memory))
    return tokenizer.decode(tokens, stream).clamp(-1, 1), stream.memory


def begin_with(tokenizer: CViViT, frames: Tensor) -> tuple[Tensor, list[KeysValues | None]]:
    """Frames (b c f h w) in [-1, 1] as the start of a video: slices (b t h w), and the decoder's memory after them."""
    tokens, stream = tokenizer.encode(frames), Stream()
    tokenizer.decode(tokens, stream)
    return tokens, stream.memory
