"""Writes a trained model folder in half precision, as models ship: weight files of at most 15 MiB each.

    python tools/export_model.py RUN/model phenaki/pretrained/NAME --name NAME [--decoder OTHER/model] [--config configs/NAME.toml]

--decoder: a model whose decoder was trained on alone (`decoder_only`), to take the place of the model's own. --config: settings whose
[sampling] the model is given.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from phenaki.checkpoint import Model, load_model, save_model
from phenaki.training.same_tokens import DECODER
from phenaki.training.settings import load_settings


def with_decoder(model: Model, other: Model) -> Model:
    """The model with the other's decoder; ValueError where the other's tokens mean something else."""
    own, given = model.tokenizer.state_dict(), other.tokenizer.state_dict()
    kept = [name for name in own if not name.startswith(DECODER)]
    if not all(name in given and torch.equal(own[name], given[name]) for name in kept):
        raise ValueError(f"{other.info.name}: its tokens are not those of {model.info.name}; train it with decoder_only = true")
    training = {name: value for name, value in model.info.training.items() if not name.startswith("tokenizer")}
    training |= {name: value for name, value in other.info.training.items() if name.startswith("tokenizer")}
    info = dataclasses.replace(model.info, tokenizer=other.info.tokenizer, training=training)
    return Model(info, other.tokenizer, model.generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--decoder", type=Path, metavar="MODEL")
    parser.add_argument("--config", type=Path)
    options = parser.parse_args()
    model = load_model(options.model)
    if options.decoder:
        model = with_decoder(model, load_model(options.decoder))
    info = dataclasses.replace(model.info, name=options.name)
    if options.config:
        info = dataclasses.replace(info, sampling=load_settings(options.config).sampling)
    save_model(options.output, info, model.tokenizer, model.generator, torch.float16)
    for file in sorted(options.output.iterdir()):
        print(f"{file}: {file.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"export_model: {error}") from error
