"""The command line of programs that make another model from a model: a model in, another folder out, one number that says how much, a seed."""

import argparse
from collections.abc import Callable
from pathlib import Path

from phenaki.checkpoint import Model, load_model, save_model


def remake(description: str, option: str, make: Callable[[Model, int, int], Model], told: Callable[[Model], str]) -> None:
    """A whole program. make: from a model, the number of `--option` (1 by default) and a seed; told: what is printed of the new model."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder or the name of a shipped one")
    parser.add_argument("output", type=Path)
    parser.add_argument(f"--{option}", dest="number", metavar=option.upper(), type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        model = make(load_model(options.model), options.number, options.seed)
        save_model(options.output, model.info, model.tokenizer, model.generator)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{Path(parser.prog).stem}: {error}") from error
    print(f"{options.output}: {told(model)}")
