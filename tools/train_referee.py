"""Trains the referee of a world on rendered truth, measures it, and writes its weights and figures.

    python tools/train_referee.py --world small --data storybook.safetensors -o runs/referee [--figures referee.json] [--bf16] [--device cuda]

    python tools/train_referee.py --world small --data storybook.safetensors --measure WEIGHTS --figures referee.json

For a world with a large cast and with company: --wider --company 0.35, and on a machine of many cores --workers 8.

The painted clips lie on the device as bytes (0.2 MiB each), where all of a step happens, what is done to its clips too.
Killed at any moment, the same command goes on from the last checkpoint. The weights are FOLDER/WORLD.safetensors, in half
precision; to ship them, copy the file to phenaki/evaluation/referees/ and its SHA-256 into HASHES of phenaki/evaluation/referee.py.
Figures are those of the written file; --measure takes those of any file, and trains nothing.
"""

import argparse
import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from results import write_results
from torch import Tensor

from phenaki.atomic import sha256
from phenaki.checkpoint import Model, load_model
from phenaki.data.order import RESERVED_SEEDS
from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.world import WORLDS, WorldConfig
from phenaki.evaluation.referee import WIDER, Referee, RefereeConfig, labels_of, load_referee, save_referee
from phenaki.training.interrupts import Stopped
from phenaki.training.optimizers import OptimizerSettings
from phenaki.training.referee import FRAMES_JUDGED, RefereeTask
from phenaki.training.referee_bank import Bank, BankSettings, Workers
from phenaki.training.referee_figures import SEED, measure_referee
from phenaki.training.run import Run

VALIDATION_SEED = 999  # never a training seed
OF_EACH_ATTRIBUTE = ("frame_trunk.looks.", "frame_trunk.of_attribute", "frame_trunk.over_time.")  # weights of one that attends, with rows of each


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="small", choices=WORLDS)
    parser.add_argument("--data", type=Path, help="the atlas of the world's art; without it, art drawn by code")
    parser.add_argument("--model", default="storybook", help="whose tokenizer half of the examples pass through")
    parser.add_argument("--clips", type=int, default=2048, help="painted once")
    parser.add_argument("--workers", type=int, default=1, help="processes that paint them; each has a copy of the model, on a GPU too")
    parser.add_argument("--company", type=float, help="chance of a companion, and of an object, in what is painted; the world's by default")
    parser.add_argument("--wider", action="store_true", help="a network of twice the size that looks at places and at the frames around")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at its peak")
    parser.add_argument("--init-from", type=Path, help="a referee whose weights it starts from, of another world too")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="matrix products in bf16: twice as fast where the CPU has it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figures", type=Path, help="a JSON file for what is measured of the written weights")
    parser.add_argument("--measured", type=int, default=240, help="fresh clips for each figure")
    parser.add_argument("--measure", type=Path, help="a file of weights to measure as it is")
    parser.add_argument("-o", "--output", type=Path, help="the folder to train in")
    options = parser.parse_args()
    if not options.output and not (options.measure and options.figures):
        raise ValueError("nothing to do: needed -o FOLDER to train in, or --measure FILE with --figures FILE")
    if options.seed in (VALIDATION_SEED, SEED, *RESERVED_SEEDS):
        raise ValueError(f"--seed {options.seed}: that of clips which referees or models are measured by; give another")
    return options


def first_referee(options: argparse.Namespace, world: StorybookWorld) -> Referee:
    """What training starts from: fresh weights, or those of another referee. Heads of attributes that have other names there start afresh."""
    torch.manual_seed(options.seed)
    referee = Referee(labels_of(world.config), WIDER if options.wider else RefereeConfig())
    if options.init_from:
        trained = load_referee(options.init_from)
        if trained.config != referee.config:
            raise ValueError(f"--init-from {options.init_from}: a network of another size, {trained.config}; give --wider for both or for neither")
        weights = referee.state_dict()
        referee.load_state_dict({name: begun(name, value, referee, trained) for name, value in weights.items()})
    return referee


