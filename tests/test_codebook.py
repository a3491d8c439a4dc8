"""Codebook use: counts in batches equal counts of the whole, and alphabets whose perplexity is known."""

import pytest
import torch

from phenaki.evaluation.codebook import TokenCounts, perplexity
from phenaki.maskgit import split_token
from phenaki.quantizer import FSQ


def counted(*batches: torch.Tensor) -> TokenCounts:
    counts = TokenCounts()
    for batch in batches:
        counts.add(batch)
    return counts


def test_batches_add_up_to_the_whole():
    tokens = torch.randint(0, 50, (7, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    parts, whole = counted(*tokens.split(2)), counted(tokens)
    assert torch.equal(parts.tokens, whole.tokens) and torch.equal(parts.counts, whole.counts)
    assert torch.equal(whole.counts, torch.bincount(tokens.flatten())[whole.tokens])
    assert parts.total == tokens.numel()


def test_perplexity_of_known_alphabets():
    assert perplexity(torch.tensor([5, 5, 5, 5])) == pytest.approx(4)
    assert perplexity(torch.tensor([9, 0, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([1, 1, 2])) == pytest.approx(2**1.5)  # entropy 1.5 bits
    with pytest.raises(ValueError, match="no tokens"):
        perplexity(torch.zeros(3, dtype=torch.int64))


def test_use_of_whole_tokens():
    use = counted(torch.tensor([3, 3, 7, 7])).use("whole token", 8)
    assert (use.used, use.size, use.share) == (2, 8, 0.25) and use.perplexity == pytest.approx(2)


def test_fsq_channels_are_counted_as_the_quantizer_numbers_them():
    levels = (3, 4, 2)
    fsq = FSQ(8, levels)
    tokens = torch.arange(fsq.codebook_size)
    digits = tokens[:, None] // fsq.basis % fsq.levels
    kept = tokens[(digits[:, 1] == 2) & (digits[:, 2] == 1)]  # the first channel free, the others fixed
    uses = counted(kept, kept).digit_use("channel", levels)
    assert [use.used for use in uses] == [3, 1, 1] and [use.size for use in uses] == [3, 4, 2]
    assert [use.name for use in uses] == ["channel 1", "channel 2", "channel 3"]
    assert uses[0].perplexity == pytest.approx(3) and uses[1].perplexity == pytest.approx(1)


def test_factors_are_counted_as_the_generator_splits_them():
    tokens = torch.tensor([0, 1, 2, 3]) + 16 * torch.tensor([5, 5, 5, 9])
    uses = counted(tokens).digit_use("factor", [16, 16])
    assert [use.used for use in uses] == [part.unique().numel() for part in split_token(tokens, 16, 2)] == [4, 2]


def test_memory_grows_with_distinct_tokens_only():
    counts = counted(*(torch.full((4, 4), index % 3) for index in range(50)))
    assert len(counts.tokens) == 3 and counts.total == 800
