"""Trains the referee of a world on rendered truth, measures it, and writes its weights and figures.

    python tools/train_referee.py --world small --data storybook.safetensors -o runs/referee [--figures docs/results/referee.json]

Killed at any moment, the same command goes on from the last checkpoint. The weights are FOLDER/WORLD.safetensors, in half
precision; to ship them, copy the file to phenaki/evaluation/referees/ and its SHA-256 into HASHES of phenaki/evaluation/referee.py.
Figures are those of the written file.
"""

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch

from phenaki.checkpoint import load_model
from phenaki.data.storybook import WORLDS, open_world
from phenaki.evaluation.referee import Referee, labels_of, load_referee, save_referee
from phenaki.training.optimizers import OptimizerSettings
from phenaki.training.referee import RefereeTask
from phenaki.training.referee_bank import Bank, BankSettings
from phenaki.training.run import Run

VALIDATION_SEED = 999  # never a training seed


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="small", choices=WORLDS)
    parser.add_argument("--data", type=Path, help="the atlas of the world's art; without it, art drawn by code")
    parser.add_argument("--model", default="storybook", help="whose tokenizer half of the examples pass through")
    parser.add_argument("--clips", type=int, default=2048, help="painted once")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="matrix products in bf16: twice as fast where the CPU has it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figures", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


def train(options: argparse.Namespace) -> Path:
    """The whole training; returns the file of weights."""
    tokenizer_model = load_model(options.model, options.device)
    config = replace(WORLDS[options.world], size=tokenizer_model.info.tokenizer.image_size)
    world = open_world(config, options.data, options.device)
    said = lambda done, count: print(f"examples: part {done} of {count}", flush=True) if done % 8 == 0 or done == count else None
    painted = BankSettings(options.clips, seed=options.seed, bf16=options.bf16)
    bank = Bank(options.output / "examples", world, tokenizer_model.tokenizer, painted)
    held_out = Bank(options.output / "held-out", world, tokenizer_model.tokenizer, replace(painted, num_clips=64, seed=VALIDATION_SEED))
    settings = OptimizerSettings(
        num_steps=options.steps, batch_size=options.batch, learning_rate=2e-3, ema_decay=0.995, seed=options.seed,
        precision="bf16" if options.bf16 else "fp32", save_every=200, log_every=50, validation_batches=4, sample_every=options.steps,
    )  # fmt: skip
    torch.manual_seed(options.seed)
    referee = Referee(labels_of(config)).to(options.device)
    task = RefereeTask(referee, bank.load(said), settings, {"bank": bank.identity}, held_out.load())
    run = Run(options.output, task, settings)
    run.train(lambda line: print(json.dumps({name: round(value, 5) for name, value in line.items()}), flush=True))
    path = options.output / f"{options.world}.safetensors"
    print(f"{path}: sha256 {save_referee(run.averaged(), path)}, {path.stat().st_size / 2**20:.2f} MiB")
    return path


def main() -> None:
    options = parsed()
    train(options)


if __name__ == "__main__":
    main()
