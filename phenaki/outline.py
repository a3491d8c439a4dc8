"""A network's outline: its modules, names and shapes, without memory for its weights and without the time to draw them."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Network = TypeVar("Network", bound=nn.Module)


def outline(build: Callable[[], Network]) -> Network:
    """The network that `build` makes, its weights on the device "meta"; to be loaded with `load_state_dict(..., assign=True)`."""
    with torch.device("meta"), _NothingDrawn():
        return build()


class _NothingDrawn(TorchFunctionMode):
    """Leaves out `torch.nn.init`: numbers that are nowhere need none drawn, and drawing them on "meta" imports torch's compiler for a second."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
