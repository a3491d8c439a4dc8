"""`phenaki evaluate drift`: does a long video stay as good as it began? A story is judged while it is made, window by window.

A window is a run of whole chunks, about four seconds; where prompts change, it has one prompt. Once it is made the referee judges it
and rendered truth of its scene; a line of figures is written, and the window's frames and tokens are added to the story's video.
So no more than a window is in memory, and a killed evaluation is resumed after the last window that was judged.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phenaki.atomic import sync
from phenaki.data.storybook import StorybookWorld
from phenaki.data.world import SceneTruth, StoryTruth
from phenaki.evaluation.adherence import adherence, judged_frames, scene_cases, scenes_seen
from phenaki.evaluation.drift_scripts import HELD, WINDOW_SECONDS, LongScript
from phenaki.evaluation.looks import Looks, looks_of
from phenaki.evaluation.referee import likeliest
from phenaki.evaluation.story import FrameJudge, VideoFeatures, features_of
from phenaki.evaluation.tokenizer import as_shown
from phenaki.part_file import OtherPartError
from phenaki.pipeline import Phenaki, Prepared
from phenaki.pixels import to_video
from phenaki.recording import note_of, tokens_of_note
from phenaki.story_plan import StoryPlan
from phenaki.video import VideoWriter
from phenaki.video_encoders import part_path

MOST_WINDOWS = 10_000  # of a story, which has 900 an hour: so far apart are the numbers of the first windows of two stories
FVD_FRAMES = 16  # the last ones of a window: the first may still show the change to it


@dataclass(frozen=True)
class Side:
    """A window as the model made it, or as it was rendered.

    seen: attribute -> what the referee saw; right: attribute -> whether that is as told; impression: the referee's mean logits, all
    attributes one after the other; features: I3D's logits, empty where it was not installed.
    """

    seen: dict[str, str]
    right: dict[str, bool]
    looks: Looks
    impression: list[float]
    features: list[float]


@dataclass(frozen=True)
class Window:
    """A judged window. start_frame counts from the story's start."""

    index: int
    start_frame: int
    num_frames: int
    made: Side
    truth: Side


@dataclass(frozen=True)
class Judge:
    """Who judges windows, and the world that draws the truth of them."""

    world: StorybookWorld
    referee: FrameJudge
    i3d: VideoFeatures | None

    def window(self, script: LongScript, index: int, start_frame: int, video: Tensor) -> Window:
        """video: (c f h w) in [-1, 1], as the model made it."""
        scene = replace(script.scene(index), num_frames=video.shape[1])
        truth = self.world.started_anew(alone(scene), MOST_WINDOWS * script.index + index)
        rendered = as_shown(self.world.render([truth]))[0].cpu()
        return Window(index, start_frame, video.shape[1], self.side(video, scene), self.side(rendered, scene))

    @torch.no_grad()
    def side(self, video: Tensor, scene: SceneTruth) -> Side:
        """Judges one video (c f h w) in [-1, 1] of a scene."""
        case = scene_cases(alone(scene), tuple(self.referee.labels))[0]
        logits = self.referee(video[None].to(self.world.device))
        seen = {name: clips[0] for name, clips in likeliest(self.referee.labels, logits).items()}
        found = scenes_seen([case], seen, self.world.config.fps)
        right = {answer.attribute: answer.right for answer in adherence([case], found)}
        means = [logits[name][0].float().cpu()[list(judged_frames(name, case, self.world.config.fps))].mean(0) for name in self.referee.labels]
        impression = [round(value, 4) for value in torch.cat(means).tolist()]
        return Side(found[0], right, looks_of(video), impression, features_of(self.i3d, video[:, -FVD_FRAMES:], self.world.device))


def alone(scene: SceneTruth) -> StoryTruth:
    """A story of one scene. Where its actor starts is yet to be drawn (`started_anew`), or does not matter."""
    return StoryTruth((scene,), start_x=0.0, baseline=0.0, phase=0)


def window_chunks(plan: StoryPlan, mode: str) -> list[int]:
    """The number of chunks in each window: those of its scene; of a held prompt as many as come nearest to WINDOW_SECONDS."""
    if mode != HELD:
        return [len(scene.chunks) for scene in plan.scenes]
    each = max(1, round(WINDOW_SECONDS * plan.fps * plan.num_chunks / plan.num_frames))
    windows = max(1, round(plan.num_chunks / each))
    return [each] * (windows - 1) + [plan.num_chunks - each * (windows - 1)]  # the last takes what is left


def shortest_window(phenaki: Phenaki, script: LongScript) -> int:
    """Frames of the shortest window of a story, which has no cuts."""
    plan = phenaki.plan(script.story)
    slices = list(accumulate(chunk.num_slices for scene in plan.scenes for chunk in scene.chunks))
    ends = [min(phenaki.tokenizer.num_frames(slices[chunks - 1]), plan.num_frames) for chunks in accumulate(window_chunks(plan, script.mode))]
    return min(end - start for start, end in pairwise([0, *ends]))


def num_windows(phenaki: Phenaki, script: LongScript) -> int:
    """How many windows of a story are judged."""
    return len(window_chunks(phenaki.plan(script.story), script.mode))


