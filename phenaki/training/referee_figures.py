"""How often a referee is right: on fresh stories as rendered and as a tokenizer gives them back, with seen and with held-out pairs.

Counted are frames, and scenes: what most frames of one say is what an evaluation takes from them. An actor is judged where at least
a third of it is inside the picture, its motion, and all of a scene, where besides all frames up to MOTION_REACH away are of the same
scene. Actors that were erased or garbled show how often it is right by luck.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phenaki.cvivit import CViViT
from phenaki.data.storybook import StorybookWorld
from phenaki.devices import device_of
from phenaki.evaluation.adherence import majority
from phenaki.evaluation.referee import Referee
from phenaki.pixels import from_bytes
from phenaki.training.referee_examples import UNJUDGED, Examples, draw_examples, draw_stories, truth_of

SEED = 4321  # never a training seed
NUM_FRAMES = 33  # of a clip of one or two scenes, 1 + pt*k of the tokenizer
BATCH = 8  # clips
WORST = 3  # confusions that are named
SCENE_SECONDS = 1.0  # of frames that can be judged, the least for a scene to be counted


class Confusions(NamedTuple):
    """For each attribute a matrix (truth, judged), int64: of how many frames, and of how many scenes."""

    frames: dict[str, Tensor]
    scenes: dict[str, Tensor]


def measure_referee(referee: Referee, world: StorybookWorld, tokenizer: CViViT, num_clips: int) -> dict[str, Any]:
    """All figures, as JSON has them."""
    figures: dict[str, Any] = {"clips": num_clips, "frames": NUM_FRAMES}
    for pairs, held_out in (("seen_pairs", False), ("held_out_pairs", True)):
        for view, through in (("rendered", None), ("reconstructed", tokenizer)):
            batches = plain_batches(world, num_clips, NUM_FRAMES, held_out, through)
            frames, scenes = confusions(referee, batches, world.config.fps)
            figures[f"{view}_{pairs}"] = {
                name: {**accuracy(frames[name]), "confused": worst_pairs(frames[name], names), "scenes": accuracy(scenes[name])}
                for name, names in referee.labels.items()
            }
    for kind, key in (("nobody", "erased_actors"), ("garbled", "garbled_actors")):
        figures[key] = luck(referee, world, kind, num_clips, NUM_FRAMES)
    return figures


def plain_batches(world: StorybookWorld, num_clips: int, num_frames: int, held_out: bool, tokenizer: CViViT | None) -> Iterator[Examples]:
    """Fresh examples, BATCH clips at a time."""
    for begin in range(0, num_clips, BATCH):
        stories = draw_stories(world, SEED, range(begin, min(begin + BATCH, num_clips)), num_frames, held_out)
        yield draw_examples(world, stories, ["plain"] * len(stories), tokenizer=tokenizer)


@torch.no_grad()
def confusions(referee: Referee, batches: Iterable[Examples], fps: float) -> Confusions:
    """Counts of truth and judgement: of the examples' frames, and of their scenes of SCENE_SECONDS and more."""
    zeros = lambda: {name: torch.zeros(len(names), len(names), dtype=torch.int64) for name, names in referee.labels.items()}
    found = Confusions(zeros(), zeros())
    for examples in batches:
        judged = judged_labels(referee, examples)
        for index, (name, names) in enumerate(referee.labels.items()):
            truth = examples.labels[..., index].long()
            can_judge = truth != UNJUDGED
            within = can_judge & ~examples.near_change
            counts = within if name == "motion" else can_judge
            count(found.frames[name], truth[counts], judged[name][counts])
            for clip, near_change in enumerate(examples.near_change):
                for scene in stretches(near_change):
                    frames = scene[within[clip, scene]]
                    if len(frames) >= SCENE_SECONDS * fps:
                        seen = majority([names[label] for label in judged[name][clip, frames].tolist()])
                        count(found.scenes[name], truth[clip, frames[:1]], torch.tensor([names.index(seen)]))
    return found


def count(matrix: Tensor, truth: Tensor, judged: Tensor) -> None:
    """Adds cases, (n,) int64 each, to a matrix (truth, judged)."""
    matrix += torch.bincount(truth * len(matrix) + judged, minlength=matrix.numel()).view_as(matrix)


def stretches(near_change: Tensor) -> list[Tensor]:
    """The frames of each scene of a clip that are not near_change (f,), without scenes that have none."""
    scene = near_change.int().diff(prepend=torch.ones(1, dtype=torch.int32)).lt(0).cumsum(0)
    return [((scene == number) & ~near_change).nonzero()[:, 0] for number in range(1, int(scene[-1]) + 1)]


def judged_labels(referee: Referee, examples: Examples) -> dict[str, Tensor]:
    """The likeliest label of each attribute, (n f) int64."""
    device = device_of(referee)
    return {name: logits.argmax(-1).cpu() for name, logits in referee(from_bytes(examples.video).to(device)).items()}


def accuracy(matrix: Tensor) -> dict[str, float]:
    """Share right, and of how many frames; of the label that is hardest for it, too."""
    total, shown = matrix.sum().item(), matrix.sum(1) > 0
    by_label = matrix.diagonal()[shown] / matrix.sum(1)[shown]
    return {"right": round(matrix.trace().item() / max(total, 1), 5), "worst_label": round(by_label.min().item(), 5) if total else 0.0, "n": total}


def worst_pairs(matrix: Tensor, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The most frequent errors: what it was, what it was taken for, in how many of how many frames."""
    errors = matrix.clone().fill_diagonal_(0)
    largest = errors.flatten().argsort(descending=True)[:WORST].tolist()
    pairs = [divmod(cell, len(names)) for cell in largest]
    rows = [{"truth": names[i], "judged": names[j], "frames": errors[i, j].item(), "of": matrix[i].sum().item()} for i, j in pairs]
    return [row for row in rows if row["frames"]]


@torch.no_grad()
def luck(referee: Referee, world: StorybookWorld, kind: str, num_clips: int, num_frames: int) -> dict[str, float]:
    """Of frames whose actor was erased ("nobody") or garbled: in which share is it still named, and in which is nobody seen?"""
    index, still_right, nobody, total = list(referee.labels).index("actor"), 0, 0, 0
    for begin in range(0, num_clips, BATCH):
        stories = draw_stories(world, SEED, range(begin, min(begin + BATCH, num_clips)), num_frames)
        truth = truth_of(world, stories)[0][..., index]
        judged = judged_labels(referee, draw_examples(world, stories, [kind] * len(stories), seed=begin))["actor"]
        still_right += (judged == truth).sum().item()
        nobody += (judged == 0).sum().item()
        total += judged.numel()
    return {"still_named": round(still_right / total, 5), "nobody_seen": round(nobody / total, 5), "n": total}
