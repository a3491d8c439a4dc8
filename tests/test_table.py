"""Tables of clips that a person wrote: what is amiss in them, and what lies beside them, is said."""

import codecs
import json
import resource
import tarfile

import numpy as np
import pytest

from phenaki.data.check import check_source, summary_lines
from phenaki.data.clip_files import MAX_CAPTION_BYTES
from phenaki.data.listing import list_clips
from phenaki.data.shards import index_shard
from phenaki.data.table import read_table
from phenaki.video import Video


def captions(path) -> dict[str, str]:
    return {clip.name: clip.caption for clip in list_clips(path, index_shard).clips}


def test_a_comma_outside_of_quotes_loses_no_half_of_a_caption(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(b"1")
    rows = ["file_name,text", "a.mp4,a robot, that moves a cup", 'b.mp4,"a robot, that waits"', "c.mp4,a comma at the end,"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    assert captions(tmp_path) == {"b.mp4": "a robot, that waits", "c.mp4": "a comma at the end"}
    ((name, reason),) = [(entry.name, entry.reason) for entry in list_clips(tmp_path, index_shard).unusable]
    assert (name, reason) == ("metadata.csv, row 1", "3 cells, 2 columns; put captions with commas in quotes")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_may_be_divided_as_spreadsheets_do_it(tmp_path, delimiter):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(b"1")
    rows = [("text", '"File_Name"'), ('"a robot; a cup,\ta tray"', "a.mp4"), ("a robot", "b.mp4")]
    (tmp_path / "metadata.csv").write_text("\n".join(map(delimiter.join, rows)), encoding="utf-16")
    assert captions(tmp_path) == {"a.mp4": "a robot; a cup, a tray", "b.mp4": "a robot"}


@pytest.mark.parametrize("after", ["b.mp4,another", 'b.mp4,"another"', ""])
def test_a_quote_that_is_not_closed_is_told_with_its_line(tmp_path, after):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(b"1")
    (tmp_path / "metadata.csv").write_text(f'file_name,text\nb.mp4,"two\nlines"\na.mp4,"unclosed\n{after}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"metadata.csv: the row that begins in line 4 is not CSV .*Close every quote"):
        captions(tmp_path)


def test_what_a_table_leaves_out_is_counted(tmp_path):
    root = tmp_path / "footage"
    (root / "sub").mkdir(parents=True)
    Video(np.zeros((9, 16, 16, 3), np.uint8), 8.0).save(root / "a.mp4")
    for name in ("sub/b.mp4", ".hidden.mp4", *(f"sub/{number}.png" for number in range(6))):
        (root / name).write_bytes(b"1")
    (root / "metadata.csv").write_text("file_name,text\n./a.mp4,a bear\nsub/gone.mp4,x\n", encoding="utf-8")
    told = "metadata.csv leaves out 7 files of this folder: sub/0.png, sub/1.png, sub/2.png, sub/3.png, sub/4.png, ..."
    values = check_source(root, 1)
    assert values["notes"] == [told] and told in summary_lines(values)
    rows = ["file_name,text", "a.mp4,a bear", "sub/b.mp4,x", *(f"sub/{number}.png,y" for number in range(6))]
    (root / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    assert list_clips(root, index_shard).notes == ()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_s_name_may_be_in_capitals(tmp_path, kind):
    (tmp_path / "a.mp4").write_bytes(b"1")
    row = {"File_Name": "a.mp4", "Caption": "a bear", "SHA256": "A" * 64}
    path = tmp_path / f"metadata.{kind}"
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row) if kind == "jsonl" else ", ".join(row) + "\n" + ",".join(row.values()), encoding="utf-8")
    (clip,) = list_clips(tmp_path, index_shard).clips
    assert (clip.caption, clip.sha256) == ("a bear", "a" * 64) and list_clips(tmp_path, index_shard).notes == ()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_table_without_captions_tells_its_columns(tmp_path, kind):
    (tmp_path / "a.mp4").write_bytes(b"1")
    (tmp_path / "a.txt").write_text("a bear", encoding="utf-8")
    row = {"file_name": "a.mp4", "Description": "a bear"}
    path = tmp_path / f"metadata.{kind}"
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row) if kind == "jsonl" else "file_name,Description\na.mp4,a bear", encoding="utf-8")
    (told,) = list_clips(tmp_path, index_shard).notes
    assert told.startswith(f"metadata.{kind} has no column text or caption, ") and told.endswith("its columns are file_name, Description")


@pytest.mark.parametrize("harm", [lambda whole: b"file_name,text\na.mp4,a bear\n", lambda whole: whole[:-9], lambda _: b""], ids=["csv", "cut", ""])
def test_a_broken_parquet_table_is_told_by_name(tmp_path, harm):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "a.mp4").write_bytes(b"1")
    path = tmp_path / "metadata.parquet"
    parquet.write_table(arrow.Table.from_pylist([{"file_name": "a.mp4", "text": "a bear"}]), path)
    assert captions(tmp_path) == {"a.mp4": "a bear"}
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match=r"metadata\.parquet: not a parquet table \("):
        captions(tmp_path)


@pytest.mark.parametrize("text", ["file_name,text\n", "", "\n\n"])
def test_a_table_without_rows_is_told_by_name(tmp_path, text):
    (tmp_path / "a.mp4").write_bytes(b"1")
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"metadata.csv: names no clips\. Fill it, or take it away"):
        captions(tmp_path)


def test_tables_that_are_not_read_are_told(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "captions.csv", "sub/metadata.csv", "unusable.rank1.jsonl", ".hidden.csv", "a.json"):
        (tmp_path / name).write_bytes(b"1")
    told = "tables that are not read: captions.csv, sub/metadata.csv; "
    assert list_clips(tmp_path, index_shard).notes == (told + "a folder's own is named metadata.jsonl, metadata.csv or metadata.parquet",)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "a bear"}', encoding="utf-8")
    assert list_clips(tmp_path, index_shard).notes == (told + "metadata.jsonl is read",)


