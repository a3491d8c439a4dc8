"""Several processes that train one network: who takes which clips, and weights that are whole on one and shared by all.

Started by torchrun, each process takes its part of every step's clips, and gradients are averaged: by DDP, or by FSDP2,
where each process also holds only its part of the weights. A mean over all parts is the mean over the whole batch.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phenaki.compiling import layers_of, methods_of
from phenaki.devices import device_of

WAIT = timedelta(hours=2)  # for one process that tokenises while the others wait


@dataclass(frozen=True)
class Part:
    """Part `index` of `count` equal parts of a batch."""

    index: int = 0
    count: int = 1

    def of(self, batch_size: int) -> slice:
        """Its rows. ValueError where the batch does not divide."""
        rows, rest = divmod(batch_size, self.count)
        if rest or not rows:
            raise ValueError(f"batch_size {batch_size}: cannot be shared by {self.count} equal parts (processes x accumulate); needed a multiple")
        return slice(self.index * rows, (self.index + 1) * rows)


@dataclass(frozen=True)
class Group:
    """The processes of a run, and which of them this one is."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Writes files and speaks."""
        return self.rank == 0

    def parts(self, accumulate: int) -> list[Part]:
        """What this process takes of every batch."""
        return [Part(self.rank * accumulate + i, self.size * accumulate) for i in range(accumulate)]

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """True where it is so in one process. Asked after every step: on the host, so that no GPU is waited for."""
        if self.size == 1:
            return flag
        votes = torch.tensor(float(flag))
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes)

    def agrees(self, value: float) -> bool:
        """Whether all processes have this value."""
        return not self.any(self.mean({"value": torch.tensor(float(value))})["value"].item() != value)

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name, averaged over the processes."""
        if self.size == 1 or not values:
            return values
        stacked = torch.stack([value.to(self.device, torch.float64) for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, stacked / self.size, strict=True))


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """The group that torchrun started this process in, else a group of one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group(device=torch.device(device))
        return
    cuda = torch.device(device).type == "cuda"
    here = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device(device)
    if cuda:
        torch.cuda.set_device(here)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=WAIT, device_id=here if cuda else None)
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), here)
    finally:
        dist.destroy_process_group()


class Objective(nn.Module):
    """Networks and the losses of a batch as one module, so that a wrapper sees every forward pass."""

    def __init__(self, networks: dict[str, nn.Module], losses: Callable[..., dict[str, Tensor]], bf16: bool):
        super().__init__()
        self.networks, self.losses, self.bf16 = nn.ModuleDict(networks), losses, bf16

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        """The losses of a batch (`Task.losses`), in bfloat16 products where that is set."""
        device = device_of(self.networks).type
        with torch.autocast(device, torch.bfloat16) if self.bf16 else nullcontext():
            return self.losses(batch, step)


def spread(objective: Objective, group: Group, sharded: bool) -> nn.Module:
    """The objective as all processes of the group train it: as it is, wrapped in DDP, or sharded in place."""
    if sharded:
        _shard(objective, group)
        return objective
    if group.size == 1:
        return objective
    device_ids = [group.device.index] if group.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(objective, device_ids, broadcast_buffers=False, find_unused_parameters=True)


def _shard(objective: Objective, group: Group) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if not dist.is_initialized():
        raise ValueError("sharded = true: start the program with torchrun --nproc-per-node N -m phenaki train ...")
    mesh = init_device_mesh(group.device.type, (group.size,))
    for layer in layers_of(objective):
        fully_shard(layer, mesh=mesh)
        for method in methods_of(layer):
            if method != "forward":
                register_fsdp_forward_method(layer, method)
    fully_shard(objective, mesh=mesh)


def checkpoint_activations(model: nn.Module) -> None:
    """Layers keep their inputs only, and are computed again in the backward pass (Chen et al. 2016, arXiv 1604.06174)."""
    for layer in layers_of(model):
        for method in methods_of(layer):
            setattr(layer, method, partial(checkpoint, getattr(layer, method), use_reentrant=False))


def whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered from all processes where it is sharded (then all must call this)."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shared_as(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, and sharded as it is."""
    value = value.to(like.device)
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements)
