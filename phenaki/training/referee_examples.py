"""What the referee learns from: stories with the truth of every frame, as rendered and as a tokenizer gives them back.

Actors, places and motions are drawn as often as their world names them, whether or not the generator saw their pairs in
training: the referee must not have the bias that it judges. Some clips show nobody, a garbled actor or nothing that can be recognised; there the
right answer is "", the first label.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from phenaki.cvivit import CViViT
from phenaki.data.captions import is_held_out
from phenaki.data.poses import camera_track, seen_by
from phenaki.data.storybook import StorybookWorld
from phenaki.data.world import SceneTruth, StoryTruth, WorldConfig
from phenaki.devices import device_of
from phenaki.evaluation.referee import MOTION_REACH, as_seen, labels_of
from phenaki.pixels import to_bytes

UNJUDGED = -1  # in place of a label where nobody can say
SEEN_SHARE = 1 / 3  # of an actor's box that must be inside the picture for it to be judged
CHANGED = 4 / 255  # of the range [0, 1]: a pixel that differs by more is the actor's
BLOCKS = 8  # a side of the picture that shuffling cuts it into
KINDS = {"plain": 0.76, "nobody": 0.10, "garbled": 0.07, "unrecognisable": 0.07}  # share of the clips of each kind
MAX_CORRUPTION = 0.08  # share of a reconstruction's tokens that are taken from another clip


@dataclass(frozen=True)
class Examples:
    """Clips with the truth of their frames.

    video: (n 3 f 64 64) uint8; labels: (n f a) int16, for each attribute the index of the referee's name, or UNJUDGED;
    near_change: (n f) bool, True where a frame less than MOTION_REACH + 1 away belongs to another scene.
    """

    video: Tensor
    labels: Tensor
    near_change: Tensor

    def __len__(self) -> int:
        return len(self.video)

    def to(self, device: torch.device) -> "Examples":
        """The examples on another device."""
        return Examples(*(getattr(self, field.name).to(device) for field in fields(Examples)))


def joined(parts: Sequence[Examples]) -> Examples:
    """All clips of several parts, one part after the other; their clips have equally many frames."""
    return Examples(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Examples)))


def held_out_share(config: WorldConfig) -> float:
    """The share of (actor, place, motion), as often as the world draws them, that training stories never show."""
    cases = list(product(config.actors, config.places, config.motions))
    return sum(is_held_out(actor, place) or is_held_out(actor, motion) for actor, place, motion in cases) / len(cases)


def draw_stories(
    world: StorybookWorld, seed: int, indices: range, num_frames: int, held_out: bool | None = None, max_scenes: int = 2
) -> list[StoryTruth]:
    """Stories of one scene or more. held_out: with held-out pairs alone, or without any; None: with both, so that all pairs are equally likely."""
    share, stories = held_out_share(world.config), []
    for index in indices:
        hidden = random.Random(f"referee {seed} {index}").random() < share if held_out is None else held_out
        stories.append(world.story(seed, index, num_frames, held_out=hidden, max_scenes=max_scenes))
    return stories


def draw_kinds(seed: int, indices: range) -> list[str]:
    """What is done to each clip: one of KINDS."""
    return [random.Random(f"referee kind {seed} {index}").choices(list(KINDS), list(KINDS.values()))[0] for index in indices]


def without_actor(story: StoryTruth) -> StoryTruth:
    """The story with no actor in its scenes; companions stay."""
    return replace(story, scenes=tuple(replace(scene, actor="") for scene in story.scenes))


def draw_examples(
    world: StorybookWorld, stories: list[StoryTruth], kinds: Sequence[str], seed: int = 0, tokenizer: CViViT | None = None,
    max_corruption: float = 0.0, num_frames: int | None = None,
) -> Examples:  # fmt: skip
    """Paints stories of equal length, each as one of `KINDS`, and passes them through the tokenizer where one is given.

    Pictures are made on the world's device; the examples are on the CPU. num_frames: of each clip, cut from anywhere in its story;
    all of the story by default. ValueError for another kind.
    """
    generator = torch.Generator().manual_seed(seed)
    length = num_frames or stories[0].num_frames
    first = torch.randint(stories[0].num_frames - length + 1, (len(stories),), generator=generator).tolist()
    video = cut(world.render(stories), first, length, 1)
    empty = video.clone()  # without actors, in those clips where that is needed
    emptied = [i for i, kind in enumerate(kinds) if kind in ("nobody", "garbled")]
    if emptied:
        without = cut(world.render([without_actor(stories[i]) for i in emptied]), [first[i] for i in emptied], length, 1)
        empty[torch.tensor(emptied, device=empty.device)] = without
    labels, near_change = (cut(truth, first, length, 0) for truth in truth_of(world, stories))
    hidden = cut(torch.stack([inside(world, story) < SEEN_SHARE for story in stories]), first, length, 0)
    scrambled = shuffled(video, generator)
    garbled = garbled_where(video, actor_pixels(video, empty), generator)
    actor, motion, actor_columns = columns(world, "actor"), columns(world, "motion"), columns(world, "actor", "motion")
    for i, kind in enumerate(kinds):
        if kind == "plain":
            labels[i][hidden[i].nonzero(), actor_columns] = UNJUDGED
        elif kind == "nobody":
            video[i] = empty[i]
            labels[i, :, actor_columns] = 0
        elif kind == "garbled":
            video[i] = garbled[i]
            labels[i, :, actor] = 0
            labels[i, :, motion] = UNJUDGED
        elif kind == "unrecognisable":
            video[i], labels[i] = scrambled[i], 0
        else:
            raise ValueError(f"kind {kind!r}: allowed are {', '.join(KINDS)}")
    if tokenizer is not None:
        video = reconstructed(tokenizer, video, max_corruption, generator)
    return Examples(to_bytes(as_seen(video)).cpu(), labels, near_change)


def cut(clips: Tensor, first: Sequence[int], num_frames: int, axis: int) -> Tensor:
    """num_frames frames of each clip, from the one that is `first` for it; axis: that of the frames in one clip."""
    return torch.stack([clip.narrow(axis, start, num_frames) for clip, start in zip(clips, first, strict=True)])


def truth_of(world: StorybookWorld, stories: Sequence[StoryTruth]) -> tuple[Tensor, Tensor]:
    """Labels (n f a) int16 of every frame, in the order of `labels_of`, and near_change (n f)."""
    names = labels_of(world.config)
    scenes = [world.scenes_by_frame(story) for story in stories]
    labels = [[[names[name].index(getattr(scene, name)) for name in names] for scene in clip] for clip in scenes]
    near = [[is_near_change(clip, frame) for frame in range(len(clip))] for clip in scenes]
    return torch.tensor(labels, dtype=torch.int16), torch.tensor(near)


def columns(world: StorybookWorld, *attributes: str) -> list[int]:
    """Where in the labels these attributes stand, without those that the world has no choice of."""
    names = list(labels_of(world.config))
    return [names.index(name) for name in attributes if name in names]


def is_near_change(scenes: Sequence[SceneTruth], frame: int) -> bool:
    """Whether the frames in which motion is seen belong to more than one scene; scenes: the scene of each frame."""
    window = scenes[max(frame - MOTION_REACH, 0) : frame + MOTION_REACH + 1]
    return any(scene is not scenes[frame] for scene in window)


def actor_pixels(video: Tensor, empty: Tensor) -> Tensor:
    """Where the actor is: (n f h w) bool, the pixels that differ from the picture without it. Both (n c f h w) in [-1, 1]."""
    return reduce((video - empty).abs() / 2 > CHANGED, "n c f h w -> n f h w", "max")


def inside(world: StorybookWorld, story: StoryTruth) -> Tensor:
    """The share of the actor's box that the camera has in the picture, in each frame: (f,) float64 in [0, 1]."""
    track = seen_by(camera_track([story], world.config.fps), world.actor_track(story))
    x, y, side = (torch.from_numpy(values) for values in (track.x, track.y, track.scale * world.config.actor_size))

    def share_inside(middle: Tensor) -> Tensor:
        low, high = (middle - side / 2).clamp(min=0), (middle + side / 2).clamp(max=1)
        return (high - low).clamp(min=0) / side

    return share_inside(x) * share_inside(y)


