"""Many scripts, one video each: what is made, what is kept, and what failed without stopping the rest.

`render_folder` knows which scripts are to be made; a runner makes them, in any order: `render_here` in this process, the
ones of rendering_processes.py and rendering_ray.py in others. All of them make a script with `render`, so the same bytes
come out: no video depends on which others are made, nor where.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from phenaki.checkpoint import DEFAULT_MODEL, ModelInfo
from phenaki.data.decoding import OWN_TIME_LIMIT, Worker, read_script
from phenaki.devices import choose_device, choose_dtype
from phenaki.output_paths import check_spares
from phenaki.part_file import OtherPartError, difference
from phenaki.pipeline import Phenaki, load
from phenaki.recording import generate_to_file
from phenaki.scene_files import files_of
from phenaki.script_folder import Job, find_jobs, open_output
from phenaki.story import OPTIONS, Story
from phenaki.story_for_model import (
    apply_overrides,
    checked_plan,
    model_info,
    plan_story,
    resolved_script,
    sampling_options,
    unfamiliar_in_scripts,
)


class RenderError(ValueError):
    """Scripts that cannot be rendered, or not in the way asked for; the message says why and what to do."""


@dataclass(frozen=True)
class RenderSettings:
    """What every script is made with. None: the script's own value, else the model's."""

    model: str = DEFAULT_MODEL  # shipped name, folder or hub id
    device: str = "auto"
    dtype: str = "auto"  # what is computed in
    compile: bool = False  # the layers, before they run
    seed: int | None = None
    fps: float | None = None
    size: int | None = None
    style: str | None = None
    negative: str | None = None
    guidance_scale: float | None = None
    num_steps: int | None = None
    context: str | None = None  # what a chunk sees of the ones before: "tokens" or "frames"
    overwrite: bool = False  # videos that are there are made anew, and part files are not resumed

    @property
    def options(self) -> dict[str, Any]:
        """Those of `Phenaki.prepare`: what goes in place of a story's own values."""
        return {name: getattr(self, name) for name in OPTIONS}


@dataclass(frozen=True)
class Outcome:
    """What became of a script."""

    job: Job
    error: str = ""  # why there is no video; "" where there is one
    num_frames: int = 0
    video_seconds: float = 0.0
    wall_seconds: float = 0.0  # of the last try
    tries: int = 1  # more than one where a process died, or a machine of a cluster


@dataclass(frozen=True)
class FolderReport:
    """What became of a folder of scripts, each in one of three lists."""

    made: tuple[Outcome, ...]
    kept: tuple[Job, ...]  # were finished before
    failed: tuple[Outcome, ...]


