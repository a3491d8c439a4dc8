"""Vectors <-> tokens: round trips, every entry within reach, and gradients that go straight through."""

import math

import pytest
import torch
import torch.nn.functional as F

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
