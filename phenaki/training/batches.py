"""The examples of a step of generator training, drawn from (seed, step) alone.

An example is a chunk inside one scene, its caption, and the slices before it, which may show other scenes: so the network
sees prompts change under a carried context. In half of the batches the context is clean; in the others a share of its tokens
is replaced and the network is given the share. A tenth of the captions is dropped, for guidance. Of some chunks a part is
known, for the tasks of `tasks.py`. In some batches the network makes the context itself (`rollouts.py`). Some show still
pictures alone, as in the paper (Villegas et al. 2022, section 2.2).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from phenaki.data.tokens import StoryTokens
from phenaki.devices import sent
from phenaki.maskgit import ANCHOR, FIRST, ORDINARY, MaskGITConfig
from phenaki.masking import hide_within, training_mask
from phenaki.training.optimizers import generator_for
from phenaki.training.rollouts import Rollout, draw_rollout
from phenaki.training.settings import GeneratorTraining, MaskTasks
from phenaki.training.tasks import draw_tasks, task_regions

_PLACES = WeakIdKeyDictionary()  # stories -> what `_places` found in them


@dataclass(frozen=True)
class Batch:
    """One step's examples, all of one shape.

    tokens: (b k h w) int64, the chunks; mask: (b k h w), True = hidden; tasks: (b,) numbers of `TASKS`, which the masks are of.
    captions: (b,) indices; dropped: (b,) True = no caption. context: (b c h w) int64 or None; kinds: (c,) of its slices;
    corruption: (b,) level of corruption of the context. starts: the chunks begin their videos. rollout: what the network makes
    the context from itself, or None where it is the true one. draws: (b k h w token_factors) in [0, 1), from which the tokens are
    drawn that the critic judges, or None where there is none.
    """

    tokens: Tensor
    mask: Tensor
    tasks: Tensor
    captions: Tensor
    dropped: Tensor
    context: Tensor | None
    kinds: Tensor
    corruption: Tensor
    starts: bool
    rollout: Rollout | None = None
    draws: Tensor | None = None
    known_places: Tensor | None = None  # caches of `places` and `shares`, filled by `to`, so that a GPU need not be asked for them
    known_shares: dict[str, Tensor] | None = None

    @property
    def places(self) -> Tensor:
        """(n,) int64: where the flattened mask is True."""
        if self.known_places is not None:
            return self.known_places
        return self.mask.flatten().nonzero()[:, 0]

    @property
    def shares(self) -> dict[str, Tensor]:
        """Scalars for the log: the shares of the tokens that are hidden and of the captions that are dropped."""
        if self.known_shares is not None:
            return self.known_shares
        return {"hidden": self.mask.float().mean(), "dropped": self.dropped.float().mean()}

    @property
    def num_hidden(self) -> int:
        """Tokens that the loss is of."""
        return int(self.mask.sum())

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device, its places and shares found before: a GPU that is asked for them would be waited for."""
        values = {**vars(self), "known_places": self.places}
        tensors = {name: sent(value, torch.device(device)) for name, value in values.items() if isinstance(value, Tensor)}
        rollout = None if self.rollout is None else self.rollout.to(device)
        return replace(self, **tensors, known_shares=self.shares, rollout=rollout)  # the shares stay where they are


def share(batch: Batch, rows: slice) -> Batch:
    """Some examples of a batch, as one process or one part of an accumulated step takes them."""
    by_row = ("tokens", "mask", "tasks", "captions", "dropped", "context", "corruption", "draws")
    cut = {name: value[rows] for name in by_row if (value := getattr(batch, name)) is not None}
    rollout = None if batch.rollout is None else batch.rollout.rows(rows)
    return replace(batch, rollout=rollout, known_places=None, known_shares=None, **cut)


def corrupt(tokens: Tensor, rate: Tensor, codebook_size: int, rng: torch.Generator) -> Tensor:
    """Replaces a share rate (b,) of tokens (b t h w) int64: half by any code, half by another sample's token of that place."""
    hit = torch.rand(tokens.shape, generator=rng) < rate[:, None, None, None]
    anything = torch.randint(codebook_size, tokens.shape, generator=rng)
    nearby = tokens[torch.randperm(len(tokens), generator=rng)]
    pick = torch.rand(tokens.shape, generator=rng) < 0.5
    return torch.where(hit, torch.where(pick, anything, nearby), tokens)


