"""The referee: says of every frame of a video who is seen, where, when, in what weather and how it moves.

It judges the generator's videos, so it shares nothing with it: a small network of its own, trained on rendered truth
(`tools/train_referee.py`). Two trunks: what stands still is seen in one frame alone, motion in a window of nine.
The first label of every attribute is "": nobody, nothing, or nothing that can be recognised. So an empty or a garbled
picture has an answer, and need not be judged right by luck.
"""

import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from phenaki.checkpoint import sha256
from phenaki.data.tensor_file import save_tensors
from phenaki.data.world import WorldConfig

ATTRIBUTES = ("actor", "place", "time", "weather", "motion", "companion", "object")
SIZE = 64  # pixels a side that the networks see; other videos are resized
MOTION_REACH = 4  # frames before and after the judged one that motion is seen in
SHIPPED = Path(__file__).parent / "referees"  # a file of weights for each world
HASHES = {  # SHA-256 of the shipped files
    "small": "8ebfc2ab28f758d3935ba9019e75086cca0e745131d5f1d91370c8e1f15e7092",
    "wide": "fba5948ce22602ecfca9abc4422afa6ee732431a72a8b630a2c375a9bc9db76a",
}


class RefereeError(ValueError):
    """Weights of a referee that are not there or not what they should be; the message says what to do."""


def labels_of(config: WorldConfig) -> dict[str, tuple[str, ...]]:
    """What can be told apart in a world: attribute -> names, each once, "" first. Attributes with no choice are left out."""
    drawn = {
        "actor": config.actors,
        "place": config.places,
        "time": config.times,
        "weather": config.weathers,
        "motion": config.motions,
        "companion": config.actors if config.companion_prob else (),
        "object": config.objects,
    }
    names = {name: tuple(dict.fromkeys(choices)) for name, choices in drawn.items()}
    optional = {"companion", "object"}  # here "" is a choice of the world itself
    return {name: ("", *names[name]) for name in ATTRIBUTES if len(names[name]) + (name in optional) > 1}


def normed(convolution: nn.Module) -> nn.Sequential:
    """A convolution without bias, BatchNorm, ReLU."""
    norm = nn.BatchNorm3d if isinstance(convolution, nn.Conv3d) else nn.BatchNorm2d
    return nn.Sequential(convolution, norm(convolution.out_channels), nn.ReLU())


class Residual(nn.Module):
    """A 3x3 convolution added to what came in."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = normed(nn.Conv2d(channels, channels, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """x: (n c h w)."""
        return x + self.body(x)


class FrameTrunk(nn.Module):
    """One frame -> what is seen in it."""

    dim = 256

    def __init__(self):
        super().__init__()
        widths = (3, 32, 64, 96, self.dim // 2)
        layers: list[nn.Module] = []
        for depth, (before, after) in enumerate(pairwise(widths)):
            side = 5 if depth == 0 else 3
            layers.append(normed(nn.Conv2d(before, after, side, stride=2, padding=side // 2, bias=False)))
            if depth:
                layers.append(Residual(after))
        self.layers = nn.Sequential(*layers)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (n 3 64 64) -> (n d): the mean and the largest of 4x4 places."""
        x = self.layers(frames)  # (n d/2 4 4)
        return torch.cat([reduce(x, "n c h w -> n c", "mean"), reduce(x, "n c h w -> n c", "max")], dim=1)


