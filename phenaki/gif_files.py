"""GIFs through Pillow, as streams: a few bytes may stand for a picture of millions of pixels, so few pictures are in memory at a time."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from phenaki.retiming import MIN_FPS
from phenaki.video_files import (
    MAX_FRAMES,
    MAX_SIDE,
    Decoded,
    Resize,
    VideoError,
    check_bytes,
    check_regular,
    parse_json_object,
    parse_script,
    stacked,
)  # fmt: skip

# What Pillow raises for bytes that are no GIF, or only half of one.
DAMAGE = (OSError, ValueError, SyntaxError, LookupError, EOFError, AssertionError, TypeError, AttributeError, struct.error)
MAX_PIXELS = 1 << 35  # of all pictures of a GIF, which are decoded one after the other: some minutes


@dataclass(frozen=True)
class GifFacts:
    """What a GIF holds besides its pixels. counts: for how many frames at `fps` each of its pictures is shown."""

    height: int
    width: int
    fps: float
    counts: tuple[int, ...]
    script: dict[str, Any] | None

    @property
    def num_frames(self) -> int:
        return sum(self.counts)


def gif_facts(path: Path) -> GifFacts:
    """Reads a GIF to its end; its rate is that of the script in its comment, else that of its shortest picture. VideoError where it is not whole."""
    lasting, last = [], None  # milliseconds of each picture
    for last in _pictures(path):
        lasting.append(last.info.get("duration") or 100)
    comment = last.info.get("comment", b"").decode("utf-8", "replace")
    fps = parse_json_object(comment).get("fps")
    fps = float(fps) if isinstance(fps, (int, float)) and MIN_FPS <= fps < 1000 else float(max(round(1000 / min(lasting)), 1))
    counts, shown, elapsed = [], 0, 0
    for milliseconds in lasting:
        elapsed += milliseconds
        counts.append(max(min(round(elapsed * fps / 1000), MAX_FRAMES) - shown, 0))
        shown += counts[-1]
    return GifFacts(last.height, last.width, fps, tuple(counts) if shown else (1,), parse_script(comment))


def gif_pictures(path: Path, facts: GifFacts) -> Iterator[tuple[np.ndarray, int]]:
    """The pictures that are shown, uint8 (h w 3), each with its number of frames."""
    for picture, count in zip(_pictures(path), facts.counts, strict=False):
        if count:
            yield np.asarray(picture), count


def _pictures(path: Path) -> Iterator[Image.Image]:
    """All of a GIF's pictures in RGB, with its comment and their durations in `info`."""
    check_regular(path)
    try:
        with Image.open(path, formats=("GIF",)) as gif:
            screen = gif.size
            if max(screen) > MAX_SIDE or gif.n_frames > MAX_FRAMES or gif.n_frames * gif.width * gif.height > MAX_PIXELS:
                raise VideoError(f"{path}: {gif.n_frames} frames of {gif.width}x{gif.height}; that is more than is read")
            for part in ImageSequence.Iterator(gif):
                if part.size != screen:  # Pillow takes a frame that reaches beyond the screen for a larger screen
                    raise VideoError(f"{path}: a frame of {part.width}x{part.height} pixels in a GIF of {screen[0]}x{screen[1]}; save it anew")
                yield part.convert("RGB")
    except VideoError:
        raise
    except Image.DecompressionBombError as error:
        raise VideoError(f"{path}: too many pixels; at most {MAX_SIDE} a side are read") from error
    except DAMAGE as error:
        raise VideoError(f"{path}: not a whole GIF ({error})") from error


def decode_gif(path: Path, resize: Resize | None = None) -> Decoded:
    """Decodes a GIF, each picture resized as it comes."""
    facts, frames = gif_facts(path), []
    for pixels, count in gif_pictures(path, facts):
        frames += [pixels if resize is None else resize(pixels)] * count  # the same array: no memory yet
        check_bytes(path, len(frames) * frames[-1].nbytes)
    return Decoded(stacked(frames), facts.fps, (), facts.script)
