"""Where clips come from: folders, tables, tar shards; and what is refused because it leaves them."""

import hashlib
import io
import json
import os
import re
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from phenaki.data import check
from phenaki.data.check import ClipLength, check_listing, check_source, summary_lines
from phenaki.data.clip_files import leaves_folder
from phenaki.data.decoding import DecodingPool
from phenaki.data.footage import open_footage
from phenaki.data.footage_settings import FootageSettings
from phenaki.data.listing import list_clips
from phenaki.data.shards import index_shard
from phenaki.video import Video


@pytest.fixture
def clip_bytes(tmp_path):
    """A small video's bytes."""
    path = tmp_path / "made/source.mp4"
    path.parent.mkdir()
    Video(np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), np.uint8), 8.0).save(path)
    return path.read_bytes()


def captions(path, read_shard=index_shard) -> dict[str, str]:
    return {clip.name: clip.caption for clip in list_clips(path, read_shard).clips}


def refused(path, read_shard=index_shard) -> dict[str, str]:
    return {entry.name: entry.kind for entry in list_clips(path, read_shard).unusable}


def shard(path, members: dict[str, bytes]) -> None:
    """A tar of files."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_a_shard_whose_headers_lead_back_ends(tmp_path, clip_bytes):
    """tarfile takes a size below nothing from a pax header, and then finds that header again, for ever."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, pax, data in (("a.mp4", {}, clip_bytes), ("b.mp4", {"size": "-1536"}, b"")):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(data), pax
            tar.addfile(member, io.BytesIO(data))
    found = index_shard(tmp_path / "a.tar")
    assert [clip.name for clip in found.clips] == ["a.mp4"]
    (told,) = (entry for entry in found.unusable if entry.kind == "damaged shard")
    assert "after the member at byte" in told.reason and "members before the damage are used" in told.reason


def test_a_shard_of_names_for_names_keeps_what_stands_before_them(tmp_path, clip_bytes):
    """tarfile reads a header of a long name and then the next in a call of its own, until it may not call any more."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("a.mp4")
        member.size = len(clip_bytes)
        tar.addfile(member, io.BytesIO(clip_bytes))
        member = tarfile.TarInfo("././@LongLink")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 4
        for _ in range(1500):
            tar.addfile(member, io.BytesIO(b"b.mp4"))
    found = index_shard(tmp_path / "a.tar")
    assert [clip.name for clip in found.clips] == ["a.mp4"]
    assert any(entry.kind == "damaged shard" and "members before the damage are used" in entry.reason for entry in found.unusable)


def test_a_folder_lists_files_and_says_what_is_none(tmp_path):
    (tmp_path / "a/deep_sea").mkdir(parents=True)
    (tmp_path / "a/deep_sea/x.MP4").write_bytes(b"1")
    (tmp_path / "y.mov").write_bytes(b"1")
    (tmp_path / "y.txt").write_bytes("ein  Bär\n".encode())
    (tmp_path / ".hidden.mp4").write_bytes(b"1")
    for name in ("notes.doc", "b.wmv", "c.mpg", "d.heic", "e.json", "f.txt", "g.csv", ".hidden"):
        (tmp_path / name).write_bytes(b"1")
    for name in ("linked", ".linked"):
        (tmp_path / name).symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert captions(tmp_path) == {"a/deep_sea/x.MP4": "deep sea", "y.mov": "ein Bär"}
    assert refused(tmp_path) == {
        "empty.mp4": "empty", "folder.mp4": "not a file", "loop.mp4": "no such file", "pipe.mp4": "not a file", "notes.doc": "not a video",
        "b.wmv": "not a video", "c.mpg": "not a video", "d.heic": "not a video", "linked": "link",
    }  # fmt: skip


def test_texts_that_are_no_clip_s_caption_are_told(tmp_path, clip_bytes):
    """`NAME.txt` is read in the clip's own letters alone: another spelling leaves it without a caption."""
    root = tmp_path / "footage"
    (root / "sub").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "sub/c.MP4"):
        (root / name).write_bytes(clip_bytes)
    for name in ("a.txt", "B.txt", "b.TXT", "sub/c.txt", "sub/notes.txt", ".hidden.txt", os.fsdecode(b"bad\xff.txt")):
        (root / name).write_text("a bear")
    values = check_source(root, 1, tmp_path / "check.json")
    assert values["captions"] == 2 and values["lone_texts"] == ["B.txt", "b.TXT", "sub/notes.txt"]
    told = summary_lines(values)
    assert "captions of no clip: 3; NAME.txt goes with NAME.mp4, letter for letter" in told and "  B.txt" in told
    assert json.loads((tmp_path / "check.json").read_text())["lone_texts"] == values["lone_texts"]
    for name in values["lone_texts"]:
        (root / name).unlink()
    assert not any("of no clip" in line for line in summary_lines(check_source(root, 1)))


