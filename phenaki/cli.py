"""`phenaki ...`: a thin skin on the Python functions. Errors are one message on stderr and exit code 2."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from phenaki.cli_data import data_app, metrics_app
from phenaki.cli_evaluate import evaluate_app
from phenaki.cli_messages import tell, told_errors
from phenaki.cli_options import Context, Device, Dtype, Fps, GuidanceScale, ModelName, ModelNumSteps, Negative, NumberKind, NumSteps, Size, Style
from phenaki.cli_train import train_app

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")
app.add_typer(metrics_app, name="metrics")
app.add_typer(evaluate_app, name="evaluate")


SCRIPT_HELP = "story script: .yaml, .json, .txt, .srt, .vtt, or a video made of one; - for plain text on standard input; or a prompt, in quotes"


class VideoFormat(StrEnum):
    mp4 = "mp4"
    webm = "webm"


def show_version(wanted: bool) -> None:
    if wanted:
        from phenaki import __version__

        typer.echo(f"phenaki {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="show the version, and exit")]


@app.callback()
def main(version: Version = False) -> None:
    """From a script of prompts to one continuous video."""


@app.command()
def generate(
    script: Annotated[str | None, typer.Argument(help=SCRIPT_HELP)] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="video file: .mp4, .webm, .gif, .png; SCRIPT.mp4 by default; with --scripts a folder")
    ] = None,
    model: ModelName = "storybook",
    seed: Annotated[int | None, typer.Option(help="another gives another video of the same script; the script's own by default, else 0")] = None,
    num_steps: NumSteps = None,
    guidance_scale: GuidanceScale = None,
    style: Style = None,
    negative: Negative = None,
    fps: Fps = None,
    size: Size = None,
    context: Context = None,
    device: Device = "auto",
    dtype: Dtype = NumberKind.auto,
    compiled: Annotated[bool, typer.Option("--compile", help="compile the layers first, a minute or more: faster then, on a GPU")] = False,
    resume: Annotated[
        bool | None, typer.Option("--resume/--anew", help="go on where the same command was stopped, or not; by default, if it is the same")
    ] = None,
    scripts: Annotated[Path | None, typer.Option(help="make a video of each script in this folder instead")] = None,
    file_format: Annotated[VideoFormat | None, typer.Option("--format", help="of the videos of --scripts; mp4 by default")] = None,
    workers: Annotated[int | None, typer.Option(help="scripts at a time, each in a process of its own; with --scripts")] = None,
    ray: Annotated[str | None, typer.Option(help="address of a Ray cluster that does the work: auto, host:port, local; with --scripts")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is not this program's; with --scripts: finished videos too")] = False,
) -> None:
    """Make a video of a story script. While it is made, an .mp4 or .webm plays from a part file beside OUTPUT, and goes on from it when stopped.

    With --scripts: a video of every script in a folder. Run it again to go on: what was made with other weights, guidance, rounds or
    context is made anew; a video of another script, seed, rate, size, style or negative stays, and its script fails, without --overwrite.
    Exit code 1 where a script failed.
    """
    with told_errors():
        options = {"seed": seed, "fps": fps, "size": size, "style": style, "negative": negative}
        options |= {"guidance_scale": guidance_scale, "num_steps": num_steps, "context": context and context.value}
        loading = {"device": device, "dtype": dtype.value, "compile": compiled}
        if scripts is not None:
            if script is not None:
                raise ValueError(f"{script}: a script beside --scripts {scripts}; give one of them")
            if resume is not None:
                raise ValueError("--resume and --anew go with one script; --scripts goes on with unfinished videos, --overwrite makes all anew")
            if output is None:
                raise ValueError(f"--scripts {scripts}: no folder for its videos came; give one by -o")
            ending = f".{file_format or VideoFormat.mp4}"
            render_scripts(scripts, output, {**options, **loading, "model": model, "overwrite": overwrite}, ending, workers, ray)
        elif file_format or workers is not None or ray is not None:
            raise ValueError("--format, --workers and --ray go with --scripts FOLDER")
        elif script is None:
            raise ValueError("no script came: give one, or a folder of them by --scripts")
        else:
            generate_one(script, output, model, loading, resume, overwrite, options)


def generate_one(
    script: str, output: Path | None, model: str, loading: dict[str, Any], resume: bool | None, overwrite: bool, options: dict[str, Any]
) -> None:
    """One script into one file, by default one that is not there yet. loading: `load`'s arguments besides the model's name."""
    from phenaki.output_paths import check_output_path
    from phenaki.script_argument import check_replaceable, read_script_argument, unused_output

    output = output or unused_output(script)
    check_replaceable(check_output_path(output), overwrite)
    story, name = read_script_argument(script)
    from phenaki.pipeline import load  # these load torch: a wrong path or script is told before that, at once
    from phenaki.planning import plan_script
    from phenaki.recording import generate_to_file
    from phenaki.story_for_model import model_info, unfamiliar

    info = model_info(model)
    told = plan_script(story, name, info, **options)  # what is wrong with it is told before weights are loaded
    for note in unfamiliar(told.plan, info):
        tell(note)
    written = generate_to_file(load(model, **loading), story, output, resume=resume, on_note=tell, **options)
    tell(f"{output}: {written}")


def render_scripts(scripts: Path, output: Path, values: dict[str, Any], ending: str, workers: int | None, ray: str | None) -> None:
    """A folder of scripts into a folder of files; exit code 1 where one of them failed."""
    from phenaki.rendering import RenderSettings
    from phenaki.rendering_program import run_rendering

    report = run_rendering(scripts, output, RenderSettings(**values), ending=ending, num_workers=workers, ray_address=ray)
    if report.failed:
        raise typer.Exit(1)


@app.command(name="edit")
def edit_command(
    clip: Annotated[Path, typer.Argument(help="video file, .gif, picture, or folder of pictures")],
    prompt: Annotated[str, typer.Argument(help="what the video shows when it is done")],
    output: Annotated[Path, typer.Option("-o", "--output", help="video file: .mp4, .webm, .gif, .png")],
    box: Annotated[str | None, typer.Option(help="make this part of the picture anew: x,y,width,height in the clip's pixels")] = None,
    outside: Annotated[bool, typer.Option("--outside", help="make all around the box anew instead")] = False,
    frames: Annotated[str | None, typer.Option(help="make these frames anew, first-last by the clip's own numbers from 0")] = None,
    mask: Annotated[Path | None, typer.Option(help="picture of the clip's size: make anew what is white in it")] = None,
    keep: Annotated[float, typer.Option(help="share of the part (without one: of the whole clip) that stays; the rest is told another way")] = 0.0,
    extend: Annotated[float, typer.Option(help="go on for so many seconds after the clip's end")] = 0.0,
    paste: Annotated[bool, typer.Option(help="take the pixels outside of the part from the clip itself")] = True,
    size: Annotated[int | None, typer.Option(help="pixels a side of the result; the model's own by default")] = None,
    model: ModelName = "storybook",
    seed: Annotated[int, typer.Option()] = 0,
    num_steps: ModelNumSteps = None,
    guidance_scale: GuidanceScale = None,
    negative: Negative = "",
    device: Device = "auto",
    dtype: Dtype = NumberKind.auto,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that this program did not make")] = False,
) -> None:
    """Make a part of your own clip anew, go on from it, or tell it another way. The model sees its middle square."""
    with told_errors():
        from phenaki.editing import Edit, check_result_path, edit_to_file
        from phenaki.frame_source import FrameSource
        from phenaki.pipeline import load
        from phenaki.regions import Region
        from phenaki.script_argument import check_replaceable

        region = Region.parse(box, outside, frames, mask)
        told = Edit(prompt, region, keep, extend, paste, size, seed, negative, guidance_scale, num_steps)
        source = FrameSource.of(clip)
        check_replaceable(check_result_path(output, source, mask), overwrite)
        written = edit_to_file(load(model, device, dtype.value), source, told, output, on_note=tell)
        tell(f"{output}: {written}")


@app.command(name="plan")
def plan_command(
    script: Annotated[str, typer.Argument(help=SCRIPT_HELP)],
    model: ModelName = "storybook",
    num_steps: NumSteps = None,
    guidance_scale: GuidanceScale = None,
    style: Style = None,
    negative: Negative = None,
    fps: Fps = None,
    size: Size = None,
    context: Context = None,
) -> None:
    """Show scenes, frames, chunks, tokens and the expected seconds on this machine, without loading weights."""
    with told_errors():
        from phenaki.planning import expected_seconds, plan_script
        from phenaki.planning_display import plan_summary, plan_table
        from phenaki.script_argument import read_script_argument
        from phenaki.story_for_model import model_info, sampling_options, unfamiliar

        (story, name), info = read_script_argument(script), model_info(model)
        options = {"num_steps": num_steps, "guidance_scale": guidance_scale, "context": context and context.value}
        told = plan_script(story, name, info, style=style, negative=negative, fps=fps, size=size, **options)
        seconds = expected_seconds(told.plan, info, sampling_options(told.story, info))
        Console().print(plan_table(told, info, told.story.title or name.name))
        for note in unfamiliar(told.plan, info):
            tell(note)
        Console().print(plan_summary(told, info, seconds), highlight=False)


if __name__ == "__main__":
    app()
