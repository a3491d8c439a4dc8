"""A story: a script of scenes, each a prompt with its length, and the plan that says which chunk is told what.

`Story.load(path)` and `Story.of(anything)` read and check; `plan(...)` turns seconds into frames, slices and chunks, exactly.
Neither knows a model; plan is handed the three numbers it needs.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from phenaki.story_formats import PARSERS, Parsed, StoryError, parse_text

__all__ = ["Chunk", "Scene", "ScenePlan", "Story", "StoryError", "StoryPlan", "plan"]

MAX_PROMPT_CHARS = 1000
MAX_SCENES = 10_000
MAX_SCENE_SECONDS = 3600
MAX_STORY_SECONDS = 24 * 3600
MAX_FILE_BYTES = 1 << 20
MAX_ERRORS_TOLD = 5
MAX_NAME_CHARS = 64
MAX_REMEMBERED = 16  # names in a story: each is a slice of tokens that is held to its end
FILE_FIELDS = ("image", "video", "end_image")  # of a scene

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, Field(strict=True, max_length=MAX_PROMPT_CHARS)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=MAX_NAME_CHARS)]


def _one_line(value: Any) -> Any:
    """Text on one line: control characters and runs of white space become one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", value).split()) if isinstance(value, str) else value


class Scene(BaseModel):
    """A prompt with its length. `cut` forgets what was seen; without it a scene carries on from the one before."""

    # Scene(...) and Story(...) raise pydantic.ValidationError, a ValueError; Story.of, from_dict and load say the same as StoryError.
    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text = Field(min_length=1, description=f"a text of 1 to {MAX_PROMPT_CHARS} characters (in YAML, quotes make anything a text)")
    seconds: Number = Field(4.0, gt=0, le=MAX_SCENE_SECONDS, description=f"a number of seconds above 0 and at most {MAX_SCENE_SECONDS}")
    cut: bool = Field(False, strict=True, description="true (forget what was seen) or false (carry on from it)")
    guidance_scale: Number | None = Field(None, ge=1, le=100, description="a number from 1 (guidance off) to 100")
    num_steps: Whole | None = Field(None, ge=1, le=256, description="a whole number of refinement rounds a chunk, from 1 to 256")
    negative: Text | None = Field(None, description=f"a text of at most {MAX_PROMPT_CHARS} characters; the story's own by default")
    image: Text | None = Field(None, min_length=1, description="the path of a picture the scene starts from, inside the story's folder")
    video: Text | None = Field(None, min_length=1, description="the path of a video that the scene goes on from, inside the story's folder")
    end_image: Text | None = Field(None, min_length=1, description="the path of a picture the scene ends on, inside the story's folder")
    remember: Name | None = Field(None, description=f"a name of 1 to {MAX_NAME_CHARS} characters: how the scene begins is kept under it")
    recall: Name | None = Field(None, description="a name that an earlier scene is remembered under: its beginning is seen again")

    _squeezed = field_validator("prompt", "negative", "remember", "recall", mode="before")(_one_line)

    @model_validator(mode="after")
    def _starts_once(self) -> Scene:
        if self.image is not None and self.video is not None:
            raise ValueError("image and video: a scene starts from a picture or goes on from a video, keep one of them")
        return self

    @property
    def starts_from_file(self) -> bool:
        """Whether a picture or a video stands before what is made: nothing earlier is seen then."""
        return self.image is not None or self.video is not None


