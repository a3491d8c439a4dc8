"""Every file of a source is decoded once, whole, before training, so which can be used is known from the start, alike in all processes.

Verdicts are kept in a file of JSON lines, by name, size and time of change, so that a second run checks only what is new.
Verdicts that may be the machine's fault, not the file's (`PASSING`), are believed for `PASSING_SECONDS` only: by the other processes of a run.
"""

import contextlib
import hashlib
import json
import os
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from phenaki.atomic import check_file, write_text
from phenaki.cache import user_cache
from phenaki.data.clip_decoder import ClipFacts
from phenaki.data.clip_files import ClipFile, Listing, Unusable
from phenaki.data.decoding import ClipError, DecodingPool
from phenaki.data.listing import list_clips
from phenaki.locks import waited

RULES = 1  # raised when checks find more kinds of damage: older verdicts are then ignored
PASSING = ("too slow", "unreadable", "crash", "too much memory")  # kinds of verdict that may be the machine's fault
PASSING_SECONDS = 600.0  # for which such verdicts are believed
NOTE_SECONDS = 20.0  # between notes of a long check
OnFiles = Callable[[int, int], None]  # files done, files in all


@dataclass(frozen=True)
class Checked:
    """A clip to be used. facts: what decoding its file to the end found; None where it was not checked."""

    file: ClipFile
    facts: ClipFacts | None


@dataclass(frozen=True)
class ClipLength:
    """How long clips of a training are."""

    num_frames: int
    fps: float


@dataclass(frozen=True)
class CheckReport:
    """What a source holds. Clips in the order of their names."""

    clips: tuple[Checked, ...]
    unusable: tuple[Unusable, ...]


def check_listing(
    listing: Listing, pool: DecodingPool, store: Path | None = None, *, fresh: bool = False, on_progress: OnFiles | None = None
) -> CheckReport:
    """Checks every clip of a listing, or takes the verdict from `store` where its file has not changed since.

    fresh: ignores stored verdicts. Of several processes that use one store, one checks while the others wait for it.
    """
    with contextlib.nullcontext() if store is None else waited(store.with_suffix(".lock")):
        known = {} if store is None or fresh else read_store(store)
        verdicts: dict[str, dict[str, Any]] = {}
        try:
            for done, (file, verdict) in enumerate(checked(listing.clips, known, pool), start=1):
                verdicts[file.key] = verdict
                if on_progress is not None:
                    on_progress(done, len(listing.clips))
        finally:  # an interrupted check keeps what it has found
            if store is not None and verdicts != known:
                write_store(store, {**known, **verdicts} if len(verdicts) < len(listing.clips) else verdicts)
    good = [Checked(file, ClipFacts(**verdicts[file.key]["facts"])) for file in listing.clips if "facts" in verdicts[file.key]]
    bad = [Unusable(file.name, verdicts[file.key]["kind"], verdicts[file.key]["reason"]) for file in listing.clips if "kind" in verdicts[file.key]]
    return CheckReport(tuple(good), tuple(sorted([*listing.unusable, *bad], key=lambda entry: entry.name)))


