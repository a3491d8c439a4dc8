"""The storybook world: stories drawn on the fly whose every attribute is known exactly.

A story is a list of scenes; a scene = place x time of day x weather x actor (maybe with a companion) x motion x camera.
From scene to scene some attributes change and the rest stay; the actor goes on from where it was.
`StorybookWorld.story(seed, index)` draws the truth of story `index`, `render` paints a batch of them on any device.
Speeds are whole pixels a frame at size 64, so that equal scenes give equal pixels.
"""

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from phenaki.data.art import LOOP_FRAMES, Art, draw_art, load_atlas
from phenaki.data.captions import PHRASES, attribute_phrases, caption, held_out_of, is_held_out

GROUND = 44 / 64  # height of an actor's middle, as a share of the picture's height from its top
NUM_PARTICLES = 20  # in a weather layer
TOLD_BATCH = 16  # stories painted at once when many are tokenised

# Tint of a time of day: RGB factors for the place, and for the actor (paler, so that it stays recognisable).
TINTS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "day": ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "sunset": ((1.0, 0.68, 0.48), (1.0, 0.86, 0.76)),
    "night": ((0.30, 0.34, 0.58), (0.66, 0.70, 0.90)),
    "dawn": ((0.92, 0.78, 0.90), (0.97, 0.90, 0.97)),
}
# Pixels a frame (x, y) at size 64 that a weather layer moves.
WEATHER_SPEEDS = {"clear": (0, 0), "rain": (-1, 6), "snow": (0, 2), "leaves": (-2, 1)}


@dataclass(frozen=True)
class WorldConfig:
    """What there is in a world, and how large and fast it is drawn."""

    actors: tuple[str, ...]
    places: tuple[str, ...]
    times: tuple[str, ...] = ("day", "sunset", "night")
    weathers: tuple[str, ...] = ("clear",)
    motions: tuple[str, ...] = ("stands", "walks left", "walks right", "hops")
    cameras: tuple[str, ...] = ("still",)
    companion_prob: float = 0.0  # chance that a second actor stands in a scene
    size: int = 64  # pixels a side
    fps: float = 8.0
    actor_size: float = 0.5  # side of a sprite as a share of the picture
    start_step: int = 1  # pixels at size 64 between the places where an actor may start; more = fewer ways to look, learnt sooner
    change_prob: float = 0.5  # chance that an attribute changes from one scene to the next
    omit_prob: float = 0.3  # chance that a caption leaves out an attribute that did not change


SMALL_WORLD = WorldConfig(
    actors=("teddy bear", "panda", "astronaut", "t rex", "penguin", "octopus", "fox", "unicorn"),
    places=("beach", "desert", "snowy forest", "city", "underwater", "meadow"),
    actor_size=0.625,
    start_step=4,
)
FULL_WORLD = replace(
    SMALL_WORLD,
    actor_size=0.5,
    start_step=1,
    times=("day", "sunset", "night", "dawn"),
    weathers=("clear", "rain", "snow", "leaves"),
    motions=(
        "stands", "walks left", "walks right", "hops", "runs left", "runs right", "flies up", "falls", "spins", "grows", "shrinks", "circles",
    ),
    cameras=("still", "pan", "zoom"),
    companion_prob=0.2,
)
WORLDS = {"small": SMALL_WORLD, "full": FULL_WORLD}


@dataclass(frozen=True)
class SceneTruth:
    """Everything that is seen in one scene; `caption` is what the generator is told of it."""

    actor: str
    place: str
    time: str
    weather: str
    motion: str
    camera: str
    companion: str  # "" = none
    num_frames: int
    caption: str = ""
    told: tuple[str, ...] = field(default=(), repr=False)  # the attributes that the caption names
    told_in_held_out_words: tuple[str, ...] = field(default=(), repr=False)  # those of them whose words training does not show


