"""A folder of videos, decoded once to one file of uint8 frames that two programs read alike."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor

from phenaki.data.clip_source import ClipSource
from phenaki.data.tensor_file import save_tensors
from phenaki.pixels import from_bytes
from phenaki.video import read_video
from phenaki.video_files import VideoError

ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")


def decode_folder(folder: Path, path: Path, *, size: int, fps: float, num_frames: int) -> None:
    """Writes every video under `folder` with at least `num_frames` frames, resized and cropped to `size` at `fps`; prints what it leaves out."""
    source = description(folder, size, fps, num_frames)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    kept: list[np.ndarray] = []
    for file in files:
        try:
            frames = read_video(file, size=size, fps=fps).frames
        except VideoError as error:
            print(f"not used: {file}: {error}")
            continue
        if len(frames) < num_frames:
            print(f"not used: {file}: {len(frames)} frames, a clip needs {num_frames}")
            continue
        kept.append(frames)
    if not kept:
        raise ValueError(f"{folder}: none of its {len(files)} videos can be used")
    lengths = torch.tensor([len(frames) for frames in kept])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, {"frames": torch.from_numpy(np.concatenate(kept)), "lengths": lengths}, {"source": source})


@dataclass
class ClipArray(ClipSource):
    """frames: (n h w c) uint8 of all videos one after the other; starts, lengths: (v,) of each video.

    A source of clips like the package's own: every video once an epoch, in an order of (seed, epoch) alone.
    """

    frames: Tensor
    starts: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def fingerprint(self) -> str:
        """Tells these videos from others."""
        return f"{len(self)} videos of {self.lengths.tolist()} frames at {tuple(self.frames.shape[1:])}"

    def clips(self, seed: int, first: int, count: int, num_frames: int, align: int) -> Tensor:
        """Clips first .. first + count - 1 of a run, (b c f h w) float in [-1, 1]."""
        chosen = torch.stack([self._clip(seed, index, num_frames) for index in range(first, first + count)])
        return rearrange(from_bytes(chosen), "b f h w c -> b c f h w")

    def _clip(self, seed: int, index: int, num_frames: int) -> Tensor:
        epoch, position = divmod(index, len(self))
        order = list(range(len(self)))
        random.Random(f"order {seed} {epoch}").shuffle(order)
        video = order[position]
        start = int(self.starts[video]) + random.Random(f"clip {seed} {index}").randint(0, int(self.lengths[video]) - num_frames)
        return self.frames[start : start + num_frames]


def open_folder(folder: Path, path: Path, *, size: int, fps: float, num_frames: int) -> ClipArray:
    """The videos of a folder, decoded into `path` where it is not there yet; ValueError where it was made with other settings."""
    if not path.exists():
        decode_folder(folder, path, size=size, fps=fps, num_frames=num_frames)
    with safe_open(path, framework="pt") as file:
        if file.metadata()["source"] != description(folder, size, fps, num_frames):
            raise ValueError(f"{path}: was decoded from {file.metadata()['source']}, other settings than now. Delete it, or take another work folder")
        frames, lengths = file.get_tensor("frames"), file.get_tensor("lengths")
    return ClipArray(frames, lengths.cumsum(0) - lengths, lengths)


def description(folder: Path, size: int, fps: float, num_frames: int) -> str:
    return f"{folder} at {size}x{size}, {fps:g} fps, {num_frames} frames or more"
