"""Sixteen kinds of damaged videos among good ones: reported, passed over, and without a trace in what is learnt.

The small form of tools/measure_damaged_files.py, by the same functions.
"""

import importlib.util
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def test_damaged_videos_are_reported_and_change_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    specification = importlib.util.spec_from_file_location("measure_damaged_files", TOOLS / "measure_damaged_files.py")
    measuring = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, measuring)
    specification.loader.exec_module(measuring)
    result = measuring.measure(tmp_path, each=2, seed=1, steps=10)
    assert len(result["kinds"]) == 16 and all(row["files"] == 2 for row in result["kinds"].values())
    assert result["accepted"] == {} and result["reported"] == 32 and result["good_files_refused"] == 0
    assert result["worker_crashes"] == result["stalls_over_10_s"] == 0
    assert result["training"]["log"] and result["training"]["equal_losses"] and result["training"]["equal_weights"]
