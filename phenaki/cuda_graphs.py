"""CUDA graphs: a network does hundreds of small things for a chunk; recorded once, a GPU does them again at one word from the host.

A small kernel is done sooner than the host has launched the next one, so without this a GPU waits for the host most of the time.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

MAX_RECORDINGS = 32  # of one network; the one that was not used for longest is forgotten
MAX_MET = 256  # kinds of inputs that are remembered because they came once

_LOCK = RLock()  # threads that tell stories come one after the other: a process can record one graph at a time


@dataclass
class Known:
    """What is known of a network: recordings by kind of inputs, kinds that came once, kinds that cannot be recorded; the latest used last."""

    recordings: OrderedDict = field(default_factory=OrderedDict)
    met: OrderedDict = field(default_factory=OrderedDict)
    refused: set = field(default_factory=set)


_KNOWN: WeakKeyDictionary = WeakKeyDictionary()  # network -> Known
_LIVING: dict[torch.device, WeakSet] = {}  # recordings that can be replayed, by device


def replayed(function: Callable[..., Any], network: nn.Module, *inputs: Any) -> Any:
    """function(network, *inputs). On a GPU it is recorded when inputs are alike for the second time, and replayed from then on: the same bits.

    inputs, and what is returned: tensors, plain values, and tuples, lists and dataclasses of these. Inputs are alike where tensors have
    the same shapes and plain values are equal; the function may depend on nothing else that changes, and never ask the GPU for a number.
    What is returned stays as it is when the next inputs come. Callers in several threads share the GPU's current stream.

    What is compiled in it (compiling.py) is made the first time, for nothing can be while a graph is recorded: so both times torch
    is in the same state, and the tensors lie alike.
    """
    tensors = list(tensors_in(inputs))
    if torch.is_grad_enabled() or not on_gpu(tensors):
        return function(network, *inputs)
    with _LOCK:
        known, key = _KNOWN.setdefault(network, Known()), kind_of(function, network, inputs)
        if key not in known.recordings and key in known.met and key not in known.refused:
            record(known, key, function, network, inputs)
        if key in known.recordings:
            known.recordings.move_to_end(key)
            return known.recordings[key](tensors)
        remember(known.met, key, True, MAX_MET)
        with uncached():
            return function(network, *copied(inputs))


def kind_of(function: Callable[..., Any], network: nn.Module, inputs: Any) -> Hashable:
    """What must be equal for a recording to do: the inputs' likeness, where the weights lie, and in what torch computes."""
    weights = hash(tuple(parameter.data_ptr() for parameter in network.parameters()))
    precision = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_inference_mode_enabled()
    return function, likeness(inputs), weights, precision


def record(known: Known, key: Hashable, function: Callable[..., Any], network: nn.Module, inputs: Any) -> None:
    """Adds a recording. Where there can be none a warning says so, once, but where memory is short it is tried again."""
    device = next(tensors_in(inputs)).device
    stream = torch.cuda.current_stream(device)
    try:
        remember(known.recordings, key, Recording(function, network, inputs), MAX_RECORDINGS)
    except RuntimeError as error:
        with torch.cuda.device(device):
            torch.cuda.set_stream(stream)  # which torch leaves where recording fails
        if not isinstance(error, torch.cuda.OutOfMemoryError):
            known.refused.add(key)
        warnings.warn(f"{function.__name__} is not recorded as a CUDA graph, which is slower: {error}", stacklevel=3)


def remember(kept: OrderedDict, key: Hashable, value: Any, most: int) -> None:
    """Adds an entry as the latest used, and forgets the ones that were not used for longest."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


class Recording:
    """What a function did to tensors that stay where they are, so that it can be done again with other numbers in them.

    All recordings of a device share a pool of memory: they are replayed one after the other, and what they return is copied. torch gives
    a pool up with the last graph in it, and records nothing more in it: where none lives there is a new one.
    """

    def __init__(self, function: Callable[..., Any], network: nn.Module, inputs: Any):
        inputs = copied(inputs)
        self.inputs, self.graph = list(tensors_in(inputs)), torch.cuda.CUDAGraph()
        device = self.inputs[0].device
        beside = next(iter(_LIVING.get(device, ())), None)  # held until this one is there, too, though its network be dropped meanwhile
        self.pool = torch.cuda.graph_pool_handle() if beside is None else beside.pool
        graph = torch.cuda.graph(self.graph, pool=self.pool, stream=recording_stream(device), capture_error_mode="thread_local")
        with uncached(), torch.cuda.device(device), graph:
            self.outputs = function(network, *inputs)
        _LIVING.setdefault(device, WeakSet()).add(self)

    def __call__(self, tensors: list[Tensor]) -> Any:
        torch._foreach_copy_(self.inputs, tensors)
        self.graph.replay()
        return copied(self.outputs)


def uncached() -> Any:
    """Autocast as it is, but what it casts is not kept: in a graph it would be done once and for all. Code is compiled for one or the other."""
    return torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False)


def copied(value: Any) -> Any:
    """`value` with each tensor cloned to contiguous memory: compiled code is specialised on strides."""
    return with_tensors(value, [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors_in(value)])


@lru_cache
def recording_stream(device: torch.device) -> Any:
    """The stream on which a device's graphs are recorded; torch's own is that of the first device that recorded any."""
    return torch.cuda.Stream(device)


def on_gpu(tensors: list[Tensor]) -> bool:
    """Whether all of them are on a GPU, and there are some."""
    return bool(tensors) and all(tensor.is_cuda for tensor in tensors)


def parts_of(value: Any) -> list[Any] | None:
    """What a tuple, a list or a dataclass is made of; None for anything else."""
    if isinstance(value, (tuple, list)):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, one.name) for one in fields(value)]
    return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    for part in parts_of(value) or ():
        yield from tensors_in(part)


def with_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """The value with others in place of its tensors, which are taken from the front of the list."""
    if isinstance(value, Tensor):
        return tensors.pop(0)
    parts = parts_of(value)
    if parts is None:
        return value
    made = [with_tensors(part, tensors) for part in parts]
    if is_dataclass(value):
        return replace(value, **dict(zip((one.name for one in fields(value)), made, strict=True)))
    return type(value)(made)


def likeness(value: Any) -> Hashable:
    """Equal for values that differ in the numbers of their tensors alone."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    parts = parts_of(value)
    return value if parts is None else (type(value), *map(likeness, parts))
