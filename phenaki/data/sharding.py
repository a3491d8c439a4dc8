"""`phenaki data shard`: any footage -> WebDataset shards at the training size, whose short GOPs make random clips cheap.

Each shard is written whole or not at all, and the work is resumed where it was interrupted: `shards.json` says from what and how
the shards are made, and which of them are there. The same footage and settings give the same bytes, save for the encoder's version.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phenaki.atomic import check_folder, put, write_text
from phenaki.config import check_range
from phenaki.data.check import PASSING, CheckReport, check_listing, notes_of_check, store_of, write_lines
from phenaki.data.clip_decoder import SHARD_GOP, ClipFacts
from phenaki.data.clip_files import ClipFile, Unusable
from phenaki.data.decoding import ClipError, DecodingPool
from phenaki.data.listing import list_clips
from phenaki.data.shards import ShardWriter
from phenaki.locks import take_folder

WORK = ".phenaki-shard-work-"  # how folders for clips that are not in a shard yet are named
FORMAT = 1
MAX_SIZE = 4096  # pixels of the shorter side that a clip is encoded at


@dataclass(frozen=True)
class ShardSettings:
    """How footage is encoded anew."""

    size: int  # pixels of the shorter side
    fps: float | None = None  # frames a second; None keeps each clip's own rate
    shard_bytes: int = 256 << 20  # a shard is closed once it is this large

    def __post_init__(self):
        check_range(self, "size", at_least=2, at_most=MAX_SIZE)
        check_range(self, "shard_bytes", at_least=1)
        if self.fps is not None:
            check_range(self, "fps", above=0, below=1000)
        if self.size % 2:
            raise ValueError(f"size {self.size}: needed an even number of pixels, as video codecs want it")


@dataclass(frozen=True)
class ShardReport:
    """What was made. unusable: what was left out."""

    num_clips: int
    num_shards: int
    num_bytes: int
    unusable: tuple[Unusable, ...]


def make_shards(
    path: Path, out: Path, settings: ShardSettings, *, num_workers: int = 1, leave_out_failing: bool = False,
    on_note: Callable[[str], None] = print,
) -> ShardReport:  # fmt: skip
    """Footage of any kind -> `out`/00000.tar, ... with captions. ValueError where `out` holds shards of something else, or lies in `path`.

    ValueError, too, where a whole clip cannot be encoded, which may be the machine's fault; with leave_out_failing it is left out.
    BusyError where another process makes shards in `out`.
    """
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"{out}: lies in the footage itself, {path}, and its shards would be taken for footage; choose a folder outside")
    check_folder(out)
    with DecodingPool(num_workers) as pool:
        report = check_listing(list_clips(path, pool.read_shard), pool, store_of(path), on_progress=notes_of_check(path, on_note))
        if not report.clips:
            raise ValueError(f"{path}: none of {len(report.unusable)} files can be used; look at what phenaki data check says of it")
        held = take_folder(out, f"{out}: another process makes shards in this folder; wait for it, or give another --out")
        with held, closing(pool):  # nobody writes any more when another process may
            state = open_state(out, made_from(report, settings), settings)
            left_out = [Unusable(**entry) for entry in state["unusable"]]
            files = [entry.file for entry in report.clips]
            done = state["files_done"]
            if done < len(files):
                on_note(f"{len(files) - done} of {len(files)} clips to encode")
            work = empty_work(out)
            encoded = reencoded(files, done, work, pool, settings, leave_out_failing)
            while done < len(files):
                done = write_shard(out, state, done, len(files), encoded, left_out, settings, on_note)
            shutil.rmtree(work)
            unusable = (*report.unusable, *left_out)
            write_lines(out / "unusable.jsonl", [asdict(entry) for entry in unusable])
    shards = state["shards"]
    return ShardReport(sum(shard["clips"] for shard in shards), len(shards), sum(shard["bytes"] for shard in shards), unusable)


def empty_work(out: Path) -> Path:
    """A new folder for clips that are not in a shard yet. Those of earlier runs are removed; a worker that outlived its run may still write there."""
    for left in out.glob(f"{WORK}*"):
        shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=WORK, dir=out))


def made_from(report: CheckReport, settings: ShardSettings) -> str:
    """A hash of what the shards are made from; it changes when the shards would."""
    digest = hashlib.sha256(json.dumps([FORMAT, SHARD_GOP, asdict(settings)]).encode())
    for entry in report.clips:
        digest.update(json.dumps([entry.file.key, entry.file.caption]).encode())
    return digest.hexdigest()


def open_state(out: Path, source: str, settings: ShardSettings) -> dict[str, Any]:
    """The state in `out`/shards.json, written anew where `out` holds no shards. ValueError for shards of other footage or settings, or damage."""
    path, holds_shards = out / "shards.json", any(out.glob("*.tar"))
    if path.is_file():
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            known = state["made_from"]
            check_entries(state)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{path}: is damaged ({error}); delete {out} and make the shards anew") from error
        if known == source:
            check_shards(out, state)
            return state
        if holds_shards:
            raise ValueError(f"{out}: holds shards of other footage or with other settings ({state.get('settings')}); choose another folder")
    elif holds_shards:
        raise ValueError(f"{out}: holds shards that were not made by phenaki data shard; choose another folder")
    state = {"format": FORMAT, "made_from": source, "settings": asdict(settings), "files_done": 0, "shards": [], "unusable": []}
    write_state(out, state)  # before any shard has its name: a killed run then knows it for its own
    return state


def check_entries(state: dict[str, Any]) -> None:
    """ValueError, TypeError or KeyError where a state has other entries than `write_state` writes."""
    numbers = [state["files_done"], *(shard[name] for shard in state["shards"] for name in ("clips", "bytes"))]
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or not isinstance(state["unusable"], list):
        raise ValueError("its entries are of other kinds")
    for entry in state["unusable"]:
        Unusable(**entry)


def check_shards(out: Path, state: dict[str, Any]) -> None:
    """ValueError where a shard that is listed in a state is missing or has another length."""
    for number, shard in enumerate(state["shards"]):
        path = out / shard_name(number)
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise ValueError(f"{path}: is missing or not whole; delete {out} and make the shards anew")


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"{number:05d}.tar"


def write_state(out: Path, state: dict[str, Any]) -> None:
    """Writes `out`/shards.json, whole or not at all."""
    write_text(out / "shards.json", json.dumps(state, indent=1) + "\n")


def reencoded(
    files: list[ClipFile], first: int, work: Path, pool: DecodingPool, settings: ShardSettings, leave_out_failing: bool
) -> Iterator[tuple[ClipFile, Path, "Future[ClipFacts]"]]:
    """Files from number `first` on, each with the path that it is encoded to and its answer (see `settled`); a few are encoded at once."""
    encode = lambda file, target: pool.reencode(file, settings.size, settings.fps, target)
    ahead: list[tuple[ClipFile, Path, Future[ClipFacts]]] = []
    for number in range(first, len(files)):
        target = work / f"{number:09d}{'.png' if files[number].is_picture else '.mp4'}"
        ahead.append((files[number], target, encode(files[number], target)))
        if len(ahead) > 2 * len(pool.workers):
            yield settled(*ahead.pop(0), encode, leave_out_failing)
    for one in ahead:
        yield settled(*one, encode, leave_out_failing)


def settled(
    file: ClipFile, target: Path, answer: "Future[ClipFacts]", encode: Callable[[ClipFile, Path], "Future[ClipFacts]"], leave_out_failing: bool
) -> tuple[ClipFile, Path, "Future[ClipFacts]"]:
    """Waits for a clip's encoding and retries it once if the failure may be the machine's.

    ValueError if it fails again, unless `leave_out_failing`.
    """
    if may_pass(answer.exception()):
        answer = encode(file, target)
    error = answer.exception()
    if not may_pass(error) or (leave_out_failing and error.kind != "no room"):
        return file, target, answer
    remedy = "make room" if error.kind == "no room" else "give the machine time and memory, or leave such clips out with --leave-out-failing,"
    raise ValueError(f"{file.name}: could not be encoded, tried twice ({error}); {remedy} and run the same command again") from error


def may_pass(error: BaseException | None) -> bool:
    """Whether an error may be the machine's fault: the file was whole when it was checked."""
    return isinstance(error, ClipError) and error.kind in (*PASSING, "no room")


