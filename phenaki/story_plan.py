"""The plan of a story: which frames, slices and chunks it becomes, and which chunk is told what. Seconds become frames exactly.

It knows no model; `plan` is handed the three numbers that it needs.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from phenaki.story import Story
from phenaki.story_formats import StoryError


@dataclass(frozen=True)
class Chunk:
    """What the transformer fills in one sampling call."""

    scene: int  # whose prompt it is told
    index: int  # within the scene, from 0
    segment: int  # the token stream it belongs to
    start_slice: int  # in the segment, whose slice 0 is what it starts from, of a video the last frame alone
    num_slices: int  # token slices to fill


@dataclass(frozen=True)
class ScenePlan:
    """A scene with its place in the video and its chunks."""

    index: int
    prompt: str  # style appended
    negative: str  # the scene's own, else the story's
    start_frame: int  # in the video
    num_frames: int
    segment: int
    starts_segment: bool  # True: nothing before it is seen
    image: str | None  # path; slice 0 of the segment is then given
    video: str | None  # path; slice 0 of the segment is then given: its last frame (the director is given slices before it too, unseen)
    end_image: str | None  # path; the scene's last slice is then given
    guidance_scale: float | None  # None: the sampler's own
    num_steps: int | None  # None: the sampler's own
    remember: str | None  # name that its first slice is kept under
    recall: str | None  # name of an earlier scene's first slice, which it sees in place of its own
    chunks: tuple[Chunk, ...]

    @property
    def num_slices(self) -> int:
        """Token slices of the scene, given ones included."""
        return sum(chunk.num_slices for chunk in self.chunks) + self.starts_from_file

    @property
    def starts_from_file(self) -> bool:
        """Whether slice 0 of the segment is given."""
        return self.image is not None or self.video is not None


@dataclass(frozen=True)
class StoryPlan:
    """Which frames, slices and chunks a story becomes. Segments are token streams of their own: 1 + pt * k frames as 1 + k slices."""

    fps: float
    temporal_patch_size: int  # frames a token slice (pt); slice 0 of a segment has one frame
    scenes: tuple[ScenePlan, ...]
    num_frames: int  # of the video
    segment_frames: tuple[int, ...]  # frames kept of each segment; what its last slice decodes beyond them is dropped

    @property
    def num_chunks(self) -> int:
        return sum(len(scene.chunks) for scene in self.scenes)

    @property
    def num_pieces(self) -> int:
        """Runs of frames that are shown one after the other: the chunks, and what scenes start from."""
        return self.num_chunks + sum(scene.starts_from_file for scene in self.scenes)

    @property
    def num_slices(self) -> int:
        return sum(scene.num_slices for scene in self.scenes)

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps


def plan(story: Story, *, fps: float, temporal_patch_size: int, chunk_slices: int) -> StoryPlan:
    """Turn seconds into frames, slices and chunks.

    fps: frames a second. temporal_patch_size: frames a token slice. chunk_slices: most slices filled in one sampling call.
    A scene ends on the frame nearest to the running sum of seconds (halves go up), so the total is exact; inside a segment the
    ends then move up to the end of the slice that they lie in, by fewer than `temporal_patch_size` frames. Raises StoryError
    for a scene without a slice.
    """
    if not (math.isfinite(fps) and fps > 0 and temporal_patch_size >= 1 and chunk_slices >= 1):
        raise ValueError(f"{fps=}, {temporal_patch_size=}, {chunk_slices=}: all must be above 0")
    frame_ends = scene_frame_ends(story, fps)
    scenes: list[ScenePlan] = []
    segment_frames: list[int] = []
    for first, end in _segments(story):
        origin = frame_ends[first - 1] if first else 0
        kept = frame_ends[end - 1] - origin
        slice_ends = _slice_ends([at - origin for at in frame_ends[first:end]], temporal_patch_size)
        for index, start, stop in zip(range(first, end), [0, *slice_ends], slice_ends, strict=False):
            given, ending = story.scenes[index].starts_from_file, story.scenes[index].end_image is not None
            if kept < 1 or stop - start < 1 + given + ending:
                raise _too_short(story, index, fps, temporal_patch_size * (1 + ending) + given)
            frames = _frames_of(start, temporal_patch_size), min(kept, _frames_of(stop, temporal_patch_size))
            chunks = _chunks(index, len(segment_frames), start + given, stop, chunk_slices)
            scenes.append(_scene_plan(story, index, origin + frames[0], frames[1] - frames[0], index == first, chunks))
        segment_frames.append(kept)
    return StoryPlan(fps, temporal_patch_size, tuple(scenes), frame_ends[-1], tuple(segment_frames))


def scene_frame_ends(story: Story, fps: float) -> list[int]:
    """Last frame + 1 of every scene, at any rate, before it moves to the slice grid. Decimal fractions, not binary: 0.1 s is a tenth."""
    seconds = accumulate(Fraction(repr(scene.seconds)) for scene in story.scenes)
    rate = Fraction(repr(float(fps)))
    return [math.floor(at * rate + Fraction(1, 2)) for at in seconds]


def _segments(story: Story) -> list[tuple[int, int]]:
    """(first scene, last scene + 1) of every run of scenes that carry on from each other."""
    firsts = [index for index, scene in enumerate(story.scenes) if index == 0 or scene.cut or scene.starts_from_file]
    return list(zip(firsts, [*firsts[1:], len(story.scenes)], strict=True))


def _slice_ends(frame_ends: list[int], patch: int) -> list[int]:
    """Slices of a segment up to the end of each scene: enough for every frame, whatever scene follows."""
    return [1 + math.ceil(Fraction(at - 1, patch)) for at in frame_ends]


def _frames_of(num_slices: int, patch: int) -> int:
    return 1 + patch * (num_slices - 1) if num_slices else 0


def _chunks(scene: int, segment: int, start: int, stop: int, chunk_slices: int) -> tuple[Chunk, ...]:
    """Slices [start, stop) of a segment in as few chunks as may be, as even as may be."""
    num_chunks = math.ceil((stop - start) / chunk_slices)
    edges = [start + math.ceil(Fraction((stop - start) * index, num_chunks)) for index in range(num_chunks + 1)]  # longer ones first
    return tuple(Chunk(scene, index, segment, edges[index], edges[index + 1] - edges[index]) for index in range(num_chunks))


def _scene_plan(story: Story, index: int, start_frame: int, num_frames: int, starts: bool, chunks: tuple[Chunk, ...]) -> ScenePlan:
    scene = story.scenes[index]
    return ScenePlan(
        index=index,
        prompt=story.resolved_prompt(index),
        negative=story.negative if scene.negative is None else scene.negative,
        start_frame=start_frame,
        num_frames=num_frames,
        segment=chunks[0].segment,
        starts_segment=starts,
        image=scene.image,
        video=scene.video,
        end_image=scene.end_image,
        guidance_scale=scene.guidance_scale,
        num_steps=scene.num_steps,
        remember=scene.remember,
        recall=scene.recall,
        chunks=chunks,
    )


def _too_short(story: Story, index: int, fps: float, least_frames: int) -> StoryError:
    scene = story.scenes[index]
    least = math.ceil(least_frames / fps * 1000) / 1000
    given = filter(None, ("the frame it starts from" * scene.starts_from_file, "the picture it ends on" * (scene.end_image is not None)))
    why = " and ".join(("one token slice", *given))
    return StoryError(f"scenes[{index}].seconds = {scene.seconds:g}: at {fps:g} fps a scene needs at least {least:g} s ({why})")
