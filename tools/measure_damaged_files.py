"""Trains on damaged videos of 16 kinds among as many good ones, and on the good ones alone; writes docs/results/damaged_files.json.

    python tools/measure_damaged_files.py [--each 20] [--seed 0] [--steps 10] -o docs/results/damaged_files.json

Counts which damaged files were reported, with which kinds, how long the slowest took, whether any crashed or stalled its
decoding process, and whether the losses and weights of both runs are equal to the bit. "accepted" are damaged files that
were not reported.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from make_damaged_videos import KINDS, make_set
from results import write_results

from phenaki.data.clip_files import Unusable
from phenaki.data.decoding import ClipError, DecodingPool
from phenaki.data.listing import list_clips
from phenaki.training.journal import TIMES
from phenaki.training.tokenizer import run_tokenizer_training

CONFIG = Path(__file__).parent.parent / "configs/tiny.toml"


def check_each(folder: Path) -> tuple[dict[str, Unusable], dict[str, float]]:
    """The report of each unusable file by name, and the seconds that each file took, one after the other."""
    with DecodingPool(1) as pool:
        listing = list_clips(folder, pool.read_shard)
        unusable, seconds = {entry.name: entry for entry in listing.unusable}, {}
        for file in listing.clips:
            started = time.perf_counter()
            try:
                pool.check(file).result()
            except ClipError as error:
                unusable[file.name] = Unusable(file.name, error.kind, error.reason)
            seconds[file.name] = time.perf_counter() - started
    return unusable, seconds


def train(data: Path, out: Path, steps: int) -> dict:
    """A tiny run: its log without times, and the hash of its weights."""
    lines: list[dict] = []
    model = run_tokenizer_training(CONFIG, out, data=data, steps=steps, on_log=lines.append, on_note=lambda note: None)
    log = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    weights = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(model.glob("*.safetensors"))))
    return {"log": log, "weights_sha256": weights.hexdigest()}


def by_kind(names: dict[str, str], unusable: dict[str, Unusable]) -> dict[str, dict]:
    """For each kind of damage how many files there are, how many were reported, and as what."""
    rows = {}
    for kind in KINDS:
        files = [name for name, other in names.items() if other == kind]
        reported = [unusable[name] for name in files if name in unusable]
        rows[kind] = {"files": len(files), "reported": len(reported), "as": dict(Counter(entry.kind for entry in reported))}
    return rows


def measure(folder: Path, each: int, seed: int, steps: int) -> dict:
    """The whole experiment in a folder of its own."""
    os.environ["PHENAKI_CACHE"] = str(folder / "cache")
    names = make_set(folder / "mixed", each, seed)
    (folder / "good").mkdir()
    for name in (name for name, kind in names.items() if kind == "good"):
        os.link(folder / "mixed" / name, folder / "good" / name)
    unusable, seconds = check_each(folder / "mixed")
    mixed, good = train(folder / "mixed", folder / "run-mixed", steps), train(folder / "good", folder / "run-good", steps)
    damaged = [name for name, kind in names.items() if kind != "good"]
    reported = [name for name in damaged if name in unusable]
    slowest = max(seconds, key=seconds.get)
    return {
        "good_files": len(names) - len(damaged),
        "good_files_refused": sum(names[name] == "good" for name in unusable),
        "damaged_files": len(damaged),
        "reported": len(reported),
        "reported_share": round(len(reported) / len(damaged), 4),
        "accepted": {name: names[name] for name in damaged if name not in unusable},
        "worker_crashes": sum(entry.kind == "crash" for entry in unusable.values()),
        "stalls_over_10_s": sum(entry.kind == "too slow" for entry in unusable.values()),
        "slowest_file": {"seconds": round(seconds[slowest], 3), "kind": names[slowest]},
        "kinds": by_kind(names, unusable),
        "training": {
            "steps": steps,
            "equal_losses": mixed["log"] == good["log"],
            "equal_weights": mixed["weights_sha256"] == good["weights_sha256"],
            **mixed,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=20, help="files of each kind of damage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.each, options.seed, options.steps)
    write_results(options.output, result)
    print(json.dumps({name: value for name, value in result.items() if name not in ("training", "kinds")}, indent=2))


if __name__ == "__main__":
    main()