class Story(BaseModel):
    """A list of scenes and what they share: title, frames a second, picture size in pixels, seed, style, negative prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Text = Field("", description=f"a text of at most {MAX_PROMPT_CHARS} characters")
    fps: Number | None = Field(None, gt=0, le=240, description="frames a second, above 0 and at most 240; the model's own by default")
    size: Whole | None = Field(None, ge=16, le=8192, description="whole pixels a side, from 16 to 8192; the model's own by default")
    seed: Whole = Field(0, ge=0, lt=2**63, description="a whole number from 0 to 2**63 - 1")
    style: Text = Field("", description=f"a text of at most {MAX_PROMPT_CHARS} characters, appended to every prompt")
    negative: Text = Field("", description=f"a text of at most {MAX_PROMPT_CHARS} characters: what should not be seen")
    scenes: tuple[Scene, ...] = Field(min_length=1, max_length=MAX_SCENES, description=f"a list of 1 to {MAX_SCENES} scenes")

    _squeezed = field_validator("title", "style", "negative", mode="before")(_one_line)

    @model_validator(mode="after")
    def _not_endless(self) -> Story:
        if self.seconds > MAX_STORY_SECONDS:
            raise ValueError(f"the scenes last {self.seconds:g} s in all: at most {MAX_STORY_SECONDS} s (24 hours) are allowed")
        return self

    @model_validator(mode="after")
    def _recalls_what_is_remembered(self) -> Story:
        names: dict[str, None] = {}
        for index, scene in enumerate(self.scenes):
            if scene.recall is not None and scene.recall not in names:
                problem = f"no earlier scene is remembered as {scene.recall!r} (known here: {', '.join(names) or 'none'})"
                raise _error_at(("scenes", index, "recall"), scene.recall, problem)
            if scene.remember is not None:
                names[scene.remember] = None
            if len(names) > MAX_REMEMBERED:
                raise _error_at(("scenes", index, "remember"), scene.remember, f"more than {MAX_REMEMBERED} names: use one of the earlier again")
        return self

    @property
    def seconds(self) -> float:
        """Asked length of the whole story."""
        return math.fsum(scene.seconds for scene in self.scenes)

    def resolved_prompt(self, index: int) -> str:
        """The prompt of scene `index` as the model is told it, the style appended."""
        return ", ".join(filter(None, (self.scenes[index].prompt, self.style)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `Story.from_dict` gives the same story back."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Story:
        """The story a dict describes. Raises StoryError naming the field, its value and what is allowed."""
        return _checked(Parsed(data))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Story:
        """Read a script by its ending: .yaml .yml .json .txt .story .srt .vtt; at most 1 MiB of UTF-8.

        Pictures and videos are found beside the script and must lie in its folder. Raises StoryError with file, line and field.
        """
        path = Path(path)
        parse = PARSERS.get(path.suffix.lower())
        if parse is None:
            raise StoryError(f"ending {path.suffix!r} is not a story's: allowed are {' '.join(PARSERS)}", file=str(path))
        try:
            parsed = parse(_read_text(path))
            return _with_files(_checked(parsed), parsed, path.parent)
        except StoryError as error:
            raise StoryError(error.problem, file=str(path), line=error.line) from None

    @classmethod
    def of(cls, value: Any) -> Story:
        """A Story from a Story, a path, a plain text (one prompt a line), a dict, or a list of prompts, (prompt, seconds), Scene, dict.

        A one-line text with the ending of a story file is a path. Raises StoryError.
        """
        if isinstance(value, Story):
            return value
        if isinstance(value, os.PathLike) or (isinstance(value, str) and _looks_like_path(value)):
            return cls.load(value)
        if isinstance(value, str):
            return _checked(parse_text(value))
        if isinstance(value, dict):
            return cls.from_dict(value)
        if isinstance(value, (list, tuple)):
            return cls.from_dict({"scenes": [_scene_of(item, index) for index, item in enumerate(value)]})
        raise StoryError(f"a story cannot be made of {type(value).__name__}: give a path, a text, a dict or a list of prompts")

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (2020-12) of a story file, as published in docs/story.schema.json."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cls.model_json_schema()}


def _error_at(loc: tuple[str | int, ...], value: Any, problem: str) -> ValidationError:
    """An error that a validator of the whole story finds in one field."""
    return ValidationError.from_exception_data("Story", [{"type": "value_error", "loc": loc, "input": value, "ctx": {"error": ValueError(problem)}}])


# ---- reading and checking ------------------------------------------------------------------------------------------


def _looks_like_path(text: str) -> bool:
    return "\n" not in text.strip() and Path(text.strip()).suffix.lower() in PARSERS


def _scene_of(item: Any, index: int) -> Scene | dict[str, Any]:
    if isinstance(item, (Scene, dict)):
        return item
    if isinstance(item, str):
        return {"prompt": item}
    if isinstance(item, (list, tuple)) and len(item) == 2:
        return {"prompt": item[0], "seconds": item[1]}
    raise StoryError(f"scenes[{index}] = {_shown(item)}: needs a prompt, (prompt, seconds), a Scene or a dict")


def _read_text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise StoryError(f"cannot read the story file: {getattr(error, 'strerror', None) or error}; check the path") from None
    if len(raw) > MAX_FILE_BYTES:
        raise StoryError(f"more than {MAX_FILE_BYTES} bytes: a story file has at most 1 MiB; is it a script?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise StoryError(f"not a {path.suffix} file: byte {raw[error.start]:#04x} is not UTF-8 text; save it as UTF-8", line=line) from None
    if "\0" in text:
        raise StoryError(f"not a {path.suffix} file: binary data, not text; give a script", line=text[: text.index("\0")].count("\n") + 1)
    return text


def _with_files(story: Story, parsed: Parsed, folder: Path) -> Story:
    """The story with the paths of its files resolved against its folder. Raises StoryError for one outside of it or missing."""
    scenes = []
    for index, scene in enumerate(story.scenes):
        found = {}
        for name in FILE_FIELDS:
            given = getattr(scene, name)
            try:
                found |= {} if given is None else {name: _file_in(folder, given)}
            except (OSError, ValueError) as error:
                line = parsed.line_of(("scenes", index, name))
                raise StoryError(f"scenes[{index}].{name} = {_shown(given)}: {error}", line=line) from None
        scenes.append(scene.model_copy(update=found))
    return story.model_copy(update={"scenes": tuple(scenes)})


def _file_in(folder: Path, name: str) -> str:
    ways = PurePosixPath(name), PureWindowsPath(name)
    if any(way.anchor or ".." in way.parts for way in ways):
        raise ValueError("needs a path inside the story's folder: not absolute and without `..`")
    path, root = (folder / name).resolve(), folder.resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"is a link that leaves the story's folder {root}: put the file into it")
    if not path.is_file():
        raise ValueError(f"no such file in {root}: put the file there or correct the name")
    return str(path)


def _checked(parsed: Parsed) -> Story:
    try:
        return Story.model_validate(parsed.data)
    except ValidationError as error:
        found = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")  # typing errors first
    deeper = [item for item in found if item["loc"] != ("scenes",)]
    found = deeper if any(item["loc"][:1] == ("scenes",) for item in deeper) else found  # a bad scene also makes the list of good ones short
    lines = [parsed.line_of(item["loc"]) for item in found]
    told = [_problem(item) for item in found[:MAX_ERRORS_TOLD]]
    others = [f"\n  also{f' line {line}' if line else ''}: {text}" for line, text in zip(lines[1:], told[1:], strict=False)]
    more = f"\n  and {len(found) - len(told)} more" if len(found) > len(told) else ""
    raise StoryError("".join([told[0], *others, more]), line=lines[0])


def _problem(error: dict[str, Any]) -> str:
    """One pydantic error in the words of a story: field, value, what is allowed."""
    loc, kind = error["loc"], error["type"]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    fields = (Scene if loc[:1] == ("scenes",) and len(loc) > 1 else Story).model_fields
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{name}: unknown key {str(loc[-1])!r}: {hint}known keys are {', '.join(fields)}"
    if kind == "value_error":
        return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    if kind == "missing":
        return f"{name} is missing: it needs {fields[loc[-1]].description}"
    if not loc:
        return f"{_shown(error['input'])} is not a story: needs a mapping with `scenes`"
    known = fields.get(loc[-1])
    allowed = known.description if known else "a mapping with a `prompt`" if isinstance(loc[-1], int) else error["msg"]
    size = f" ({len(error['input'])} long)" if kind in ("string_too_long", "too_long") else ""
    return f"{name} = {_shown(error['input'])}{size}: needs {allowed}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        return f"an enormous {type(value).__name__}"
    return text if len(text) <= 80 else text[:76] + " ..."


# ---- the plan ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """What the transformer fills in one sampling call."""

    scene: int  # whose prompt it is told
    index: int  # within the scene, from 0
    segment: int  # the token stream it belongs to
    start_slice: int  # in the segment
    num_slices: int  # token slices to fill


@dataclass(frozen=True)
class ScenePlan:
    """A scene with its place in the video and its chunks."""

    index: int
    prompt: str  # style appended
    negative: str  # the scene's own, else the story's
    start_frame: int  # in the video
    num_frames: int
    asked_seconds: float
    segment: int
    starts_segment: bool  # True: nothing before it is seen
    image: str | None  # path; slice 0 of the segment is then given
    video: str | None  # path; slice 0 of the segment is then given: its last frame
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
    ends then move to the nearest slice, at most `temporal_patch_size` frames away. Raises StoryError for a scene without a slice.
    """
    if not (math.isfinite(fps) and fps > 0 and temporal_patch_size >= 1 and chunk_slices >= 1):
        raise ValueError(f"{fps=}, {temporal_patch_size=}, {chunk_slices=}: all must be above 0")
    frame_ends = _frame_ends(story, fps)
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


