"""`phenaki train ...`: a tokenizer, and a generator on its tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from phenaki.cli_messages import tell, told_errors
from phenaki.cli_options import Config, InitFrom, RunFolder, Steps, TrainingDevice, Validation

train_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer or a generator.")


@train_app.command("tokenizer")
def train_tokenizer_command(
    config: Config,
    out: RunFolder,
    data: Annotated[Path | None, typer.Option(help="storybook atlas, or a folder of videos; a world drawn by code by default")] = None,
    validation: Validation = None,
    init_from: InitFrom = None,
    steps: Steps = None,
    seed: Annotated[int | None, typer.Option()] = None,
    device: TrainingDevice = "auto",
) -> None:
    """Train C-ViViT. Run the same command again to go on after an interruption."""
    with told_errors():
        from phenaki.training.tokenizer import run_tokenizer_training

        wishes = {"data": data, "validation": validation, "init_from": init_from, "steps": steps, "seed": seed}
        tell(f"tokenizer: {shown(run_tokenizer_training, config, out, device, wishes)}")


@train_app.command("generator")
def train_generator_command(
    config: Config,
    out: RunFolder,
    data: Annotated[Path | None, typer.Option(help="atlas, folder of videos, or file of `data tokenize`; a world drawn by code by default")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="model whose tokenizer is taken; by default OUT/model, --init-from's or the shipped")] = None,
    validation: Validation = None,
    init_from: InitFrom = None,
    steps: Steps = None,
    seed: Annotated[int | None, typer.Option()] = None,
    device: TrainingDevice = "auto",
) -> None:
    """Train MaskGIT on the tokens of a trained tokenizer. Run the same command again to go on after an interruption."""
    with told_errors():
        from phenaki.training.generator import run_generator_training

        wishes = {"data": data, "validation": validation, "tokenizer": tokenizer, "init_from": init_from, "steps": steps, "seed": seed}
        tell(f"model: {shown(run_generator_training, config, out, device, wishes)}")


def shown(program: Callable[..., Path], config: Path, out: Path, device: str, wishes: dict[str, Any]) -> Path:
    """What a training program returns; its log and notes are shown while it runs."""
    from phenaki.devices import choose_device
    from phenaki.training.display import TrainingDisplay

    with TrainingDisplay() as display:
        return program(config, out, **wishes, device=str(choose_device(device)), on_log=display.line, on_note=display.note)
