"""The part file: whole up to some record wherever it is cut or damaged, one writer at a time, and it says what it was begun with."""

import errno
import os
import random
import struct
import tracemalloc
import warnings

import pytest

from phenaki.locks import BusyError, open_alone
from phenaki.part_file import HEAD, PartFile, PartFileError, difference, entries, record

START, LABEL = b"\0\0\0\x0cftypisom", {"scenes": [{"prompt": "a bear", "seconds": 4}], "seed": 7}
PIECES = [(b"\0\0\0\x10moof" + bytes([n] * 8) + b"\0\0\0\x09mdat" + bytes([n]), n, bytes([n] * 5 * n)) for n in range(6)]


@pytest.fixture
def path(tmp_path):
    """A part file of six pieces; the first has no frames and no note."""
    part = PartFile(tmp_path / "part.mp4")
    part.begin(START, LABEL)
    for piece, num_frames, note in PIECES:
        part.append(piece, num_frames, note)
    part.close()
    return part.path


def ends(path) -> list[int]:
    with open(path, "rb") as file:
        return [entry.end for entry in entries(file)]


def gone_on(path):
    """What a run that goes on finds: frames and notes; the file lies cut to that."""
    part = PartFile(path)
    notes = list(part.go_on(START, LABEL))
    found = part.num_frames, notes, part.end
    part.close()
    assert found[2] == path.stat().st_size
    return found


def test_what_was_appended_is_found_again(path):
    assert gone_on(path) == (15, [note for _, _, note in PIECES], path.stat().st_size)
    whole = path.read_bytes()
    assert whole.startswith(START) and all(piece + record(piece, *rest) in whole for piece, *rest in PIECES)


def test_going_on_gives_the_bytes_of_a_run_that_was_not_stopped(path):
    whole, cuts = path.read_bytes(), ends(path)
    for done, end in enumerate(cuts):
        path.write_bytes(whole[:end])
        part = PartFile(path)
        assert len(part.go_on(START, LABEL)) == done
        for piece, num_frames, note in PIECES[done:]:
            part.append(piece, num_frames, note)
        part.close()
        assert path.read_bytes() == whole


def test_a_file_cut_at_any_byte_is_whole_up_to_a_record(path):
    whole, cuts = path.read_bytes(), ends(path)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with warnings.catch_warnings(action="error"):  # nothing was lost that was whole
            frames, notes, end = gone_on(path)
        kept = [cut for cut in cuts if cut <= size]
        assert end == (kept[-1] if kept else cuts[0])  # not even a label: begun anew
        assert notes == [note for _, _, note in PIECES[: max(len(kept) - 1, 0)]] and frames == sum(range(len(notes)))


def test_any_damaged_byte_drops_its_piece_and_what_follows(path):
    whole, cuts, draw, aside = path.read_bytes(), ends(path), random.Random(0), path.with_name("part-1.mp4")
    for at in range(cuts[0], len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as told:
            assert gone_on(path)[2] == max(cut for cut in cuts if cut <= at)
        for warning in told:
            assert f"made anew from there; as it was it is kept as {aside}" in str(warning.message)
        assert aside.exists() == bool(told) and (told or at >= cuts[-2]), "only of the last piece alone nothing need be kept"
        if told:
            assert aside.read_bytes() == damaged
            aside.unlink()


def test_bytes_that_are_no_part_file_are_begun_anew(tmp_path):
    path, draw = tmp_path / "part.mp4", random.Random(0)
    strange = [b"", b"\0" * 100, b"\xff" * 100, b"no video at all", struct.pack(">I4s", 8, b"free") * 5, HEAD.pack(8, b"uuid", b"x" * 16, 0, 0)]
    for data in [*strange, *(draw.randbytes(200) for _ in range(50))]:
        path.write_bytes(data)
        assert gone_on(path)[:2] == (0, [])
        assert len(ends(path)) == 1


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ({**LABEL, "seed": 8}, "seed = 7, not 8"),
        ({**LABEL, "fps": 8.0}, "fps left out, not 8.0"),
        ({"seed": 7}, "scenes = "),
        ({**LABEL, "scenes": [{"prompt": "a panda", "seconds": 4}]}, r'scenes\[0\]\.prompt = "a bear", not "a panda"'),
        ({**LABEL, "scenes": [*LABEL["scenes"], {"prompt": "a panda"}]}, r"scenes\[1\] left out, not "),
    ],
)
def test_another_label_is_refused_and_nothing_is_touched(path, label, words):
    path.write_bytes(path.read_bytes() + b"the rest of a piece")
    before, part = path.read_bytes(), PartFile(path)
    with pytest.raises(PartFileError, match=f"was begun with {words}"):
        part.go_on(START, label)
    part.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("label", [b"no json", b"\xff", b"[" * 100_000, b'{"seed": 7}'])
