"""What one process at a time works on: a folder, by the file .lock in it, or a file. The system lets it go with the process, however that ends."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: nobody is kept from working at the same time
    fcntl = None

LOCK = ".lock"  # of a folder


class BusyError(ValueError):
    """What another process works on; the message says what to do."""


def take_folder(folder: Path, busy: str) -> BinaryIO:
    """Makes a folder, which may be missing, this process's own while the file that is returned is open.

    BusyError, with the words `busy`, where it is another's. Within one process it may be taken twice, and is let go with the first
    of the files that is closed.
    """
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = _opened(path)
        except FileNotFoundError:
            if folder.is_dir():
                raise
            continue  # the process before has just removed it
        if _is_held(file, path, fcntl and fcntl.lockf, busy):
            return file


def open_alone(path: Path, busy: str) -> BinaryIO:
    """Opens a file, made where it is missing, for one writer alone. Unbuffered.

    BusyError, with the words `busy`, where another holds it; ValueError where it is a link: what that leads to is not ours to write over.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        if path.is_symlink():
            raise ValueError(f"{path}: is a link, and would be written through; remove it, or give another name")
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        if _is_held(file, path, fcntl and fcntl.flock, busy):
            return file


@contextlib.contextmanager
def waited(path: Path) -> Iterator[None]:
    """Holds the lock of a file, which is made where it is missing, as soon as no other process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(path) as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system that knows no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> BinaryIO:
    """A lock's file, made where it is missing. ValueError for a link, a pipe or a device: none of them is ours, and some never open."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f"{path}: is no plain file, as a lock is; remove it")
    return os.fdopen(os.open(path, flags, 0o666), "ab")


def _is_held(file: BinaryIO, path: Path, lock: Callable | None, busy: str) -> bool:
    """Locks a file that was opened; False, and the file closed, where the process before removed it between the opening and the locking."""
    try:
        if lock is not None:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise BusyError(busy) from error
    except OSError:  # a file system that knows no locks
        pass
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return True
    file.close()
    return False