class Watcher:
    """Is told how the work gets on, maybe by several threads. Shows nothing; a display takes its place."""

    def begin(self, num_kept: int, num_jobs: int) -> None:
        """So many videos are there already, so many jobs come."""

    def frames(self, job: Job, done: int, total: int) -> None:
        """A chunk of a job's video is there; counts in frames."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def outcome(self, outcome: Outcome) -> None:
        """A job has ended."""


Runner = Callable[[Sequence[Job], RenderSettings, Watcher], Iterator[Outcome]]


def render(phenaki: Phenaki, story: Story | Path, job: Job, settings: RenderSettings, watcher: Watcher) -> Outcome:
    """Makes a job's video of a story, or of the script at a path; goes on with the part file that is there, if it is of the same.

    Whatever goes wrong with it becomes the outcome, so that others can be made.
    """
    resume = False if settings.overwrite else None  # None: where it is the same
    on_chunk = lambda chunk: watcher.frames(job, chunk.end_frame, chunk.num_frames_total)
    try:
        written = generate_to_file(
            phenaki, story, job.output, progress=False, resume=resume, on_note=watcher.note, on_chunk=on_chunk, **settings.options
        )
    except BrokenPipeError:
        raise  # whoever was to be told of the frames is gone
    except OtherPartError as error:
        return Outcome(job, f"{error.problem}. Move it away, or --overwrite makes all videos anew")
    except Exception as error:
        return Outcome(job, reason_of(error))
    return Outcome(job, "", written.num_frames, written.video_seconds, written.wall_seconds)


def reason_of(error: Exception) -> str:
    """An error in one message: its words where they were written for users, with its type where they were not."""
    return str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"


def loaded(settings: RenderSettings) -> Phenaki:
    """The model that the settings name, as they want it; it stays loaded for the next one who asks."""
    return load(settings.model, settings.device, settings.dtype, settings.compile)


def settled_dtype(settings: RenderSettings) -> str:
    """The kind of numbers for all processes on CPUs: some that measured it for themselves might choose another."""
    if choose_device(settings.device).type != "cpu":
        return settings.dtype
    return str(choose_dtype(settings.dtype, torch.device("cpu"))).removeprefix("torch.")


def render_here(jobs: Sequence[Job], settings: RenderSettings, watcher: Watcher) -> Iterator[Outcome]:
    """Makes the jobs one after the other in this process. Raises what loading the model raises."""
    phenaki = loaded(settings)
    for job in jobs:
        yield render(phenaki, job.script, job, settings, watcher)


def render_folder(
    scripts: str | Path,
    output: str | Path,
    settings: RenderSettings | None = None,
    *,
    ending: str = ".mp4",
    runner: Runner = render_here,
    watcher: Watcher | None = None,
) -> FolderReport:
    """Makes a video in the folder `output` of every script in the folder `scripts`, each under its script's name.

    A video that is there is kept where it was made from this script with these weights and sampling options, and made anew where
    it was made from this script with others. One made from anything else, or that does not say with what (those of earlier
    versions do not), is a failure of its script (without settings.overwrite). So is all that is wrong with one script.
    ValueError where nothing can be made at all; stopped at any moment, the same call goes on.
    """
    settings, watcher = settings or RenderSettings(), watcher or Watcher()
    jobs, info = find_jobs(scripts, output, ending), model_info(settings.model)
    check_settings(settings, info)
    open_output(output, ending)
    stories, outcomes = read_stories(jobs)
    sources = sources_of(stories)
    waiting, kept = [], []
    with Worker(OWN_TIME_LIMIT) as worker:
        for job, story in stories.items():
            try:
                if is_finished(job, story, settings, info, worker, watcher.note):
                    kept.append(job)
                else:
                    check_sources_spared(job, sources)
                    waiting.append(job)
            except (ValueError, OSError) as error:
                outcomes.append(Outcome(job, reason_of(error)))
    watcher.begin(len(kept), len(jobs) - len(kept))
    told = {job.script.name: apply_overrides(stories[job], **settings.options) for job in waiting}
    for note in unfamiliar_in_scripts(told, info):
        watcher.note(note)
    for outcome in outcomes:
        watcher.outcome(outcome)
    if waiting:
        with contextlib.closing(runner(waiting, settings, watcher)) as ended:
            for outcome in ended:
                watcher.outcome(outcome)
                outcomes.append(outcome)
    outcomes.sort(key=lambda outcome: outcome.job.output)
    made, failed = (tuple(outcome for outcome in outcomes if bool(outcome.error) == bad) for bad in (False, True))
    return FolderReport(made, tuple(kept), failed)


def check_settings(settings: RenderSettings, info: ModelInfo) -> None:
    """ValueError for values that no script could be made with."""
    anything = apply_overrides(Story.of(["anything"]), **settings.options)
    plan_story(anything, info)


def read_stories(jobs: Sequence[Job]) -> tuple[dict[Job, Story], list[Outcome]]:
    """The jobs' stories, and what became of those whose script cannot be read."""
    stories, failed = {}, []
    for job in jobs:
        try:
            stories[job] = Story.load(job.script)
        except (ValueError, OSError) as error:
            failed.append(Outcome(job, reason_of(error)))
    return stories, failed


def sources_of(stories: dict[Job, Story]) -> dict[tuple[int, int], tuple[Job, Path]]:
    """The pictures and videos that scripts name, by what they are on the disk, each with a job that it is named by."""
    sources = {}
    for job, story in stories.items():
        for file in set(files_of(story)):
            with contextlib.suppress(OSError):  # gone since it was read: its own job will say so
                sources.setdefault(on_disk(file), (job, file))
    return sources


def check_sources_spared(job: Job, sources: dict[tuple[int, int], tuple[Job, Path]]) -> None:
    """VideoError where a job's video would be written over a picture or video that any of the scripts names: its own, or another's."""
    if job.output.exists() and (found := sources.get(on_disk(job.output))):
        other, file = found
        check_spares(job.output, [file], "it" if other == job else f"the video of {other.script.name}")


def on_disk(path: Path) -> tuple[int, int]:
    """What a file is, whatever it is called."""
    found = path.stat()
    return found.st_dev, found.st_ino


def is_finished(job: Job, story: Story, settings: RenderSettings, info: ModelInfo, worker: Worker, on_note: Callable[[str], None]) -> bool:
    """Whether a job's video is there, made with these weights and options; on_note is told of one that was made with others.

    ValueError where its story cannot be told, or the video was made from something else. Opens no weights.
    """
    story = apply_overrides(story, **settings.options)
    checked_plan(story, info)
    if settings.overwrite or not job.output.exists():
        return False
    options = sampling_options(story, info)
    wanted, found = json.loads(json.dumps(resolved_script(story, info, options))), read_script(job.output, worker)
    for script in filter(None, (wanted, found)):
        script.setdefault("size", info.tokenizer.image_size)
    made_with, found_with = wanted.pop("made_with"), None if found is None else found.pop("made_with", None)
    other = "a script that it does not tell" if found is None else difference(found, wanted)
    if other is None and found_with is None:
        other = "weights and sampling options that it does not tell"
    if other is not None:
        raise RenderError(f"{job.output}: is there, made with {other}. Move it away, or --overwrite makes all videos anew")
    changed = difference(found_with, made_with)
    if changed is not None:
        on_note(f"{job.output}: is made anew, it was made with {changed}")
    return changed is None
