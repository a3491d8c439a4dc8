"""Every settings dataclass that a file can fill refuses numbers without a sense, each by its name."""

import math
import time
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from phenaki.checkpoint import CheckpointError, ModelInfo, read_info, save_info
from phenaki.config import ConfigError
from phenaki.data.sharding import ShardSettings
from phenaki.data.storybook import open_world
from phenaki.data.world import SMALL_WORLD
from phenaki.training.settings import ModelSettings, load_settings

TINY = load_settings(Path(__file__).resolve().parents[1] / "configs/tiny.toml")
INFO = ModelInfo("tiny", TINY.tokenizer, TINY.generator, TINY.text, 8.0, TINY.sampling)


def plain(hint: Any) -> Any:
    """An annotation without its "or None"."""
    options = [option for option in typing.get_args(hint) if option is not types.NoneType] if isinstance(hint, types.UnionType) else [hint]
    return options[0]


def classes(cls: type) -> set[type]:
    """A settings dataclass and all that its fields are annotated with."""
    return {cls}.union(*(classes(kind) for kind in map(plain, typing.get_type_hints(cls).values()) if is_dataclass(kind)))


def instances(settings: Any) -> Iterator[Any]:
    """The same of settings as they are."""
    yield settings
    for entry in fields(settings):
        if is_dataclass(value := getattr(settings, entry.name)):
            yield from instances(value)


ALL = {type(one): one for whole in (TINY, INFO, ShardSettings(64)) for one in instances(whole)}
NUMBERS = [
    (cls, name, plain(hint))
    for cls in ALL
    for name, hint in typing.get_type_hints(cls).items()
    if plain(hint) in (float, int)
]


def test_none_is_left_out():
    assert set(ALL) == classes(ModelSettings) | classes(ModelInfo) | {ShardSettings}
    assert len(ALL) >= 12 and sum(kind is float for *_, kind in NUMBERS) >= 40


@pytest.mark.parametrize(("cls", "name", "kind"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_numbers_without_a_sense_are_refused_by_name(cls, name, kind):
    for value in (math.nan, math.inf, -math.inf, -1e9) if kind is float else (-(10**9),):
        with pytest.raises(ValueError, match=name):
            replace(ALL[cls], **{name: value})


@pytest.mark.parametrize(
    ("section", "text", "said"),
    [
        ("sampling", "temperature = nan", "temperature nan: needed a finite number"),
        ("sampling", "temperature = 1e9", "temperature 1000000000.0: needed above 0 and at most 100"),
        ("sampling", "choice_temperature = inf", "choice_temperature inf: needed a finite number"),
        ("text", "max_length = 0", "max_length 0: needed at least 1 and at most 1e+06"),
        ("world", "fps = nan", "fps nan: needed a finite number"),
        ("world", "actor_size = -1", "actor_size -1.0: needed above 0 and at most 1"),
        ("world", "actor_size = 0.001", "actor_size 0.001: less than a pixel of 64; make it greater"),
        ("world", "companion_prob = 2", "companion_prob 2.0: needed at least 0 and at most 1"),
        ("world", "times = [\"noon\"]", "times 'noon': known are day, sunset, night, dawn"),
        ("world", "cameras = [\"tilt\"]", "cameras 'tilt': known are still, pan, zoom"),
        ("world", "motions = [\"hops\", \"dances\"]", "motions 'dances': known are stands, walks left, walks right, hops, "),
        ("world", "wording = \"richh\"", "wording 'richh': known are first, rich"),
        ("world", "places = []", "places (): needed one at least"),
        ("footage", "flip_prob = nan", "flip_prob nan: needed a finite number"),
        ("footage", "min_zoom = 0", "min_zoom 0.0: needed above 0 and at most 1"),
        ("world", "size = 64", "size is that of [tokenizer] image_size; set it there"),
        ("footage", "size = 64", "size is that of [tokenizer] image_size; set it there"),
        ("footage", "fps = 8", "fps is that of [world] fps; set it there"),
    ],
)  # fmt: skip
def test_a_file_with_such_a_number_is_refused_by_section_and_key(tmp_path, section, text, said):
    path = tmp_path / "model.toml"
    path.write_text(f"[{section}]\n{text}\n")
    with pytest.raises(ConfigError) as error:
        load_settings(path)
    assert str(error.value).startswith(f"{path}: {section}: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[world]\nname = ['small']", "world: name = ['small']: needed the name of a world"),
        ("[train_tokenizer.losses]\ndiscriminator_stages = 9223372036854775807", "discriminator_stages 9223372036854775807: needed at most 16"),
        ("[tokenizer]\nwindow = 1000000000000000000", "window 1000000000000000000: needed at most 10000"),
        ("[tokenizer]\nstem = 5", "stem = 5: needed str"),
        ("tokenizer.dim" + ".a" * 2000 + " = 1", "tokenizer: dim = an enormous dict: needed int, found dict"),
        ('[tokenizer]\ndim = "' + "x" * 9000 + '"', "dim = '" + "x" * 79 + ": needed int"),
        ("[sampling]\nnum_corrections = 4\ncorrection_order = 'critic'", "sampling: correction_order \"critic\" needs a generator with one"),
        ("[generator]\ncond_drop_prob = 0.0\n[sampling]\nguidance_scale = 3", "sampling: guidance_scale 3 with [generator] cond_drop_prob 0"),
    ],
    ids=range(8),
)
def test_a_file_that_asks_for_what_there_cannot_be_is_refused_at_once(tmp_path, text, said):
    path, began = tmp_path / "model.toml", time.process_time()
    path.write_text(text + "\n")
    with pytest.raises(ConfigError) as error:
        load_settings(path)
    assert said in str(error.value) and str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 1000
    assert time.process_time() - began < 5


def test_a_model_folder_with_such_a_rate_is_refused_by_its_file(tmp_path):
    save_info(tmp_path, INFO)
    path = tmp_path / "config.json"
    assert read_info(tmp_path).fps == 8
    path.write_text(path.read_text().replace('"fps": 8.0', '"fps": NaN'))
    with pytest.raises(CheckpointError, match=r"config.json: fps nan: needed a finite number"):
        read_info(tmp_path)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('"fps": 8.0', '"fps": true', "fps = True: needed float, found bool"),
        ('"fps": 8.0', '"fps": 1' + 400 * "0", "fps = 10+: needed a finite number"),
        ('"fps": 8.0', '"fps": 8.0, "fps": 24.0', "the key 'fps' is given twice"),
        ('"name": "tiny"', '"name": "ti\\ud800ny"', r"name = 'ti\\ud800ny': needed characters that can be printed"),
        ('"name": "tiny"', '"name": "ti\\u0000ny"', r"name = 'ti\\x00ny': needed characters that can be printed"),
    ],
)
def test_a_model_folder_with_senseless_values_is_refused(tmp_path, old, new, said):
    save_info(tmp_path, INFO)
    path = tmp_path / "config.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=f"config.json: .*{said}"):
        read_info(tmp_path)


def test_a_lone_actor_has_no_companion():
    world = open_world(replace(SMALL_WORLD, actors=("fox",), places=("beach", "city"), companion_prob=1.0))
    assert not any(scene.companion for index in range(20) for scene in world.story(0, index, 9).scenes)
