"""Tables of clips that a person wrote: what is amiss in them, and what lies beside them, is said."""

import json

import numpy as np
import pytest

from phenaki.data.check import check_source, summary_lines
from phenaki.data.listing import list_clips
from phenaki.data.shards import index_shard
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
    values = check_source(root, 1, cache=tmp_path / "cache")
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
