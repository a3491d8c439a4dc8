"""kill -9 at random moments of a tiny run, many of them inside a save: what is lost, and whether it ends as an unkilled run does.

    python tools/measure_crashes.py --kills 50 -o docs/results/crashes.json

A child process trains the tokenizer of configs/tiny.toml and writes to shared memory which step it is at and whether it
is saving. It is killed, started again with the same folder, killed again, ... and at last left to finish. Then weights,
averaged weights, optimiser state and the log are compared with those of a run that was never killed, byte for byte.
"""

import argparse
import json
import mmap
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch
from results import write_results

from phenaki.checkpoint import ModelInfo
from phenaki.cvivit import CViViT
from phenaki.data.storybook import open_world
from phenaki.training.checkpoints import checkpoint_folders, damage, read_manifest
from phenaki.training.journal import TIMES
from phenaki.training.optimizers import OptimizerSettings
from phenaki.training.run import Run
from phenaki.training.settings import TokenizerTraining, load_settings
from phenaki.training.tokenizer import TokenizerTask

SETTINGS = load_settings(Path(__file__).resolve().parents[1] / "configs/tiny.toml")
SAVE_EVERY = 3
STEP, SAVING = 0, 4  # places in the shared memory: the step as four bytes, and 1 while a checkpoint is written


def train(folder: Path, num_steps: int, shared: mmap.mmap) -> None:
    """The run, which writes its step and its saves to the shared memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = OptimizerSettings(num_steps=num_steps, batch_size=2, log_every=1, save_every=SAVE_EVERY, sample_every=num_steps)
    info = ModelInfo("tiny", SETTINGS.tokenizer, None, SETTINGS.text, 8.0)
    world = open_world(SETTINGS.world)
    training = TokenizerTraining(num_slices=2, losses=SETTINGS.train_tokenizer.losses, optimizer=settings)
    run = Run(folder, TokenizerTask(CViViT(SETTINGS.tokenizer), world, training, info, world), settings, on_note=lambda note: None)
    save = run._save

    def told(averaged, **arguments) -> None:
        shared[SAVING] = 1
        save(averaged, **arguments)
        shared[SAVING] = 0

    def tell(line: dict) -> None:
        shared[STEP : STEP + 4] = line["step"].to_bytes(4, "little")

    run._save = told
    run.train(tell)


def start(folder: Path, num_steps: int, shared: mmap.mmap) -> int:
    """The process id of a child that trains."""
    shared[STEP : STEP + 5] = bytes(5)
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        train(folder, num_steps, shared)
        status = 0
    finally:
        os._exit(status)


def kill_once(folder: Path, num_steps: int, shared: mmap.mmap, rng: random.Random, in_save: bool, seconds: tuple[float, float]) -> dict | None:
    """Starts the run and kills it; None where it was done before. `seconds`: of a whole run, of one save."""
    child = start(folder, num_steps, shared)
    ended = lambda: os.waitpid(child, os.WNOHANG)[0] != 0
    if in_save:
        for _ in range(rng.randint(1, 2)):  # wait for the first or the second save
            while not shared[SAVING]:
                if ended():
                    return None
                time.sleep(0.0002)
            moment = time.perf_counter() + rng.uniform(0, 1) * seconds[1]
            while time.perf_counter() < moment:
                pass
    else:
        time.sleep(rng.uniform(0.02, 0.5) * seconds[0])
        if ended():
            return None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    step, inside = int.from_bytes(shared[STEP : STEP + 4], "little"), bool(shared[SAVING])
    folders = checkpoint_folders(folder)
    kept = max((read_manifest(one)["step"] for one in folders if not damage(one)), default=0)
    damaged = sum(bool(damage(one)) for one in folders)
    return {"step": step, "inside_a_save": inside, "lost_steps": max(step - kept, 0), "damaged_checkpoints": damaged}


def outcome(folder: Path) -> tuple[dict, list[dict]]:
    """Hashes of all files of the last checkpoint, and the lines of the log without their times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return read_manifest(checkpoint_folders(folder)[-1]), [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def timed(folder: Path, num_steps: int, shared: mmap.mmap) -> tuple[float, float]:
    """Seconds of the unkilled run, and of one of its saves."""
    began, saving = time.perf_counter(), 0.0
    child, last = start(folder, num_steps, shared), time.perf_counter()
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.0005)
        now = time.perf_counter()
        saving += (now - last) if shared[SAVING] else 0.0
        last = now
    return time.perf_counter() - began, saving / -(-num_steps // SAVE_EVERY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    shared, rng, kills, rounds = mmap.mmap(-1, 16), random.Random(arguments.seed), [], 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        seconds = timed(whole, arguments.steps, shared)
        alike = True
        while len(kills) < arguments.kills:  # a run makes progress between kills: several runs are needed
            rounds += 1
            killed = Path(place) / f"killed-{rounds}"
            while len(kills) < arguments.kills:
                kill = kill_once(killed, arguments.steps, shared, rng, len(kills) % 2 == 0, seconds)
                if kill is None:
                    break
                kills.append(kill)
            os.waitpid(start(killed, arguments.steps, shared), 0)
            alike = alike and outcome(killed) == outcome(whole)
    result = {
        "steps_of_a_run": arguments.steps,
        "save_every": SAVE_EVERY,
        "kills": len(kills),
        "kills_inside_a_save": sum(kill["inside_a_save"] for kill in kills),
        "runs": rounds,
        "end_as_the_unkilled_run_to_the_bit": alike,
        "most_steps_lost": max(kill["lost_steps"] for kill in kills),
        "damaged_checkpoints_seen": sum(kill["damaged_checkpoints"] for kill in kills),
    }
    write_results(arguments.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
