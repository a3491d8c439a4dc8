"""`phenaki train generator`: MaskGIT on tokenised stories (Villegas et al. 2022, section 2.2, and docs/DESIGN.md).

What a step is shown: `batches.py`. By which loss: `generator_losses.py`. Where the tokens come from: `stories.py`.
"""

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phenaki.checkpoint import DEFAULT_MODEL, Model, ModelInfo, load_model, read_info, save_info, save_weights
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.data.listing import is_footage
from phenaki.data.order import HELD_OUT_SEED
from phenaki.data.sources import check_there, told_data
from phenaki.data.tokens import StoryTokens, is_story_tokens
from phenaki.devices import device_of
from phenaki.maskgit import MaskGIT, MaskGITConfig
from phenaki.sampling import SamplingOptions
from phenaki.text import TextEncoder
from phenaki.training.batches import check_lengths, draw_batch
from phenaki.training.beginning import NOT_HELD_OUT, Asked, check_place, check_start, folder_alone, note_warmup, override, silent
from phenaki.training.checkpoints import TOKENS_AND_TEXTS, checkpoint_folders, newest_whole
from phenaki.training.generator_losses import TextBatch, generator_loss, text_batch, text_step, validation_loss, with_own_context
from phenaki.training.parallel import Group, Part, joined
from phenaki.training.rollouts import least_slices
from phenaki.training.run import Run
from phenaki.training.same_tokens import changed_tokens, tokens_sha256
from phenaki.training.settings import GeneratorTraining, ModelSettings, load_settings
from phenaki.training.start import start_network
from phenaki.training.stories import Prompts, TrainingStories, open_stories, token_origins
from phenaki.training.task import Task
from phenaki.vocabulary import MAX_WORDS, vocabulary

HELD_OUT_STORIES = 64


