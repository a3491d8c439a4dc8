"""What the rendering of many scripts shows: bars with the frames of those in work, or a line for each where nobody watches."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from phenaki.rendering import Outcome, Watcher
from phenaki.script_folder import Job


class RenderingDisplay(Watcher):
    """On a terminal: a bar for the folder and one for each script in work. Everywhere: a line for each script that has ended."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"))
        self.bars = Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True, disable=not self.console.is_terminal)
        self.all: TaskID | None = None
        self.in_work: dict[Job, TaskID] = {}

    def __enter__(self) -> "RenderingDisplay":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def begin(self, num_kept: int, num_jobs: int) -> None:
        if num_kept:
            self.note(f"{num_kept} of {num_kept + num_jobs} videos are there already")
        self.all = self.bars.add_task("all", total=num_jobs, unit="videos")

    def frames(self, job: Job, done: int, total: int) -> None:
        if job not in self.in_work:
            self.in_work[job] = self.bars.add_task(job.script.name, total=total, unit="frames")
        self.bars.update(self.in_work[job], completed=done)

    def note(self, text: str) -> None:
        """A line letter for letter: paths may hold what `rich` takes for markup."""
        self.console.print(Text(text), soft_wrap=True)

    def outcome(self, outcome: Outcome) -> None:
        if outcome.job in self.in_work:
            self.bars.remove_task(self.in_work.pop(outcome.job))
        self.note(told(outcome))
        self.bars.advance(self.all)


def told(outcome: Outcome) -> str:
    """An outcome as a line."""
    if outcome.error:
        return f"failed: {outcome.job.script.name}: {outcome.error}"
    figures = f"{outcome.num_frames} frames, {outcome.video_seconds:.2f} s of video in {outcome.wall_seconds:.1f} s"
    return f"{outcome.job.output}: {figures}" + (f", on try {outcome.tries}" if outcome.tries > 1 else "")
