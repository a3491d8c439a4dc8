"""Makes a long video through the real file writer and samples the resident set: does it grow with the length?

    python tools/measure_hour.py -o docs/results/hour.json                          # the shipped model: an hour or two on a CPU
    python tools/measure_hour.py --minutes 5 -o hour.json                           # a part of it
    python tools/measure_hour.py --random-weights configs/tiny.toml -o hour.json    # the whole hour in minutes

The smallest setting: one round a chunk, guidance off; every four seconds of video another prompt. The resident set is read
twenty times a second; of each minute of video the most is kept, and that of putting the whole file together at the end.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from results import write_results

from phenaki.checkpoint import Model, ModelInfo
from phenaki.cvivit import CViViT
from phenaki.maskgit import MaskGIT
from phenaki.pipeline import Phenaki
from phenaki.recording import generate_to_file
from phenaki.story import Story
from phenaki.text import TextEncoder
from phenaki.training.settings import load_settings
from phenaki.video import VideoWriter

LIMIT_MIB = 16  # of growth from minute 2 on
GUIDANCE_SCALE = 1.0  # off
ACTORS = ("bear", "panda", "fox", "cat", "robot", "duck", "horse")
MOTIONS = (
    "walks to the right", "runs", "hops", "flies up", "falls", "spins", "grows", "shrinks", "stands still", "walks in a circle", "sleeps",
)  # fmt: skip
PLACES = (
    "on the beach", "in the forest", "at night", "in the snow", "by the sea", "in a city", "at sunset", "in the rain", "on a hill", "in a garden",
    "in the desert", "near a castle", "in a cave",
)  # fmt: skip


class Sampler(threading.Thread):
    """The most MiB that this process had resident in each phase; `phase` is set by whoever works.

    Pages of files, such as weights that are read as they are needed, are among them.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.phase, self.most, self.ended = 0, defaultdict(float), threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.most[self.phase] = max(self.most[self.phase], resident_mib())


def resident_mib() -> float:
    """This process' resident set (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def random_model(config: Path) -> Phenaki:
    """A model of random weights: as much work a frame as its sizes say, and nothing to see."""
    settings, text_encoder = load_settings(config), TextEncoder.load()
    torch.manual_seed(0)
    tokenizer, generator = (network.eval().requires_grad_(False) for network in (CViViT(settings.tokenizer), MaskGIT(settings.generator)))
    info = ModelInfo(f"random {config.stem}", settings.tokenizer, settings.generator, settings.text, settings.world.fps)
    return Phenaki(Model(info, tokenizer, generator), text_encoder, torch.device("cpu"), torch.float32)


def story_of(minutes: float, prompt_seconds: float) -> Story:
    """Scenes whose prompts are all different for an hour, of the words of one storybook."""
    count = max(round(60 * minutes / prompt_seconds), 1)
    prompts = (f"A {ACTORS[n % 7]} {MOTIONS[n % 11]} {PLACES[n % 13]}" for n in range(count))
    return Story.of([(prompt, 60 * minutes / count) for prompt in prompts])


def make(phenaki: Phenaki, story: Story, path: Path, num_steps: int, sampler: Sampler) -> int:
    """Writes the story and tells the sampler the minute of video it is at, and the end; returns how many frames there are."""
    write, finish, fps = VideoWriter.write, VideoWriter._finish, phenaki.info.fps

    def told_write(writer, frames, note=b""):
        sampler.phase = int(writer.num_frames / fps // 60) + 1
        write(writer, frames, note)

    def told_finish(writer):
        sampler.phase = "end"
        finish(writer)
        sampler.most["end"] = max(sampler.most["end"], resident_mib())

    VideoWriter.write, VideoWriter._finish = told_write, told_finish
    return generate_to_file(phenaki, story, path, num_steps=num_steps, guidance_scale=GUIDANCE_SCALE, progress=True).num_frames


def measured_model(phenaki: Phenaki, num_steps: int) -> dict[str, Any]:
    """What the figures are of: the model with the hashes of its weights, the size of its pictures, and how it was sampled."""
    info = phenaki.info
    return {
        "model": info.provenance,
        "size": info.tokenizer.image_size,
        "sampling": {**asdict(info.sampling), "num_steps": num_steps, "guidance_scale": GUIDANCE_SCALE},
        "dtype": str(phenaki.dtype).removeprefix("torch."),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--random-weights", type=Path, metavar="CONFIG", help="a model of random weights in place of --model")
    parser.add_argument("--minutes", type=float, default=60, help="of video, three at least")
    parser.add_argument("--prompt-seconds", type=float, default=4, help="of video from one prompt to the next")
    parser.add_argument("--num-steps", type=int, default=1)
    parser.add_argument("--ending", choices=("mp4", "webm"), default="mp4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if options.minutes < 3:
        parser.error(f"--minutes {options.minutes:g}: needed at least 3, for growth is counted from minute 2")
    torch.set_num_threads(options.threads)
    phenaki = random_model(options.random_weights) if options.random_weights else Phenaki.from_pretrained(options.model, device="cpu")
    story, sampler = story_of(options.minutes, options.prompt_seconds), Sampler()
    began, cpu = time.perf_counter(), time.process_time()
    sampler.start()
    with tempfile.TemporaryDirectory() as folder:
        num_frames = make(phenaki, story, Path(folder) / f"hour.{options.ending}", options.num_steps, sampler)
        num_bytes = (Path(folder) / f"hour.{options.ending}").stat().st_size
    sampler.ended.set()
    minutes = [most for phase, most in sampler.most.items() if phase not in (0, "end")]
    results = {
        **measured_model(phenaki, options.num_steps),
        "video": {"minutes": options.minutes, "frames": num_frames, "scenes": len(story.scenes), "mib": round(num_bytes / 2**20, 1)},
        "seconds": round(time.perf_counter() - began),
        "cpu_seconds": round(time.process_time() - cpu),
        "resident_mib_of_each_minute": [round(most, 1) for most in minutes],
        "resident_mib_while_the_whole_file_is_made": round(sampler.most["end"], 1),
        "growth_mib_from_minute_2": round(max(*minutes[2:], sampler.most["end"]) - minutes[1], 1),
        "growth_mib_while_generating": round(max(minutes[2:]) - minutes[1], 1),
        "asked_mib": LIMIT_MIB,
    }
    write_results(options.output, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
