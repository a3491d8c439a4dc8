"""From a script to a video: `Phenaki`, and the functions of the package's first five lines.

Holds the three networks together: text encoder, generator, tokenizer. What is said when is `story.py`'s business, what
carries over is `past.py`'s, files are `video.py`'s.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phenaki.checkpoint import DEFAULT_MODEL, CheckpointError, Model, load_model, save_model, shipped_models
from phenaki.compiling import check_compiler, compile_layers
from phenaki.devices import choose_device, choose_dtype, hold_matrices
from phenaki.director import Given, SceneText, direct
from phenaki.free_cores import cores, on_free_cores
from phenaki.pixels import to_pixels, to_video
from phenaki.progress import story_progress
from phenaki.sampling import SamplingOptions
from phenaki.scene_files import SceneFiles
from phenaki.story import Story
from phenaki.story_for_model import (
    apply_overrides,
    check_has_generator,
    check_texts,
    checked_plan,
    plan_story,
    resolved_script,
    retiming_of,
    sampling_options,
    unfamiliar,
    video_scenes,
)
from phenaki.story_plan import ScenePlan, StoryPlan
from phenaki.text import TextEncoder
from phenaki.video import Video
from phenaki.video_files import VideoScene


@dataclass(frozen=True)
class StoryChunk:
    """A piece of a story video as it is made.

    frames: uint8 (f, h, w, 3); start_frame counts from the story's start. tokens: (t h w) int64, what the frames were decoded from.
    """

    frames: np.ndarray
    tokens: Tensor
    scene: int
    prompt: str
    start_frame: int
    num_frames_total: int  # of the whole story

    @property
    def end_frame(self) -> int:
        """How many frames of the story there are with this chunk's."""
        return self.start_frame + len(self.frames)


@dataclass(frozen=True)
class Prepared:
    """A story that was checked and can be told: all that its frames are made from besides the model."""

    story: Story  # what was asked for in place of its own values is in it
    plan: StoryPlan
    texts: Sequence[SceneText]  # one for each scene
    options: SamplingOptions
    given: Mapping[int, Given]  # by scene: what it starts from or ends on


class SceneTexts(Sequence[SceneText]):
    """The encoded prompts of a plan's scenes, each encoded when its turn comes: a long story holds no more than a short one."""

    def __init__(self, scenes: Sequence[ScenePlan], encode: Callable[[str, str], SceneText]):
        self.scenes, self.encode = scenes, encode

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> SceneText:
        return self.encode(self.scenes[index].prompt, self.scenes[index].negative)


