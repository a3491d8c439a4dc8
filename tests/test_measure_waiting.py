"""The measurement of waiting for clips, on shards of four tiny videos."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from phenaki.data.footage import Footage
from phenaki.video import Video

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import measure_waiting

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("synced")


@pytest.fixture
def footage(tmp_path) -> Path:
    folder = tmp_path / "footage"
    folder.mkdir()
    for number in range(4):
        Video(np.full((12, 40, 48, 3), 60 * number, np.uint8), 8.0).save(folder / f"{number}.mp4")
    return folder


def measured(monkeypatch, tmp_path, footage: Path) -> dict:
    output = tmp_path / "waiting.json"
    words = ["measure_waiting.py", footage, "--config", ROOT / "configs/tiny.toml", "--steps", 10, "--threads", 1, "-o", output]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    measure_waiting.main()
    return json.loads(output.read_text())


def test_slow_clips_are_waited_for_and_the_share_is_told(monkeypatch, tmp_path, footage, capsys):
    clips, slow = Footage.clips, []

    def slowly(self, *arguments):
        slow.append(measure_waiting.time.sleep(0.3))
        return clips(self, *arguments)

    monkeypatch.setattr(Footage, "clips", slowly)
    result = measured(monkeypatch, tmp_path, footage)
    assert result["clips"] == 4 and result["size"] == 32 and result["steps"] == 10
    assert [line["step"] for line in result["intervals"]] == [5, 10] and len(slow) >= 10
    assert 0.5 < result["waiting"] <= 1 and 0.5 < result["waiting_after_the_first_interval"] <= 1
    assert "step 10" in capsys.readouterr().out


def test_the_share_is_weighed_by_time():
    lines = [{"step": 20, "seconds_per_step": 1.0, "waiting": 0.5}, {"step": 50, "seconds_per_step": 2.0, "waiting": 0.1}]
    assert measure_waiting.share_waited(lines) == pytest.approx((10 + 6) / 80)
    assert measure_waiting.share_waited(lines[1:], 20) == pytest.approx(0.1)
