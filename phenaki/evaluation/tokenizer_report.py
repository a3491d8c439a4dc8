"""An evaluation as one page of HTML that needs nothing else: pictures inside it, curves drawn as SVG, no scripts.

Every word that comes from a file is escaped; a content policy in the page forbids all but its own pictures, clips and styles.
"""

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from phenaki.atomic import png_bytes
from phenaki.evaluation.outputs import page
from phenaki.evaluation.tokenizer import Example
from phenaki.pixels import to_bytes

SHOWN_FRAMES = 8  # of a clip
WIDTH, HEIGHT, MARGIN = 420, 180, 44  # pixels of a curve's picture, and of the room for its labels
NAMES = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}


def html_report(figures: dict[str, Any], first: Sequence[Example], worst: Sequence[Example]) -> str:
    """The whole page. figures: those of an Evaluation, with `data` and `machine`."""
    title = f"Tokenizer {figures['model']['name']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(measured_on(figures))}</p>',
        *(f'<p class="caution">{escape(caution)}</p>' for caution in figures["cautions"]),
        "<h2>Figures</h2>", figure_table(figures),
        "<h2>By frame</h2>", curves(figures["by_frame"]),
        "<h2>Codebook</h2>", codebook_table(figures["codebook"]),
        "<h2>The first clips</h2>", '<p class="note">Truth above, reconstruction below.</p>', *(picture(example) for example in first),
        "<h2>The worst clips, by PSNR</h2>", *(picture(example) for example in worst),
        "<h2>Where this comes from</h2>", f"<pre>{escape(origin(figures))}</pre>",
    ]  # fmt: skip
    return page(title, parts)


def measured_on(figures: dict[str, Any]) -> str:
    clips = figures["clips"]
    of = "" if clips["available"] is None else f" of {clips['available']} available"
    size = f"{figures['size']}x{figures['size']} pixels"
    return f"{clips['measured']} clips{of}, {figures['frames']} frames each at {size} and {figures['fps']:g} frames a second"


def origin(figures: dict[str, Any]) -> str:
    return json.dumps({key: figures.get(key) for key in ("model", "data", "seed", "batch_size", "machine")}, indent=2)


def figure_table(figures: dict[str, Any]) -> str:
    """One row a figure: what it is, its value, what it means."""
    missing, frechet, flicker, seconds = (figures[key] for key in ("not_measured", "rfvd", "flicker", "seconds_per_clip"))
    distance, of = missing.get("rfvd", "needs 2 clips or more"), "Frechet distance of I3D logits, truth to reconstruction"
    if frechet:
        distance = f"{frechet['value']:g} (95%: {frechet['low']:g} to {frechet['high']:g})"
        of += f"; {frechet['clips']} clips of {frechet['frames']} frames at {frechet['size']}x{frechet['size']}"
    rows = [
        ("PSNR", value(figures["psnr"], "dB"), "of the mean squared error over all pixels; pixels in [-1, 1]"),
        ("SSIM", value(figures["ssim"]), "Gaussian window 11x11, sigma 1.5; 1 = equal"),
        ("LPIPS", value(figures["lpips"]) if "lpips" in figures else missing.get("lpips", ""), "VGG16; 0 = equal"),
        ("rFVD", distance, of),
        ("Flicker", value(flicker["flicker"], "levels of 255"), "mean absolute change of the error from a frame to the next"),
        ("Change a frame", f"{flicker['made_change']:g} made, {flicker['true_change']:g} true", "mean absolute change of a pixel, in levels of 255"),
        ("Seconds a clip", f"{seconds['encode']:g} to encode, {seconds['decode']:g} to decode", f"in batches of {figures.get('batch_size', '?')}"),
    ]
    cells = (f'<tr><th>{escape(name)}</th><td class="number">{escape(shown)}</td><td>{escape(note)}</td></tr>' for name, shown, note in rows)
    return f"<table>{''.join(cells)}</table>"


def value(number: float | None, unit: str = "") -> str:
    return f"{'infinite' if number is None else f'{number:g}'} {unit}".strip()


def codebook_table(codebook: dict[str, Any]) -> str:
    head = "<tr><th>alphabet</th><th>values</th><th>used</th><th>share</th><th>perplexity</th></tr>"
    rows = []
    for use in codebook["use"]:
        numbers = (use["size"], use["used"], f"{100 * use['share']:.2f}%", use["perplexity"])
        cells = "".join(f'<td class="number">{escape(str(one))}</td>' for one in numbers)
        rows.append(f"<tr><td>{escape(use['name'])}</td>{cells}</tr>")
    note = f"{codebook['tokens']} tokens counted: no more values than that can be in use. Perplexity is e^entropy: so many equally frequent values."
    return f'<table>{head}{"".join(rows)}</table><p class="note">{escape(note)}</p>'


def curves(by_frame: dict[str, list[float | None]]) -> str:
    return f'<div class="curves">{"".join(curve(NAMES.get(name, name), points) for name, points in by_frame.items())}</div>'


def curve(name: str, points: Sequence[float | None]) -> str:
    """Values by frame index as an SVG line with its lowest and highest value; values that are None (infinite) are left out."""
    known = [(index, point) for index, point in enumerate(points) if point is not None]
    if not known:
        return ""
    low, high = min(point for _, point in known), max(point for _, point in known)
    across = lambda index: MARGIN + index / max(len(points) - 1, 1) * (WIDTH - MARGIN - 8)
    down = lambda point: HEIGHT - 24 - (point - low) / ((high - low) or 1) * (HEIGHT - 48)
    path = " ".join(f"{across(index):.1f},{down(point):.1f}" for index, point in known)
    dots = "".join(f'<circle cx="{across(index):.1f}" cy="{down(point):.1f}" r="2.5" fill="#2364aa"/>' for index, point in known)
    ticks = "".join(f'<text x="4" y="{down(point) + 4:.1f}">{point:.4g}</text>' for point in dict.fromkeys((low, high)))
    ends = f'<text x="{MARGIN}" y="{HEIGHT - 6}">frame 0</text><text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">{len(points) - 1}</text>'
    line = f'<polyline points="{path}" fill="none" stroke="#2364aa" stroke-width="1.5"/>'
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img"><text x="{MARGIN}" y="12">{escape(name)}</text>{line}{dots}{ticks}{ends}</svg>'


def picture(example: Example) -> str:
    """A clip's truth above its reconstruction, at most SHOWN_FRAMES frames from first to last, as a PNG inside the page."""
    caption = f"clip {example.index}, PSNR {example.psnr:.2f} dB"
    data = base64.b64encode(png(side_by_side([example.truth, example.made]))).decode("ascii")
    return f'<figure><img class="clip" alt="{escape(caption)}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'


def side_by_side(clips: Sequence[torch.Tensor]) -> np.ndarray:
    """Clips (c f h w) in [-1, 1] of one length as rows of frames: uint8 (rows*h, frames*w, 3)."""
    num_frames = clips[0].shape[1]
    chosen = torch.linspace(0, num_frames - 1, min(SHOWN_FRAMES, num_frames)).round().long()
    return rearrange(to_bytes(torch.stack([clip[:, chosen] for clip in clips])), "r c f h w -> (r h) (f w) c").numpy()


def png(pixels: np.ndarray) -> bytes:
    """uint8 (h, w, 3) as the bytes of a PNG file."""
    return png_bytes(Image.fromarray(np.ascontiguousarray(pixels)))
