"""A story: a script of scenes, each a prompt with its length. `Story.load(path)` and `Story.of(anything)` read and check."""

from __future__ import annotations

import difflib
import math
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from phenaki.story_formats import FILE_FIELDS, PARSERS, Parsed, StoryError, parse_text

__all__ = ["Scene", "Story", "StoryError"]

MAX_PROMPT_CHARS = 1000
MAX_SCENES = 10_000
MAX_SCENE_SECONDS = 3600
MAX_STORY_SECONDS = 24 * 3600
MAX_FILE_BYTES = 1 << 20
MAX_ERRORS_TOLD = 5
MAX_NAME_CHARS = 64
MAX_SIZE = 4096  # pixels a side: as many as are read again (video_files.py)
SAMPLING = ("guidance_scale", "num_steps", "context")  # sampling options that a story may have
OPTIONS = ("seed", "fps", "size", "style", "negative", *SAMPLING)  # what may be asked for in place of a story's own values
OF_A_VIDEO = ("model", "made_with", "edit")  # keys that the script inside a video has besides those of a story
MAX_REMEMBERED = 16  # names in a story: each is a slice of tokens that is held to its end

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, Field(strict=True, max_length=MAX_PROMPT_CHARS)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=MAX_NAME_CHARS)]
GuidanceScale = Annotated[Number | None, Field(ge=1, le=100, description="a number from 1 (guidance off) to 100")]
NumSteps = Annotated[Whole | None, Field(ge=1, le=256, description="a whole number of refinement rounds a chunk, from 1 to 256")]


