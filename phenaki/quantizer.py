"""Vectors <-> tokens: FSQ (Mentzer et al. 2023, arXiv 2309.15505) and the paper's l2-normalised VQ.

A quantizer projects vectors of width `dim` to a small code, snaps the code to the nearest of its `codebook_size`
entries, and projects back. The gradient goes straight through the snapping.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

COMMITMENT = 0.25  # weight of the commitment loss, paper appendix B.1


@dataclass(frozen=True)
class Quantized:
    """vectors: (..., dim), what the decoder sees; tokens: (...) int64 in [0, codebook_size); loss: scalar.

    codes: (..., code_dim), what the encoder said before VQ snapped it, without gradient, for `VQ.revive`; None from FSQ.
    """

    vectors: Tensor
    tokens: Tensor
    loss: Tensor
    codes: Tensor | None = None


class FSQ(nn.Module):
    """Finite scalar quantisation: channel i of the code takes one of levels[i] evenly spaced values in [-1, 1].

    Its loss is our addition: how far the mean and mean square of each channel are from those of a uniform one (0 and 1/3).
    Without it the codes pile up at the ends of the squashing (measured: docs/LOG.md).
    """

    def __init__(self, dim: int, levels: tuple[int, ...]):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"FSQ levels {levels}: every channel needs at least 2 levels")
        self.codebook_size = math.prod(levels)
        self.project_in = nn.Linear(dim, len(levels))
        self.project_out = nn.Linear(len(levels), dim)
        place = torch.get_default_device()
        place = "cpu" if place.type == "meta" else place  # not saved with the weights, so here also where those are still on "meta"
        sizes = torch.tensor(levels, dtype=torch.int64, device=place)
        self.register_buffer("levels", sizes, persistent=False)
        basis = torch.cat([sizes.new_ones(1), sizes.cumprod(0)[:-1]])
        self.register_buffer("basis", basis, persistent=False)

    def digits(self, code: Tensor) -> Tensor:
        """Continuous level numbers in (-0.5, levels - 0.5): a squashed code on the scale where rounding quantises it."""
        half = (self.levels - 1) / 2
        return torch.tanh(code) * (half + 0.499) + half

    def forward(self, x: Tensor) -> Quantized:
        """x: (..., dim)."""
        digits = self.digits(self.project_in(x).float())
        rounded = digits + (digits.round() - digits).detach()  # straight through
        tokens = (rounded.detach().round().long() * self.basis).sum(-1)
        return Quantized(self._embed(rounded, x.dtype), tokens, self._spread_loss(digits))

    def _spread_loss(self, digits: Tensor) -> Tensor:
        half = (self.levels - 1) / 2
        spread = ((digits - half) / (half + 0.499)).flatten(0, -2)
        mean, square = spread.mean(0), spread.square().mean(0)
        if self.training and torch.is_grad_enabled():
            mean, square = shared_mean(mean), shared_mean(square)
        return (mean**2 + (square - 1 / 3) ** 2).mean()

    def vectors(self, tokens: Tensor) -> Tensor:
        """tokens (...) -> (..., dim)."""
        digits = tokens[..., None] // self.basis % self.levels
        return self._embed(digits.float(), self.project_out.weight.dtype)

    def _embed(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        half = (self.levels - 1) / 2
        return self.project_out(((digits - half) / half).to(dtype))


class VQ(nn.Module):
    """The paper's quantiser (section 2.1, appendix B.1): codes and codebook on the unit sphere, nearest entry wins.

    An entry that nothing is near to gets no gradient and stays dead. `revive` moves it to where codes are.
    """

    def __init__(self, dim: int, codebook_size: int, code_dim: int, commitment: float = COMMITMENT):
        super().__init__()
        self.codebook_size, self.commitment = codebook_size, commitment
        self.project_in = nn.Linear(dim, code_dim)
        self.project_out = nn.Linear(code_dim, dim)
        self.codebook = nn.init.normal_(nn.Parameter(torch.empty(codebook_size, code_dim)))
        self.register_buffer("idle", torch.zeros(codebook_size, dtype=torch.int32))  # steps of training since an entry was chosen

    def forward(self, x: Tensor) -> Quantized:
        """x: (..., dim). Loss of Eq. 1: |sg(z) - e|^2 + commitment * |z - sg(e)|^2."""
        code = F.normalize(self.project_in(x).float(), dim=-1)
        codebook = F.normalize(self.codebook.float(), dim=-1)
        with torch.autocast(x.device.type, enabled=False):  # bf16 has three digits: too few to tell near entries apart
            tokens = (code.detach() @ codebook.detach().T).argmax(-1)
        entry = codebook[tokens]
        loss = F.mse_loss(entry, code.detach()) + self.commitment * F.mse_loss(code, entry.detach())
        passed = code + (entry - code).detach()  # straight through
        return Quantized(self.project_out(passed.to(x.dtype)), tokens, loss, code.detach())

    def vectors(self, tokens: Tensor) -> Tensor:
        """tokens (...) -> (..., dim)."""
        entry = F.normalize(self.codebook.float(), dim=-1)[tokens]
        return self.project_out(entry.to(self.project_out.weight.dtype))

    @torch.no_grad()
    def revive(self, codes: Tensor, tokens: Tensor, after: int, rng: torch.Generator) -> int:
        """Moves entries that no token chose in the last `after` steps onto codes of this step; returns how many.

        Called once a step, after the optimiser, with all that the step quantised: codes (..., code_dim), tokens (...). An entry
        keeps its length, so that the learning rate means the same for it. Which codes are taken depends on `rng` (on the CPU)
        alone; all processes call it together with equal generators and end up with equal codebooks.
        """
        self.idle += 1
        self.idle[_over_processes(torch.bincount(tokens.flatten(), minlength=self.codebook_size)) > 0] = 0
        dead = (self.idle >= after).nonzero().flatten()
        if not len(dead):
            return 0
        candidates = _gathered(codes.reshape(-1, codes.shape[-1]).float())
        chosen = torch.randperm(len(candidates), generator=rng)[: len(dead)].to(candidates.device)
        dead = dead[: len(chosen)]  # more dead entries than codes: the others wait a step
        lengths = self.codebook[dead].norm(dim=-1, keepdim=True)
        self.codebook[dead] = (F.normalize(candidates[chosen], dim=-1) * lengths).to(self.codebook.dtype)
        self.idle[dead] = 0
        return len(dead)


def shared_mean(mean: Tensor) -> Tensor:
    """The mean over all processes; its gradient, averaged over them, is that of the whole batch. Without others: the mean itself."""
    if not _is_distributed():
        return mean
    total = _over_processes(mean.detach().clone())
    return total / dist.get_world_size() + (mean - mean.detach())


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _over_processes(values: Tensor) -> Tensor:
    """The sum of the values of all processes, in place."""
    if _is_distributed():
        dist.all_reduce(values)
    return values


def _gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; each process brings as many."""
    if not _is_distributed():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
