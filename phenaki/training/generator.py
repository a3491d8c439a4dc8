"""`phenaki train generator`: MaskGIT on tokenised stories (Villegas et al. 2022, section 2.2, and docs/DESIGN.md).

What a step is shown: `batches.py`. Where the tokens come from: `stories.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from phenaki.checkpoint import Model, ModelInfo, load_model, save_model
from phenaki.data.tokens import StoryTokens
from phenaki.director import SceneText, direct
from phenaki.maskgit import MaskGIT, MaskGITConfig
from phenaki.pipeline import to_pixels
from phenaki.sampling import SamplingOptions
from phenaki.story import Story, plan
from phenaki.text import TextEncoder
from phenaki.training.batches import Batch, draw_batch
from phenaki.training.run import Run, load_start
from phenaki.training.settings import GeneratorTraining, load_settings
from phenaki.training.stories import open_stories
from phenaki.training.tokenizer import override, write_picture
from phenaki.video import VideoScene, contact_sheet


def generator_loss(
    model: MaskGIT, batch: Batch, text: Tensor, text_mask: Tensor, label_smoothing: float = 0.0, num_hidden: float | None = None
) -> dict[str, Tensor]:
    """Cross-entropy of the hidden tokens in nats a token; text (b l d), text_mask (b l) as encoded, before any is dropped.

    num_hidden: what the sum over hidden tokens is divided by, the batch's own number of them by default. For one of k shares
    of a batch give the whole batch's `num_hidden / k`: then the mean over the shares, of the loss and of its gradients, is
    that of the whole batch. ("hidden" and "dropped" are means over rows, so theirs is where the shares have equally many.)
    """
    text, text_mask = model.drop_text(text, text_mask, batch.dropped)
    cache = model.encode_text(text, text_mask)
    context = model.encode_context(batch.context, batch.kinds, batch.corruption) if batch.context is not None else None
    shown = torch.where(batch.mask, model.mask_token_id, batch.tokens)
    features = model.features(shown, cache, context, batch.starts)
    scores = model.score(features[batch.mask], batch.tokens[batch.mask], label_smoothing)
    divisor = scores.log_probs.shape[1] if num_hidden is None else num_hidden
    correct = (scores.log_probs.detach() > -0.6931).float().mean(0)  # given more than even odds
    return {
        "loss": scores.cross_entropy.sum() / divisor,
        "correct": correct.sum() / divisor,
        "hidden": batch.mask.float().mean(),
        "dropped": batch.dropped.float().mean(),
    }


@torch.no_grad()
def validation_loss(
    model: MaskGIT, stories: StoryTokens, config: MaskGITConfig, training: GeneratorTraining, num_batches: int, seed: int
) -> dict[str, float]:
    """Means over the hidden tokens of held-out stories, the same for the same arguments: nats a token ("loss") and "correct".

    The batches are those of a training with this seed (masks, tasks, corrupted contexts), but no caption is dropped and no
    target smoothed, so figures of runs with other such settings can be compared. "loss_from_text" and "loss_continue" are of
    the batches without and with context, where there are some.
    """
    if num_batches < 1:
        raise ValueError(f"{num_batches} batches to validate on: needed at least 1")
    device, was_training = next(model.parameters()).device, model.training
    told, own = replace(config, cond_drop_prob=0.0), replace(training, optimizer=replace(training.optimizer, seed=seed))
    sums: dict[str, float] = {}
    model.eval()
    try:
        for step in range(num_batches):
            batch = draw_batch(stories, told, own, step)
            text, text_mask = stories.text(batch.captions)
            losses = generator_loss(model, batch.to(device), text.to(device), text_mask.to(device), num_hidden=1.0)
            kind = "loss_from_text" if batch.starts else "loss_continue"
            for name, value in (("loss", losses["loss"]), ("correct", losses["correct"]), (kind, losses["loss"])):
                sums[name] = sums.get(name, 0.0) + float(value)
                sums[f"of {name}"] = sums.get(f"of {name}", 0) + batch.num_hidden
    finally:
        model.train(was_training)
    return {name: total / sums[f"of {name}"] for name, total in sums.items() if not name.startswith("of ")}


def run_generator_training(
    config: Path, out: Path, *, data: Path | None = None, tokenizer: str | Path | None = None, init_from: str | None = None,
    steps: int | None = None, seed: int | None = None, device: str = "cpu", on_log: Callable[[dict], None] = print,
    on_note: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """The whole program: settings file and trained tokenizer in, whole model out at `out`/model, whose path is returned.

    tokenizer: a model folder or name; by default `out`/model where that exists, else the shipped model.
    init_from: a model folder or name whose generator's weights it starts from.
    data: as for the tokenizer, or a file of `phenaki data tokenize`.
    """
    settings = load_settings(config)
    training = replace(settings.train_generator, optimizer=override(settings.train_generator.optimizer, steps, seed))
    origin = tokenizer or (out / "model" if (out / "model").exists() else "storybook")
    on_note(f"tokenizer: {origin}")
    base = load_model(origin, device)
    text_encoder = TextEncoder.load(settings.text, device=device)
    torch.manual_seed(training.optimizer.seed)
    model_config = replace(settings.generator, codebook_size=base.tokenizer.codebook_size)
    model = MaskGIT(model_config).to(device)
    facts = dict(base.info.training)
    if init_from is not None:
        facts |= load_start(model, "generator", init_from, on_note)
    stories = open_stories(settings, training, base, text_encoder, data, out / "generator" / "stories.safetensors", device, on_note)
    sample = lambda run, step: save_story_sample(stories.prompts, run, base, text_encoder, out / "generator" / f"sample-{step:07d}.png")
    run = train_generator(stories.tokens, model, training, out / "generator", sample, on_log)
    facts |= {"generator_steps": run.step, "generator_seed": training.optimizer.seed}
    info = ModelInfo(
        config.stem, base.info.tokenizer, model_config, settings.text, base.info.fps, settings.sampling, text_encoder.fingerprint, facts
    )
    save_model(out / "model", info, base.tokenizer, model)
    return out / "model"


@torch.no_grad()
def save_story_sample(stories: list[list[tuple[str, float]]], run: Run, base: Model, text_encoder: TextEncoder, path: Path) -> None:
    """A picture of short stories told by the averaged weights, a row each with its prompts, every second frame."""
    device = next(run.model.parameters()).device
    averaged = MaskGIT(run.model.config).to(device).eval()
    run.ema.copy_to(averaged)
    tokenizer = base.info.tokenizer
    side = tokenizer.image_size // tokenizer.patch_size
    rows, scenes = [], []
    for index, story in enumerate(stories):
        script = Story.of([(prompt or "a video", seconds) for prompt, seconds in story])
        planned = plan(script, fps=base.info.fps, temporal_patch_size=tokenizer.temporal_patch_size, chunk_slices=averaged.config.chunk_slices)
        encoded = [text_encoder.encode([scene.prompt]).to(device) for scene in planned.scenes]
        texts = [SceneText(one.text, one.text_mask) for one in encoded]
        chunks = direct(planned, base.tokenizer, averaged, texts, SamplingOptions(), index, (side, side))
        frames = torch.cat([chunk.frames for chunk in chunks])[::2]
        scenes.append(VideoScene(" | ".join(scene.prompt for scene in planned.scenes), sum(len(row) for row in rows), len(frames)))
        rows.append(to_pixels(frames, tokenizer.image_size))
    write_picture(contact_sheet(np.concatenate(rows), scenes, columns=13), path)


def train_generator(
    stories: StoryTokens, model: MaskGIT, training: GeneratorTraining, folder: Path,
    on_sample: Callable[[Run, int], None] = lambda run, step: None, on_log: Callable[[dict], None] = print,
) -> Run:  # fmt: skip
    """Trains until the run has all its steps, going on from its newest checkpoint; the EMA weights end up in `model`."""
    run = Run(folder, model, training.optimizer)
    device = next(model.parameters()).device

    def loss_at(step: int) -> dict[str, Tensor]:
        batch = draw_batch(stories, model.config, training, step)
        text, text_mask = stories.text(batch.captions)
        return generator_loss(model, batch.to(device), text.to(device), text_mask.to(device), training.label_smoothing)

    run.train(loss_at, lambda step: on_sample(run, step), on_log)
    run.ema.copy_to(model)
    return run
