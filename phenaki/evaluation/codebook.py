"""How much of a codebook is in use: distinct values and perplexity, of whole tokens and of the parts they are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodebookUse:
    """Use of one alphabet.

    used: values that occurred, of `size`; perplexity: e^entropy of how often each did, the number of equally frequent values
    that would be as hard to guess, in [1, used]. Neither can be above the number of tokens counted.
    """

    name: str
    size: int
    used: int
    perplexity: float

    @property
    def share(self) -> float:
        return self.used / self.size


class TokenCounts:
    """How often each token has occurred, held for the tokens that have: memory grows with distinct tokens, not with clips."""

    def __init__(self) -> None:
        self.tokens = torch.empty(0, dtype=torch.int64)
        self.counts = torch.empty(0, dtype=torch.int64)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def add(self, tokens: Tensor) -> None:
        """tokens: int64 of any shape."""
        new, times = tokens.flatten().cpu().unique(return_counts=True)
        self.tokens, place = torch.cat([self.tokens, new]).unique(return_inverse=True)
        self.counts = torch.zeros_like(self.tokens).index_add_(0, place, torch.cat([self.counts, times]))

    def use(self, name: str, size: int) -> CodebookUse:
        """Of whole tokens, of a codebook of `size`."""
        return CodebookUse(name, size, len(self.tokens), perplexity(self.counts))

    def digit_use(self, name: str, sizes: Sequence[int]) -> list[CodebookUse]:
        """Of a token's digits: token = sum over i of digit[i] * (sizes[0] * ... * sizes[i-1]); each is named `name` and its number."""
        uses, rest = [], self.tokens
        for number, size in enumerate(sizes, 1):
            counts = torch.zeros(size, dtype=torch.int64).index_add_(0, rest % size, self.counts)
            uses.append(CodebookUse(f"{name} {number}", size, int((counts > 0).sum()), perplexity(counts)))
            rest = rest // size
        return uses


def perplexity(counts: Tensor) -> float:
    """e^entropy of values that occurred `counts` times each, in nats; zero counts say nothing. ValueError where all are zero."""
    share = counts[counts > 0].double()
    if not len(share):
        raise ValueError("no tokens were counted: perplexity needs at least one")
    share = share / share.sum()
    return float(torch.exp(-(share * share.log()).sum()))