def _frame_ends(story: Story, fps: float) -> list[int]:
    """Last frame + 1 of every scene before it moves to the slice grid. Decimal fractions, not binary: 0.1 s is a tenth."""
    seconds = accumulate(Fraction(repr(scene.seconds)) for scene in story.scenes)
    rate = Fraction(repr(float(fps)))
    return [math.floor(at * rate + Fraction(1, 2)) for at in seconds]


def _segments(story: Story) -> list[tuple[int, int]]:
    """(first scene, last scene + 1) of every run of scenes that carry on from each other."""
    firsts = [index for index, scene in enumerate(story.scenes) if index == 0 or scene.cut or scene.starts_from_file]
    return list(zip(firsts, [*firsts[1:], len(story.scenes)], strict=True))


def _slice_ends(frame_ends: list[int], patch: int) -> list[int]:
    """Slices of a segment up to the end of each scene: the nearest (halves go up), and for the last enough for every frame."""
    nearest = [1 + math.floor(Fraction(at - 1, patch) + Fraction(1, 2)) for at in frame_ends[:-1]]
    return [*nearest, 1 + math.ceil(Fraction(frame_ends[-1] - 1, patch))]


def _frames_of(num_slices: int, patch: int) -> int:
    return 1 + patch * (num_slices - 1) if num_slices else 0


def _chunks(scene: int, segment: int, start: int, stop: int, chunk_slices: int) -> tuple[Chunk, ...]:
    """Slices [start, stop) of a segment in as few chunks as may be, as even as may be."""
    num_chunks = math.ceil((stop - start) / chunk_slices)
    edges = [start - ((start - stop) * index) // num_chunks for index in range(num_chunks + 1)]
    return tuple(Chunk(scene, index, segment, edges[index], edges[index + 1] - edges[index]) for index in range(num_chunks))


def _scene_plan(story: Story, index: int, start_frame: int, num_frames: int, starts: bool, chunks: tuple[Chunk, ...]) -> ScenePlan:
    scene = story.scenes[index]
    return ScenePlan(
        index=index,
        prompt=story.resolved_prompt(index),
        negative=story.negative if scene.negative is None else scene.negative,
        start_frame=start_frame,
        num_frames=num_frames,
        asked_seconds=scene.seconds,
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
