"""Files of figures, as the tools that measure write them: what was measured, and before it how and on what."""

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from phenaki.atomic import write_text


def write_results(path: Path, values: dict[str, Any]) -> None:
    """Figures as JSON after the command, the machine and the load that gave them, unless the figures have these keys themselves."""
    write_json(path, {"command": command_line(), "machine": machine(), "load_after": round(os.getloadavg()[0], 2), **values})


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Values as a JSON file, whole or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(values, indent=2) + "\n")


def command_line() -> str:
    """The command as it was given, but absolute paths by their names alone: where they lie is private."""
    return shlex.join(["python", *(Path(word).name if Path(word).is_absolute() else word for word in sys.argv)])


def machine() -> str:
    """The processor's kind, its cores, and torch with its threads."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch {torch.__version__}"
