"""The part file of a video that is still being made: an MP4 that plays up to its last piece, and that can be resumed.

    ftyp moov RECORD(label)   moof mdat RECORD(note)   moof mdat RECORD(note)   ...

A piece is a run of frames that can be decoded without the others, in movie fragments (ISO/IEC 14496-12, 8.8). Behind each
stands a record, a box of type `uuid` (11.1 there) that players pass over: how many frames, a note of the writer's, and a
checksum of it all. The file only grows, by one write a piece, so whatever ends it, it is whole up to some record; what
stands behind that is cut off by whoever goes on (a copy is kept where whole pieces may lie there). The first record is the
label: what this video is to become.
"""

import json
import os
import shutil
import struct
import warnings
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from phenaki.atomic import free_name
from phenaki.locks import open_alone

BUSY = "another run is writing this video; wait for it, or give another name"
RECORD = b"phenaki record 1"  # the 16 bytes that tell our `uuid` boxes from others
HEAD = struct.Struct(">I4s16sII")  # size of the box in bytes, "uuid", RECORD, checksum, frames of the piece
BOX = struct.Struct(">I4s")  # size, type
UNLABELLED = b"{}"  # the label's note of a video that cannot be resumed
MAX_BEGUN_BYTES = 1 << 16  # of a part file without a whole label that may be written over: a second or two of frames
MAX_NOTE_BYTES = 1 << 26  # of a label or a note
READ_BYTES = 1 << 20  # at once, of what is not kept


class PartFileError(ValueError):
    """A part file that cannot be written, or not be resumed; the message says why and what to do."""


class OtherPartError(PartFileError):
    """A part file that was to become something else: `problem` names it and says why, the message says what to do besides."""

    def __init__(self, problem: str, remedy: str = "Begin anew, with --anew"):
        super().__init__(f"{problem}. {remedy}")
        self.problem = problem


@dataclass(frozen=True)
class Entry:
    """A whole piece with its record. note_at, end: bytes from the start of the file."""

    num_frames: int
    note: bytes
    note_at: int
    end: int


def record(piece: bytes, num_frames: int, note: bytes) -> bytes:
    """The box that stands behind a piece. Its checksum is the CRC-32 of piece, number of frames and note."""
    if len(note) > MAX_NOTE_BYTES:
        raise PartFileError(f"a note of {len(note)} bytes: at most {MAX_NOTE_BYTES} are kept; tell the story in shorter files")
    return HEAD.pack(HEAD.size + len(note), b"uuid", RECORD, _checksum(zlib.crc32(piece), num_frames, note), num_frames) + note


def _checksum(of_piece: int, num_frames: int, note: bytes) -> int:
    return zlib.crc32(note, zlib.crc32(num_frames.to_bytes(4, "big"), of_piece))


def entries(file: BinaryIO) -> Iterator[Entry]:
    """The whole pieces of a file from its start; ends at the first that is cut short or damaged, whatever the bytes are.

    Of a piece a part at a time is in memory, of its record all.
    """
    size, at, of_piece = file.seek(0, os.SEEK_END), 0, 0
    while at + BOX.size <= size:
        file.seek(at)
        head = file.read(HEAD.size)
        length, _ = BOX.unpack(head[: BOX.size])
        if length < BOX.size or at + length > size:
            return
        if length < HEAD.size or head[4:24] != b"uuid" + RECORD:
            of_piece = _checksum_of_bytes(file, at, length, of_piece)
            at += length
            continue
        *_, checksum, num_frames = HEAD.unpack(head)
        if length > HEAD.size + MAX_NOTE_BYTES:
            return
        note = file.read(length - HEAD.size)
        at += length
        if checksum != _checksum(of_piece, num_frames, note):
            return
        yield Entry(num_frames, note, at - len(note), at)
        of_piece = 0


def has_record(file: BinaryIO, start: int) -> bool:
    """Whether a whole record stands anywhere from byte `start` on, whatever its checksum: behind a piece whose writing was cut short none does."""
    mark, size, at, before = b"uuid" + RECORD, file.seek(0, os.SEEK_END), start, b""
    while True:
        file.seek(at)
        if not (block := file.read(READ_BYTES)):
            return False
        seen, first = before + block, at - len(before)
        place = seen.find(mark)
        while place >= 0:
            if place >= 4 and first + place - 4 + int.from_bytes(seen[place - 4 : place], "big") <= size:
                return True
            place = seen.find(mark, place + 1)
        at, before = at + len(block), seen[-len(mark) - 4 :]


def _checksum_of_bytes(file: BinaryIO, at: int, length: int, before: int) -> int:
    """The CRC-32 of `length` bytes from `at` on, carried on from that of what stands before them."""
    file.seek(at)
    for start in range(0, length, READ_BYTES):
        before = zlib.crc32(file.read(min(READ_BYTES, length - start)), before)
    return before


def label_bytes(label: dict[str, Any]) -> bytes:
    """A label as it is written."""
    return json.dumps(label, ensure_ascii=False).encode()


class Notes(Sequence[bytes]):
    """The notes of a part file's pieces in order, read when they are asked for."""

    def __init__(self, file: BinaryIO):
        self.file, self.starts, self.lengths = file, array("Q"), array("I")

    def add(self, start: int, length: int) -> None:
        self.starts.append(start)
        self.lengths.append(length)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> bytes:
        self.file.seek(self.starts[index])
        return self.file.read(self.lengths[index])


