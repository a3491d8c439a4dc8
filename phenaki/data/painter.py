"""Paints batches of frames: places as a camera sees them, sprites on top of them, weather over all.

The contents of frames are numpy arrays on the host with one entry for each frame, painted by a few large operations on the device:
there is no loop over frames, and the host waits for no result.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from phenaki.data.art import LOOP_FRAMES, Art
from phenaki.data.cast import HALF_TINTED
from phenaki.data.poses import CameraTrack, Track
from phenaki.devices import sent

NUM_PARTICLES = 20  # in a weather layer

# Tint of a time of day: RGB factors for the place, and for the actor (paler, so that it stays recognisable).
TINTS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "day": ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "sunset": ((1.0, 0.68, 0.48), (1.0, 0.86, 0.76)),
    "night": ((0.30, 0.34, 0.58), (0.66, 0.70, 0.90)),
    "dawn": ((0.92, 0.78, 0.90), (0.97, 0.90, 0.97)),
}
# Pixels a frame (x, y) at size 64 that a weather layer moves.
WEATHER_SPEEDS = {"clear": (0, 0), "rain": (-1, 6), "snow": (0, 2), "leaves": (-2, 1)}


def place_tint(time: str, place: str) -> tuple[float, ...]:
    """RGB factors of a place at a time of day; those of HALF_TINTED change half as much."""
    tint = TINTS[time][0]
    return tuple((1 + factor) / 2 for factor in tint) if place in HALF_TINTED else tint


def unique_rows(*columns: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The distinct rows of some columns (n,), as columns, and for each entry the number of its row: what looks alike is painted once."""
    rows, inverse = np.unique(np.stack([column.astype(np.float64) for column in columns], axis=1), axis=0, return_inverse=True)
    return list(rows.T), inverse.reshape(-1)


@dataclass(frozen=True)
class Sprites:
    """One layer of sprites, (n,) each: the frame that it is in, its actor and animation phase, where it is, and its tint (n 3)."""

    frames: np.ndarray
    actors: np.ndarray
    phases: np.ndarray
    track: Track
    tints: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "Sprites":
        return Sprites(self.frames[chosen], self.actors[chosen], self.phases[chosen], self.track[chosen], self.tints[chosen])


