"""`phenaki train generator`: MaskGIT on tokenised stories (Villegas et al. 2022, section 2.2, and docs/DESIGN.md).

A training example is a chunk inside one scene, its caption, and the slices before it, which may show other scenes: so the
network sees prompts change under a carried context. In half of the batches the context is clean; in the others a share of
its tokens is replaced and the share is told to the network. A tenth of the captions is dropped, for guidance.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from phenaki.checkpoint import Model, ModelInfo, load_model, save_info, save_weights
from phenaki.cvivit import CViViT
from phenaki.data.storybook import StorybookWorld
from phenaki.data.tokens import StoryTokens, make_story_tokens
from phenaki.director import SceneText, direct
from phenaki.maskgit import ANCHOR, FIRST, ORDINARY, MaskGIT, MaskGITConfig
from phenaki.masking import training_mask
from phenaki.pipeline import to_pixels
from phenaki.sampling import SamplingOptions
from phenaki.story import Story, plan
from phenaki.text import TextEncoder
from phenaki.training.optimizers import generator_for
from phenaki.training.parallel import Group, Part, joined
from phenaki.training.run import Run
from phenaki.training.samples import HELD_OUT_SEED, SAMPLE_SEED, save_clip, write_picture
from phenaki.training.settings import GeneratorTraining, ModelSettings, load_settings
from phenaki.training.start import load_start
from phenaki.training.tokenizer import Source, open_source, override, silent
from phenaki.video import VideoScene, contact_sheet

HELD_OUT_STORIES = 64


@dataclass(frozen=True)
class Batch:
    """One step's examples, all of one shape.

    tokens: (b k h w) int64, the chunks; mask: (b k h w), True = hidden; captions: (b,) indices; dropped: (b,) True = no caption.
    context: (b c h w) int64 or None; kinds: (c,) of its slices; corruption: (b,) level of corruption of the context.
    starts: the chunks begin their videos.
    """

    tokens: Tensor
    mask: Tensor
    captions: Tensor
    dropped: Tensor
    context: Tensor | None
    kinds: Tensor
    corruption: Tensor
    starts: bool


def corrupt(tokens: Tensor, rate: Tensor, codebook_size: int, rng: torch.Generator) -> Tensor:
    """Replaces a share rate (b,) of tokens (b t h w): half by any code, half by what another sample has in that place."""
    hit = torch.rand(tokens.shape, generator=rng) < rate[:, None, None, None]
    anything = torch.randint(codebook_size, tokens.shape, generator=rng)
    nearby = tokens[torch.randperm(len(tokens), generator=rng)]
    pick = torch.rand(tokens.shape, generator=rng) < 0.5
    return torch.where(hit, torch.where(pick, anything, nearby), tokens)


def draw_batch(stories: StoryTokens, config: MaskGITConfig, training: GeneratorTraining, step: int) -> Batch:
    """The examples of a step, from (seed, step) alone."""
    settings = training.optimizer
    rng = generator_for(settings.seed, step, "batch")

    def chance(probability: float) -> bool:
        return bool(torch.rand((), generator=rng) < probability)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=rng))

    length = config.chunk_slices if chance(0.5) else number(1, config.chunk_slices)
    recent = 0 if chance(training.from_text_prob) else (config.context_slices if chance(0.7) else number(1, max(config.context_slices, 1)))
    recent = min(recent, config.context_slices)
    at_scene_start, anchored, from_first = chance(0.5), config.anchor and chance(0.7), chance(0.1)
    where = "video start" if from_first else "scene start" if at_scene_start else "deep in scene" if anchored else ""
    story, begin = draw_windows(stories, length, recent, where, settings.batch_size, rng)

    tokens = stories.tokens[story[:, None], begin[:, None] + torch.arange(length)].long()
    captions = stories.caption[story, begin]
    mask = training_mask(tuple(tokens.shape), rng)
    dropped = torch.rand(len(tokens), generator=rng) < config.cond_drop_prob
    level = torch.zeros(len(tokens), dtype=torch.long)
    if recent == 0:
        return Batch(tokens, mask, captions, dropped, None, torch.empty(0, dtype=torch.long), level, starts=True)
    context, kinds = draw_context(stories, story, begin, recent, anchored)
    if chance(0.5):
        level = torch.randint(config.corruption_levels, (len(tokens),), generator=rng)
        rate = level / max(config.corruption_levels - 1, 1) * config.max_corruption
        context = corrupt(context, rate, config.codebook_size, rng)
    return Batch(tokens, mask, captions, dropped, context, kinds, level, starts=False)


def draw_windows(stories: StoryTokens, length: int, recent: int, where: str, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random (story, first slice) of chunks that lie inside one scene with `recent` slices before them; recent = 0: at slice 0.

    where, if possible: "video start" (the context begins the video), "scene start" (the chunk begins its scene), "deep in
    scene" (the scene's first slice is older than the context), "" (anywhere).
    """
    slices = torch.arange(stories.tokens.shape[1])[None]
    fits = (stories.scene_end - slices) >= length
    fits = fits & ((slices == 0) if recent == 0 else (slices >= recent))
    wanted = fits
    if where == "video start":
        wanted = fits & (slices == recent)
    elif where == "scene start":
        wanted = fits & (slices == stories.scene_start)
    elif where == "deep in scene":
        wanted = fits & (slices - recent > stories.scene_start)
    places = (wanted if wanted.any() else fits).nonzero()
    if not len(places):
        raise ValueError(f"no scene of the training stories has {length} slices after {recent} others: make the stories longer")
    chosen = places[torch.randint(len(places), (count,), generator=rng)]
    return chosen[:, 0], chosen[:, 1]


