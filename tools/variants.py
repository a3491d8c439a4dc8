"""Variants of a model's settings, as the tools that compare them take them on the command line."""

import json
from dataclasses import fields
from typing import Any

from phenaki.config import build


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
