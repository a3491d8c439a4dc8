"""Tensors written piece by piece: the library reads them, damage is seen, and nothing is left half written."""

import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from phenaki import locks
from phenaki.data import tensor_file
from phenaki.data.tensor_file import Column, TensorFileError, read_metadata, read_tensors, save_tensors, write_tensors
from phenaki.locks import BusyError

TENSORS = {
    "bytes": torch.arange(7, dtype=torch.uint8),
    "halves": torch.randn(5, 3).half(),
    "ints": torch.arange(24, dtype=torch.int32).reshape(2, 3, 4),
    "longs": torch.tensor([-(2**40), 2**40]),
    "nothing": torch.empty(0, 4, dtype=torch.int32),
}


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {name: Column.of(one) for name, one in TENSORS.items()}, {"told": "a \u00e9"})
    return tmp_path / "a.safetensors"


def test_the_library_reads_what_is_written(path):
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(TENSORS) and file.metadata()["told"] == "a \u00e9"
        for name, value in TENSORS.items():
            read = file.get_tensor(name)
            assert torch.equal(read, value) and read.dtype == value.dtype and read.shape == value.shape
    assert {name: value.tolist() for name, value in read_tensors(path).items()} == {name: value.tolist() for name, value in TENSORS.items()}
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_pieces_come_to_the_same_file_as_the_whole(path):
    columns = {name: Column(value.dtype, tuple(value.shape), iter(value.split(2))) for name, value in TENSORS.items()}
    write_tensors(path.with_name("b.safetensors"), columns, {"told": "a \u00e9"})
    assert path.with_name("b.safetensors").read_bytes() == path.read_bytes()


def test_every_flipped_bit_and_every_cut_is_seen(path):
    whole, rng = path.read_bytes(), random.Random(0)
    harmed = path.with_name("harmed.safetensors")
    for _ in range(200):
        place = rng.randrange(len(whole))
        harmed.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        with pytest.raises(TensorFileError, match=r"harmed\.safetensors"):
            read_tensors(harmed)
    for length in [0, 1, 7, 8, 9, *(rng.randrange(len(whole)) for _ in range(50)), len(whole) - 1]:
        harmed.write_bytes(whole[:length])
        with pytest.raises(TensorFileError, match=r"harmed\.safetensors: damaged or cut short"):
            read_tensors(harmed)


def test_metadata_is_read_of_any_safetensors_file_and_of_nothing_else(path, tmp_path):
    assert read_metadata(path)["told"] == "a \u00e9"
    path.write_bytes(path.read_bytes()[:-9])
    assert read_metadata(path)["told"] == "a \u00e9", "also of one that is cut short"
    save_file({"x": torch.ones(2)}, tmp_path / "plain.safetensors")
    assert read_metadata(tmp_path / "plain.safetensors") == {}
    deep = b"[" * 200_000
    for content in (b"", b"hello", b"\xff" * 40, len(deep).to_bytes(8, "little") + deep, (2).to_bytes(8, "little") + b"[]"):
        (tmp_path / "other").write_bytes(content)
        assert read_metadata(tmp_path / "other") is None
    assert read_metadata(tmp_path / "missing") is None


def test_a_file_of_another_writer_has_no_hash(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(TensorFileError, match="SHA-256"):
        read_tensors(tmp_path / "plain.safetensors")


def test_a_file_that_lies_about_its_tensors_is_refused_though_its_hash_is_right(path):
    """Offsets that point outside it, as a hostile file may have them."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["ints"]["data_offsets"] = [0, 10**9]
    header["__metadata__"].pop("sha256")
    entries = {name: value for name, value in header.items() if name != "__metadata__"}
    path.write_bytes(tensor_file._header(entries, header["__metadata__"], "0" * 64) + raw[8 + length :])
    digest = tensor_file._digest(path, "0" * 64)
    path.write_bytes(tensor_file._header(entries, header["__metadata__"], digest) + raw[8 + length :])
    with pytest.raises(TensorFileError, match="not a whole safetensors file"):
        read_tensors(path)


def test_what_such_a_file_does_not_hold_is_named(path):
    with pytest.raises(ValueError, match=r"steps is torch\.complex64; needed BOOL, U8"):
        save_tensors(path, {"steps": torch.zeros(2, dtype=torch.complex64)}, {})
    assert "steps" not in read_tensors(path), "the file before is there"


def test_tensors_of_all_kinds_come_back(path):
    tensors = {"a": torch.tensor([True, False]), "b": torch.arange(3, dtype=torch.int16), "c": torch.tensor(7)}
    tensors["d"] = torch.ones(2, 2, requires_grad=True)
    save_tensors(path, tensors, {"of": "a test"})
    assert all(torch.equal(value, tensors[name]) and value.dtype == tensors[name].dtype for name, value in read_tensors(path).items())
    assert read_metadata(path)["of"] == "a test" and list(path.parent.iterdir()) == [path]


def test_a_write_broken_off_leaves_the_old_file(path):
    whole = path.read_bytes()

    def breaking():
        yield torch.ones(1, dtype=torch.int32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, {"x": Column(torch.int32, (2,), breaking())}, {})
    assert path.read_bytes() == whole


@pytest.mark.skipif(locks.fcntl is None, reason="there are no locks here")
def test_two_writers_of_one_file_do_not_mix(path):
    """The second comes while the first is half way; what a kill has left of the part file is no hindrance."""
    path.with_name(".a.safetensors.part").write_bytes(b"left" * 1000)

    def pieces():
        yield torch.ones(1, dtype=torch.int32)
        with pytest.raises(BusyError, match=r"a\.safetensors: another process is writing this file; wait for it"):
            save_tensors(path, {"x": torch.zeros(5)}, {})
        yield torch.ones(1, dtype=torch.int32)

    write_tensors(path, {"x": Column(torch.int32, (2,), pieces())}, {})
    assert read_tensors(path)["x"].tolist() == [1, 1] and list(path.parent.iterdir()) == [path]