@dataclass(frozen=True)
class StoryTruth:
    """Scenes, and where the first one starts: the actor's middle in [0, 1), its baseline, its animation phase."""

    scenes: tuple[SceneTruth, ...]
    start_x: float
    baseline: float
    phase: int

    @property
    def num_frames(self) -> int:
        return sum(scene.num_frames for scene in self.scenes)


@dataclass(frozen=True)
class Pose:
    """An actor in one frame. x, y: its middle in shares of the picture; angle in radians; flip: mirrored."""

    x: float
    y: float
    scale: float = 1.0
    angle: float = 0.0
    flip: bool = False


def pose(motion: str, seconds: float, x: float, baseline: float) -> Pose:
    """The pose `seconds` into a scene that began with the actor at `x`; walkers leave on one side and return on the other."""
    walked = 0.125 * seconds  # 1 pixel a frame at size 64 and 8 fps
    if motion in ("walks left", "runs left"):
        return Pose(_wrap(x - walked * (2 if motion.startswith("runs") else 1)), baseline)
    if motion in ("walks right", "runs right"):
        return Pose(_wrap(x + walked * (2 if motion.startswith("runs") else 1)), baseline, flip=True)
    if motion == "hops":
        return Pose(x, baseline - round(8 * abs(math.sin(math.pi * seconds))) / 32)
    if motion == "flies up":
        return Pose(x, _wrap(baseline - 0.25 * seconds))
    if motion == "falls":
        return Pose(x, _wrap(baseline + 0.25 * seconds))
    if motion == "spins":
        return Pose(x, baseline, angle=math.pi * seconds)
    if motion == "grows":
        return Pose(x, baseline, scale=min(1.0 + 0.2 * seconds, 1.8))
    if motion == "shrinks":
        return Pose(x, baseline, scale=max(1.0 - 0.15 * seconds, 0.4))
    if motion == "circles":
        return Pose(x + 0.12 * math.sin(math.pi * seconds), baseline - 0.12 * (1 - math.cos(math.pi * seconds)))
    return Pose(x, baseline)


def _wrap(position: float, margin: float = 0.25) -> float:
    """Positions run from -margin to 1 + margin and start over."""
    return (position + margin) % (1 + 2 * margin) - margin


