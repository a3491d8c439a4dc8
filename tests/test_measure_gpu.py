"""What tools/measure_gpu.py counts, on the smallest model and a CPU: whole stories and whole chunks."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from measure_gpu import measure, rounded


def test_all_frames_of_stories_and_chunks_are_counted():
    found = measure(["tiny"], torch.device("cpu"), seconds=2.0, runs=1)
    assert found["device"] == "cpu" and "matrix_tera_operations_per_second" not in found
    tiny = found["tiny"]
    assert tiny["story"]["frames"] == 16 and tiny["chunk"]["new_frames"] == 6  # two seconds of eight; three slices of two
    chunk = tiny["chunk"]
    assert chunk["frames_per_second"] * chunk["seconds"] == pytest.approx(6, rel=2e-3)
    assert chunk["tera_operations_per_second"] * chunk["seconds"] == pytest.approx(chunk["tera_operations"], rel=2e-3)
    assert 0 < tiny["story"]["seconds_to_first_frames"] < 16 / tiny["story"]["frames_per_second"]
    assert "share_of_peak" not in chunk  # that of a CPU is not known


def test_figures_have_four_digits():
    assert rounded(123456) == 123500 and rounded(0.00123456) == 0.001235
