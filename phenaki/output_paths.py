"""Where a video may be written, checked before any work is done: a file, or a file for each frame."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from phenaki.atomic import why_unwritable
from phenaki.video_files import VideoError

OUTPUT_ENDINGS = (".mp4", ".webm", ".gif", ".png")
NUMBER = re.compile(r"%(0?[0-9]{1,2})?d")  # in the name of single frames: where each one's number stands


def check_output_path(path: str | Path) -> Path:
    """A path that a video can be written to; VideoError before any work is done where it is not one."""
    path = Path(path)
    if os.path.isdir(path):
        raise VideoError(f"{path}: is a folder; give a file name in it, such as {path / 'story.mp4'}")
    if path.suffix.lower() not in OUTPUT_ENDINGS:
        raise VideoError(f"{path}: unknown ending {path.suffix!r}; known are {', '.join(OUTPUT_ENDINGS)} (and frame_%05d.png for single frames)")
    if is_sequence(path) and (path.name.count("%") != 1 or not NUMBER.search(path.name)):
        raise VideoError(f"{path}: needed one number in the name of single frames, as in frame_%05d.png or frame_%d.png, and no other %")
    folder = path.parent
    if not os.path.isdir(folder):
        raise VideoError(f"{path}: the folder {folder} does not exist; make it first")
    if why := why_unwritable(path):
        raise VideoError(f"{path}: {why}")
    return path


def is_sequence(path: Path) -> bool:
    """Whether an output path stands for single frames, a file each."""
    return path.suffix.lower() == ".png" and "%" in path.name


def names_written(path: Path) -> re.Pattern:
    """The names of the files that are written for an output path: of single frames any number's."""
    around = NUMBER.split(path.name)[::2] if is_sequence(path) else [path.name]  # without what the parentheses of NUMBER hold
    return re.compile(" *[0-9]+".join(map(re.escape, around)))


def check_spares(path: Path, sources: Iterable[Path], made: str = "it") -> Path:
    """An output path; VideoError where writing it would write over one of `sources`: files, or folders whose pictures make a clip.

    made: what is made from them, in the message.
    """
    written = names_written(path)
    for source in filter(os.path.exists, sources):
        beside = any(path.parent.samefile(one.parent) and written.fullmatch(one.name) for one in (source, source.resolve()))
        if beside or (path.exists() and path.samefile(source)):
            raise VideoError(f"{path}: would write over {source.name}, which {made} is made from; give the result another name")
        if os.path.isdir(source) and path.suffix.lower() == ".png" and path.parent.samefile(source):
            raise VideoError(f"{path}: would lie among the pictures that {made} is made from; write it into another folder")
    return path
