"""The storybook world: stories drawn on the fly whose every attribute is known exactly.

From scene to scene some attributes change and the rest stay; the actor starts where it was.
`StorybookWorld.story(seed, index)` draws the truth of story `index`, `render` paints a batch of them on any device.
"""

import random
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from phenaki.data.art import LOOP_FRAMES, Art, draw_art, load_atlas
from phenaki.data.captions import attribute_phrases, caption, held_out_of, is_held_out
from phenaki.data.cast import SHELTERED, role_of, stands_behind
from phenaki.data.clip_source import CaptionedSource
from phenaki.data.painter import TINTS, Painter, Sprites, place_tint
from phenaki.data.poses import Track, actor_track, camera_track, companion_track, joined, object_track, seen_by
from phenaki.data.world import (
    GROUND,
    SceneTruth,
    StoryTruth,
    WorldConfig,
    described,
    small_part,
)

TELLABLE = ("actor", "place", "time", "weather", "motion", "camera", "companion", "object")  # attributes that a caption may name
CAPTIONED_BATCH, GPU_CAPTIONED_BATCH = 16, 128  # stories painted at once when many are tokenised


class StorybookWorld(CaptionedSource):
    """Draws stories of `config` with the pictures of `art` on `device`."""

    def __init__(self, config: WorldConfig, art: Art, device: str | torch.device = "cpu"):
        art.require((*config.actors, *config.objects), config.places, config.weathers)
        self.config, self.device = config, torch.device(device)
        self.fingerprint = f"storybook {art.hash()[:16]} {described(config)}"
        self.painter = Painter(art, config.size, config.actor_size, self.device)
        self.actor_index = {name: i for i, name in enumerate(art.actor_names)}
        self.place_index = {name: i for i, name in enumerate(art.place_names)}
        self.small: StorybookWorld | None = None  # tells the stories of `small_share`
        if config.small_share:
            self.small = copy(self)
            self.small.config = small_part(config)

    def story(
        self, seed: int, index: int, num_frames: int, *, held_out: bool = False, held_out_words: bool | None = None,
        lengths: Sequence[int] | None = None, max_scenes: int = 4, align: int = 1,
    ) -> StoryTruth:  # fmt: skip
        """Story `index` of the endless list of stories of `seed`. Scenes change at frames 1 + align*k, or have the numbers of frames in `lengths`.

        Training stories (held_out=False) have no held-out (actor, place) or (actor, motion) pair and no held-out phrasing;
        with held_out=True every scene has a held-out pair where the cast has one, and held-out words where there are any.
        held_out_words, where given, decides about the words alone: with True every scene has held-out words.
        """
        if self.small and random.Random(f"small {seed} {index}").random() < self.config.small_share:
            return self.small.story(
                seed, index, num_frames, held_out=held_out, held_out_words=held_out_words, lengths=lengths, max_scenes=max_scenes, align=align
            )
        rng = random.Random(f"storybook {seed} {index}")
        lengths = lengths or self._lengths(rng, num_frames, max_scenes, align)
        scenes: list[SceneTruth] = []
        for length in lengths:
            scenes.append(self._scene(rng, scenes[-1] if scenes else None, length, held_out, held_out_words))
        return StoryTruth(tuple(scenes), *self._start(rng, scenes[0]))

    def started_anew(self, story: StoryTruth, seed: int) -> StoryTruth:
        """The same scenes with another start (place and phase of the actor): another video that fits the same script."""
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
            is_hidden = is_held_out(scene.actor, scene.place) or is_held_out(scene.actor, scene.motion)
            worded = any(held_out_of(self._phrases(scene, name)) for name in ("actor", "motion"))  # told in every scene
            if is_hidden == held_out and (worded or not held_out_words) and scene.motion not in role_of(scene.actor).unfit:
                break
        keeps = {name: previous is not None and getattr(previous, name) == getattr(scene, name) for name in ("place", "time")}
        silent = {name for name, kept in keeps.items() if kept and rng.random() < self.config.omit_prob}
        if previous is None and scene.time == "day" and rng.random() < 0.5:
            silent.add("time")  # a first scene that names no time is by day
        unusual = held_out if held_out_words is None else held_out_words
        said = caption(
            rng, actor=scene.actor, motion=scene.motion, place="" if "place" in silent else scene.place, time="" if "time" in silent else scene.time,
            weather=scene.weather, camera=scene.camera, companion=scene.companion, object=scene.object, held_out=unusual,
            wording=self.config.wording,
        )  # fmt: skip
        options = {name: self._phrases(scene, name) for name in TELLABLE if name not in silent}
        told = tuple(name for name, words in options.items() if words != ("",))
        return replace(scene, caption=said, told=told, told_in_held_out_words=tuple(name for name in told if unusual and held_out_of(options[name])))

    def _phrases(self, scene: SceneTruth, attribute: str) -> tuple[str, ...]:
        return attribute_phrases(attribute, getattr(scene, attribute), scene.actor, self.config.wording)

    def _draw(self, rng: random.Random, previous: SceneTruth | None, num_frames: int) -> SceneTruth:
        """A scene without its caption. Kinds of things that a world lacks draw no number, so a seed's stories stay the same when kinds are added."""
        config = self.config
        scene = SceneTruth(
            actor=rng.choice(config.actors), place=rng.choice(config.places), time=rng.choice(config.times), weather=rng.choice(config.weathers),
            motion=rng.choice(config.motions), camera=rng.choice(config.cameras), companion="", num_frames=num_frames,
        )  # fmt: skip
        others = [name for name in config.actors if name != scene.actor]
        if rng.random() < config.companion_prob and others:
            scene = replace(scene, companion=rng.choice(others))
        if config.objects and rng.random() < config.object_prob:
            scene = replace(scene, object=rng.choice(config.objects))
        if previous is not None:
            changeable = ["actor", "place", "time", "weather", "camera", "companion", *(["object"] if config.objects else [])]
            kept = [name for name in changeable if rng.random() >= config.change_prob]
            scene = replace(scene, **{name: getattr(previous, name) for name in kept})
        if scene.companion == scene.actor:
            scene = replace(scene, companion="")
        if scene.companion and stands_behind(scene.object):
            scene = replace(scene, object="")  # it would stand where the companion does
        return replace(scene, weather="clear") if scene.place in SHELTERED else scene

    def clips(self, seed: int, first: int, count: int, num_frames: int, align: int) -> Tensor:
        """Clips first .. first + count - 1 of a run, (b c f h w): each is a story of its own."""
        stories = [self.story(seed, index, num_frames, max_scenes=2, align=align) for index in range(first, first + count)]
        return self.render(stories)

    def captioned_clips(
        self, seed: int, count: int, num_frames: int, align: int, max_scenes: int, first: int = 0
    ) -> Iterator[tuple[Tensor, list[StoryTruth]]]:
        """Stories first .. first + count - 1 of the seed, painted in batches (b c f h w), each with its truth."""
        at_once = GPU_CAPTIONED_BATCH if self.device.type == "cuda" else CAPTIONED_BATCH
        for begin in range(first, first + count, at_once):
            indices = range(begin, min(begin + at_once, first + count))
            stories = [self.story(seed, i, num_frames, max_scenes=max_scenes, align=align) for i in indices]
            yield self.render(stories), stories

    def scenes_by_frame(self, story: StoryTruth) -> list[SceneTruth]:
        """The scene that each frame shows."""
        return [scene for scene in story.scenes for _ in range(scene.num_frames)]

    def actor_track(self, story: StoryTruth) -> Track:
        """The actor in each frame, in the world; the camera may show it elsewhere."""
        return actor_track(story, self.config.fps, self.config.actor_size, self.config.settle_seconds)

    @torch.no_grad()
    def render(self, stories: list[StoryTruth]) -> Tensor:
        """Paints stories of equal length: (b c f h w) float32 in [-1, 1]."""
        lengths = {story.num_frames for story in stories}
        if len(lengths) != 1:
            raise ValueError(f"stories of {sorted(lengths)} frames in one batch: render stories of equal length together")
        (num_frames,) = lengths
        scenes = [scene for story in stories for scene in story.scenes]
        repeats = [scene.num_frames for scene in scenes]

        def by_frame(values: Sequence) -> np.ndarray:
            return np.repeat(np.array(values), repeats, axis=0)

        frame_numbers = np.tile(np.arange(num_frames), len(stories))
        phases = (np.repeat([story.phase for story in stories], num_frames) + frame_numbers) % LOOP_FRAMES
        camera = camera_track(stories, self.config.fps)
        places, tints = by_frame([self.place_index[scene.place] for scene in scenes]), by_frame([TINTS[scene.time][1] for scene in scenes])
        weathers = by_frame([self.painter.weather_names.index(scene.weather) for scene in scenes])

        picture = self.painter.paint_places(places, camera, by_frame([place_tint(scene.time, scene.place) for scene in scenes]))
        for names, track in self._layers(stories):
            actors = by_frame([self.actor_index[name] if name else -1 for name in names])
            sprites = Sprites(np.arange(len(actors)), actors, phases, seen_by(camera, track), tints)
            self.painter.paint_sprites(picture, sprites[actors >= 0])
        self.painter.paint_weather(picture, weathers, frame_numbers)
        return rearrange(picture.clamp_(0, 1).mul_(2).sub_(1), "(b f) c h w -> b c f h w", b=len(stories))

    def _layers(self, stories: list[StoryTruth]) -> Iterator[tuple[list[str], Track]]:
        """From the back to the front: the sprite of each scene ("" = none), and where it is in each frame."""
        scenes, actor_size = [scene for story in stories for scene in story.scenes], self.config.actor_size
        objects = joined([object_track(story, actor_size) for story in stories])
        yield [scene.object if stands_behind(scene.object) else "" for scene in scenes], objects
        yield [scene.companion for scene in scenes], joined([companion_track(story, actor_size) for story in stories])
        yield [scene.actor for scene in scenes], joined([self.actor_track(story) for story in stories])
        yield [scene.object if not stands_behind(scene.object) else "" for scene in scenes], objects


def open_world(config: WorldConfig, atlas: str | Path | None = None, device: str | torch.device = "cpu") -> StorybookWorld:
    """The world with the pictures of an atlas file, or with pictures drawn by code where none is given."""
    names = (tuple(dict.fromkeys(one)) for one in ((*config.actors, *config.objects), config.places))
    art = load_atlas(atlas) if atlas else draw_art(*names)
    return StorybookWorld(config, art, device)
