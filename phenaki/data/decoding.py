"""Untrusted files decoded in processes of their own: a file that crashes or hangs one costs that file, not the training run.

A worker has a limit of memory. When it makes no progress for `TIME_LIMIT` seconds it is killed and another one started.
What crosses the pipe is JSON and raw pixels, never an object that runs when it is read.
"""

import contextlib
import json
import os
import queue
import subprocess
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from phenaki.child_process import end_in_words, start_module
from phenaki.data.clip_decoder import ClipFacts, Cut
from phenaki.data.clip_files import ClipFile, Listing, Unusable, clip_file
from phenaki.video_files import MAX_FRAMES, VideoError, check_regular, parse_script

TIME_LIMIT = 10.0  # seconds without an answer or a sign of progress after which a worker is killed
OWN_TIME_LIMIT = 60.0  # the same for a file that the user named, which nothing can replace
START_LIMIT = 60.0  # seconds until a new worker is ready
MEMORY_LIMIT = 4 << 30  # bytes of address space of a worker
MAX_LINE = 1 << 28  # bytes of an answer in JSON: the index of a shard

Answer = TypeVar("Answer")
Read = Callable[[dict[str, Any], bytes], Answer]  # a worker's values and raw bytes -> what was asked for; ClipError if they are wrong


class ClipError(ValueError):
    """A file that no clip can be decoded from. kind, reason: as those of Unusable."""

    def __init__(self, kind: str, reason: str):
        super().__init__(f"{kind}: {reason}")
        self.kind, self.reason = kind, reason