class StorybookWorld:
    """Draws stories of `config` with the pictures of `art` on `device`."""

    def __init__(self, config: WorldConfig, art: Art, device: str | torch.device = "cpu"):
        art.require(config.actors, config.places)
        self.config, self.device = config, torch.device(device)
        art_hash = hashlib.sha256(art.actors.numpy().tobytes() + art.places.numpy().tobytes()).hexdigest()
        self.fingerprint = f"storybook {art_hash[:16]} {config}"
        sprite_size = round(config.actor_size * config.size)
        self.actors = self._resized(art.actors.flatten(0, 1), sprite_size, sprite_size)  # (n*24 4 s s), [0, 1]
        self.actors = rearrange(self.actors, "(n f) c h w -> n f c h w", f=LOOP_FRAMES)
        self.actor_index = {name: i for i, name in enumerate(art.actor_names)}
        place_width = round(config.size * art.places.shape[-1] / art.places.shape[-2])
        self.places = self._resized(art.places, config.size, place_width)  # (m 3 size place_width)
        self.place_index = {name: i for i, name in enumerate(art.place_names)}
        self.weathers = self._weather_layers(art)

    def _resized(self, pictures: Tensor, height: int, width: int) -> Tensor:
        pictures = pictures.to(self.device, torch.float32) / 255
        return F.interpolate(pictures, size=(height, width), mode="bilinear", antialias=True, align_corners=False)

    def _weather_layers(self, art: Art) -> dict[str, Tensor]:
        """A seamless premultiplied RGBA layer (4 size size) for each weather, with particles strewn over it."""
        size = self.config.size
        small = self._resized(art.particles, max(size // 12, 3), max(size // 12, 3))
        layers = {"clear": torch.zeros(4, size, size, device=self.device)}
        rng = random.Random("weather")
        for name, particle in zip(art.particle_names, small, strict=True):
            layer = torch.zeros(4, size, size, device=self.device)
            corner = F.pad(particle, (0, size - particle.shape[2], 0, size - particle.shape[1]))
            for _ in range(NUM_PARTICLES):
                moved = corner.roll((rng.randrange(size), rng.randrange(size)), dims=(1, 2))
                layer = moved + layer * (1 - moved[3:])
            layers[name] = layer
        return layers

    def story(
        self, seed: int, index: int, num_frames: int, *, held_out: bool = False, held_out_words: bool | None = None,
        lengths: Sequence[int] | None = None, max_scenes: int = 4, align: int = 1,
    ) -> StoryTruth:  # fmt: skip
        """Story `index` of the endless list that `seed` names. Scenes change at frames 1 + align*k, or have the frames of `lengths`.

        Training stories (held_out=False) have no held-out (actor, place) or (actor, motion) pair and no held-out phrasing;
        with held_out=True every scene has a held-out pair where the cast has one, and held-out words where there are any.
        held_out_words, where given, decides about the words alone: with True every scene has held-out words.
        """
        rng = random.Random(f"storybook {seed} {index}")
        lengths = lengths or self._lengths(rng, num_frames, max_scenes, align)
        scenes: list[SceneTruth] = []
        for length in lengths:
            scenes.append(self._scene(rng, scenes[-1] if scenes else None, length, held_out, held_out_words))
        return StoryTruth(tuple(scenes), *self._start(rng, scenes[0]))

    def started_anew(self, story: StoryTruth, seed: int) -> StoryTruth:
        """The same scenes from another start: what else a script may come to."""
        return StoryTruth(story.scenes, *self._start(random.Random(f"start {seed}"), story.scenes[0]))

    def _lengths(self, rng: random.Random, num_frames: int, max_scenes: int, align: int) -> list[int]:
        boundaries = range(1, num_frames, align)
        cuts = sorted(rng.sample(boundaries, min(rng.randint(1, max_scenes) - 1, len(boundaries))))
        return [end - start for start, end in zip([0, *cuts], [*cuts, num_frames], strict=True)]

    def _start(self, rng: random.Random, scene: SceneTruth) -> tuple[float, float, int]:
        """Where a story starts that begins with this scene: the actor's middle, its baseline, its animation phase."""
        leftmost, rightmost = {"left": (32, 56), "right": (8, 32)}.get(scene.motion.split()[-1], (16, 48))  # walkers have room ahead
        start_x = rng.randrange(leftmost, rightmost + 1, self.config.start_step) / 64
        return start_x, GROUND - rng.choice((0, 4, 8)) / 64, rng.randrange(0, LOOP_FRAMES, 2)

    def _scene(
        self, rng: random.Random, previous: SceneTruth | None, num_frames: int, held_out: bool, held_out_words: bool | None = None
    ) -> SceneTruth:
        for _ in range(1000):
            scene = self._draw(rng, previous, num_frames)
            paired = is_held_out(scene.actor, scene.place) or is_held_out(scene.actor, scene.motion)
            worded = any(held_out_of(attribute_phrases(name, getattr(scene, name))) for name in ("actor", "motion"))  # told in every scene
            if paired == held_out and (worded or not held_out_words):
                break
        keeps = {name: previous is not None and getattr(previous, name) == getattr(scene, name) for name in ("place", "time")}
        silent = {name for name, kept in keeps.items() if kept and rng.random() < self.config.omit_prob}
        if previous is None and scene.time == "day" and rng.random() < 0.5:
            silent.add("time")  # a first scene that names no time is by day
        unusual = held_out if held_out_words is None else held_out_words
        said = caption(
            rng, actor=scene.actor, motion=scene.motion, place="" if "place" in silent else scene.place, time="" if "time" in silent else scene.time,
            weather=scene.weather, camera=scene.camera, companion=scene.companion, held_out=unusual,
        )  # fmt: skip
        options = {name: attribute_phrases(name, getattr(scene, name)) for name in PHRASES if name not in silent}
        told = tuple(name for name, words in options.items() if words != ("",))
        return replace(scene, caption=said, told=told, told_in_held_out_words=tuple(name for name in told if unusual and held_out_of(options[name])))

    def _draw(self, rng: random.Random, previous: SceneTruth | None, num_frames: int) -> SceneTruth:
        config = self.config
        fresh = SceneTruth(
            actor=rng.choice(config.actors), place=rng.choice(config.places), time=rng.choice(config.times), weather=rng.choice(config.weathers),
            motion=rng.choice(config.motions), camera=rng.choice(config.cameras), companion="", num_frames=num_frames,
        )  # fmt: skip
        if rng.random() < config.companion_prob:
            fresh = replace(fresh, companion=rng.choice([name for name in config.actors if name != fresh.actor]))
        if previous is None:
            return fresh
        kept = [name for name in ("actor", "place", "time", "weather", "camera", "companion") if rng.random() >= config.change_prob]
        kept = {name: getattr(previous, name) for name in kept}
        merged = replace(fresh, **kept)
        return merged if merged.companion != merged.actor else replace(merged, companion="")

    def clips(self, seed: int, first: int, count: int, num_frames: int, align: int) -> Tensor:
        """Clips first .. first + count - 1 of a run, (b c f h w): each is a story of its own."""
        stories = [self.story(seed, index, num_frames, max_scenes=2, align=align) for index in range(first, first + count)]
        return self.render(stories)

    def told_clips(
        self, seed: int, count: int, num_frames: int, align: int, max_scenes: int, first: int = 0
    ) -> Iterator[tuple[Tensor, list[StoryTruth]]]:
        """Stories seed/first .. seed/(first + count - 1), painted in batches (b c f h w), each with what it shows."""
        for begin in range(first, first + count, TOLD_BATCH):
            indices = range(begin, min(begin + TOLD_BATCH, first + count))
            stories = [self.story(seed, i, num_frames, max_scenes=max_scenes, align=align) for i in indices]
            yield self.render(stories), stories

    def scenes_by_frame(self, story: StoryTruth) -> list[SceneTruth]:
        """The scene that each frame shows."""
        return [scene for scene in story.scenes for _ in range(scene.num_frames)]

    def poses(self, story: StoryTruth) -> list[Pose]:
        """The actor's pose in each frame; a scene starts where the last one left the actor, well inside the picture."""
        x, poses = story.start_x, []
        for scene in story.scenes:
            x = min(max(x, 0.125), 0.875)
            poses += [pose(scene.motion, frame / self.config.fps, x, story.baseline) for frame in range(scene.num_frames)]
            walked = scene.motion.split()[0] in ("walks", "runs")
            x = pose(scene.motion, scene.num_frames / self.config.fps, x, story.baseline).x if walked else x
        return poses

    @torch.no_grad()
    def render(self, stories: list[StoryTruth]) -> Tensor:
        """Paints stories of equal length: (b c f h w) float32 in [-1, 1]."""
        lengths = {story.num_frames for story in stories}
        if len(lengths) != 1:
            raise ValueError(f"stories of {sorted(lengths)} frames in one batch: render stories of equal length together")
        scenes = [scene for story in stories for scene in self.scenes_by_frame(story)]
        poses = [pose for story in stories for pose in self.poses(story)]
        times = [frame / self.config.fps for story in stories for frame in range(story.num_frames)]
        phases = [(story.phase + frame) % LOOP_FRAMES for story in stories for frame in range(story.num_frames)]

        picture = self._paint_places(scenes, times)  # (b*f 3 h w), [0, 1]
        actor_tint = self._tint(scenes, 1)
        companions = [Pose(0.2 if pose.x > 0.5 else 0.8, GROUND - 0.06, scale=0.8) for pose in poses]
        if any(scene.companion for scene in scenes):
            picture = self._paint_actors(picture, [scene.companion for scene in scenes], companions, phases, actor_tint)
        picture = self._paint_actors(picture, [scene.actor for scene in scenes], poses, phases, actor_tint)
        picture = self._paint_weather(picture, scenes, times)
        return rearrange(picture.clamp(0, 1) * 2 - 1, "(b f) c h w -> b c f h w", b=len(stories))

    def _tint(self, scenes: list[SceneTruth], layer: int) -> Tensor:
        return torch.tensor([TINTS[scene.time][layer] for scene in scenes], device=self.device)[:, :, None, None]

    def _paint_places(self, scenes: list[SceneTruth], times: list[float]) -> Tensor:
        indices = torch.tensor([self.place_index[scene.place] for scene in scenes], device=self.device)
        width, size = self.places.shape[-1], self.config.size
        pan = [0.3 * math.sin(0.5 * t) if scene.camera == "pan" else 0.0 for scene, t in zip(scenes, times, strict=True)]
        zoom = [max(1 - 0.08 * t, 0.6) if scene.camera == "zoom" else 1.0 for scene, t in zip(scenes, times, strict=True)]
        theta = torch.zeros(len(scenes), 2, 3, device=self.device)
        theta[:, 0, 0] = torch.tensor(zoom) * size / width
        theta[:, 1, 1] = torch.tensor(zoom)
        theta[:, 0, 2] = torch.tensor(pan)
        if (width - size) % 2:
            theta[:, 0, 2] += 1 / width  # whole pixels, so that a still camera copies them
        grid = F.affine_grid(theta, [len(scenes), 3, size, size], align_corners=False)
        places = F.grid_sample(self.places[indices], grid, padding_mode="border", align_corners=False)
        return places * self._tint(scenes, 0)

    def _paint_actors(self, picture: Tensor, names: list[str], poses: list[Pose], phases: list[int], tint: Tensor) -> Tensor:
        present = torch.tensor([1.0 if name else 0.0 for name in names], device=self.device)[:, None, None, None]
        indices = torch.tensor([self.actor_index.get(name, 0) for name in names], device=self.device)
        sprites = self.actors[indices, torch.tensor(phases, device=self.device)]  # (n 4 s s)
        theta = torch.tensor([self._inverse_affine(pose) for pose in poses], device=self.device)
        grid = F.affine_grid(theta, [len(names), 4, self.config.size, self.config.size], align_corners=False)
        layer = F.grid_sample(sprites, grid, padding_mode="zeros", align_corners=False) * present
        return layer[:, :3] * tint + picture * (1 - layer[:, 3:])

    def _inverse_affine(self, pose: Pose) -> list[list[float]]:
        """The matrix from picture coordinates to sprite coordinates, both in [-1, 1]."""
        half = self.config.actor_size * pose.scale
        cos, sin = math.cos(pose.angle) / half, math.sin(pose.angle) / half
        x, y = 2 * pose.x - 1, 2 * pose.y - 1
        sign = -1.0 if pose.flip else 1.0
        return [[sign * cos, sign * sin, -sign * (cos * x + sin * y)], [-sin, cos, sin * x - cos * y]]

    def _paint_weather(self, picture: Tensor, scenes: list[SceneTruth], times: list[float]) -> Tensor:
        if all(scene.weather == "clear" for scene in scenes):
            return picture
        layers = []
        for scene, t in zip(scenes, times, strict=True):
            speed = WEATHER_SPEEDS[scene.weather]
            shift = [round(v * t * self.config.fps * self.config.size / 64) for v in speed]
            layers.append(self.weathers[scene.weather].roll((shift[1], shift[0]), dims=(1, 2)))
        layer = torch.stack(layers)
        return layer[:, :3] + picture * (1 - layer[:, 3:])


def open_world(config: WorldConfig, atlas: str | Path | None = None, device: str | torch.device = "cpu") -> StorybookWorld:
    """The world with the pictures of an atlas file, or with pictures drawn by code where none is given."""
    return StorybookWorld(config, load_atlas(atlas) if atlas else draw_art(config.actors, config.places), device)