class Phenaki:
    """A model ready to tell stories."""

    def __init__(self, model: Model, text_encoder: TextEncoder, device: torch.device, dtype: torch.dtype, compiled: bool = False):
        check_has_generator(model.info)
        if model.info.text_encoder and model.info.text_encoder != text_encoder.fingerprint:
            raise CheckpointError(
                f"model {model.info.name!r} was trained with the text encoder {model.info.text_encoder}, not {text_encoder.fingerprint}"
            )
        self.info, self.tokenizer, self.generator = model.info, model.tokenizer, model.generator
        self.text_encoder, self.device, self.dtype, self.compiled = text_encoder, device, dtype, compiled

    def __repr__(self) -> str:
        size, dtype = self.info.tokenizer.image_size, str(self.dtype).removeprefix("torch.")
        return f"Phenaki({self.info.name!r}, {size}x{size} at {self.info.fps:g} fps, on {self.device} in {dtype})"

    @classmethod
    def from_pretrained(
        cls, name: str | Path = DEFAULT_MODEL, *, device: str | None = None, dtype: str = "auto", compile: bool = False
    ) -> "Phenaki":
        """Loads a shipped model by name, a model folder, or a hub id ("owner/name"). Its matrices are held in what it computes in.

        compile: its layers are compiled when they first run, a minute or more in all, and run faster then, on a GPU above all. They may
        round otherwise. ValueError where torch has nothing to compile with.
        """
        chosen = choose_device(device)
        cores.look()  # while it loads the others show how much they take
        if compile:
            check_compiler(chosen)
        model = load_model(name, chosen)
        phenaki = cls(model, TextEncoder.load(model.info.text, device=chosen), chosen, choose_dtype(dtype, chosen), compile)
        for network in (phenaki.tokenizer, phenaki.generator):
            hold_matrices(network, phenaki.dtype)
            if compile:
                compile_layers(network, dynamic=True)
        return phenaki

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes a model folder that `from_pretrained` takes. ValueError where loading rounded its matrices to another dtype."""
        held = {weight.dtype for network in (self.tokenizer, self.generator) for weight in network.parameters()}
        if rounded := held - {torch.float32, dtype}:
            raise ValueError(f"matrices are held in {rounded.pop()}, in which the model computes: load it with dtype='float32' to save it as {dtype}")
        save_model(folder, self.info, self.tokenizer, self.generator, dtype)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Uploads the model folder; returns its address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))

    def plan(self, story: Any) -> StoryPlan:
        """When which chunk is told what; `story` is anything `Story.of` takes."""
        return plan_story(Story.of(story), self.info)

    def prepare(self, story: Any, **options: Any) -> Prepared:
        """Checks a story, its prompts, pictures and the values that go before its own, before anything is made.

        Options: seed, fps, size, style, negative, guidance_scale (1 = off), num_steps (rounds a chunk), context (what a chunk sees of the
        ones before, "tokens" or "frames"). Left out or None, they are the story's own, then the model's; a scene's own values go first.
        """
        story = apply_overrides(Story.of(story), **options)
        planned = checked_plan(story, self.info)
        sampling = sampling_options(story, self.info)
        check_texts(planned, self.text_encoder.check)
        return Prepared(story, planned, SceneTexts(planned.scenes, self.scene_text), sampling, SceneFiles(planned.scenes, self.info, self.to_tensor))

    def stream_story(self, story: Any, **options: Any) -> Iterator[StoryChunk]:
        """Yields the video chunk by chunk, in memory that does not grow with its length.

        Options: those of `Phenaki.prepare`. A warning names words that the model was not trained on.
        """
        prepared = self.prepare(story, **options)
        self.warn_of_words(prepared)
        return self.stream(prepared)

    def warn_of_words(self, prepared: Prepared) -> None:
        """A warning where prompts have words that the model was not trained on: it draws something else for them."""
        if notes := unfamiliar(prepared.plan, self.info):
            warnings.warn("\n".join(notes), stacklevel=3)

    def stream(self, prepared: Prepared, made: Sequence[Tensor] = ()) -> Iterator[StoryChunk]:
        """Yields a prepared story. made: tokens of its first chunks, where an earlier run stopped: goes on behind them."""
        story, planned = prepared.story, prepared.plan
        size, timing = self.picture_size(story), retiming_of(story, planned)
        networks = self.tokenizer, self.generator
        chunks = direct(planned, *networks, prepared.texts, prepared.options, story.seed, self.grid, prepared.given, made)
        while True:
            with self.computing():
                chunk = next(chunks, None)
            if chunk is None:
                return
            frames, start = timing.shown(to_pixels(chunk.frames, size), chunk.start_frame), timing.start(chunk.start_frame)
            yield StoryChunk(frames, chunk.tokens, chunk.scene, planned.scenes[chunk.scene].prompt, start, timing.total)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of a slice."""
        return self.info.tokenizer.grid

    def picture_size(self, story: Story) -> int:
        """Pixels a side of the video that a story becomes."""
        return story.size or self.info.tokenizer.image_size

    def generate_story(self, story: Any, *, progress: bool = True, on_chunk: Callable[[StoryChunk], None] | None = None, **options: Any) -> Video:
        """The whole video. `on_chunk` is called with each StoryChunk as it is made. Options: those of `Phenaki.prepare`.

        A warning names words that the model was not trained on.
        """
        prepared = self.prepare(story, **options)
        self.warn_of_words(prepared)
        story = prepared.story
        with story_progress(progress) as advance:
            frames = all_frames(self.stream(prepared), advance, on_chunk)
        return Video(frames, story.fps or self.info.fps, self.video_scenes(prepared), self.script(prepared))

    def video_scenes(self, prepared: Prepared) -> tuple[VideoScene, ...]:
        """The scenes of the video that a story becomes, in its own frames."""
        return video_scenes(prepared.story, prepared.plan)

    def script(self, prepared: Prepared) -> dict[str, Any]:
        """What travels with the video."""
        return resolved_script(prepared.story, self.info, prepared.options, (self.tokenizer, self.generator))

    def scene_text(self, prompt: str, negative: str | None) -> SceneText:
        """What a scene is told: the prompt's text and, where there is one, the negative prompt's, 1 l d each, on the model's device."""
        encoded = self.text_encoder.encode([prompt]).to(self.device)
        other = self.text_encoder.encode([negative]).to(self.device) if negative else None
        return SceneText(encoded.text, encoded.text_mask, (other.text, other.text_mask) if other else None)

    def to_tensor(self, frames: np.ndarray) -> Tensor:
        """Frames uint8 (f h w 3) -> float (f c h w) in [-1, 1] on the model's device."""
        return to_video(frames).to(self.device)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """In it networks run in the model's kind of numbers, and on a CPU on the cores that other programs leave free."""
        numbers = contextlib.nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)
        with on_free_cores() if self.device.type == "cpu" else contextlib.nullcontext(), numbers:
            yield


