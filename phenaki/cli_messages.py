"""What all commands share: how errors, notes and progress are told."""

import contextlib
from collections.abc import Callable, Iterator

import typer
from rich.console import Console
from rich.text import Text

from phenaki.atomic import NO_ROOM

errors = Console(stderr=True)


@contextlib.contextmanager
def told_errors() -> Iterator[None]:
    """Turns the errors of bad input, and a lack of memory, into one message and exit code 2, an interrupt into exit code 130."""
    notes = lambda error: "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    try:
        yield
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) in NO_ROOM:
            error.add_note("make room there, or give an output on another disk, and run the same command again")
        errors.print(Text.assemble(("error:", "red"), f" {error}{notes(error)}"), soft_wrap=True)
        raise typer.Exit(2) from error
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        why = str(error).partition("\n")[0]
        told = f"not enough memory{f' ({why})' if why else ''}: give a shorter or smaller clip or story, or close other programs"
        errors.print(Text.assemble(("error:", "red"), f" {told}{notes(error)}"), soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        tell((str(error) or "stopped") + notes(error))
        raise typer.Exit(130) from error


def is_lack_of_memory(error: Exception) -> bool:
    """Python's, torch's on a GPU, or torch's on a CPU, which has no type of its own. Torch need not be loaded to know."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def tell(text: str) -> None:
    """A line on stderr, letter for letter: paths and prompts may hold what `rich` takes for markup."""
    errors.print(Text(text), soft_wrap=True)


@contextlib.contextmanager
def count_progress(things: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, told (things done, things in all)."""
    from rich.progress import Progress

    with Progress(console=errors, transient=True) as bar:
        task = bar.add_task(things, total=None)
        yield lambda done, count: bar.update(task, completed=done, total=count)