def draw_context(stories: StoryTokens, story: Tensor, begin: Tensor, recent: int, anchored: bool) -> tuple[Tensor, Tensor]:
    """The `recent` slices before each chunk, led by the scene's first slice where `anchored` and where it is older than they.

    Returns (b c h w) and kinds (c,). An anchor among the recent slices would be no news, one in the chunk would be the answer.
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


@dataclass(frozen=True)
class TextBatch:
    """A batch, or a part of one, with its captions encoded: text (b l d), text_mask (b l), before any is dropped.

    num_hidden: hidden tokens of the whole batch, divided by the number of its parts: what the loss is a mean over.
    """

    batch: Batch
    text: Tensor
    text_mask: Tensor
    num_hidden: Tensor


def told(stories: StoryTokens, batch: Batch, part: Part, device: torch.device) -> TextBatch:
    """The part of a batch that one process takes, with its text, on the device."""
    num_hidden = batch.mask.sum() / part.count
    batch = share(batch, part.of(len(batch.tokens)))
    text, text_mask = stories.text(batch.captions)
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(batch).items()}
    return TextBatch(Batch(**moved), text.to(device), text_mask.to(device), num_hidden.to(device))


def share(batch: Batch, rows: slice) -> Batch:
    """Some examples of a batch."""
    cut = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor) and name != "kinds"}
    return replace(batch, **cut)


def generator_loss(model: MaskGIT, batch: Batch, text: Tensor, text_mask: Tensor, num_hidden: Tensor | None = None) -> dict[str, Tensor]:
    """Cross-entropy of the hidden tokens in nats a token; text (b l d), text_mask (b l) as encoded, before any is dropped.

    num_hidden: what the sum over tokens is divided by, their own number by default.
    """
    text, text_mask = model.drop_text(text, text_mask, batch.dropped)
    cache = model.encode_text(text, text_mask)
    context = model.encode_context(batch.context, batch.kinds, batch.corruption) if batch.context is not None else None
    shown = torch.where(batch.mask, model.mask_token_id, batch.tokens)
    features = model.features(shown, cache, context, batch.starts)
    log_probs = model.log_probs(features[batch.mask], batch.tokens[batch.mask])
    num_hidden = batch.mask.sum() if num_hidden is None else num_hidden
    correct = (log_probs.detach() > -0.6931).float().mean(0).sum() / num_hidden  # given more than even odds
    loss = -log_probs.sum() / num_hidden
    return {"loss": loss, "correct": correct, "hidden": batch.mask.float().mean(), "dropped": batch.dropped.float().mean()}


@dataclass
class GeneratorTask:
    """What a generator run trains (phenaki/training/run.py: Task)."""

    model: MaskGIT
    stories: StoryTokens
    training: GeneratorTraining
    info: ModelInfo
    tokenizer: CViViT
    held_out: StoryTokens | None = None  # stories to validate on
    on_sample: Callable[[MaskGIT, Path], None] = lambda model, path: None
    part: str = "generator"
    critic: nn.Module | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def build(self) -> MaskGIT:
        return MaskGIT(self.model.config).to(self.device)

    def draw(self, step: int, part: Part) -> TextBatch:
        batch = draw_batch(self.stories, self.model.config, self.training, step)
        return told(self.stories, batch, part, self.device)

    def num_tokens(self, batch: TextBatch) -> int:
        return batch.batch.tokens.numel()

    def losses(self, batch: TextBatch, step: int) -> dict[str, Tensor]:
        return generator_loss(self.model, batch.batch, batch.text, batch.text_mask, batch.num_hidden)

    def after_step(self, step: int) -> None:
        """Nothing: the optimisers do it all."""

    def describe(self, folder: Path, files: dict[str, str], step: int) -> None:
        files = files | save_weights(folder, "tokenizer", self.tokenizer.state_dict())
        facts = {**self.info.training, "generator_steps": step, "generator_seed": self.training.optimizer.seed}
        save_info(folder, replace(self.info, training=facts, files=files))

    @torch.no_grad()
    def validate(self, model: MaskGIT, num_batches: int) -> dict[str, float]:
        if self.held_out is None:
            return {}
        sums: dict[str, float] = {}
        fixed = replace(self.training, optimizer=replace(self.training.optimizer, seed=HELD_OUT_SEED))
        for number in range(num_batches):
            batch = told(self.held_out, draw_batch(self.held_out, model.config, fixed, number), Part(), self.device)
            for name, value in generator_loss(model, batch.batch, batch.text, batch.text_mask, batch.num_hidden).items():
                sums[name] = sums.get(name, 0.0) + value.item() / num_batches
        return sums

    def sample(self, model: MaskGIT, path: Path) -> None:
        self.on_sample(model, path)


def run_generator_training(
    config: Path, out: Path, *, data: Path | None = None, validation: Path | None = None, tokenizer: str | Path | None = None,
    init_from: str | None = None, steps: int | None = None, seed: int | None = None, device: str = "cpu",
    on_log: Callable[[dict], None] = print, on_note: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """The whole program: settings file and trained tokenizer in, whole model out at `out`/model, whose path is returned.

    tokenizer: a model folder or name; by default `out`/model where that exists, else the shipped model.
    init_from: a model folder or name whose generator's weights it starts from. data, validation: footage or an atlas; held-out clips.
    """
    settings = load_settings(config)
    training = replace(settings.train_generator, optimizer=override(settings.train_generator.optimizer, steps, seed))
    origin = tokenizer or (out / "model" if (out / "model").exists() else "storybook")
    with joined(device) as group:
        note = on_note if group.leads else silent
        note(f"tokenizer: {origin}")
        base = load_model(origin, group.device)
        task = _make_task(settings, training, config.stem, group, base, data, validation, init_from, out, note)
        run = Run(out / "generator", task, training.optimizer, group, note)
        run.train(on_log)
        averaged = run.averaged()
        if group.leads:
            (out / "model").mkdir(parents=True, exist_ok=True)
            task.describe(out / "model", save_weights(out / "model", "generator", averaged.state_dict()), run.step)
    return out / "model"


def _make_task(
    settings: ModelSettings, training: GeneratorTraining, name: str, group: Group, base: Model, data: Path | None, validation: Path | None,
    init_from: str | None, out: Path, on_note: Callable[[str], None],
) -> GeneratorTask:  # fmt: skip
    size, device = base.info.tokenizer.image_size, group.device
    source = open_source(settings.world, size, data, str(device))
    text_encoder = TextEncoder.load(settings.text, device=device)
    torch.manual_seed(training.optimizer.seed)
    config = replace(settings.generator, codebook_size=base.tokenizer.codebook_size)
    model, facts = MaskGIT(config), dict(base.info.training)
    if init_from is not None:
        facts |= load_start(model, "generator", init_from, on_note)
    info = ModelInfo(name, base.info.tokenizer, config, settings.text, base.info.fps, settings.sampling, text_encoder.fingerprint, facts)
    folder = out / "generator"
    if group.leads:
        story_tokens(source, base, text_encoder, training, folder / "stories.safetensors", on_note)
    group.wait()
    stories = story_tokens(source, base, text_encoder, training, folder / "stories.safetensors", on_note)
    apart = source if isinstance(source, StorybookWorld) else None  # drawn with another seed: other stories
    if validation is not None:
        apart = open_source(settings.world, size, validation, str(device))
    held_out = None
    if apart is not None and training.optimizer.validation_batches and group.leads:
        fewer = replace(training, num_stories=HELD_OUT_STORIES, optimizer=replace(training.optimizer, seed=HELD_OUT_SEED))
        held_out = story_tokens(apart, base, text_encoder, fewer, folder / "held-out.safetensors", on_note)
    prompts = sample_prompts(source, base, training.num_slices)
    look = lambda network, path: save_story_sample(prompts, network, base, text_encoder, path)
    return GeneratorTask(model.to(device), stories, training, info, base.tokenizer, held_out, look)


def story_tokens(
    source: Source, base: Model, text_encoder: TextEncoder, training: GeneratorTraining, path: Path, on_note: Callable[[str], None]
) -> StoryTokens:
    """The tokenised stories in `path`, made anew where the file is missing or was made by other weights or settings."""
    weights = sorted(value for name, value in base.info.files.items() if name.startswith("tokenizer"))
    numbers = (training.num_stories, training.num_slices, training.max_scenes, training.optimizer.seed)
    made_by = f"{weights} {text_encoder.fingerprint} {source.fingerprint} {numbers}"
    if path.exists():
        stories = StoryTokens.load(path)
        if stories.description == made_by:
            return stories
        on_note("the stories on disk were tokenised by other weights or settings: making them anew")
    path.parent.mkdir(parents=True, exist_ok=True)
    on_note(f"tokenising {training.num_stories} stories")

    def encode_text(captions: list[str]) -> list[Tensor]:
        encoded = text_encoder.encode(captions)
        return [text[mask].cpu() for text, mask in zip(encoded.text, encoded.text_mask, strict=True)]

    stories = make_story_tokens(
        source, base.tokenizer.encode, encode_text, seed=training.optimizer.seed, num_stories=training.num_stories, num_slices=training.num_slices,
        temporal_patch_size=base.info.tokenizer.temporal_patch_size, max_scenes=training.max_scenes, description=made_by,
    )  # fmt: skip
    stories.save(path)
    return stories


def sample_prompts(source: Source, base: Model, num_slices: int) -> list[list[tuple[str, float]]]:
    """Four short stories to look at, (prompt, seconds) each, from clips that nobody trains on."""
    pt, fps = base.info.tokenizer.temporal_patch_size, base.info.fps
    _, told = next(source.told_clips(SAMPLE_SEED, 4, 1 + pt * (num_slices - 1), pt, 2))
    return [[(scene.caption, max(scene.num_frames, 2 * pt) / fps) for scene in story.scenes] for story in told]


@torch.no_grad()
def save_story_sample(stories: list[list[tuple[str, float]]], model: MaskGIT, base: Model, text_encoder: TextEncoder, path: Path) -> None:
    """Short stories told by a network: path.png, a row each with its prompts, every second frame; and path.mp4, one above the other."""
    tokenizer = base.info.tokenizer
    side = tokenizer.image_size // tokenizer.patch_size
    rows, scenes = [], []
    for index, story in enumerate(stories):
        script = Story.of([(prompt or "a video", seconds) for prompt, seconds in story])
        planned = plan(script, fps=base.info.fps, temporal_patch_size=tokenizer.temporal_patch_size, chunk_slices=model.config.chunk_slices)
        encoded = [text_encoder.encode([scene.prompt]).to(next(model.parameters()).device) for scene in planned.scenes]
        texts = [SceneText(one.text, one.text_mask) for one in encoded]
        chunks = direct(planned, base.tokenizer, model, texts, SamplingOptions(), index, (side, side))
        rows.append(to_pixels(torch.cat([chunk.frames for chunk in chunks]), tokenizer.image_size))
        scenes.append(" | ".join(scene.prompt for scene in planned.scenes))
    shown, starts = [row[::2] for row in rows], np.cumsum([0] + [len(row[::2]) for row in rows])
    chapters = [VideoScene(text, int(start), len(row)) for text, start, row in zip(scenes, starts, shown, strict=False)]
    write_picture(contact_sheet(np.concatenate(shown), chapters, columns=13), path.with_suffix(".png"))
    length = min(map(len, rows))
    save_clip(np.concatenate([row[:length] for row in rows], axis=1), path.with_suffix(".mp4"), base.info.fps)
