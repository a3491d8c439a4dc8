"""One file per model (configs/*.toml) -> everything that training it needs."""

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from phenaki.config import ConfigError, build, check_range, read_settings, told
from phenaki.cvivit import CViViTConfig
from phenaki.data.footage_settings import FootageSettings
from phenaki.data.world import WorldConfig, named_world
from phenaki.maskgit import MaskGITConfig
from phenaki.sampling import SamplingOptions
from phenaki.text import TextConfig
from phenaki.training.discriminator import patch_size_of
from phenaki.training.losses import LossSettings
from phenaki.training.optimizers import OptimizerSettings


@dataclass(frozen=True)
class TokenizerTraining:
    """Losses and data of tokenizer training."""

    num_slices: int = 4  # of a training clip
    num_stories: int = 0  # of a storybook world, painted once, to cut clips from: for large batches on a GPU, which holds them; 0 = each clip anew
    story_slices: int = 17  # of each of these
    image_prob: float = 0.0  # share of the batches that show still pictures alone, where the data has some
    decoder_only: bool = False  # tokens stay what they are: only the way from them to pixels is trained (needs --init-from)
    losses: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self):
        check_range(self, "num_slices", "story_slices", at_least=1)
        check_range(self, "num_stories", at_least=0)
        check_range(self, "image_prob", at_least=0, at_most=1)
        if self.num_stories and self.story_slices < self.num_slices:
            raise ValueError(f"story_slices {self.story_slices}: clips of {self.num_slices} slices (num_slices) are cut from these stories")


def _table(values: Any, source: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: needed a table of settings, found {told(values)}")
    return dict(values)


def read_world(values: dict[str, Any], source: str) -> WorldConfig:
    """A world by name, with any of its fields set anew."""
    values = _table(values, source)
    name = values.pop("name", "small")
    if "size" in values:
        raise ConfigError(f"{source}: size is that of [tokenizer] image_size; set it there")
    if not isinstance(name, str):
        raise ConfigError(f"{source}: name = {told(name)}: needed the name of a world")
    try:
        world = named_world(name)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    changes = build(WorldConfig, {"actors": world.actors, "places": world.places, **values}, source)
    return replace(world, **{key: getattr(changes, key) for key in values})


@dataclass(frozen=True)
class MaskTasks:
    """Shares of the samples, of those that a task is possible for, part of whose chunk is known (MAGVIT, Yu et al. 2022, arXiv 2212.05199).

    The rest, most of them, has the main tasks: from text, and continuing a context.
    """

    first_frame: float = 0.1  # the first slice is known, a picture to animate; of chunks that start a video, of 2 slices or more
    between: float = 0.05  # the first and the last slice are known; of chunks of 3 slices or more
    inpaint: float = 0.03  # all around a box is known, in every slice
    outpaint: float = 0.03  # a box is known, in every slice

    def __post_init__(self):
        shares = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        wrong = [name for name, share in shares.items() if not 0 <= share <= 1]
        if wrong:
            raise ValueError(f"{wrong[0]} {shares[wrong[0]]}: needed a share in [0, 1]")
        if sum(shares.values()) > 1 + 1e-9:
            raise ValueError(f"the tasks' shares {shares} come to {sum(shares.values()):g}: needed 1 at most")


@dataclass(frozen=True)
class GeneratorTraining:
    """Data and loss of generator training."""

    num_stories: int = 6000  # tokenised once
    num_slices: int = 17  # of each story
    max_scenes: int = 3  # of each story
    num_images: int = 2000  # at most; still pictures tokenised once, where the data has some
    from_text_prob: float = 0.3  # share of the batches of video without context
    image_prob: float = 0.1  # share of the batches that show still pictures alone: the data's, and first frames of its videos
    tasks: MaskTasks = field(default_factory=MaskTasks)
    rollout_prob: float = 0.0  # share of the batches with context in which the network makes it itself, in the samples where that can be
    num_rollout_steps: int = 4  # rounds in which it does: so many passes forward, and noise drawn on the CPU
    label_smoothing: float = 0.0  # share of a target spread over all values, in [0, 1); 0 = off
    per_slice_prob: float = 0.5  # share of the samples in which each slice has a mask ratio of its own, not one the whole chunk
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self):
        check_range(self, "num_slices", "max_scenes", at_least=1)
        check_range(self, "num_stories", "num_images", at_least=0)
        check_range(self, "from_text_prob", "image_prob", "rollout_prob", "per_slice_prob", at_least=0, at_most=1)
        check_range(self, "num_rollout_steps", at_least=1, at_most=256)
        check_range(self, "label_smoothing", at_least=0, below=1)


