"""Footage as training data: clips by sample index, each file once an epoch, decoded in other processes.

Which file a sample shows depends on (seed, epoch) alone, and where it is cut on (seed, index): however the indices are divided
among processes, they see the same samples. A clip that cannot be decoded is replaced by that of the next index.
"""

import contextlib
import hashlib
import json
import os
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from phenaki.data.ahead import drawn_ahead
from phenaki.data.check import CheckReport, check_listing, notes_of_check, store_of, unchecked, write_lines
from phenaki.data.clip_decoder import Cut
from phenaki.data.clip_files import ClipFile, Unusable
from phenaki.data.clip_source import CaptionedSource
from phenaki.data.decoding import ClipError, DecodingPool
from phenaki.data.footage_settings import FootageSettings
from phenaki.data.listing import list_clips
from phenaki.data.order import place_of
from phenaki.devices import sent
from phenaki.pixels import from_bytes

CACHE_BYTES = 256 << 20  # of decoded clips kept in memory
CAPTIONED_BATCH = 16  # clips encoded at once
MAX_NAMED = 5  # files of a kind that notes name one by one
MAX_REPLACED = 1000  # indices tried, one after the other, for a sample whose clips cannot be decoded


@dataclass(frozen=True)
class ClipScene:
    """The one scene of a clip."""

    caption: str
    num_frames: int


@dataclass(frozen=True)
class CaptionedClip:
    """A clip of footage as a story of one scene."""

    scenes: tuple[ClipScene, ...]


def open_footage(
    path: str | Path, settings: FootageSettings, device: str | torch.device = "cpu", *, pool: DecodingPool | None = None,
    report: Path | None = None, on_note: Callable[[str], None] = print,
) -> "Footage":  # fmt: skip
    """A folder, table or tar shards as training data; every file that cannot be used is noted once.

    pool: decoding processes to share with other sources, own ones by default. report: file of JSON lines about unusable files, also those
    found before a run was resumed; each process of several has its own (see `own_report`).
    """
    path, pool = Path(path), pool or DecodingPool(settings.num_workers)
    listing = list_clips(path, pool.read_shard)
    for note in listing.notes:
        on_note(f"{path}: {note}")
    notes = notes_of_check(path, on_note)
    checked = check_listing(listing, pool, store_of(path), on_progress=notes) if settings.check else unchecked(listing)
    return Footage(path, checked, pool, settings, device, report, on_note)


