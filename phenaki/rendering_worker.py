"""The process that makes videos: `python -m phenaki.rendering_worker`, started by rendering_processes.py.

It reads JSON lines: the settings first, then one a job. It answers with JSON lines: {"status": "ready"} once the model is
loaded, or {"status": "unable", "error": ...}; then for each job {"status": "working", "frames": ..., "total": ...} with every
chunk, {"status": "note", "text": ...}, and {"status": "done", ...} with the fields of its outcome.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from phenaki.rendering import Outcome, RenderSettings, Watcher, loaded, reason_of, render
from phenaki.script_folder import Job


class Telling(Watcher):
    """Tells the other side how the work gets on."""

    def __init__(self, out: TextIO):
        self.out = out

    def say(self, status: str, **values: Any) -> None:
        self.out.write(json.dumps({"status": status, **values}) + "\n")
        self.out.flush()

    def frames(self, job: Job, done: int, total: int) -> None:
        self.say("working", frames=done, total=total)

    def note(self, text: str) -> None:
        self.say("note", text=text)

    def outcome(self, outcome: Outcome) -> None:
        values = asdict(outcome)
        del values["job"], values["tries"]
        self.say("done", **values)


def main() -> None:
    telling = Telling(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    values = json.loads(sys.stdin.readline())
    torch.set_num_threads(values.pop("num_threads"))
    settings = RenderSettings(**values)
    try:
        phenaki = loaded(settings)
    except Exception as error:
        telling.say("unable", error=reason_of(error))
        return
    telling.say("ready")
    for line in sys.stdin:
        request = json.loads(line)
        job = Job(Path(request["script"]), Path(request["output"]))
        asked = RenderSettings(**values | {"overwrite": request["overwrite"]})
        telling.outcome(render(phenaki, job.script, job, asked, telling))


if __name__ == "__main__":
    main()
