"""What `phenaki plan` shows: a table of the scenes, and a line on the whole."""

import math

from rich.table import Table
from rich.text import Text

from phenaki.checkpoint import ModelInfo
from phenaki.planning import PlannedScript

COLUMNS = ("scene", "from", "seconds", "frames", "chunks", "tokens", "prompt")


def plan_table(told: PlannedScript, info: ModelInfo, title: str) -> Table:
    """A row for each scene. Times and frames are the video's own, chunks and tokens the model's; title and prompts stand letter for letter."""
    table, per_slice = Table(title=Text(title)), math.prod(info.tokenizer.grid)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for scene, shown in zip(told.plan.scenes, told.shown, strict=True):
        mark = f"{scene.index + 1}{' cut' if scene.starts_segment and scene.index else ''}"
        times = (f"{frames / told.fps:.2f}" for frames in (shown.start_frame, shown.num_frames))
        table.add_row(mark, *times, *map(str, (shown.num_frames, len(scene.chunks), scene.num_slices * per_slice)), Text(scene.prompt))
    return table


def plan_summary(told: PlannedScript, info: ModelInfo, seconds: float) -> str:
    """Totals on one line. seconds: `expected_seconds`."""
    counts = f"{told.plan.num_chunks} chunks, {told.plan.num_slices * math.prod(info.tokenizer.grid)} tokens"
    made = f" (made at {told.plan.fps:g} fps)" if told.fps != told.plan.fps else ""
    total = f"{told.num_frames} frames, {told.num_frames / told.fps:.2f} s at {told.fps:g} fps{made}, {counts}"
    return f"{total}; about {seconds:.0f} s on this machine's CPU"