class JudgedTokens(Sequence[Tensor]):
    """The tokens (t h w) of the chunks of all judged windows, read from the video's part file when they are asked for.

    notes: those of the judged windows. chunks: how many each window of the whole story has. grid: h, w.
    """

    def __init__(self, notes: Sequence[bytes], chunks: Sequence[int], plan: StoryPlan, grid: tuple[int, int]):
        self.notes, self.grid = notes, grid
        self.num_slices = [chunk.num_slices for scene in plan.scenes for chunk in scene.chunks]  # of each chunk
        self.first_chunks = [0, *accumulate(chunks)]  # of each window
        self.window_of = [window for window, count in enumerate(chunks) for _ in range(count)]  # each chunk

    def __len__(self) -> int:
        return self.first_chunks[len(self.notes)]

    def __getitem__(self, index: int) -> Tensor:
        window = self.window_of[index]
        before = sum(self.num_slices[self.first_chunks[window] : index])
        return tokens_of_note(self.notes[window], self.grid)[before : before + self.num_slices[index]]


@dataclass(frozen=True)
class MadeWindow:
    """A window that was just made. frames: uint8 (f h w 3); tokens: (t h w) int64."""

    index: int
    start_frame: int
    frames: np.ndarray
    tokens: Tensor

    @property
    def video(self) -> Tensor:
        """(c f h w) float in [-1, 1]."""
        return to_video(self.frames).transpose(0, 1)


def made_windows(phenaki: Phenaki, prepared: Prepared, chunks: Sequence[int], notes: Sequence[bytes]) -> Iterator[MadeWindow]:
    """Makes the windows of a story one by one, after those that are in the video already.

    chunks: how many each window has. notes: those of the video, one for each window that it has.
    """
    done = len(notes)
    stream = phenaki.stream(prepared, JudgedTokens(notes, chunks, prepared.plan, phenaki.grid))
    for index, count in enumerate(chunks[done:], done):
        made = [next(stream) for _ in range(count)]
        frames, tokens = np.concatenate([chunk.frames for chunk in made]), torch.cat([chunk.tokens for chunk in made])
        yield MadeWindow(index, made[0].start_frame, frames, tokens)


def watch(
    phenaki: Phenaki, script: LongScript, context: str, judge: Judge, path: Path, settings: dict[str, Any],
    on_window: Callable[[int], None] = lambda _: None,
) -> None:  # fmt: skip
    """Makes and judges a story: its video at `path` (.mp4), the windows' figures beside it (.jsonl). Resumes where it was stopped.

    context: what a chunk sees of the ones before, of `CONTEXTS`. settings: what else the story is made of, in JSON types. on_window
    is called with the number of judged windows. ValueError where what was begun there is another story, or where lines of it are missing.
    """
    prepared = phenaki.prepare(script.story, context=context)
    chunks, lines_path, size = window_chunks(prepared.plan, script.mode), path.with_suffix(".jsonl"), phenaki.picture_size(prepared.story)
    if path.is_file():
        on_window(len(read_windows(lines_path, len(chunks))))
        return
    label = {**settings, "context": context, "script": script.story.to_dict()}
    about = {"scenes": phenaki.video_scenes(prepared), "script": phenaki.script(prepared), "label": label}
    try:
        video = VideoWriter(path, fps=phenaki.info.fps, size=(size, size), resume=True, **about)
    except OtherPartError as error:
        raise ValueError(f"{error.problem}. Remove the folder {path.parent}, and run again") from error
    with video as writer:
        keep_lines(lines_path, len(writer.notes))
        with open(lines_path, "a", encoding="utf-8") as file:
            for window in made_windows(phenaki, prepared, chunks, writer.notes):
                file.write(json.dumps(asdict(judge.window(script, window.index, window.start_frame, window.video))) + "\n")
                file.flush()  # before the frames: a window whose frames are there has its line
                writer.write(window.frames, note_of(window.tokens))
                on_window(window.index + 1)
        sync(lines_path)  # before the video has its name: a whole video has all of its lines, also when the power goes
        sync(lines_path.parent)


def keep_lines(path: Path, count: int) -> None:
    """Cuts a file after its first `count` lines; ValueError where it has fewer."""
    with open(path, "a+b") as file:
        file.seek(0)
        for number in range(count):
            if not file.readline().endswith(b"\n"):
                part = part_path(path.with_suffix(".mp4"))
                raise ValueError(f"{path}: {number} of {count} windows are whole. Remove it and {part.name} beside it, and run again")
        file.truncate()


def read_windows(path: Path, count: int) -> list[Window]:
    """The judged windows of a story that has `count`; ValueError where the file is damaged, missing or of another number of them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        windows = [_window(json.loads(line), index) for index, line in enumerate(lines)] if len(lines) == count else None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path}: damaged ({error}). Remove it and {path.stem}.mp4, and run again") from error
    if windows is None:
        raise ValueError(f"{path}: {len(lines)} windows, the story has {count}. Remove it and {path.stem}.mp4, and run again")
    return windows


def _window(values: dict[str, Any], index: int) -> Window:
    """What `watch` wrote of a window; KeyError or TypeError where it is something else, or of another window."""
    sides = {name: Side(**{**values[name], "looks": Looks(**values[name]["looks"])}) for name in ("made", "truth")}
    window = Window(**{**values, **sides})
    if window.index != index:
        raise TypeError(f"window {index} is of number {window.index!r}")
    for side in (window.made, window.truth):
        if not side.right.keys() <= side.seen.keys():
            raise TypeError(f"window {index}: what is right was not looked at")
        if not all(isinstance(name, str) for name in side.seen.values()) or not all(isinstance(is_right, bool) for is_right in side.right.values()):
            raise TypeError(f"window {index}: what was seen are no names")
    numbers = [window.start_frame, window.num_frames]
    numbers += [number for side in (window.made, window.truth) for number in (*vars(side.looks).values(), *side.impression, *side.features)]
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise TypeError(f"window {index}: its figures are no numbers")
    return window