def check_source(
    path: Path, num_workers: int = 0, json_file: Path | None = None, on_progress: OnFiles | None = None,
    needed: Mapping[str, ClipLength] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """`phenaki data check`: decodes every file anew, keeps the verdicts for training, and returns what a source holds (see `summary`).

    needed: by what is trained, how long its clips are: shorter videos are counted. json_file: a .json file to write all of it to, too;
    ValueError before any work where its name has another ending (it might be a clip's).
    """
    if json_file is not None:
        check_file(json_file, ".json")
    with DecodingPool(num_workers) as pool:
        listing = list_clips(path, pool.read_shard)
        report = check_listing(listing, pool, store_of(path), fresh=True, on_progress=on_progress)
    values = summary(path, report, listing.lone_texts, listing.notes, needed)
    if json_file is not None:
        write_text(json_file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return values


def notes_of_check(path: Path, on_note: Callable[[str], None]) -> OnFiles:
    """A callback for `check_listing` that notes how far it has come, at most once in NOTE_SECONDS: a large folder takes hours."""
    last = time.monotonic()

    def note(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= NOTE_SECONDS:
            last = time.monotonic()
            on_note(f"{path}: {done} of {total} files checked")

    return note


def unchecked(listing: Listing) -> CheckReport:
    """A report of all listed clips, none decoded: damage is found when a clip is cut."""
    return CheckReport(tuple(Checked(file, None) for file in listing.clips), listing.unusable)


def checked(files: tuple[ClipFile, ...], known: dict[str, dict], pool: DecodingPool) -> Iterator[tuple[ClipFile, dict[str, Any]]]:
    """Each file with its verdict (see `settled`), in order; several are decoded at once. known: stored verdicts by `ClipFile.key`."""
    under_way: deque = deque()
    for file in files:
        under_way.append((file, known.get(file.key) or pool.check(file)))
        if len(under_way) > 4 * len(pool.workers):
            yield settled(*under_way.popleft())
    while under_way:
        yield settled(*under_way.popleft())


def settled(file: ClipFile, verdict: "dict[str, Any] | Future[ClipFacts]") -> tuple[ClipFile, dict[str, Any]]:
    """A file with its verdict, once it is there: {"facts": fields of ClipFacts}, or {"kind": ..., "reason": ...} of why it cannot be used."""
    if isinstance(verdict, dict):
        return file, verdict
    try:
        return file, {"facts": asdict(verdict.result())}
    except ClipError as error:
        return file, {"kind": error.kind, "reason": error.reason}


def store_of(path: Path) -> Path:
    """Where the verdicts of a source are kept: in the user's cache."""
    return user_cache() / f"check-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.jsonl"


def read_store(store: Path) -> dict[str, dict[str, Any]]:
    """Stored verdicts by `ClipFile.key`. Skipped are damaged lines, verdicts of older RULES, and PASSING ones that are not recent."""
    verdicts = {}
    if not store.is_file():
        return verdicts
    is_recent = abs(time.time() - store.stat().st_mtime) < PASSING_SECONDS
    with open(store, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                verdict = json.loads(line)
                key, rules = verdict.pop("key"), verdict.pop("rules")
                if rules == RULES and isinstance(key, str) and valid(verdict) and (is_recent or verdict.get("kind") not in PASSING):
                    verdicts[key] = verdict
    return verdicts


def valid(verdict: dict[str, Any]) -> bool:
    """Whether a stored verdict is one of `settled`. TypeError for other facts than those of ClipFacts, KeyError where kind or reason is missing."""
    if "facts" not in verdict:
        return isinstance(verdict["kind"], str) and isinstance(verdict["reason"], str)
    ClipFacts(**verdict["facts"])
    return all(isinstance(value, (int, float)) for value in verdict["facts"].values())


def write_store(store: Path, verdicts: dict[str, dict[str, Any]]) -> None:
    """Writes verdicts, by `ClipFile.key`, for `read_store`."""
    write_lines(store, [{"key": key, "rules": RULES, **verdict} for key, verdict in verdicts.items()])


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def summary(
    path: Path, report: CheckReport, lone_texts: Sequence[str] = (), notes: Sequence[str] = (),
    needed: Mapping[str, ClipLength] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """What `phenaki data check` says of a source, as plain values. lone_texts, notes: of its Listing; needed: as of `check_source`."""
    facts = [entry.facts for entry in report.clips if entry.facts is not None and not entry.file.is_picture]
    seconds = [fact.seconds for fact in facts]
    captions = [entry.file.caption for entry in report.clips if entry.file.caption]
    return {
        "path": str(path),
        "videos": len(facts),
        "pictures": sum(entry.file.is_picture for entry in report.clips),
        "frames": sum(fact.num_frames for fact in facts),
        "seconds": round(sum(seconds), 3),
        "seconds_least_median_most": [round(value, 3) for value in (min(seconds), statistics.median(seconds), max(seconds))] if seconds else None,
        "sizes": counted(f"{entry.facts.width}x{entry.facts.height}" for entry in report.clips if entry.facts is not None),
        "rates": counted(f"{fact.fps:.5g}" for fact in facts),
        "too_short": {
            name: {**asdict(length), "videos": sum(fact.frames_at(length.fps) < length.num_frames for fact in facts)}
            for name, length in needed.items()
        },
        "captions": len(captions),
        "distinct_captions": len(set(captions)),
        "lone_texts": list(lone_texts),
        "notes": list(notes),
        "bytes": sum(entry.file.num_bytes for entry in report.clips),
        "unusable": [asdict(entry) for entry in report.unusable],
        "unusable_kinds": counted(entry.kind for entry in report.unusable),
    }


def counted(values: Iterable[str]) -> dict[str, int]:
    """How often each value comes, the commonest first."""
    return dict(Counter(values).most_common())


def summary_lines(values: dict[str, Any]) -> list[str]:
    """`summary` as lines for a terminal."""
    lines = [f"{values['path']}: {values['videos']} videos, {values['pictures']} pictures, {values['bytes'] / 1e6:.1f} MB"]
    if values["videos"]:
        least, median, most = values["seconds_least_median_most"]
        lines.append(f"length: {values['seconds']:.1f} s in all, {values['frames']} frames; from {least:g} to {most:g} s, half under {median:g} s")
    for name, counts in (("sizes", values["sizes"]), ("frames a second", values["rates"])):
        shown = [f"{value} ({count})" for value, count in list(counts.items())[:8]]
        lines += [f"{name}: {', '.join(shown)}{', ...' if len(counts) > 8 else ''}"] if counts else []
    for name, short in values["too_short"].items():
        length = f"{short['num_frames']} frames at {short['fps']:g} a second, {short['num_frames'] / short['fps']:.1f} s"
        lines.append(f"too short for a clip of the {name} ({length}): {short['videos']} of {values['videos']} videos")
    lines.append(f"captions: {values['captions']}, {values['distinct_captions']} of them different")
    if values["lone_texts"]:
        lines.append(f"captions of no clip: {len(values['lone_texts'])}; NAME.txt goes with NAME.mp4, letter for letter")
        lines += [f"  {name}" for name in values["lone_texts"]]
    lines += values["notes"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in values["unusable_kinds"].items())
    lines.append(f"not usable: {len(values['unusable'])}{f' ({kinds})' if kinds else ''}")
    return [*lines, *(f"  {entry['name']}: {entry['kind']}: {entry['reason']}" for entry in values["unusable"])]
