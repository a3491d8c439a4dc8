"""Processes of this package's own modules, spoken to by their standard input and output."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

PACKAGES = Path(__file__).resolve().parents[1]  # the folder that `phenaki` is imported from


def start_module(module: str, *words: str, num_threads: int = 1, stderr: int | IO[bytes] = subprocess.DEVNULL, **options: Any) -> subprocess.Popen:
    """Starts `python -m module words`, with pipes to its standard input and output, in a session of its own: Ctrl-C does not reach it.

    It imports this same package, and nothing from the working folder. num_threads: of its arithmetic. options: of `Popen`.
    """
    path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(num_threads))
    environment = {**os.environ, "PYTHONPATH": path, **threads}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
    return subprocess.Popen([sys.executable, "-P", "-m", module, *words], env=environment, start_new_session=True, **pipes, **options)


def end_in_words(code: int) -> str:
    """How a process ended, by its exit code: a signal's name, or the status that it left with."""
    return signal.Signals(-code).name if code < 0 else f"status {code}"
