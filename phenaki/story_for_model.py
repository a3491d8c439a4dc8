"""A story as a model can tell it, without its weights: its plan, what it is made with, and why it cannot be told."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from phenaki.checkpoint import DEFAULT_MODEL, CheckpointError, ModelInfo, find_model, read_info, weights_hash
from phenaki.retiming import Retiming
from phenaki.sampling import SamplingOptions
from phenaki.scene_files import content_hashes, files_of, values_of
from phenaki.story import OPTIONS, SAMPLING, Story
from phenaki.story_plan import StoryPlan, plan, scene_frame_ends
from phenaki.video_files import VideoScene
from phenaki.vocabulary import familiar, unfamiliar_words

MAX_TOLD = 5  # scenes, and words of a scene, that a note names
MAX_CHUNK_BYTES = 4 << 30  # of a chunk's frames as they are shown


def model_info(name: str | Path = DEFAULT_MODEL) -> ModelInfo:
    """The settings of a model, read without its weights."""
    return read_info(find_model(name))


def check_has_generator(info: ModelInfo) -> None:
    """CheckpointError for a model that holds a tokenizer alone."""
    if info.generator is None:
        raise CheckpointError(f"model {info.name!r} holds a tokenizer alone: train its generator with `phenaki train generator`")


def plan_story(story: Story, info: ModelInfo) -> StoryPlan:
    """The plan of a story for a model; CheckpointError for one that holds a tokenizer alone."""
    check_has_generator(info)
    return plan(story, fps=info.fps, temporal_patch_size=info.tokenizer.temporal_patch_size, chunk_slices=info.generator.chunk_slices)


def checked_plan(story: Story, info: ModelInfo) -> StoryPlan:
    """The plan of a story that a model can tell, as far as that needs no weights; ValueError where it cannot."""
    planned = plan_story(story, info)
    check_not_empty(retiming_of(story, planned))
    check_can_recall(planned, info)
    check_pictures(story.size or info.tokenizer.image_size, story.fps or info.fps, info)
    return planned


def check_texts(planned: StoryPlan, check: Callable[[str], None]) -> None:
    """ValueError, which names scene and field, where `check` has one for a prompt or negative prompt (`TextEncoder.check`)."""
    for scene in planned.scenes:
        for name in filter(partial(getattr, scene), ("prompt", "negative")):
            try:
                check(getattr(scene, name))
            except ValueError as error:
                raise ValueError(f"scenes[{scene.index}].{name}: {error}") from None


def unfamiliar(planned: StoryPlan, info: ModelInfo) -> list[str]:
    """A line for each of the first scenes whose prompts have words that the model never learnt; none where a model does not name its words."""
    return _unfamiliar_notes({f"scene {scene.index + 1}": [scene.prompt] for scene in planned.scenes}, "scene", info)


def unfamiliar_in_scripts(stories: Mapping[str, Story], info: ModelInfo) -> list[str]:
    """A line for each of the first scripts, by name, whose prompts have words that the model never learnt."""
    prompts = {name: [story.resolved_prompt(index) for index in range(len(story.scenes))] for name, story in stories.items()}
    return _unfamiliar_notes(prompts, "script", info)


def _unfamiliar_notes(prompts: Mapping[str, Sequence[str]], what: str, info: ModelInfo) -> list[str]:
    """prompts: the texts of each thing, by the name that its line begins with; what: "scene" or "script"."""
    if not info.words:
        return []
    known = familiar(info.words)
    missing = {name: unfamiliar_words(" ".join(texts), known) for name, texts in prompts.items()}
    notes = [
        f"{name}: {info.name} was not trained on {', '.join(map(repr, words[:MAX_TOLD]))}{' and more' * (len(words) > MAX_TOLD)}; "
        f"it may not show what that means"
        for name, words in missing.items()
        if words
    ]
    left = len(notes) - MAX_TOLD
    return notes[:MAX_TOLD] + ([f"and {left} {what}{'s' * (left > 1)} more"] if left > 0 else [])


def resolved_script(story: Story, info: ModelInfo, options: SamplingOptions, networks: Sequence[nn.Module] = ()) -> dict[str, Any]:
    """A story with the model's own values where it has none, the model's name, and "made_with": its weights' hash, the sampling options.

    Pictures and videos go by file name alone, and in "made_with" by their SHA-256. networks: those of a model that was never saved.
    """
    made_with = {"weights": weights_hash(info, networks), "sampling": asdict(options)}
    if files := files_of(story):
        hashes = content_hashes(files)
        made_with["files"] = [hashes[file] for file in files]
    return {**values_of(story, lambda path: path.name), "fps": story.fps or info.fps, "model": info.name, "made_with": made_with}


def retiming_of(story: Story, planned: StoryPlan) -> Retiming:
    """How a story's frames are shown at its own rate: as many as its exact seconds come to there, not those that its plan was rounded to."""
    fps = story.fps or planned.fps
    return Retiming(planned.num_frames, planned.fps, fps, planned.num_frames if fps == planned.fps else scene_frame_ends(story, fps)[-1])


def video_scenes(story: Story, planned: StoryPlan) -> tuple[VideoScene, ...]:
    """Scenes with their first frame and length in the video's own frame rate."""
    timing = retiming_of(story, planned)
    starts = [timing.start(scene.start_frame) for scene in planned.scenes]
    ends = [*starts[1:], timing.total]
    return tuple(VideoScene(scene.prompt, start, end - start) for scene, start, end in zip(planned.scenes, starts, ends, strict=True))


def sampling_options(story: Story, info: ModelInfo) -> SamplingOptions:
    """A model's own options with a story's put in place; a scene's own go before these (`direct`)."""
    return replace(info.sampling, **{name: value for name in SAMPLING if (value := getattr(story, name)) is not None})


def check_not_empty(timing: Retiming) -> None:
    """ValueError where a story is too short to have a single frame at its rate."""
    if timing.total < 1:
        seconds = timing.num_frames / timing.from_fps
        raise ValueError(f"fps {timing.to_fps:g}: a story of {seconds:g} s has no frame then; needed at least {1 / seconds:.3g}")


def check_pictures(size: int, fps: float, info: ModelInfo) -> None:
    """ValueError where the frames of one chunk, which are made at once, would take too much memory."""
    chunk_seconds = (1 + info.tokenizer.temporal_patch_size * info.generator.chunk_slices) / info.fps
    num_bytes = size**2 * 3 * math.ceil(chunk_seconds * fps)
    if num_bytes > MAX_CHUNK_BYTES:
        told = f"{size}x{size} pixels at {fps:g} fps: the frames of a chunk would take {num_bytes / 2**30:.1f} GiB of memory"
        raise ValueError(f"{told}, at most {MAX_CHUNK_BYTES >> 30} are used; lower size or fps")


def check_can_recall(planned: StoryPlan, info: ModelInfo) -> None:
    """ValueError where a scene recalls another and the model has no place in its context for that."""
    for scene in planned.scenes:
        if scene.recall is not None and not info.generator.anchor:
            raise ValueError(f"scenes[{scene.index}].recall: model {info.name!r} was trained without an anchor slice; leave recall out")


def apply_overrides(story: Story, **values: Any) -> Story:
    """The story with the values that are not None put in place of its own; checked as a script is. TypeError for one that is not of OPTIONS."""
    if unknown := [name for name in values if name not in OPTIONS]:
        raise TypeError(f"unknown option {unknown[0]!r}: allowed are {', '.join(OPTIONS)}")
    given = {key: value for key, value in values.items() if value is not None}
    return Story.from_dict({**story.to_dict(), **given}) if given else story
