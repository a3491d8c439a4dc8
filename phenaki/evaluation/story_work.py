"""The work folder of an evaluation of stories: the record and the video of each finished story.

A killed evaluation is resumed from here. `settings.json` says what the stories were made from, so that two evaluations never mix; a
story counts as finished when its record is there, which is written last and whole.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phenaki.atomic import write_text
from phenaki.evaluation.adherence import Seen
from phenaki.evaluation.seams import SeamParts
from phenaki.video import Video


@dataclass(frozen=True)
class Judged:
    """A video of a script as it was judged. features: its I3D logits, empty where I3D was not installed."""

    seen: Seen
    seams: SeamParts
    features: list[float]


@dataclass(frozen=True)
class Record:
    """A finished story: the model's video, the rendered one, the features of another rendered one, and the time it took."""

    index: int
    made: Judged
    rendered: Judged
    reference: list[float]  # I3D logits of the truth that both are compared with
    wall_seconds: float
    video_seconds: float


class WorkFolder:
    """Records and videos of one evaluation in a folder."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        """settings: plain values that name the evaluation. ValueError where the folder holds stories of another one."""
        self.folder = folder
        settings = json.loads(json.dumps(settings))
        path = folder / "settings.json"
        if path.is_file():
            found = _read(path)
            different = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
            if different:
                names = ", ".join(different)
                raise ValueError(f"{folder}: holds stories of another evaluation ({names} not as now). Choose another with --work, or remove it")
            return
        if folder.exists() and any(not one.name.startswith(".settings") for one in folder.iterdir()):  # a killed run left but its part
            raise ValueError(f"{folder}: holds other files. Choose an empty folder with --work")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=2) + "\n")

    @contextmanager
    def told_when_stopped(self) -> Iterator[None]:
        """Adds to an interrupt (KeyboardInterrupt) in its block a note of what is kept and how to resume."""
        try:
            yield
        except KeyboardInterrupt as error:
            error.add_note(f"what was judged is kept in {self.folder}: the same command goes on from there")
            raise

    def record(self, index: int) -> Record | None:
        """A finished story; None where it is still to be made."""
        path = self._path(index)
        if not path.is_file():
            return None
        try:
            values = _read(path)
            record = Record(**{**values, "made": _judged(values["made"]), "rendered": _judged(values["rendered"])})
            _check(record, index)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path}: not the record of a story ({error}). Remove it and run again") from error
        return record

    def keep(self, record: Record, frames: np.ndarray, fps: float) -> None:
        """frames: uint8 (f, h, w, 3), kept as a video to look at; it was judged before."""
        Video(frames, fps).save(self.video(record.index))
        write_text(self._path(record.index), json.dumps(asdict(record)))

    def video(self, index: int) -> Path:
        """Where the model's video of a story lies."""
        return self.folder / f"story-{index:04d}.mp4"

    def _path(self, index: int) -> Path:
        return self.folder / f"story-{index:04d}.json"


def _judged(values: dict[str, Any]) -> Judged:
    seams = SeamParts(**{name: tuple(part) for name, part in values["seams"].items()})
    return Judged(values["seen"], seams, values["features"])


def _check(record: Record, index: int) -> None:
    """TypeError where a record is of another story, or holds values that `keep` does not write."""
    made, rendered = record.made, record.rendered
    if record.index != index:
        raise TypeError(f"of story {record.index!r}")
    seen = [names for side in (made, rendered) for names in side.seen.values()]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in seen):
        raise TypeError("what was seen are no names")
    if not any(seen) or made.seen.keys() != rendered.seen.keys() or len({len(names) for names in seen}) != 1:
        raise TypeError("what was seen is not of the same frames and attributes")
    seams = [part for side in (made, rendered) for part in astuple(side.seams)]
    features = (made.features, rendered.features, record.reference)
    if any(len(part) != 2 for part in seams) or len({len(part) for part in features}) != 1:
        raise TypeError("its seams are no pairs, or its features not equally many")
    numbers = [record.wall_seconds, record.video_seconds, *(number for part in (*seams, *features) for number in part)]
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise TypeError("its figures are no numbers")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error}). Remove it and run again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {type(values).__name__}, not an object. Remove it and run again")
    return values
