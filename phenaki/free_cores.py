"""How many threads torch computes with on a CPU whose cores other programs use too.

The threads of one sum wait for each other, and do it in a loop: where another program takes one of two cores, two threads
need twice as long for a story as one does, or longer. So before each chunk it is looked at how many cores the others left
free since the last look. Linux tells that (/proc/stat); elsewhere, and where OMP_NUM_THREADS is set, the threads stay as they are.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

STAT = Path("/proc/stat")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # that it counts in a second
SHORTEST = 0.2  # seconds between two looks that say something
LONGEST = 60.0  # seconds without work after which a look says nothing of what comes next
FREE_ENOUGH = 0.7  # share of a core that others must leave for a thread to be worth it


class Look(NamedTuple):
    """What was used until a moment, in seconds."""

    moment: float
    own: float  # CPU time of this process
    all: float  # CPU time of everything on the cores that this process may use


class FreeCores:
    """Counts, from one look to the next, the cores that others leave free."""

    def __init__(self, stat: Path = STAT):
        self.stat, self.last, self.free = stat, None, None
        self.worked = -math.inf  # when work was last begun or done, on the clock of `Look.moment`

    def look(self) -> float | None:
        """How many cores other programs left free since the last look; None where that is not known."""
        now = self._now()
        if now is None:
            return None
        span = now.moment - self.last.moment if self.last else 0
        idle, self.worked = now.moment - self.worked, now.moment
        if self.last and span < SHORTEST:
            return self.free
        if self.last and idle <= LONGEST:
            others = max(now.all - self.last.all - (now.own - self.last.own), 0) / span
            self.free = max(len(os.sched_getaffinity(0)) - others, 0)
        else:
            self.free = None
        self.last = now
        return self.free

    def done(self) -> None:
        """Work ends that began with a look, however long ago: what others did meanwhile counts."""
        self.worked = time.monotonic()

    def _now(self) -> Look | None:
        try:
            lines, cores = self.stat.read_text().splitlines(), os.sched_getaffinity(0)
        except (OSError, AttributeError):  # another system
            return None
        counts = [line.split() for line in lines if line.startswith("cpu")]
        used = [[int(ticks) for ticks in values] for name, *values in counts if name[3:].isdigit() and int(name[3:]) in cores]
        # user nice system idle iowait irq softirq steal, then guests, which user and nice have in them
        busy = sum(sum(values[:3]) + sum(values[5:8]) for values in used)
        return Look(time.monotonic(), time.process_time(), busy / TICKS)


cores = FreeCores()


def threads_for(free: float | None, asked: int) -> int:
    """Threads to compute with where so many cores are free (None: not known): as many as asked for, or fewer, but one."""
    return asked if free is None else max(1, min(asked, int(free + 1 - FREE_ENOUGH)))


@contextlib.contextmanager
def on_free_cores() -> Iterator[None]:
    """Within it torch has no more threads than cores are free; after it as many as before. A story is the same to the bit with any number."""
    asked = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or asked == 1:
        yield
        return
    torch.set_num_threads(threads_for(cores.look(), asked))
    try:
        yield
    finally:
        torch.set_num_threads(asked)
        cores.done()
