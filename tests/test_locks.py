"""One process at a time in a folder, whoever else comes and goes."""

import os

import pytest

from phenaki import locks
from phenaki.locks import BusyError, take_folder

pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="there are no locks here")


def test_a_folder_is_one_processes_while_it_lives(tmp_path, held_elsewhere):
    with held_elsewhere(tmp_path / "new/folder"), pytest.raises(BusyError, match="wait"):
        take_folder(tmp_path / "new/folder", "wait")
    take_folder(tmp_path / "new/folder", "").close()


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
