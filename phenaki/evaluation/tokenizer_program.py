"""What `phenaki evaluate tokenizer` does, from a model's name to the files of figures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phenaki.atomic import write_text
from phenaki.checkpoint import load_model
from phenaki.data.clip_source import ClipSource
from phenaki.data.order import EVALUATION_SEED
from phenaki.evaluation.networks import MetricNetworks, load_networks
from phenaki.evaluation.outputs import check_outputs, machine, write_figures
from phenaki.evaluation.tokenizer import EvaluationSettings, check_settings, evaluate_tokenizer
from phenaki.evaluation.tokenizer_report import html_report

USUAL_FRAMES = 16  # of published FVDs; a clip has one more, the first


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; None = a value that suits the model."""

    num_clips: int = 256
    num_frames: int | None = None
    size: int | None = None
    batch_size: int = 8
    seed: int | None = None


def run_tokenizer_evaluation(
    model: str | Path, open_source: Callable[[float, int], ClipSource], output: Path, *, html: Path | None = None, wishes: Wishes | None = None,
    device: str = "cpu", networks: MetricNetworks | None = None, on_progress: Callable[[int, int], None] = lambda *_: None, command: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Measures a model's tokenizer, writes the figures to `output` (JSON) and, where asked for, a page to `html`; returns the figures.

    open_source: (frames a second, pixels a side) -> the clips. networks: those of LPIPS and rFVD; what is installed by default.
    command: how it was started, kept with the figures.
    """
    check_outputs(output, html)
    ready = load_model(model, device)
    settings = settings_for(ready.info.tokenizer.temporal_patch_size, ready.info.tokenizer.image_size, wishes or Wishes())
    check_settings(ready.tokenizer, settings)
    source = open_source(ready.info.fps, settings.size)
    evaluation = evaluate_tokenizer(ready, source, settings, networks or load_networks(device), on_progress)
    data = source.fingerprint[:200]
    figures = {"command": command, **evaluation.figures, "data": data, "batch_size": settings.batch_size, "machine": machine(device)}
    write_figures(output, figures)
    if html is not None:
        write_text(html, html_report(figures, evaluation.first, evaluation.worst))
    return figures


def settings_for(temporal_patch_size: int, image_size: int, wishes: Wishes) -> EvaluationSettings:
    """The settings with what was asked for, and with what suits the model elsewhere."""
    num_frames = wishes.num_frames if wishes.num_frames is not None else 1 + max(USUAL_FRAMES // temporal_patch_size, 1) * temporal_patch_size
    size = wishes.size if wishes.size is not None else image_size
    return EvaluationSettings(wishes.num_clips, num_frames, size, wishes.batch_size, EVALUATION_SEED if wishes.seed is None else wishes.seed)


def summary(figures: dict[str, Any]) -> list[str]:
    """The figures in a few lines, each with its unit."""
    clips, missing = figures["clips"], figures["not_measured"]
    frechet = figures["rfvd"]
    whole = figures["codebook"]["use"][0]
    lines = [
        f"{clips['measured']} clips of {figures['frames']} frames at {figures['size']}x{figures['size']}",
        f"PSNR {_shown(figures['psnr'])} dB  SSIM {figures['ssim']}  LPIPS {figures.get('lpips', missing.get('lpips'))}",
        f"rFVD {frechet['value']} (95% {frechet['low']} to {frechet['high']})" if frechet else f"rFVD {missing.get('rfvd', 'needs 2 clips')}",
        f"flicker {figures['flicker']['flicker']} levels of 255  tokens used {whole['used']} of {whole['size']}, perplexity {whole['perplexity']}",
        f"seconds a clip: encode {figures['seconds_per_clip']['encode']}, decode {figures['seconds_per_clip']['decode']}",
    ]
    return lines + [f"caution: {caution}" for caution in figures["cautions"]]


def _shown(value: float | None) -> str:
    return "infinite" if value is None else str(value)
