"""Pictures of a run: rows of frames as a PNG, and as a clip, too, where the video codec is installed."""

import importlib.util
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image
from torch import Tensor

from phenaki.atomic import write_picture
from phenaki.pixels import to_bytes


def save_video_rows(videos: Tensor, path: Path, fps: float | None = None) -> None:
    """Videos (b c f h w) in [-1, 1] as path.png, a row of frames each; with `fps` also as path.mp4, one above the other."""
    pixels = to_bytes(videos).cpu()
    save_pixels(path.with_suffix(".png"), rearrange(pixels, "b c f h w -> (b h) (f w) c").numpy())
    if fps is not None:
        save_clip(rearrange(pixels, "b c f h w -> f (b h) w c").numpy(), path.with_suffix(".mp4"), fps)


def save_clip(frames: np.ndarray, path: Path, fps: float) -> None:
    """uint8 (f, h, w, 3) as a video file; nothing where the codec is missing, as on machines that only train."""
    if importlib.util.find_spec("av"):
        from phenaki.video import Video

        Video(frames, fps).save(path)


def save_pixels(path: Path, pixels: np.ndarray) -> None:
    """uint8 (h, w, 3) as a PNG."""
    write_picture(path, Image.fromarray(np.ascontiguousarray(pixels)))
