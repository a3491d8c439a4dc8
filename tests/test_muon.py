"""Muon: orthogonal steps, the same as torch's own where that one can be compared."""

import pytest
import torch

from phenaki.training import muon
from phenaki.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 24), (1, 8, 8)])
def test_singular_values_come_to_about_one_and_directions_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7
    out = orthogonalized(matrices)
    assert out.shape == matrices.shape and out.dtype == torch.float32
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ out @ right.mT  # diagonal where the directions are the same
    values = turned.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.3 and values.max() < 1.3
    assert (turned - torch.diag_embed(values)).abs().max() < 1e-3


def test_a_matrix_of_zeros_stays_one():
    assert torch.equal(orthogonalized(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has none to compare with")
def test_steps_are_those_of_torchs_own():
    rng = torch.Generator().manual_seed(1)
    shapes = [(16, 8), (16, 8), (8, 12), (6, 6)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=rng)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    own = Muon(ours, lr=0.05, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = [parameter.detach().clone() for parameter in ours]
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=rng)
            other.grad = one.grad.clone()
        ours[1].grad = theirs[1].grad = None  # was not used in the step
        own.step()
        reference.step()
    assert torch.equal(ours[1], start[1])
    for one, other, before in zip(ours, theirs, start, strict=True):
        moved = (other - before).norm()
        assert (one - other).norm() <= 0.03 * moved, "bfloat16 there, float32 here"
    for one, other in zip(ours, theirs, strict=True):
        if one.grad is not None:
            torch.testing.assert_close(own.state[one]["momentum_buffer"], reference.state[other]["momentum_buffer"])


def test_matrices_that_do_not_fit_together_move_as_they_would(monkeypatch):
    def moved() -> list[torch.Tensor]:
        rng = torch.Generator().manual_seed(2)
        parameters = [torch.nn.Parameter(torch.randn(6, 4, generator=rng)) for _ in range(5)]
        for one in parameters:
            one.grad = torch.randn(one.shape, generator=rng)
        Muon(parameters, lr=0.1, weight_decay=0.0).step()
        return parameters

    together = moved()
    monkeypatch.setattr(muon, "MOST_AT_ONCE", 50)  # two of 24 numbers
    for one, other in zip(moved(), together, strict=True):
        torch.testing.assert_close(one, other)


def test_muon_moves_matrices_alone():
    with pytest.raises(ValueError, match=r"Muon moves matrices alone: a parameter is of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1, weight_decay=0.0)
