"""Progress where nobody has a terminal: few lines, with the time that is left."""

import numpy as np
import pytest
import torch
from rich.console import Console

from phenaki.pipeline import StoryChunk
from phenaki.progress import Lines, story_progress


def chunk(start: int, count: int = 10) -> StoryChunk:
    return StoryChunk(np.zeros((count, 1, 1, 3), np.uint8), torch.zeros(1, 1, 1), 2, "a bear " * 10, start, 1000)


def told(seconds_a_chunk: float, starts: range) -> list[str]:
    """What is written while chunks come at this pace."""
    lines, now = [], [0.0]
    show = Lines(lines.append, lambda: now[0])
    for start in starts:
        now[0] += seconds_a_chunk
        show(chunk(start))
    return lines


def test_a_short_story_is_told_in_no_line_and_a_long_one_in_a_few():
    assert told(0.05, range(0, 1000, 10)) == []
    lines = told(36, range(0, 1000, 10))  # an hour
    assert 10 <= len(lines) <= 25 and lines[0] == "10/1000 frames, scene 3: a bear a bear a bear a bear a bear a bea; about 3564 s left"


def test_what_was_there_before_is_no_measure_of_pace():
    """A run that goes on at frame 500 and has made 10 frames in 20 seconds needs 980 for the other 490."""
    assert told(20, range(500, 1000, 10))[0].endswith("about 980 s left")


def test_a_chunk_without_frames_says_nothing():
    """At half a frame a second shown, most chunks have none; the first after a resume too."""
    lines, now = [], [0.0]
    show = Lines(lines.append, lambda: now[0])
    for start, count in [(500, 0), (500, 10)]:
        now[0] += 20
        show(chunk(start, count))
    assert lines == [f"510/1000 frames, scene 3: {('a bear ' * 10)[:40]}; about 1960 s left"]


@pytest.mark.parametrize("shown", [True, False])
def test_lines_go_to_standard_error(shown, capsys, monkeypatch):
    monkeypatch.setattr("phenaki.progress.FIRST_LINE", 0.0)
    with story_progress(shown) as advance:
        advance(chunk(0))
    said = capsys.readouterr()
    assert said.out == "" and ("10/1000 frames" in said.err) == shown


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(Console, "is_terminal", True)
    with story_progress(True) as advance:
        advance(chunk(990))
    assert "1000/1000 frames" in capsys.readouterr().err
