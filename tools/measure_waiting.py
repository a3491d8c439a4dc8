"""Measures how long training waits for its clips when they come from shards, and writes docs/results/waiting.json.

    python tools/measure_waiting.py FOOTAGE [--config configs/footage.toml] [--steps 60] [--threads 1] -o docs/results/waiting.json

Shards are made of the footage at the model's size, then its tokenizer is trained on them by the program that users call. What
is written is the share of the steps' wall time in which the loop stood still because the next clips were not there: of all steps,
the start of the decoding process among them, and of each interval of the log.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from results import write_results

from phenaki.data.sharding import ShardSettings, make_shards
from phenaki.training.settings import load_settings
from phenaki.training.tokenizer import run_tokenizer_training


def share_waited(lines: list[dict], before: int = 0) -> float:
    """The share of wall time that the steps of some lines of a log waited; `before`: the last step of the line before them."""
    counts = [line["step"] - earlier for line, earlier in zip(lines, [before, *(line["step"] for line in lines)], strict=False)]
    seconds = [line["seconds_per_step"] * count for line, count in zip(lines, counts, strict=True)]
    return sum(line["waiting"] * one for line, one in zip(lines, seconds, strict=True)) / sum(seconds)


def measure(footage: Path, config: Path, steps: int, folder: Path) -> dict:
    """Makes the shards and trains on them in `folder`."""
    size = load_settings(config).tokenizer.image_size
    began = time.perf_counter()
    made = make_shards(footage, folder / "shards", ShardSettings(size), on_note=lambda note: None)
    sharded, lines = time.perf_counter() - began, []

    def show(line: dict) -> None:
        lines.append(line)
        print(f"step {line['step']}: {line['seconds_per_step']:.2f} s a step, {line['waiting']:.2%} waiting", flush=True)

    run_tokenizer_training(config, folder / "run", data=folder / "shards", steps=steps, on_log=show, on_note=lambda note: None)
    result = {
        "clips": made.num_clips,
        "size": size,
        "shard_bytes": made.num_bytes,
        "sharding_seconds": round(sharded, 1),
        "steps": steps,
        "seconds_per_step": round(lines[-1]["seconds_per_step"], 3),
        "waiting": round(share_waited(lines), 4),
        "intervals": [{"step": line["step"], "waiting": round(line["waiting"], 4)} for line in lines],
    }
    if len(lines) > 1:
        result["waiting_after_the_first_interval"] = round(share_waited(lines[1:], lines[0]["step"]), 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path)
    parser.add_argument("--config", type=Path, default=Path("configs/footage.toml"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, help="of torch; all cores by default")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PHENAKI_CACHE"] = str(Path(folder) / "cache")
        result = measure(options.footage, options.config, options.steps, Path(folder))
    write_results(options.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
