"""Checks and set-up before a run: settings, run folder, early refusal."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from phenaki.atomic import check_folder
from phenaki.checkpoint import read_info
from phenaki.compiling import check_compiler
from phenaki.data.order import RESERVED_SEEDS
from phenaki.locks import LOCK
from phenaki.training.checkpoints import check_identity, take
from phenaki.training.optimizers import OptimizerSettings
from phenaki.training.parallel import Group

NOT_HELD_OUT = "these clips are trained on, too: the loss on them is no measure of others, and neither is the best checkpoint by it"


@dataclass(frozen=True)
class Asked:
    """What a training program was asked for."""

    config: Path  # settings, configs/NAME.toml
    out: Path  # run folder; the model lands in out/model
    data: Path | None = None  # to train on; None = the storybook world drawn by code
    validation: Path | None = None  # held-out clips
    init_from: str | None = None  # a model folder or name whose weights it starts from
    steps: int | None = None  # in place of the settings' num_steps
    seed: int | None = None  # in place of the settings'
    device: str = "cpu"


@contextlib.contextmanager
def folder_alone(folder: Path, settings: OptimizerSettings, group: Group) -> Iterator[BinaryIO | None]:
    """Locks a run's folder in the process that leads, before data is made for the run; yields the lock for `Run`, None in other processes.

    BusyError where another process trains in the folder; ValueError first, where training is to be compiled and cannot be. A folder
    that was made here and holds nothing but the lock is removed at the end.
    """
    if settings.compile:
        check_compiler(group.device)
    if not group.leads:
        yield None
        return
    made = [one for one in (folder, folder.parent) if not one.exists()]
    with take(folder) as lock:
        try:
            yield lock
        finally:
            if made and [file.name for file in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                with contextlib.suppress(OSError):  # something else lies there
                    for one in made:
                        one.rmdir()


def check_start(begun: Path | None, settings: OptimizerSettings, identity: dict[str, Any], group: Group) -> None:
    """ValueError before any work where a `Run` of this identity would be refused: its batch does not divide, or the folder is another run's.

    begun: the checkpoint that it would resume from.
    """
    for part in group.parts(settings.accumulate):
        part.of(settings.batch_size)
    if begun is not None:
        check_identity(begun, whole_identity(settings, identity))


def whole_identity(settings: OptimizerSettings, identity: dict[str, Any]) -> dict[str, Any]:
    """A task's identity with what its run adds."""
    return {"optimizer": settings.optimizer, **identity}


def override(settings: OptimizerSettings, steps: int | None, seed: int | None) -> OptimizerSettings:
    """The settings with another length or seed where one is given; a run of a given length warms up for a tenth of it at most.

    ValueError for less than one step, or a seed that is kept for measuring (`RESERVED_SEEDS`).
    """
    if steps is not None:
        if steps < 1:
            raise ValueError(f"{steps} steps: needed at least 1")
        settings = replace(settings, num_steps=steps, warmup_steps=min(settings.warmup_steps, max(steps // 10, 1)))
    settings = settings if seed is None else replace(settings, seed=seed)
    if settings.seed in RESERVED_SEEDS:
        raise ValueError(f"seed {settings.seed}: that of clips which models are measured by, and not trained on; give another")
    return settings


def note_warmup(set_to: OptimizerSettings, own: OptimizerSettings, on_note: Callable[[str], None]) -> None:
    """Notes where `override` has made the warm-up shorter than it was set to, and where it is as long as the run."""
    if own.warmup_steps < set_to.warmup_steps:
        on_note(f"warmup_steps {set_to.warmup_steps} -> {own.warmup_steps}: a tenth at most of the {own.num_steps} steps that were asked for")
    elif own.warmup_steps >= own.num_steps > 1:
        on_note(f"warmup_steps {own.warmup_steps} of {own.num_steps} steps: the learning rate rises to the end of the run and is never at its peak")


def silent(text: str) -> None:
    """Takes notes and drops them, in processes that do not lead."""


def check_place(out: Path) -> None:
    """ValueError where `out` cannot be the folder of runs, or `out`/model, which they replace, is a folder of something else."""
    check_folder(out)
    model = out / "model"
    if (model / "config.json").is_file():
        try:
            read_info(model)
        except ValueError as error:
            raise ValueError(f"{model}: holds what is no model of this program's, and would be replaced; move it away ({error})") from error
