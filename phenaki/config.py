"""Settings: frozen dataclasses, read from TOML or JSON with errors that name the key, the file and what is allowed."""

import dataclasses
import difflib
import json
import operator
import sys
import tomllib
import types
import typing
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

Settings = TypeVar("Settings")
MAX_SETTINGS_BYTES = 1 << 22
LIMITS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


class ConfigError(ValueError):
    """A settings file that cannot be used."""


def read_settings(path: str | Path) -> dict[str, Any]:
    """A TOML or JSON file as a dictionary; ConfigError says what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. The repository's own are in configs/")
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ValueError(f"it has more than {MAX_SETTINGS_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")  # Windows editors begin a file with a byte order mark
        values = json.loads(text, object_pairs_hook=_once) if kind == "JSON" else tomllib.loads(text)
    except ValueError as error:  # a syntax error, other bytes than UTF-8, a number of more than 4300 digits
        raise ConfigError(f"{path}: not a {kind} file: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not a {kind} file that can be read: its lists or tables are nested too deep") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: needed a table of settings, found {type(values).__name__}")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary; ValueError for a key that is given twice, as TOML has it."""
    values = dict(pairs)
    if len(values) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} is given twice")
    return values


def build(cls: type[Settings], values: dict[str, Any], source: str) -> Settings:
    """Makes the dataclass `cls` of `values`, and those that are its fields of the tables in it. Unknown keys and wrong types raise ConfigError.

    source: the file, or "FILE: TABLE", as errors name it; a table in it is "FILE: TABLE" to them, one in that "FILE: TABLE.TABLE".
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: needed a table of settings, found {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{source}: unknown key {key!r}; {hint}known keys: {', '.join(known)}")
    missing = [field.name for field in dataclasses.fields(cls) if _is_required(field) and field.name not in values]
    if missing:
        raise ConfigError(f"{source}: missing {', '.join(missing)}")
    try:
        return cls(**{key: _checked(value, hints[key], f"{source}: {key}") for key, value in values.items()})
    except ConfigError:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConfigError(f"{source}: {error}") from error


def check_range(settings: Any, *names: str, **limits: float) -> None:
    """For `__post_init__`: ValueError unless the fields of these names are finite and within all limits (at_least, above, at_most, below)."""
    for name in names:
        value = getattr(settings, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not -sys.float_info.max <= value <= sys.float_info.max:  # TOML has nan and inf, JSON any number of digits
            raise ValueError(f"{name} {value!s:.40}: needed a finite number")
        if not all(LIMITS[limit](value, bound) for limit, bound in limits.items()):
            needed = " and ".join(f"{limit.replace('_', ' ')} {bound:g}" for limit, bound in limits.items())
            raise ValueError(f"{name} {value}: needed {needed}")


def told(value: Any) -> str:
    """A value as an error message shows it: the beginning of a long one, and of one that is nested without end that it is."""
    try:
        return f"{value!r:.80}"
    except (RecursionError, ValueError):  # an integer of more than 4300 digits
        return f"an enormous {type(value).__name__}"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type: numbers, strings, booleans, tuples of them, dictionaries as they are, dataclasses, or None where allowed."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        source, _, table = where.rpartition(": ")
        return build(hint, value, f"{source}.{table}" if ": " in source else where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} = {told(value)}: needed a list")
        return tuple(_checked(item, typing.get_args(hint)[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise ConfigError(f"{where} = {told(value)}: needed a finite number")
        return float(value)
    hint = typing.get_origin(hint) or hint
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} = {told(value)}: needed {hint.__name__}, found {type(value).__name__}")
    return value
