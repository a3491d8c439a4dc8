"""Tables of clips: metadata.jsonl, .csv or .parquet beside the files, one row a clip.

Columns: `file_name` (or `video_path`, `path`), `text` (or `caption`), and optionally `sha256` of the file, in any case; those of a .csv
are separated by commas, semicolons or tabs. A path is relative to the table's own folder and has to stay inside.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from phenaki.data.clip_files import (
    MAX_CAPTION_BYTES,
    ClipFile,
    Listing,
    Unusable,
    bad_name,
    clip_file,
    encoding_of,
    is_clip_name,
    leaves_folder,
    some,
    tidy,
)

NAME_COLUMNS = ("file_name", "video_path", "path")
CAPTION_COLUMNS = ("text", "caption")
DELIMITERS = (",", ";", "\t")  # of a .csv
MAX_COLUMNS = 256  # of a .csv: every row has them all
MAX_COLUMNS_TOLD = 20  # named in a note about a table
MAX_LINE = 1 << 24  # characters of a row
MAX_HEADER = 1 << 16  # characters of a .csv's first line that its delimiter is looked for in
# Of a .parquet table, which may be compressed, so that a few bytes become many rows with a long caption each:
MAX_CELL_BYTES, ROWS_AT_ONCE = 1 << 16, 2048
MAX_GROUP_BYTES, MAX_BATCH_BYTES = 1 << 29, 1 << 28
DICTIONARIES = ("PLAIN_DICTIONARY", "RLE_DICTIONARY")  # encodings in which rows share a text
MANY_ROWS, MAX_ROWS_PER_BYTE = 1_000_000, 100  # where all names differ there are ten rows a byte at most
NOT_DECODED = re.compile("[\udc80-\udcff]")  # half surrogate pairs, of `open_text`


def read_table(path: Path) -> Listing:
    """The clips that a table names. Rows that cannot be used are kept with the reason; ValueError where it is no table or names no clips."""
    readers = {".jsonl": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}
    clips: list[ClipFile] = []
    unusable: list[Unusable] = []
    columns: dict[str, None] = {}
    for number, row in readers[path.suffix.lower()](path):
        if isinstance(row, dict) and len(columns) < MAX_COLUMNS_TOLD:
            columns |= dict.fromkeys(key for key in row if key is not None)
        found = row_clip(path.parent, f"{path.name}, row {number}", row)
        (clips if isinstance(found, ClipFile) else unusable).append(found)
    if not clips and not unusable:
        raise ValueError(f"{path}: names no clips. Fill it, or take it away: the files beside a table are read where there is none")
    return replace(Listing.of(clips, unusable), notes=caption_notes(path, clips, list(columns)))


def caption_notes(path: Path, clips: list[ClipFile], columns: list[str]) -> tuple[str, ...]:
    """A note where a table has no column of captions, else none."""
    if not clips or any(clip.caption for clip in clips) or any(plain(column) in CAPTION_COLUMNS for column in columns):
        return ()
    told = tidy(some(columns, MAX_COLUMNS_TOLD))
    return (
        f"{path.name} has no column {' or '.join(CAPTION_COLUMNS)}, so its clips have no captions (where there is a table, .txt files are not "
        f"read); its columns are {told}",
    )


def row_clip(root: Path, where: str, row: Any) -> ClipFile | Unusable:
    """The clip of one row, or why there is none."""
    if not isinstance(row, dict):
        return Unusable(where, "bad row", f"needed a table of columns, found {row!r:.80}")
    if any(surplus := row.pop(None, ())):  # an empty cell, as of a comma at a line's end, loses nothing
        return Unusable(where, "bad row", f"{len(row) + len(surplus)} cells, {len(row)} columns; put captions with commas in quotes")
    name = first_of(row, NAME_COLUMNS)
    if not isinstance(name, str) or not name:
        columns = some([ascii(column) for column in row], MAX_COLUMNS_TOLD)
        return Unusable(where, "bad row", f"needed a file name in {', '.join(NAME_COLUMNS)}; columns are {columns}")
    if (refusal := bad_name(name)) is not None:
        return refusal
    if leaves_folder(name):
        return Unusable(name, "outside the folder", f"{where}: a path has to be relative and to stay in the table's folder")
    if not Path(os.path.realpath((root / name).parent)).is_relative_to(os.path.realpath(root)):
        return Unusable(name, "outside the folder", f"{where}: a folder on its path is a link that leaves the table's folder")
    if not is_clip_name(name):
        return Unusable(name, "not a video", f"{where}: neither a video's nor a picture's ending")
    caption, sha256 = first_of(row, CAPTION_COLUMNS), str(first_of(row, ("sha256",)) or "").lower()
    if not is_encoded(str(caption or "")):
        return Unusable(name, "bad row", f"{where}: its caption is not UTF-8; save the table as UTF-8")
    if sha256 and not re.fullmatch("[0-9a-f]{64}", sha256):
        return Unusable(name, "bad row", f"{where}: sha256 is {sha256!r:.80}, needed 64 hexadecimal digits")
    return clip_file(root / name, Path(name).as_posix(), tidy(str(caption or ""))[:MAX_CAPTION_BYTES], sha256)


def first_of(row: dict[str, Any], columns: tuple[str, ...]) -> Any:
    """The value of the first of `columns` that has one in this row; None where none has."""
    values = {plain(column): value for column, value in reversed(row.items()) if value is not None}
    return next((values[column] for column in columns if column in values), None)


def plain(column: str) -> str:
    """A column's name in lower case, without spaces around it."""
    return column.strip().lower()


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Opens a table, in UTF-8 or UTF-16 (see `encoding_of`). Bytes that are not UTF-8 become half surrogate pairs (see `is_encoded`)."""
    with open(path, "rb") as file:
        encoding = encoding_of(file.read(2))
    return open(path, encoding=encoding, errors="surrogateescape" if encoding == "utf-8-sig" else "replace", newline=newline)


def is_encoded(text: str) -> bool:
    """Whether a text of `open_text` holds no bytes that could not be decoded."""
    return NOT_DECODED.search(text) is None


def lines_of(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a table; ValueError for one of MAX_LINE characters or more."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"{path}: has a line of {MAX_LINE} characters or more; is it a table?")
        yield line


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Row numbers and values of JSON lines; a line that is no JSON is yielded as text, which `row_clip` refuses."""
    with open_text(path) as file:
        for number, line in enumerate(lines_of(file, path), start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, line


def csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Row numbers and rows by column; surplus cells are under None. ValueError where a quote is not closed: it would swallow the next rows."""
    with open_text(path, newline="") as file:
        delimiter = delimiter_of(file.readline(MAX_HEADER))
        file.seek(0)
        rows = csv.DictReader(lines_of(file, path), strict=True, delimiter=delimiter)
        try:
            if len(rows.fieldnames or ()) > MAX_COLUMNS:
                raise ValueError(f"{path}: has {len(rows.fieldnames)} columns; at most {MAX_COLUMNS} are read, leave out what is not needed")
            yield from enumerate(rows, start=1)
        except csv.Error as error:  # line_num is still that of the row before
            remedy = "Close every quote that is opened, and write a quote inside quotes twice"
            raise ValueError(f"{path}: the row that begins in line {rows.line_num + 1} is not CSV ({error}). {remedy}") from error


def delimiter_of(header: str) -> str:
    """The delimiter of a CSV: the first of DELIMITERS with which its header has a column of file names, else a comma."""
    for delimiter in DELIMITERS:
        cells = header.split(delimiter)
        if any(plain(cell.strip().strip('"')) in NAME_COLUMNS for cell in cells):
            return delimiter
    return DELIMITERS[0]


def parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Row numbers and rows by column, read a few at a time. ValueError where pyarrow is not installed or the file is no such table."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading .parquet needs pyarrow: pip install pyarrow, or save the table as .jsonl or .csv") from error
    try:
        with parquet.ParquetFile(path) as file:
            schema, metadata, num_rows = file.schema_arrow, file.metadata, file.metadata.num_rows
        if num_rows > max(MANY_ROWS, MAX_ROWS_PER_BYTE * path.stat().st_size):
            raise ValueError(f"{path}: {num_rows} rows in {path.stat().st_size} bytes; no table that names as many clips is as small")
        texts = text_columns(path, schema)
        number, others = 0, dict.fromkeys(schema.names[:MAX_COLUMNS_TOLD])  # a column that is not read has no value in any row
        shared, rows_at_once = how_to_read(path, metadata, texts)
        with parquet.ParquetFile(path, read_dictionary=shared) as file:  # a text that many rows share is in memory once
            for batch in file.iter_batches(rows_at_once, columns=texts):
                for row in batch_rows(path, batch):
                    number += 1
                    yield number, others | row
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a parquet table ({error})") from error


def how_to_read(path: Path, metadata: Any, texts: list[str]) -> tuple[list[str], int]:
    """Which of the text columns are read as dictionaries, and how many rows at once: so that what a few bytes unfold to has a bound.

    ValueError where a row group has more bytes of text than MAX_GROUP_BYTES.
    """
    chunks = [metadata.row_group(group).column(index) for group in range(metadata.num_row_groups) for index in range(metadata.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema in texts]
    if (most := max((chunk.total_uncompressed_size for chunk in chunks), default=0)) > MAX_GROUP_BYTES:
        raise ValueError(f"{path}: {most} bytes of text in a row group; at most {MAX_GROUP_BYTES} are read, write it in smaller ones")
    others = {chunk.path_in_schema for chunk in chunks if not {"PLAIN", "RLE", "BIT_PACKED", *DICTIONARIES}.issuperset(chunk.encodings)}
    shared = {chunk.path_in_schema for chunk in chunks if not set(DICTIONARIES).isdisjoint(chunk.encodings)} - others
    longest = max((chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in others), default=0)  # what each text may be long
    return sorted(shared), max(min(ROWS_AT_ONCE, MAX_BATCH_BYTES // max(longest, 1)), 1)


def text_columns(path: Path, schema: Any) -> list[str]:
    """The columns to read of a table with this Arrow schema; ValueError where names, captions or hashes are there, and none as text."""
    from pyarrow import types

    text = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    kinds = dict(zip(schema.names, schema.types, strict=True))
    values = {name: kind.value_type if types.is_dictionary(kind) else kind for name, kind in kinds.items()}
    found: list[str] = []
    for columns in (NAME_COLUMNS, CAPTION_COLUMNS, ("sha256",)):
        there = [name for name in kinds if plain(name) in columns]
        readable = [name for name in there if any(is_kind(values[name]) for is_kind in text)]
        if there and not readable:
            told = ", ".join(f"{name} is {kinds[name]}" for name in there)
            raise ValueError(f"{path}: column {told}; needed text (string). Convert it, and write the table again")
        found += readable
    return found


def batch_rows(path: Path, batch: Any) -> list[dict[str, Any]]:
    """The rows of some text columns; ValueError names a column that is not UTF-8, or has a longer text than is read."""
    from pyarrow import compute, types

    rows: list[dict[str, Any]] = [{} for _ in range(batch.num_rows)]
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.dictionary if types.is_dictionary(column.type) else column
        longest = None if types.is_null(values.type) else compute.max(compute.binary_length(values)).as_py()
        if (longest or 0) > MAX_CELL_BYTES:
            raise ValueError(f"{path}: column {name} has a text of {longest} bytes; at most {MAX_CELL_BYTES} are read")
        try:
            cells = (column.dictionary_decode() if types.is_dictionary(column.type) else column).to_pylist()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: column {name} is not UTF-8 ({error}). Write the table again with its text in UTF-8") from error
        for row, cell in zip(rows, cells, strict=True):
            row[name] = cell
    return rows
