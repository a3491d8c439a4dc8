"""Where the weights of the metric networks lie, and how they are read: one safetensors file each, checked before use.

`phenaki metrics install` puts them there (install.py). The folder is PHENAKI_CACHE/metrics, by default ~/.cache/phenaki/metrics.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phenaki.atomic import fresh_part, open_to_others, put
from phenaki.cache import user_cache

# Of the tensors that the published weights turn into: see `fingerprint`.
FINGERPRINTS = {
    "lpips": "1c36467d94227275dc06864b690f308cde7aaf966ad40f489651fa9daabff9bb",
    "i3d": "c30c7ee36cda222f8f9bc17c6482903d942036784dc8a3ddb07a5d08d3ec2fed",
}


class MetricWeightsError(ValueError):
    """Weights of a metric network that are not there or not what they should be; the message says what to do."""


@dataclass(frozen=True)
class WeightsStatus:
    """One network's weights: where they belong, and "installed", "missing" or "damaged"."""

    name: str
    path: Path
    state: str


def weights_path(name: str) -> Path:
    """Where the weights of a network belong."""
    return user_cache() / "metrics" / f"{name}.safetensors"


def is_installed(name: str) -> bool:
    """Whether a file of weights is there; reading it checks it."""
    return weights_path(name).is_file()


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, the same whatever wrote the file that they came in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def read_weights(name: str) -> dict[str, Tensor]:
    """The tensors of an installed network, on the CPU. MetricWeightsError where they are missing or not the published ones."""
    path = weights_path(name)
    if not path.is_file():
        raise MetricWeightsError(f"{path}: the weights of {name} are not installed. Run `phenaki metrics install`")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MetricWeightsError(f"{path}: not a whole safetensors file ({error}). Run `phenaki metrics install` again") from error
    if fingerprint(tensors) != FINGERPRINTS[name]:
        raise MetricWeightsError(f"{path}: damaged or changed, not the published weights of {name}. Run `phenaki metrics install` again")
    return tensors


def write_weights(name: str, tensors: dict[str, Tensor]) -> Path:
    """Stores a network's weights, whole or not at all. MetricWeightsError where they are not the published ones."""
    if fingerprint(tensors) != FINGERPRINTS[name]:
        raise MetricWeightsError(f"{name}: converted to other weights than the published ones: nothing was stored")
    path = weights_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = fresh_part(path)
    try:
        save_file(tensors, part)
        open_to_others(part)
        put(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def weights_status(name: str) -> WeightsStatus:
    """Reads the file through to say whether it is what it should be."""
    if not is_installed(name):
        return WeightsStatus(name, weights_path(name), "missing")
    try:
        read_weights(name)
    except MetricWeightsError:
        return WeightsStatus(name, weights_path(name), "damaged")
    return WeightsStatus(name, weights_path(name), "installed")


def filled(network: nn.Module, name: str, device: str | torch.device) -> nn.Module:
    """The network with its installed weights, frozen, in eval mode, on `device`."""
    network.load_state_dict(read_weights(name))
    return network.eval().requires_grad_(False).to(device)
