"""`phenaki evaluate story`: a model makes videos of a fixed set of scripts, and a referee, another network, says what it sees in them.

One story at a time is made, judged, and kept in the work folder with what the figures need: labels, sums, 400 numbers for the
Frechet distance. So memory does not grow with the number of stories. Rendered truth of the same scripts is judged alike: what the
referee misses there, no model can be blamed for.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki.checkpoint import state_sha256
from phenaki.data.storybook import StorybookWorld
from phenaki.evaluation.adherence import Seen, scene_cases
from phenaki.evaluation.referee import judge
from phenaki.evaluation.seams import seam_parts
from phenaki.evaluation.story_scripts import Script
from phenaki.evaluation.story_work import Judged, Record, WorkFolder
from phenaki.evaluation.tokenizer import as_shown
from phenaki.pipeline import Phenaki
from phenaki.pixels import to_pixels, to_video

VideoFeatures = Callable[[Tensor], Tensor]  # video (b c f h w) in [-1, 1] -> features (b d)


class FrameJudge(Protocol):
    """labels: attribute -> names in the order of the logits. Called with video (b c f h w) in [-1, 1] -> attribute -> logits (b f n)."""

    labels: dict[str, tuple[str, ...]]

    def __call__(self, video: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class MadeStory:
    """A story as a model made it. video: (c f h w) float in [-1, 1], on the CPU, of 8-bit values; seconds: wall time."""

    video: Tensor
    chunk_starts: tuple[int, ...]  # first frame of each chunk
    slice_starts: tuple[int, ...]  # first frame of each slice of tokens
    seconds: float


def tell(phenaki: Phenaki, script: Script) -> MadeStory:
    """Makes the video of a script as a user would, at the model's own size and rate."""
    started = time.perf_counter()
    chunks = list(phenaki.stream_story(script.story))
    seconds = time.perf_counter() - started
    video = torch.cat([to_video(chunk.frames) for chunk in chunks]).transpose(0, 1)
    slices = (0, *range(1, video.shape[1], phenaki.info.tokenizer.temporal_patch_size))  # scripts have no cuts, which begin another video
    return MadeStory(video, tuple(chunk.start_frame for chunk in chunks), slices, seconds)


def evaluate_stories(
    scripts: Sequence[Script], teller: Callable[[Script], MadeStory], world: StorybookWorld, referee: FrameJudge, i3d: VideoFeatures | None,
    work: WorkFolder, on_story: Callable[[int], None] = lambda _: None,
) -> None:  # fmt: skip
    """Makes and judges every script of which the work folder has no record yet; on_story is called with the number of records."""
    for script in scripts:
        check_labels(script, referee)
    for count, script in enumerate(scripts, 1):
        if work.record(script.index) is None:
            made = teller(script)
            frames = to_pixels(rearrange(made.video, "c f h w -> f c h w"), world.config.size)
            work.keep(judge_story(script, made, world, referee, i3d), frames, world.config.fps)
        on_story(count)


def judge_story(script: Script, made: MadeStory, world: StorybookWorld, referee: FrameJudge, i3d: VideoFeatures | None) -> Record:
    """The model's video and a rendered one of the same script, judged alike; features are of the whole story."""
    truth = as_shown(world.render([script.truth]))[0].cpu()
    if made.video.shape != truth.shape:
        raise ValueError(f"story {script.index}: a video of shape {tuple(made.video.shape)}; its script needs {tuple(truth.shape)}")
    again = as_shown(world.render([world.started_anew(script.truth, script.index)]))[0].cpu()
    scene_starts = {case.start for case in scene_cases(script.truth, ())}

    def judged(video: Tensor) -> Judged:
        seams = seam_parts(video, made.chunk_starts, scene_starts, made.slice_starts)
        return Judged(see(referee, video, world.device), seams, features_of(i3d, video, world.device))

    seconds = truth.shape[1] / world.config.fps
    return Record(script.index, judged(made.video), judged(truth), features_of(i3d, again, world.device), round(made.seconds, 3), seconds)


def see(referee: FrameJudge, video: Tensor, device: torch.device) -> Seen:
    """The referee's likeliest label of every attribute in every frame; video: (c f h w) in [-1, 1]."""
    return {name: clips[0] for name, clips in judge(referee, video[None].to(device)).items()}


@torch.no_grad()
def features_of(i3d: VideoFeatures | None, video: Tensor, device: torch.device) -> list[float]:
    """video: (c f h w) in [-1, 1] -> its features; an empty list where there is no network."""
    return [] if i3d is None else [round(value, 5) for value in i3d(video[None].to(device))[0].tolist()]


def check_labels(script: Script, referee: FrameJudge) -> None:
    """ValueError where a script names something that the referee has no label for: it would count as wrong whatever is shown."""
    for case in scene_cases(script.truth, tuple(referee.labels)):
        for name, label in case.truth.items():
            if name in case.known and label not in referee.labels[name]:
                known = ", ".join(filter(None, referee.labels[name]))
                raise ValueError(f"{name} {label!r}: the referee knows {known}. Use the referee of this world")


def fingerprint(referee: FrameJudge) -> str:
    """Names a referee by its labels and weights."""
    weights = state_sha256([referee]) if isinstance(referee, nn.Module) else ""
    return hashlib.sha256(f"{sorted(referee.labels.items())} {weights}".encode()).hexdigest()[:16]
