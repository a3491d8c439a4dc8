"""Files that stand under their name whole or not at all, also when the power goes."""

import contextlib
import errno
import hashlib
import io
import os
from itertools import count
from pathlib import Path
from typing import Any

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync(path: Path) -> None:
    """Waits until the bytes of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The hash of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put(part: Path, final: Path) -> None:
    """Gives a finished part file its final name, in place of whatever had it: contents first, then the name."""
    sync(part)
    os.replace(part, final)
    sync(final.parent)


def fresh_part(path: Path) -> Path:
    """A temporary path beside `path` for a file that is not whole yet. No other process has this name; whatever lay there is removed."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    part.unlink(missing_ok=True)
    return part


def drop_part(path: Path) -> None:
    """Removes what `fresh_part(path)` began."""
    fresh_part(path)


def free_name(path: Path) -> Path:
    """The first unused name of story-1.mp4, story-2.mp4, ... for story.mp4; a folder's likewise."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))


def open_to_others(path: Path) -> None:
    """Gives a file the permissions that new files have here: some libraries make files that their owner alone can read."""
    probe = path.with_name(f".{path.name}.part-probe")
    probe.unlink(missing_ok=True)  # never through a link of its name
    probe.touch()
    path.chmod(probe.stat().st_mode)
    probe.unlink()


def write_text(path: Path, text: str) -> None:
    """The file whole or not at all, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """The file whole or not at all."""
    part = fresh_part(path)
    try:
        part.write_bytes(data)
        put(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def write_picture(path: Path, picture: Any) -> None:
    """A PIL image as a PNG, whole or not at all."""
    write_bytes(path, png_bytes(picture))


def png_bytes(picture: Any) -> bytes:
    """A PIL image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def check_file(path: Path, ending: str) -> None:
    """ValueError before any work where a file of this ending could not be written after it."""
    if path.suffix != ending:
        raise ValueError(f"{path}: its name must end in {ending}")
    if os.path.isdir(path):
        raise ValueError(f"{path}: is a folder; give a file name in it, such as {path / f'a{ending}'}")
    if not os.path.isdir(path.parent):
        raise ValueError(f"{path}: there is no folder {path.parent}. Make it first")
    if why := why_unwritable(path):
        raise ValueError(f"{path}: {why}")


def why_unwritable(path: Path) -> str:
    """Why no file can be written in the place of a path, in words that end its message; "" where one can."""
    probe = path.with_name(f".{path.name}.part-probe")
    try:
        probe.unlink(missing_ok=True)  # never through a link of its name
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have asked the same
    except (OSError, ValueError) as error:
        return f"cannot write in {path.parent} ({getattr(error, 'strerror', None) or error}); choose another folder"
    return ""


def check_folder(folder: Path) -> None:
    """ValueError before any work where a file stands in a folder's place, or on the way to it."""
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if not os.path.isdir(there):
        raise ValueError(f"{folder}: {'' if there == folder else f'{there} '}is a file; needed a folder")
