"""A clip of one's own, parts of it made anew: in- and out-painting, filling in between, going on, telling it another way.

    import phenaki
    phenaki.edit("clip.mp4", "A panda walks along the beach", box=(20, 40, 48, 60)).save("panda.mp4")

Results are as good as the model's training in these tasks (`[train_generator.tasks]` in its configuration). The shipped
`storybook` model has been trained in them since its fourth stage, in a fifth of its generator's samples; how its edits look
since then is not measured. Of the weights before was seen: what they paint follows the prompt, but edges show, they arrive at
a frame to come with a jump, and kept tokens may stand out as blotches (at keep=0.3, not at 0.1).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from phenaki.checkpoint import DEFAULT_MODEL
from phenaki.frame_source import Clip, FrameSource
from phenaki.output_paths import check_output_path, check_spares
from phenaki.pictures import middle_square
from phenaki.pipeline import Phenaki, StoryChunk, all_frames, ready_model
from phenaki.pixels import to_pixels
from phenaki.progress import story_progress
from phenaki.recording import Written, keep_unfinished
from phenaki.regions import ClipRegion, Region, RegionError, seen_square
from phenaki.repainting import Repainter, plan_chunks
from phenaki.story import MAX_SCENE_SECONDS, Story
from phenaki.story_for_model import check_pictures, sampling_options
from phenaki.video import Video, VideoWriter
from phenaki.video_files import VideoScene


@dataclass(frozen=True)
class Edit:
    """What is to become of a clip. Values left at None are the model's own.

    ValueError (a StoryError for what a story has too) where a value is out of its range, RegionError where nothing is to be made anew.
    What a chunk sees of the ones before are always tokens, whatever the model's own context is.
    """

    prompt: str  # what the video shows when it is done
    region: Region | None = None  # what is made anew; None: the whole clip where `keep` is above 0, else nothing of it
    keep: float = 0.0  # share of the region's tokens that stay, in [0, 1), evenly spread: the clip told another way
    extend: float = 0.0  # seconds made after the clip's end
    paste: bool = True  # pixels outside of the region are the clip's own; False: they too have been through the tokenizer
    size: int | None = None  # pixels a side of the result, 16 to 4096
    seed: int = 0
    negative: str = ""  # what should not be seen
    guidance_scale: float | None = None  # 1 (off) to 100
    num_steps: int | None = None  # rounds a chunk, 1 to 256

    def __post_init__(self):
        if not 0 <= self.keep < 1:
            raise ValueError(f"keep {self.keep}: needed 0 (all of the region is made anew) to below 1, such as 0.3")
        if not 0 <= self.extend <= MAX_SCENE_SECONDS:
            raise ValueError(f"extend {self.extend}: needed 0 to {MAX_SCENE_SECONDS} seconds")
        for name, kind in (("keep", float), ("extend", float), ("paste", bool)):  # numpy's numbers too, but they cannot travel with the result
            object.__setattr__(self, name, kind(getattr(self, name)))
        if self.region is None and not self.keep and not self.extend:
            raise RegionError("nothing is to be made anew: give a box, frames, a mask, keep (above 0) or extend")
        self.as_story(1.0)

    @property
    def part(self) -> Region | None:
        """What of the clip itself is made anew."""
        return self.region or (Region() if self.keep else None)

    def as_story(self, seconds: float) -> Story:
        """The words of the edit as a story of one scene, checked as one."""
        scene = {"prompt": self.prompt, "seconds": min(seconds, MAX_SCENE_SECONDS)}
        values = {name: getattr(self, name) for name in ("seed", "negative", "size", "guidance_scale", "num_steps")} | {"scenes": [scene]}
        return Story.from_dict({key: value for key, value in values.items() if value is not None})


@dataclass(frozen=True)
class EditPlan:
    """Which frames and slices an edit works on.

    Frame j of the grid shows the clip's own frame numbers[j]; its first frame is repeated `padding` times in front, so that the
    grid has 1 + pt*k frames and ends with the clip. Slice 0 is frame 0, slice s > 0 the pt frames from 1 + pt*(s-1) on.
    """

    source: FrameSource
    region: ClipRegion | None
    numbers: tuple[int, ...]
    padding: int
    num_new: int  # frames after the clip
    patch: int  # pt
    side: int  # tokens a side
    chunks: tuple[tuple[int, int], ...] = ()  # slices [start, stop)

    @property
    def num_frames(self) -> int:
        """Of the result."""
        return len(self.numbers) - self.padding + self.num_new

    @property
    def own_slices(self) -> int:
        return 1 + (len(self.numbers) - 1) // self.patch

    def frames_of(self, start: int, stop: int) -> range:
        """Frames of the grid that slices [start, stop) are."""
        first, end = (1 + self.patch * (edge - 1) if edge else 0 for edge in (start, stop))
        return range(first, end)

    def hidden(self, start: int, stop: int) -> Tensor:
        """Places of slices [start, stop) that are made anew, bool (t h w); all of those after the clip."""
        grids = torch.ones(stop - start, self.side, self.side, dtype=torch.bool)
        for index in range(start, min(stop, self.own_slices)):
            grids[index - start] = torch.stack([self.grid(frame, self.side) for frame in self.frames_of(index, index + 1)]).any(0)
        return grids

    def grid(self, frame: int, side: int) -> Tensor:
        """What is made anew of a frame of the grid, bool (side side)."""
        if frame >= len(self.numbers):
            return torch.ones(side, side, dtype=torch.bool)
        if self.region is None:
            return torch.zeros(side, side, dtype=torch.bool)
        return self.region.grid(self.numbers[frame], side)


def plan_edit(source: FrameSource, told: Edit, phenaki: Phenaki) -> EditPlan:
    """The frames, slices and chunks of an edit. RegionError for a region that is nowhere or everywhere in what the model sees."""
    config, fps = phenaki.info.tokenizer, phenaki.info.fps
    check_pictures(told.size or config.image_size, fps, phenaki.info)
    patch, side = config.temporal_patch_size, config.grid[0]
    numbers, num_new = source.numbers(fps), round(told.extend * fps)
    if told.extend and not num_new:
        raise ValueError(f"extend {told.extend:g}: needed {1 / fps:g} s at least, one frame at the model's {fps:g} a second")
    padding = -(len(numbers) - 1) % patch
    region = None if told.part is None else ClipRegion(told.part, source.num_frames, source.height, source.width)
    plan = EditPlan(source, region, (*numbers[:1] * padding, *numbers), padding, num_new, patch, side)
    hidden = [plan.hidden(index, index + 1) for index in range(plan.own_slices)]
    touched = [bool(grid.any()) for grid in hidden]
    if region is not None and not any(touched):
        top, left, short = seen_square(source.height, source.width)
        seen = f"the middle square, x from {left} to {left + short} and y from {top} to {top + short}, {fps:g} frames a second"
        raise RegionError(f"the region is nowhere in what the model sees of the clip ({seen}): make it larger, or move it")
    if not told.keep and all(bool(grid.all()) for grid in hidden):
        raise RegionError("the region is all of the clip, nothing would be left of it: make it smaller, keep some (keep=0.3), or generate a story")
    return replace(plan, chunks=tuple(plan_chunks([*touched, *[True] * -(-num_new // patch)], phenaki.info.generator.chunk_slices)))


def stream_edit(phenaki: Phenaki, clip: Clip, told: Edit) -> Iterator[StoryChunk]:
    """Yields the edited clip chunk by chunk, at the model's frames a second, in memory that does not grow with its length.

    Everything is checked before the first chunk is made: VideoError for a clip that is not whole, RegionError for a region that
    it does not have, ValueError for the rest.
    """
    plan = plan_edit(FrameSource.of(clip), told, phenaki)
    story = told.as_story(plan.num_frames / phenaki.info.fps)
    options = sampling_options(story, phenaki.info)
    for words in filter(None, (story.scenes[0].prompt, story.negative)):
        phenaki.text_encoder.check(words)
    text = phenaki.scene_text(story.scenes[0].prompt, story.negative)
    with phenaki.computing():
        painter = Repainter(phenaki.tokenizer, phenaki.generator, text, options, story.seed, told.keep)
    return _painted(phenaki, plan, painter, told, story.scenes[0].prompt)


def _painted(phenaki: Phenaki, plan: EditPlan, painter: Repainter, told: Edit, prompt: str) -> Iterator[StoryChunk]:
    image_size, frame = phenaki.info.tokenizer.image_size, 0
    size, pictures = told.size or image_size, _pictures(plan, phenaki.info.fps)
    for start, stop in plan.chunks:
        grid = [number for number in plan.frames_of(start, stop) if number < plan.padding + plan.num_frames]
        own = [next(pictures) for number in grid if number < len(plan.numbers)]
        with phenaki.computing():
            painted = painter.paint(phenaki.to_tensor(_squares(own, image_size)) if own else None, plan.hidden(start, stop))
        pixels = to_pixels(painted.frames, size)[: len(grid)]
        if told.paste and own:
            anew = torch.stack([plan.grid(number, size) for number in grid[: len(own)]]).numpy()
            pixels[: len(own)] = np.where(anew[..., None], pixels[: len(own)], _squares(own, size))
        pixels = pixels[max(plan.padding - grid[0], 0) :]
        if len(pixels):
            yield StoryChunk(pixels, painted.tokens, 0, prompt, frame, plan.num_frames)
        frame += len(pixels)


def _pictures(plan: EditPlan, fps: float) -> Iterator[np.ndarray]:
    """The clip's own pictures, one for each frame of the grid, uint8 (h w 3)."""
    pictures = plan.source.frames_at(fps)
    first = next(pictures)
    yield from [first] * (plan.padding + 1)
    yield from pictures


