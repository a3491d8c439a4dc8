"""Where a model computes, and in which kind of numbers: chosen for the machine, or as asked for."""

import math
import time
from functools import lru_cache

import torch
from torch import Tensor, nn

FASTER = 1.5  # times as fast as float32 a CPU must be in bfloat16 for it to be chosen: emulated it is slower, in silicon 3 to 5 times as fast
FEWEST_RUNS, MOST_RUNS = 8, 64  # products of each kind that are timed
HOPELESS, HOPELESS_RUNS = 0.15, 3  # a gain below this after so many products ends the timing: emulated, each takes as long as fifty in silicon
CLEAR = 1.7  # a gain this many times above or below FASTER is clear


def choose_device(device: str | torch.device | None) -> torch.device:
    """"auto" or None: the NVIDIA GPU where there is one, else the CPU. ValueError for a GPU that is not there."""
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r}: allowed are auto, cpu, cuda, cuda:N") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r}: allowed are auto, cpu, cuda, cuda:N")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: this machine has no NVIDIA GPU that torch can use; use --device cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return chosen


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(network.parameters()).device


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """"auto": bfloat16 on GPUs that compute in it and on CPUs that are measured to be faster in it; float32 elsewhere."""
    if dtype != "auto":
        named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if named not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype {dtype!r}: allowed are auto, float32, bfloat16, float16")
        return named
    fast = has_bf16(device) if device.type == "cuda" else cpu_is_faster_in_bf16()
    return torch.bfloat16 if fast else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether a device is a GPU that computes in bf16."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def hold_matrices(network: nn.Module, dtype: torch.dtype) -> None:
    """Casts, once and in place, what autocast to `dtype` casts in every pass: weights and biases of linear layers and convolutions.

    Under that autocast the network's results stay the same to the bit, for norms, embeddings and all else keep their numbers; without it
    it computes no more.
    """
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.to(dtype)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. What a GPU has still to do is not waited for: that may be the whole of a training step."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


@lru_cache(maxsize=1)
def cpu_is_faster_in_bf16() -> bool:
    """Whether this CPU multiplies matrices, of the size that a layer has, much faster in bfloat16; measured once, some milliseconds.

    The least of some runs counts. Where they do not say clearly, as beside other work, there are more of them.
    """
    pairs = [(torch.ones(256, 192, dtype=dtype), torch.ones(192, 768, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    least, threads = [math.inf, math.inf], torch.get_num_threads()
    torch.set_num_threads(1)  # where other work takes the cores, threads wait for each other
    try:
        for run in range(1, MOST_RUNS + 1):  # in turn; the first ones also load the routines
            least = [min(known, _seconds(*pair)) for known, pair in zip(least, pairs, strict=True)]
            gain = least[0] / least[1]
            hopeless = run >= HOPELESS_RUNS and gain < HOPELESS
            if hopeless or (run >= FEWEST_RUNS and not FASTER / CLEAR < gain < FASTER * CLEAR):
                break
    finally:
        torch.set_num_threads(threads)
    return gain > FASTER


def _seconds(one: Tensor, other: Tensor) -> float:
    started = time.perf_counter()
    one @ other
    return time.perf_counter() - started