def test_videos_that_are_too_short_for_a_training_are_counted_by_it(tmp_path):
    for name, count in (("a.mp4", 9), ("b.mp4", 8), ("c.mp4", 33)):
        Video(np.zeros((count, 32, 32, 3), np.uint8), 8.0).save(tmp_path / name)
    Image.new("RGB", (32, 32)).save(tmp_path / "d.png")
    values = check_source(tmp_path, 1, needed={"tokenizer": ClipLength(9, 8.0), "generator": ClipLength(33, 8.0)})
    told = [line for line in summary_lines(values) if "too short" in line]
    assert told == [
        "too short for a clip of the tokenizer (9 frames at 8 a second, 1.1 s): 1 of 3 videos",
        "too short for a clip of the generator (33 frames at 8 a second, 4.1 s): 2 of 3 videos",
    ]
    assert not any("too short" in line for line in summary_lines(check_source(tmp_path, 1)))


def test_a_caption_is_never_read_from_outside_the_folder(tmp_path):
    root = tmp_path / "footage"
    (root / "riding_bikes").mkdir(parents=True)
    (tmp_path / "secret").write_text("a password")
    (root / "told").write_text("a bear")
    for name in ("a.mp4", "a.png", "b.mp4", "riding_bikes/c.mp4", "d.mp4"):
        (root / name).write_bytes(b"1")
    (root / "a.txt").symlink_to(tmp_path / "secret")
    (root / "b.txt").symlink_to("told")  # a link that stays inside is followed
    (root / "riding_bikes/c.txt").symlink_to("../../secret")
    (root / "d.txt").symlink_to("nowhere")
    assert captions(root) == {"a.mp4": "", "a.png": "", "b.mp4": "a bear", "riding_bikes/c.mp4": "", "d.mp4": ""}
    told = [entry for entry in list_clips(root, index_shard).unusable if entry.name != "told"]
    assert [(entry.name, entry.kind) for entry in told] == [("a.txt", "link"), ("riding_bikes/c.txt", "link")], "each is told once"
    assert "leads out of the folder" in told[0].reason and "password" not in told[0].reason
    (tmp_path / "linked").symlink_to(root, target_is_directory=True)
    assert captions(tmp_path / "linked") == captions(root), "the folder itself may be a link"


def test_names_and_captions_that_are_not_utf8_stop_nothing(tmp_path, clip_bytes):
    root = tmp_path / "footage"
    (root / "sub").mkdir(parents=True)
    for name in (b"good.mp4", b"bad\xff.mp4", b"bad\xfe.png"):
        (root / os.fsdecode(name)).write_bytes(clip_bytes)
    shard(root / "0.tar", {"a.mp4": clip_bytes, "a.json": b'{"caption": "half \\ud800"}', os.fsdecode(b"b\xff.mp4"): clip_bytes})
    rows = [{"file_name": "\ud800.mp4"}, {"file_name": "../good.mp4", "text": "\udc80 x"}, {"\ud800": 1}]
    (root / "sub/t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    values = check_source(root, 1, tmp_path / "check.json")
    assert values["videos"] == 2 and captions(root)["0.tar/a.mp4"] == "half ?"
    assert {"'bad\\udcff.mp4'": "bad name", "'bad\\udcfe.png'": "bad name", "0.tar/'b\\udcff.mp4'": "bad name"}.items() <= refused(root).items()
    assert refused(root / "sub/t.jsonl") == {"'\\ud800.mp4'": "bad name", "../good.mp4": "outside the folder", "t.jsonl, row 3": "bad row"}
    for entry in list_clips(root / "sub/t.jsonl", index_shard).unusable:
        entry.reason.encode()
    with pytest.raises(ValueError, match=r"a\\udcff': a name that is not UTF-8"):
        list_clips(os.fsdecode(os.fsencode(tmp_path / "a") + b"\xff"), index_shard)


ROWS = [{"file_name": "a.mp4", "text": "a red\nfish"}, {"file_name": "sub/b.png", "text": ""}]


@pytest.mark.parametrize("columns", [("file_name", "text"), ("video_path", "caption"), ("path", "text")])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_tables_of_every_kind_give_the_same_clips(tmp_path, kind, columns):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"1")
    (tmp_path / "sub/b.png").write_bytes(b"1")
    (tmp_path / "unnamed.mp4").write_bytes(b"1")
    rows = [dict(zip(columns, row.values(), strict=True)) for row in ROWS]
    path = tmp_path / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    elif kind == "csv":
        path.write_text("\n".join([",".join(columns), *(f'{row[columns[0]]},"{row[columns[1]]}"' for row in rows)]), encoding="utf-8-sig")
    else:
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(rows), path)
    assert captions(tmp_path) == captions(path) == {"a.mp4": "a red fish", "sub/b.png": ""}


