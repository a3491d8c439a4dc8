"""`phenaki train tokenizer`: C-ViViT on the storybook world or on footage."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phenaki.atomic import free_name
from phenaki.checkpoint import ModelInfo, load_model, part_of, save_info, save_weights
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.data.clip_source import ClipSource
from phenaki.data.order import HELD_OUT_SEED, SAMPLE_SEED, is_image_step
from phenaki.data.sources import check_there, open_source, told_data
from phenaki.data.storybook import StorybookWorld
from phenaki.devices import device_of
from phenaki.maskgit import MaskGIT
from phenaki.training.beginning import NOT_HELD_OUT, Asked, check_place, check_start, folder_alone, note_warmup, override, silent
from phenaki.training.checkpoints import checkpoint_folders, newest_whole
from phenaki.training.clip_bank import ClipBank
from phenaki.training.losses import TokenizerLosses, build_losses, with_psnr
from phenaki.training.optimizers import generator_for
from phenaki.training.parallel import Group, Part, joined
from phenaki.training.run import Run
from phenaki.training.same_tokens import check_same_tokens, freeze_tokens
from phenaki.training.samples import save_video_rows
from phenaki.training.settings import ModelSettings, TokenizerTraining, load_settings
from phenaki.training.start import start_network
from phenaki.training.task import Task


def data_hash(source: ClipSource) -> str:
    """The hash of the data for a model's config.json: of footage that of its clips, however they are cut, of others that of the fingerprint."""
    return source.clips_hash or hashlib.sha256(source.fingerprint.encode()).hexdigest()[:16]


def distinct_share(tokens: Tensor) -> Tensor:
    """The number of distinct tokens of a clip as a share of all its tokens; the mean over the clips of tokens (b t h w).

    It falls towards 0 where codes collapse. Counted in single clips, so that splitting a batch does not change it.
    """
    ordered = tokens.flatten(1).sort(dim=1).values
    return ((ordered.diff(dim=1) != 0).sum(dim=1) + 1).div(ordered.shape[1]).mean()


def identity_of(config: CViViTConfig, training: TokenizerTraining, losses: TokenizerLosses) -> dict[str, Any]:
    """What a run must have alike to resume."""
    return {"tokenizer": asdict(config), "decoder_only": training.decoder_only, "discriminator": losses.discriminator is not None}


