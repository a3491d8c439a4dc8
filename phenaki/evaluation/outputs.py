"""What all evaluations need for their output: a check of the paths, the name of the machine, and the frame of an HTML page."""

import json
import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from phenaki.atomic import check_file, check_folder, write_text

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; }
td, th { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #d9dee6; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.caution { background: #fff4d6; border-left: 4px solid #d9a400; padding: .5rem .8rem; margin: .5rem 0; }
.clip { width: 100%; image-rendering: pixelated; display: block; } figure { margin: 1rem 0; } figcaption, .note { color: #5a6675; font-size: .9rem; }
td.number, th { white-space: nowrap; } pre { white-space: pre-wrap; overflow-wrap: anywhere; color: #5a6675; font-size: .85rem; }
video { image-rendering: pixelated; display: block; }
.curves { display: flex; flex-wrap: wrap; gap: 1.5rem; } svg text { font: 11px system-ui, sans-serif; fill: #5a6675; }
"""


def check_outputs(output: Path, html: Path | None = None, picture: Path | None = None, work: Path | None = None) -> None:
    """ValueError, before any work, where one of the files could not be written or `work` could not be a folder."""
    for path, ending in ((output, ".json"), (html, ".html"), (picture, ".png")):
        if path is not None:
            check_file(path, ending)
    if work is not None:
        check_folder(work)


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Figures as JSON, whole or not at all. ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(figures, indent=2, allow_nan=False) + "\n")


def machine(device: str) -> str:
    """The machine that times are measured on: its kind, its GPU or threads, and torch's version."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    return f"{platform.machine()}, {name}, torch {torch.__version__}"


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts that are HTML already."""
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"
