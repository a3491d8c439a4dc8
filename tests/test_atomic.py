"""A file has its name only when its bytes are on the disk."""

import os

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


def test_files_and_folders_can_be_synced(tmp_path):
    (tmp_path / "a").write_text("a")
    atomic.sync(tmp_path / "a")
    atomic.sync(tmp_path)
