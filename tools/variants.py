"""Variants of a model's settings, as the tools that compare them take them on the command line."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from results import write_results

from phenaki.config import build


def parser_of(description: str) -> argparse.ArgumentParser:
    """The arguments that every comparison takes: the variants, the model, its world, where to work and where to write."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="NAME=VALUE[,NAME=VALUE]")
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--world", default="small")
    parser.add_argument("--data", type=Path, help="the atlas of the world's art")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished stories")
    parser.add_argument("-o", "--output", type=Path)
    return parser


def write_found(found: dict[str, Any], output: Path | None) -> None:
    """The figures of all variants, and the command that gave them, as JSON where asked for."""
    if output:
        write_results(output, {"variants": found})


def read_variant(text: str, *kinds: type) -> dict[str, Any]:
    """"num_steps=16,order=confidence" -> its fields; ValueError names what is no field of these dataclasses, or cannot be its value."""
    known = {one.name: kind for kind in kinds for one in fields(kind)}
    found = {}
    for part in text.split(","):
        name, sign, value = part.partition("=")
        if not sign or name not in known:
            raise ValueError(f"{text!r}: needed NAME=VALUE, ... with names of {', '.join(known)}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
        build(known[name], {name: found[name]}, text)
    return found


def of_kind(values: dict[str, Any], kind: type) -> dict[str, Any]:
    """Those of the values that are fields of a dataclass."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