def begun(name: str, value: Tensor, referee: Referee, trained: Referee) -> Tensor:
    """A weight of the referee as the trained one has it, or its own value: where names differ, in rows of attributes that the other has not."""
    theirs = trained.state_dict().get(name)
    if name.startswith("heads."):
        attribute = name.split(".")[1]
        return theirs if theirs is not None and trained.labels[attribute] == referee.labels[attribute] else value
    if not referee.config.attends or not name.startswith(OF_EACH_ATTRIBUTE):
        return theirs
    own, other = (rows.unflatten(0, (len(one.labels), -1)) for rows, one in ((value, referee), (theirs, trained)))
    numbers = {attribute: number for number, attribute in enumerate(trained.labels)}
    return torch.stack([other[numbers[one]] if one in numbers else own[number] for number, one in enumerate(referee.labels)]).reshape(value.shape)


def with_company(config: WorldConfig, prob: float | None) -> WorldConfig:
    """The world with companions and objects as often as that, where it has any: those that are seen seldom are learnt sooner."""
    if prob is not None and not 0 < prob <= 1:
        raise ValueError(f"--company {prob}: needed above 0 (who is never seen is never learnt) and at most 1")
    names = ("companion_prob", "object_prob") if prob else ()
    return replace(config, **{name: prob for name in names if getattr(config, name)})


def opened_bank(options: argparse.Namespace, model: Model | None = None) -> Bank:
    """The examples of training, not yet painted; in a process of its own without the model, which it loads."""
    model = model or load_model(options.model, options.device)
    world = opened_world(options, model, with_company(WORLDS[options.world], options.company))
    return Bank(options.output / "examples", world, model.tokenizer, BankSettings(options.clips, seed=options.seed, bf16=options.bf16))


def opened_world(options: argparse.Namespace, model: Model, config: WorldConfig) -> StorybookWorld:
    """A world at the size and rate of the model's pictures."""
    return open_world(replace(config, size=model.info.tokenizer.image_size, fps=model.info.fps), options.data, options.device)


def train(options: argparse.Namespace, model: Model, weights: Path) -> None:
    """The whole training, up to the file of weights."""

    def show(done: int, count: int) -> None:
        if done % 8 == 0 or done == count:
            print(f"examples: part {done} of {count}", flush=True)

    bank = opened_bank(options, model)
    workers = Workers(options.workers, functools.partial(opened_bank, options)) if options.workers > 1 else None
    held_out = replace(bank.settings, num_clips=min(options.clips, 64), seed=VALIDATION_SEED)
    settings = OptimizerSettings(
        num_steps=options.steps, batch_size=options.batch, learning_rate=options.learning_rate, ema_decay=0.995, seed=options.seed,
        precision="bf16" if options.bf16 else "fp32", save_every=200, log_every=50, sample_every=options.steps,
    )  # fmt: skip
    referee = first_referee(options, bank.world).to(options.device)
    validation = Bank(options.output / "held-out", bank.world, model.tokenizer, held_out)
    judged = bank.settings.num_frames if options.wider else FRAMES_JUDGED  # the wider network has to look at all of them anyway
    task = RefereeTask(referee, bank.load(show, workers), settings, {"bank": bank.identity}, validation.load(), judged)
    trainer = Run(options.output, task, settings)
    trainer.train(lambda line: print(json.dumps({name: round(value, 5) for name, value in line.items()}), flush=True))
    print(f"{weights}: sha256 {save_referee(trainer.averaged(), weights)}, {weights.stat().st_size / 2**20:.2f} MiB")


def measure(options: argparse.Namespace, model: Model, world: StorybookWorld, weights: Path) -> None:
    """Writes the figures of a file of weights, and prints how often it is right."""
    figures = measure_referee(load_referee(weights).to(options.device), world, model.tokenizer, options.measured)
    results = {
        "world": options.world,
        "sha256": sha256(weights),
        "tokenizer": model.info.name,
        **figures,
    }
    write_results(options.figures, results)
    for case in (name for name in figures if name.endswith("pairs")):
        print(case, {name: one["right"] for name, one in figures[case].items()})
    print({name: figures[name] for name in ("erased_actors", "garbled_actors")})


def run(options: argparse.Namespace) -> None:
    model = load_model(options.model, options.device)
    weights = options.measure or options.output / f"{options.world}.safetensors"
    if not options.measure:
        train(options, model, weights)
    if options.figures:
        measure(options, model, opened_world(options, model, WORLDS[options.world]), weights)


def main() -> None:
    try:
        run(parsed())
    except (ValueError, ChildProcessError, Stopped) as error:
        sys.exit(f"train_referee: {error}")


if __name__ == "__main__":
    main()