def identity_of(config: MaskGITConfig, made_with: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a run must have alike to resume. made_with: what the tokens and texts depend on, as written now and before; one has to match."""
    hashes = [hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:12] for one in made_with]
    return {"generator": asdict(config), TOKENS_AND_TEXTS: hashes}


@dataclass
class GeneratorTask(Task):
    """What a generator run trains."""

    model: MaskGIT
    stories: StoryTokens
    training: GeneratorTraining
    info: ModelInfo
    tokenizer: CViViT
    held_out: StoryTokens | None = None  # stories to validate on
    on_sample: Callable[[MaskGIT, Path], None] = lambda model, path: None
    made_with: Sequence[dict[str, Any]] = ()  # what the tokens and texts depend on, as written now and before (`token_origins`)
    part: str = "generator"

    def __post_init__(self):
        self._longest_text = int(self.stories.text_spans.diff().max())
        self._words = tuple(sorted({*self.info.words, *vocabulary(self.stories.captions)}))[:MAX_WORDS]

    @property
    def identity(self) -> dict[str, Any]:
        return identity_of(self.model.config, self.made_with)

    @property
    def habits(self) -> dict[str, Any]:
        own = {name: value for name, value in asdict(self.training).items() if name != "optimizer"}
        validation = None if self.held_out is None else [self.held_out.description, self.training.optimizer.validation_batches]
        return own | {"stories": self.stories.description, "held_out": validation}

    @property
    def _longest(self) -> tuple[int, int]:
        """Slices of the longest chunk and of its context."""
        config = self.model.config
        if self.training.image_prob == 1:
            return 1, 0
        sees_context = config.context_slices and self.training.from_text_prob < 1
        return config.chunk_slices, config.context_slices + config.anchor if sees_context else 0

    def build(self) -> MaskGIT:
        return MaskGIT(self.model.config)

    def draw(self, step: int, parts: list[Part]) -> list[TextBatch]:
        batch = draw_batch(self.stories, self.model.config, self.training, step)
        return [text_batch(self.stories, batch, part, self.device) for part in parts]

    def num_tokens(self, batch: TextBatch) -> int:
        return batch.batch.tokens.numel()

    def losses(self, batch: TextBatch, step: int) -> dict[str, Tensor]:
        batch = with_own_context(self.model, batch, self.training.num_rollout_steps)
        return generator_loss(self.model, batch.batch, batch.text, batch.text_mask, self.training.label_smoothing, batch.num_hidden)

    def rehearse(self, network: MaskGIT, num_rows: int) -> Tensor:
        """The longest chunk after the longest context, half of its tokens hidden."""
        config, device, (h, w) = network.config, device_of(network), self.stories.tokens.shape[2:]
        step = text_step(self.device)
        text = torch.zeros(num_rows, math.ceil(self._longest_text / step) * step, config.text_dim, device=device)
        cache = network.encode_text(text, torch.ones(text.shape[:2], dtype=torch.bool, device=device))
        length, known = self._longest
        chunk = torch.zeros(num_rows, length, h, w, dtype=torch.long, device=device)
        kinds = torch.zeros(known, dtype=torch.long, device=device)
        context = network.encode_context(chunk[:, :1].expand(-1, known, -1, -1), kinds) if known else None
        features = network.features(chunk, cache, context, False).flatten(0, -2)
        half = len(features) // 2
        return network.score(features[:half], chunk.flatten()[:half], self.training.label_smoothing).cross_entropy.mean()

    def effort(self, batch: TextBatch) -> float:
        """By slices of chunk and context; slices that are only passed forward, for a roll-out or the critic, count a third."""
        config, context = self.model.config, batch.batch.context
        length, known = batch.batch.tokens.shape[1], 0 if context is None else context.shape[1]
        rolled_out = config.context_slices + self.training.num_rollout_steps * config.chunk_slices if batch.batch.rollout else 0
        judged = length if config.critic else 0
        return len(batch.batch.tokens) * (length + known + (rolled_out + judged) / 3) / sum(self._longest)

    def describe(self, folder: Path, files: dict[str, str], step: int) -> None:
        files = files | save_weights(folder, "tokenizer", self.tokenizer.state_dict())
        facts = {**self.info.training, "generator_steps": step, "generator_seed": self.training.optimizer.seed}
        save_info(folder, replace(self.info, training=facts, files=files, words=self._words))

    def validate(self, model: MaskGIT, num_batches: int, num_parts: int) -> dict[str, float]:
        if self.held_out is None:
            return {}
        return validation_loss(model, self.held_out, model.config, self.training, num_batches, HELD_OUT_SEED, num_parts)

    def sample(self, model: MaskGIT, path: Path) -> None:
        self.on_sample(model, path)


def run_generator_training(
    config: Path, out: Path, *, tokenizer: str | Path | None = None, on_log: Callable[[dict], None] = print,
    on_note: Callable[[str], None] = print, **wishes: Any,
) -> Path:  # fmt: skip
    """The whole program: settings file and trained tokenizer in, whole model out at `out`/model, whose path is returned.

    tokenizer: a model folder or name; by default `out`/model, else that of `init_from`, else the shipped model's where it is that of the
    settings. wishes: fields of `Asked`: data and validation (footage, an atlas, or a file of `phenaki data tokenize`; held-out clips),
    init_from (a model folder or name whose generator's weights it starts from), steps, seed, device.
    """
    asked, settings = Asked(config, out, **wishes), load_settings(config)
    check_place(out)
    training = replace(settings.train_generator, optimizer=override(settings.train_generator.optimizer, asked.steps, asked.seed))
    origin = tokenizer or default_tokenizer(out, asked.init_from)
    with joined(asked.device) as group, folder_alone(out / "generator", training.optimizer, group) as lock:
        note = on_note if group.leads else silent
        note(f"tokenizer: {origin}")
        base = load_model(origin, group.device)
        if origin == DEFAULT_MODEL and tokenizer is None:
            check_is_meant(settings.tokenizer, base, config, out)
        task = _make_task(asked, replace(settings, train_generator=training), group, base, note)
        note_warmup(settings.train_generator.optimizer, training.optimizer, note)
        run = Run(out / "generator", task, training.optimizer, group, note, lock)
        run.train(on_log)
        averaged = run.averaged()
        if group.leads:
            (out / "model").mkdir(parents=True, exist_ok=True)
            task.describe(out / "model", save_weights(out / "model", "generator", averaged.state_dict()), run.step)
    return out / "model"


def default_tokenizer(out: Path, init_from: str | None) -> str | Path:
    """The model, a folder or name, whose tokens a run learns by default.

    ValueError where a tokenizer was trained in `out` that is not in `out`/model.
    """
    if (out / "model" / "config.json").is_file():
        return out / "model"
    if checkpoint_folders(out / "tokenizer"):
        lost = f"{out / 'model'} is missing, though a tokenizer was trained in {out / 'tokenizer'}"
        raise ValueError(f"{lost}: the same `phenaki train tokenizer` writes it again, or name another by --tokenizer")
    return init_from or DEFAULT_MODEL


def check_is_meant(wanted: CViViTConfig, base: Model, config: Path, out: Path) -> None:
    """ValueError where the shipped tokenizer, which stands in for none, is not what the settings say."""
    if other := changed_tokens(wanted, base):
        raise ValueError(
            f"{out / 'model'} is missing, and the shipped tokenizer is not that of {config} ({', '.join(other)}). Train one first, by "
            f"`phenaki train tokenizer --out {out}`, or name one: --tokenizer MODEL (--tokenizer {DEFAULT_MODEL} for the shipped one)"
        )


def check_room(config: MaskGITConfig, training: GeneratorTraining) -> None:
    """ValueError where no story of the settings' length has room for the longest chunk after the longest context."""
    recent = config.context_slices if training.from_text_prob < 1 else 0
    if training.image_prob < 1 and training.num_stories and training.num_slices < config.chunk_slices + recent:
        raise ValueError(
            f"stories of {training.num_slices} slices ([train_generator] num_slices) have no room for a chunk of {config.chunk_slices} "
            f"([generator] chunk_slices) after {recent} of context (context_slices): make them longer, or the others less"
        )


def show_stories(prompts: Prompts, model: MaskGIT, base: Model, text_encoder: TextEncoder, sampling: SamplingOptions, path: Path) -> None:
    """Short stories as path.png and path.mp4; nothing where av or pydantic is not installed, as on machines that only train."""
    if all(map(importlib.util.find_spec, ("av", "pydantic"))):
        from phenaki.training.story_samples import save_story_sample

        save_story_sample(prompts, model, base, text_encoder, sampling, path)


def _make_task(asked: Asked, settings: ModelSettings, group: Group, base: Model, on_note: Callable[[str], None]) -> GeneratorTask:
    folder, training = asked.out / "generator", settings.train_generator
    text_encoder = TextEncoder.load(settings.text, device=group.device)
    torch.manual_seed(training.optimizer.seed)
    config = replace(settings.generator, codebook_size=base.tokenizer.codebook_size)
    model, begun = MaskGIT(config), newest_whole(folder)
    trained = None if asked.init_from is None or begun else load_model(asked.init_from)
    facts = base.info.training | start_network(model, "generator", begun, trained, asked.init_from, on_note)
    words, made_with = words_before(begun, trained), token_origins(base, text_encoder)
    if trained is not None and tokens_sha256(trained.tokenizer) != tokens_sha256(base.tokenizer):
        on_note(f"{asked.init_from}: its generator knows other tokens than those of {base.info.name}, which it has to learn anew")
    check_start(begun, training.optimizer, identity_of(config, made_with), group)
    check_data(asked, config, training, on_note)
    encoder = text_encoder.fingerprint
    info = ModelInfo(asked.config.stem, base.info.tokenizer, config, settings.text, base.info.fps, settings.sampling, encoder, facts, words=words)
    open_as = lambda own, source, file: open_stories(settings, own, base, text_encoder, source, folder / file, str(group.device), on_note)
    stories = stories_to_train_on(asked, config, training, group, open_as)
    held_out = stories_to_validate_on(asked, config, training, stories.tokens, open_as, on_note) if group.leads else None
    look = lambda network, path: show_stories(stories.prompts, network, base, text_encoder, settings.sampling, path)
    return GeneratorTask(model.to(group.device), stories.tokens, training, info, base.tokenizer, held_out, look, made_with)


def words_before(begun: Path | None, trained: Model | None) -> tuple[str, ...]:
    """Words that a network knows besides its stories': those of the checkpoint it goes on from, or of the model it starts from."""
    if begun:
        return read_info(begun).words
    return () if trained is None else trained.info.words


def check_data(asked: Asked, config: MaskGITConfig, training: GeneratorTraining, on_note: Callable[[str], None]) -> None:
    """Tells what is trained on. ValueError where stories of the settings' length have no room for the chunks, or held-out data is not there."""
    if asked.data is None or not is_story_tokens(asked.data):  # else their length is that of the file
        check_rollouts(config, training, training.num_slices)
        check_room(config, training)
    told_data(asked.data, on_note)
    if asked.validation is not None:
        check_there(asked.validation)


OpenAs = Callable[[GeneratorTraining, Path | None, str], TrainingStories]  # `open_stories`: by these settings, from this data, in that file


def stories_to_train_on(asked: Asked, config: MaskGITConfig, training: GeneratorTraining, group: Group, open_as: OpenAs) -> TrainingStories:
    """The stories, in every process. ValueError where the longest chunk, or a context that the model makes, has no room in them."""
    stories = open_as(training, asked.data, "stories.safetensors") if group.leads else None
    group.wait()  # the others read what the first has made
    stories = stories or open_as(training, asked.data, "stories.safetensors")
    check_lengths(stories.tokens, config, training, "training")
    check_rollouts(config, training, stories.tokens.tokens.shape[1])
    return stories


def stories_to_validate_on(
    asked: Asked, config: MaskGITConfig, training: GeneratorTraining, stories: StoryTokens, open_as: OpenAs, on_note: Callable[[str], None]
) -> StoryTokens | None:
    """Stories besides those that are trained on: of the held-out data, or of the storybook world; None where there are none, or none are wanted.

    Held-out data that is trained on as well is noted.
    """
    data, validation = asked.data, asked.validation
    if not training.optimizer.validation_batches or not (validation is not None or is_drawn(data)):
        return None
    count = HELD_OUT_STORIES if training.num_stories else 0  # none where pictures alone are trained on
    fewer = replace(training, num_stories=count, optimizer=replace(training.optimizer, seed=HELD_OUT_SEED))
    held_out = open_as(fewer, data if validation is None else validation, "held-out.safetensors").tokens
    check_lengths(held_out, config, training, "held-out")
    if validation is not None:
        is_same_data = data is not None and validation.resolve() == data.resolve()
        if is_same_data or shares_stories(stories, held_out):
            on_note(f"{validation}: {NOT_HELD_OUT}")
    return held_out


def is_drawn(data: Path | None) -> bool:
    """Whether the data is a storybook world, of which another seed gives other stories."""
    return data is None or not (is_footage(data) or is_story_tokens(data))


def shares_stories(stories: StoryTokens, held_out: StoryTokens) -> bool:
    """Whether the first of the held-out stories is among those to train on, to the token."""
    first = held_out.tokens[:1]
    if not len(first) or first.shape[1:] != stories.tokens.shape[1:]:
        return False
    return bool((stories.tokens == first).flatten(1).all(1).any())


def check_rollouts(config: MaskGITConfig, training: GeneratorTraining, num_slices: int) -> None:
    """ValueError where stories of so many slices, or a generator of this kind, have no room for a context that the model makes."""
    least = least_slices(config)
    if training.rollout_prob and (num_slices < least or not config.context_slices):
        raise ValueError(
            f"rollout_prob {training.rollout_prob}: needs context_slices, and stories of {least} slices; found {num_slices}, set num_slices"
        )
