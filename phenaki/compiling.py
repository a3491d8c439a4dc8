"""torch.compile for the layers of a network: what is between their matrix products becomes a few kernels in place of dozens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

MOST_OF_A_KIND = 64  # that torch makes of one method before it runs the rest as it is: eight are soon there, with two networks in a process

LAYER_METHODS = ("forward", "forward_context", "text_keys_values", "over_space", "over_time")  # through which the networks call their layers


def layers_of(module: nn.Module, name: str = "layers", kind: type = nn.ModuleList) -> list[nn.Module]:
    """The layers of every stack of layers inside; or what other stacks hold that are of this kind and have a name with this end."""
    return [layer for own, stack in module.named_modules() if own.endswith(name) and isinstance(stack, kind) for layer in stack]


def methods_of(layer: nn.Module) -> list[str]:
    """Names of the methods through which the networks call a layer."""
    return [name for name in LAYER_METHODS if hasattr(type(layer), name) and getattr(type(layer), name) is not getattr(nn.Module, name, None)]


def compile_layers(model: nn.Module, dynamic: bool | None = None) -> None:
    """Each kind of layer or block of convolutions is compiled; those of its kind share what was made: once for the first shape, once for all others.

    What is between the layers is run as it is. Whole steps would be compiled anew for every length of a caption. dynamic: True for networks
    that meet many shapes: made for all of them from the start.
    """
    for layer in [*layers_of(model), *layers_of(model, "blocks", nn.Sequential)]:
        for method in methods_of(layer):
            made = torch.compile(getattr(type(layer), method), dynamic=dynamic)
            setattr(layer, method, partial(called, made, layer))  # a deep copy of it has the copy's layer


def called(made: Callable[..., Any], layer: nn.Module, *inputs: Any, **named: Any) -> Any:
    """Calls a layer's compiled method, after raising the limit of recompilations, which newer versions of torch have for each thread."""
    limits = torch._dynamo.config
    if limits.cache_size_limit < MOST_OF_A_KIND:
        limits.cache_size_limit = MOST_OF_A_KIND
    return made(layer, *inputs, **named)


def check_compiler(device: torch.device) -> None:
    """ValueError where torch cannot compile for a device, tried on something small."""
    needed = "a C compiler (gcc) and Triton" if device.type == "cuda" else "a C++ compiler (g++)"
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of many kinds: no compiler, no Triton, a Python that is too new
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"compile: torch cannot compile for {device.type} here ({reason}); install {needed}, or leave compile out") from error
