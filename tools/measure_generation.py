"""Times `phenaki generate` as a user runs it, in a process of its own, and writes docs/results/generation.json.

    python tools/measure_generation.py [SCRIPT ...] [--model storybook] [--runs 3] -o docs/results/generation.json

Seconds are wall time of the whole command, start of python included; memory is the peak resident set of that process.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import write_results

from phenaki.video import Video

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_once(script: Path, model: str, output: Path) -> tuple[float, float]:
    """Seconds and peak MiB of one run."""
    command = [sys.executable, "-m", "phenaki.cli", "generate", str(script), "-o", str(output), "--model", model]
    started = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(command)} failed with status {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def measure(script: Path, model: str, runs: int) -> dict:
    """Median, least and most of some runs of one script."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "story.mp4"
        figures = [run_once(script, model, output) for _ in range(runs)]
        video = Video.load(output)
    seconds = [figure[0] for figure in figures]
    return {
        "script": script.name,
        "runs": runs,
        "video_seconds": video.seconds,
        "scenes": len(video.scenes),
        "seconds_median": round(statistics.median(seconds), 1),
        "seconds_least": round(min(seconds), 1),
        "seconds_most": round(max(seconds), 1),
        "peak_mib": round(max(figure[1] for figure in figures)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", type=Path, default=[EXAMPLES / "bear_and_sea.yaml"])
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    stories = [measure(script, options.model, options.runs) for script in options.scripts]
    write_results(options.output, {"load_before": load, "stories": stories})
    print(json.dumps(stories, indent=2))


if __name__ == "__main__":
    main()
