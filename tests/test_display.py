"""What training and the rendering of a folder show on a terminal, where a test does not look by chance: CI has none."""

import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from training_toys import Toy, settings

from phenaki.rendering import Outcome
from phenaki.rendering_display import RenderingDisplay
from phenaki.script_folder import Job
from phenaki.training.display import TrainingDisplay, time_left
from phenaki.training.run import Run

pytestmark = pytest.mark.usefixtures("synced")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "200")


def train(folder: Path) -> list[dict[str, float]]:
    """A run's own lines, shown as they come."""
    lines = []
    with TrainingDisplay() as display:
        run = Run(folder, Toy(), settings(num_steps=8, log_every=4))
        run.train(lambda line: [lines.append(line), display.line(line)])
        display.note("[bold]runs[/bold]/a: done")
    return lines


def test_a_training_on_a_terminal_has_a_bar_with_figures_and_the_time_left(terminal, tmp_path, capsys):
    first, last = train(tmp_path)
    shown = capsys.readouterr()
    assert first["seconds_left"] > 0 == last["seconds_left"] and last["step"] == 8
    assert "step" in shown.err and "8/8" in shown.err and f"loss {last['loss']:.4g}" in shown.err and "0:00:00 left" in shown.err
    assert "[bold]runs[/bold]/a: done" in shown.err and shown.out == ""


def test_a_training_that_nobody_watches_writes_its_lines(tmp_path, capsys):
    train(tmp_path)
    shown = capsys.readouterr()
    assert len(re.findall(r"^step \d+  loss \S+", shown.out, flags=re.MULTILINE)) == 2 and "done" in shown.err and "8/8" not in shown.err


def test_only_the_first_of_several_processes_says_anything(terminal, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with TrainingDisplay() as display:
        display.note("something")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "told"), [(0, "0:00:00 left"), (59.6, "0:01:00 left"), (3723, "1:02:03 left"), (90_000, "25:00:00 left")])
def test_the_time_left(seconds, told):
    assert time_left(seconds) == told


def test_a_folder_on_a_terminal_has_bars_for_all_and_for_what_is_in_work(terminal, capsys):
    job = Job(Path("scripts/a [b].yaml"), Path("videos/a [b].mp4"))
    with RenderingDisplay() as display:
        display.begin(2, 3)
        display.frames(job, 12, 48)
        display.bars.refresh()
        assert len(display.in_work) == 1
        display.outcome(Outcome(job, num_frames=48, video_seconds=6.0, wall_seconds=30.0, tries=2))
        assert not display.in_work and display.bars.tasks[0].completed == 1
        display.outcome(Outcome(Job(Path("c.yaml"), Path("c.mp4")), error="no scenes"))
    shown = capsys.readouterr()
    assert "2 of 5 videos are there already" in shown.err and "a [b].yaml" in shown.err and "12/48" in shown.err
    assert "videos/a [b].mp4: 48 frames, 6.00 s of video in 30.0 s, on try 2" in shown.err and "failed: c.yaml: no scenes" in shown.err
    assert shown.out == ""


def test_a_meter_s_line_has_what_a_display_reads():
    """Were a name to change in one of them, every training in a terminal would end at its first line."""
    from phenaki.training.display import SHOWN
    from phenaki.training.journal import Meter
    from phenaki.training.parallel import Group

    meter = Meter()
    meter.add({"loss": torch.tensor(2.0), "grad_norm": torch.tensor(1.0), "skipped": torch.tensor(0.0)}, tokens=10, waited=0.0)
    line = meter.line(1, 4, 2, Group(), peak=0.0)
    assert {"step", "seconds_left", "seconds_per_step"} <= line.keys()
    assert set(line) & set(SHOWN) == {"loss", "grad_norm", "clips_per_second", "tokens_per_second", "waiting", "skipped"}