def test_a_label_that_cannot_be_read_is_refused(tmp_path, label):
    path = tmp_path / "part.mp4"
    path.write_bytes(START + record(START, 0, label))
    part = PartFile(path)
    with pytest.raises(PartFileError, match=r"its label cannot be read|was begun with"):
        part.go_on(START, LABEL)
    part.close()


def test_a_large_piece_is_not_held_in_memory(tmp_path):
    """A box of 128 MiB of nothing (the file has holes): read, and found to have no record."""
    path = tmp_path / "part.mp4"
    path.write_bytes(START + record(START, 0, b"{}"))
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(struct.pack(">I4s", 1 << 27, b"mdat"))
        file.truncate(file.tell() + (1 << 27))
    tracemalloc.start()
    assert len(ends(path)) == 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()


def test_a_note_has_bounds(path, monkeypatch):
    monkeypatch.setattr("phenaki.part_file.MAX_NOTE_BYTES", 20)
    with pytest.raises(PartFileError, match="a note of 21 bytes: at most 20"):
        record(b"", 0, bytes(21))
    assert len(ends(path)) == 0  # its label is longer than that


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "part.mp4").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="is a link"):
        PartFile(tmp_path / "part.mp4")
    assert (tmp_path / "precious").read_text() == "kept"


def test_another_encoder_is_refused(path):
    part = PartFile(path)
    with pytest.raises(PartFileError, match="another version of the video encoder"):
        part.go_on(START[:-1] + b"2", LABEL)


def test_differences():
    assert difference({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2}]}) is None
    assert difference({"a": None}, {}) is None
    assert difference({"a": [1]}, {"a": {"0": 1}}) == 'a = [1], not {"0": 1}'
    assert len(difference("x" * 500, "y" * 500)) < 140


def test_one_writer_at_a_time(path):
    first = PartFile(path)
    before = path.read_bytes()
    with pytest.raises(BusyError, match="another run is writing this video"):
        PartFile(path)
    assert path.read_bytes() == before
    first.close()
    PartFile(path).close()


def test_a_file_that_was_removed_before_it_was_locked_is_not_written_to(path, monkeypatch):
    """The run before ends between our opening and our locking."""
    real, opened = os.open, []

    def opening(*arguments):
        handle = real(*arguments)
        if not opened:
            path.unlink()
        opened.append(handle)
        return handle

    monkeypatch.setattr(os, "open", opening)
    with open_alone(path, "") as file:
        assert len(opened) == 2 and os.fstat(file.fileno()).st_ino == path.stat().st_ino


def test_nothing_of_a_piece_stays_where_the_disk_is_full(path, monkeypatch):
    part = PartFile(path)
    part.go_on(START, LABEL)
    before, real = path.read_bytes(), part.file

    class Full:
        """A file that takes ten bytes more."""

        def __getattr__(self, name):
            return getattr(real, name)

        def write(self, data):
            if real.tell() > len(before):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real.write(data[:10])

    part.file = Full()
    with pytest.raises(OSError, match="No space left"):
        part.append(*PIECES[1])
    assert path.read_bytes() == before and part.num_frames == 15
    part.file = real
    part.append(*PIECES[1])
    part.close()
    assert gone_on(path)[0] == 16
