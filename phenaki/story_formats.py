"""The file formats of a story: YAML, JSON, plain text and subtitles become a dict, and every field keeps its line.

Nothing here knows what a good story is (`story.py` does); it knows what a file that is what its ending says looks like.
A parser takes text and gives a `Parsed`; a text that cannot be read is a `StoryError` with its line.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import yaml
from yaml.composer import Composer

MAX_DEPTH = 16  # nested lists and mappings; a story has three
MAX_ITEMS = 10_000  # of a list or mapping: as many as a story may have scenes
MAX_NODES = 300_000  # of a whole file: as many scenes with all that a scene may have
MAX_NUMBER_CHARS = 100
HEADER_TYPES = {
    "title": str, "fps": float, "size": int, "seed": int, "style": str, "negative": str, "guidance_scale": float, "num_steps": int, "context": str,
}  # fmt: skip
FILE_FIELDS = ("image", "video", "end_image")  # of a scene: each names a file
TEXT_OPTIONS = (*FILE_FIELDS, "remember", "recall")  # their value is a text
OPTIONS = (
    "`4s`, `cut`, `guidance 6`, `steps 12`, `image a.png`, `video a.mp4`, `end_image b.png`, `remember bear` and `recall bear`, "
    "with commas between them"
)

Loc = tuple[str | int, ...]  # ("scenes", 2, "seconds")


class StoryError(ValueError):
    """A story that cannot be told: the message has the file, the line, the field, its value and what is allowed.

    problem: the message without its place. file: name, "" when not from a file. line: from 1, None when not known.
    """

    def __init__(self, problem: str, *, file: str = "", line: int | None = None):
        self.problem, self.file, self.line = problem, file, line
        place = f"{file}:{line}" if file and line else file or (f"line {line}" if line else "")
        super().__init__(f"{place}: {problem}" if place else problem)


@dataclass(frozen=True)
class Parsed:
    """What a file says, unchecked: `data` for `Story`, and what finds the line (from 1) where each field stands, if one is asked for."""

    data: Any
    find_lines: Callable[[], dict[Loc, int]] = dict

    @cached_property
    def lines(self) -> dict[Loc, int]:
        return self.find_lines()

    def line_of(self, loc: Loc) -> int | None:
        """The line of a field, or of the nearest thing around it."""
        return next((self.lines[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in self.lines), None)


# ---- YAML and JSON -------------------------------------------------------------------------------------------------


# Read in C, which is six times as fast, and composed in Python.
_LOADERS = (Composer, yaml.CSafeLoader) if yaml.__with_libyaml__ else (yaml.SafeLoader,)


class _PlainLoader(*_LOADERS):
    """yaml.safe_load without anchors and aliases (a kilobyte of them can unfold to gigabytes), deep nesting and endless lists."""

    depth = num_nodes = 0

    def __init__(self, text: str):
        _LOADERS[-1].__init__(self, text)
        Composer.__init__(self)

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "anchor", None):
            raise StoryError(f"YAML anchor or alias {event.anchor!r:.80}: not allowed in a story; write the value out", line=_line(event))
        if self.depth >= MAX_DEPTH:
            raise StoryError(f"lists or mappings nested {MAX_DEPTH} deep: a story needs three levels", line=_line(event))
        self.num_nodes += 1
        if (parent is not None and len(parent.value) >= MAX_ITEMS) or self.num_nodes > MAX_NODES:
            raise StoryError(f"a list or mapping of more than {MAX_ITEMS} entries, or {MAX_NODES} in all: no story has as many", line=_line(event))
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_number(self, node):
        """A whole or broken number; YAML 1.1 also counts in sixties (1:30:00), which takes the square of its length."""
        if len(node.value) > MAX_NUMBER_CHARS:
            raise StoryError(f"a number of {len(node.value)} characters: {MAX_NUMBER_CHARS} are enough", line=_line(node))
        is_whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _PlainLoader.construct_number)


def _line(marked) -> int:
    return marked.start_mark.line + 1


def parse_yaml(text: str) -> Parsed:
    """YAML 1.1 through the safe loader. Raises StoryError: syntax, anchors, a key given twice, an unknown tag."""
    loader = None
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise StoryError("the file is empty: a story needs `scenes:` with at least one scene")
        lines = dict(_node_lines(node, ()))
        return Parsed(loader.construct_document(node), lambda: lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise StoryError(f"not YAML: {error.problem or error.context}", line=mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise StoryError(f"not YAML: character {error.character!r} is not allowed in a text file", line=line) from None
    except StoryError:
        raise
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:  # PyYAML on `!!int` of nothing, a 45th of May
        raise StoryError(f"not YAML: a value that is not of its kind ({error})") from None
    finally:
        if loader is not None:
            loader.dispose()


def _node_lines(node: yaml.Node, loc: Loc) -> Iterator[tuple[Loc, int]]:
    """(loc, line) of every field of a YAML document. Raises StoryError for a key given twice."""
    if loc == () or not isinstance(loc[-1], str):
        yield loc, _line(node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _node_lines(item, (*loc, index))
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise StoryError(f"key {key.value!r:.80} is given twice: keep one of them", line=_line(key))
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            yield (*loc, str(key.value)), _line(key)
            yield from _node_lines(value, (*loc, str(key.value)))


def parse_json(text: str) -> Parsed:
    """JSON. Raises StoryError: syntax (with its line), a key given twice, nesting without end."""
    try:
        data = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise StoryError(f"not JSON: {error.msg} (column {error.colno})", line=error.lineno) from None
    except StoryError:
        raise
    except (ValueError, RecursionError) as error:
        raise StoryError(f"not JSON that can be read: {error}") from None
    return Parsed(data, lambda: _json_lines(text))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    twice = next((key for key, count in counts.items() if count > 1), None)
    if twice is not None:
        raise StoryError(f"key {twice!r:.80} is given twice: keep one of them")
    return dict(pairs)


def _json_lines(text: str) -> dict[Loc, int]:
    """Lines of a JSON file's fields, read as YAML, which nearly all JSON is; none where it is not (tabs)."""
    try:
        return parse_yaml(text.replace("\t", "    ")).lines
    except StoryError:
        return {}


