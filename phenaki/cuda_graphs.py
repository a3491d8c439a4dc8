"""CUDA graphs: a network does hundreds of small things for a chunk; recorded once, a GPU does them again at one word from the host.

A small kernel is done sooner than the host has launched the next one, so without this a GPU waits for the host most of the time.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass, replace
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MAX_RECORDINGS = 32  # of one network; the one that was not used for longest is forgotten

_RECORDINGS: WeakKeyDictionary = WeakKeyDictionary()  # network -> what was recorded of it; None: met once, False: cannot be


def replayed(function: Callable[..., Any], network: nn.Module, *inputs: Any) -> Any:
    """function(network, *inputs). On a GPU it is recorded when inputs are alike for the second time, and replayed from then on: the same bits.

    inputs, and what is returned: tensors, plain values, and tuples, lists and dataclasses of these. Inputs are alike where tensors have
    the same shapes and plain values are equal; the function may depend on nothing else that changes, and never ask the GPU for a number.
    What is returned stays as it is when the next inputs come.
    """
    tensors = list(tensors_in(inputs))
    if torch.is_grad_enabled() or not on_gpu(tensors):
        return function(network, *inputs)
    known = _RECORDINGS.setdefault(network, OrderedDict())
    key = function, likeness(inputs), torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    if key not in known:
        known[key] = None
        return function(network, *inputs)
    known.move_to_end(key)
    while len(known) > MAX_RECORDINGS:
        known.popitem(last=False)
    if known[key] is None:
        known[key] = recorded(function, network, inputs)
    return known[key](tensors) if known[key] else function(network, *inputs)


def recorded(function: Callable[..., Any], network: nn.Module, inputs: Any) -> "Recording | bool":
    """What the function does, recorded; False, and a warning, where that cannot be, as where memory is short: then it is done each time."""
    try:
        return Recording(function, network, inputs)
    except RuntimeError as error:
        warnings.warn(f"{function.__name__} is not recorded as a CUDA graph, which is slower: {error}", stacklevel=3)
        return False


class Recording:
    """What a function did to tensors that stay where they are, so that it can be done again with other numbers in them."""

    def __init__(self, function: Callable[..., Any], network: nn.Module, inputs: Any):
        inputs = with_tensors(inputs, [tensor.clone() for tensor in tensors_in(inputs)])
        self.inputs, self.graph, self.lock = list(tensors_in(inputs)), torch.cuda.CUDAGraph(), Lock()
        uncached = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False)
        with uncached, torch.cuda.device(self.inputs[0].device), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = function(network, *inputs)

    def __call__(self, tensors: list[Tensor]) -> Any:
        with self.lock:  # threads that tell stories with one model come one after the other
            for own, given in zip(self.inputs, tensors, strict=True):
                own.copy_(given)
            self.graph.replay()
            return with_tensors(self.outputs, [tensor.clone() for tensor in tensors_in(self.outputs)])


def on_gpu(tensors: list[Tensor]) -> bool:
    """Whether all of them are on a GPU, and there are some."""
    return bool(tensors) and all(tensor.is_cuda for tensor in tensors)


def parts_of(value: Any) -> list[Any] | None:
    """What a tuple, a list or a dataclass is made of; None for anything else."""
    if isinstance(value, (tuple, list)):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
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
        return replace(value, **dict(zip((field.name for field in fields(value)), made, strict=True)))
    return type(value)(made)


def likeness(value: Any) -> Hashable:
    """Equal for values that differ in the numbers of their tensors alone."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    parts = parts_of(value)
    return value if parts is None else (type(value), *map(likeness, parts))