def _squares(pictures: list[np.ndarray], size: int) -> np.ndarray:
    return np.stack([middle_square(Image.fromarray(pixels), size) for pixels in pictures])


def edit(
    video: Clip,
    prompt: str,
    *,
    box: tuple[int, int, int, int] | None = None,
    outside: bool = False,
    frames: tuple[int, int] | None = None,
    mask: np.ndarray | None = None,
    model: str | Path | Phenaki = DEFAULT_MODEL,
    device: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Video:
    """A clip with a part of it made anew as `prompt` says: the middle square, at the model's frames a second.

    video: a Video, a FrameSource, or the path of a video file, GIF, picture or folder of pictures. The part: box (x, y, width, height
    in its pixels) or `outside` of it, frames (first, last) by its own numbers, mask (bool, (h w) or (f h w), True = made anew).
    Options: the fields of `Edit`; `keep=0.1` alone tells the whole clip another way, `extend=4` goes on for four seconds.
    VideoError for a clip that is not whole, RegionError for a part that it does not have, ValueError for the rest.
    """
    parts = (box, frames, mask)
    region = Region(box, outside, frames, mask) if outside or any(part is not None for part in parts) else None
    told, source = Edit(prompt, region, **options), FrameSource.of(video)
    phenaki = ready_model(model, device)
    with story_progress(progress) as advance:
        shown = all_frames(stream_edit(phenaki, source, told), advance)
    return Video(shown, phenaki.info.fps, (VideoScene(prompt, 0, len(shown)),), edit_script(phenaki, source, told, len(shown)))


def edit_to_file(
    phenaki: Phenaki, clip: Clip, told: Edit, path: str | Path, *, progress: bool = True, on_note: Callable[[str], None] = lambda note: None
) -> Written:
    """Writes the edited clip while it is made. The clip itself is not written over; on_note is told of what another run left unfinished."""
    started, source = time.perf_counter(), FrameSource.of(clip)
    path = check_result_path(path, source)
    chunks = stream_edit(phenaki, source, told)
    first = next(chunks)
    size, fps, total = told.size or phenaki.info.tokenizer.image_size, phenaki.info.fps, first.num_frames_total
    scenes, script = (VideoScene(first.prompt, 0, total),), edit_script(phenaki, source, told, total)
    if kept := keep_unfinished(path):
        on_note(f"{path}: another run left it unfinished. {kept}")
    with VideoWriter(path, fps=fps, size=(size, size), scenes=scenes, script=script) as writer, story_progress(progress) as advance:
        for chunk in chain([first], chunks):
            writer.write(chunk.frames)
            advance(chunk)
    return Written(total, total / fps, time.perf_counter() - started)


def check_result_path(path: str | Path, source: FrameSource, mask: Path | None = None) -> Path:
    """A path that the result can be written to; VideoError where it is not one, or where the clip itself lies, or the picture of its mask."""
    return check_spares(check_output_path(path), filter(None, [source.path, mask]))


def edit_script(phenaki: Phenaki, source: FrameSource, told: Edit, num_frames: int) -> dict[str, Any]:
    """What travels with the result: what was told, and of which file, by its name alone."""
    region = told.part or Region()
    edited = {
        "clip": source.path.name if source.path else None, "box": region.box, "outside": region.outside, "frames": region.frames,
        "mask": region.mask is not None, "keep": told.keep, "extend": told.extend, "paste": told.paste,
    }  # fmt: skip
    fps = phenaki.info.fps
    return {**told.as_story(num_frames / fps).to_dict(), "fps": fps, "model": phenaki.info.name, "edit": edited}