def all_frames(chunks: Iterable[StoryChunk], *told: Callable[[StoryChunk], None] | None) -> np.ndarray:
    """The frames of a whole video, uint8 (f h w 3), in the memory that these take and no more. told: called with each chunk."""
    whole, count = None, 0
    for chunk in chunks:
        if whole is None:
            whole = np.empty((chunk.num_frames_total, *chunk.frames.shape[1:]), np.uint8)
        whole[count : count + len(chunk.frames)] = chunk.frames
        count += len(chunk.frames)
        for one in filter(None, told):
            one(chunk)
    return whole[:count]


def load(name: str | Path = DEFAULT_MODEL, device: str | None = None, dtype: str = "auto", compile: bool = False) -> Phenaki:
    """Loads a model by shipped name, folder or hub id; the last two stay loaded. dtype: what it computes in (`choose_dtype`).
    compile: its layers are compiled (`Phenaki.from_pretrained`). A folder is read anew once its config.json, which names the weights,
    was written anew.
    """
    config = Path(name).resolve() / "config.json"
    if str(name) in shipped_models() or not config.is_file():
        return _loaded(str(name), str(choose_device(device)), dtype, compile)
    return _loaded(str(config.parent), str(choose_device(device)), dtype, compile, config.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _loaded(name: str, device: str, dtype: str, compile: bool, written: int = 0) -> Phenaki:
    return Phenaki.from_pretrained(name, device=device, dtype=dtype, compile=compile)


def generate_story(story: Any, *, model: str | Path | Phenaki = DEFAULT_MODEL, device: str | None = None, **options: Any) -> Video:
    """A video of `story`: a list of prompts, of (prompt, seconds), a script file's path, a Story.

    Options: those of `Phenaki.prepare`, and progress and on_chunk (`Phenaki.generate_story`).
    """
    return ready_model(model, device).generate_story(story, **options)


def stream_story(story: Any, *, model: str | Path | Phenaki = DEFAULT_MODEL, device: str | None = None, **options: Any) -> Iterator[StoryChunk]:
    """Yields `generate_story`'s video chunk by chunk. Options: those of `Phenaki.prepare`."""
    return ready_model(model, device).stream_story(story, **options)


def ready_model(model: str | Path | Phenaki, device: str | None) -> Phenaki:
    """The model itself, or the one of a name, folder or hub id. ValueError for a device that a model is not on."""
    if not isinstance(model, Phenaki):
        return load(model, device)
    place = lambda one: (one.type, one.index or 0)
    if device not in (None, "auto") and place(choose_device(device)) != place(model.device):
        raise ValueError(f"device {device!r}: the model that came is on {model.device}; leave device out, or load it there")
    return model
