"""Opens training data by its path: footage, a storybook atlas, or (no path) the storybook world drawn by code."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from phenaki.data.clip_files import is_clip_name, is_picture
from phenaki.data.clip_source import CaptionedSource
from phenaki.data.footage_settings import FootageSettings
from phenaki.data.listing import is_footage
from phenaki.data.storybook import open_world
from phenaki.data.tokens import is_story_tokens
from phenaki.data.world import WorldConfig


def open_source(
    world: WorldConfig, size: int, data: Path | None, device: str, footage: FootageSettings | None = None, report: Path | None = None,
    on_note: Callable[[str], None] = print,
) -> CaptionedSource:  # fmt: skip
    """Training data: footage (a folder, table or tar shards), a storybook atlas, or (None) the storybook world drawn by code.

    footage: how clips are cut, at the size and rate of the model; report: where unusable files are listed as JSON lines.
    """
    if data is not None:
        check_there(data)
    if data is not None and is_footage(data):
        cut = replace(footage or FootageSettings(), size=size, fps=world.fps)
        from phenaki.data.footage import open_footage  # which needs the video codec

        return open_footage(data, cut, device, report=report, on_note=on_note)
    if data is not None and is_clip_name(data.name):
        raise ValueError(f"{data}: a single {'picture' if is_picture(data.name) else 'video'}; give its folder, {data.absolute().parent}")
    if data is not None and is_story_tokens(data):
        raise ValueError(f"{data}: holds story tokens, for `phenaki train generator --data` alone; give the footage or atlas that they are of")
    return open_world(replace(world, size=size), data, device)


def told_data(data: Path | None, on_note: Callable[[str], None]) -> None:
    """Notes, where no data was named, that the storybook world drawn by code is trained on: --data may have been forgotten."""
    if data is None:
        on_note("data: the storybook world, drawn by code (--data names one's own)")


def check_there(data: Path) -> None:
    """ValueError where there is nothing of that name."""
    if not data.exists():
        raise ValueError(f"{data}: no such file or folder. Data is footage (a folder, a table, tar shards) or a storybook atlas")