def draw_batch(stories: StoryTokens, config: MaskGITConfig, training: GeneratorTraining, step: int) -> Batch:
    """The examples of a step, from (seed, step) alone. Each kind of choice has its own random stream, so one setting moves no other choice."""
    seed, count = training.optimizer.seed, training.optimizer.batch_size
    pictures = generator_for(seed, step, "pictures")
    if bool(torch.rand((), generator=pictures) < training.image_prob):
        batch = draw_pictures(stories, config, training, count, pictures)
    else:
        rollouts = generator_for(seed, step, "rollouts")
        rolls_out = bool(torch.rand((), generator=rollouts) < training.rollout_prob)
        batch = draw_chunks(stories, config, training, count, generator_for(seed, step, "batch"), rollouts if rolls_out else None)
    batch = with_tasks(batch, training.tasks, generator_for(seed, step, "tasks"))
    if not config.critic:
        return batch
    return replace(batch, draws=torch.rand(*batch.tokens.shape, config.token_factors, generator=generator_for(seed, step, "critic")))


def draw_chunks(
    stories: StoryTokens, config: MaskGITConfig, training: GeneratorTraining, count: int, rng: torch.Generator,
    rollouts: torch.Generator | None = None,
) -> Batch:  # fmt: skip
    """Chunks of stories, from text or continuing a context; with `rollouts`, their random stream, one that the network makes where it can."""

    def chance(probability: float) -> bool:
        return bool(torch.rand((), generator=rng) < probability)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=rng))

    length = config.chunk_slices if chance(0.5) else number(1, config.chunk_slices)
    recent = 0
    if not chance(training.from_text_prob):
        recent = config.context_slices if chance(0.7) else number(1, max(config.context_slices, 1))
    recent = min(recent, config.context_slices)
    at_scene_start, anchored, from_first = chance(0.5), config.anchor and chance(0.7), chance(0.1)
    where = ""
    if from_first:
        where = "video start"
    elif at_scene_start:
        where = "scene start"
    elif anchored:
        where = "deep in scene"
    story, begin = draw_windows(stories, length, recent, where, count, rng)

    tokens = stories.tokens[story[:, None], begin[:, None] + torch.arange(length)].long()
    captions = stories.caption[story, begin]
    batch = plain(tokens, captions, config, training, rng)
    if recent == 0:
        return batch
    context, kinds = draw_context(stories, story, begin, recent, anchored)
    level = batch.corruption
    rollout = None if rollouts is None else draw_rollout(stories, config, story, begin, rollouts)
    if rollout is not None and rollout.chosen.any():
        return replace(batch, context=context, kinds=kinds, starts=False, rollout=rollout)
    if chance(0.5):
        level = torch.randint(config.corruption_levels, (len(tokens),), generator=rng)
        rate = level / max(config.corruption_levels - 1, 1) * config.max_corruption
        context = corrupt(context, rate, config.codebook_size, rng)
    return replace(batch, context=context, kinds=kinds, corruption=level, starts=False)


def draw_pictures(stories: StoryTokens, config: MaskGITConfig, training: GeneratorTraining, count: int, rng: torch.Generator) -> Batch:
    """Still pictures as chunks of one slice: the stories' first frames and the data's own pictures, all equally likely.

    ValueError where there are none.
    """
    num_stories, num_images = len(stories.tokens), len(stories.images)
    if not num_stories + num_images:
        raise ValueError("the training data has neither stories nor pictures")
    chosen = torch.randint(num_stories + num_images, (count,), generator=rng).tolist()
    tokens = [stories.tokens[i, 0] if i < num_stories else stories.images[i - num_stories] for i in chosen]
    captions = [stories.caption[i, 0] if i < num_stories else stories.image_caption[i - num_stories] for i in chosen]
    return plain(torch.stack(tokens)[:, None].long(), torch.stack(captions), config, training, rng)


def plain(tokens: Tensor, captions: Tensor, config: MaskGITConfig, training: GeneratorTraining, rng: torch.Generator) -> Batch:
    """Chunks (b k h w) that start videos and their captions (b,), with random masks and some captions dropped."""
    b = len(tokens)
    mask = training_mask(tuple(tokens.shape), rng, training.per_slice_prob)
    dropped = torch.rand(b, generator=rng) < config.cond_drop_prob
    zeros = torch.zeros(b, dtype=torch.long)
    return Batch(tokens, mask, zeros, captions, dropped, context=None, kinds=zeros[:0], corruption=zeros, starts=True)


def with_tasks(batch: Batch, shares: MaskTasks, rng: torch.Generator) -> Batch:
    """The batch with some samples' masks kept to what their tasks leave unknown."""
    shape = tuple(batch.tokens.shape)
    tasks = draw_tasks(shape, batch.starts, shares, rng)
    return replace(batch, tasks=tasks, mask=hide_within(batch.mask, task_regions(tasks, shape, rng)))