def one_line(value: Any) -> Any:
    """Text on one line: control characters and runs of white space become one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", value).split()) if isinstance(value, str) else value


class Scene(BaseModel):
    """A prompt with its length. `cut` forgets what was seen; without it a scene carries on from the one before."""

    # Scene(...) and Story(...) raise pydantic.ValidationError, a ValueError; Story.of, from_dict and load say the same as StoryError.
    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text = Field(min_length=1, description=f"a text of 1 to {MAX_PROMPT_CHARS} characters (in YAML, quotes make anything a text)")
    seconds: Number = Field(4.0, gt=0, le=MAX_SCENE_SECONDS, description=f"a number of seconds above 0 and at most {MAX_SCENE_SECONDS}")
    cut: bool = Field(False, strict=True, description="true (forget what was seen) or false (carry on from it)")
    guidance_scale: GuidanceScale = None
    num_steps: NumSteps = None
    negative: Text | None = Field(None, description=f"a text of at most {MAX_PROMPT_CHARS} characters; the story's own by default")
    image: Text | None = Field(None, min_length=1, description="the path of a picture the scene starts from, inside the story's folder")
    video: Text | None = Field(None, min_length=1, description="the path of a video that the scene goes on from, inside the story's folder")
    end_image: Text | None = Field(None, min_length=1, description="the path of a picture the scene ends on, inside the story's folder")
    remember: Name | None = Field(None, description=f"a name of 1 to {MAX_NAME_CHARS} characters: how the scene begins is kept under it")
    recall: Name | None = Field(None, description="a name that an earlier scene is remembered under: its beginning is seen again")

    _squeezed = field_validator("prompt", "negative", "remember", "recall", mode="before")(one_line)

    @model_validator(mode="before")
    @classmethod
    def _prompt_alone(cls, value: Any) -> Any:
        """A text in place of a mapping is the prompt of a scene with defaults."""
        return {"prompt": value} if isinstance(value, str) else value

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
    """A list of scenes and what they share: title, frames a second, picture size in pixels, seed, style, negative prompt, sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Text = Field("", description=f"a text of at most {MAX_PROMPT_CHARS} characters")
    fps: Number | None = Field(None, gt=0, le=240, description="frames a second, above 0 and at most 240; the model's own by default")
    size: Whole | None = Field(None, ge=16, le=MAX_SIZE, description=f"whole pixels a side, from 16 to {MAX_SIZE}; the model's own by default")
    seed: Whole = Field(0, ge=0, lt=2**63, description="a whole number from 0 to 2**63 - 1")
    style: Text = Field("", description=f"a text of at most {MAX_PROMPT_CHARS} characters, appended to every prompt")
    negative: Text = Field("", description=f"a text of at most {MAX_PROMPT_CHARS} characters: what should not be seen")
    guidance_scale: GuidanceScale = None
    num_steps: NumSteps = None
    context: Literal["tokens", "frames"] | None = Field(None, description="what a chunk sees of those before it: \"tokens\" or \"frames\"")
    scenes: tuple[Scene, ...] = Field(min_length=1, max_length=MAX_SCENES, description=f"a list of 1 to {MAX_SCENES} scenes")

    _squeezed = field_validator("title", "style", "negative", mode="before")(one_line)

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
    def from_dict(cls, data: dict[str, Any], folder: str | os.PathLike | None = None) -> Story:
        """The story a dict describes, also that of `Video.script`: then it has the rounds, guidance and context that the video was made with.

        folder: where its pictures and videos lie and must lie; by default their paths are taken as they are.
        Raises StoryError naming the field, its value and what is allowed.
        """
        parsed = Parsed(_as_made(data) if isinstance(data, dict) else data)
        return _checked(parsed) if folder is None else _with_files(_checked(parsed), parsed, Path(folder))

    @classmethod
    def from_text(cls, text: str) -> Story:
        """The story of a plain text, a prompt a line (`parse_text`). Raises StoryError."""
        return _checked(parse_text(text))

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
            parsed = _with_scenes(parse(_read_text(path)))
            return _with_files(_checked(parsed), parsed, path.parent)
        except StoryError as error:
            raise StoryError(error.problem, file=str(path), line=error.line) from None
        except ValueError as error:  # of a parser's own, such as a character's number of thousands of digits
            raise StoryError(f"not a {path.suffix} file that can be read: {error}", file=str(path)) from None

    @classmethod
    def of(cls, value: Any) -> Story:
        """A Story from a Story, a path, a plain text (one prompt a line), a dict, or a list of prompts, (prompt, seconds), Scene, dict.

        A one-line text with the ending of a story file is a path. Raises StoryError.
        """
        if isinstance(value, Story):
            return value
        if isinstance(value, os.PathLike) or (isinstance(value, str) and _looks_like_path(value)):
            return cls.load(value.strip() if isinstance(value, str) else value)
        if isinstance(value, str):
            return cls.from_text(value)
        if isinstance(value, dict):
            return cls.from_dict(value)
        if isinstance(value, (list, tuple)):
            return cls.from_dict({"scenes": [_scene_of(item, index) for index, item in enumerate(value)]})
        raise StoryError(f"a story cannot be made of {type(value).__name__}: give a path, a text, a dict or a list of prompts")

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (2020-12) of a story file, as published in docs/story.schema.json; a scene may be its prompt alone."""
        schema = cls.model_json_schema()
        scenes, prompt = schema["properties"]["scenes"], schema["$defs"]["Scene"]["properties"]["prompt"]
        scenes["items"] = {"anyOf": [scenes["items"], {name: prompt[name] for name in ("type", "minLength", "maxLength")}]}
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _error_at(loc: tuple[str | int, ...], value: Any, problem: str) -> ValidationError:
    """An error that a validator of the whole story finds in one field."""
    return ValidationError.from_exception_data("Story", [{"type": "value_error", "loc": loc, "input": value, "ctx": {"error": ValueError(problem)}}])


# ---- reading and checking ------------------------------------------------------------------------------------------


def _looks_like_path(text: str) -> bool:
    return "\n" not in text.strip() and Path(text.strip()).suffix.lower() in PARSERS


def _scene_of(item: Any, index: int) -> Scene | dict[str, Any] | str:
    if isinstance(item, (Scene, dict, str)):
        return item
    if isinstance(item, (list, tuple)) and len(item) == 2:
        return {"prompt": item[0], "seconds": item[1]}
    raise StoryError(f"scenes[{index}] = {_shown(item)}: needs a prompt, (prompt, seconds), a Scene or a dict")


def _read_text(path: Path) -> str:
    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            raise StoryError("is a pipe or a device, which may never end; give a file")
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise StoryError(f"cannot read the story file: {getattr(error, 'strerror', None) or error}; check the path") from None
    return decoded(raw, f"a {path.suffix} file")


def decoded(raw: bytes, what: str) -> str:
    """The text of a script as it was read, up to a byte more than MAX_FILE_BYTES. what: it should be, for StoryError's message."""
    if len(raw) > MAX_FILE_BYTES:
        raise StoryError(f"more than {MAX_FILE_BYTES} bytes: a story has at most 1 MiB; is it a script?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise StoryError(f"not {what}: byte {raw[error.start]:#04x} is not UTF-8 text; save it as UTF-8", line=line) from None
    if "\0" in text:
        raise StoryError(f"not {what}: binary data, not text; give a script", line=text[: text.index("\0")].count("\n") + 1)
    return text


def _as_made(data: dict[str, Any]) -> dict[str, Any]:
    """A story's dict without what a video's script has besides; it takes what it does not say from the sampling options there."""
    own = {key: data[key] for key in data if key not in OF_A_VIDEO}
    made_with = data.get("made_with")
    sampling = made_with.get("sampling") if isinstance(made_with, dict) else None
    return {name: sampling[name] for name in SAMPLING if name in sampling} | own if isinstance(sampling, dict) else own


def _with_scenes(parsed: Parsed) -> Parsed:
    """What a file says, a list taken for that of a story's scenes."""
    if not isinstance(parsed.data, list):
        return parsed
    return Parsed({"scenes": parsed.data}, lambda: {(): 1} | {("scenes", *loc): line for loc, line in parsed.lines.items()})


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
    path, root = (Path(os.path.realpath(one)) for one in (folder / name, folder))  # Path.resolve fails at links in a circle, before Python 3.13
    if not path.is_relative_to(root):
        raise ValueError(f"is a link that leaves the story's folder {root}: put the file into it")
    if not path.is_file():
        raise ValueError(f"no such file in {root}: put the file there or correct the name")
    return str(path)


def _checked(parsed: Parsed) -> Story:
    scenes = parsed.data.get("scenes") if isinstance(parsed.data, dict) else None
    if isinstance(scenes, (list, tuple)) and len(scenes) > MAX_SCENES:  # an error for each of a million takes its time
        raise StoryError(f"scenes: {len(scenes)} of them; needs {Story.model_fields['scenes'].description}", line=parsed.line_of(("scenes",)))
    try:
        return Story.model_validate(parsed.data)
    except ValidationError as error:
        found = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")  # typing errors first
    deeper = [item for item in found if item["loc"] != ("scenes",)]
    found = deeper if any(item["loc"][:1] == ("scenes",) for item in deeper) else found  # a bad scene also makes the list of good ones short
    lines = [parsed.line_of(item["loc"]) for item in found[:MAX_ERRORS_TOLD]]
    told = [_problem(item) for item in found[:MAX_ERRORS_TOLD]]
    others = [f"\n  also{f' line {line}' if line else ''}: {text}" for line, text in zip(lines[1:], told[1:], strict=False)]
    more = f"\n  and {len(found) - len(told)} more" if len(found) > len(told) else ""
    raise StoryError("".join([told[0], *others, more]), line=lines[0])


def _problem(error: dict[str, Any]) -> str:
    """One pydantic error in the words of a story: field, value, what is allowed."""
    loc, kind = error["loc"], error["type"]
    plain = lambda key: key if str(key).isidentifier() and len(key) <= MAX_NAME_CHARS else _shown(key)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{plain(part)}" for part in loc).lstrip(".")
    fields = (Scene if loc[:1] == ("scenes",) and len(loc) > 1 else Story).model_fields
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{name}: unknown key {_shown(str(loc[-1]))}: {hint}known keys are {', '.join(fields)}"
    if kind == "value_error":
        return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    if kind == "missing":
        return f"{name} is missing: it needs {fields[loc[-1]].description}"
    if not loc:
        return f"{_shown(error['input'])} is not a story: needs a list of scenes, or a mapping with `scenes`"
    known = fields.get(loc[-1])
    allowed = known.description if known else "a prompt, or a mapping with a `prompt`" if isinstance(loc[-1], int) else error["msg"]
    size = f" ({len(error['input'])} long)" if kind in ("string_too_long", "too_long") else ""
    return f"{name} = {_shown(error['input'])}{size}: needs {allowed}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        return f"an enormous {type(value).__name__}"
    return text if len(text) <= 80 else text[:76] + " ..."
