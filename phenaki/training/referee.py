"""Trains a referee: a task of the common training loop, on a bank of examples that is painted once and looks otherwise each time.

Some clips are blends of two, whose right answer is both in their shares: so the referee learns to be unsure.
The bank lies on the referee's device as bytes, and clips are changed there; the random numbers are drawn on the CPU.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki.devices import device_of, sent
from phenaki.evaluation.referee import SIZE, Referee
from phenaki.pixels import from_bytes
from phenaki.training.optimizers import OptimizerSettings, generator_for
from phenaki.training.parallel import Part
from phenaki.training.referee_augmentation import augmented
from phenaki.training.referee_examples import UNJUDGED, Examples
from phenaki.training.task import Task

FRAMES_JUDGED = 4  # of each clip by the frame trunk, unless more are asked for: neighbours look alike
BLEND_SHARE = 0.15  # of the clips
BLEND_RANGE = (0.3, 0.7)  # share of the first clip in a blend
NEAR_CHANGE_WEIGHT = 0.3  # of motion's loss where the window has frames of another scene


@dataclass(frozen=True)
class RefereeBatch:
    """Clips for one step.

    video: (b 3 f 64 64) float in [-1, 1]; labels, other_labels: (b f a) int64, of both clips of a blend (equal where there is
    none); share: (b,) of the first; near_change: (b f) bool; frames: (k,) those that the frame trunk sees.
    """

    video: Tensor
    labels: Tensor
    other_labels: Tensor
    share: Tensor
    near_change: Tensor
    frames: Tensor

    def rows(self, rows: slice) -> "RefereeBatch":
        """Some of the clips."""
        return RefereeBatch(*(getattr(self, field.name)[rows] for field in fields(self) if field.name != "frames"), self.frames)

    def to(self, device: torch.device) -> "RefereeBatch":
        """The batch on another device."""
        return RefereeBatch(*(sent(getattr(self, field.name), device) for field in fields(self)))


class RefereeTask(Task):
    """What `Run` trains here; labels are in its identity. `held_out` examples are for validation; frames_judged: of each clip for all but motion."""

    part = "referee"

    def __init__(
        self, referee: Referee, bank: Examples, settings: OptimizerSettings, identity: dict[str, Any], held_out: Examples | None = None,
        frames_judged: int = FRAMES_JUDGED,
    ):  # fmt: skip
        self.model, self.settings = referee, settings
        self.bank, self.held_out = bank.to(self.device), None if held_out is None else held_out.to(self.device)
        labels = {name: list(names) for name, names in referee.labels.items()}
        self.identity = {"labels": labels, "network": asdict(referee.config), **identity}
        self.frames_judged = frames_judged

    def build(self) -> Referee:
        return Referee(self.model.labels, self.model.config)

    def draw(self, step: int, parts: list[Part]) -> list[RefereeBatch]:
        """Clips of the bank as they are seen in this step; some are blends."""
        size, rng = self.settings.batch_size, generator_for(self.settings.seed, step, "referee")
        rows = torch.randint(len(self.bank), (size,), generator=rng)
        others = torch.randint(len(self.bank), (size,), generator=rng)
        is_blend = torch.rand(size, generator=rng) < BLEND_SHARE
        others = torch.where(is_blend, others, rows)
        low, high = BLEND_RANGE
        share = torch.where(is_blend, low + (high - low) * torch.rand(size, generator=rng), 1.0)
        frames = torch.randperm(self.bank.video.shape[2], generator=rng)[: self.frames_judged]
        blends = is_blend.nonzero()[:, 0]
        rows, others, share, frames, blends = (sent(one, self.device) for one in (rows, others, share, frames, blends))
        video = from_bytes(self.bank.video[rows])
        video[blends] = video[blends].lerp(from_bytes(self.bank.video[others[blends]]), 1 - rearrange(share[blends], "b -> b 1 1 1 1"))
        labels, other_labels = self.bank.labels[rows].long(), self.bank.labels[others].long()
        near_change = self.bank.near_change[rows] | self.bank.near_change[others]
        batch = RefereeBatch(augmented(video, rng), labels, other_labels, share, near_change, frames)
        return [batch.rows(part.of(size)) for part in parts]

    def num_tokens(self, batch: RefereeBatch) -> int:
        """Frames, of which motion is judged."""
        return batch.near_change.numel()

    def losses(self, batch: RefereeBatch, step: int) -> dict[str, Tensor]:
        return referee_losses(self.model, batch)

    def rehearse(self, network: Referee, num_rows: int) -> Tensor:
        video = torch.zeros(num_rows, 3, self.bank.video.shape[2], SIZE, SIZE, device=device_of(network))
        return sum(one.mean() for one in network.see(video, slice(self.frames_judged)).values())

    def effort(self, batch: RefereeBatch) -> float:
        return len(batch.share)

    @torch.no_grad()
    def validate(self, model: nn.Module, num_batches: int, num_parts: int) -> dict[str, float]:
        """Losses on held-out examples as they are, one batch after the other from the first."""
        if self.held_out is None:
            return {}
        size, batch_losses = self.settings.batch_size, []
        for begin in range(0, min(num_batches * size, len(self.held_out)), size):
            batch_losses.append(referee_losses(model, as_batch(self.held_out, slice(begin, begin + size))))
        return {name: sum(losses[name].item() for losses in batch_losses) / len(batch_losses) for name in batch_losses[0]}


def as_batch(examples: Examples, rows: slice) -> RefereeBatch:
    """Examples as they are, all frames judged."""
    labels, video = examples.labels[rows].long(), from_bytes(examples.video[rows])
    share, frames = torch.ones(len(labels), device=video.device), torch.arange(video.shape[2], device=video.device)
    return RefereeBatch(video, labels, labels, share, examples.near_change[rows], frames)


def referee_losses(referee: Referee, batch: RefereeBatch) -> dict[str, Tensor]:
    """Cross-entropy of each attribute over the frames that can be judged, and "loss", their sum."""
    batch = batch.to(device_of(referee))
    logits = referee.see(batch.video, batch.frames)
    losses = {}
    for index, name in enumerate(referee.labels):
        frames = slice(None) if name == "motion" else batch.frames
        weight = torch.where(batch.near_change, NEAR_CHANGE_WEIGHT if name == "motion" else 1.0, 1.0)
        truths = batch.labels[:, frames, index], batch.other_labels[:, frames, index]
        losses[name] = blended_loss(logits[name], truths, batch.share, weight[:, frames])
    return {"loss": sum(losses.values()), **losses}


def blended_loss(logits: Tensor, truths: tuple[Tensor, Tensor], share: Tensor, weight: Tensor) -> Tensor:
    """share * cross-entropy to the first truth + the rest to the second, the mean over weights.

    logits: (b f n); truths: (b f) int64, UNJUDGED = no loss; share: (b,); weight: (b f).
    """
    total, weights = logits.new_zeros((), dtype=torch.float32), weight.new_zeros(())
    for truth, part in zip(truths, (share, 1 - share), strict=True):
        loss = F.cross_entropy(rearrange(logits.float(), "b f n -> b n f"), truth, ignore_index=UNJUDGED, reduction="none")
        counted = weight * part[:, None] * (truth != UNJUDGED)
        total, weights = total + (loss * counted).sum(), weights + counted.sum()
    return total / weights.clamp(min=1e-6)
