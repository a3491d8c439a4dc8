"""Looks at a run: rows of frames as a PNG, and the same as a clip that plays where the video codec is installed."""

import importlib.util
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image
from torch import Tensor

from phenaki import atomic
from phenaki.pixels import to_bytes


def save_video_rows(videos: Tensor, path: Path, fps: float | None = None) -> None:
    """Videos (b c f h w) in [-1, 1] as path.png, a row of frames each; with `fps` as path.mp4, too, one above the other."""
    pixels = to_bytes(videos).cpu()
    write_picture(rearrange(pixels, "b c f h w -> (b h) (f w) c").numpy(), path.with_suffix(".png"))
    if fps is not None:
        save_clip(rearrange(pixels, "b c f h w -> f (b h) w c").numpy(), path.with_suffix(".mp4"), fps)


def save_clip(frames: np.ndarray, path: Path, fps: float) -> None:
    """uint8 (f, h, w, 3) as a video file; nothing where the codec is missing, as on machines that only train."""
    if importlib.util.find_spec("av"):
        from phenaki.video import Video

        Video(frames, fps).save(path)


def write_picture(pixels: np.ndarray, path: Path) -> None:
    """uint8 (h, w, 3) as a PNG."""
    atomic.write_picture(path, Image.fromarray(np.ascontiguousarray(pixels)))
