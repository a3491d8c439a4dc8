"""What a training program shows on the terminal: a bar with the time left and the newest figures, or plain lines where nobody watches."""

import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

SHOWN = ("loss", "psnr", "correct", "grad_norm", "clips_per_second", "tokens_per_second", "mfu", "waiting", "skipped")


class TrainingDisplay:
    """Takes a run's lines and notes. On a terminal: one bar on stderr. Elsewhere: each line on stdout, notes on stderr."""

    def __init__(self):
        self.console = Console(stderr=True)
        self.leads = int(os.environ.get("RANK", "0")) == 0
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
        watched = self.console.is_terminal and self.leads
        self.bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=self.console, disable=not watched)
        self.task = None

    def __enter__(self) -> "TrainingDisplay":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def line(self, line: dict[str, float]) -> None:
        """The figures of an interval."""
        if self.bar.disable:
            print("  ".join(f"{name} {value:.4g}" for name, value in line.items()), file=sys.stdout, flush=True)
            return
        seconds_left, per_step = line["seconds_left"], line["seconds_per_step"]
        total = line["step"] + round(seconds_left / per_step) if per_step else line["step"]
        figures = "  ".join(f"{name} {line[name]:.4g}" for name in SHOWN if name in line)
        if self.task is None:
            self.task = self.bar.add_task("", total=total, left="", figures="")
        self.bar.update(self.task, total=total, completed=line["step"], left=time_left(seconds_left), figures=figures)

    def note(self, text: str) -> None:
        """A line letter for letter: paths may hold what `rich` takes for markup."""
        if self.leads:
            self.console.print(Text(text), soft_wrap=True)


def time_left(seconds: float) -> str:
    """1:02:03 left."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left"
