"""What the tests of training share: short settings, a run of a network of eight weights, and what a run leaves behind."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from phenaki import atomic
from phenaki.training import checkpoints
from phenaki.training.journal import TIMES
from phenaki.training.losses import LossSettings
from phenaki.training.optimizers import OptimizerSettings, generator_for
from phenaki.training.parallel import Part
from phenaki.training.run import Run
from phenaki.training.task import Task

PLAIN = LossSettings(l1_weight=0.1, quantizer_weight=1.0, lpips_weight=0.0, i3d_weight=0.0, adversarial_weight=0.0)  # needs no network


class Stop(Exception):
    """The power cut."""


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """What the runs of a test have written through to the disk, in order; waiting for it is left to the test with kills."""
    paths: list[Path] = []
    monkeypatch.setattr(checkpoints, "sync", paths.append)
    monkeypatch.setattr(atomic, "sync", paths.append)
    return paths


def settings(**changes) -> OptimizerSettings:
    base = OptimizerSettings(num_steps=10, batch_size=2, warmup_steps=3, log_every=5, save_every=5, sample_every=1000, ema_decay=0.9)
    return replace(base, **changes)


@dataclass
class Toy(Task):
    """A task whose clips are the number of their step."""

    loss_at: Callable[[int], dict[str, Tensor]] | None = None  # of a step
    model: nn.Module = field(default_factory=lambda: nn.Linear(3, 2))
    part: str = "model"
    identity: dict = field(default_factory=dict)
    habits: dict = field(default_factory=dict)
    held_out: list[float] = field(default_factory=list)  # losses on held-out clips, one a checkpoint
    on_sample: Callable[[nn.Module, Path], None] = lambda model, path: None
    effort_at: Callable[[int], float] = lambda step: 4.0  # clips of a rehearsal that a step's take as much work as

    def build(self) -> nn.Module:
        return nn.Linear(3, 2)

    def draw(self, step: int, parts: list[Part]) -> list[int]:
        return [step for _ in parts]

    def num_tokens(self, batch: int) -> int:
        return 7

    def losses(self, batch: int, step: int) -> dict[str, Tensor]:
        assert batch == step
        if self.loss_at:
            return self.loss_at(step)
        x = torch.randn(4, 3, generator=generator_for(0, step))
        return {"loss": (self.model(x) - x[:, :2]).square().mean()}

    def rehearse(self, network: nn.Module, num_rows: int) -> Tensor:
        return network(torch.zeros(num_rows, 3)).square().mean()

    def effort(self, batch: int) -> float:
        return self.effort_at(batch)

    def validate(self, model: nn.Module, num_batches: int, num_parts: int) -> dict[str, float]:
        return {"loss": self.held_out.pop(0)} if self.held_out else {}

    def sample(self, model: nn.Module, path: Path) -> None:
        self.on_sample(model, path)


def little(folder: Path, num_steps: int = 10, loss_at=None, on_log=None, task: Toy | None = None, **changes) -> Run:
    """A run of a network of eight weights. loss_at(model, step, loss) may say what is minimised."""
    torch.manual_seed(4)
    task = task or Toy()
    task.model.reset_parameters()
    if loss_at:
        task.loss_at = lambda step: loss_at(task.model, step, lambda step: Toy(model=task.model).losses(step, step))
    run = Run(folder, task, settings(num_steps=num_steps, **changes))
    run.train(on_log or (lambda line: None))
    return run


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


def state(folder: Path) -> dict[str, str]:
    """Hashes of weights, averaged weights and optimiser state of the newest checkpoint, and the step."""
    manifest = json.loads((newest(folder) / "manifest.json").read_text())
    assert {"weights.safetensors", "optimizer.safetensors"} < set(manifest["sha256"]) and len(manifest["sha256"]) >= 3
    return manifest


def log(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
