"""One process at a time in a folder, whoever else comes and goes."""

import os
import subprocess
import sys

import pytest

from phenaki import locks
from phenaki.locks import BusyError, take_folder

pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="there are no locks here")
HOLDER = "import pathlib, sys; from phenaki.locks import take_folder; kept = take_folder(pathlib.Path(sys.argv[1]), ''); print(flush=True); input()"


def test_a_folder_is_one_processes_while_it_lives(tmp_path):
    folder = tmp_path / "new/folder"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"\n"
        with pytest.raises(BusyError, match="wait"):
            take_folder(folder, "wait")
        other.kill()
    take_folder(folder, "").close()


def test_a_folder_that_was_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    """The process before ends between our opening and our locking."""
    folder, lock, calls = tmp_path / "folder", locks.fcntl.lockf, []

    def locking(*arguments):
        if not calls:
            (folder / locks.LOCK).unlink()
            folder.rmdir()
        calls.append(arguments)
        return lock(*arguments)

    monkeypatch.setattr(locks.fcntl, "lockf", locking)
    with take_folder(folder, "") as file:
        assert len(calls) == 2 and os.path.samestat(os.fstat(file.fileno()), (folder / locks.LOCK).stat())
