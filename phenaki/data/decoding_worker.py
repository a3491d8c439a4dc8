"""The process that decodes: `python -m phenaki.data.decoding_worker`, started by decoding.py, with little memory and no torch.

It reads one JSON line for each request and answers with JSON lines and raw bytes: {"status": "working"} while it proceeds, then
{"status": "done", ...} (with `num_bytes` raw bytes after it, for frames) or {"status": "unusable", "kind": ..., "reason": ...}.
"""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from phenaki.atomic import NO_ROOM
from phenaki.data.clip_decoder import Cut, check_clip, check_times, cut_clip, read_comment, reencode_clip
from phenaki.data.clip_files import ClipFile
from phenaki.data.shards import index_shard
from phenaki.video_files import VideoError

PROGRESS_SECONDS = 1.0  # between signs of life
PROGRESS_COUNT = 25  # frames or members: who does fewer in the time limit counts as hanging


class Heartbeat:
    """Called for each frame, member or block of bytes; writes {"status": "working"}, at most once in PROGRESS_SECONDS."""

    def __init__(self, out: BinaryIO):
        self.out, self.count, self.written = out, 0, time.monotonic()

    def __call__(self) -> None:
        self.count += 1
        if self.count >= PROGRESS_COUNT and time.monotonic() - self.written > PROGRESS_SECONDS:
            write(self.out, {"status": "working"})
            self.count, self.written = 0, time.monotonic()


def answer(request: dict[str, Any], out: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """One request -> its answer and the raw bytes after it."""
    heartbeat = Heartbeat(out)
    if request["do"] == "index":
        listing = index_shard(Path(request["path"]), heartbeat)
        return {"clips": [asdict(clip) for clip in listing.clips], "unusable": [asdict(entry) for entry in listing.unusable]}, b""
    file = ClipFile(**request["file"])
    if request["do"] == "cut":
        frames = cut_clip(file, Cut(**request["cut"]))
        return {"num_bytes": frames.nbytes}, frames.tobytes()
    if request["do"] == "check":
        return asdict(check_clip(file, heartbeat)), b""
    if request["do"] == "times":
        facts, times = check_times(file, heartbeat)
        return {**asdict(facts), "num_bytes": len(times) * times.itemsize}, times.tobytes()
    if request["do"] == "comment":
        return {"comment": read_comment(file)}, b""
    return asdict(reencode_clip(file, request["size"], request["fps"], Path(request["target"]), heartbeat)), b""


def safe_answer(request: dict[str, Any], out: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """As `answer`, with its status; whatever goes wrong with an untrusted file becomes an answer too."""
    name = request["file"]["name"] if "file" in request else request["path"]
    try:
        values, data = answer(request, out)
        return {"status": "done", **values}, data
    except VideoError as error:
        kind, reason = error.kind, str(error).removeprefix(f"{name}: ")
    except MemoryError:
        kind, reason = "too much memory", "decoding it takes more memory than a worker has"
    except OSError as error:
        kind, reason = "no room" if error.errno in NO_ROOM else "unreadable", str(error.strerror or error)
    except Exception as error:
        kind, reason = "damaged", f"{type(error).__name__}: {error}"
    return {"status": "unusable", "kind": kind, "reason": reason[:2000]}, b""


def write(out: BinaryIO, values: dict[str, Any]) -> None:
    """Writes one JSON line, at once."""
    out.write(json.dumps(values).encode() + b"\n")
    out.flush()


def limit_memory(num_bytes: int) -> None:
    """Limits the address space, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for kind, bound in ((resource.RLIMIT_AS, num_bytes), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # not below what is in use on some systems, nor above what is allowed
            resource.setrlimit(kind, (bound, bound))


def main() -> None:
    """Answers the requests on stdin until it is closed. Argument: bytes of memory allowed."""
    limit_memory(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    write(out, {"status": "ready"})
    for line in sys.stdin.buffer:
        values, data = safe_answer(json.loads(line), out)
        write(out, values)
        out.write(data)
        out.flush()


if __name__ == "__main__":
    main()