def test_a_parquet_column_that_is_not_utf8_is_told_by_name(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = arrow.Array.from_buffers(arrow.string(), 1, [None, arrow.py_buffer(b"\0\0\0\0\2\0\0\0"), arrow.py_buffer(b"a\xff")])
    parquet.write_table(arrow.table({"file_name": ["a.mp4"], "text": texts}), tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match=r"metadata.parquet: column text is not UTF-8 \(.*0xff.*\). Write the table again"):
        captions(tmp_path)


@pytest.mark.parametrize("column", ["file_name", "text", "sha256"])
@pytest.mark.parametrize("values, kind", [([10**18], "timestamp[ns]"), ([1], "int64"), ([b"a"], "binary"), ([["a"]], "list")])
def test_a_parquet_column_of_another_kind_is_told_by_name(tmp_path, column, values, kind):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    other = arrow.array(values, arrow.timestamp("ns") if kind == "timestamp[ns]" else None)
    parquet.write_table(arrow.table({"file_name": ["a.mp4"], "text": ["a fish"], column: other}), tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match=rf"metadata.parquet: column {column} is {re.escape(kind)}.*; needed text \(string\). Convert it"):
        captions(tmp_path)


def test_parquet_columns_of_text_may_be_stored_in_any_way_and_others_lie_beside_them(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "a.mp4").write_bytes(b"1")
    names, texts = arrow.array(["a.mp4"]).dictionary_encode(), arrow.array(["a fish"], arrow.large_string())
    columns = {"file_name": names, "text": texts, "sha256": arrow.nulls(1), "path": [7], "caption": [["one", "two"]], "size": [1]}
    parquet.write_table(arrow.table(columns), tmp_path / "metadata.parquet")
    assert captions(tmp_path) == {"a.mp4": "a fish"}
    parquet.write_table(arrow.table({"size": [1, 2]}), tmp_path / "metadata.parquet")
    assert refused(tmp_path) == {"metadata.parquet, row 1": "bad row", "metadata.parquet, row 2": "bad row"}


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install pyarrow"):
        captions(tmp_path)


OUTSIDE = ["/etc/passwd.mp4", "../a.mp4", "x/../../a.mp4", "C:\\a.mp4", "..\\a.mp4", "http://host/a.mp4", "file:a.mp4", "\\\\host\\a.mp4"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_table_cannot_name_files_outside(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"1")
    (tmp_path / "data/metadata.jsonl").write_text(json.dumps({"file_name": name}), encoding="utf-8")
    assert leaves_folder(name)
    assert refused(tmp_path / "data") == {name: "outside the folder"} and captions(tmp_path / "data") == {}


def test_bad_rows_are_told_with_their_number(tmp_path):
    rows = ["not json", "[1]", '{"text": "no name"}', '{"file_name": "gone.mp4"}', '{"file_name": "a.doc"}']
    rows += ['{"file_name": "a.mp4", "sha256": "xyz"}', "[" * 100_000]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    kinds = refused(tmp_path)
    assert kinds == {
        "metadata.jsonl, row 1": "bad row", "metadata.jsonl, row 2": "bad row", "metadata.jsonl, row 3": "bad row",
        "gone.mp4": "no such file", "a.doc": "not a video", "a.mp4": "bad row", "metadata.jsonl, row 7": "bad row",
    }  # fmt: skip


def test_shards_give_clips_where_they_lie(tmp_path, clip_bytes):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(picture, "PNG")
    (tmp_path / "set").mkdir()
    members = {"one/a.mp4": clip_bytes, "one/a.txt": b"first", "one/b.json": b'{"caption": "second", "n": 1}', "one/b.mp4": clip_bytes}
    shard(tmp_path / "set/0.tar", {**members, "c.png": picture.getvalue(), "c.txt": b"from text", "c.json": b'{"text": "from json"}'})
    shard(tmp_path / "set/1.tar", {"a.mp4": clip_bytes, "a.json": b"{broken", "readme.md": b"x"})
    expected = {"0.tar/one/a.mp4": "first", "0.tar/one/b.mp4": "second", "0.tar/c.png": "from json", "1.tar/a.mp4": ""}
    assert captions(tmp_path / "set") == expected and refused(tmp_path / "set") == {}
    for clip in list_clips(tmp_path / "set", index_shard).clips:
        with open(clip.path, "rb") as file:
            file.seek(clip.offset)
            data = file.read(clip.num_bytes)
        assert data == (picture.getvalue() if clip.is_picture else clip_bytes)


def test_a_shard_s_hashes_may_be_in_capitals_and_its_captions_too_long(tmp_path, clip_bytes, pool):
    digest = hashlib.sha256(clip_bytes).hexdigest().upper()
    long = {"b.mp4": clip_bytes, "b.txt": b"word " * 20_000, "c.mp4": clip_bytes, "c.json": json.dumps({"caption": "word " * 20_000}).encode()}
    shard(tmp_path / "0.tar", {"a.mp4": clip_bytes, "a.json": json.dumps({"sha256": digest}).encode(), **long})
    report = check_listing(list_clips(tmp_path / "0.tar", index_shard), pool)
    assert {entry.file.name: len(entry.file.caption) for entry in report.clips} == {"0.tar/a.mp4": 0, "0.tar/b.mp4": 0, "0.tar/c.mp4": 0}
    assert [(entry.name, entry.kind) for entry in report.unusable] == [("0.tar/b.txt", "too long"), ("0.tar/c.json", "too long")]


def test_hostile_members_are_refused_and_the_rest_is_read(tmp_path, clip_bytes):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("good.mp4", "../out.mp4", "/abs.mp4", "a/../../out.mp4", "..\\win.mp4"):
            member = tarfile.TarInfo(name)
            member.size = len(clip_bytes)
            tar.addfile(member, io.BytesIO(clip_bytes))
        kinds = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "chr": tarfile.CHRTYPE, "blk": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE}
        for name, kind in kinds.items():
            member = tarfile.TarInfo(f"{name}.mp4")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    assert set(captions(path)) == {"bad.tar/good.mp4"}
    assert refused(path) == {
        "bad.tar/../out.mp4": "outside the folder", "bad.tar//abs.mp4": "outside the folder", "bad.tar/a/../../out.mp4": "outside the folder",
        "bad.tar/..\\win.mp4": "outside the folder", "bad.tar/sym.mp4": "link", "bad.tar/hard.mp4": "link", "bad.tar/chr.mp4": "not a file",
        "bad.tar/blk.mp4": "not a file", "bad.tar/fifo.mp4": "not a file",
    }  # fmt: skip
    assert sorted(tmp_path.rglob("*")) == before  # nothing is extracted


def test_damaged_shards(tmp_path, clip_bytes, pool):
    (tmp_path / "made/source.mp4").unlink()
    shard(tmp_path / "whole.tar", {"a.mp4": clip_bytes, "b.mp4": clip_bytes})
    data = (tmp_path / "whole.tar").read_bytes()
    second = data.index(b"b.mp4")
    (tmp_path / "cut.tar").write_bytes(data[: second + 512 + 100])
    (tmp_path / "none.tar").write_bytes(b"not a tar" * 200)
    (tmp_path / "empty.tar").touch()
    (tmp_path / "whole.tar").unlink()
    assert set(captions(tmp_path, pool.read_shard)) == {"cut.tar/a.mp4"}
    assert refused(tmp_path, pool.read_shard) == {
        "cut.tar": "damaged shard", "cut.tar/b.mp4": "cut off", "none.tar": "damaged shard", "empty.tar": "damaged shard",
    }  # fmt: skip


def flipped(data: bytes, place: int) -> bytes:
    """The same with one bit changed."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


STRIDE, CHECKSUM = 1536, 148  # bytes of a member of 700 bytes with its header; where a header's checksum is
DAMAGES = {
    "a bit of a header": lambda data: flipped(data, STRIDE + CHECKSUM),
    "zeros for a header": lambda data: data[:STRIDE] + bytes(512) + data[STRIDE + 512 :],
    "cut between members": lambda data: data[:STRIDE],
    "cut inside a header": lambda data: data[: STRIDE + 100],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_ends_too_early_is_told(tmp_path, damage):
    path = tmp_path / "0.tar"
    shard(path, {f"{name}.mp4": b"x" * 700 for name in "abcd"})
    assert len(captions(path)) == 4 and refused(path) == {}
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    listing = list_clips(path, index_shard)
    assert [clip.name for clip in listing.clips] == ["0.tar/a.mp4"]
    ((name, kind, reason),) = [(entry.name, entry.kind, entry.reason) for entry in listing.unusable]
    assert (name, kind) == ("0.tar", "damaged shard") and f"at byte {STRIDE}" in reason


def test_a_shard_whose_header_turns_in_a_circle_holds_nobody_up(tmp_path, pool):
    """A negative size sends a reader of tar files back to where it was (CVE-2025-8194)."""
    member = tarfile.TarInfo("a.mp4")
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")
    checksum = 256 + sum(block[:148]) + sum(block[156:512])
    block[148:156] = b"%06o\0 " % checksum
    (tmp_path / "circle.tar").write_bytes(bytes(block) * 3 + bytes(1024))
    pool_kinds = set(refused(tmp_path, pool.read_shard).values())
    assert pool_kinds <= {"damaged shard", "cut off", "too slow"} and pool_kinds


def test_a_written_hash_finds_what_a_decoder_would_not(tmp_path, clip_bytes, pool):
    harmless = clip_bytes.replace(b"isom", b"isoz", 1)  # a byte of metadata
    assert harmless != clip_bytes
    for name, data in (("good.mp4", clip_bytes), ("other.mp4", harmless)):
        (tmp_path / name).write_bytes(data)
    digest = hashlib.sha256(clip_bytes).hexdigest()
    rows = [{"file_name": name, "sha256": digest} for name in ("good.mp4", "other.mp4")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    report = check_listing(list_clips(tmp_path, index_shard), pool)
    assert [entry.file.name for entry in report.clips] == ["good.mp4"] and [entry.kind for entry in report.unusable] == ["checksum"]


def test_paths_that_hold_nothing(tmp_path):
    with pytest.raises(ValueError, match="there is none here"):
        list_clips(tmp_path / "missing", index_shard)
    with pytest.raises(ValueError, match="holds no videos"):
        list_clips(tmp_path, index_shard)


def test_a_long_check_is_told_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "NOTE_SECONDS", 0.0)
    root = tmp_path / "footage"
    root.mkdir()
    for name in "ab":
        Image.new("RGB", (16, 16)).save(root / f"{name}.png")
    told, notes = [], []
    check_source(root, 1, on_progress=lambda done, count: told.append((done, count)))
    monkeypatch.setenv("PHENAKI_CACHE", str(tmp_path / "other"))
    with DecodingPool(1) as pool:
        open_footage(root, FootageSettings(), pool=pool, on_note=notes.append)
    assert told == [(1, 2), (2, 2)] and notes == [f"{root}: {done} of 2 files checked" for done in (1, 2)]


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    numbers = []
    for processes in (None, "2", "8", "64"):
        if processes:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        with DecodingPool() as pool:
            numbers.append(len(pool.workers))
    assert numbers == [8, 4, 1, 1]


def test_a_table_s_path_through_a_linked_folder_is_refused(tmp_path):
    (tmp_path / "data/own").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for place in ("other/a.mp4", "data/own/b.mp4"):
        (tmp_path / place).write_bytes(b"1")
    (tmp_path / "data/sub").symlink_to(tmp_path / "other")
    (tmp_path / "data/near").symlink_to(tmp_path / "data/own")
    rows = [{"file_name": name} for name in ("sub/a.mp4", "near/b.mp4")]
    (tmp_path / "data/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert refused(tmp_path / "data") == {"sub/a.mp4": "outside the folder"} and [*captions(tmp_path / "data")] == ["near/b.mp4"]


@pytest.mark.parametrize("name", ["a\x1b[2J.mp4", "a\nb.mp4", "a\0.mp4", "a\u2028.mp4"])
def test_names_that_would_command_a_terminal_are_told_harmlessly(tmp_path, name):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name}), encoding="utf-8")
    assert refused(tmp_path) == {ascii(name): "bad name"}


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_table_of_one_endless_line_is_refused(tmp_path, monkeypatch, ending):
    monkeypatch.setattr("phenaki.data.table.MAX_LINE", 1000)
    (tmp_path / f"metadata.{ending}").write_text("file_name,text\n" + "x" * 5000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"has a line of 1000 characters or more; is it a table\?"):
        refused(tmp_path)