class Painter:
    """Paints frames of `size` pixels a side with the pictures of some art, which are resized once."""

    def __init__(self, art: Art, size: int, actor_size: float, device: torch.device):
        self.size, self.actor_size, self.device = size, actor_size, device
        sprite_size = round(actor_size * size)
        actors = self._resized(art.actors.flatten(0, 1), sprite_size, sprite_size)
        self.actors = rearrange(actors, "(n f) c h w -> n f c h w", f=LOOP_FRAMES)  # premultiplied, [0, 1]
        place_width = round(size * art.places.shape[-1] / art.places.shape[-2])
        self.places = self._resized(art.places, size, place_width)  # (m 3 size place_width)
        self.weather_names, self.weathers = self._weather_layers(art)  # (k 4 size size)
        # Middles of the pixels in [-1, 1], as `F.affine_grid` has them: the same arithmetic, so the same bits.
        self.axis = torch.linspace(-1, 1, size, device=device) * (size - 1) / size

    def _resized(self, pictures: Tensor, height: int, width: int) -> Tensor:
        pictures = pictures.to(self.device, torch.float32) / 255
        return F.interpolate(pictures, size=(height, width), mode="bilinear", antialias=True, align_corners=False)

    def _weather_layers(self, art: Art) -> tuple[list[str], Tensor]:
        """Names of weathers, and for each a seamless premultiplied RGBA layer with particles strewn over it (k 4 size size)."""
        size = self.size
        small = self._resized(art.particles, max(size // 10, 3), max(size // 10, 3))
        layers = [torch.zeros(4, size, size, device=self.device)]
        rng = random.Random("weather")
        for particle in small:
            layer = torch.zeros(4, size, size, device=self.device)
            corner = F.pad(particle, (0, size - particle.shape[2], 0, size - particle.shape[1]))
            for _ in range(NUM_PARTICLES):
                moved = corner.roll((rng.randrange(size), rng.randrange(size)), dims=(1, 2))
                layer = moved + layer * (1 - moved[3:])
            layers.append(layer)
        return ["clear", *art.particle_names], torch.stack(layers)

    def _on_device(self, values: np.ndarray, dtype: torch.dtype) -> Tensor:
        return sent(torch.from_numpy(np.ascontiguousarray(values)).to(dtype), self.device)

    def paint_places(self, places: np.ndarray, camera: CameraTrack, tints: np.ndarray) -> Tensor:
        """places (n,), tints (n 3) -> (n 3 size size) in [0, 1]: each view once, then copied to the frames that have it."""
        (index, pan, zoom, *tint), view = unique_rows(places, camera.pan, camera.zoom, *tints.T)
        width, size = self.places.shape[-1], self.size
        shift = 2 * pan * size / width  # in halves of the place's width
        if (width - size) % 2:
            shift = shift + 1 / width  # whole pixels, so that a still camera copies them
        across = self._on_device(zoom * size / width, torch.float32)[:, None] * self.axis + self._on_device(shift, torch.float32)[:, None]
        down = self._on_device(zoom, torch.float32)[:, None] * self.axis
        grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), dim=-1)
        pictures = self.places[self._on_device(index, torch.int64)]
        views = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        views *= self._on_device(np.stack(tint, axis=1), torch.float32)[:, :, None, None]
        return views.index_select(0, self._on_device(view, torch.int64))

    def paint_sprites(self, pictures: Tensor, sprites: Sprites) -> None:
        """Paints a layer of sprites over frames (n 3 size size), in place. Only the boxes around the sprites are computed."""
        track = sprites.track
        reach = self.actor_size * track.scale / 2 * (np.abs(np.cos(track.angle)) + np.abs(np.sin(track.angle)))
        large = reach > self.actor_size / 2 + 1e-6  # turned or grown: a box of their own size, so that the others keep a small one
        for group in (~large, large):
            if group.any():
                self._paint_boxes(pictures, sprites[group], reach[group])

    def _paint_boxes(self, pictures: Tensor, sprites: Sprites, reach: np.ndarray) -> None:
        side = min(self.size, math.ceil(2 * reach.max() * self.size) + 3)
        top, left = (np.floor((middle - reach) * self.size - 1).clip(0, self.size - side) for middle in (sprites.track.y, sprites.track.x))
        offsets = torch.arange(side, device=self.device)
        rows, columns = (self._on_device(start, torch.int64)[:, None] + offsets for start in (top, left))
        grid = self._sprite_grid(sprites.track, self.axis[rows], self.axis[columns])
        pixels = self.actors.flatten(0, 1).index_select(0, self._on_device(sprites.actors * LOOP_FRAMES + sprites.phases, torch.int64))
        layer = F.grid_sample(pixels, grid, padding_mode="zeros", align_corners=False)  # (n 4 side side)
        colours = layer[:, :3] * self._on_device(sprites.tints, torch.float32)[:, :, None, None]
        planes = 3 * self._on_device(sprites.frames, torch.int64)[:, None] + torch.arange(3, device=self.device)
        where, flat = self._pixels_of(planes, rows, columns).flatten(), pictures.view(-1)
        flat.scatter_(0, where, (colours + flat.gather(0, where).view_as(colours) * (1 - layer[:, 3:])).flatten())

    def _pixels_of(self, planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Indices (n c h w) into flattened pictures, of the pixels in planes (n c), rows (n h) and columns (n w).

        One index a pixel is several times faster than an index for each axis.
        """
        return (planes * self.size**2)[:, :, None, None] + (rows[:, :, None] * self.size + columns[:, None, :])[:, None]

    def _sprite_grid(self, track: Track, down: Tensor, across: Tensor) -> Tensor:
        """Sprite coordinates (n h w 2) of picture coordinates down (n h) and across (n w), all in [-1, 1]."""
        half = self.actor_size * track.scale
        cos, sin = np.cos(track.angle) / half, np.sin(track.angle) / half
        x, y = 2 * track.x - 1, 2 * track.y - 1
        sign = np.where(track.flip, -1.0, 1.0)
        rows = ((sign * cos, sign * sin, -sign * (cos * x + sin * y)), (-sin, cos, sin * x - cos * y))
        factors = self._on_device(np.array(rows).transpose(2, 0, 1), torch.float32)[..., None, None]  # (n 2 3 1 1)
        terms = factors[:, :, 0] * across[:, None, None, :] + factors[:, :, 1] * down[:, None, :, None] + factors[:, :, 2]
        return rearrange(terms, "n xy h w -> n h w xy")

    def paint_weather(self, pictures: Tensor, weathers: np.ndarray, frame_numbers: np.ndarray) -> None:
        """Paints moving layers over the frames (n 3 size size) whose weather is not clear, in place."""
        frames = np.flatnonzero(weathers)
        if not len(frames):
            return
        speeds = np.array([WEATHER_SPEEDS[name] for name in self.weather_names])[weathers[frames]]
        shifts = np.round(speeds * frame_numbers[frames, None] * self.size / 64) % self.size
        (kind, right, down), view = unique_rows(weathers[frames], *shifts.T)
        axis = torch.arange(self.size, device=self.device)
        rows, columns = (((axis - self._on_device(shift, torch.int64)[:, None]) % self.size) for shift in (down, right))
        planes = 4 * self._on_device(kind, torch.int64)[:, None] + torch.arange(4, device=self.device)
        where = self._pixels_of(planes, rows, columns)
        layers = self.weathers.view(-1).gather(0, where.flatten()).view(where.shape)  # (k 4 size size)
        layer, chosen = layers.index_select(0, self._on_device(view, torch.int64)), self._on_device(frames, torch.int64)
        pictures.index_copy_(0, chosen, layer[:, :3] + pictures.index_select(0, chosen) * (1 - layer[:, 3:]))