# ---- plain text ----------------------------------------------------------------------------------------------------


def parse_text(text: str) -> Parsed:
    """One prompt a line, `[4s, cut] prompt` where wanted; `key: value` lines above a line `---`; # starts a comment line.

    A dash or number before a prompt, as in a list, is not part of it. Raises StoryError: an unknown option or header key, a bracket that is
    not closed or stands behind its prompt, a header without its `---`.
    """
    rows = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    rows = [(number, line) for number, line in rows if line and not line.startswith("#")]
    ends = [index for index, (_, line) in enumerate(rows) if line == "---"]
    if len(ends) > 1:
        raise StoryError("a second line `---`: only one is allowed, between the header and the prompts", line=rows[ends[1]][0])
    header, prompts = (rows[: ends[0]], rows[ends[0] + 1 :]) if ends else ([], rows)
    if not ends and rows and rows[0][1].partition(":")[0].strip().lower() in HEADER_TYPES:
        raise StoryError(f"{rows[0][1]!r} looks like a header: end the header with a line `---`", line=rows[0][0])
    data, lines = _parse_header(header)
    data["scenes"] = [_parse_prompt_line(line, number) for number, line in prompts]
    lines |= {("scenes", index): number for index, (number, _) in enumerate(prompts)}
    return Parsed(data, lambda: lines)


def _parse_header(rows: list[tuple[int, str]]) -> tuple[dict[str, Any], dict[Loc, int]]:
    data, lines = {}, {}
    for number, row in rows:
        key, colon, value = (part.strip() for part in row.partition(":"))
        key = key.lower()
        if not colon or key not in HEADER_TYPES:
            raise StoryError(f"header line {row!r}: needs `key: value` with a key of {', '.join(HEADER_TYPES)}", line=number)
        if key in data:
            raise StoryError(f"key {key!r} is given twice: keep one of them", line=number)
        try:
            data[key] = HEADER_TYPES[key](value)
        except ValueError:
            raise StoryError(f"{key} = {value!r}: needs a {'whole ' * (HEADER_TYPES[key] is int)}number", line=number) from None
        lines[(key,)] = number
    return data, lines


_LIST_MARK = re.compile(r"(?:[-*\u2022]|\d{1,4}[.)])\s+", re.ASCII)
_SECONDS_BEFORE = re.compile(r"\(?\s*(\d+(?:\.\d*)?)\s*s(?:ec|econds?)?\s*[):]\s*(?=\S)", re.ASCII | re.IGNORECASE)
_OPTIONS_BEHIND = re.compile(r"\[\s*(?:\d+(?:\.\d*)?s|cut)\b[^\[\]]*\]$", re.ASCII | re.IGNORECASE)


def _parse_prompt_line(line: str, number: int) -> dict[str, Any]:
    line = _LIST_MARK.sub("", line, count=1) if _LIST_MARK.match(line) else line
    if (behind := _OPTIONS_BEHIND.search(line)) and behind.start():
        raise StoryError(f"{behind[0]!r:.80} stands behind its prompt: write `{behind[0]:.80} prompt`", line=number)
    if seconds := _SECONDS_BEFORE.match(line):
        raise StoryError(f"{seconds[0].strip()!r} before a prompt: write `[{seconds[1]}s] {line[seconds.end():]:.80}`", line=number)
    if not line.startswith("["):
        return {"prompt": line}
    inside, closed, prompt = line[1:].partition("]")
    if not closed:
        raise StoryError(f"{line[:40]!r}: `[` without `]`; write `[4s, cut] prompt`", line=number)
    scene: dict[str, Any] = {"prompt": prompt}
    for option in filter(None, (part.strip() for part in inside.split(","))):
        key, value = _parse_option(option, number)
        if key in scene:
            raise StoryError(f"option {option!r}: {key} is given twice: keep one of them", line=number)
        scene[key] = value
    return scene


