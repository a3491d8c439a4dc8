"""The referee: says of every frame of a video who is seen, where, when, in what weather and how it moves.

It judges the generator's videos, so it shares nothing with it: a small network of its own, trained on rendered truth
(`tools/train_referee.py`). Two trunks: what stands still is seen in one frame alone, motion in a window of nine; by a referee that attends
(`RefereeConfig`) everything with the seven frames before and after.
The first label of every attribute is "": nobody, nothing, or nothing that can be recognised. So an empty or a garbled
picture has an answer, and need not be judged right by luck.
"""

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from phenaki.atomic import sha256
from phenaki.checkpoint import first_not_finite
from phenaki.config import build, check_range
from phenaki.data.tensor_file import save_tensors
from phenaki.data.world import WorldConfig
from phenaki.outline import outline

ATTRIBUTES = ("actor", "place", "time", "weather", "motion", "companion", "object")
SIZE = 64  # pixels a side that the networks see; other videos are resized
MOTION_REACH = 4  # frames before and after the judged one that motion is seen in
FRAME_REACH = 7  # frames before and after for every attribute of a referee that attends; in others all but motion is seen in one frame
SHIPPED = Path(__file__).parent / "referees"  # a file of weights for each world
HASHES = {  # SHA-256 of the shipped files
    "small": "8ebfc2ab28f758d3935ba9019e75086cca0e745131d5f1d91370c8e1f15e7092",
    "wide": "05cb1eea8c57b2f2e2ae2e1452d478919a22012342b7cd0d16fa43ff9326a3dd",
}


class RefereeError(ValueError):
    """Weights of a referee that are not there or not what they should be; the message says what to do."""


@dataclass(frozen=True)
class RefereeConfig:
    """What a referee is made of. The defaults are those of the first referees, whose files name no config."""

    attends: bool = False  # each attribute looks at places of its own, in several frames; False: at the mean and maximum over a frame
    width: int = 32  # channels of the trunk of frames after its first layer
    motion_width: int = 16  # channels of the trunk of motion after its first layer

    def __post_init__(self):
        check_range(self, "width", "motion_width", at_least=1)


WIDER = RefereeConfig(attends=True, width=48, motion_width=24)  # for worlds with a large cast and with company


