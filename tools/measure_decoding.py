"""Times how fast clips for training come from footage and from shards of it, and writes docs/results/decoding.json.

    python tools/measure_decoding.py FOOTAGE [--sizes 64 128] [--clips 320] -o docs/results/decoding.json

One decoding process, clips of 7 frames at 8 fps from random places. Wall time is that of a busy machine or a quiet one;
processor time of the decoding process is nearly the same on both.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from results import write_results

from phenaki.data.check import check_source
from phenaki.data.footage import open_footage
from phenaki.data.footage_settings import FootageSettings
from phenaki.data.sharding import ShardSettings, make_shards

NUM_FRAMES, FPS, BATCH = 7, 8.0, 8


def child_seconds() -> float:
    """Processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def clips_a_second(path: Path, size: int, count: int) -> dict:
    """How fast `count` clips come from a source whose check is done, the start of the decoding process included."""
    before, started = child_seconds(), time.perf_counter()
    source = open_footage(path, FootageSettings(size=size, fps=FPS, num_workers=1), on_note=lambda note: None)
    for first in range(0, count, BATCH):
        source.clips(0, first, BATCH, NUM_FRAMES)
    wall = time.perf_counter() - started
    source.close()
    return {"clips_per_second": round(count / wall, 1), "clips_per_processor_second": round(count / (child_seconds() - before), 1)}


def measure(footage: Path, sizes: list[int], count: int, folder: Path) -> dict:
    """Check, then clips from the footage and from shards of each size."""
    os.environ["PHENAKI_CACHE"] = str(folder / "cache")
    before, started = child_seconds(), time.perf_counter()
    facts = check_source(footage, num_workers=1)
    seconds, processor = time.perf_counter() - started, child_seconds() - before
    result = {
        "footage": {name: facts[name] for name in ("videos", "frames", "sizes", "rates", "bytes")},
        "check": {"seconds": round(seconds, 2), "frames_per_processor_second": round(facts["frames"] / processor)},
    }
    for size in sizes:
        shards = folder / f"shards-{size}"
        made = make_shards(footage, shards, ShardSettings(size, FPS), on_note=lambda note: None)
        open_footage(shards, FootageSettings(size=size, fps=FPS), on_note=lambda note: None).close()
        result[f"{size}x{size}"] = {
            "from_videos": clips_a_second(footage, size, count),
            "from_shards": clips_a_second(shards, size, count),
            "shard_bytes": made.num_bytes,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.footage, options.sizes, options.clips, Path(folder))
    write_results(options.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