def read_footage(values: Any, size: int, fps: float, source: str) -> FootageSettings:
    """How clips are cut, at the size of the tokenizer and the rate of the world: no second number to type."""
    values = _table(values, source)
    for key, section in (("size", "[tokenizer] image_size"), ("fps", "[world] fps")):
        if key in values:
            raise ConfigError(f"{source}: {key} is that of {section}; set it there")
    return build(FootageSettings, {**values, "size": size, "fps": fps}, source)


@dataclass(frozen=True)
class ModelSettings:
    """A whole configuration file."""

    world: WorldConfig
    footage: FootageSettings
    tokenizer: CViViTConfig
    generator: MaskGITConfig
    text: TextConfig
    sampling: SamplingOptions  # the model's own defaults
    train_tokenizer: TokenizerTraining
    train_generator: GeneratorTraining


def check_discriminator(losses: LossSettings, image_size: int, where: str) -> None:
    """ConfigError where a discriminator, which is not asked before its start_step, has more stages than such pictures can be halved."""
    if losses.adversarial_weight and image_size < patch_size_of(losses.discriminator_stages):
        needed = f"needed {patch_size_of(losses.discriminator_stages)} pixels a side at least, or fewer stages"
        raise ConfigError(f"{where}: discriminator_stages {losses.discriminator_stages} with image_size {image_size}: {needed}")


def check_sampling(options: SamplingOptions, generator: MaskGITConfig, where: str) -> None:
    """ConfigError for ways of sampling that a generator of this kind, once it is trained, could not be asked for."""
    if options.correction_order == "critic" and options.num_corrections and not generator.critic:
        raise ConfigError(f"{where}: correction_order \"critic\" needs a generator with one: critic = true in [generator]")
    if options.guidance_scale != 1 and not generator.cond_drop_prob:
        asked = f"guidance_scale {options.guidance_scale:g} with [generator] cond_drop_prob 0"
        raise ConfigError(f"{where}: {asked}: needed a share of captions to drop, above 0, or guidance_scale = 1")


def clip_frames(settings: ModelSettings) -> dict[str, int]:
    """Frames of the clips that each network is trained on."""
    lengths = {"tokenizer": settings.train_tokenizer.num_slices, "generator": settings.train_generator.num_slices}
    return {name: 1 + settings.tokenizer.temporal_patch_size * (count - 1) for name, count in lengths.items()}


def load_settings(path: str | Path) -> ModelSettings:
    """Reads configs/NAME.toml. The generator's codebook is the tokenizer's and its text width the encoder's: no second number to type."""
    values = read_settings(path)
    if not values:
        raise ConfigError(f"{path}: holds no settings. Begin with a copy of one of the repository's configs/")
    known = [entry.name for entry in fields(ModelSettings)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{path}: unknown section [{key}]; known: {', '.join(known)}")
    tokenizer = build(CViViTConfig, values.get("tokenizer", {}), f"{path}: tokenizer")
    world = replace(read_world(values.get("world", {}), f"{path}: world"), size=tokenizer.image_size)
    text = build(TextConfig, values.get("text", {}), f"{path}: text")
    codebook_size = math.prod(tokenizer.fsq_levels) if tokenizer.quantizer == "fsq" else tokenizer.codebook_size
    given = _table(values.get("generator", {}), f"{path}: generator")
    derived = {"codebook_size": codebook_size, "text_dim": text.width}
    generator = build(MaskGITConfig, {**given, **derived}, f"{path}: generator")
    sampling = build(SamplingOptions, values.get("sampling", {}), f"{path}: sampling")
    check_sampling(sampling, generator, f"{path}: sampling")
    train_tokenizer = build(TokenizerTraining, values.get("train_tokenizer", {}), f"{path}: train_tokenizer")
    check_discriminator(train_tokenizer.losses, tokenizer.image_size, f"{path}: train_tokenizer.losses")
    return ModelSettings(
        world=world,
        footage=read_footage(values.get("footage", {}), tokenizer.image_size, world.fps, f"{path}: footage"),
        tokenizer=tokenizer,
        generator=generator,
        text=text,
        sampling=sampling,
        train_tokenizer=train_tokenizer,
        train_generator=build(GeneratorTraining, values.get("train_generator", {}), f"{path}: train_generator"),
    )
