"""Work of several contenders timed in turn in one process, so that what else the machine does strikes all: medians, spread and ratios."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch

PEER = "peer"  # the name of the contender that the others are compared with


@dataclass(frozen=True)
class Times:
    """Of one piece of work, in seconds: on the clock, and of all cores together."""

    wall: float
    cpu: float


def timed(work: Callable[[], object], device: torch.device) -> Times:
    """One run; on a GPU to the end of what it was asked to do."""
    _wait(device)
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    _wait(device)
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(contenders: dict[str, Callable[[], object]], rounds: int, warmup: int, device: torch.device) -> dict[str, list[Times]]:
    """Each contender's work in turn, `rounds` times after `warmup` rounds that are not counted."""
    kept: dict[str, list[Times]] = {name: [] for name in contenders}
    for number in range(warmup + rounds):
        for name, work in contenders.items():
            times = timed(work, device)
            if number >= warmup:
                kept[name].append(times)
    return kept


def summary(times: dict[str, list[Times]], device: torch.device) -> dict:
    """Medians and quartiles of each contender, and how many times faster than the peer the others are, round by round.

    Ratios are of CPU seconds on a CPU, which other programs on the machine stretch less, and of seconds on the clock on a GPU.
    """
    clock = "wall" if device.type == "cuda" else "cpu"
    figures: dict = {}
    for name, runs in times.items():
        figures[name] = {"wall_seconds": spread([one.wall for one in runs]), "cpu_seconds": spread([one.cpu for one in runs])}
    if PEER not in times:
        return figures
    faster = {}
    for name in (one for one in times if one != PEER):
        ratios = [getattr(theirs, clock) / getattr(own, clock) for own, theirs in zip(times[name], times[PEER], strict=True)]
        faster[name] = {**spread(ratios), "rounds": [round(ratio, 2) for ratio in ratios]}
    return {**figures, "times_faster": faster}


def spread(values: list[float]) -> dict[str, float]:
    """The median and both quartiles, of five significant digits; of one value alone all three are that value."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {name: float(f"{value:.5g}") for name, value in (("median", median(values)), ("low", low), ("high", high))}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