class Footage(CaptionedSource):
    """The clips of a source. `clips` gives videos, `images` single frames, both by sample index; for other methods see CaptionedSource."""

    def __init__(
        self, path: Path, checked: CheckReport, pool: DecodingPool, settings: FootageSettings, device: str | torch.device,
        report: Path | None, on_note: Callable[[str], None],
    ):  # fmt: skip
        self.path, self.settings, self.device, self.on_note = path, settings, device, on_note
        self.files = [entry.file for entry in checked.clips]
        self.facts = [entry.facts for entry in checked.clips]
        self.pool = pool
        self.unusable: dict[str, Unusable] = {}
        self.report = None if report is None else own_report(report)
        present = {file.name for file in self.files}
        self._met_before = {} if report is None else {entry.name: entry for entry in read_report(self.report) if entry.name in present}
        self.fingerprint, self.clips_hash = fingerprint(self.files, settings), clips_hash(self.files)
        self._lock = Lock()  # a run draws clips in one thread while it looks at samples in another
        self._lengths = lru_cache(maxsize=8)(self._long_enough)
        self._cache: OrderedDict[tuple, Future[np.ndarray]] = OrderedDict()
        self._note(checked.unusable)

    @property
    def num_images(self) -> int:
        """Still pictures among the files."""
        return sum(file.is_picture for file in self.files)

    def num_clips(self, num_frames: int) -> int:
        """Videos that are long enough for clips of so many frames."""
        return len(self._lengths(num_frames))

    def clips(self, seed: int, first: int, count: int, num_frames: int, align: int = 1) -> Tensor:
        """Clips first .. first + count - 1 of a run, (b c f h w) float in [-1, 1]; pictures are left out."""
        return self._stacked([frames for frames, _ in self._samples(seed, first, count, num_frames)])

    def images(self, seed: int, first: int, count: int) -> tuple[Tensor, list[str]]:
        """Pictures first .. first + count - 1, (b c 1 h w) float in [-1, 1], with captions; frames of the videos where there are no pictures."""
        samples = self._samples(seed, first, count, 0)
        return self._stacked([frames for frames, _ in samples]), [file.caption for _, file in samples]

    def captioned_clips(
        self, seed: int, count: int, num_frames: int, align: int, max_scenes: int, first: int = 0
    ) -> Iterator[tuple[Tensor, list[CaptionedClip]]]:
        """Clips first .. first + count - 1 of a run in batches, each with its caption as its only scene."""
        draw = lambda begin: self._samples(seed, begin, min(CAPTIONED_BATCH, first + count - begin), num_frames)
        for samples in drawn_ahead(draw, range(first, first + count, CAPTIONED_BATCH)):
            yield self._stacked([frames for frames, _ in samples]), [CaptionedClip((ClipScene(file.caption, num_frames),)) for _, file in samples]

    def close(self) -> None:
        """Ends the decoding processes."""
        self.pool.close()

    def _samples(self, seed: int, first: int, count: int, num_frames: int) -> list[tuple[np.ndarray, ClipFile]]:
        """Frames (f h w 3) uint8 and file of some samples. num_frames 0: of pictures. One thread at a time."""
        with self._lock:
            asked = [self._ask(seed, index, num_frames) for index in range(first, first + count)]
            return [self._answered(seed, first + n, num_frames, future) for n, future in enumerate(asked)]

    def _answered(self, seed: int, index: int, num_frames: int, future: "Future[np.ndarray]") -> tuple[np.ndarray, ClipFile]:
        """A sample's frames and file; where its own file cannot be decoded, those of the next index that can."""
        for shift in range(MAX_REPLACED):
            future = future if shift == 0 else self._ask(seed, index, num_frames, shift)
            file = self._file(seed, index + shift, num_frames)
            try:
                return future.result(), file
            except ClipError as error:
                self._note([Unusable(file.name, error.kind, error.reason)])
        raise ValueError(f"{self.path}: {MAX_REPLACED} clips in a row cannot be used; look at what phenaki data check says of it")

    def _ask(self, seed: int, index: int, num_frames: int, shift: int = 0) -> "Future[np.ndarray]":
        """Starts decoding a sample, unless it is cached. shift: takes the file of the sample `shift` indices later."""
        key = (seed, index, num_frames, shift)
        if key not in self._cache:
            place = self._place(seed, index + shift, num_frames)
            facts = self.facts[place]
            cut = self._cut(seed, index, num_frames or 1, facts.seconds if facts else 0.0)
            self._cache[key] = self.pool.cut(self.files[place], cut)
            while len(self._cache) > 1 and len(self._cache) * self._clip_bytes(num_frames) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _cut(self, seed: int, index: int, num_frames: int, seconds: float) -> Cut:
        """Where sample `index` is cut out of its file."""
        draw, settings = random.Random(f"clip {seed} {index}"), self.settings
        place, left, top, zoom, flip = (draw.random() for _ in range(5))
        if not settings.random_crop:
            left = top = 0.5
        zoom = settings.min_zoom + (1 - settings.min_zoom) * zoom
        return Cut(num_frames, settings.fps, settings.size, place, left, top, zoom, flip < settings.flip_prob, seconds)

    def _place(self, seed: int, index: int, num_frames: int) -> int:
        usable = self._lengths(num_frames)
        return int(usable[place_of(seed, index, len(usable))])

    def _file(self, seed: int, index: int, num_frames: int) -> ClipFile:
        return self.files[self._place(seed, index, num_frames)]

    def _long_enough(self, num_frames: int) -> np.ndarray:
        """Indices in `files` of all that samples of `num_frames` come from (0: pictures, if there are any); files that are too short are noted."""
        pictures = num_frames == 0 and self.num_images > 0
        candidates = [place for place, file in enumerate(self.files) if file.is_picture == pictures]
        fps, facts = self.settings.fps, self.facts
        short = [place for place in candidates if facts[place] is not None and not pictures and facts[place].frames_at(fps) < num_frames]
        reason = f"frames at {fps:g} fps, a clip needs {num_frames}"
        self._note([Unusable(self.files[place].name, "too short", f"{facts[place].frames_at(fps)} {reason}") for place in short])
        if len(short) > MAX_NAMED:
            needed = f"a clip needs {num_frames} frames at {fps:g} fps, {num_frames / fps:.1f} s (num_slices in the settings says how many)"
            self.on_note(f"{self.path}: {len(short)} of {len(candidates)} clips are too short: {needed}")
        usable = np.setdiff1d(np.array(candidates, np.int64), np.array(short, np.int64), assume_unique=True)
        if not len(usable):
            reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in list(self.unusable.values())[:3])
            kind = "pictures" if pictures else "videos"
            raise ValueError(f"{self.path}: none of {len(self.files) + len(self.unusable) - len(short)} files gives {kind} to train on ({reasons})")
        return usable

    def _note(self, unusable: Iterable[Unusable]) -> None:
        """Reports files (Unusable) that cannot be used, each one once: all of them in `report`, if there is one, and a few of each kind in notes."""
        new = {entry.name: entry for entry in unusable if entry.name not in self.unusable}
        self.unusable |= new
        if self.report is not None and (new or not self.report.exists()):
            self.report.parent.mkdir(parents=True, exist_ok=True)
            write_lines(self.report, [asdict(entry) for entry in (self._met_before | self.unusable).values()])
        for line in note_lines(list(new.values()), self.report):
            self.on_note(line)

    def _clip_bytes(self, num_frames: int) -> int:
        return max(num_frames, 1) * self.settings.size**2 * 3

    def _stacked(self, clips: list[np.ndarray]) -> Tensor:
        return rearrange(from_bytes(sent(torch.from_numpy(np.stack(clips)), torch.device(self.device))), "b f h w c -> b c f h w")