def draw_windows(stories: StoryTokens, length: int, recent: int, where: str, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random (story, first slice), (count,) int64 each, of chunks that lie inside one scene after `recent` slices; recent = 0: at slice 0.

    where, if possible: "video start" (the context begins the video), "scene start" (the chunk begins its scene), "deep in
    scene" (the scene's first slice is older than the context), "" (anywhere). A context that begins the video has a slice of
    kind FIRST, and a batch has one list of kinds (`draw_context`): so where other places exist, such contexts are drawn for
    "video start" alone. ValueError where no story has room.
    """
    bounds, rank = _places(stories, length, recent, where)
    if not int(bounds[-1]):
        raise ValueError(too_short("stories", length, recent))
    chosen = torch.randint(int(bounds[-1]), (count,), generator=rng)
    story = torch.searchsorted(bounds, chosen, right=True) - 1
    places = _windows(stories.scene_start[story], stories.scene_end[story], length, recent, where)[rank]
    return story, (places.cumsum(1) > (chosen - bounds[story])[:, None]).int().argmax(1)


def check_lengths(stories: StoryTokens, config: MaskGITConfig, training: GeneratorTraining, whose: str) -> None:
    """ValueError where a step may be drawn that no story is long enough for: with the longest chunk, from text or after the longest context."""
    if training.image_prob == 1:
        return
    longest = config.context_slices if training.from_text_prob < 1 else 0
    for recent in {0, longest} if training.from_text_prob else {longest}:
        if not int(_places(stories, config.chunk_slices, recent, "")[0][-1]):
            raise ValueError(too_short(f"{whose} stories", config.chunk_slices, recent))


def too_short(stories: str, length: int, recent: int) -> str:
    """An error's message. stories: which ones; length, recent: slices of the chunk that has no room in them and of its context."""
    where = f"after {recent} slices of context" if recent else "that begins a video"
    return f"no scene of the {stories} has room for a chunk of {length} slices {where}: make the stories longer"


def _windows(scene_start: Tensor, scene_end: Tensor, length: int, recent: int, where: str) -> tuple[Tensor, Tensor, Tensor]:
    """Where chunks may begin, three masks (n T), each looser: as `where` asks, after a context that does not begin the video, at all."""
    slices = torch.arange(scene_end.shape[1])[None]
    fits = (scene_end - slices) >= length
    fits = fits & ((slices == 0) if recent == 0 else (slices >= recent))
    later = fits & (slices > recent) if recent else fits
    wanted = later
    if where == "video start":
        wanted = fits & (slices == recent)
    elif where == "scene start":
        wanted = later & (slices == scene_start)
    elif where == "deep in scene":
        wanted = later & (slices - recent > scene_start)
    return wanted, later, fits


def _places(stories: StoryTokens, length: int, recent: int, where: str) -> tuple[Tensor, int]:
    """Running sums (N + 1,) int64 of the stories' numbers of places, and the index in `_windows` of the mask that these are of.

    It is the first mask that is True anywhere. Computed once for all steps: with hundreds of thousands of stories it takes a good
    part of a step.
    """
    known, key = _PLACES.setdefault(stories, {}), (length, recent, where)
    if key not in known:
        counts = [mask.sum(1) for mask in _windows(stories.scene_start, stories.scene_end, length, recent, where)]
        rank = next((index for index, count in enumerate(counts) if count.any()), 2)
        known[key] = F.pad(counts[rank].cumsum(0), (1, 0)), rank
    return known[key]


def draw_context(stories: StoryTokens, story: Tensor, begin: Tensor, recent: int, anchored: bool) -> tuple[Tensor, Tensor]:
    """The `recent` slices before each chunk, led by the scene's first slice where `anchored` and where it is older than they.

    Returns the slices (b c h w) int64 and their kinds (c,) int64. An anchor that is also a recent slice would add nothing, one inside
    the chunk would give the answer away.
    """
    index = begin[:, None] + torch.arange(-recent, 0)
    kinds = [ORDINARY] * recent
    if bool((begin == recent).all()):
        kinds[0] = FIRST
    scene_start = stories.scene_start[story, begin]
    if anchored and bool((scene_start < begin - recent).all()):
        index = torch.cat([scene_start[:, None], index], dim=1)
        kinds = [ANCHOR, *kinds]
    return stories.tokens[story[:, None], index].long(), torch.tensor(kinds)
