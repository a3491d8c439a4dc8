"""Single pictures from files: which are read, each as 8-bit RGB, upright, whole or not at all."""

import contextlib
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from phenaki.video_files import VideoError, check_regular

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_IMAGE_PIXELS = 64_000_000


def pictures_in(path: Path) -> list[Path]:
    """The pictures of a folder in the order in which they are shown, frame_9.png before frame_10.png; VideoError where there are none."""
    numbered = lambda file: [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", file.name)]
    files = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS and not file.name.startswith("."))
    files = sorted(files, key=lambda file: (numbered(file), file.name))
    if not files:
        raise VideoError(f"{path}: holds no pictures ({', '.join(IMAGE_ENDINGS)})")
    return files


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits as one of 8: Pillow's own conversion cuts all above 255 off."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture, dtype=np.int64).clip(0, 65535) // 257).astype(np.uint8))


def _turn_upright(picture: Image.Image) -> None:
    """Turns it as its camera says that it was held (EXIF), where that can be read: phones store upright pictures lying down."""
    picture.load()
    with contextlib.suppress(SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        ImageOps.exif_transpose(picture, in_place=True)  # no copy; and it is turned before what else is in the block may fail


def read_image(path: str | Path | BinaryIO, size: int | None = None) -> np.ndarray:
    """A picture as uint8 (h, w, 3), transparent parts over white; size: resized and cropped to a square of so many pixels."""
    if isinstance(path, (str, Path)):
        check_regular(path)
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP")) as picture:
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                raise VideoError(f"{path}: {picture.width}x{picture.height} pixels; at most {MAX_IMAGE_PIXELS} are read")
            _turn_upright(picture)
            rgba = _eight_bits(picture).convert("RGBA")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise VideoError(f"{path}: {error.strerror}") from error
    except Image.DecompressionBombError as error:
        raise VideoError(f"{path}: too many pixels; at most {MAX_IMAGE_PIXELS} are read") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{path}: not a whole picture ({error}); PNG, JPEG, WebP and BMP are read") from error
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return np.asarray(flat) if size is None else middle_square(flat, size)


def middle_square(picture: Image.Image, size: int) -> np.ndarray:
    """The middle square, resized to `size` pixels a side."""
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3))