def write_shard(
    out: Path, state: dict[str, Any], done: int, num_files: int, encoded: Iterator, left_out: list[Unusable], settings: ShardSettings,
    on_note: Callable[[str], None],
) -> int:  # fmt: skip
    """Fills one shard, gives it its name and notes it in shards.json; returns how many files are done then.

    done: before; encoded: of `reencoded`; left_out: gains the files that failed.
    """
    name = shard_name(len(state["shards"]))
    part, count, num_bytes = out / f".{name}.part", 0, 0
    writer = ShardWriter(part)
    while done < num_files and num_bytes < settings.shard_bytes:
        file, clip, answer = next(encoded)
        done += 1
        try:
            facts = answer.result()
        except ClipError as error:
            left_out.append(Unusable(file.name, error.kind, error.reason))
            on_note(f"not used: {file.name}: {error.kind}: {error.reason}")
            continue
        values = {"caption": file.caption, "name": file.name, "sha256": hashlib.sha256(clip.read_bytes()).hexdigest(), **asdict(facts)}
        num_bytes = writer.add(f"{done - 1:09d}", clip, values)
        clip.unlink()
        count += 1
    writer.close()
    if count:
        put(part, out / name)
        state["shards"].append({"name": name, "clips": count, "bytes": (out / name).stat().st_size})
    else:
        part.unlink()
    state |= {"files_done": done, "unusable": [asdict(entry) for entry in left_out]}
    write_state(out, state)
    on_note(f"{name}: {count} clips, {done} of {num_files} files done")
    return done
