"""The pictures of the storybook world: actors, places and weather particles, from an atlas file or drawn by code.

The real art (Microsoft's animated Fluent Emoji, MIT; Superpowers asset packs, CC0) is not part of this repository:
`tools/pack_storybook.py` packs it into one safetensors file that `load_atlas` reads. `draw_art` needs no file.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor

LOOP_FRAMES = 24  # frames of every actor's own animation
BACKGROUND_HEIGHT, BACKGROUND_WIDTH = 89, 137  # pixels, as in the asset packs
SIDE, MAX_ART_SIDE = -1, 1024  # in a shape: stands for any number of pixels, one and the same in the whole shape; the largest allowed
# Of one picture of each kind.
SHAPES = {
    "actors": (LOOP_FRAMES, 4, SIDE, SIDE),
    "places": (3, BACKGROUND_HEIGHT, BACKGROUND_WIDTH),
    "particles": (4, SIDE, SIDE),
}


@dataclass(frozen=True)
class Art:
    """Pictures, premultiplied by alpha, uint8.

    actors: (n, 24, 4, s, s) RGBA; places: (m, 3, 89, 137) RGB; particles: (k, 4, s, s) RGBA.
    """

    actor_names: tuple[str, ...]
    actors: Tensor
    place_names: tuple[str, ...]
    places: Tensor
    particle_names: tuple[str, ...]
    particles: Tensor

    def hash(self) -> str:
        """SHA-256 of the pictures and of their names and shapes."""
        digest = hashlib.sha256()
        for names, pictures in ((self.actor_names, self.actors), (self.place_names, self.places), (self.particle_names, self.particles)):
            digest.update(json.dumps([names, pictures.shape]).encode())
            digest.update(pictures.contiguous().numpy())
        return digest.hexdigest()

    def require(self, actors: tuple[str, ...], places: tuple[str, ...], weathers: tuple[str, ...] = ()) -> None:
        """Raises ValueError for a name that has no picture; a clear sky needs none."""
        particles = tuple(weather for weather in weathers if weather != "clear")
        asked = (("actor", actors, self.actor_names), ("place", places, self.place_names), ("weather", particles, self.particle_names))
        for kind, wanted, known in asked:
            missing = [name for name in wanted if name not in known]
            if missing:
                raise ValueError(f"the art has no {kind} {missing}: it has {', '.join(known) or 'none'}")


def load_atlas(path: str | Path) -> Art:
    """Reads an atlas written by `tools/pack_storybook.py`."""
    path = Path(path)

    def refused(why: object) -> ValueError:
        return ValueError(f"{path}: not a storybook atlas ({why}). Pack one with tools/pack_storybook.py")

    if not path.is_file():
        raise ValueError(f"{path}: no such atlas file. Pack one with `python tools/pack_storybook.py ART -o {path}`")
    try:
        with safe_open(path, framework="pt") as file:
            names = json.loads((file.metadata() or {})["names"])
            named = {key: tuple(names[key]) for key in SHAPES}
            pictures = {key: file.get_tensor(key) for key in SHAPES}
    except Exception as error:  # safetensors raises its own type for each kind of damage
        raise refused(error) from error
    for key, shape in SHAPES.items():
        own, found = named[key], pictures[key]
        if not all(isinstance(name, str) for name in own) or len(set(own)) < len(own):
            raise refused("names given twice, or that are none")
        if found.dtype != torch.uint8 or len(found) != len(own) or not _fits(found.shape[1:], shape):
            needed = str(("n", *shape)).replace(f"{SIDE}", "s").replace("'", "")
            raise refused(f"{len(own)} names for pictures {found.dtype} {tuple(found.shape)}; needed uint8 {needed}, s at most {MAX_ART_SIDE}")
    return Art(named["actors"], pictures["actors"], named["places"], pictures["places"], named["particles"], pictures["particles"])


def _fits(found: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a picture's shape is `shape`, with one number from 1 to MAX_ART_SIDE in place of SIDE."""
    sides = {one for one, wanted in zip(found, shape, strict=False) if wanted == SIDE}
    alike = len(found) == len(shape) and all(wanted in (one, SIDE) for one, wanted in zip(found, shape, strict=True))
    return alike and len(sides) <= 1 and all(1 <= side <= MAX_ART_SIDE for side in sides)


def draw_art(actors: tuple[str, ...], places: tuple[str, ...], size: int = 32) -> Art:
    """Art drawn by code: an actor is a coloured shape that nods, a place is a sky over a striped ground.

    size: pixels a side of a sprite. Every name has its own colours, chosen by its index, so scenes can be told apart.
    """
    particles = torch.stack([_disc(size, radius=0.3, colour=torch.tensor(colour)) for colour in ((0.5, 0.6, 1.0), (1.0, 1.0, 1.0), (0.8, 0.5, 0.1))])
    return Art(
        actor_names=actors,
        actors=torch.stack([_draw_actor(index, len(actors), size) for index in range(len(actors))]),
        place_names=places,
        places=torch.stack([_draw_place(index, len(places)) for index in range(len(places))]),
        particle_names=("rain", "snow", "leaves"),
        particles=particles,
    )


def _hue(fraction: float) -> Tensor:
    """A saturated RGB colour in [0, 1] for a hue in [0, 1)."""
    offsets = torch.tensor([0.0, 1 / 3, 2 / 3])
    return 0.5 + 0.5 * torch.cos(2 * torch.pi * (fraction + offsets))


def _disc(size: int, radius: float, colour: Tensor, corners: int = 0, angle: float = 0.0) -> Tensor:
    """A premultiplied RGBA shape (4, s, s) uint8: a disc, or a rounded polygon with that many corners."""
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    theta = torch.atan2(y, x) + angle
    reach = radius * (1 + (0.25 * torch.cos(corners * theta) if corners else 0.0))
    alpha = ((reach - (x**2 + y**2).sqrt()) * size / 4).clamp(0, 1)
    return (torch.cat([colour[:, None, None] * alpha, alpha[None]]) * 255).round().to(torch.uint8)


def _draw_actor(index: int, count: int, size: int) -> Tensor:
    colour = _hue(index / count)
    nods = [0.3 * torch.sin(torch.tensor(2 * torch.pi * frame / LOOP_FRAMES)).item() for frame in range(LOOP_FRAMES)]
    return torch.stack([_disc(size, 0.75, colour, corners=index % 5 + 2, angle=nod) for nod in nods])


def _draw_place(index: int, count: int) -> Tensor:
    sky, ground = 0.5 + 0.5 * _hue(index / count + 0.5), 0.6 * _hue(index / count + 0.1)
    rows = torch.arange(BACKGROUND_HEIGHT)[:, None]
    columns = torch.arange(BACKGROUND_WIDTH)[None]
    is_ground = (rows > BACKGROUND_HEIGHT * 0.65).expand(-1, BACKGROUND_WIDTH)
    stripes = 1.0 - 0.15 * ((columns // (4 + 2 * index) + rows // 8) % 2)
    picture = torch.where(is_ground[..., None], ground * stripes[..., None], sky.expand(BACKGROUND_HEIGHT, BACKGROUND_WIDTH, 3))
    return rearrange((picture * 255).round().to(torch.uint8), "h w c -> c h w")
