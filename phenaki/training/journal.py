"""A run's log: a line of figures for every interval, kept as JSON lines, shown in TensorBoard where that is installed."""

import importlib.util
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from phenaki.atomic import free_name, write_text
from phenaki.devices import sent
from phenaki.training.parallel import Group

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "4090": 165e12}  # dense bf16 operations a second
TIMES = ("seconds_per_step", "clips_per_second", "tokens_per_second", "waiting", "seconds_left", "mfu")  # figures that differ between equal runs


class Meter:
    """Sums over the steps since the last line of the log. Those of losses are saved in checkpoints and restored from them.

    A skipped step adds only to "skipped": its losses may be NaN.
    """

    def __init__(self, since: int = 0, sums: dict[str, float] | None = None):
        self.since = since  # steps
        self._saved, self._totals = dict(sums or {}), {}  # by names and device: all of a device are summed at once
        self._restart()

    @property
    def sums(self) -> dict[str, Tensor]:
        """Sums of losses by name: float64 scalars on the losses' devices."""
        sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in self._saved.items()}
        for (names, _), total in self._totals.items():
            for name, own in zip(names, total.unbind(), strict=True):
                sums[name] = sums[name].to(own.device) + own if name in sums else own
        return sums

    def _restart(self) -> None:
        self.began, self.timed, self.tokens, self.waited, self.operations = time.perf_counter(), 0, 0, 0.0, 0.0

    def add(self, values: dict[str, Tensor], tokens: int, waited: float, operations: float = 0.0) -> None:
        """Adds a step: its scalars, "skipped" (1 or 0) among them; tokens of all processes; seconds waited for clips; this process's operations."""
        if values["skipped"]:
            values = {name: value if name == "skipped" else torch.zeros_like(value) for name, value in values.items()}
        for device in dict.fromkeys(value.device for value in values.values()):
            here = {name: value.detach() for name, value in values.items() if value.device == device}
            key = tuple(here), device
            if key not in self._totals:
                saved = [self._saved.pop(name, 0.0) for name in here]
                self._totals[key] = sent(torch.tensor(saved, dtype=torch.float64), device)
            self._totals[key] += torch.stack(list(here.values()))
        self.since, self.timed, self.tokens = self.since + 1, self.timed + 1, self.tokens + tokens
        self.waited, self.operations = self.waited + waited, self.operations + operations

    def pause(self, seconds: float) -> None:
        """Leaves out seconds that no step took: checkpoints, samples."""
        self.began += seconds

    def line(
        self, step: int, num_steps: int, batch_size: int, group: Group, peak: float,
        figures: Callable[[dict[str, float]], dict[str, float]] = dict,
    ) -> dict[str, float]:  # fmt: skip
        """Means over the steps that were taken since the last line, by all processes (nan where none was), and how many were skipped.

        figures: makes the line's figures from the means. peak: operations a second that a process's device can do; 0 = not known, and
        the line has no "mfu". The sums start again from 0.
        """
        sums = {name: total.item() for name, total in group.mean(self.sums).items()}
        taken = self.since - sums["skipped"]
        means = {name: total / taken if taken else math.nan for name, total in sums.items()}
        seconds = time.perf_counter() - self.began
        line = {
            "step": step,
            **figures(means),
            "skipped": sums["skipped"],
            "seconds_per_step": seconds / self.timed,
            "clips_per_second": batch_size * self.timed / seconds,
            "tokens_per_second": self.tokens / seconds,
            "waiting": self.waited / seconds,
            "seconds_left": (num_steps - step) * seconds / self.timed,
        }
        if peak:
            line["mfu"] = self.operations / seconds / peak
        self.since, self._saved, self._totals = 0, {}, {}
        self._restart()
        return line


def peak_operations(device: torch.device) -> float:
    """bf16 operations a second that a GPU can do at most, by its name; 0 where that is not known."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), 0.0)


class Journal:
    """`folder`/log.jsonl, a line an interval; and TensorBoard's files in `folder`/tensorboard where it is installed."""

    def __init__(self, folder: Path):
        self.path, self.board = folder / "log.jsonl", None
        self._open_board()

    def _open_board(self, purge_step: int | None = None) -> None:
        """purge_step: the first step whose figures, written before, are to be dropped."""
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.path.with_name("tensorboard")), purge_step=purge_step)

    def write(self, line: dict[str, float]) -> None:
        """Appends a line: six digits of every figure; null for NaN and infinity, which JSON does not have."""
        figures = {key: _rounded(value) for key, value in line.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures, allow_nan=False) + "\n")
        if self.board:
            for key, value in figures.items():
                if value is not None:
                    self.board.add_scalar(key, value, line["step"])
            self.board.flush()

    def set_aside(self) -> Path | None:
        """Renames a log that has lines to log-1.jsonl, -2 and so on; returns the new path, None where there is no such log."""
        if not self.path.exists() or not self.path.stat().st_size:
            return None
        aside = free_name(self.path)
        self.path.rename(aside)
        return aside

    def forget_after(self, step: int) -> None:
        """Drops lines after a checkpoint, which will be written again, and a line that was cut off."""
        if self.path.exists():
            lines = [line for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines() if _step_of(line) <= step]
            write_text(self.path, "".join(line + "\n" for line in lines))
        if self.board:
            self.board.close()
            self._open_board(purge_step=step + 1)


def _rounded(value: float) -> float | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _step_of(line: str) -> float:
    """The step of a line of the log; infinity for one that is not whole."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, (int, float)) else math.inf
