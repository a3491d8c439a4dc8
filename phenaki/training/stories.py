"""Where the tokenised stories of generator training come from: a source of clips, or a file made before by `phenaki data tokenize`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phenaki.checkpoint import Model, load_model, state_sha256
from phenaki.cvivit import CViViT
from phenaki.data.clip_source import CaptionedSource
from phenaki.data.order import SAMPLE_SEED
from phenaki.data.sources import open_source
from phenaki.data.tensor_file import read_metadata
from phenaki.data.token_parts import TokenPlan, drop_parts, tokenize_source
from phenaki.data.tokens import StoryTokens, TokensError, is_story_tokens
from phenaki.data.world import named_world
from phenaki.text import TextEncoder
from phenaki.training.heap import keep_freed_memory
from phenaki.training.same_tokens import tokens_sha256
from phenaki.training.settings import GeneratorTraining, ModelSettings, load_settings

Prompts = list[list[tuple[str, float]]]  # stories of (prompt, seconds)


@dataclass(frozen=True)
class TrainingStories:
    """What a generator is trained on, and prompts of short stories that show its progress."""

    tokens: StoryTokens
    prompts: Prompts


def open_stories(
    settings: ModelSettings, training: GeneratorTraining, base: Model, text_encoder: TextEncoder, data: Path | None, path: Path, device: str,
    on_note: Callable[[str], None],
) -> TrainingStories:  # fmt: skip
    """The stories of `data`: a file of story tokens as it is; any other source tokenised to `path`, once.

    TokensError where the file is damaged, or was made with another tokenizer or text encoder.
    """
    if data is not None and (is_story_tokens(data) or _is_damaged(data)):
        tokens = prepared_tokens(data, base, text_encoder)
        numbers = [*tokens.caption[:, 0].tolist(), *tokens.image_caption.tolist()]
        note_missing_captions(data, [tokens.captions[number] for number in numbers], on_note)
        return TrainingStories(tokens, stored_prompts(tokens, base))
    report, world = path.with_name(f"{path.stem}-unusable.jsonl"), replace(settings.world, fps=base.info.fps)
    source = open_source(world, base.info.tokenizer.image_size, data, device, settings.footage, report, on_note)
    tokens = story_tokens(source, base, text_encoder, training, path, on_note)
    has_stories = len(tokens.tokens) > 0
    return TrainingStories(tokens, sample_prompts(source, base, training.num_slices) if has_stories else stored_prompts(tokens, base))


def _is_damaged(data: Path) -> bool:
    """Whether a file is named like one of tokens, or an atlas, and cannot be either."""
    return data.suffix == ".safetensors" and data.is_file() and read_metadata(data) is None


def story_tokens(
    source: CaptionedSource, base: Model, text_encoder: TextEncoder, training: GeneratorTraining, path: Path, on_note: Callable[[str], None]
) -> StoryTokens:
    """The tokenised stories in `path`, made anew where the file is missing, damaged, or was made by other weights or settings."""
    num_images = min(training.num_images, source.num_images)
    seed, pt = training.optimizer.seed, base.info.tokenizer.temporal_patch_size
    if source.files:
        note_missing_captions(source.path, [file.caption for file in source.files], on_note)
    plan = TokenPlan(seed, training.num_stories, training.num_slices, pt, training.max_scenes, num_images)
    own = {"source": source.fingerprint, "plan": str(plan)}
    made_by, older = (json.dumps({**made, **own}) for made in token_origins(base, text_encoder))
    if path.exists():
        try:
            stories = StoryTokens.load(path)
            if stories.description in (made_by, older):
                drop_parts(path)
                return stories
            on_note("the stories on disk were tokenised by other weights or settings: making them anew")
        except TokensError as error:
            on_note(f"{error.problem}: making the stories anew")
    on_note(f"tokenising {training.num_stories} stories" + (f" and {num_images} pictures" if num_images else ""))

    def encode_text(captions: list[str]) -> list[Tensor]:
        encoded = text_encoder.encode([text_encoder.shortened(caption) for caption in captions])
        return [text[mask].cpu() for text, mask in zip(encoded.text, encoded.text_mask, strict=True)]

    keep_freed_memory()
    stories = tokenize_source(source, base.tokenizer.encode, encode_text, plan, path, made_by, on_note)
    note_cut_captions(stories.captions, source, text_encoder, on_note)
    return stories


def note_missing_captions(data: Path, captions: list[str], on_note: Callable[[str], None]) -> None:
    """Notes how many clips have captions, where some have none: training goes on, but nothing else would show it. captions: of each clip."""
    num_captioned = sum(map(bool, captions))
    if num_captioned < len(captions):
        count = f"{num_captioned} of {len(captions)} clips have captions"
        on_note(f"{data}: {count}: a model learns to follow prompts from them alone; write NAME.txt beside NAME.mp4")


def note_cut_captions(captions: list[str], source: CaptionedSource, text_encoder: TextEncoder, on_note: Callable[[str], None]) -> None:
    """Notes how many captions were too long for the text encoder, and whose the first one is; nothing where none was."""
    cut = {caption for caption in captions if text_encoder.shortened(caption) != caption}
    if not cut:
        return
    owners = [file.name for file in source.files if file.caption in cut]
    limit = f"more than the {text_encoder.config.max_length} tokens that the text encoder reads"
    first = f"; the first is that of {owners[0]}" if owners else ""
    on_note(f"{len(cut)} of {len(captions)} captions have {limit}: of those only the first words that fit are learnt from{first}")


def token_origins(base: Model, text_encoder: TextEncoder) -> tuple[dict[str, Any], dict[str, Any]]:
    """What tokens and texts depend on besides the data: the hash of the tokenizer's weights, and the text encoder's fingerprint.

    First as it is written now, with the hash of the weights that tokens come from; then as older versions wrote it, with that of all
    the tokenizer's weights. Files with either are valid.
    """
    now, before = tokens_sha256(base.tokenizer), state_sha256([base.tokenizer])
    return {"tokenizer": now, "text_encoder": text_encoder.fingerprint}, {"tokenizer": before, "text_encoder": text_encoder.fingerprint}


def prepared_tokens(path: Path, base: Model, text_encoder: TextEncoder) -> StoryTokens:
    """A file of `phenaki data tokenize`; TokensError where it was made with another tokenizer or text encoder than these."""
    stories = StoryTokens.load(path)
    try:
        made = dict(json.loads(stories.description))
    except (ValueError, TypeError, RecursionError) as error:
        raise TokensError(f"{path}: does not say what made it") from error
    wanted, older = token_origins(base, text_encoder)
    for key in wanted:
        if made.get(key) not in (wanted[key], older[key]):
            named = key.replace("_", " ")
            raise TokensError(
                f"{path}: was made with another {named} than that of the model {base.info.name!r} in use",
                "Name its own model with --tokenizer, or make it again with `phenaki data tokenize --model`",
            )
    problem = _misfit(stories, base.tokenizer, text_encoder.config.width)
    if problem:
        raise TokensError(f"{path}: {problem}")
    return stories


def _misfit(stories: StoryTokens, tokenizer: CViViT, width: int) -> str:
    """What in the tensors is not as this tokenizer, and a text encoder of this width, make it; "" where nothing is."""
    parts = (stories.tokens, stories.images) if len(stories.images) else (stories.tokens,)
    largest = max((int(part.max()) for part in parts if part.numel()), default=0)
    if largest >= tokenizer.codebook_size:
        return f"holds the token {largest}, the tokenizer has {tokenizer.codebook_size}"
    grid = tokenizer.config.grid
    for part in parts:
        if part.shape[-2:] != grid:
            return f"has slices of {tuple(part.shape[-2:])} tokens, the tokenizer's are {grid}"
    if stories.texts.shape[1] != width:
        return f"has texts {stories.texts.shape[1]} wide, the text encoder's are {width}"
    return "" if stories.texts.isfinite().all() else "has texts that are no numbers"


def tokenize_data(
    data: Path | None, model: str | Path, output: Path, *, config: Path | None = None, seed: int | None = None, num_clips: int | None = None,
    num_frames: int | None = None, world: str | None = None, device: str = "cpu", on_note: Callable[[str], None] = print,
) -> StoryTokens:  # fmt: skip
    """`phenaki data tokenize`: the tokens and texts of a data source as a file that `phenaki train generator --data` takes.

    data: what `phenaki train` takes, but for such a file; None: the storybook world drawn by code. config: settings whose [world], [footage]
    and [train_generator] say what `phenaki train generator` would make of it; without it they are the defaults. num_clips, num_frames
    (1 + pt*k), seed, world (of the storybook, a name of `WORLDS`) go before them. Interrupted and called again, it resumes. ValueError or
    FileNotFoundError before any work where an argument cannot be used.
    """
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: ending {output.suffix!r}: tokens are stored as .safetensors")
    if output.exists() and not is_story_tokens(output):
        raise ValueError(f"{output}: is there, and no file of story tokens. Name another file, or remove it")
    named = named_world("small" if world is None else world)
    if data is not None and not data.exists():
        raise FileNotFoundError(f"{data}: no such folder or file")
    if data is not None and is_story_tokens(data):
        raise ValueError(f"{data}: holds story tokens already. `phenaki train generator --data {data}` takes them as they are")
    settings = None if config is None else load_settings(config)
    training = GeneratorTraining() if settings is None else settings.train_generator
    training = training if seed is None else replace(training, optimizer=replace(training.optimizer, seed=seed))
    world_config = settings.world if settings is not None and world is None else named
    base = load_model(model, device)
    num_slices = training.num_slices if num_frames is None else base.tokenizer.num_slices(num_frames)
    footage = None if settings is None else settings.footage
    source = open_source(replace(world_config, fps=base.info.fps), base.info.tokenizer.image_size, data, device, footage, on_note=on_note)
    text_encoder = TextEncoder.load(base.info.text, device=device)
    num_stories = training.num_stories if num_clips is None else num_clips
    own = replace(training, num_stories=num_stories, num_slices=num_slices)
    return story_tokens(source, base, text_encoder, own, output, on_note)


def sample_prompts(source: CaptionedSource, base: Model, num_slices: int) -> Prompts:
    """Prompts of four short stories, from clips that nobody trains on."""
    pt, fps = base.info.tokenizer.temporal_patch_size, base.info.fps
    _, stories = next(source.captioned_clips(SAMPLE_SEED, 4, 1 + pt * (num_slices - 1), pt, 2))
    return [[(scene.caption, max(scene.num_frames, 2 * pt) / fps) for scene in story.scenes] for story in stories]


def stored_prompts(stories: StoryTokens, base: Model) -> Prompts:
    """Up to four stories of a file, evenly spread over it, as prompts; of its pictures where it has no stories."""
    pt, fps, captions = base.info.tokenizer.temporal_patch_size, base.info.fps, stories.captions
    if not len(stories.tokens):
        return [[(captions[caption], 2 * pt / fps)] for caption in stories.image_caption[:4].tolist()]
    chosen = torch.linspace(0, len(stories.tokens) - 1, min(4, len(stories.tokens))).long()
    prompts = []
    for row in chosen.tolist():
        scenes = dict.fromkeys(zip(stories.scene_start[row].tolist(), stories.scene_end[row].tolist(), stories.caption[row].tolist(), strict=True))
        prompts.append([(captions[caption], max(end - first, 2) * pt / fps) for first, end, caption in scenes])
    return prompts
