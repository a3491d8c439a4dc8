"""Whether a training step fits into memory, checked before the first one: a run that does not fit would be killed without a word.

What is computed is the least that a step must hold at once. Weights, gradients, optimiser state and averages are counted to the byte.
What the forward pass keeps for the backward one is found by a rehearsal on tensors without memory (torch's FakeTensorMode),
to the byte too; it leaves out the losses' own networks, temporary buffers and what torch keeps in reserve, so a run that just
fits by these figures may still not. The rehearsal also counts the operations from which the log's "mfu" is computed.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from phenaki.compiling import layers_of
from phenaki.training.optimizers import OptimizerSettings, is_muons
from phenaki.training.parallel import Group
from phenaki.training.task import Task

TIGHT = 0.7  # of what is free, above which a run is warned: on a CPU, steps took 1.2 to 1.5 times what is computed here
CGROUP = Path("/sys/fs/cgroup")  # of the container that a process runs in


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a process's step needs besides the weights."""

    gradients: int
    optimizer: int
    averages: int  # of the weights over the steps
    saved_copy: int  # the network that a checkpoint or a sample is made of
    activations: int  # what the forward pass of one part of the batch keeps
    adds_up: bool = False  # gradients of the parts before are there during a forward pass

    @property
    def least(self) -> int:
        """Bytes that are needed at once: a pass gives up activations as it makes gradients, and a copy is saved after it."""
        within = self.activations + self.gradients if self.adds_up else max(self.activations, self.gradients)
        return self.optimizer + self.averages + max(within, self.saved_copy)

    def __str__(self) -> str:
        parts = ((entry.name.replace("_", " "), getattr(self, entry.name)) for entry in fields(self) if entry.name != "adds_up")
        return ", ".join(f"{name} {gigabytes(count)}" for name, count in parts)


@dataclass(frozen=True)
class Rehearsal:
    """What a forward pass of `num_rows` made-up clips takes; 0 where torch cannot tell."""

    num_rows: int
    kept: int = 0  # bytes, for the backward pass
    operations: int = 0  # of its products of matrices

    @property
    def operations_per_clip(self) -> float:
        """Forward and backward: to a product belong two of the backward pass, one for each of what was multiplied."""
        return 3 * self.operations / self.num_rows


def gigabytes(count: float) -> str:
    """Bytes as text in GB, three digits."""
    return f"{count / 1e9:.3g} GB"


def rehearse_step(task: Task, settings: OptimizerSettings, group: Group, bf16: bool) -> Rehearsal:
    """Rehearses the forward pass of one part of a process's batch. ValueError where the batch does not divide into parts."""
    rows = group.parts(settings.accumulate)[0].of(settings.batch_size)
    return rehearsed(task.build, task.rehearse, rows.stop - rows.start, settings, group.device, bf16)


def check_memory(rehearsal: Rehearsal, task: Task, settings: OptimizerSettings, group: Group) -> str:
    """A warning where memory is tight, "" where it is not; ValueError where a step cannot fit."""
    networks = [task.model] + ([] if task.discriminator is None else [task.discriminator])
    memory = step_memory(networks, task.model, settings, rehearsal.kept, group.size if settings.sharded else 1)
    return judge(memory, free_memory(group.device), str(group.device), settings, rehearsal.num_rows)


def step_memory(
    networks: list[nn.Module], averaged: nn.Module, settings: OptimizerSettings, activations: int, num_shards: int = 1
) -> StepMemory:
    """networks: all that are trained; averaged: the one of them whose weights are averaged and saved; num_shards: FSDP2's processes."""
    trained = [(name, one) for network in networks for name, one in network.named_parameters() if one.requires_grad]
    states = sum(one.nbytes * (1 if is_muons(name, one, settings) else 2) for name, one in trained)  # momentum; and AdamW's squares
    gradients = sum(one.nbytes for _, one in trained)
    copy = sum(one.nbytes for one in averaged.state_dict().values())
    shared = [count // num_shards for count in (gradients, states, copy)]
    return StepMemory(*shared, copy, activations, settings.accumulate > 1)


def rehearsed(
    build: Callable[[], nn.Module], rehearse: Callable[[nn.Module, int], Tensor], num_rows: int, settings: OptimizerSettings,
    device: torch.device, bf16: bool,
) -> Rehearsal:  # fmt: skip
    """What a forward pass takes, found with a network whose tensors have no memory (FakeTensorMode).

    build: makes the network; rehearse(network, num_rows): its forward pass, to a scalar. With activation_checkpointing what is kept
    is estimated: all of it divided by the number of layers.
    """
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no storage's number is used again
    try:
        with FakeTensorMode(), torch.random.fork_rng(devices=[]), device:
            network = build()
            own = {id_of(one) for one in network.state_dict().values()}

            def keep(tensor: Tensor) -> Tensor:
                kept[id_of(tensor)] = tensor.untyped_storage()
                return tensor

            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            with hooks, torch.autocast(device.type, torch.bfloat16, enabled=bf16), FlopCounterMode(display=False) as counter:
                rehearse(network, num_rows)
    except RuntimeError:  # an operation that another torch does not know how to make up
        return Rehearsal(num_rows)
    total = sum(storage.nbytes() for number, storage in kept.items() if number not in own)
    kept_at_once = total // max(len(layers_of(network)), 1) if settings.activation_checkpointing else total
    return Rehearsal(num_rows, kept_at_once, counter.get_total_flops())


def id_of(tensor: Tensor) -> int:
    """A number of the storage that a tensor is a view of: the same for all its views."""
    return tensor.untyped_storage()._cdata


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take, swap and what torch keeps for itself included; None where the system does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # freed blocks, which torch hands out again
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        kilobytes = sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError, IndexError):
        return None
    free = kilobytes * 1024
    left = left_of_container(CGROUP)
    return (free if left is None else min(free, left)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def left_of_container(folder: Path) -> int | None:
    """Bytes below the limit of a control group (version 2), file caches counted as free; None where there is no limit."""
    try:
        limit, used = (int((folder / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        caches = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())["inactive_file"]
    except (OSError, ValueError, KeyError):
        return None
    return max(limit - used + int(caches), 0)


def judge(memory: StepMemory, free: int | None, place: str, settings: OptimizerSettings, num_rows: int) -> str:
    """A warning where a step may well not fit, "" where it should. ValueError where it cannot.

    num_rows: clips of one part of a process's batch. What a compiled or checkpointed network keeps is a guess and counts for a warning alone.
    """
    if free is None or memory.least <= TIGHT * free:
        return ""
    needs = f"a step of {num_rows} clips at once needs {gigabytes(memory.least)} at least besides the weights, {gigabytes(free)} are free on {place}"
    advice = (
        "Lower batch_size, or num_slices of a clip; raise accumulate (the batch in parts); set activation_checkpointing = true, "
        "or sharded = true with several processes (FSDP); or make the network smaller"
    )
    is_exact = not (settings.compile or settings.activation_checkpointing)
    if (memory if is_exact else replace(memory, activations=0)).least > free:
        raise ValueError(f"{needs} ({memory}). {advice}")
    return f"memory may be too tight: {needs} ({memory}). {advice}"
