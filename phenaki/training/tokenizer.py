"""`phenaki train tokenizer`: C-ViViT on the storybook world or on a folder of videos."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from phenaki.checkpoint import ModelInfo, save_model
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.data.footage import Footage, FootageSettings, open_footage
from phenaki.data.listing import is_footage
from phenaki.data.storybook import StorybookWorld, WorldConfig, open_world
from phenaki.training.run import OptimizerSettings, Run, load_start
from phenaki.training.settings import TokenizerTraining, load_settings

SAMPLE_SEED = 1_000_003  # of the stories in sample pictures, never trained on

Source = StorybookWorld | Footage


def tokenizer_loss(tokenizer: CViViT, video: Tensor, training: TokenizerTraining) -> dict[str, Tensor]:
    """Reconstruction losses of a batch, each by name; "loss" is their weighted sum."""
    result = tokenizer(video)
    l2, l1 = F.mse_loss(result.video, video), F.l1_loss(result.video, video)
    loss = l2 + training.l1_weight * l1 + training.quantizer_weight * result.quantizer_loss
    psnr = -10 * torch.log10(l2.detach() / 4)  # the range [-1, 1] is 2 wide
    distinct = torch.tensor(result.tokens.unique().numel() / result.tokens.numel())  # falls towards 0 where codes collapse
    return {"loss": loss, "l2": l2, "l1": l1, "quantizer": result.quantizer_loss, "psnr": psnr, "distinct_tokens": distinct}


def run_tokenizer_training(
    config: Path, out: Path, *, data: Path | None = None, init_from: str | None = None, steps: int | None = None, seed: int | None = None,
    device: str = "cpu", on_log: Callable[[dict], None] = print, on_note: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """The whole program: settings file in, trained tokenizer out at `out`/model, whose path is returned.

    init_from: a model folder or name whose tokenizer's weights it starts from.
    """
    settings = load_settings(config)
    training = replace(settings.train_tokenizer, optimizer=override(settings.train_tokenizer.optimizer, steps, seed))
    source = open_source(settings.world, settings.tokenizer.image_size, data, device)
    torch.manual_seed(training.optimizer.seed)
    tokenizer = CViViT(settings.tokenizer).to(device)
    facts = {} if init_from is None else load_start(tokenizer, "tokenizer", init_from, on_note)
    run = train_tokenizer(source, tokenizer, training, out / "tokenizer", on_log)
    facts |= {"tokenizer_steps": run.step, "tokenizer_seed": training.optimizer.seed}
    info = ModelInfo(config.stem, settings.tokenizer, None, settings.text, settings.world.fps, training=facts)
    save_model(out / "model", info, tokenizer, None)
    return out / "model"


def open_source(
    world: WorldConfig, size: int, data: Path | None, device: str, footage: FootageSettings | None = None, report: Path | None = None,
    on_note: Callable[[str], None] = print,
) -> Source:  # fmt: skip
    """Training data: footage (a folder, table or tar shards), a storybook atlas, or (None) the storybook world drawn by code.

    footage: how clips are cut, at the size and rate of the model; report: where unusable files are listed as JSON lines.
    """
    if data is not None and is_footage(data):
        cut = replace(footage or FootageSettings(), size=size, fps=world.fps)
        return open_footage(data, cut, device, report=report, on_note=on_note)
    return open_world(replace(world, size=size), data, device)


def override(settings: OptimizerSettings, steps: int | None, seed: int | None) -> OptimizerSettings:
    """The settings with another length or seed where one is given; a short run warms up for a tenth of it at most."""
    steps = settings.num_steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"{steps} steps: needed at least 1")
    warmup = min(settings.warmup_steps, max(steps // 10, 1))
    return replace(settings, num_steps=steps, seed=settings.seed if seed is None else seed, warmup_steps=warmup)


def train_tokenizer(
    source: Source, tokenizer: CViViT, training: TokenizerTraining, folder: Path, on_log: Callable[[dict], None] = print
) -> Run:
    """Trains until the run has all its steps, going on from its newest checkpoint; the EMA weights end up in `tokenizer`."""
    settings, pt = training.optimizer, tokenizer.config.temporal_patch_size
    num_frames = tokenizer.num_frames(training.num_slices)
    run = Run(folder, tokenizer, settings)

    def loss_at(step: int) -> dict[str, Tensor]:
        video = source.clips(settings.seed, step * settings.batch_size, settings.batch_size, num_frames, pt)
        return tokenizer_loss(tokenizer, video, training)

    run.train(loss_at, lambda step: save_sample(source, run, tokenizer.config, folder / f"sample-{step:07d}.png"), on_log)
    run.ema.copy_to(tokenizer)
    return run


@torch.no_grad()
def save_sample(source: Source, run: Run, config: CViViTConfig, path: Path) -> None:
    """A picture of clips drawn with another seed: truth above what the averaged weights make of it."""
    averaged = CViViT(config).to(next(run.model.parameters()).device).eval()
    run.ema.copy_to(averaged)
    truth = source.clips(SAMPLE_SEED, 0, 4, averaged.num_frames(4), config.temporal_patch_size)
    made = averaged(truth).video
    save_video_rows(torch.stack([truth, made], dim=1).flatten(0, 1), path)


def save_video_rows(videos: Tensor, path: Path) -> None:
    """Videos (b c f h w) in [-1, 1] as a PNG, a row of frames each."""
    pixels = ((videos.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    write_picture(rearrange(pixels, "b c f h w -> (b h) (f w) c").numpy(), path)


def write_picture(pixels: np.ndarray, path: Path) -> None:
    """uint8 (h, w, 3) as a PNG."""
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
