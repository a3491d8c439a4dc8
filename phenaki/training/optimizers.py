"""What a step does to the weights: learning rate, AdamW and Muon, the average over steps, and randomness keyed by step."""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phenaki.config import check_range
from phenaki.training.muon import Muon
from phenaki.training.parallel import shared_as

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class OptimizerSettings:
    """How a network is trained, whatever its loss."""

    num_steps: int = 1000
    batch_size: int = 8  # clips of a step, of all processes together
    accumulate: int = 1  # parts that a process takes its share in, one after the other: less memory at once (FSQ's spread is then that of a part)
    learning_rate: float = 1e-3  # at its peak
    warmup_steps: int = 100
    final_lr_ratio: float = 0.05  # of the peak, at the end of the cosine
    optimizer: str = "adamw"  # or "muon", for the matrices of the layers
    weight_decay: float = 1e-2  # of matrices only
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    seed: int = 0
    precision: str = "auto"  # of matrix products: "fp32", "bf16", "auto" = bf16 on a GPU that has it
    compile: bool = False  # torch.compile: slow to begin, faster steps
    activation_checkpointing: bool = False  # layers are computed again in the backward pass: slower, less memory
    sharded: bool = False  # FSDP2: each process holds a part of weights and optimiser state, for what does not fit otherwise
    log_every: int = 20  # steps
    save_every: int = 200
    sample_every: int = 400
    validation_batches: int = 4  # of held-out clips, at every checkpoint; 0 = none
    keep_last: int = 2  # checkpoints
    keep_best: bool = True  # the checkpoint with the lowest validation loss stays, too

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}: allowed are {', '.join(OPTIMIZERS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r}: allowed are {', '.join(PRECISIONS)}")
        if self.sharded and self.optimizer == "muon":
            raise ValueError("sharded = true needs optimizer = \"adamw\": Muon's steps need whole matrices")
        check_range(self, "num_steps", "batch_size", "accumulate", "log_every", "save_every", "sample_every", "keep_last", at_least=1)
        check_range(self, "learning_rate", "warmup_steps", "weight_decay", "validation_batches", at_least=0)
        check_range(self, "seed", at_least=0, at_most=2**63 - 1)
        check_range(self, "max_grad_norm", above=0)
        check_range(self, "final_lr_ratio", "ema_decay", at_least=0, at_most=1)
        check_range(self, "beta2", at_least=0, below=1)


def generator_for(seed: int, step: int, purpose: str = "") -> torch.Generator:
    """The random stream of one step: keyed by its arguments, so that it does not depend on the steps before."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def learning_rate(step: int, settings: OptimizerSettings) -> float:
    """Linear warm-up, then a cosine from the peak to final_lr_ratio of it at num_steps."""
    warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    progress = min(step / max(settings.num_steps, 1), 1.0)
    cosine = settings.final_lr_ratio + (1 - settings.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.learning_rate * warm * cosine


def make_optimizers(model: nn.Module, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    """AdamW over the model's own trainable parameters, in the order of their names; vectors are not decayed.

    With optimizer = "muon", the matrices of the layers are Muon's (Jordan et al. 2024), its steps scaled to be as long as
    AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both.
    """
    muons, matrices, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if is_muons(name, parameter, settings):
            muons.append(parameter)
        else:
            (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)
    return [adamw, Muon(muons, settings.learning_rate, settings.weight_decay)] if muons else [adamw]


def is_muons(name: str, parameter: Tensor, settings: OptimizerSettings) -> bool:
    """Whether a parameter is moved by Muon: a matrix of a layer, where that is set."""
    return settings.optimizer == "muon" and "layers." in name and parameter.ndim == 2


class EMA:
    """An average of the weights over the last steps, kept as tensors by name; it starts as the weights themselves."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        own = model.state_dict(keep_vars=True)  # the parameters themselves: to ask for them in every step takes a millisecond
        self.weights = {name: tensor.detach().clone() for name, tensor in own.items()}
        pairs = [(self.weights[name], tensor) for name, tensor in own.items()]
        self.moved = [pair for pair in pairs if pair[1].is_floating_point()]
        self.copied = [pair for pair in pairs if not pair[1].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After a step that has changed the model in place."""
        decay = min(self.decay, (1 + step) / (10 + step))  # early on the average follows faster
        averages, tensors = zip(*self.moved, strict=True)
        torch._foreach_lerp_(averages, tensors, 1 - decay)
        for average, tensor in self.copied:
            average.copy_(tensor)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Takes over a saved average by name; a sharded one takes its part of each tensor."""
        for name, average in self.weights.items():
            average.copy_(shared_as(weights[name], average))