@dataclass
class TokenizerTask(Task):
    """What a tokenizer run trains."""

    model: CViViT
    source: ClipSource
    training: TokenizerTraining
    info: ModelInfo
    held_out: ClipSource | None = None  # clips to validate on
    generator: MaskGIT | None = None  # goes with the model where the tokens stay what they are
    criterion: TokenizerLosses | None = None  # built from the settings where none is given
    part: str = "tokenizer"

    def __post_init__(self):
        self.criterion = self.criterion or build_losses(self.training.losses, self.device)
        self._quantized: list[tuple[Tensor, Tensor]] = []  # codes and tokens of the step, for reviving codes
        self._quantized_step = 0

    @property
    def identity(self) -> dict[str, Any]:
        return identity_of(self.model.config, self.training, self.criterion)

    @property
    def habits(self) -> dict[str, Any]:
        training, validation = asdict(self.training), None
        if self.held_out is not None:
            validation = [self.held_out.fingerprint, self.training.optimizer.validation_batches]
        own = {name: training[name] for name in ("num_slices", "image_prob", "losses")}
        return own | {"data": self.source.fingerprint, "held_out": validation}

    @property
    def discriminator(self) -> nn.Module | None:
        """The losses' module where it has a discriminator: its parameters are only the discriminator's, its buffers LeCam's."""
        return None if self.criterion.discriminator is None else self.criterion

    def _trains_on_pictures_alone(self, source: ClipSource) -> bool:
        """Whether every batch is still pictures."""
        return self.training.image_prob == 1 and source.num_images > 0

    @property
    def num_frames(self) -> int:
        """Frames of a training clip."""
        return self.model.num_frames(self.training.num_slices)

    def build(self) -> CViViT:
        return CViViT(self.model.config)

    def draw(self, step: int, parts: list[Part]) -> list[Tensor]:
        size = self.training.optimizer.batch_size
        first, end = parts[0].of(size).start, parts[-1].of(size).stop  # all at once, so that all are decoded side by side
        return list(self._step_clips(step, first, end - first).chunk(len(parts)))

    def _step_clips(self, step: int, first: int, count: int) -> Tensor:
        """Some rows of a step's batch: clips, or pictures alone."""
        settings = self.training.optimizer
        first += step * settings.batch_size
        if is_image_step(settings.seed, step, self.training.image_prob) and self.source.num_images:
            return self.source.images(settings.seed, first, count)[0]
        return self._clips(self.source, settings.seed, first, count, self.num_frames)

    def _clips(self, source: ClipSource, seed: int, first: int, count: int, num_frames: int) -> Tensor:
        """Clips of so many frames; pictures where nothing else is trained on."""
        if self._trains_on_pictures_alone(source):
            return source.images(seed, first, count)[0]
        return source.clips(seed, first, count, num_frames, self.model.config.temporal_patch_size)

    def num_tokens(self, batch: Tensor) -> int:
        b, _, f, h, w = batch.shape
        patch_size = self.model.config.patch_size
        return b * self.model.num_slices(f) * (h // patch_size) * (w // patch_size)

    def losses(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        result = self.model(batch)
        if self.training.losses.revive_after and result.codes is not None:
            if step != self._quantized_step:  # what is left is that of a step that was skipped
                self._quantized, self._quantized_step = [], step
            self._quantized.append((result.codes, result.tokens))
        rng = generator_for(self.training.optimizer.seed, step, "losses")
        return {**self.criterion(result, batch, step, rng), "distinct_tokens": distinct_share(result.tokens)}

    def rehearse(self, network: CViViT, num_rows: int) -> Tensor:
        size, num_frames = network.config.image_size, 1 if self._trains_on_pictures_alone(self.source) else self.num_frames
        result = network(torch.zeros(num_rows, 3, num_frames, size, size, device=device_of(network)))
        return result.video.square().mean() + result.quantizer_loss

    def effort(self, batch: Tensor) -> float:
        """The tokenizer's own: not what discriminator and metric networks do."""
        num_slices = 1 if self._trains_on_pictures_alone(self.source) else self.training.num_slices
        return batch.shape[0] * self.model.num_slices(batch.shape[2]) / num_slices

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        return with_psnr(means)

    def after_step(self, step: int) -> None:
        """Revives codes that nothing is near to."""
        if self._quantized:
            codes = torch.cat([codes.flatten(0, 3) for codes, _ in self._quantized])
            tokens = torch.cat([tokens.flatten(0, 3) for _, tokens in self._quantized])
            rng = generator_for(self.training.optimizer.seed, step, "revival")
            self.model.quantizer.revive(codes, tokens, self.training.losses.revive_after, rng)
            self._quantized.clear()

    def describe(self, folder: Path, files: dict[str, str], step: int) -> None:
        if self.generator is not None:
            files = files | save_weights(folder, "generator", self.generator.state_dict())
        facts = {"tokenizer_steps": step, "tokenizer_seed": self.training.optimizer.seed, "tokenizer_data": data_hash(self.source)}
        save_info(folder, replace(self.info, training={**self.info.training, **facts}, files=files))

    @torch.no_grad()
    def validate(self, model: CViViT, num_batches: int, num_parts: int) -> dict[str, float]:
        if self.held_out is None:
            return {}
        size, sums = self.training.optimizer.batch_size // num_parts, {}
        num_batches *= num_parts
        for number in range(num_batches):
            video = self.held_out_clips(number * size, size)
            batch_losses = self.criterion.held_out(model(video), video, generator_for(HELD_OUT_SEED, number // num_parts, "losses"))
            for name, value in batch_losses.items():
                sums[name] = sums.get(name, 0.0) + value.item() / num_batches
        return with_psnr(sums)

    def held_out_clips(self, first: int, count: int) -> Tensor:
        """Clips first .. first + count - 1 to validate on, (b c f h w) in [-1, 1]."""
        return self._clips(self.held_out, HELD_OUT_SEED, first, count, self.num_frames)

    @torch.no_grad()
    def sample(self, model: CViViT, path: Path) -> None:
        """Clips drawn with another seed: truth above what the averaged weights make of it."""
        truth = self._clips(self.source, SAMPLE_SEED, 0, 4, model.num_frames(min(4, self.training.num_slices)))
        made = model(truth).video
        save_video_rows(torch.stack([truth, made], dim=1).flatten(0, 1), path, self.info.fps)


def run_tokenizer_training(
    config: Path, out: Path, *, on_log: Callable[[dict], None] = print, on_note: Callable[[str], None] = print, **wishes: Any
) -> Path:
    """The whole program: settings file in, trained tokenizer out at `out`/model, whose path is returned.

    wishes: fields of `Asked`: data and validation (footage or an atlas; held-out clips), init_from (a model folder or name whose tokenizer's
    weights it starts from), steps, seed, device.
    """
    asked, settings = Asked(config, out, **wishes), load_settings(config)
    check_place(out)
    training = replace(settings.train_tokenizer, optimizer=override(settings.train_tokenizer.optimizer, asked.steps, asked.seed))
    if training.losses.revive_after and training.optimizer.sharded:
        raise ValueError(f"{config}: revive_after needs the whole codebook in every process: not with sharded = true")
    if training.decoder_only and training.losses.revive_after:
        raise ValueError(f"{config}: decoder_only = true keeps the tokens, revive_after changes them: set one of them back")
    if training.decoder_only and asked.init_from is None and newest_whole(out / "tokenizer") is None:
        raise ValueError(f"{config}: decoder_only = true needs --init-from MODEL, whose tokens are kept")
    with joined(asked.device) as group, folder_alone(out / "tokenizer", training.optimizer, group) as lock:
        note = on_note if group.leads else silent
        task = _make_task(asked, replace(settings, train_tokenizer=training), group, note)
        note_warmup(settings.train_tokenizer.optimizer, training.optimizer, note)
        run = Run(out / "tokenizer", task, training.optimizer, group, note, lock)
        run.train(on_log)
        averaged = run.averaged()
        if group.leads:
            place_model(out / "model", task, averaged, run.step, note)
    return out / "model"


def place_model(folder: Path, task: TokenizerTask, averaged: CViViT, step: int, on_note: Callable[[str], None]) -> None:
    """Writes the trained model folder, unless it holds this tokenizer already: then a generator trained on its tokens stays in it.

    A generator that knows other tokens is left out; a copy of it is kept, and on_note is called with where that is.
    """
    try:
        before = load_model(folder) if folder.is_dir() else None
    except ValueError:
        before = None
    if before is not None and before.info.tokenizer == averaged.config:
        old = before.tokenizer.state_dict()
        if all(torch.equal(value.cpu(), old[name]) for name, value in averaged.state_dict().items()):
            return
    drops_generator = before is not None and before.generator is not None and task.generator is None
    if drops_generator:
        kept_model = next(reversed(checkpoint_folders(folder.parent / "generator")), None) or copied(folder)
    folder.mkdir(parents=True, exist_ok=True)
    task.describe(folder, save_weights(folder, "tokenizer", averaged.state_dict()), step)
    if drops_generator:
        where = f" (the model as it was is in {kept_model})"
        on_note(f"{folder}: the generator that was there knows other tokens and is left out{where}; train it again, in another run folder")
        for name in filter(lambda name: part_of(name) == "generator", before.info.files):
            (folder / name).unlink(missing_ok=True)


def copied(model: Path) -> Path:
    """A copy of a model folder beside it, under the first free name of model-before-1, -2 and so on."""
    copy = free_name(model.with_name(f"{model.name}-before"))
    shutil.copytree(model, copy)
    return copy


def _make_task(asked: Asked, settings: ModelSettings, group: Group, on_note: Callable[[str], None]) -> TokenizerTask:
    folder, training, name = asked.out / "tokenizer", settings.train_tokenizer, asked.config.stem
    torch.manual_seed(training.optimizer.seed)
    tokenizer, losses = CViViT(settings.tokenizer), build_losses(training.losses, group.device)
    begun = newest_whole(folder)
    check_start(begun, training.optimizer, identity_of(settings.tokenizer, training, losses), group)
    origin = None if asked.init_from is None or begun else load_model(asked.init_from)
    facts = start_network(tokenizer, "tokenizer", begun, origin, asked.init_from, on_note)
    info, generator = ModelInfo(name, settings.tokenizer, None, settings.text, settings.world.fps, training=facts), None
    if training.decoder_only:
        freeze_tokens(tokenizer)
        kept = load_model(begun) if begun else origin  # a resumed run has the generator that it began with, whatever is named now
        check_same_tokens(settings.tokenizer, kept)
        generator, info = kept.generator, replace(kept.info, name=name, tokenizer=settings.tokenizer, training={**kept.info.training, **facts})
    told_data(asked.data, on_note)
    if asked.validation is not None:
        check_there(asked.validation)
    size, device = settings.tokenizer.image_size, str(group.device)
    opened = lambda path, report: open_source(settings.world, size, path, device, settings.footage, folder / report, on_note)
    source = opened(asked.data, "unusable.jsonl")
    held_out = source if isinstance(source, StorybookWorld) else None  # drawn with another seed: other stories
    if training.num_stories:
        source = bank_of(source, training, tokenizer, note=on_note)
    if asked.validation is not None:
        held_out = opened(asked.validation, "held-out-unusable.jsonl")
        if held_out.clips_hash and held_out.clips_hash == source.clips_hash:
            on_note(f"{asked.validation}: {NOT_HELD_OUT}")
    task = TokenizerTask(tokenizer.to(group.device), source, training, info, held_out, generator, losses)
    if asked.validation is not None and training.optimizer.validation_batches:
        task.held_out_clips(0, 1)  # data that gives no clips is refused now, not at the first checkpoint
    return task


def bank_of(source: ClipSource, training: TokenizerTraining, tokenizer: CViViT, note: Callable[[str], None]) -> ClipBank:
    """A bank of `num_stories` stories, painted once for the whole training. ValueError where the data is footage."""
    if not isinstance(source, StorybookWorld):
        raise ValueError(f"num_stories {training.num_stories}: only stories of a storybook world are painted; set it to 0 for footage")
    note(f"painting {training.num_stories} stories")
    frames = tokenizer.num_frames(training.story_slices)
    return ClipBank(source, training.optimizer.seed, training.num_stories, frames, tokenizer.config.temporal_patch_size)