def shuffled(video: Tensor, generator: torch.Generator) -> Tensor:
    """(n c f h w) made of blocks that come from any place of any of the clips, the same in all frames."""
    blocks = rearrange(video, "n c f (i y) (j x) -> (n i j) c f y x", i=BLOCKS, j=BLOCKS)
    picked = blocks[torch.randint(len(blocks), (len(blocks),), generator=generator).to(video.device)]
    return rearrange(picked, "(n i j) c f y x -> n c f (i y) (j x)", i=BLOCKS, j=BLOCKS)


def garbled_where(video: Tensor, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Clips whose blocks with pixels (n f h w) of the actor come from anywhere in the same clip."""
    scrambled = torch.cat([shuffled(clip[None], generator) for clip in video])
    touched = reduce(pixels, "n f (i y) (j x) -> n f i j", "max", i=BLOCKS, j=BLOCKS)
    side = video.shape[-1] // BLOCKS
    return torch.where(repeat(touched, "n f i j -> n 1 f (i y) (j x)", y=side, x=side), scrambled, video)


@torch.inference_mode()
def reconstructed(tokenizer: CViViT, video: Tensor, max_corruption: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """The video as the tokenizer gives it back, (n c f h w).

    With max_corruption, up to that share of a clip's tokens (drawn for each clip) is replaced by the tokens of the clip before:
    the mistakes of a generator look like this.
    """
    device = device_of(tokenizer)
    tokens = tokenizer.encode(video.to(device)).cpu()  # the draws are the CPU's, whatever computes
    if max_corruption:
        rate = max_corruption * torch.rand(len(tokens), 1, 1, 1, generator=generator)
        tokens = torch.where(torch.rand(tokens.shape, generator=generator) < rate, tokens.roll(1, 0), tokens)
    return tokenizer.decode(tokens.to(device)).float().clamp(-1, 1).to(video.device)  # float: autocast may have made it bf16