def labels_of(config: WorldConfig) -> dict[str, tuple[str, ...]]:
    """What can be told apart in a world: attribute -> names, each once, "" first. Attributes with no choice are left out."""
    choices = {
        "actor": config.actors,
        "place": config.places,
        "time": config.times,
        "weather": config.weathers,
        "motion": config.motions,
        "companion": config.actors if config.companion_prob else (),
        "object": config.objects,
    }
    names = {name: tuple(dict.fromkeys(of_attribute)) for name, of_attribute in choices.items()}
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

    def __init__(self, width: int = 32):
        super().__init__()
        widths = (3, *(width * depth for depth in (1, 2, 3, 4)))
        self.dim = 2 * widths[-1]
        layers: list[nn.Module] = []
        for depth, (before, after) in enumerate(pairwise(widths)):
            kernel_size = 5 if depth == 0 else 3
            layers.append(normed(nn.Conv2d(before, after, kernel_size, stride=2, padding=kernel_size // 2, bias=False)))
            if depth:
                layers.append(Residual(after))
        self.layers = nn.Sequential(*layers)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (n 3 64 64) -> (n d): the mean and the largest of 4x4 places."""
        x = self.layers(frames)  # (n d/2 4 4)
        return torch.cat([reduce(x, "n c h w -> n c", "mean"), reduce(x, "n c h w -> n c", "max")], dim=1)


class MotionTrunk(nn.Module):
    """A window of 2 * MOTION_REACH + 1 frames around each -> what moves in it.

    Each frame comes with its change: what stands still is zero there.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        self.dim = 12 * width
        self.layers = nn.Sequential(
            normed(nn.Conv3d(6, width, (1, 5, 5), stride=(1, 2, 2), padding=(0, 2, 2), bias=False)),
            normed(nn.Conv3d(width, 2 * width, 3, stride=(1, 2, 2), padding=1, bias=False)),
            normed(nn.Conv3d(2 * width, 4 * width, 3, stride=(1, 2, 2), padding=1, bias=False)),
            normed(nn.Conv3d(4 * width, self.dim // 2, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)),
        )
        self.over_time = nn.Conv1d(self.dim, self.dim, 3, padding=1)

    def forward(self, video: Tensor) -> Tensor:
        """video: (b 3 f 64 64) -> (b f d)."""
        x = self.layers(with_change(video))  # (b d/2 f 4 4)
        x = torch.cat([reduce(x, "b c f h w -> b c f", "mean"), reduce(x, "b c f h w -> b c f", "max")], dim=1)
        return rearrange(F.relu(self.over_time(x)), "b d f -> b f d")


def with_change(video: Tensor) -> Tensor:
    """(b 3 f h w) -> (b 6 f h w): each frame, and how it changes from the one before it to the one after it."""
    before, after = torch.cat([video[:, :, :1], video[:, :, :-1]], dim=2), torch.cat([video[:, :, 1:], video[:, :, -1:]], dim=2)
    return torch.cat([video, after - before], dim=1)


class Neighbours(nn.Module):
    """What is at a place in the frame before, the frame itself and the one after it, added to what came in."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = normed(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b c f h w)."""
        return x + self.body(x)


class AttentiveTrunk(nn.Module):
    """Each frame, with those up to FRAME_REACH away -> what is seen of each attribute, which looks at places of its own.

    One picture does not tell an actor from its companion: the one that moves is the actor. So frames come with their change,
    and what is at a place is seen over time. What is there is named alike for all attributes; they differ in where they look.
    """

    dim, num_heads = 256, 2

    def __init__(self, num_attributes: int, width: int):
        super().__init__()
        stages = (width, 2 * width, 10 * width // 3)
        layers = [normed(nn.Conv2d(6, width, 5, stride=2, padding=2, bias=False))]
        for before, after in pairwise(stages):
            layers += [normed(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)), Residual(after), Residual(after)]
        self.layers = nn.Sequential(*layers)
        self.neighbours = nn.Sequential(Neighbours(stages[-1]), Neighbours(stages[-1]))
        self.position = nn.Parameter(torch.zeros(stages[-1], 8, 8))
        self.looks = nn.Conv2d(stages[-1], num_attributes * self.num_heads, 1)
        self.named = nn.Linear(self.num_heads * stages[-1], self.dim)
        self.of_attribute = nn.Parameter(torch.zeros(num_attributes, self.dim))
        self.over_time = nn.Conv1d(num_attributes * self.dim, num_attributes * self.dim, 9, padding=4, groups=num_attributes * self.dim)

    def forward(self, video: Tensor) -> Tensor:
        """video: (b 3 f 64 64) -> (b f a d), a = attributes. Inside, n = b*f frames, k = num_heads looks of an attribute, p = 8x8 places."""
        b, f = video.shape[0], video.shape[2]
        x = self.layers(rearrange(with_change(video), "b c f h w -> (b f) c h w"))  # (n c h w), h = w = 8
        x = rearrange(self.neighbours(rearrange(x, "(b f) c h w -> b c f h w", b=b)), "b c f h w -> (b f) c h w")
        looks = rearrange(self.looks(x + self.position), "n (a k) h w -> n a k (h w)", k=self.num_heads).float().softmax(-1).to(x.dtype)
        seen = einsum(looks, rearrange(x, "n c h w -> n c (h w)"), "n a k p, n c p -> n a k c")
        seen = F.relu(self.named(rearrange(seen, "n a k c -> n a (k c)")) + self.of_attribute)
        over_time = self.over_time(rearrange(seen, "(b f) a d -> b (a d) f", b=b))
        return rearrange(seen, "(b f) a d -> b f a d", f=f) + rearrange(over_time, "b (a d) f -> b f a d", d=self.dim)


class Referee(nn.Module):
    """Says what is seen in each frame of a video.

    labels: attribute -> names in the order of the logits, "" first: of companion and object it means none, of the others
    nobody, or nothing that can be recognised.
    """

    def __init__(self, labels: dict[str, tuple[str, ...]], config: RefereeConfig = RefereeConfig()):
        super().__init__()
        self.labels, self.config = labels, config
        self.frame_trunk = AttentiveTrunk(len(labels), config.width) if config.attends else FrameTrunk(config.width)
        self.motion_trunk = MotionTrunk(config.motion_width)
        still, moving = self.frame_trunk.dim, self.motion_trunk.dim + config.attends * self.frame_trunk.dim
        dims = {name: moving if name == "motion" else still for name in labels}
        self.heads = nn.ModuleDict({name: nn.Linear(dims[name], len(labels[name])) for name in labels if self.head_of(name) == name})

    def head_of(self, name: str) -> str:
        """The attribute whose head judges this one: companions are judged by the actors' head, as there are few examples of them."""
        return "actor" if self.config.attends and name == "companion" and self.labels.get("actor") == self.labels[name] else name

    @classmethod
    def load(cls, world: str = "small", device: str | torch.device = "cpu") -> "Referee":
        """The referee that ships for a world, its SHA-256 checked, frozen. RefereeError where there is none."""
        if world not in HASHES:
            known = ", ".join(HASHES) or "none"
            raise RefereeError(f"world {world!r}: no referee ships for it (there is one for: {known}). Train one with tools/train_referee.py")
        return load_referee(SHIPPED / f"{world}.safetensors", HASHES[world]).to(device)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """video: (b 3 f h w) float in [-1, 1] -> logits (b f n) of each attribute."""
        return self.see(as_seen(video))

    def see(self, video: Tensor, frames: Tensor | slice = slice(None)) -> dict[str, Tensor]:
        """video: (b 3 f 64 64) -> logits: of motion in all frames (b f n), of other attributes in the k chosen `frames` (b k n)."""
        if self.config.attends:
            seen = dict(zip(self.labels, self.frame_trunk(video).unbind(2), strict=True))
            features = {name: seen[name][:, frames] for name in self.labels}
            if "motion" in self.labels:
                features["motion"] = torch.cat([self.motion_trunk(video), seen["motion"]], dim=-1)
            return {name: self.heads[self.head_of(name)](feature) for name, feature in features.items()}
        logits = self.see_frames(video[:, :, frames])
        if "motion" in self.labels:
            logits["motion"] = self.see_motion(video)
        return {name: logits[name] for name in self.labels}

    def see_frames(self, video: Tensor) -> dict[str, Tensor]:
        """Every attribute but motion, each frame by itself: video (b 3 f 64 64) -> logits (b f n)."""
        seen = rearrange(self.frame_trunk(rearrange(video, "b c f h w -> (b f) c h w")), "(b f) d -> b f d", b=video.shape[0])
        return {name: self.heads[name](seen) for name in self.labels if name != "motion"}

    def see_motion(self, video: Tensor) -> Tensor:
        """Motion, which is seen in several frames: video (b 3 f 64 64) -> logits (b f n)."""
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
    """The likeliest names of each attribute, by clip and frame, from the referee's logits (b f n). labels: those of the referee."""
    return {name: [[names[index] for index in clip] for clip in logits[name].argmax(-1).tolist()] for name, names in labels.items()}


def save_referee(referee: Referee, path: Path) -> str:
    """Writes a referee in half precision, whole or not at all; returns its SHA-256."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in referee.state_dict().items()}
    metadata = {"labels": json.dumps(referee.labels)}
    if referee.config != RefereeConfig():
        metadata["config"] = json.dumps(asdict(referee.config))
    save_tensors(path, state, metadata)
    return sha256(path)


def load_referee(path: Path, expected: str | None = None) -> Referee:
    """Reads what `save_referee` wrote; frozen, in eval mode. `expected`: the SHA-256 it must have. RefereeError otherwise."""
    if not path.is_file():
        raise RefereeError(f"{path}: no such file of a referee. Install phenaki again, or train one with tools/train_referee.py")
    if expected is not None and sha256(path) != expected:
        raise RefereeError(f"{path}: damaged or changed, its SHA-256 is not the shipped one. Install phenaki again")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            labels, config = _checked(json.loads(metadata["labels"])), build(RefereeConfig, json.loads(metadata.get("config", "{}")), str(path))
            weights = {name: file.get_tensor(name) for name in file.keys()}
        referee = outline(lambda: Referee(labels, config))  # memory is taken only for weights that are in the file, whatever sizes it states
        own = referee.state_dict()
        weights = {name: value.to(own[name].dtype, copy=True) if name in own else value for name, value in weights.items()}
        referee.load_state_dict(weights, assign=True)
        if wrong := first_not_finite(weights):
            raise ValueError(f"{wrong} holds NaN or infinite numbers")
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise RefereeError(f"{path}: not a referee ({error}). Write one with tools/train_referee.py") from error
    return referee.eval().requires_grad_(False)


def _checked(labels: Any) -> dict[str, tuple[str, ...]]:
    """The labels in a file, checked: by attribute a list of names, each once, "" first. ValueError otherwise."""
    if not isinstance(labels, dict) or not labels:
        raise ValueError("it names no attributes")
    for attribute, names in labels.items():
        are_names = isinstance(names, list) and names[:1] == [""] and all(isinstance(name, str) for name in names)
        if attribute not in ATTRIBUTES or not are_names or len(set(names)) < len(names):
            raise ValueError(f"attribute {attribute!r:.40}: needed one of {', '.join(ATTRIBUTES)}, and names, each once, the first one empty")
    return {attribute: tuple(names) for attribute, names in labels.items()}