TABLES_OF_WINDOWS = {"jsonl": '{"file_name": "a.mp4", "text": "ein Bär"}\r\n', "csv": "file_name,text\r\na.mp4,ein Bär\r\n"}


@pytest.mark.parametrize("kind", TABLES_OF_WINDOWS)
def test_a_table_may_be_in_any_unicode_of_windows_and_is_told_where_it_is_not(tmp_path, kind):
    (tmp_path / "a.mp4").write_bytes(b"1")
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / f"metadata.{kind}").write_bytes(TABLES_OF_WINDOWS[kind].encode(encoding))
        assert captions(tmp_path) == {"a.mp4": "ein Bär"} and list_clips(tmp_path, index_shard).unusable == (), encoding
    (tmp_path / f"metadata.{kind}").write_bytes(TABLES_OF_WINDOWS[kind].encode("latin-1"))
    ((name, entry_kind, reason),) = [(entry.name, entry.kind, entry.reason) for entry in list_clips(tmp_path, index_shard).unusable]
    assert (name, entry_kind) == ("a.mp4", "bad row") and reason.endswith("row 1: its caption is not UTF-8; save the table as UTF-8")


def test_captions_in_the_encodings_of_windows(tmp_path):
    """UTF-8 and UTF-16 with their marks are read without them; what is no text gives no caption, and is told, in shards too."""
    texts = {"a": "ein Bär".encode("utf-8-sig"), "b": "ein Bär".encode("utf-16"), "c": codecs.BOM_UTF16_BE + "ein Bär".encode("utf-16-be")}
    texts |= {"d": "ein Bär".encode("latin-1"), "e": "a bear".encode("utf-16-le"), "f": "ein Bär".encode()}
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in texts.items():
            for path in (tmp_path / f"{name}.mp4", tmp_path / f"{name}.txt"):
                path.write_bytes(b"1" if path.suffix == ".mp4" else data)
                tar.add(path, path.name)
    expected = {f"{name}.mp4": "" if name in "de" else "ein Bär" for name in texts}
    assert captions(tmp_path) == expected | {f"0.tar/{name}": caption for name, caption in expected.items()}
    told = {entry.name: entry.kind for entry in list_clips(tmp_path, index_shard).unusable}
    assert told == dict.fromkeys(("0.tar/d.txt", "0.tar/e.txt", "d.txt", "e.txt"), "not text")


def test_a_long_caption_may_be_cut_inside_a_letter(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"1")
    (tmp_path / "a.txt").write_bytes("xä".encode() + "ä".encode() * MAX_CAPTION_BYTES)
    assert captions(tmp_path) == {"a.mp4": "x" + "ä" * ((MAX_CAPTION_BYTES - 1) // 2)}


def test_a_parquet_table_does_not_unfold_in_memory(tmp_path):
    """A few hundred bytes that say one long text for each of many rows."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, many = tmp_path / "metadata.parquet", 3_000
    texts = arrow.DictionaryArray.from_arrays(arrow.array([0] * many, arrow.int32()), arrow.array(["x" * (4 << 20)]))
    parquet.write_table(arrow.table({"file_name": [f"{n}.mp4" for n in range(many)], "text": texts}), path, compression="zstd")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"metadata\.parquet: column text has a text of 4194304 bytes; at most 65536 are read"):
        read_table(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100, "MiB; 64 rows of it are 256"

    parquet.write_table(arrow.table({"file_name": arrow.DictionaryArray.from_arrays(arrow.array([0] * 2_000_000), ["a.mp4"])}), path)
    with pytest.raises(ValueError, match=r"metadata\.parquet: 2000000 rows in \d+ bytes; no table that names as many clips is as small"):
        read_table(path)


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY"])
def test_nor_does_one_whose_texts_are_packed_otherwise(tmp_path, encoding):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, many = tmp_path / "metadata.parquet", 100
    table = arrow.table({"file_name": [f"{n}.mp4" for n in range(many)], "text": ["x" * (4 << 20)] * many})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding=dict.fromkeys(table.column_names, encoding))
    del table
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"metadata\.parquet: column text has a text of 4194304 bytes; at most 65536 are read"):
        read_table(path)
    assert path.stat().st_size < 200_000 and (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 600


def test_a_table_of_many_clips_may_be_small(tmp_path):
    """Names that count up take a byte or less each."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = [f"{n}.mp4" for n in range(5_000)]
    table = arrow.table({"file_name": names, "text": ["a dog"] * len(names)})
    options = {"use_dictionary": False, "column_encoding": {"file_name": "DELTA_BYTE_ARRAY", "text": "DELTA_BYTE_ARRAY"}, "compression": "zstd"}
    parquet.write_table(table, tmp_path / "metadata.parquet", **options)
    assert (tmp_path / "metadata.parquet").stat().st_size < len(names)
    assert [entry.name for entry in read_table(tmp_path / "metadata.parquet").unusable] == sorted(names), "there are no such files here"


def test_a_csv_of_columns_without_end_is_refused(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text(",".join(f"c{n}" for n in range(300)) + "\n" + "x\n" * 300)
    with pytest.raises(ValueError, match=r"metadata\.csv: has 300 columns; at most 256 are read"):
        read_table(path)
    path.write_text(",".join(f"c{n}" for n in range(200)) + "\nx\n")
    (row,) = read_table(path).unusable
    assert row.reason.endswith("'c18', 'c19', ..."), "not all of them in each row's reason"