def note_lines(unusable: list[Unusable], report: Path | None) -> Iterator[str]:
    """Notes about files that cannot be used: the first few of each kind by name, and how many more there are."""
    met: Counter[str] = Counter()
    for entry in unusable:
        met[entry.kind] += 1
        if met[entry.kind] <= MAX_NAMED:
            yield f"not used: {entry.name}: {entry.kind}: {entry.reason}"
    more = {kind: count - MAX_NAMED for kind, count in met.most_common() if count > MAX_NAMED}
    if more:
        where = "" if report is None else f"; all are in {report}"
        yield f"not used: {sum(more.values())} more ({', '.join(f'{count} {kind}' for kind, count in more.items())}){where}"


def own_report(report: Path) -> Path:
    """Where this process reports: `report` itself, or NAME.rank1.jsonl and so on in the further processes of a run (RANK of torchrun)."""
    rank = os.environ.get("RANK", "0")
    return report if rank == "0" else report.with_name(f"{report.stem}.rank{rank}{report.suffix}")


def read_report(report: Path) -> list[Unusable]:
    """The files that an earlier run reported there; damaged lines are skipped."""
    entries = []
    if report.is_file():
        for line in report.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                entry = Unusable(**json.loads(line))
                if all(isinstance(value, str) for value in asdict(entry).values()):
                    entries.append(entry)
    return entries


def clips_hash(files: list[ClipFile]) -> str:
    """Names the clips, however they are cut and captioned: "footage" and 16 digits of a hash of their names inside the source and their sizes."""
    digest = hashlib.sha256(json.dumps([(file.name, file.num_bytes, file.sha256) for file in files]).encode())
    return f"footage {digest.hexdigest()[:16]}"


def fingerprint(files: list[ClipFile], settings: FootageSettings) -> str:
    """A hash of files, captions and settings of how clips are cut; the folder that the footage lies in does not enter it."""
    digest = hashlib.sha256()
    cut = {name: value for name, value in asdict(settings).items() if name not in ("check", "num_workers")}
    digest.update(json.dumps(cut).encode())
    for file in files:
        digest.update(json.dumps([file.name, file.num_bytes, file.caption, file.sha256]).encode())
    return f"footage {digest.hexdigest()}"
