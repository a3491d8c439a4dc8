"""Arrays come out of a pickle as they went in; anything else in it is refused and nothing is ever run."""

import os
import pickle
import struct

import numpy as np
import pytest

from phenaki.evaluation.pickled_arrays import PickledArraysError, read_arrays

TREE = {
    "params": {"Conv_0": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "bias": np.array([1.5, -2.0])}},
    "stats": {"mean": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)), "count": np.array(7), "empty": np.zeros((0, 3), np.float16)},
}


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_out_as_they_went_in(protocol):
    arrays = read_arrays(pickle.dumps(TREE, protocol=protocol))
    assert list(arrays) == ["params/Conv_0/kernel", "params/Conv_0/bias", "stats/mean", "stats/count", "stats/empty"]
    for path, array in arrays.items():
        node = TREE
        for part in path.split("/"):
            node = node[part]
        assert array.dtype == node.dtype and array.shape == node.shape
        np.testing.assert_array_equal(array, node)


def test_arrays_in_buffers_are_refused():
    """Protocol 5 rebuilds arrays by another call, which no carrier needs."""
    with pytest.raises(PickledArraysError, match="refused"):
        read_arrays(pickle.dumps(TREE["params"], protocol=5))


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments




def many_times(depth: int) -> dict:
    """A dictionary that holds itself twice, again and again: 2^depth paths."""
    tree: dict = {"array": np.zeros(2)}
    for _ in range(depth):
        tree = {"a": tree, "b": tree}
    return tree


def own_parent() -> dict:
    tree: dict = {}
    tree["self"] = tree
    return tree


HOSTILE = {
    "os.system": lambda marker: Call(os.system, f"touch {marker}"),
    "eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
    "open": lambda marker: Call(open, str(marker), "w"),
    "mkdir": lambda marker: Call(os.mkdir, str(marker)),
    "import": lambda marker: Call(__import__, "this"),
    "getattr": lambda marker: Call(getattr, "text", "upper"),
    "numpy's own file reader": lambda marker: Call(np.fromfile, str(marker)),
    "beside arrays": lambda marker: {"params": {"a": np.zeros(3), "b": Call(os.system, f"touch {marker}")}},
    "as an array's dtype": lambda marker: {"a": Call(np.dtype, Call(os.system, f"touch {marker}"))},
    "array of objects": lambda marker: {"a": np.array([Call(os.system, f"touch {marker}")], dtype=object)},
    "structured array": lambda marker: {"a": np.zeros(2, dtype=[("x", "f4")])},
    "list": lambda marker: [np.zeros(2)],
    "number": lambda marker: {"a": 3},
    "text": lambda marker: {"a": "text"},
    "number as a key": lambda marker: {3: np.zeros(2)},
    "inside itself": lambda marker: own_parent(),
    "a tree of 2^60 leaves": lambda marker: many_times(60),
    "an array alone": lambda marker: np.zeros(3),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(make, protocol, tmp_path):
    marker = tmp_path / "ran"
    data = pickle.dumps(make(marker), protocol=protocol)
    with pytest.raises(PickledArraysError):
        read_arrays(data)
    assert not marker.exists()


def test_the_hostile_pickles_do_harm_where_they_are_unpickled(tmp_path):
    """Without this, the test above could pass with pickles that are harmless anyway."""
    pickle.loads(pickle.dumps(HOSTILE["beside arrays"](tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_the_message_names_what_was_asked_for(tmp_path):
    with pytest.raises(PickledArraysError, match=r"asks for posix\.system.*nothing was run"):
        read_arrays(pickle.dumps(Call(os.system, "true")))


@pytest.mark.parametrize(
    "text", [b"cos\nsystem\n(S'true'\ntR.", b"(ios\nsystem\nS'true'\n.", b"Pwhat.", b"\x80\x04\x82\x01.", b"N0.", b"", b".", b"\x80"]
)
def test_hand_written_operations_are_refused(text):
    with pytest.raises(PickledArraysError):
        read_arrays(text)


def test_bytes_must_fill_the_shape():
    data = pickle.dumps({"a": np.zeros(1234, np.float32)}, protocol=4)
    claimed, more = struct.pack("<H", 1234), struct.pack("<H", 4321)
    assert data.count(claimed) == 1
    with pytest.raises(PickledArraysError, match="do not fill"):
        read_arrays(data.replace(claimed, more))


def test_cut_or_flipped_files_are_refused_or_read_as_arrays():
    data = pickle.dumps({"params": {"kernel": np.arange(40, dtype=np.float32)}}, protocol=4)
    for length in range(len(data)):
        with pytest.raises(PickledArraysError):
            read_arrays(data[:length])
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            try:
                arrays = read_arrays(bytes(flipped))
            except PickledArraysError:
                continue
            assert all(isinstance(array, np.ndarray) and array.dtype.kind in "fi" for array in arrays.values())


def test_depth_does_not_matter():
    """Made by hand, as pickle's own writer stops at Python's recursion limit."""
    inner = pickle.dumps(np.zeros(2), protocol=4)[:-1]
    inner = inner[11:] if inner[2:3] == b"\x95" else inner[2:]  # without protocol and frame
    data = b"\x80\x04" + b"}\x8c\x01a" * 5000 + inner + b"s" * 5000 + b"."
    assert list(read_arrays(data)) == ["/".join("a" * 5000)]
