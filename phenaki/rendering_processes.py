"""Many scripts at once on this machine: some processes, each with a model of its own and its share of the torch threads.

A process that dies costs nothing but its own work since the last chunk: another one goes on with the part file. The bits do
not depend on how many processes there are.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from queue import SimpleQueue
from typing import Any

import torch

from phenaki.child_process import end_in_words, start_module
from phenaki.devices import choose_device
from phenaki.rendering import Outcome, RenderError, RenderSettings, Watcher, settled_dtype
from phenaki.script_folder import Job

MAX_TRIES = 3  # of a script whose process died
MAX_WORKERS = 1024
MAX_TOLD = 300  # characters of a dead process's last words


class RenderWorker:
    """One process that makes videos, started when it is first asked and again after it died."""

    def __init__(self, settings: RenderSettings, num_threads: int):
        self.settings, self.num_threads = settings, num_threads
        self.process: subprocess.Popen | None = None
        self.was_ready = False  # some process of it had the model loaded
        self.has_frames = False  # of the job at hand, in its part file
        self.stopped = False
        self.last_words = tempfile.TemporaryFile()  # noqa: SIM115 - its standard error, until `close`

    def render(self, job: Job, watcher: Watcher) -> Outcome:
        """Makes a job's video, where the process dies in another one, which goes on behind the last whole chunk."""
        self.has_frames, reason = False, ""
        for tries in range(1, MAX_TRIES + 1):
            overwrite = self.settings.overwrite and not self.has_frames  # what lies in the part file then is this run's
            try:
                return replace(self._ask(job, overwrite, watcher), tries=tries)
            except (EOFError, BrokenPipeError):
                if self.stopped:
                    raise
                reason = self._end()
            except RenderError as error:  # the model did not load; it did before, so this is the machine's fault
                if not self.was_ready:
                    raise
                self._end()
                reason = str(error)
            watcher.note(f"{job.script.name}: its process died ({reason}), try {tries} of {MAX_TRIES}")
        return Outcome(job, f"its process died {MAX_TRIES} times ({reason}); too little memory?", tries=MAX_TRIES)

    def stop(self) -> None:
        """Ends the process for good; whoever waits for it gets an EOFError."""
        self.stopped = True
        if self.process is not None:
            self.process.kill()

    def close(self) -> None:
        """Waits for the end of a stopped process and lets its pipes go."""
        if self.process is not None:
            self._end()
        self.last_words.close()

    def _ask(self, job: Job, overwrite: bool, watcher: Watcher) -> Outcome:
        self._start()
        self._send({"script": str(job.script), "output": str(job.output), "overwrite": overwrite})
        while True:
            values = self._line()
            status = values.pop("status")
            if status == "done":
                return Outcome(job, **values)
            if status == "note":
                watcher.note(values["text"])
            else:
                self.has_frames = True
                watcher.frames(job, values["frames"], values["total"])

    def _start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        if self.stopped:
            raise EOFError  # a job that was still waiting when all were stopped begins nothing
        self.process = start_module("phenaki.rendering_worker", num_threads=self.num_threads, stderr=self.last_words, encoding="utf-8")
        if self.stopped:
            self.process.kill()
        self._send({**asdict(self.settings), "num_threads": self.num_threads})
        if (answer := self._line())["status"] != "ready":
            raise RenderError(answer["error"])
        self.was_ready = True

    def _send(self, values: dict[str, Any]) -> None:
        self.process.stdin.write(json.dumps(values) + "\n")
        self.process.stdin.flush()

    def _line(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            raise EOFError
        return json.loads(line)

    def _end(self) -> str:
        """How the process ended, in words."""
        self.process.stdout.close()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        code = self.process.wait()
        self.last_words.seek(max(self.last_words.seek(0, os.SEEK_END) - MAX_TOLD, 0))
        words = self.last_words.read().decode(errors="replace").strip().splitlines()
        return ": ".join([end_in_words(code), *(words[-1:] if code >= 0 else [])])


def render_in_processes(jobs: Sequence[Job], settings: RenderSettings, watcher: Watcher, num_workers: int) -> Iterator[Outcome]:
    """Makes the jobs in so many processes; outcomes as they come. RenderError where the model cannot be loaded.

    The processes end with the iterator, and with it whatever is not finished; its part files stay.
    """
    check_num_workers(num_workers)
    num_workers = min(num_workers, len(jobs))
    devices, num_threads = devices_of(settings.device), max(torch.get_num_threads() // num_workers, 1)
    settings = replace(settings, dtype=settled_dtype(settings))
    workers = [RenderWorker(replace(settings, device=devices[index % len(devices)]), num_threads) for index in range(num_workers)]
    idle: SimpleQueue[RenderWorker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)
    threads = ThreadPoolExecutor(num_workers, "rendering")
    try:
        for future in as_completed([threads.submit(work, idle, job, watcher) for job in jobs]):
            yield future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()
        threads.shutdown(wait=True)
        for worker in workers:
            worker.close()


def work(idle: "SimpleQueue[RenderWorker]", job: Job, watcher: Watcher) -> Outcome:
    """Has an idle worker make a job's video."""
    worker = idle.get()
    try:
        return worker.render(job, watcher)
    finally:
        idle.put(worker)


def check_num_workers(num_workers: int) -> None:
    """RenderError for a number of workers that there cannot be."""
    if not 1 <= num_workers <= MAX_WORKERS:
        raise RenderError(f"{num_workers} workers: needed 1 to {MAX_WORKERS}")


def devices_of(device: str) -> list[str]:
    """The devices that workers are spread over: where several GPUs would do, each of them."""
    if device in ("auto", "cuda") and choose_device(device).type == "cuda":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [device]
