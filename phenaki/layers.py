"""The parts both networks are made of: attention with rotary positions and cached keys, and the gated feed-forward.

Sources: RoPE (Su et al. 2021, arXiv 2104.09864), QK-norm (Dehghani et al. 2023, arXiv 2302.05442),
SwiGLU (Shazeer 2020, arXiv 2002.05202), RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467).
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

ROPE_BASE = 100.0  # of the rotary wavelengths: grids here are tens of positions long, not thousands

MAX_SHORT_LENGTH = 16  # of what attends and is attended to: slices of a tokenizer over time

MOST_REMEMBERED = 64  # tensors of a network: one for each shape that it meets

MAX_LAYERS = 1000  # of one kind: building a network takes time for each of them, before its weights are looked at


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one layer, (b heads n head_dim) each."""

    keys: Tensor
    values: Tensor

    def followed_by(self, other: "KeysValues") -> "KeysValues":
        return KeysValues(torch.cat([self.keys, other.keys], dim=2), torch.cat([self.values, other.values], dim=2))

    def repeated(self, times: int) -> "KeysValues":
        """Keys and values of a batch `times` as large: copies one after the other."""
        return KeysValues(self.keys.repeat(times, 1, 1, 1), self.values.repeat(times, 1, 1, 1))

    def turned(self, turns: Tensor) -> "KeysValues":
        """With the keys at their positions: turned by the angles of `turns`, (2, n, head_dim / 2)."""
        return KeysValues(rotate(self.keys, turns), self.values)

    def last(self, count: int) -> "KeysValues":
        """Of the last `count` positions: of all where there are fewer, of none for 0."""
        begin = max(self.keys.shape[2] - count, 0)
        return KeysValues(self.keys[:, :, begin:], self.values[:, :, begin:])


def rotary_angles(positions: Tensor, head_dim: int) -> Tensor:
    """Angles of the rotary embedding for positions on any number of axes.

    positions: (n, axes) float. The head_dim / 2 pairs of channels are shared out evenly over the axes (the first axes
    take the surplus); on each axis pair i of m turns by position * base^(-i/m). Returns (n, head_dim / 2) radians.
    """
    pairs, axes = head_dim // 2, positions.shape[-1]
    angles = []
    for axis in range(axes):
        count = pairs // axes + (axis < pairs % axes)
        frequencies = ROPE_BASE ** (-torch.arange(count, device=positions.device, dtype=torch.float32) / count)
        angles.append(positions[:, axis, None].float() * frequencies)
    return torch.cat(angles, dim=-1)


def rotary_turns(positions: Tensor, head_dim: int) -> Tensor:
    """Cosines and sines of the rotary angles of positions (n, axes), (2, n, head_dim / 2): computed once for all layers of a pass."""
    angles = rotary_angles(positions, head_dim)
    return torch.stack([angles.cos(), angles.sin()])


