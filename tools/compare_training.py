"""Ways of training a generator, one at a time: what each is worth on held-out stories, with true contexts and with the network's own.

    phenaki data tokenize full.safetensors --config configs/comparison.toml --world small --clips 1200 -o stories.safetensors
    phenaki data tokenize full.safetensors --config configs/comparison.toml --world small --clips 64 --seed 900 -o held-out.safetensors
    python tools/compare_training.py --config configs/comparison.toml --stories stories.safetensors --held-out held-out.safetensors \\
        --work runs/ways -o docs/results/training_ways.json seed=1 per_slice_prob=0 max_corruption=0

A variant is fields of [generator], [train_generator] or [train_generator.optimizer] that take the place of the file's. All are
trained with the same stories, steps and draws, and measured on the same held-out chunks (`TESTS`). How much another seed changes
is what a difference has to be measured by. With --init-from all go on from one model: fine-tuning. `tools/compare_remedies.py --models`
then measures them in long stories. Trainings are kept in the work folder, where a killed run goes on.
"""

import argparse
import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from results import write_json, write_results
from variants import of_kind, read_variant

from phenaki.checkpoint import load_model
from phenaki.config import read_settings
from phenaki.data.tokens import StoryTokens
from phenaki.maskgit import MaskGIT, MaskGITConfig
from phenaki.training.generator import run_generator_training
from phenaki.training.generator_losses import validation_loss
from phenaki.training.optimizers import OptimizerSettings
from phenaki.training.settings import GeneratorTraining, load_settings

OWN = "as in the file"
TEST_SEED = 4321  # of the chunks, masks and corruptions that networks are measured on
TESTS = {  # by name: the share of samples with masks per slice, the most of a true context that is replaced, the share of contexts of its own
    "masks of one ratio": {"per_slice_prob": 0.0, "max_corruption": 0.0, "rollout_prob": 1.0},
    "masks per slice": {"per_slice_prob": 1.0, "max_corruption": 0.0, "rollout_prob": 0.0},
    "corrupted contexts": {"per_slice_prob": 0.0, "max_corruption": 0.2, "rollout_prob": 0.0},
}


def changed_settings(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The values of a configuration file with fields of the generator and its training in place of the file's own."""
    values = copy.deepcopy(read_settings(path))
    training = values.setdefault("train_generator", {})
    values.setdefault("generator", {}).update(of_kind(changes, MaskGITConfig))
    training.update(of_kind(changes, GeneratorTraining))
    training.setdefault("optimizer", {}).update(of_kind(changes, OptimizerSettings))
    return values


def measure(model: MaskGIT, stories: StoryTokens, training: GeneratorTraining, num_batches: int) -> dict[str, dict[str, float]]:
    """Nats a token on held-out stories, by test, from text and continuing a true context, or one that the network makes itself."""
    found = {}
    for name, test in TESTS.items():
        own = replace(training, per_slice_prob=test["per_slice_prob"], rollout_prob=test["rollout_prob"])
        levels = model.config.corruption_levels if test["max_corruption"] else 1  # clean contexts are told as clean ones
        config = replace(model.config, max_corruption=test["max_corruption"], corruption_levels=levels)
        losses = validation_loss(model, stories, config, own, num_batches, TEST_SEED)
        found[name] = {key: round(value, 4) for key, value in losses.items() if key.startswith("loss_")}
    return found


def compare(
    config: Path, stories: Path, held_out: Path, work: Path, texts: list[str], num_batches: int,
    tokenizer: str = "storybook", init_from: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Figures by variant. ValueError for variants that are none, before anything is trained.

    tokenizer, init_from: models, by folder or name: whose tokens the stories hold, and which all trainings go on from.
    """
    kinds = (MaskGITConfig, GeneratorTraining, OptimizerSettings)
    variants = {OWN: {}} | {text: read_variant(text, *kinds) for text in texts}
    reference = load_settings(config).train_generator
    held = StoryTokens.load(held_out)
    found = {}
    for name, changes in variants.items():
        folder = work / name.replace(" ", "-").replace("/", "-")
        settings = folder / "settings.json"
        write_json(settings, changed_settings(config, changes))
        trained = run_generator_training(
            settings, folder / "run", tokenizer=tokenizer, data=stories, init_from=init_from, on_log=partial(print, name)
        )
        model = load_model(trained).generator
        found[name] = {"model": str(trained), "nats_a_token": measure(model, held, reference, num_batches)}
        print(name, json.dumps(found[name]), flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    """In Markdown: the differences to the first row, but its own figures there."""
    columns = [(test, key) for test, losses in found[OWN]["nats_a_token"].items() for key in losses]
    heads = (f"{test}: {key.removeprefix('loss_')}" for test, key in columns)
    rows = [f"| variant | {' | '.join(heads)} |", "|---" * (1 + len(columns)) + "|"]
    for name, one in found.items():
        values = [one["nats_a_token"][test][key] for test, key in columns]
        if name != OWN:
            values = [value - found[OWN]["nats_a_token"][test][key] for value, (test, key) in zip(values, columns, strict=True)]
        rows.append(f"| {name} | {' | '.join(f'{value:.3f}' if name == OWN else f'{value:+.3f}' for value in values)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="NAME=VALUE[,NAME=VALUE]")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--stories", type=Path, required=True, help="file of `phenaki data tokenize`, to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="another, to measure on")
    parser.add_argument("--tokenizer", default="storybook", help="model whose tokens these are")
    parser.add_argument("--init-from", help="model that all go on from")
    parser.add_argument("--batches", type=int, default=48, help="held-out batches of each test")
    parser.add_argument("--work", type=Path, required=True, help="folder of the trained models")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = compare(
        options.config, options.stories, options.held_out, options.work, options.variants, options.batches, options.tokenizer, options.init_from
    )
    print(table(found))
    if options.output:
        write_results(options.output, {"variants": found})


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"compare_training: {error}") from error
