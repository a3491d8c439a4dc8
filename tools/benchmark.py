"""This project against phenaki-pytorch 0.5.0 at the same sizes: how long everything takes that a user or a training waits for, and how much memory.

    python tools/benchmark.py -o docs/results/benchmark.json --page docs/benchmarks.md           # the small size: some minutes
    python tools/benchmark.py --sizes small large -o benchmark.json                              # large: an hour or two on two cores
    python tools/benchmark.py --sizes paper --device cuda --cases round chunk                    # 1.8 billion parameters, on a GPU
    python tools/benchmark.py --cases tokenizer_step generator_step --match width --compiled     # training alone

The peer needs an environment of its own: tools/peer_phenaki_pytorch.py says how; `--alone` times this project without it.
Both sides work in turn in one process, so that what else the machine does strikes both; medians and quartiles over the rounds.
What the cases are: tools/benchmark_sampling.py, benchmark_training.py; the sizes: benchmark_sizes.py. Weights are random, prompts
are given vectors. Memory is the most that a process had resident which makes one story of ten prompts, a process for each side.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from alternation import PEER, alternate, summary
from benchmark_page import page
from benchmark_sampling import Side, our_side, peer_side, precision
from benchmark_sizes import BenchmarkSize, benchmark_size
from peer_phenaki_pytorch import VERSION, import_peer
from results import command_line

from phenaki.atomic import write_text

SAMPLING = ("encode", "decode", "round", "chunk", "story")
TRAINING = ("tokenizer_step", "generator_step")
CASES = (*SAMPLING, *TRAINING, "memory")
REPEATS, WARMUP = {"chunk": 5, "story": 3}, 2  # of others 15; the long ones are warm after one run
SIDES: dict[str, Callable[[BenchmarkSize, torch.device], Side]] = {"ours": our_side, PEER: peer_side}
MEMORY_ROUNDS = 2  # a chunk: more do not change the peak


def peak_mib() -> float:
    """The most that this process had resident (Linux).

    Not getrusage's ru_maxrss: that of a new process begins with what its parent had resident when it was started.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError("/proc/self/status has no VmHWM: peak memory is measured on Linux only; leave `memory` out of --cases")


def story_memory(name: str, size: BenchmarkSize) -> dict[str, float]:
    """MiB of this process before and after one story of one side; to be run in a process of its own."""
    side = SIDES[name](replace(size, num_steps=MEMORY_ROUNDS), torch.device("cpu"))
    before = peak_mib()
    side.work["story"]()
    return {"with_weights_mib": round(before), "peak_mib": round(peak_mib())}


def memory_in_child(name: str, options: argparse.Namespace, size_name: str) -> dict[str, float]:
    """`story_memory` in a process of its own."""
    command = [sys.executable, __file__, "--story-memory", name, "--sizes", size_name, "--match", options.match, "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def measure_memory(options: argparse.Namespace, size_name: str) -> dict:
    """Peak memory of a story of ten prompts of each side, and ours as a share of the peer's."""
    found = {name: memory_in_child(name, options, size_name) for name in contenders(options)}
    if PEER in found:
        found["share_of_peer"] = round(found["ours"]["peak_mib"] / found[PEER]["peak_mib"], 2)
    return found


def contenders(options: argparse.Namespace) -> list[str]:
    return ["ours"] if options.alone else ["ours", PEER]


def measure_size(name: str, options: argparse.Namespace) -> dict:
    """All asked cases at one size."""
    size, device = benchmark_size(name, options.match), torch.device(options.device)
    sides = {side: SIDES[side](size, device) for side in contenders(options)} if set(options.cases) & set(SAMPLING) else {}
    found: dict = {"rounds_a_chunk": size.num_steps, "parameters": {side: made.parameters for side, made in sides.items()}}
    for case in options.cases:
        if case == "memory":
            found[case] = measure_memory(options, name)
        else:
            if case in TRAINING:
                import benchmark_training  # here: a process that measures the memory of a story is to hold nothing else

                steps = getattr(benchmark_training, f"{case}s")
                work = steps(size, device, with_compiled=options.compiled, with_peer=not options.alone)
            else:
                work = {side: made.work[case] for side, made in sides.items()}
            repeats = options.repeats or size.repeats.get(case, REPEATS.get(case, 15))
            with precision(device):
                found[case] = summary(alternate(work, repeats, min(WARMUP, repeats // 2), device), device)
        print(name, case, json.dumps(found[case]), file=sys.stderr, flush=True)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "small", "large", "paper"), default=["small"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--match", choices=("parameters", "width"), default="parameters", help="what both sides have alike beside width and layers")
    parser.add_argument("--repeats", type=int, help="rounds of every case, in place of 15, or fewer for long ones")
    parser.add_argument("--alone", action="store_true", help="without the peer")
    parser.add_argument("--compiled", action="store_true", help="our training steps compiled, too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("-o", "--output", type=Path, help="figures as JSON")
    parser.add_argument("--page", type=Path, help="figures as a page in Markdown")
    parser.add_argument("--story-memory", choices=list(SIDES), help=argparse.SUPPRESS)  # what a child process measures
    options = parser.parse_args()
    for name in ("repeats", "threads"):
        if (count := getattr(options, name)) is not None and count < 1:
            parser.error(f"--{name} {count}: needed at least 1")
    if options.device == "cuda" and (not torch.cuda.is_available() or "memory" in options.cases):
        parser.error("--device cuda: needs a GPU that torch can use, and --cases without memory, which is the CPU's")
    if "paper" in options.sizes and options.device == "cpu":
        parser.error("--sizes paper: 1.8 billion parameters need --device cuda")
    return options


def check(options: argparse.Namespace) -> None:
    """ValueError or OSError before the work for what would stop it in the middle, or keep its figures from being written."""
    if not options.alone:
        import_peer()
    if "memory" in options.cases:
        peak_mib()
    for path in filter(None, (options.output, options.page)):
        if path.is_dir():
            raise ValueError(f"{path}: is a folder; needed the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.story_memory:
        print(json.dumps(story_memory(options.story_memory, benchmark_size(options.sizes[0], options.match))))
        return
    check(options)
    results = {
        "command": command_line(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}",
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "load_before": round(os.getloadavg()[0], 2),
        "peer": None if options.alone else f"phenaki-pytorch {VERSION}",
        "match": options.match,
        "sizes": {name: measure_size(name, options) for name in options.sizes},
    }
    print(text := page(results))
    for path, content in ((options.output, json.dumps(results, indent=2) + "\n"), (options.page, text)):
        if path:
            write_text(path, content)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"benchmark: {error}") from error
