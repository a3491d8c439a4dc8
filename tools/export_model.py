"""Writes a trained model folder in half precision, as models ship: weight files of at most 15 MiB each.

    python tools/export_model.py RUN/model phenaki/pretrained/NAME --name NAME
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from phenaki.checkpoint import load_model, save_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    model = load_model(options.model)
    info = dataclasses.replace(model.info, name=options.name)
    save_model(options.output, info, model.tokenizer, model.generator, torch.float16)
    for file in sorted(options.output.iterdir()):
        print(f"{file}: {file.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
