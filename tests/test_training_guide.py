"""Every command of docs/training.md, in its order, on a folder of six tiny videos and a picture."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from phenaki.checkpoint import load_model
from phenaki.cli import app
from phenaki.video import Video

ROOT = Path(__file__).resolve().parents[1]
SEEN = ("check", "shard", "tokenizer", "generator", "tokenize", "generate", "torchrun", "evaluate")


def commands() -> list[str]:
    """The indented lines that are commands."""
    lines = (ROOT / "docs/training.md").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.startswith(("    phenaki ", "    torchrun "))]


def make_footage(folder: Path, seed: int = 0) -> None:
    """Coloured squares that move, with captions."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(6):
        frames = np.full((40, 48, 64, 3), 40 * number, np.uint8)
        for index, frame in enumerate(frames):
            frame[10:26, index : index + 16] = rng.integers(0, 255, 3)
        Video(frames, 8.0).save(folder / f"clip{number}.mp4")
        (folder / f"clip{number}.txt").write_text(f"square number {number} moves to the right")
    Image.fromarray(frames[0]).save(folder / "picture.png")
    (folder / "picture.txt").write_text("a square")


def run(command: str) -> str:
    """What a command says. Those of one process run in this one, which has imported everything already."""
    program, *words = command.split()
    if program == "phenaki":
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (command, done.output[-3000:])
        return done.output
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words]
    done = subprocess.run(started, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout[-1000:], done.stderr[-3000:])
    return done.stdout + done.stderr


def test_every_command_of_the_guide_runs(tmp_path, monkeypatch):
    make_footage(tmp_path / "footage")
    make_footage(tmp_path / "held_out", seed=1)
    (tmp_path / "footage/broken.mp4").write_bytes(b"no video at all")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    tiny = tmp_path / "configs/tiny.toml"
    tiny.write_text(tiny.read_text().replace("num_stories = 8", "num_stories = 3"))
    (tmp_path / "script.txt").write_text("square number 1 moves to the right\nsquare number 2 moves to the right\n")
    told = commands()
    assert len(told) >= 9 and all(any(word in command for command in told) for word in SEEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHENAKI_CACHE", str(tmp_path / "cache"))  # without the metric networks, as where they were not installed
    said = {command: run(command) for command in told}
    assert "broken.mp4" in said["phenaki data check footage --config configs/tiny.toml"]
    measured = next(words for command, words in said.items() if command.startswith("phenaki evaluate tokenizer"))
    assert "PSNR" in measured and "trained on" not in measured, "clips that were kept aside"
    assert "broken.mp4" in (tmp_path / "run/tokenizer/unusable.jsonl").read_text()
    assert load_model(tmp_path / "run/model").generator is not None and load_model(tmp_path / "tuned/model").generator is None
    assert len(Video.load(tmp_path / "out.mp4")) > 10 and (tmp_path / "tokenizer.html").stat().st_size > 10_000
    assert load_model(tmp_path / "together/model").info.training["tokenizer_steps"] == 10
