"""Arrays out of a pickle, without unpickling it: the published weights of the metric networks exist as pickles only.

A pickle is a program for a small stack machine, and one that can call anything. This reader is another machine for the same
programs: it knows dictionaries, tuples, numbers, text, bytes and the two calls that rebuild a numpy array, and refuses the
rest. It imports nothing that a file names and calls nothing that a file names, so there is nothing for a hostile file to run.
"""

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ARRAY_CALLS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
ALLOWED_NAMES = (*ARRAY_CALLS, "numpy.ndarray", "numpy.dtype")
DTYPES = ("f2", "f4", "f8", "i4", "i8")
MARK = object()


class PickledArraysError(ValueError):
    """A file that is not a plain tree of arrays; the message says what stands in it and where."""


@dataclass(frozen=True)
class Name:
    """A function or class that the file names: a word, never looked up."""

    path: str


@dataclass
class PendingDtype:
    """numpy.dtype(code), before and after its byte order is known."""

    code: str
    order: str = "<"


@dataclass
class PendingArray:
    """An array, before and after its bytes are known."""

    value: np.ndarray | None = None


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """A pickled dictionary of (dictionaries of) arrays, flat: {"params/Conv_0/kernel": array}. PickledArraysError for anything else."""
    arrays: dict[str, np.ndarray] = {}
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), _Machine().run(data))]
    while waiting:
        path, node = waiting.pop()
        if isinstance(node, PendingArray) and node.value is not None and path:
            arrays["/".join(path)] = node.value
        elif isinstance(node, dict) and id(node) not in seen:  # a dictionary inside itself, or in many places, is no tree
            seen.add(id(node))
            waiting.extend(((*path, key), value) for key, value in reversed(node.items()))
        else:
            raise PickledArraysError(f"{'/'.join(path) or 'the file'}: needed a tree of dictionaries and arrays, found {type(node).__name__}")
    return arrays


class _Machine:
    """Stack and memo of one file. Every operation it knows is in OPERATIONS."""

    def __init__(self):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        operation, position = "the start", 0
        try:
            for opcode, argument, position in pickletools.genops(io.BytesIO(data)):
                operation = opcode.name
                if operation == "STOP":
                    return self.stack.pop()
                if operation not in OPERATIONS:
                    raise PickledArraysError(f"byte {position}: operation {operation} has no place in a tree of arrays: refused")
                OPERATIONS[operation](self, argument)
        except PickledArraysError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise PickledArraysError(f"byte {position}, after {operation}: not a whole pickle of arrays ({error})") from error
        raise PickledArraysError("the file has no end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def remember(self, number: int | None) -> None:
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        start = max(index for index, value in enumerate(self.stack) if value is MARK)
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def pop_tuple(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise PickledArraysError(f"items of a {type(target).__name__}: only dictionaries have them: refused")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str):
                raise PickledArraysError(f"a key of type {type(key).__name__}: needed text: refused")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def name(self, path: str) -> None:
        if path not in ALLOWED_NAMES:
            raise PickledArraysError(f"the file asks for {path}: only the parts of a numpy array are allowed: refused, nothing was run")
        self.push(Name(path))

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(f"{module}.{name}")

    def call(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name):
            raise PickledArraysError(f"a call of {type(called).__name__}: refused")
        if called.path in ARRAY_CALLS and arguments[0] == Name("numpy.ndarray"):
            self.push(PendingArray())
        elif called.path == "numpy.dtype" and arguments[0] in DTYPES:
            self.push(PendingDtype(arguments[0]))
        else:
            raise PickledArraysError(f"a call of {called.path} that makes no array of numbers: refused")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, PendingDtype) and state[1] in ("<", ">"):
            target.order = state[1]
        elif isinstance(target, PendingArray):
            _, shape, dtype, fortran, content = state
            target.value = _array(shape, dtype, fortran, content)
        else:
            raise PickledArraysError(f"the state of a {type(target).__name__}: refused")


def _array(shape: tuple[int, ...], dtype: PendingDtype, fortran: bool, content: bytes) -> np.ndarray:
    kind = np.dtype(dtype.order + dtype.code)
    sizes = [size for size in shape if isinstance(size, int) and size >= 0]
    if not isinstance(content, bytes) or len(sizes) != len(shape) or math.prod(sizes) * kind.itemsize != len(content):
        raise PickledArraysError("an array whose bytes do not fill its shape: refused")
    return np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")


OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "MARK": lambda machine, argument: machine.push(MARK),
    "NONE": lambda machine, argument: machine.push(None),
    "NEWTRUE": lambda machine, argument: machine.push(True),
    "NEWFALSE": lambda machine, argument: machine.push(False),
    "EMPTY_DICT": lambda machine, argument: machine.push({}),
    "EMPTY_TUPLE": lambda machine, argument: machine.push(()),
    "TUPLE": lambda machine, argument: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, argument: machine.pop_tuple(1),
    "TUPLE2": lambda machine, argument: machine.pop_tuple(2),
    "TUPLE3": lambda machine, argument: machine.pop_tuple(3),
    "SETITEM": lambda machine, argument: machine.set_item(),
    "SETITEMS": lambda machine, argument: machine.set_items(machine.pop_to_mark()),
    "MEMOIZE": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "BINGET": lambda machine, argument: machine.push(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.push(machine.memo[argument]),
    "GLOBAL": lambda machine, argument: machine.name(argument.replace(" ", ".")),
    "STACK_GLOBAL": lambda machine, argument: machine.stack_name(),
    "REDUCE": lambda machine, argument: machine.call(),
    "BUILD": lambda machine, argument: machine.build(),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"), _Machine.push),
}
