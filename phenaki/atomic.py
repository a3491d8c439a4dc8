"""Files that stand under their name whole or not at all, also when the power goes."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Waits until the bytes of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put(part: Path, final: Path) -> None:
    """Gives a finished part file its final name, in place of whatever had it: contents first, then the name."""
    sync(part)
    os.replace(part, final)
    sync(final.parent)


def write_text(path: Path, text: str) -> None:
    """The file whole or not at all, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """The file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    put(part, path)
