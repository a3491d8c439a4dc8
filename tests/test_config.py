"""Truths of `phenaki.config` and of the files in configs/: what is wrong is named, and every file builds both networks."""

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import torch

from phenaki.config import ConfigError, build, read_settings
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.maskgit import MaskGIT, MaskGITConfig
from phenaki.training.settings import load_settings

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml"))


@dataclass(frozen=True)
class Example:
    width: int
    rate: float = 0.5
    named: str = "x"
    fast: bool = False
    levels: tuple[int, ...] = (4,)
    weight: float | None = None


def test_values_arrive_in_the_types_of_the_fields():
    made = build(Example, {"width": 3, "rate": 2, "levels": [8, 5], "fast": True, "weight": 1}, "file")
    assert made == Example(3, 2.0, "x", True, (8, 5), 1.0)
    assert isinstance(made.rate, float) and isinstance(made.weight, float) and isinstance(made.levels, tuple)
    assert build(Example, {"width": 3, "weight": None}, "file").weight is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"width": 1, "wdith": 2}, "did you mean 'width'"),
        ({"width": 1, "zzz": 2}, "unknown key 'zzz'; known keys: width, rate, named, fast, levels, weight"),
        ({}, "missing width"),
        ({"width": "3"}, "width = '3': needed int, found str"),
        ({"width": 3.0}, "needed int, found float"),
        ({"width": True}, "needed int, found bool"),
        ({"width": 1, "rate": True}, "needed float, found bool"),
        ({"width": 1, "fast": 1}, "needed bool, found int"),
        ({"width": 1, "named": 1}, "needed str, found int"),
        ({"width": 1, "levels": 4}, "needed a list"),
        ({"width": 1, "levels": [4, "5"]}, "needed int, found str"),
        ({"width": 1, "levels": [True]}, "needed int, found bool"),
        ({"width": None}, "needed int, found NoneType"),
        ([1], "needed a table of settings, found list"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_place(values, said):
    with pytest.raises(ConfigError) as error:
        build(Example, values, "here.toml: part")
    assert said in str(error.value) and "here.toml: part" in str(error.value)


def test_a_refusal_of_the_dataclass_itself_names_the_file():
    with pytest.raises(ConfigError, match=r"here.toml: generator: cond_drop_prob 1.5"):
        build(MaskGITConfig, {"cond_drop_prob": 1.5}, "here.toml: generator")


@pytest.mark.parametrize("config", [CViViTConfig(fsq_levels=(3, 5)), MaskGITConfig(dim=64)])
def test_settings_survive_json(config):
    assert build(type(config), json.loads(json.dumps(asdict(config))), "json") == config


@pytest.mark.parametrize("ending, text", [("toml", "a = 1"), ("json", '{"a": 1}')])
def test_a_file_may_begin_with_the_mark_of_windows_editors(tmp_path, ending, text):
    path = tmp_path / f"own.{ending}"
    path.write_text(text, encoding="utf-8-sig")
    assert read_settings(path) == {"a": 1}


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_settings(tmp_path / "none.toml")
    for name, text, said in (
        ("a.toml", b"[world\nname = 1", "not a TOML file"),
        ("b.json", b"{", "not a JSON file"),
        ("c.toml", b"\xff\xfe\x00", "not a TOML file"),
        ("d.json", b"[1, 2]", "needed a table"),
        ("e.json", b'{"a": ' + b"[" * 100_000, "not a JSON file that can be read: .*nested too deep"),
        ("f.toml", b"a = " + b"[" * 100_000, "not a TOML file that can be read: .*nested too deep"),
        ("g.json", b'{"a": ' + b"9" * 5_000 + b"}", "not a JSON file: .*4300 digits"),
        ("h.toml", b"a = " + b"9" * 5_000, "not a TOML file: .*4300 digits"),
    ):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ConfigError, match=said) as error:
            read_settings(tmp_path / name)
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tokeniser]\ndim = 3", "unknown section [tokeniser]"),
        ("[world]\nname = 'huge'", "world 'huge': known worlds are small, medium, full"),
        ("[world]\nsizes = 3", "did you mean 'size'"),
        ("[tokenizer]\nheadz = 3", "did you mean 'heads'"),
        ("[generator]\ndepth = 'six'", "generator: depth = 'six'"),
        ("[train_tokenizer]\nnum_sluces = 3", "did you mean 'num_slices'"),
        ("[train_generator.optimizer]\nlearning_rat = 3", "train_generator.optimizer: unknown key 'learning_rat'"),
        ("[train_tokenizer.optimizer]\noptimizer = 'sgd'", "train_tokenizer.optimizer: optimizer 'sgd': allowed are adamw, muon"),
        ("[train_generator.optimizer]\nnum_steps = true", "needed int, found bool"),
    ],
)
def test_a_wrong_model_file_is_refused_by_section_and_key(tmp_path, text, said):
    path = tmp_path / "model.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_settings(path)
    assert said in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("section", "text", "said"),
    [
        ("train_tokenizer.optimizer", "max_grad_norm = -1", "max_grad_norm -1.0: needed above 0"),
        ("train_tokenizer.optimizer", "ema_decay = 2", "ema_decay 2.0: needed at least 0 and at most 1"),
        ("train_tokenizer.optimizer", "learning_rate = -1", "learning_rate -1.0: needed at least 0"),
        ("train_tokenizer.optimizer", "learning_rate = inf", "learning_rate inf: needed a finite number"),
        ("train_generator.optimizer", "warmup_steps = -5", "warmup_steps -5: needed at least 0"),
        ("train_generator.optimizer", "validation_batches = -1", "validation_batches -1: needed at least 0"),
        ("train_tokenizer.losses", "l2_weight = nan", "l2_weight nan: needed a finite number"),
        ("train_tokenizer.losses", "first_frame_weight = 0", "first_frame_weight 0.0: needed above 0"),
        ("train_tokenizer", "image_prob = -2", "image_prob -2.0: needed at least 0 and at most 1"),
        ("train_tokenizer", "num_slices = 0", "num_slices 0: needed at least 1"),
        ("train_generator", "num_slices = 0", "num_slices 0: needed at least 1"),
        ("train_generator", "max_scenes = 0", "max_scenes 0: needed at least 1"),
        ("tokenizer", "dim = 0", "dim 0: needed at least 1"),
        ("tokenizer", "heads = 0", "heads 0: needed at least 1"),
        ("tokenizer", "dim = 60\nheads = 7", "heads 7: each needs a whole, even part of dim 60"),
        ("generator", "dim = 60\nheads = 12", "heads 12: each needs a whole, even part of dim 60"),
        ("tokenizer", "patch_size = 0", "patch_size 0: needed at least 1"),
        ("tokenizer", "temporal_patch_size = 0", "temporal_patch_size 0: needed at least 1"),
        ("tokenizer", "window = -3", "window -3: needed at least 0"),
        ("tokenizer", "image_size = 30", "image_size 30: needed a multiple of patch_size 8"),
        ("tokenizer", "image_size = 1_000_000", "image_size 1000000 with patch_size 8: needed at most 4096 pixels and 256 tokens a side"),
        ("tokenizer", "image_size = 2056", "image_size 2056 with patch_size 8: needed at most 4096 pixels and 256 tokens a side"),
        ("tokenizer", "fsq_levels = [0, 4]", "fsq_levels (0, 4): needed one at least, and each at least 2"),
        ("tokenizer", "fsq_levels = []", "fsq_levels (): needed one at least, and each at least 2"),
        (
            "train_tokenizer.losses", "discriminator_stages = 6",
            "discriminator_stages 6 with image_size 64: needed 128 pixels a side at least, or fewer stages",
        ),
        ("generator", "depth = 0", "depth 0: needed at least 1"),
        ("generator", "token_factors = 0", "token_factors 0: needed at least 1"),
        ("generator", "corruption_levels = 0", "corruption_levels 0: needed at least 1"),
        ("generator", "max_corruption = 7", "max_corruption 7.0: needed at least 0 and at most 1"),
    ],
)  # fmt: skip
def test_a_number_without_a_sense_is_refused_by_section_and_key(tmp_path, section, text, said):
    path = tmp_path / "model.toml"
    path.write_text(f"[{section}]\n{text}\n")
    with pytest.raises(ConfigError) as error:
        load_settings(path)
    assert f"{path}: {section}: {said}" == str(error.value)