def remembered(known: dict[Hashable, Tensor], key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
    """A tensor that depends on `key` alone, kept in `known` while a network is trained, for each step asks for it again.

    Without gradients it is computed anew: what is kept may neither be an inference tensor nor lie in the memory of a CUDA graph.
    """
    if not torch.is_grad_enabled():
        return compute()
    if key not in known:
        if len(known) == MOST_REMEMBERED:
            known.clear()
        known[key] = compute()
    return known[key]


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turns the channel pairs (i, i + head_dim/2) of x (..., n, head_dim) by the angles of turns (2, n, head_dim / 2)."""
    cos, sin = turns.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class RMSNorm(nn.RMSNorm):
    """Computed in the numbers of its weights: under autocast what comes in may have fewer bits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def check_heads(dim: int, heads: int) -> None:
    """ValueError where a width cannot be shared by so many heads, each of which turns pairs of numbers."""
    if dim % heads or (dim // heads) % 2:
        raise ValueError(f"heads {heads}: each needs a whole, even part of dim {dim}")


class Attention(nn.Module):
    """Multi-head attention with QK-norm and rotary positions; `source_dim` is the width of what it attends to."""

    def __init__(self, dim: int, heads: int, source_dim: int | None = None):
        super().__init__()
        check_heads(dim, heads)
        self.heads, self.head_dim = heads, dim // heads
        self.to_queries = nn.Linear(dim, dim, bias=False)
        self.to_keys_values = nn.Linear(source_dim or dim, 2 * dim, bias=False)
        self.query_norm = RMSNorm(self.head_dim)
        self.key_norm = RMSNorm(self.head_dim)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def keys_values(self, source: Tensor) -> KeysValues:
        """source (b n source_dim) -> normalised keys, without positions, and values."""
        keys, values = rearrange(self.to_keys_values(source), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return KeysValues(self.key_norm(keys), values)

    def queries(self, x: Tensor) -> Tensor:
        """x (b n dim) -> normalised queries (b h n d), without positions."""
        return self.query_norm(rearrange(self.to_queries(x), "b n (h d) -> b h n d", h=self.heads))

    def attend(self, queries: Tensor, source: KeysValues, mask: Tensor | None = None) -> Tensor:
        """queries (b h n d); mask: boolean, True = may be seen, broadcast to (b h n m). Returns (b n dim)."""
        is_short = queries.is_cuda and max(queries.shape[2], source.keys.shape[2]) <= MAX_SHORT_LENGTH
        attention = short_attention if is_short else F.scaled_dot_product_attention
        out = attention(queries, source.keys, source.values, attn_mask=mask)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


def short_attention(queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """torch's scaled_dot_product_attention as products and sums, for sequences of a few: its kernels for GPUs fill up tiles of 64 and more.

    queries (b h n d), keys and values (b h m d); attn_mask: boolean, True = may be seen, broadcast to (b h n m), something for each query.
    Returns (b h n d).
    """
    scores = (queries[..., :, None, :] * keys[..., None, :, :]).sum(-1, dtype=torch.float32) * queries.shape[-1] ** -0.5  # (b h n m)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    shares = scores.softmax(-1).to(values.dtype)
    return (shares[..., None] * values[..., None, :, :]).sum(-2)


class FeedForward(nn.Module):
    """SwiGLU. Its three matrices have as many weights as the two of an MLP of hidden width `mlp_dim`."""

    def __init__(self, dim: int, mlp_dim: int):
        super().__init__()
        hidden = mlp_dim * 2 // 3
        self.to_hidden = nn.Linear(dim, 2 * hidden, bias=False)
        self.to_out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.to_hidden(x).chunk(2, dim=-1)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # compiled, it is one kernel, and in place would be two
            return self.to_out(value * F.silu(gate))
        return self.to_out(F.silu(gate, inplace=True).mul_(value))  # the same, without two more of the widest tensors that there are


class PlaceEmbedding(nn.Module):
    """Where a token stands in the picture: a linear map of sines of its row and column as shares of the height and width.

    Rotary positions are relative, so alone they give every hidden token of an unknown chunk the same answer; shares of
    the picture tell them apart and mean the same at any resolution. Octaves as in NeRF (Mildenhall et al. 2020, Eq. 4).
    """

    NUM_OCTAVES = 6

    def __init__(self, dim: int):
        super().__init__()
        self.to_vectors = nn.Linear(4 * self.NUM_OCTAVES, dim)
        self._known: dict[Hashable, Tensor] = {}

    def forward(self, height: int, width: int) -> Tensor:
        """(h, w, dim)."""
        device = self.to_vectors.weight.device
        waves = remembered(self._known, (height, width, device), lambda: self._waves(height, width, device))
        return rearrange(self.to_vectors(waves), "(h w) d -> h w d", h=height)

    def _waves(self, height: int, width: int, device: torch.device) -> Tensor:
        """Sines and cosines of all places, (h*w, 4 * NUM_OCTAVES)."""
        places = grid_positions(height, width, device) + 0.5
        shares = torch.stack([places[:, 0] / height, places[:, 1] / width], dim=1)
        octaves = torch.pi * 2.0 ** torch.arange(self.NUM_OCTAVES, device=device)
        waves = (shares[:, :, None] * octaves).flatten(1)  # (h*w, 2 * NUM_OCTAVES)
        return torch.cat([waves.sin(), waves.cos()], dim=-1)


def grid_positions(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Rows and columns of a grid in raster order, (h*w, 2) float."""
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    return torch.cartesian_prod(rows, columns)