def _parse_option(option: str, number: int) -> tuple[str, Any]:
    """`4s` -> ("seconds", 4.0), and so on."""
    name, _, value = option.partition(" ")
    name = name.lower()
    try:
        if option.lower() == "cut":
            return "cut", True
        if name == "guidance":
            return "guidance_scale", float(value)
        if name == "steps":
            return "num_steps", int(value)
        if name in TEXT_OPTIONS and value.strip():
            return name, value.strip()
        if option.endswith(("s", "S")):
            return "seconds", float(option[:-1])
    except ValueError:
        pass
    raise StoryError(f"option {option!r} in brackets: allowed are {OPTIONS}", line=number)


# ---- subtitles -----------------------------------------------------------------------------------------------------

_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{2})[,.](\d{1,3})"
_CUE_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?$", re.ASCII)
_TAGS = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True)
class _Cue:
    start: int  # milliseconds
    end: int  # milliseconds
    text: str
    line: int  # of its times


def parse_srt(text: str) -> Parsed:
    """SubRip: cue text is the prompt, cue times are scene times. Raises StoryError: no cues, bad or overlapping times."""
    return _scenes_of_cues([_parse_cue(lines, number) for number, lines in _blocks(text)])


def parse_vtt(text: str) -> Parsed:
    """WebVTT; NOTE, STYLE and REGION blocks are skipped. Raises StoryError: no WEBVTT, no cues, bad or overlapping times."""
    blocks = list(_blocks(text))
    if not blocks or not re.match(r"WEBVTT(\s|$)", blocks[0][1][0]):
        raise StoryError("not WebVTT: the first line must be WEBVTT", line=1)
    cues = [block for block in blocks[1:] if not re.match(r"(NOTE|STYLE|REGION)(\s|$)", block[1][0]) or "-->" in "".join(block[1][:2])]
    parsed = [_parse_cue(lines, number) for number, lines in cues]
    return _scenes_of_cues([_Cue(cue.start, cue.end, html.unescape(cue.text), cue.line) for cue in parsed])


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines) of every run of lines that are not blank."""
    block: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip():
            block.append(line.strip())
        elif block:
            yield number - len(block), block
            block = []


def _parse_cue(lines: list[str], number: int) -> _Cue:
    at = next((index for index, line in enumerate(lines[:2]) if "-->" in line), None)
    if at is None:
        raise StoryError(f"{lines[0][:40]!r} belongs to no cue: needs a line `00:00:01,000 --> 00:00:05,000` above it", line=number)
    times = _CUE_TIMES.match(lines[at])
    if times is None:
        raise StoryError(f"cue times {lines[at][:60]!r}: need `00:00:01,000 --> 00:00:05,000`", line=number + at)
    if any("-->" in line for line in lines[at + 1 :]):
        raise StoryError("two cues without a blank line between them: add one", line=number + at)
    start, end = _milliseconds(times.groups()[:4]), _milliseconds(times.groups()[4:])
    if end <= start:
        raise StoryError(f"cue times {lines[at][:60]!r}: the end must be after the start", line=number + at)
    return _Cue(start, end, _TAGS.sub("", " ".join(lines[at + 1 :])), number + at)


def _milliseconds(parts: tuple[str | None, ...]) -> int:
    hours, minutes, seconds, fraction = parts
    return ((int(hours or 0) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(fraction.ljust(3, "0"))


def _scenes_of_cues(cues: list[_Cue]) -> Parsed:
    """A scene lasts until the next cue starts, the last one until its own end; the first one begins at 0, so that the video fits its subtitles."""
    if not cues:
        raise StoryError("no cues: subtitles need `00:00:01,000 --> 00:00:05,000` and a prompt below it", line=1)
    for cue, following in pairwise(cues):
        if following.start < cue.end:
            problem = f"cue starts at {following.start / 1000:g} s, before the one above ends at {cue.end / 1000:g} s"
            raise StoryError(f"{problem}: cues must not overlap and must stand in order", line=following.line)
    starts = [0, *(cue.start for cue in cues[1:]), cues[-1].end]
    scenes = [{"prompt": cue.text, "seconds": (end - start) / 1000} for cue, (start, end) in zip(cues, pairwise(starts), strict=True)]
    return Parsed({"scenes": scenes}, lambda: {("scenes", index): cue.line for index, cue in enumerate(cues)})


PARSERS: dict[str, Callable[[str], Parsed]] = {
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".json": parse_json,
    ".txt": parse_text,
    ".story": parse_text,
    ".srt": parse_srt,
    ".vtt": parse_vtt,
}