class PartFile:
    """A part file, held by one writer at a time. `begin` or `go_on`, then `append`, then `close` or `discard`."""

    def __init__(self, path: Path):
        self.path, self.file = path, open_alone(path, f"{path}: {BUSY}")
        self.end, self.num_frames = 0, 0  # of what is whole

    def begin(self, start: bytes, label: dict[str, Any]) -> None:
        """Begins anew. start: the ftyp and moov that fit the pieces; label: JSON types."""
        self.file.truncate(0)
        self.end, self.num_frames = 0, 0
        self.append(start, 0, label_bytes(label))

    def go_on(self, start: bytes, label: dict[str, Any]) -> Notes:
        """Keeps the whole pieces, cuts off what stands behind them and returns their notes; begins anew where none is whole.

        Where records stand behind the last whole piece, the disk has lost something in the middle: a copy of the file as it was
        is kept beside it first, with a warning that says so.
        OtherPartError where the file was to become something else, or is damaged where that is said; it is then left as it is.
        """
        whole, notes = entries(self.file), Notes(self.file)
        first = next(whole, None)
        if first is None:
            if self.file.seek(0, os.SEEK_END) > max(MAX_BEGUN_BYTES, len(start) + len(record(start, 0, label_bytes(label)))):
                raise OtherPartError(f"{self.path}: its beginning is damaged", "Begin anew, with --anew")
            self.begin(start, label)
            return notes
        self._check(first, start, label)
        self.end = first.end
        for entry in whole:
            notes.add(entry.note_at, len(entry.note))
            self.end, self.num_frames = entry.end, self.num_frames + entry.num_frames
        if has_record(self.file, self.end):
            aside = free_name(self.path)
            shutil.copyfile(self.path, aside)
            warnings.warn(f"{self.path}: is damaged behind byte {self.end}, and made anew from there; as it was it is kept as {aside}", stacklevel=2)
        self.file.truncate(self.end)
        return notes

    def _check(self, first: Entry, start: bytes, label: dict[str, Any]) -> None:
        try:
            begun = json.loads(first.note)
        except (ValueError, RecursionError) as error:
            raise OtherPartError(f"{self.path}: its label cannot be read, this program did not write it") from error
        other = difference(begun, json.loads(json.dumps(label)))
        if other is not None:
            raise OtherPartError(f"{self.path}: was begun with {other}", "Give what it was begun with to go on, or begin anew, with --anew")
        self.file.seek(0)
        if self.file.read(first.note_at - HEAD.size) != start:
            raise OtherPartError(f"{self.path}: was begun by another version of the video encoder, or with another codec")

    def append(self, piece: bytes, num_frames: int, note: bytes = b"") -> None:
        """Adds a piece and its record, for every reader at once; OSError where they do not fit, and then no part of them stays.

        It is not synced: a kill loses nothing of it, a power failure what the system has not yet written.
        """
        data = memoryview(piece + record(piece, num_frames, note))
        try:
            self.file.seek(self.end)
            while data:
                data = data[self.file.write(data) :]
        except BaseException:
            self.file.truncate(self.end)
            raise
        self.end, self.num_frames = self.file.tell(), self.num_frames + num_frames

    def close(self) -> None:
        """Lets the file go; it stays as it is."""
        self.file.close()

    def discard(self) -> None:
        """Removes the file, then lets it go."""
        self.path.unlink(missing_ok=True)
        self.file.close()


def set_aside(part: Path, *, only_labelled: bool = False) -> Path | None:
    """Gives a part file in which frames lie another name beside it, the first free one of .story.part-1.mp4, -2 and so on; returns that.

    So it does with one whose beginning is damaged: frames may lie behind that. None where there is none, or no frame in it, or, with
    only_labelled, where it has an empty label, by which nobody goes on. BusyError where another run is writing it.
    """
    if not part.exists():
        return None
    with open_alone(part, f"{part}: {BUSY}") as file:
        whole = entries(file)
        label = next(whole, None)
        if label is None:
            holds = file.seek(0, os.SEEK_END) > MAX_BEGUN_BYTES
        else:
            holds = not (only_labelled and label.note == UNLABELLED) and any(entry.num_frames for entry in whole)
        if not holds:
            return None
        aside = free_name(part)
        os.rename(part, aside)
    return aside


def difference(one: Any, other: Any, name: str = "") -> str | None:
    """The first place where two values of JSON types differ, as "scenes[1].seconds = 3, not 4"; None where they are alike.

    None inside of them is a value that was left out.
    """
    if type(one) is type(other) and isinstance(one, (dict, list)):
        keys = dict.fromkeys([*one, *other]) if isinstance(one, dict) else range(max(len(one), len(other)))
        for key in keys:
            inside = f"{name}[{key}]" if isinstance(one, list) else f"{name}.{key}".lstrip(".")
            values = [value[key] if (key in value if isinstance(value, dict) else key < len(value)) else None for value in (one, other)]
            found = difference(*values, inside)
            if found is not None:
                return found
        return None
    if one == other:
        return None
    if one is None:
        return f"{name} left out, not {_shown(other)}"
    return f"{name} = {_shown(one)}, " + ("now left out" if other is None else f"not {_shown(other)}")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:56] + " ..."