class Worker:
    """One decoding process, started when it is first asked and again after it was killed."""

    def __init__(self, time_limit: float = TIME_LIMIT, memory_limit: int = MEMORY_LIMIT):
        self.time_limit, self.memory_limit = time_limit, memory_limit
        self.process: subprocess.Popen | None = None
        self.buffer = bytearray()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error) -> None:
        self.stop()

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The answer to a request and its raw bytes. ClipError where the file cannot be used, crashed the worker or held it up."""
        self._start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            values = {"status": "working"}
            while values["status"] == "working":
                deadline = time.monotonic() + self.time_limit
                values = self._line(deadline)
            data = self._bytes(int(values.get("num_bytes", 0)), deadline)
        except TimeoutError:
            self.stop()
            raise ClipError("too slow", f"decoding it stood still for {self.time_limit:g} s") from None
        except (EOFError, OSError, ValueError) as error:
            raise ClipError("crash", f"decoding it ended the worker ({self._end()})") from error
        except BaseException:
            self.stop()  # interrupted half way: what is left in the pipe belongs to no request
            raise
        if values["status"] != "done":
            raise ClipError(str(values.get("kind")), str(values.get("reason")))
        return values, data

    def stop(self) -> None:
        """Ends the process; the next request starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.process = None
        self.buffer.clear()

    def _start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.stop()
        self.process = start_module("phenaki.data.decoding_worker", str(self.memory_limit))
        try:
            self._line(time.monotonic() + START_LIMIT)
        except (TimeoutError, EOFError, ValueError) as error:
            command = " ".join(self.process.args)
            self.stop()
            raise ChildProcessError(f"the decoding worker does not start: {command}") from error

    def _end(self) -> str:
        """How the process ended, in words."""
        try:
            end = end_in_words(self.process.wait(timeout=1))
        except subprocess.TimeoutExpired:
            end = "it answered nonsense"
        self.stop()
        return end

    def _line(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self.buffer:
            if len(self.buffer) > MAX_LINE:
                raise ValueError("an answer without end")
            self._more(deadline)
        line, _, rest = self.buffer.partition(b"\n")
        self.buffer = rest
        values = json.loads(line)
        if not isinstance(values, dict) or not isinstance(values.get("status"), str):
            raise ValueError("an answer that is none")
        return values

    def _bytes(self, count: int, deadline: float) -> bytes:
        while len(self.buffer) < count:
            self._more(deadline)
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def _more(self, deadline: float) -> None:
        """Waits for some bytes of the answer."""
        if not wait([self.process.stdout], max(deadline - time.monotonic(), 0)):
            raise TimeoutError
        block = os.read(self.process.stdout.fileno(), 1 << 20)
        if not block:
            raise EOFError
        self.buffer += block


def check_video(path: Path, worker: Worker) -> tuple[ClipFacts, np.ndarray]:
    """What a video file holds, decoded to its end, and the time of each frame in seconds (the first MAX_FRAMES), float64 (f,).

    VideoError where it cannot be used.
    """
    values, data = _told_of(path, "times", worker)
    facts, times = facts_of(values), np.frombuffer(data)
    if not 0 < len(times) == min(facts.num_frames, MAX_FRAMES) or not np.isfinite(times).all():
        raise VideoError(f"{path}: gave the times of {len(times)} frames, has {facts.num_frames}")
    return facts, times


def read_script(path: Path, worker: Worker) -> dict[str, Any] | None:
    """The script that a video file was made from, read without its frames; None where it has none. VideoError: no video file."""
    return parse_script(_told_of(path, "comment", worker)[0]["comment"])


def _told_of(path: Path, what: str, worker: Worker) -> tuple[dict[str, Any], bytes]:
    check_regular(path)
    file = clip_file(path, str(path), "")
    if isinstance(file, Unusable):
        raise VideoError(f"{path}: {file.reason}", file.kind)
    try:
        return worker.ask({"do": what, "file": asdict(file)})
    except ClipError as error:
        raise VideoError(f"{path}: {error.reason}", error.kind) from error


class DecodingPool:
    """Some workers; requests are answered in any order, each as a Future.

    num_workers: 0 = half of the cores, at most 8; of several processes that torchrun started on a machine each has its share.
    """

    def __init__(self, num_workers: int = 0, time_limit: float = TIME_LIMIT, memory_limit: int = MEMORY_LIMIT):
        if num_workers < 0:
            raise ValueError(f"{num_workers} decoding processes: needed 0 (half of the cores) or more")
        cores = (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        num_workers = num_workers or min(max(cores // 2, 1), 8)
        self.workers = [Worker(time_limit, memory_limit) for _ in range(num_workers)]
        self.idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self.workers:
            self.idle.put(worker)
        self.threads = ThreadPoolExecutor(num_workers, thread_name_prefix="decoding")
        self._close = weakref.finalize(self, close_all, self.threads, self.workers)

    def __enter__(self) -> "DecodingPool":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        self._close()

    def check(self, file: ClipFile) -> "Future[ClipFacts]":
        """Decodes the whole file; ClipError in the Future where it cannot be used."""
        return self._submit({"do": "check", "file": asdict(file)}, lambda values, data: facts_of(values))

    def cut(self, file: ClipFile, cut: Cut) -> "Future[np.ndarray]":
        """One clip, uint8 (f h w 3); ClipError in the Future where it cannot be decoded."""
        shape = (1 if file.is_picture else cut.num_frames, cut.size, cut.size, 3)
        return self._submit({"do": "cut", "file": asdict(file), "cut": asdict(cut)}, lambda values, data: pixels_of(data, shape))

    def reencode(self, file: ClipFile, size: int, fps: float | None, target: Path) -> "Future[ClipFacts]":
        """Writes the clip anew in `target`; see clip_decoder.reencode_clip."""
        request = {"do": "reencode", "file": asdict(file), "size": size, "fps": fps, "target": str(target)}
        return self._submit(request, lambda values, data: facts_of(values))

    def read_shard(self, path: Path) -> Listing:
        """The index of a tar shard; a shard that cannot be read at all is one unusable file."""
        try:
            return self._submit({"do": "index", "path": str(path)}, lambda values, data: listing_of(values)).result()
        except ClipError as error:
            return Listing((), (Unusable("", error.kind, error.reason),))

    def _submit(self, request: dict[str, Any], read: Read[Answer]) -> "Future[Answer]":
        return self.threads.submit(work, self.idle, request, read)


def work(idle: "queue.SimpleQueue[Worker]", request: dict[str, Any], read: Read[Answer]) -> Answer:
    """Waits for an idle worker, has it answer a request, and returns what `read` makes of the answer."""
    worker = idle.get()
    try:
        values, data = worker.ask(request)
        return read(values, data)
    finally:
        idle.put(worker)


def close_all(threads: ThreadPoolExecutor, workers: list[Worker]) -> None:
    """Waits for requests under way, drops the others, and ends the workers."""
    threads.shutdown(wait=True, cancel_futures=True)
    for worker in workers:
        worker.stop()


def facts_of(values: dict[str, Any]) -> ClipFacts:
    """The facts in a worker's answer."""
    return ClipFacts(int(values["width"]), int(values["height"]), int(values["num_frames"]), float(values["seconds"]), float(values["fps"]))


def pixels_of(data: bytes, shape: tuple[int, int, int, int]) -> np.ndarray:
    """A worker's raw bytes as frames, uint8 (f h w 3); ClipError where they do not fill that shape."""
    if len(data) != int(np.prod(shape)):
        raise ClipError("damaged", f"gave {len(data)} bytes of pixels, needed {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def listing_of(values: dict[str, Any]) -> Listing:
    """The index of a shard in a worker's answer."""
    return Listing.of([ClipFile(**clip) for clip in values["clips"]], [Unusable(**entry) for entry in values["unusable"]])
