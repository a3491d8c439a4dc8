"""Vectors <-> tokens: round trips, every entry within reach, and gradients that go straight through."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from conftest import TOKENIZERS, build_tokenizer
from torch import Tensor

from phenaki.quantizer import FSQ, VQ

LEVELS = (3, 4, 2, 5)


def open_fsq() -> FSQ:
    """An FSQ whose code is its input."""
    fsq = FSQ(len(LEVELS), LEVELS)
    with torch.no_grad():
        fsq.project_in.weight.copy_(torch.eye(len(LEVELS)))
        fsq.project_in.bias.zero_()
    return fsq


@pytest.mark.parametrize("make", [lambda: FSQ(16, LEVELS), lambda: VQ(16, 50, 8)], ids=["fsq", "vq"])
def test_tokens_give_back_the_vectors_of_the_forward_pass(make):
    torch.manual_seed(0)
    quantizer = make()
    quantized = quantizer(3 * torch.randn(2, 3, 40, 16))
    assert quantized.tokens.shape == (2, 3, 40) and quantized.tokens.dtype == torch.int64
    assert quantized.tokens.unique().numel() > 20
    assert quantized.tokens.min() >= 0 and quantized.tokens.max() < quantizer.codebook_size
    torch.testing.assert_close(quantizer.vectors(quantized.tokens), quantized.vectors, atol=1e-5, rtol=1e-5)


def test_all_fsq_tokens_are_reached_and_distinct():
    fsq = open_fsq()
    assert fsq.codebook_size == math.prod(LEVELS)
    values = [torch.linspace(-1, 1, levels) * (levels - 1) / (levels - 1 + 0.998) for levels in LEVELS]  # of tanh, at every level
    tokens = fsq(torch.cartesian_prod(*values).atanh()).tokens
    assert sorted(tokens.tolist()) == list(range(fsq.codebook_size))
    vectors = fsq.vectors(torch.arange(fsq.codebook_size))
    assert (torch.cdist(vectors, vectors) + torch.eye(fsq.codebook_size) > 1e-4).all()


def test_fsq_channels_take_evenly_spaced_values_and_the_nearest_one():
    fsq = open_fsq()
    with torch.no_grad():
        fsq.project_out.weight.copy_(torch.eye(len(LEVELS)))
        fsq.project_out.bias.zero_()
    code = torch.linspace(-6, 6, 2001)[:, None].expand(-1, len(LEVELS))
    vectors = fsq(code).vectors
    for channel, levels in enumerate(LEVELS):
        allowed = torch.linspace(-1, 1, levels)
        nearest = (vectors[:, channel, None] - allowed).abs().min(1)
        assert nearest.values.max() < 1e-5 and set(nearest.indices.tolist()) == set(range(levels))
        digits = fsq.digits(code)[:, channel]
        assert ((vectors[:, channel] + 1) / 2 * (levels - 1) - digits).abs().max() <= 0.5 + 1e-5  # no level is nearer


def test_fsq_gradient_is_that_of_no_rounding():
    torch.manual_seed(0)
    fsq, weights = FSQ(16, LEVELS), torch.randn(30, 16)
    rounded = torch.randn(30, 16, requires_grad=True)
    (fsq(rounded).vectors * weights).sum().backward()
    through = [rounded.grad, fsq.project_in.weight.grad.clone(), fsq.project_in.bias.grad.clone()]

    fsq.zero_grad()
    smooth = rounded.detach().clone().requires_grad_()
    half = (torch.tensor(LEVELS) - 1) / 2
    unrounded = fsq.project_out((fsq.digits(fsq.project_in(smooth)) - half) / half)
    assert not torch.allclose(unrounded, fsq(smooth).vectors, atol=1e-2)
    (unrounded * weights).sum().backward()
    for actual, expected in zip(through, [smooth.grad, fsq.project_in.weight.grad, fsq.project_in.bias.grad], strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(actual, expected)


def test_fsq_loss_is_least_for_uniform_codes():
    fsq = open_fsq()
    uniform = torch.linspace(-0.9999, 0.9999, 4001)[:, None].expand(-1, len(LEVELS)).atanh()
    assert fsq(uniform).loss < 1e-5
    assert fsq(uniform * 4).loss > 0.05  # piled up at the ends
    assert fsq(uniform * 0.1).loss > 0.05  # all in the middle
    assert fsq(uniform + 1).loss > 0.05  # off to one side


@pytest.mark.parametrize("levels", [(), (1, 4), (4, 0)])
def test_bad_levels_are_refused(levels):
    with pytest.raises(ValueError, match="at least 2 levels"):
        FSQ(8, levels)


def test_vq_takes_the_nearest_entry_on_the_sphere():
    torch.manual_seed(0)
    vq, x = VQ(16, 50, 8), torch.randn(40, 16)
    with torch.no_grad():
        vq.codebook.mul_(torch.rand(50, 1) * 10 + 0.1)  # lengths must not matter
    tokens = vq(x).tokens
    for vector, token in zip(x, tokens, strict=True):
        code = vq.project_in(vector) / vq.project_in(vector).norm()
        distances = [(code - entry / entry.norm()).norm().item() for entry in vq.codebook]
        assert token == distances.index(min(distances))


def test_vq_gradient_goes_straight_through():
    torch.manual_seed(0)
    vq, weights = VQ(16, 50, 8), torch.randn(40, 16)
    x = torch.randn(40, 16, requires_grad=True)
    smooth = x.detach().clone().requires_grad_()
    (vq(x).vectors * weights).sum().backward()
    assert vq.codebook.grad is None or vq.codebook.grad.abs().max() == 0  # only the loss moves the codebook
    (vq.project_out(F.normalize(vq.project_in(smooth), dim=-1)) * weights).sum().backward()
    assert x.grad.abs().max() > 0
    torch.testing.assert_close(x.grad, smooth.grad)


def test_vq_loss_by_hand_and_its_two_gradients():
    torch.manual_seed(0)
    vq, x = VQ(16, 50, 8), torch.randn(40, 16)
    quantized = vq(x)
    codes = [vector / vector.norm() for vector in vq.project_in(x)]
    entries = [vq.codebook[token] / vq.codebook[token].norm() for token in quantized.tokens]
    squared = sum(((code - entry) ** 2).sum() for code, entry in zip(codes, entries, strict=True)) / (40 * 8)
    torch.testing.assert_close(quantized.loss, 1.25 * squared)

    (from_loss,) = torch.autograd.grad(quantized.loss, vq.project_in.weight, retain_graph=True)
    (whole,) = torch.autograd.grad(squared, vq.project_in.weight, retain_graph=True)
    torch.testing.assert_close(from_loss, 0.25 * whole)  # commitment
    (of_codebook,) = torch.autograd.grad(quantized.loss, vq.codebook)
    (whole,) = torch.autograd.grad(squared, vq.codebook)
    torch.testing.assert_close(of_codebook, whole)
    used = torch.zeros(50, dtype=torch.bool)
    used[quantized.tokens] = True
    assert (of_codebook[used].norm(dim=-1) > 0).all() and (of_codebook[~used] == 0).all() and not used.all()


def test_the_commitment_is_a_setting():
    losses = []
    for commitment in (0.0, 0.25, 1.0):
        torch.manual_seed(0)
        losses.append(VQ(16, 50, 8, commitment)(torch.randn(40, 16)).loss.item())
    assert losses[1] == pytest.approx(1.25 * losses[0]) and losses[2] == pytest.approx(2 * losses[0])


# Reviving entries that nothing uses


def test_only_entries_idle_for_long_move_and_they_move_onto_codes():
    torch.manual_seed(0)
    vq = VQ(16, 20, 8)
    with torch.no_grad():
        vq.codebook.mul_(torch.linspace(0.5, 4, 20)[:, None])
    before, rng = vq.codebook.detach().clone(), torch.Generator().manual_seed(0)
    quantized = vq(torch.randn(6, 16))
    used = quantized.tokens.unique()
    assert [vq.revive(quantized.codes, quantized.tokens, 3, rng) for _ in range(2)] == [0, 0]
    torch.testing.assert_close(vq.codebook.detach(), before, rtol=0, atol=0)
    assert vq.revive(quantized.codes, quantized.tokens, 3, rng) == 6  # more entries are dead than there are codes
    moved = (vq.codebook.detach() != before).any(1)
    assert moved.sum() == 6 and not moved[used].any()
    torch.testing.assert_close(vq.codebook[moved].norm(dim=1), before[moved].norm(dim=1))
    directions = F.normalize(vq.codebook.detach()[moved], dim=-1)
    assert sorted((directions @ quantized.codes.T).argmax(1).tolist()) == list(range(6))
    assert (directions @ quantized.codes.T).max(1).values.min() > 1 - 1e-6
    assert (vq.idle[moved] == 0).all() and (vq.idle[used] == 0).all() and vq.idle.max() == 3


def test_the_nearest_entry_is_chosen_in_float32_under_bf16_too():
    torch.manual_seed(0)
    vq = VQ(16, 2000, 8)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = vq(torch.randn(500, 16))
    nearest = (quantized.codes.double() @ F.normalize(vq.codebook.detach().double(), dim=-1).T).argmax(-1)
    assert torch.equal(quantized.tokens, nearest)


def test_reviving_depends_on_the_generator_alone():
    def revived(seed: int) -> Tensor:
        torch.manual_seed(0)
        vq = VQ(16, 20, 8)
        quantized = vq(torch.randn(60, 16))
        torch.manual_seed(seed + 100)  # the global state does not matter
        vq.revive(quantized.codes, quantized.tokens, 1, torch.Generator().manual_seed(seed))
        return vq.codebook.detach()

    assert torch.equal(revived(1), revived(1)) and not torch.equal(revived(1), revived(2))


@dataclass(frozen=True)
class ToyRun:
    """What a toy training came to."""

    used: float  # share of the codebook that held-out data chooses
    error: float  # mean square of what does not come back


def train_toy(revive_after: int) -> ToyRun:
    """Points in 60 narrow heaps through a VQ of 64 entries between a linear encoder and decoder."""
    rng = torch.Generator().manual_seed(0)
    heaps = torch.randn(60, 16, generator=rng)

    def draw() -> Tensor:
        return heaps[torch.randint(60, (256,), generator=rng)] + 0.02 * torch.randn(256, 16, generator=rng)

    torch.manual_seed(0)
    vq = VQ(16, 64, 8)
    with torch.no_grad():  # a codebook in one corner, as after a bad start
        vq.codebook.copy_(torch.randn(8) + 0.1 * torch.randn(64, 8))
    optimizer = torch.optim.Adam(vq.parameters(), 3e-3)
    for step in range(300):
        x = draw()
        quantized = vq(x)
        (F.mse_loss(quantized.vectors, x) + quantized.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        if revive_after:
            vq.revive(quantized.codes, quantized.tokens, revive_after, torch.Generator().manual_seed(step))
    x = draw()
    quantized = vq(x)
    return ToyRun(quantized.tokens.unique().numel() / 64, F.mse_loss(quantized.vectors, x).item())


def test_reviving_brings_the_codebook_into_use():
    without, with_revival = train_toy(0), train_toy(20)
    assert without.used < 0.4 < 0.7 < with_revival.used
    assert with_revival.error < 0.6 * without.error


def use_of_paper_tokenizer(revive_after: int) -> float:
    """Share of its 64 codes that the paper's configuration, trained for a little on clips of big squares, uses on new ones."""

    def squares(seed: int) -> Tensor:
        first, last = torch.rand(2, 4, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        return F.interpolate(torch.cat([first, (first + last) / 2, last], dim=2), scale_factor=(1, 8, 8))

    tokenizer = build_tokenizer(TOKENIZERS["paper"]).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), 2e-3)
    for step in range(40):
        video = squares(step)
        result = tokenizer(video)
        (F.mse_loss(result.video, video) + result.quantizer_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        if revive_after:
            tokenizer.quantizer.revive(result.codes, result.tokens, revive_after, torch.Generator().manual_seed(step))
    return torch.cat([tokenizer.encode(squares(1000 + index)) for index in range(4)]).unique().numel() / 64


def test_reviving_brings_the_papers_codebook_into_use():
    assert use_of_paper_tokenizer(0) < 0.3 < 0.6 < use_of_paper_tokenizer(8)
