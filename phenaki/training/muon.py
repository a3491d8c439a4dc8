"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum whose step is made orthogonal, for the matrices of layers.

Not torch.optim.Muon: that one multiplies in bfloat16 whatever the machine, sixty times slower than float32 on a CPU
without it, and takes one matrix after the other. The steps are the same, and so is the state that checkpoints hold.
"""

from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic iteration; tuned by Jordan et al. for a steep slope at 0
NUM_ITERATIONS = 5
MOMENTUM = 0.95
EPSILON = 1e-7
MOST_AT_ONCE = 1 << 25  # numbers in the matrices that are worked on together: the work takes some times as much memory


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; steps as long as AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both."""

    def __init__(self, parameters: list[Tensor], lr: float, weight_decay: float):
        wrong = [tuple(parameter.shape) for parameter in parameters if parameter.ndim != 2]
        if wrong:
            raise ValueError(f"Muon moves matrices alone: a parameter is of shape {wrong[0]}")
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient; matrices of one shape together, as many as fit."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape, parameter.device, parameter.dtype].append(parameter)
            for (shape, *_), parameters in alike.items():
                count = max(MOST_AT_ONCE // shape.numel(), 1)
                for some in (parameters[first : first + count] for first in range(0, len(parameters), count)):
                    self._move(some, group["lr"], group["weight_decay"])

    def _move(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        """A step of matrices of one shape."""
        updates = orthogonalized(self._momenta(parameters)).unbind()
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, updates, alpha=-lr * 0.2 * max(parameters[0].shape) ** 0.5)

    def _momenta(self, parameters: list[Tensor]) -> Tensor:
        """Brings the averages of gradients up to date; returns where Nesterov's look ahead sees them, (n rows columns)."""
        gradients = [parameter.grad for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]
        for state, gradient in zip(states, gradients, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
        averages = [state["momentum_buffer"] for state in states]
        torch._foreach_lerp_(averages, gradients, 1 - MOMENTUM)
        return torch.stack(torch._foreach_lerp(gradients, averages, MOMENTUM))


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (n rows columns) with their singular values brought near 1 by Newton-Schulz iterations, in the same dtype.

    To 0.7 to 1.2, but for those less than a hundredth of the largest, which come out smaller. Computed in bfloat16 on GPUs, which the
    iteration bears well; in float32 on CPUs, whichever of them are fast in the other.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)  # the largest singular value is then 1 at most
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)