class MotionTrunk(nn.Module):
    """A window of 2 * MOTION_REACH + 1 frames around each -> what moves in it.

    Each frame comes with its change, from the frame before it to the one after it: what stands still is zero there.
    """

    dim = 192

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            normed(nn.Conv3d(6, 16, (1, 5, 5), stride=(1, 2, 2), padding=(0, 2, 2), bias=False)),
            normed(nn.Conv3d(16, 32, 3, stride=(1, 2, 2), padding=1, bias=False)),
            normed(nn.Conv3d(32, 64, 3, stride=(1, 2, 2), padding=1, bias=False)),
            normed(nn.Conv3d(64, self.dim // 2, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)),
        )
        self.over_time = nn.Conv1d(self.dim, self.dim, 3, padding=1)

    def forward(self, video: Tensor) -> Tensor:
        """video: (b 3 f 64 64) -> (b f d)."""
        before, after = torch.cat([video[:, :, :1], video[:, :, :-1]], dim=2), torch.cat([video[:, :, 1:], video[:, :, -1:]], dim=2)
        x = self.layers(torch.cat([video, after - before], dim=1))  # (b d/2 f 4 4)
        x = torch.cat([reduce(x, "b c f h w -> b c f", "mean"), reduce(x, "b c f h w -> b c f", "max")], dim=1)
        return rearrange(F.relu(self.over_time(x)), "b d f -> b f d")


class Referee(nn.Module):
    """Says what is seen in each frame of a video.

    labels: attribute -> names in the order of the logits, "" first: of companion and object it means none, of the others
    nobody, or nothing that can be recognised.
    """

    def __init__(self, labels: dict[str, tuple[str, ...]]):
        super().__init__()
        self.labels = labels
        self.frame_trunk, self.motion_trunk = FrameTrunk(), MotionTrunk()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(MotionTrunk.dim if name == "motion" else FrameTrunk.dim, len(names)) for name, names in labels.items()}
        )

    @classmethod
    def load(cls, world: str = "small", device: str | torch.device = "cpu") -> "Referee":
        """The referee that ships for a world, its SHA-256 checked, frozen. RefereeError where there is none."""
        if world not in HASHES:
            known = ", ".join(HASHES) or "none"
            raise RefereeError(f"world {world!r}: no referee ships for it (there is one for: {known}). Train one with tools/train_referee.py")
        return load_referee(SHIPPED / f"{world}.safetensors", HASHES[world]).to(device)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """video: (b 3 f h w) float in [-1, 1] -> logits (b f n) of each attribute."""
        video = as_seen(video)
        logits = self.see_frames(video)
        if "motion" in self.labels:
            logits["motion"] = self.see_motion(video)
        return {name: logits[name] for name in self.labels}

    def see_frames(self, video: Tensor) -> dict[str, Tensor]:
        """video: (b 3 f 64 64) -> logits (b f n) of all that one frame shows, each frame by itself."""
        seen = rearrange(self.frame_trunk(rearrange(video, "b c f h w -> (b f) c h w")), "(b f) d -> b f d", b=video.shape[0])
        return {name: self.heads[name](seen) for name in self.labels if name != "motion"}

    def see_motion(self, video: Tensor) -> Tensor:
        """video: (b 3 f 64 64) -> logits (b f n)."""
        return self.heads["motion"](self.motion_trunk(video))


def as_seen(video: Tensor) -> Tensor:
    """(b 3 f h w) -> (b 3 f 64 64), smoothed where it shrinks. ValueError for another shape or for integers."""
    if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < 1 or not video.is_floating_point():
        raise ValueError(f"video of shape {tuple(video.shape)}, {video.dtype}: the referee needs float (b 3 f h w) in [-1, 1], f at least 1")
    if video.shape[-2:] == (SIZE, SIZE):
        return video
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    frames = F.interpolate(frames, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return rearrange(frames, "(b f) c h w -> b c f h w", b=video.shape[0])


@torch.no_grad()
def judge(referee: Referee, video: Tensor) -> dict[str, list[list[str]]]:
    """The likeliest names of each attribute, by clip and frame; video as in `Referee.forward`."""
    return likeliest(referee.labels, referee(video))


def likeliest(labels: dict[str, tuple[str, ...]], logits: dict[str, Tensor]) -> dict[str, list[list[str]]]:
    """The same from the referee's logits (b f n)."""
    return {name: [[names[index] for index in clip] for clip in logits[name].argmax(-1).tolist()] for name, names in labels.items()}


def save_referee(referee: Referee, path: Path) -> str:
    """Writes a referee in half precision, whole or not at all; returns its SHA-256."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in referee.state_dict().items()}
    save_tensors(path, state, {"labels": json.dumps(referee.labels)})
    return sha256(path)


def load_referee(path: Path, expected: str | None = None) -> Referee:
    """Reads what `save_referee` wrote; frozen, in eval mode. `expected`: the SHA-256 it must have. RefereeError otherwise."""
    if not path.is_file():
        raise RefereeError(f"{path}: no such file of a referee. Install phenaki again, or train one with tools/train_referee.py")
    if expected is not None and sha256(path) != expected:
        raise RefereeError(f"{path}: damaged or changed, its SHA-256 is not the shipped one. Install phenaki again")
    try:
        with safe_open(path, framework="pt") as file:
            labels = json.loads((file.metadata() or {})["labels"])
            weights = {name: file.get_tensor(name) for name in file.keys()}
        referee = Referee({name: tuple(names) for name, names in labels.items()})
        referee.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in weights.items()})
    except (SafetensorError, KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise RefereeError(f"{path}: not a referee ({error}). Write one with tools/train_referee.py") from error
    return referee.eval().requires_grad_(False)
