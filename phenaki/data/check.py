"""Every file of a source decoded once, whole, before training: which can be used is known up front, the same for every process.

Verdicts are kept in a file of JSON lines, by name, size and time of change, so that a second run checks only what is new.
Those that may be the machine's fault, not the file's (`PASSING`), are kept for the other processes of a run only.
"""

import contextlib
import hashlib
import json
import os
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phenaki.atomic import check_file, write_text
from phenaki.cache import user_cache
from phenaki.data.clip_decoder import ClipFacts
from phenaki.data.clip_files import ClipFile, Listing, Unusable
from phenaki.data.decoding import ClipError, DecodingPool
from phenaki.data.listing import list_clips
from phenaki.locks import waited

RULES = 1  # raised when a check learns to see more: older verdicts are made anew
PASSING = ("too slow", "unreadable", "crash", "too much memory")
PASSING_SECONDS = 600.0  # for which they are believed
NOTE_SECONDS = 20.0
Progress = Callable[[int, int], None]  # files done, files in all


@dataclass(frozen=True)
class Checked:
    """A clip whose file is whole. facts: None where it was not checked."""

    file: ClipFile
    facts: ClipFacts | None


@dataclass(frozen=True)
class CheckReport:
    """What a source holds. Clips in the order of their names."""

    clips: tuple[Checked, ...]
    unusable: tuple[Unusable, ...]


def check_listing(
    listing: Listing, pool: DecodingPool, store: Path | None = None, *, fresh: bool = False, on_progress: Progress | None = None
) -> CheckReport:
    """Checks every clip of a listing, or takes the verdict from `store` where its file has not changed since.

    fresh: believes no stored verdict. Of several processes that use one store, one checks while the others wait for it.
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
    path: Path, num_workers: int = 0, json_file: Path | None = None, cache: Path | None = None, on_progress: Progress | None = None
) -> dict[str, Any]:
    """`phenaki data check`: decodes every file anew, keeps the verdicts for training, and tells what a source holds (see `summary`).

    json_file: where all of it is written to besides; ValueError before the work where that is no .json: no clip has this ending.
    """
    if json_file is not None:
        check_file(json_file, ".json")
    with DecodingPool(num_workers) as pool:
        listing = list_clips(path, pool.read_shard)
        report = check_listing(listing, pool, store_of(path, cache), fresh=True, on_progress=on_progress)
    values = summary(path, report, listing.lone_texts, listing.notes)
    if json_file is not None:
        write_text(json_file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return values


def notes_of_check(path: Path, on_note: Callable[[str], None]) -> Progress:
    """Notes of how far a check has come, one in NOTE_SECONDS: a large folder takes hours."""
    last = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= NOTE_SECONDS:
            last = time.monotonic()
            on_note(f"{path}: {done} of {total} files checked")

    return told


def unchecked(listing: Listing) -> CheckReport:
    """The same without looking: damage is found when a clip is decoded."""
    return CheckReport(tuple(Checked(file, None) for file in listing.clips), listing.unusable)


def checked(files: tuple[ClipFile, ...], known: dict[str, dict], pool: DecodingPool) -> Iterator[tuple[ClipFile, dict[str, Any]]]:
    """Each file with its verdict, in order; some are under way at once."""
    under_way: deque = deque()
    for file in files:
        under_way.append((file, known.get(file.key) or pool.check(file)))
        if len(under_way) > 4 * len(pool.workers):
            yield settled(*under_way.popleft())
    while under_way:
        yield settled(*under_way.popleft())


def settled(file: ClipFile, verdict) -> tuple[ClipFile, dict[str, Any]]:
    if isinstance(verdict, dict):
        return file, verdict
    try:
        return file, {"facts": asdict(verdict.result())}
    except ClipError as error:
        return file, {"kind": error.kind, "reason": error.reason}


def store_of(path: Path, folder: Path | None = None) -> Path:
    """Where the verdicts of a source are kept: in `folder`, else in the user's cache."""
    return (folder or user_cache()) / f"check-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.jsonl"


def read_store(store: Path) -> dict[str, dict[str, Any]]:
    """Verdicts by key of their file; lines that are none, or by older rules, or passing ones of another run, are passed over."""
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
    if "facts" not in verdict:
        return isinstance(verdict["kind"], str) and isinstance(verdict["reason"], str)
    ClipFacts(**verdict["facts"])
    return all(isinstance(value, (int, float)) for value in verdict["facts"].values())


def write_store(store: Path, verdicts: dict[str, dict[str, Any]]) -> None:
    write_lines(store, [{"key": key, "rules": RULES, **verdict} for key, verdict in verdicts.items()])


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def summary(path: Path, report: CheckReport, lone_texts: Sequence[str] = (), notes: Sequence[str] = ()) -> dict[str, Any]:
    """What `phenaki data check` says of a source, as plain values. lone_texts, notes: of its Listing."""
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
        "captions": len(captions),
        "distinct_captions": len(set(captions)),
        "lone_texts": list(lone_texts),
        "notes": list(notes),
        "bytes": sum(entry.file.num_bytes for entry in report.clips),
        "unusable": [asdict(entry) for entry in report.unusable],
        "unusable_kinds": counted(entry.kind for entry in report.unusable),
    }


def counted(values) -> dict[str, int]:
    """How often each value comes, the commonest first."""
    return dict(Counter(values).most_common())


def summary_lines(values: dict[str, Any]) -> list[str]:
    """The same for people."""
    lines = [f"{values['path']}: {values['videos']} videos, {values['pictures']} pictures, {values['bytes'] / 1e6:.1f} MB"]
    if values["videos"]:
        least, median, most = values["seconds_least_median_most"]
        lines.append(f"length: {values['seconds']:.1f} s in all, {values['frames']} frames; from {least:g} to {most:g} s, half under {median:g} s")
    for name, counts in (("sizes", values["sizes"]), ("frames a second", values["rates"])):
        shown = [f"{value} ({count})" for value, count in list(counts.items())[:8]]
        lines += [f"{name}: {', '.join(shown)}{', ...' if len(counts) > 8 else ''}"] if counts else []
    lines.append(f"captions: {values['captions']}, {values['distinct_captions']} of them different")
    if values["lone_texts"]:
        lines.append(f"captions of no clip: {len(values['lone_texts'])}; NAME.txt goes with NAME.mp4, letter for letter")
        lines += [f"  {name}" for name in values["lone_texts"]]
    lines += values["notes"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in values["unusable_kinds"].items())
    lines.append(f"not usable: {len(values['unusable'])}{f' ({kinds})' if kinds else ''}")
    return [*lines, *(f"  {entry['name']}: {entry['kind']}: {entry['reason']}" for entry in values["unusable"])]
