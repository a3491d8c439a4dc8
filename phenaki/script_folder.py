"""A folder of story scripts, and which video each of them becomes."""

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from phenaki.output_paths import check_output_path
from phenaki.story_formats import PARSERS
from phenaki.video_files import VideoError

RENDERED_ENDINGS = (".mp4", ".webm")  # those whose making can be resumed


class ScriptFolderError(ValueError):
    """A folder of scripts that cannot be rendered; the message says why and what to do. Nothing was made then."""


@dataclass(frozen=True)
class Job:
    """A script and the video that it becomes."""

    script: Path
    output: Path


def find_jobs(scripts: str | Path, output: str | Path, ending: str = ".mp4") -> list[Job]:
    """The scripts that lie in a folder itself, by name, each with the video of the same name in `output`.

    Hidden files, folders and files with other endings are passed over. ScriptFolderError: no folder, no script in it, a
    link that leads out of it, two scripts of one video.
    """
    scripts, output = Path(scripts), Path(output)
    if ending not in RENDERED_ENDINGS:
        raise ScriptFolderError(f"ending {ending!r}: needed {' or '.join(RENDERED_ENDINGS)}")
    if not os.path.isdir(scripts):
        raise ScriptFolderError(f"{scripts}: needed a folder of scripts, there is {'a file' if os.path.exists(scripts) else 'none'}")
    found = scripts_in(scripts)
    if not found:
        raise ScriptFolderError(f"{scripts}: holds no story scripts ({' '.join(PARSERS)})")
    _check_inside(found, scripts)
    jobs = [Job(path, output / f"{path.stem}{ending}") for path in found]
    _check_apart(jobs)
    return jobs


def scripts_in(folder: Path) -> list[Path]:
    """Its files with an ending of story scripts, by name; no hidden ones."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PARSERS and not path.name.startswith(".") and not path.is_dir())


def open_output(output: str | Path, ending: str = ".mp4") -> None:
    """Makes the folder of the videos where it is missing; ScriptFolderError where it cannot be written to."""
    output = Path(output)
    try:
        output.mkdir(exist_ok=True)
        check_output_path(output / f"story{ending}")
    except (OSError, VideoError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ScriptFolderError(f"{output}: no folder that videos can be written to ({reason}); make one, or give another") from error


def _check_inside(found: list[Path], folder: Path) -> None:
    root = folder.resolve()
    real = {path.name: Path(os.path.realpath(path)) for path in found}  # Path.resolve fails at links in a circle, before Python 3.13
    outside = [name for name, path in real.items() if path.parent != root]
    if outside:
        raise ScriptFolderError(f"{folder}: {outside[0]} is a link that leaves the folder: put the script into it")


def _check_apart(jobs: list[Job]) -> None:
    """Also names that differ in case or in how their letters are composed are one name on some disks."""
    scripts: dict[str, Path] = {}
    for job in jobs:
        other = scripts.setdefault(unicodedata.normalize("NFC", job.output.name).casefold(), job.script)
        if other is not job.script:
            raise ScriptFolderError(f"{other.name} and {job.script.name} would both become {job.output.name}: rename one of them")
