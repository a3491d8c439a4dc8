"""A file has its name only when its bytes are on the disk."""

import os
import subprocess
import sys

import pytest

from phenaki import atomic


def test_contents_reach_the_disk_before_the_name_and_the_name_before_it_is_said_to_be_there(tmp_path, monkeypatch):
    steps = []
    rename = os.replace
    monkeypatch.setattr(atomic, "sync", lambda path: steps.append(("sync", path.name)))
    monkeypatch.setattr(atomic.os, "replace", lambda part, final: (steps.append(("rename", final.name)), rename(part, final)))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "new.part").write_text("new")
    (folder / "final").write_text("old")
    atomic.put(folder / "new.part", folder / "final")
    assert steps == [("sync", "new.part"), ("rename", "final"), ("sync", "folder")]
    assert (folder / "final").read_text() == "new" and not (folder / "new.part").exists()


def test_files_and_folders_are_synced_and_closed(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append((handle, os.fstat(handle).st_ino)), fsync(handle)))
    for path in (tmp_path / "a", tmp_path):
        atomic.sync(path)
        handle, number = synced.pop()
        assert number == path.stat().st_ino and not synced
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


def test_what_cannot_have_its_name_leaves_no_part_behind(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError):
        atomic.write_text(tmp_path / "a.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_processes_that_write_the_same_file_do_not_take_each_other_s_parts(tmp_path):
    program = "import pathlib, sys; from phenaki import atomic; path = pathlib.Path(sys.argv[1])\n"
    program += "for _ in range(300): atomic.why_unwritable(path) and sys.exit(3); atomic.write_bytes(path, bytes(2000))"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "a.json")]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_bytes() == bytes(2000)


def test_a_file_that_could_not_be_written_is_told_beforehand(tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("a file")
    for name, words in [("a.mp4", "must end in .json"), ("folder.json", "is a folder"), ("none/a.json", "no folder"), ("file/a.json", "no folder")]:
        with pytest.raises(ValueError, match=words):
            atomic.check_file(tmp_path / name, ".json")
    with pytest.raises(ValueError, match=r"t\.json: cannot write in .*proc"):
        atomic.check_file(atomic.Path("/proc/t.json"), ".json")
    atomic.check_file(tmp_path / "a.json", ".json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.json"]


def test_a_probe_is_not_made_through_a_link(tmp_path):
    (tmp_path / ".a.part-probe").symlink_to(tmp_path / "victim")
    assert atomic.why_unwritable(tmp_path / "a") == ""
    (tmp_path / ".a.part-probe").symlink_to(tmp_path / "victim")
    (tmp_path / "a").touch()
    atomic.open_to_others(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_part_is_not_written_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("not ours")
    part = tmp_path / f".a.json.part-{os.getpid()}"
    part.symlink_to(tmp_path / "victim")
    atomic.write_text(tmp_path / "a.json", "{}")
    assert (tmp_path / "victim").read_text() == "not ours" and (tmp_path / "a.json").read_text() == "{}" and not (tmp_path / "a.json").is_symlink()
    part.symlink_to(tmp_path / "victim")
    assert atomic.fresh_part(tmp_path / "a.json") == part and sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "victim"]


def test_a_file_in_a_folders_place_is_told_beforehand(tmp_path):
    (tmp_path / "file").write_text("a file")
    for name in ("file", "file/a", "file/a/b"):
        with pytest.raises(ValueError, match=r"file.* is a file; needed a folder"):
            atomic.check_folder(tmp_path / name)
    atomic.check_folder(tmp_path)
    atomic.check_folder(tmp_path / "a/b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_library_made_for_its_owner_alone_gets_the_permissions_of_new_files(tmp_path):
    path, before = tmp_path / "a", os.umask(0o022)
    try:
        path.write_text("a")
        path.chmod(0o600)
        atomic.open_to_others(path)
    finally:
        os.umask(before)
    assert oct(path.stat().st_mode & 0o777) == "0o644" and [one.name for one in tmp_path.iterdir()] == ["a"]
