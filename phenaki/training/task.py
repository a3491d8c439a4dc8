"""What a run trains: a network, its data and its losses. The loop (`run.py`) knows no more of a network than this."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from phenaki.devices import device_of
from phenaki.training.parallel import Part


class Task:
    """A network, its data and its losses. Methods that most tasks leave as they are have a default; the others must be overridden."""

    part: str  # names the weight file: "tokenizer", "generator" or "referee"
    model: nn.Module
    identity: dict[str, Any]  # what a run must have alike to resume
    habits: Mapping[str, Any] = MappingProxyType({})  # settings besides the optimiser's; those that have changed are noted when a run is resumed
    discriminator: nn.Module | None = None  # trained against the model by "discriminator_loss", saved, not averaged

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    def build(self) -> nn.Module:
        """A new network of the model's kind."""
        raise NotImplementedError

    def draw(self, step: int, parts: list[Part]) -> list[Any]:
        """Neighbouring parts of a step's clips, a batch each, from (seed, step) alone."""
        raise NotImplementedError

    def num_tokens(self, batch: Any) -> int:
        """What "tokens_per_second" counts in a batch."""
        raise NotImplementedError

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Named scalars; "loss" is minimised, all are logged. Their mean over equal parts of a batch is the batch's."""
        raise NotImplementedError

    def rehearse(self, network: nn.Module, num_rows: int) -> Tensor:
        """A forward pass of a network of `build` on so many made-up clips of a training step's size, to a scalar."""
        raise NotImplementedError

    def effort(self, batch: Any) -> float:
        """How many clips of a rehearsal take as many operations as a step on a batch, about: as its share of their tokens."""
        raise NotImplementedError

    def validate(self, model: nn.Module, num_batches: int, num_parts: int) -> dict[str, float]:
        """Losses of the averaged network on held-out batches, each in so many parts; {} where there are none."""
        raise NotImplementedError

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        """The figures of a line of the log, from the means of an interval's losses."""
        return means

    def after_step(self, step: int) -> None:
        """What changes weights besides the optimisers."""

    def describe(self, folder: Path, files: dict[str, str], step: int) -> None:
        """Makes a folder with the model's weight `files` a model folder, where there are such folders of it."""

    def sample(self, model: nn.Module, path: Path) -> None:
        """A look at what the averaged network makes, at path.png and such."""
