"""`phenaki evaluate tokenizer`: how well a tokenizer reconstructs clips that it was not trained on.

Clips come from a source in batches and are not kept, only sums, the features that a Frechet distance needs (400 numbers a clip)
and a few clips to look at. So memory hardly grows with the number of clips.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from phenaki.checkpoint import Model
from phenaki.cvivit import CViViT
from phenaki.data.ahead import drawn_ahead
from phenaki.data.clip_source import ClipSource
from phenaki.data.order import EVALUATION_SEED
from phenaki.evaluation.codebook import CodebookUse, TokenCounts
from phenaki.evaluation.frechet import Interval, bootstrap_frechet
from phenaki.evaluation.metrics import SSIM_SIDE, changes, lpips_by_frame, psnr, squared_error, ssim
from phenaki.evaluation.networks import MetricNetworks
from phenaki.pixels import from_bytes, to_bytes

USUAL_CLIPS = 2048  # of published FVDs; with fewer the figures have a caution
TRAINED_ON = "These are the clips that it was trained on: of others it loses more. Give held-out ones with --data."
NUM_EXAMPLES = 4  # clips shown: the first ones, and as many of the worst
FIGURES = {"lpips": "lpips", "i3d": "rfvd"}  # network -> the figure that needs it


@dataclass(frozen=True)
class EvaluationSettings:
    """What a tokenizer is measured on."""

    num_clips: int = 256  # at most; each is taken once
    num_frames: int = 17  # of a clip
    size: int = 64  # pixels a side
    batch_size: int = 8
    seed: int = EVALUATION_SEED  # which clips, in which order

    def __post_init__(self):
        for name, count in (("clips", self.num_clips), ("batch_size", self.batch_size)):
            if count < 1:
                raise ValueError(f"{name} {count}: needed at least 1")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed}: needed at least 0")
        if self.num_frames < 2:
            raise ValueError(f"{self.num_frames} frames: flicker needs at least 2 frames a clip")
        if self.size < SSIM_SIDE:
            raise ValueError(f"size {self.size}: SSIM needs at least {SSIM_SIDE} pixels a side")


@dataclass(frozen=True)
class Example:
    """A clip to look at: number in the evaluation, PSNR in dB, truth and reconstruction (c f h w) in [-1, 1], on the CPU."""

    index: int
    psnr: float
    truth: Tensor
    made: Tensor


@dataclass
class Sums:
    """What is carried from batch to batch."""

    num_clips: int = 0
    by_frame: dict[str, Tensor] = field(default_factory=dict)  # sums over clips of (f,) figures, float64
    totals: dict[str, float] = field(default_factory=dict)  # sums over clips of one figure each
    features: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (b d) of truth and of reconstruction
    tokens: TokenCounts = field(default_factory=TokenCounts)
    first: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)

    def add_frames(self, name: str, values: Tensor) -> None:
        """values: (b f)."""
        self.by_frame[name] = self.by_frame.get(name, 0) + values.double().sum(dim=0).cpu()

    def add_clips(self, name: str, value: float) -> None:
        """value: the sum over a batch."""
        self.totals[name] = self.totals.get(name, 0.0) + value

    def add_examples(self, truth: Tensor, made: Tensor, errors: Tensor) -> None:
        """Keeps the first clips and the worst ones; errors: (b f)."""
        for at, decibels in enumerate(psnr(errors.mean(dim=1)).tolist()):
            example = Example(self.num_clips + at, decibels, truth[at].cpu(), made[at].cpu())
            if example.index < NUM_EXAMPLES:
                self.first.append(example)
            self.worst = sorted([*self.worst, example], key=lambda one: one.psnr)[:NUM_EXAMPLES]


@dataclass(frozen=True)
class Evaluation:
    """figures: plain values for JSON; first, worst: clips to look at."""

    figures: dict[str, Any]
    first: list[Example]
    worst: list[Example]


def evaluate_tokenizer(
    model: Model, source: ClipSource, settings: EvaluationSettings, networks: MetricNetworks,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Evaluation:  # fmt: skip
    """Measures model.tokenizer on clips of `source`; on_progress is called with (clips done, clips in all) after every batch."""
    check_settings(model.tokenizer, settings)
    networks = networks.fitting(settings.num_frames, settings.size)
    available = source.num_clips(settings.num_frames)
    count = min(settings.num_clips, available) if available is not None else settings.num_clips
    sums, known_unusable = Sums(), len(source.unusable)
    for truth in batches(source, settings, count, model.tokenizer.config.temporal_patch_size):
        measure_batch(model.tokenizer, truth, networks, sums)
        on_progress(sums.num_clips, count)
    replaced = len(source.unusable) - known_unusable
    clips = {"measured": sums.num_clips, "asked": settings.num_clips, "available": available, "replaced": replaced}
    found = figures(model, settings, networks, sums, clips)
    if source.clips_hash and source.clips_hash in trained_on(model.info.training):
        found["cautions"].insert(0, TRAINED_ON)
    return Evaluation(found, sums.first, sums.worst)


def trained_on(facts: Any) -> set[str]:
    """The data that a tokenizer, and those it was started from, were trained on. facts: `training` in its config.json."""
    found = set()
    while isinstance(facts, dict):
        found.add(str(facts.get("tokenizer_data", "")))
        facts = facts.get("tokenizer_init")
    return found


def check_settings(tokenizer: CViViT, settings: EvaluationSettings) -> None:
    """ValueError where the tokenizer cannot take clips of these settings."""
    tokenizer.num_slices(settings.num_frames)
    patch = tokenizer.config.patch_size
    if settings.size % patch:
        near = max(settings.size // patch, 1) * patch
        raise ValueError(f"size {settings.size}: this tokenizer's patches are {patch} pixels a side, so the size may be {near} or {near + patch}")


def batches(source: ClipSource, settings: EvaluationSettings, count: int, align: int) -> Iterator[Tensor]:
    """Clips 0 .. count - 1, (b c f h w) in [-1, 1]; a scene may change at frames 1 + align*k."""
    draw = lambda first: source.clips(settings.seed, first, min(settings.batch_size, count - first), settings.num_frames, align)
    return drawn_ahead(draw, range(0, count, settings.batch_size))


@torch.no_grad()
def measure_batch(tokenizer: CViViT, truth: Tensor, networks: MetricNetworks, sums: Sums) -> None:
    """Adds a batch (b c f h w) in [-1, 1] to the sums."""
    started = _now(truth.device)
    tokens = tokenizer.encode(truth)
    encoded = _now(truth.device)
    decoded = tokenizer.decode(tokens)
    sums.add_clips("encode_seconds", encoded - started)
    sums.add_clips("decode_seconds", _now(truth.device) - encoded)

    made = as_shown(decoded)
    errors = squared_error(made, truth)
    sums.add_examples(truth, made, errors)
    sums.add_frames("squared_error", errors)
    sums.add_frames("ssim", ssim(made, truth))
    if networks.lpips is not None:
        sums.add_frames("lpips", lpips_by_frame(networks.lpips, made, truth))
    if networks.i3d is not None:
        sums.features.append((networks.i3d(truth).cpu(), networks.i3d(made).cpu()))
    changed = changes(made, truth)
    for name in ("flicker", "made", "truth"):
        sums.add_clips(name, float(getattr(changed, name).sum()))
    sums.tokens.add(tokens)
    sums.num_clips += len(truth)


def as_shown(video: Tensor) -> Tensor:
    """Decoded pixels as a screen shows them: cut to [-1, 1] and rounded to 8 bits."""
    return from_bytes(to_bytes(video))


def figures(model: Model, settings: EvaluationSettings, networks: MetricNetworks, sums: Sums, clips: dict[str, int | None]) -> dict[str, Any]:
    """Everything measured, as plain values; clips: how many were measured, asked for, there (None = no end), and replaced by others."""
    by_frame = {name: total / sums.num_clips for name, total in sums.by_frame.items()}
    means = {name: total / sums.num_clips for name, total in sums.totals.items()}
    error = by_frame.pop("squared_error")
    curves = {"psnr": psnr(error), **by_frame}
    frechet = bootstrap_frechet(*(torch.cat(side) for side in zip(*sums.features, strict=True))) if sums.features and sums.num_clips > 1 else None
    return {
        "model": model.info.provenance,
        "clips": clips,
        "frames": settings.num_frames,
        "size": settings.size,
        "fps": model.info.fps,
        "seed": settings.seed,
        "psnr": number(psnr(error.mean())),
        **{name: number(curve.mean()) for name, curve in by_frame.items()},
        "rfvd": rfvd(frechet, settings, sums.num_clips) if frechet else None,
        "not_measured": {FIGURES[name]: reason for name, reason in networks.missing.items()},
        "by_frame": {name: [number(value) for value in curve] for name, curve in curves.items()},
        "flicker": {"flicker": number(means["flicker"]), "made_change": number(means["made"]), "true_change": number(means["truth"])},
        "codebook": {"tokens": sums.tokens.total, "use": [use_figures(use) for use in codebook_use(model, sums.tokens)]},
        "seconds_per_clip": {name: number(means[f"{name}_seconds"], 5) for name in ("encode", "decode")},
        "cautions": cautions(settings, sums.num_clips, clips["replaced"], frechet),
    }


def rfvd(frechet: Interval, settings: EvaluationSettings, num_clips: int) -> dict[str, Any]:
    """A Frechet video distance with what it means nothing without."""
    distance = {name: number(value, 2) for name, value in asdict(frechet).items()}
    return {**distance, "clips": num_clips, "frames": settings.num_frames, "size": settings.size}


def codebook_use(model: Model, counts: TokenCounts) -> list[CodebookUse]:
    """Of whole tokens, of the generator's factors where it has several, and of FSQ's channels."""
    size, generator, config = model.tokenizer.codebook_size, model.info.generator, model.info.tokenizer
    uses = [counts.use("whole token", size)]
    if generator is not None and generator.token_factors > 1:
        uses += counts.digit_use("factor", [generator.factor_size] * generator.token_factors)
    if config.quantizer == "fsq":
        uses += counts.digit_use("channel", config.fsq_levels)
    return uses


def use_figures(use: CodebookUse) -> dict[str, Any]:
    return {**asdict(use), "perplexity": number(use.perplexity, 2), "share": number(use.share)}


def cautions(settings: EvaluationSettings, num_clips: int, replaced: int, frechet: Interval | None) -> list[str]:
    """Sentences that a reader of the figures must know. num_clips: measured; replaced: files that were found damaged."""
    said = []
    if num_clips < settings.num_clips:
        said.append(f"{settings.num_clips} clips were asked for; the data has {num_clips}, each was taken once.")
    if replaced:
        said.append(f"Files found damaged on the way: {replaced}. Where one was due the next clip was shown, which therefore counts twice.")
    if frechet is not None and num_clips < USUAL_CLIPS:
        said.append(
            f"rFVD is of {num_clips} clips: it is biased upward for few clips, so compare it only with values of as many clips, "
            f"of {settings.num_frames} frames at {settings.size}x{settings.size}; published values usually take {USUAL_CLIPS} or more."
        )
    return said


def number(value: Tensor | float, digits: int = 4) -> float | None:
    """Rounded for JSON, which has no infinity: None stands for it (the PSNR of equal pictures)."""
    value = float(value)
    return round(value, digits) if math.isfinite(value) else None


def _now(device: torch.device) -> float:
    """Seconds, after all that a GPU was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
