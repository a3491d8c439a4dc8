"""A folder of videos as training data: NAME.mp4 with its caption in NAME.txt.

Clips are chosen by sample index: every video once an epoch, in an order that depends on (seed, epoch) alone.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from phenaki.video import VideoError, read_video

ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")
CACHE_BYTES = 1 << 30  # of decoded frames kept in memory
TOLD_BATCH = 16  # clips encoded at once


@dataclass(frozen=True)
class ClipScene:
    """The one scene of a clip."""

    caption: str
    num_frames: int


@dataclass(frozen=True)
class ToldClip:
    """A clip of footage as a story of one scene."""

    scenes: tuple[ClipScene, ...]


class ClipFolder:
    """Videos under `path`, in subfolders too, resized and cropped to `size` pixels a side at `fps` frames a second.

    Files that cannot be read are reported by `on_note`, once each, and the next one is taken in their place.
    """

    def __init__(self, path: str | Path, size: int, fps: float, device: str | torch.device = "cpu", on_note=print):
        self.path, self.size, self.fps, self.device, self.on_note = Path(path), size, fps, device, on_note
        self.files = sorted(file for file in self.path.rglob("*") if file.suffix.lower() in ENDINGS)
        if not self.files:
            raise ValueError(f"{path}: holds no videos ({', '.join(ENDINGS)})")
        self.unusable: dict[Path, str] = {}
        self._order = lru_cache(maxsize=4)(self._shuffled)  # a clip asks for its epoch's order, which clips beside it share
        self._cache: OrderedDict[Path, np.ndarray] = OrderedDict()
        self.fingerprint = f"{self.path.resolve()} {[(file.name, file.stat().st_size) for file in self.files]}"

    def clips(self, seed: int, first: int, count: int, num_frames: int, align: int) -> Tensor:
        """Clips first .. first + count - 1 of a run, (b c f h w) float in [-1, 1]."""
        return self._stacked([self._clip(seed, index, num_frames)[0] for index in range(first, first + count)])

    def told_clips(
        self, seed: int, count: int, num_frames: int, align: int, max_scenes: int, first: int = 0
    ) -> Iterator[tuple[Tensor, list[ToldClip]]]:
        """Clips first .. first + count - 1 of a run in batches, each with its caption as its only scene."""
        for begin in range(first, first + count, TOLD_BATCH):
            chosen = [self._clip(seed, i, num_frames) for i in range(begin, min(begin + TOLD_BATCH, first + count))]
            told = [ToldClip((ClipScene(self.caption(file), num_frames),)) for _, file in chosen]
            yield self._stacked([frames for frames, _ in chosen]), told

    def caption(self, file: Path) -> str:
        """What NAME.txt says of a video; without one, the name of its folder inside `path` (class folders), else nothing."""
        text = file.with_suffix(".txt")
        if text.is_file():
            return " ".join(text.read_text(encoding="utf-8", errors="replace").split())
        return file.parent.name.replace("_", " ") if file.parent != self.path else ""

    def _clip(self, seed: int, index: int, num_frames: int) -> tuple[np.ndarray, Path]:
        """Sample `index`: frames (f h w c) uint8 from a random place of its video."""
        for shift in range(len(self.files)):
            epoch, position = divmod(index + shift, len(self.files))
            file = self._order(seed, epoch)[position]
            frames = self._frames(file, num_frames)
            if frames is not None:
                start = random.Random(f"clip {seed} {index}").randint(0, len(frames) - num_frames)
                return frames[start : start + num_frames], file
        reasons = "; ".join(f"{file.name}: {reason}" for file, reason in list(self.unusable.items())[:3])
        raise ValueError(f"{self.path}: none of {len(self.files)} videos can be used ({reasons})")

    def _shuffled(self, seed: int, epoch: int) -> list[Path]:
        """Every file once, in the order of an epoch."""
        files = list(self.files)
        random.Random(f"order {seed} {epoch}").shuffle(files)
        return files

    def _frames(self, file: Path, num_frames: int) -> np.ndarray | None:
        if file in self.unusable:
            return None
        if file not in self._cache:
            try:
                self._cache[file] = read_video(file, size=self.size, fps=self.fps).frames
            except VideoError as error:
                return self._refuse(file, str(error))
            while sum(frames.nbytes for frames in self._cache.values()) > CACHE_BYTES and len(self._cache) > 1:
                self._cache.popitem(last=False)
        self._cache.move_to_end(file)
        if len(self._cache[file]) < num_frames:
            return self._refuse(file, f"{len(self._cache[file])} frames at {self.fps:g} fps, a clip needs {num_frames}")
        return self._cache[file]

    def _refuse(self, file: Path, reason: str) -> None:
        self.unusable[file] = reason
        self.on_note(f"not used: {file}: {reason}")

    def _stacked(self, clips: list[np.ndarray]) -> Tensor:
        video = torch.from_numpy(np.stack(clips)).to(self.device).float() / 127.5 - 1
        return rearrange(video, "b f h w c -> b c f h w")
