"""Large tensors in a safetensors file that is written piece by piece, whole or not at all, and checked by its own hash.

The library's writer wants every tensor as one piece in memory; here a column may come in pieces, from files say. The format
(https://github.com/huggingface/safetensors): 8 bytes of header length, little endian; a JSON header of dtypes, shapes and
offsets, and of metadata; the tensors' bytes. The metadata holds "sha256": of the whole file with this hash written as zeros.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from phenaki.atomic import put
from phenaki.locks import open_alone

DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.float16: "F16", torch.float32: "F32",
}  # fmt: skip
NO_HASH = "0" * 64
MAX_HEADER_BYTES = 100_000_000  # as the library has it


class TensorFileError(ValueError):
    """A file that is damaged, cut short or of another kind; the message names it."""


@dataclass(frozen=True)
class Column:
    """A tensor to be written: its pieces, one after the other along the first axis, come to `shape`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "Column":
        """A tensor as one piece."""
        return cls(tensor.dtype, tuple(tensor.shape), [tensor])

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_tensors(path: Path, columns: dict[str, Column], metadata: dict[str, str]) -> None:
    """Writes the file, a piece in memory at a time.

    ValueError for dtypes other than DTYPES; BusyError where another process is writing it.
    """
    for name, column in columns.items():
        if column.dtype not in DTYPES:
            raise ValueError(f"{path}: {name} is {column.dtype}; needed {', '.join(DTYPES.values())}")
    entries, offset = {}, 0
    columns = dict(sorted(columns.items(), key=lambda item: -item[1].dtype.itemsize))  # so that each tensor is aligned
    for name, column in columns.items():
        entries[name] = {"dtype": DTYPES[column.dtype], "shape": column.shape, "data_offsets": (offset, offset + column.num_bytes)}
        offset += column.num_bytes
    part = path.with_name(f".{path.name}.part")  # always the same: what a kill leaves may be large, and is written over
    with open_alone(part, f"{path}: another process is writing this file; wait for it, or give another name") as file:
        try:
            file.truncate(0)
            _write(file, columns, entries, metadata)
            put(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise


def _write(file: FileIO, columns: dict[str, Column], entries: dict[str, Any], metadata: dict[str, str]) -> None:
    digest, buffered = hashlib.sha256(_header(entries, metadata, NO_HASH)), BufferedWriter(file)
    buffered.write(_header(entries, metadata, NO_HASH))
    for name, column in columns.items():
        written = 0
        for piece in column.pieces:
            assert piece.dtype == column.dtype, name
            values = piece.contiguous().numpy()
            buffered.write(values)
            digest.update(values)
            written += values.nbytes
        assert written == column.num_bytes, f"{name}: {written} bytes of {column.num_bytes}"
    buffered.seek(0)
    buffered.write(_header(entries, metadata, digest.hexdigest()))
    buffered.detach()  # which flushes it, and leaves the file to who holds it


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors already in memory (see `write_tensors`)."""
    write_tensors(path, {name: Column.of(tensor.detach().cpu()) for name, tensor in tensors.items()}, metadata)


def _header(entries: dict, metadata: dict[str, str], digest: str) -> bytes:
    text = json.dumps({"__metadata__": {**metadata, "sha256": digest}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_metadata(path: Path) -> dict[str, str] | None:
    """The metadata of a safetensors file, also of one that is cut short; None where it is something else."""
    try:
        with open(path, "rb") as file:
            header = json.loads(_header_text(file))
            return dict(header.get("__metadata__", {}))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _header_text(file: BinaryIO) -> bytes:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise ValueError("not a safetensors file")
    return file.read(length)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file of `write_tensors`, after checking its hash. TensorFileError says what is wrong."""
    digest = (read_metadata(path) or {}).get("sha256")
    if not isinstance(digest, str) or not digest.isascii() or _digest(path, digest) != digest:
        raise TensorFileError(f"{path}: damaged or cut short, its SHA-256 is not the one written in it")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, RuntimeError, OverflowError, TypeError) as error:  # the last three of torch, for a shape or dtype that it has not
        raise TensorFileError(f"{path}: not a whole safetensors file ({error})") from error


def _digest(path: Path, written: str) -> str:
    with open(path, "rb") as file:
        text = _header_text(file)
        digest = hashlib.sha256(len(text).to_bytes(8, "little") + text.replace(written.encode(), NO_HASH.encode(), 1))
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
