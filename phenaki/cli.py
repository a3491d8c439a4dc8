"""`phenaki ...`: a thin skin on the Python functions. Errors are one message on stderr and exit code 2."""

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="From a script of prompts to one continuous video."
)
train_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer or a generator.")
data_app = typer.Typer(no_args_is_help=True, help="Look at training data.")
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")
errors = Console(stderr=True)


class Network(StrEnum):
    tokenizer = "tokenizer"
    generator = "generator"


@contextlib.contextmanager
def told_errors() -> Iterator[None]:
    """Turns the errors of bad input into one message and exit code 2, an interrupt into exit code 130."""
    try:
        yield
    except (ValueError, OSError) as error:
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        errors.print(Text.assemble(("error:", "red"), f" {error}{notes}"), soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        errors.print("stopped")
        raise typer.Exit(130) from error


def tell(text: str) -> None:
    """A line on stderr, letter for letter: paths and prompts may hold what `rich` takes for markup."""
    errors.print(Text(text), soft_wrap=True)


@app.command()
def generate(
    script: Annotated[Path, typer.Argument(help="story script: .yaml, .json, .txt, .srt, .vtt")],
    output: Annotated[Path, typer.Option("-o", "--output", help="video file: .mp4, .webm, .gif, .png")],
    model: Annotated[str, typer.Option(help="shipped model, model folder, or hub id")] = "storybook",
    seed: Annotated[int | None, typer.Option(help="the script's own by default")] = None,
    num_steps: Annotated[int | None, typer.Option(help="refinement rounds a chunk")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="how strongly prompts are followed; 1 = off")] = None,
    negative: Annotated[str | None, typer.Option(help="what the video should not show")] = None,
    fps: Annotated[float | None, typer.Option(help="frames a second of the video")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N")] = "auto",
) -> None:
    """Make a video of a story script."""
    with told_errors():
        from phenaki.story import Story
        from phenaki.video import check_output_path

        check_output_path(output)
        story = Story.load(script)
        from phenaki.pipeline import generate_to_file, load

        ready = load(model, device)
        written = generate_to_file(
            ready, story, output, seed=seed, fps=fps, guidance_scale=guidance_scale, num_steps=num_steps, negative=negative, progress=True
        )
        figures = f"{written.num_frames} frames, {written.video_seconds:.2f} s of video in {written.wall_seconds:.1f} s"
        tell(f"{output}: {figures}")


@app.command(name="plan")
def plan_command(
    script: Annotated[Path, typer.Argument(help="story script")],
    model: Annotated[str, typer.Option(help="shipped model, model folder, or hub id")] = "storybook",
    num_steps: Annotated[int | None, typer.Option(help="refinement rounds a chunk")] = None,
) -> None:
    """Show scenes, frames, chunks, tokens and the expected seconds on this machine, without loading weights."""
    with told_errors():
        from phenaki.pipeline import model_info, plan_story, sampling_options
        from phenaki.planning import expected_seconds
        from phenaki.story import Story

        story, info = Story.load(script), model_info(model)
        planned, _ = plan_story(story, info), sampling_options(info.sampling, num_steps=num_steps)
        per_slice = (info.tokenizer.image_size // info.tokenizer.patch_size) ** 2
        table = Table(title=Text(story.title or script.name))
        for column in ("scene", "from", "seconds", "frames", "chunks", "tokens", "prompt"):
            table.add_column(column, justify="left" if column == "prompt" else "right")
        for scene in planned.scenes:
            mark = f"{scene.index + 1}{' cut' if scene.starts_segment and scene.index else ''}"
            tokens = scene.num_slices * per_slice
            figures = (f"{scene.start_frame / planned.fps:.2f}", f"{scene.num_frames / planned.fps:.2f}", scene.num_frames, len(scene.chunks), tokens)
            table.add_row(mark, *map(str, figures), Text(scene.prompt))
        Console().print(table)
        seconds = expected_seconds(planned, info, num_steps)
        counts = f"{planned.num_chunks} chunks, {planned.num_slices * per_slice} tokens"
        total = f"{planned.num_frames} frames, {planned.seconds:.2f} s at {planned.fps:g} fps, {counts}"
        Console().print(f"{total}; about {seconds:.0f} s on this machine's CPU", highlight=False)


@train_app.command("tokenizer")
def train_tokenizer_command(
    config: Annotated[Path, typer.Option(help="settings, configs/NAME.toml")],
    out: Annotated[Path, typer.Option(help="run folder; the model lands in OUT/model")],
    data: Annotated[Path | None, typer.Option(help="storybook atlas, or a folder of videos; a world drawn by code by default")] = None,
    init_from: Annotated[str | None, typer.Option(help="start from the weights of this model (shipped name, folder, hub id)")] = None,
    steps: Annotated[int | None, typer.Option(help="optimiser steps")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
) -> None:
    """Train C-ViViT. Run the same command again to go on after an interruption."""
    with told_errors():
        from phenaki.pipeline import choose_device
        from phenaki.training.tokenizer import run_tokenizer_training

        folder = run_tokenizer_training(
            config, out, data=data, init_from=init_from, steps=steps, seed=seed, device=str(choose_device(device)), on_log=_print_line, on_note=tell
        )
        tell(f"tokenizer: {folder}")


@train_app.command("generator")
def train_generator_command(
    config: Annotated[Path, typer.Option(help="settings, configs/NAME.toml")],
    out: Annotated[Path, typer.Option(help="run folder; the model lands in OUT/model")],
    data: Annotated[Path | None, typer.Option(help="storybook atlas, or a folder of videos; a world drawn by code by default")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="model to take the tokenizer from; OUT/model by default, else the shipped one")] = None,
    init_from: Annotated[str | None, typer.Option(help="start from the weights of this model (shipped name, folder, hub id)")] = None,
    steps: Annotated[int | None, typer.Option(help="optimiser steps")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
) -> None:
    """Train MaskGIT on the tokens of a trained tokenizer. Run the same command again to go on after an interruption."""
    with told_errors():
        from phenaki.pipeline import choose_device
        from phenaki.training.generator import run_generator_training

        folder = run_generator_training(
            config, out, data=data, tokenizer=tokenizer, init_from=init_from, steps=steps, seed=seed, device=str(choose_device(device)),
            on_log=_print_line, on_note=tell,
        )  # fmt: skip
        tell(f"model: {folder}")


def _print_line(line: dict) -> None:
    typer.echo("  ".join(f"{name} {value:.4g}" for name, value in line.items()))


@data_app.command("preview")
def preview(
    source: Annotated[str, typer.Argument(help="storybook")],
    output: Annotated[Path, typer.Option("-o", "--output", help="picture file, .png")],
    data: Annotated[Path | None, typer.Option(help="storybook atlas; a world drawn by code by default")] = None,
    world: Annotated[str, typer.Option(help="small or full")] = "small",
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write a picture of training stories with their captions."""
    with told_errors():
        from phenaki.data.preview import save_preview

        count = save_preview(source, output, data=data, world=world, seed=seed)
        tell(f"{output}: {count} stories")


@data_app.command("check")
def check_command(
    path: Annotated[Path, typer.Argument(help="folder of videos and pictures, table (.jsonl, .csv, .parquet), or tar shards")],
    json_file: Annotated[Path | None, typer.Option("--json", help="also write all of it to this file")] = None,
    num_workers: Annotated[int, typer.Option(help="decoding processes; 0 = half of the cores")] = 0,
) -> None:
    """Decode every file once: how many clips, how long, which sizes, rates and captions, and what cannot be used and why."""
    with told_errors():
        from phenaki.data.check import check_source, summary_lines

        values = check_source(path, num_workers, json_file)
        typer.echo("\n".join(summary_lines(values)))


@data_app.command("shard")
def shard_command(
    path: Annotated[Path, typer.Argument(help="folder of videos and pictures, table (.jsonl, .csv, .parquet), or tar shards")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the shards")],
    size: Annotated[int, typer.Option(help="pixels of the shorter side: the model's image size")],
    fps: Annotated[float | None, typer.Option(help="frames a second; each clip's own by default")] = None,
    shard_size: Annotated[int, typer.Option(help="MB after which a shard is ended")] = 256,
    num_workers: Annotated[int, typer.Option(help="decoding processes; 0 = half of the cores")] = 0,
) -> None:
    """Encode footage anew at the training size, with captions, in tar shards. Run it again to go on after an interruption."""
    with told_errors():
        from phenaki.data.sharding import ShardSettings, make_shards

        made = make_shards(path, out, ShardSettings(size, fps, shard_size * 1_000_000), num_workers=num_workers, on_note=tell)
        tell(f"{out}: {made.num_clips} clips in {made.num_shards} shards, {made.num_bytes / 1e6:.1f} MB; {len(made.unusable)} files left out")


if __name__ == "__main__":
    app()
