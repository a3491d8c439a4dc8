"""What a training program makes sure of before data is made for its run: the folder is its own, and the run will not be refused."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from phenaki.compiling import check_compiler
from phenaki.locks import LOCK
from phenaki.training.checkpoints import check_identity, take
from phenaki.training.optimizers import OptimizerSettings
from phenaki.training.parallel import Group


@contextlib.contextmanager
def folder_alone(folder: Path, settings: OptimizerSettings, group: Group) -> Iterator[BinaryIO | None]:
    """A run's folder, this process's own where it leads: entered before data is made for the run, and handed to it.

    BusyError where it is another's; ValueError first, where training is to be compiled and cannot be. What is refused leaves no new folder.
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

    begun: the checkpoint that it would go on from.
    """
    for part in group.parts(settings.accumulate):
        part.of(settings.batch_size)
    if begun is not None:
        check_identity(begun, whole_identity(settings, identity))


def whole_identity(settings: OptimizerSettings, identity: dict[str, Any]) -> dict[str, Any]:
    """A task's identity with what its run adds."""
    return {"optimizer": settings.optimizer, **identity}
