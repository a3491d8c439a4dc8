"""How far a story is: a bar on a terminal, and plain lines, ever further apart, in notebooks and log files."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

FIRST_LINE = 10.0  # seconds until the first of the lines
FURTHER_APART = 1.25  # times: an hour's work is told in about twenty lines

Chunk = Any  # of `pipeline.StoryChunk`: scene, prompt, start_frame, end_frame, num_frames_total


@contextlib.contextmanager
def story_progress(shown: bool) -> Iterator[Callable[[Chunk], None]]:
    """What is told of each chunk as it is made; nothing is shown where `shown` is False."""
    from rich.console import Console

    console = Console(stderr=True)
    if not shown:
        yield lambda chunk: None
    elif console.is_terminal:
        with bar(console) as advance:
            yield advance
    else:
        yield Lines(lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))


@contextlib.contextmanager
def bar(console: Any) -> Iterator[Callable[[Chunk], None]]:
    """A bar of frames with the time left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total} frames"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda chunk: progress.update(task, total=chunk.num_frames_total, completed=chunk.end_frame, description=place(chunk))


class Lines:
    """A line after ten seconds, then whenever a quarter more time has passed."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self.write, self.clock = write, clock
        self.began, self.due = clock(), FIRST_LINE
        self.before: int | None = None  # frames that were there when this began: a run that goes on has some

    def __call__(self, chunk: Chunk) -> None:
        seconds = self.clock() - self.began
        if self.before is None:
            self.before = chunk.start_frame
        made = chunk.end_frame - self.before  # none, where a video has fewer frames a second than chunks
        if made and seconds >= self.due and chunk.end_frame < chunk.num_frames_total:
            left = seconds / made * (chunk.num_frames_total - chunk.end_frame)
            self.write(f"{chunk.end_frame}/{chunk.num_frames_total} frames, {place(chunk)}; about {left:.0f} s left")
            self.due = FURTHER_APART * seconds


def place(chunk: Chunk) -> str:
    return f"scene {chunk.scene + 1}: {chunk.prompt[:40]}"
