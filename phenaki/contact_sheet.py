"""A video as one picture: a grid of its frames, its prompts above them; as a PNG it carries the script."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from phenaki.atomic import fresh_part
from phenaki.video_encoders import WholeFileEncoder, png_text
from phenaki.video_files import VideoError, VideoScene, parse_script

SHEET_SCRIPT = "phenaki_script"  # under this name a contact sheet holds its script
LABEL_HEIGHT = 14  # pixels of a prompt above its row in a contact sheet


def contact_sheet(frames: np.ndarray, scenes: Sequence[VideoScene] = (), *, columns: int = 8, every: int | None = None, scale: int = 1) -> np.ndarray:
    """Frames uint8 (f, h, w, 3) in a grid, uint8 (h, w, 3). `every` n-th frame is shown; by default each row spreads `columns` frames over its scene.

    scale: how many pixels a side each pixel becomes. VideoError where columns, every or scale is below 1.
    """
    for name, value in (("columns", columns), ("every", every), ("scale", scale)):
        if value is not None and value < 1:
            raise VideoError(f"{name} {value}: needed at least 1")
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    spans = [(scene.prompt, frames[scene.start_frame : scene.start_frame + scene.num_frames]) for scene in scenes] or [("", frames)]
    rows = []
    for prompt, part in spans:
        spread = np.linspace(0, len(part) - 1, min(columns, len(part))).round().astype(int) if scenes else np.arange(len(part))
        shown = part[::every] if every else part[spread]
        for start in range(0, len(shown), columns):
            rows.append((prompt if start == 0 else "", shown[start : start + columns]))
    labels = [LABEL_HEIGHT if prompt else 0 for prompt, _ in rows]
    sheet = Image.new("RGB", (columns * width, len(rows) * height + sum(labels)), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=11), 0
    for (prompt, shown), label in zip(rows, labels, strict=True):
        pen.text((2, top), prompt, fill="black", font=font)
        for column, pixels in enumerate(shown):
            sheet.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (column * width, top + label))
        top += height + label
    return np.asarray(sheet)


class SheetEncoder(WholeFileEncoder):
    """A contact sheet of all that was written, as one PNG."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]):
        self.path, self.frames = path, []

    @property
    def count(self) -> int:
        return sum(map(len, self.frames))

    def write(self, frames: np.ndarray, note: bytes = b"") -> None:
        self.frames.append(frames)

    def finish(self, scenes: Sequence[VideoScene], script: dict[str, Any] | None) -> Path:
        info = PngImagePlugin.PngInfo()
        info.add_itxt(SHEET_SCRIPT, json.dumps(script) if script is not None else "")
        part = fresh_part(self.path)
        Image.fromarray(contact_sheet(np.concatenate(self.frames), scenes, scale=2)).save(part, format="PNG", pnginfo=info)
        return part


def sheet_script(path: Path) -> dict[str, Any] | None:
    """The script in a contact sheet's PNG; None for any other file."""
    return parse_script(png_text(path, SHEET_SCRIPT) or "")