@dataclass(frozen=True)
class Whole:
    part: Example
    maybe: Example | None = None
    facts: dict[str, str] = field(default_factory=dict)


def test_tables_become_the_dataclasses_that_fields_are_annotated_with():
    made = build(Whole, {"part": {"width": 3, "rate": 2}, "maybe": {"width": 1}, "facts": {"a": "b"}}, "file")
    assert made == Whole(Example(3, 2.0), Example(1), {"a": "b"}) and isinstance(made.part.rate, float)
    assert build(Whole, {"part": {"width": 3}, "maybe": None}, "file").maybe is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"part": {"wdith": 2}}, "part: unknown key 'wdith'; did you mean 'width'"),
        ({"part": {}}, "part: missing width"),
        ({"part": {"width": 1, "rate": 10**400}}, "part: rate = 1000"),
        ({"part": None}, "part: needed a table of settings, found NoneType"),
        ({"part": {"width": 1}, "maybe": [1]}, "maybe: needed a table of settings, found list"),
        ({"part": {"width": 1}, "facts": ["a"]}, "facts = ['a']: needed dict, found list"),
        ({}, "missing part"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_it(values, said):
    for source, place in (("a.json", "a.json: "), ("a.toml: whole", "a.toml: whole.")):
        with pytest.raises(ConfigError) as error:
            build(Whole, values, source)
        assert str(error.value).startswith((f"{place}{said}", f"{source}: {said}"))


def test_a_number_too_large_to_reckon_with_is_told():
    with pytest.raises(ConfigError, match=r"here.toml: "):
        build(MaskGITConfig, {"codebook_size": 10**400}, "here.toml")


def test_numbers_said_once_are_not_typed_again():
    """The generator's codebook is the tokenizer's, and its text width the encoder's."""
    for path in CONFIGS:
        settings = load_settings(path)
        tokenizer = settings.tokenizer
        codebook_size = math.prod(tokenizer.fsq_levels) if tokenizer.quantizer == "fsq" else tokenizer.codebook_size
        assert settings.generator.codebook_size == codebook_size and settings.generator.text_dim == settings.text.width
        assert "codebook_size" not in read_settings(path).get("generator", {})


def test_a_world_keeps_what_its_file_does_not_set():
    world, full = load_settings(CONFIGS[0].with_name("tiny.toml")).world, load_settings(CONFIGS[0].with_name("paper.toml")).world
    assert world.size == 32 and world.times == ("day", "sunset", "night") and len(world.actors) == 8
    assert full.size == 128 and full.companion_prob > 0 and "zoom" in full.cameras


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_builds_both_networks(path):
    settings = load_settings(path)
    with torch.device("meta"):
        tokenizer, generator = CViViT(settings.tokenizer), MaskGIT(settings.generator)
    assert tokenizer.codebook_size == generator.config.codebook_size
    assert settings.world.size == settings.tokenizer.image_size, "trained on pictures of another size than the tokenizer's"
    longest = settings.generator.chunk_slices + settings.generator.context_slices
    assert settings.train_generator.num_slices >= longest, "a chunk and its context do not fit into a story"
    if not settings.tokenizer.window:
        assert settings.sampling.context == "frames", "its decoder's memory would grow with the story"
        assert settings.train_tokenizer.num_slices >= longest, "it was never trained on as many slices as it decodes"


def test_the_paper_s_model_has_the_paper_s_size():
    settings = load_settings(CONFIGS[0].with_name("paper.toml"))
    with torch.device("meta"):
        counts = [sum(p.numel() for p in net.parameters()) for net in (CViViT(settings.tokenizer), MaskGIT(settings.generator))]
    assert 50e6 < counts[0] < 52e6
    assert 1.75e9 < counts[1] < 1.9e9


def test_the_three_files_are_there():
    assert {path.stem for path in CONFIGS} >= {"paper", "storybook", "tiny"}


@pytest.mark.parametrize("section", ["world", "generator", "tokenizer", "text", "train_tokenizer", "train_generator"])
def test_a_section_that_is_no_table_is_named(tmp_path, section):
    path = tmp_path / "bad.toml"
    path.write_text(f"{section} = 3\n")
    with pytest.raises(ConfigError, match=rf"{section}: needed a table of settings, found"):
        load_settings(path)


def test_keys_given_twice_among_very_many_are_told_at_once(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{" + ", ".join(f'"k{number}": 1' for number in [*range(100_000), 99_999]) + "}")
    began = time.process_time()
    with pytest.raises(ConfigError, match="the key 'k99999' is given twice"):
        read_settings(path)
    assert time.process_time() - began < 10


def test_settings_of_very_many_bytes_are_not_read(tmp_path):
    path = tmp_path / "a.json"
    with open(path, "wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(ConfigError, match="it has more than 4194304 bytes"):
        read_settings(path)
