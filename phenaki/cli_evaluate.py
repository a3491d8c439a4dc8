"""`phenaki evaluate ...`: measuring a trained network."""

import shlex
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from phenaki.cli_messages import count_progress, tell, told_errors
from phenaki.cli_options import (
    Atlas,
    ContextKind,
    Device,
    Dtype,
    Figures,
    GuidanceScale,
    ModelName,
    ModelNumSteps,
    NumberKind,
    ScriptSeed,
    World,
    WorldName,
)
from phenaki.data.order import EVALUATION_SEED

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a trained network.")


class DriftMode(StrEnum):
    held = "held"
    switching = "switching"
    returning = "returning"
    recalling = "recalling"


def asked_for(**wishes: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: wish for name, wish in wishes.items() if wish is not None}


def command_line() -> str:
    """The command as it was given, for the file of figures."""
    return shlex.join(["phenaki", *sys.argv[1:]])


@evaluate_app.command("tokenizer")
def evaluate_tokenizer_command(
    output: Annotated[Path, typer.Option("-o", "--output", help="figures, .json")],
    model: Annotated[str, typer.Option(help="shipped model, model or checkpoint folder, or hub id")] = "storybook",
    data: Annotated[Path | None, typer.Option(help="storybook atlas, or footage; a world drawn by code by default")] = None,
    world: WorldName = World.small,
    clips: Annotated[int, typer.Option(help="how many, each taken once")] = 256,
    frames: Annotated[int | None, typer.Option(help="of a clip; about 17 by default, as the model can take them")] = None,
    size: Annotated[int | None, typer.Option(help="pixels a side; the model's own by default")] = None,
    batch_size: Annotated[int, typer.Option(help="clips at once")] = 8,
    seed: Annotated[int | None, typer.Option(help="which clips; one that training does not use by default")] = None,
    html: Annotated[Path | None, typer.Option(help="a page with pictures and curves, .html")] = None,
    device: Device = "auto",
) -> None:
    """Measure a tokenizer on clips it was not trained on: PSNR, SSIM, LPIPS, rFVD, flicker, codebook use, speed."""
    with told_errors():
        from phenaki.data.sources import open_source
        from phenaki.data.world import WORLDS
        from phenaki.devices import choose_device
        from phenaki.evaluation.tokenizer_program import Wishes, run_tokenizer_evaluation, summary

        chosen = str(choose_device(device))
        clips_at = lambda fps, side: open_source(replace(WORLDS[world], fps=fps), side, data, chosen)
        wishes = Wishes(clips, frames, size, batch_size, seed)
        with count_progress("clips") as show:
            figures = run_tokenizer_evaluation(
                model, clips_at, output, html=html, wishes=wishes, device=chosen, on_progress=show, command=command_line()
            )
        typer.echo("\n".join(summary(figures)))
        tell(" ".join(str(path) for path in (output, html) if path))


@evaluate_app.command("story")
def evaluate_story_command(
    output: Figures,
    model: ModelName = "storybook",
    data: Atlas = None,
    world: WorldName = World.small,
    scripts: Annotated[int, typer.Option(help="how many; a third each of seen, held-out combinations, held-out phrasings")] = 200,
    seconds: Annotated[float, typer.Option(help="of each of a script's four scenes; at least 2")] = 2.0,
    seed: ScriptSeed = EVALUATION_SEED,
    num_steps: ModelNumSteps = None,
    guidance_scale: GuidanceScale = None,
    order: Annotated[str | None, typer.Option(help="which tokens are kept first: confidence or halton")] = None,
    temperature: Annotated[float | None, typer.Option(help="of the token distribution")] = None,
    fvd: Annotated[bool, typer.Option(help="measure FVD, which on a CPU takes nearly half as long again")] = True,
    html: Annotated[Path | None, typer.Option(help="a page with the worst and best stories, .html")] = None,
    work: Annotated[Path | None, typer.Option(help="folder of finished stories; OUTPUT-work by default")] = None,
    device: Device = "auto",
    dtype: Dtype = NumberKind.auto,
) -> None:
    """Measure how a model keeps to scripts, with a referee's eyes: adherence, persistence, switch time, FVD, seams, speed.

    Finished stories are kept: run the same command again to go on after an interruption.
    """
    with told_errors():
        from phenaki.devices import choose_device
        from phenaki.evaluation.story_program import StoryExam, run_story_evaluation, summary
        from phenaki.evaluation.story_scripts import ScriptSettings

        sampling = asked_for(num_steps=num_steps, guidance_scale=guidance_scale, order=order, temperature=temperature)
        settings = ScriptSettings(scripts, seconds=seconds, seed=seed)
        exam = StoryExam(model, world.value, data, sampling, str(choose_device(device)), dtype.value, fvd, scripts=settings)
        with count_progress("stories") as show:
            figures = run_story_evaluation(exam, output, html=html, work=work, on_story=show, on_note=tell, command=command_line())
        typer.echo("\n".join(summary(figures)))
        tell(" ".join(str(path) for path in (output, html) if path))


@evaluate_app.command("drift")
def evaluate_drift_command(
    output: Figures,
    model: ModelName = "storybook",
    minutes: Annotated[float, typer.Option(help="of each story, 0.5 to 60")] = 10.0,
    mode: Annotated[list[DriftMode], typer.Option(help="prompts held, switching, returning; recalling: returning with a memory of it")] = (
        DriftMode.held, DriftMode.switching, DriftMode.returning,
    ),
    context: Annotated[list[ContextKind], typer.Option(help="what a chunk sees of the ones before, compared with the model's own way")] = (),
    stories: Annotated[int, typer.Option(help="of each mode")] = 1,
    plot: Annotated[Path | None, typer.Option(help="their picture, .png; beside the figures by default")] = None,
    work: Annotated[Path | None, typer.Option(help="folder of the stories and what was judged of them; OUTPUT-work by default")] = None,
    data: Atlas = None,
    world: WorldName = World.small,
    seed: ScriptSeed = EVALUATION_SEED,
    num_steps: ModelNumSteps = None,
    guidance_scale: GuidanceScale = None,
    fvd: Annotated[bool, typer.Option(help="measure FVD, where I3D is installed")] = True,
    device: Device = "auto",
    dtype: Dtype = NumberKind.auto,
) -> None:
    """Measure whether a long video stays as good as it began: adherence, FVD, sharpness, colours and motion by minute.

    What was judged is kept: run the same command again to go on after an interruption, or with more modes, contexts, stories.
    """
    with told_errors():
        from phenaki.devices import choose_device
        from phenaki.evaluation.drift_program import DriftExam, run_drift_evaluation, summary
        from phenaki.evaluation.drift_scripts import DriftSettings

        sampling = asked_for(num_steps=num_steps, guidance_scale=guidance_scale)
        settings = DriftSettings(minutes, tuple(one.value for one in mode), stories, seed)
        contexts, place = tuple(one.value for one in context), str(choose_device(device))
        exam = DriftExam(model, world.value, data, sampling, place, dtype.value, fvd, settings=settings, contexts=contexts)
        with count_progress("windows") as show:
            figures = run_drift_evaluation(exam, output, plot=plot, work=work, on_window=show, on_note=tell, command=command_line())
        typer.echo("\n".join(summary(figures)))
        tell(f"{output} {plot or output.with_suffix('.png')}")
