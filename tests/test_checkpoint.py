"""Truths of `phenaki.checkpoint`: what is saved comes back, what is not whole is refused by name, nothing is ever unpickled."""

import json
import math
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from phenaki import checkpoint
from phenaki.checkpoint import PRETRAINED, CheckpointError, ModelInfo, find_model, load_model, read_info, save_model, sha256, weights_hash
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.maskgit import MaskGIT, MaskGITConfig
from phenaki.outline import outline
from phenaki.sampling import SamplingOptions
from phenaki.text import TextConfig

TOKENIZER = CViViTConfig(
    image_size=16, dim=16, heads=2, mlp_dim=24, encoder_layers="st", decoder_layers="t", stem_dim=8, stem_blocks=1, head_blocks=1,
    fsq_levels=(4, 4),
)  # fmt: skip
GENERATOR = MaskGITConfig(codebook_size=16, dim=16, depth=1, heads=2, mlp_dim=24, text_dim=8)
INFO = ModelInfo(
    "tiny", TOKENIZER, GENERATOR, TextConfig(width=8), fps=8.0, sampling=SamplingOptions(num_steps=5), text_encoder="bert sha256:00",
    training={"tokenizer_steps": 3},
)  # fmt: skip


def networks(seed: int) -> tuple[CViViT, MaskGIT]:
    torch.manual_seed(seed)
    return CViViT(TOKENIZER), MaskGIT(GENERATOR)


def test_an_outline_has_every_shape_and_no_numbers():
    """The random numbers that a network begins with are not drawn for it, so the next ones are what they would have been."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    outlined = [outline(lambda: CViViT(TOKENIZER)), outline(lambda: MaskGIT(GENERATOR))]
    assert torch.equal(torch.get_rng_state(), before)
    for network, whole in zip(outlined, networks(0), strict=True):
        outlined_shapes, shapes = ({name: value.shape for name, value in made.state_dict().items()} for made in (network, whole))
        assert outlined_shapes == shapes
        assert all(parameter.is_meta for parameter in network.parameters())
        network.load_state_dict(whole.state_dict(), assign=True)
        assert is_equal(network, whole)


def is_equal(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    one, two = network.state_dict(), other.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def made() -> tuple[CViViT, MaskGIT]:
    return networks(1)


@pytest.fixture
def folder(tmp_path, made) -> Path:
    """A whole model folder."""
    save_model(tmp_path / "model", INFO, *made)
    return tmp_path / "model"


def change(folder: Path, edit) -> None:
    """Edits config.json in place."""
    values = json.loads((folder / "config.json").read_text())
    edit(values)
    (folder / "config.json").write_text(json.dumps(values))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    return str(error.value)


def test_a_model_comes_back_exactly(folder, made):
    model = load_model(folder)
    assert is_equal(model.tokenizer, made[0]) and is_equal(model.generator, made[1])
    assert replace(model.info, files={}) == INFO
    assert model.info.files == {name: sha256(folder / name) for name in ("tokenizer.safetensors", "generator.safetensors")}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "generator.safetensors", "tokenizer.safetensors"]


def test_whoever_may_read_a_models_settings_may_read_its_weights(tmp_path, made):
    before = os.umask(0o022)
    try:
        save_model(tmp_path / "model", INFO, *made)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()} == {"0o644"}


def test_a_loaded_model_is_for_use_not_for_training(folder):
    model = load_model(folder)
    for network in (model.tokenizer, model.generator):
        assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_half_precision_takes_half_the_place_and_comes_back_close(tmp_path, folder, made):
    save_model(tmp_path / "half", INFO, *made, dtype=torch.float16)
    stored = load_file(tmp_path / "half/tokenizer.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in stored.values())
    model = load_model(tmp_path / "half")
    for network, original in zip((model.tokenizer, model.generator), made, strict=True):
        for name, tensor in network.state_dict().items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, original.state_dict()[name], atol=1e-4, rtol=1e-3)
    assert (tmp_path / "half/generator.safetensors").stat().st_size < 0.7 * (folder / "generator.safetensors").stat().st_size


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, part, bad):
    one = dict(zip(("tokenizer", "generator"), networks(1), strict=True))
    name, parameter = list(one[part].named_parameters())[-1]
    parameter.data.view(-1)[-1] = bad
    save_model(tmp_path, INFO, **one)
    assert f"{part}.safetensors: {name} holds NaN or infinite numbers" in refusal(tmp_path)


def test_a_tokenizer_alone(tmp_path, made):
    save_model(tmp_path, replace(INFO, generator=None), made[0], None)
    model = load_model(tmp_path)
    assert model.generator is None and is_equal(model.tokenizer, made[0])
    assert list(model.info.files) == ["tokenizer.safetensors"]


def test_large_weights_are_cut_into_files_of_a_limited_size(tmp_path, made, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_SHARD_BYTES", 3000)
    save_model(tmp_path, INFO, *made)
    files = read_info(tmp_path).files
    assert len(files) > 4 and "tokenizer-1.safetensors" in files and "tokenizer.safetensors" not in files
    for name in files:
        tensors = load_file(tmp_path / name)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 3000 or len(tensors) == 1
    model = load_model(tmp_path)
    assert is_equal(model.tokenizer, made[0]) and is_equal(model.generator, made[1])
    (tmp_path / "generator-2.safetensors").unlink()
    assert "generator-2.safetensors: missing" in refusal(tmp_path)


def test_fewer_files_than_before_leave_no_old_weights_in_use(tmp_path, made, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_SHARD_BYTES", 3000)
    save_model(tmp_path, INFO, *made)
    monkeypatch.undo()
    other = networks(2)
    save_model(tmp_path, INFO, *other)
    model = load_model(tmp_path)
    assert is_equal(model.tokenizer, other[0]) and is_equal(model.generator, other[1])


def test_what_is_missing_is_named(folder, tmp_path):
    (folder / "generator.safetensors").unlink()
    assert "generator.safetensors: missing" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.safetensors", "generator.safetensors"])
def test_damage_is_named(folder, name):
    whole = (folder / name).read_bytes()
    for place in (3, 20, len(whole) // 2, len(whole) - 1):
        (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert f"{name}: damaged or changed" in refusal(folder)
    for length in (0, 8, len(whole) - 1):
        (folder / name).write_bytes(whole[:length])
        assert f"{name}: damaged or changed" in refusal(folder)
    (folder / name).write_bytes(whole)
    load_model(folder)


def test_a_truncated_file_is_refused_even_with_a_matching_hash(folder):
    path = folder / "tokenizer.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    change(folder, lambda values: values["files"].update({path.name: sha256(path)}))
    assert "tokenizer.safetensors: not a whole safetensors file" in refusal(folder)


def test_weights_of_another_shape_are_refused(folder):
    change(folder, lambda values: values["tokenizer"].update({"mlp_dim": 48}))
    said = refusal(folder)
    assert "the tokenizer's weights are not those of its config.json" in said and "of another shape" in said and "feed_forward" in said


def test_weights_of_more_or_fewer_layers_are_refused(folder):
    change(folder, lambda values: values["generator"].update({"depth": 2}))
    assert "the generator's weights" in (said := refusal(folder)) and "tensors missing" in said and "layers.1." in said
    change(folder, lambda values: (values["generator"].update({"depth": 1}), values["tokenizer"].update({"decoder_layers": ""})))
    assert "unknown" in (said := refusal(folder)) and "layers.0." in said


HUGE = [
    ("tokenizer", "dim", 60_000), ("tokenizer", "mlp_dim", 10**10), ("tokenizer", "stem_dim", 10**17), ("tokenizer", "head_blocks", 10**9),
    ("tokenizer", "encoder_layers", "s" * 10**6), ("tokenizer", "fsq_levels", [2**63, 2]), ("tokenizer", "dim", 2 * 10**30),
    ("generator", "dim", 60_000), ("generator", "depth", 10**9), ("generator", "chunk_slices", 10**12), ("generator", "text_dim", 10**18),
]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells the memory in use by /proc")
@pytest.mark.parametrize(("part", "key", "value"), HUGE, ids=lambda value: str(value)[:20])
def test_sizes_that_the_weights_do_not_have_take_no_memory(folder, part, key, value):
    """A config.json of another model, or a hostile one: refused before anything of its sizes is made."""
    resource = pytest.importorskip("resource")
    change(folder, lambda values: values[part].update({key: value}))
    load_model(PRETRAINED / "storybook")  # whatever torch takes at its first use
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**29, before[1]))
    try:
        assert str(folder) in refusal(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_misspelt_key_is_named_with_its_nearest(folder):
    change(folder, lambda values: values["tokenizer"].update({"patchsize": 8}))
    assert "unknown key 'patchsize'; did you mean 'patch_size'" in refusal(folder)


def test_an_unknown_or_missing_top_key_is_named(folder):
    change(folder, lambda values: values.update({"fpss": values.pop("fps")}))
    assert "config.json: unknown key 'fpss'; did you mean 'fps'?" in refusal(folder)
    change(folder, lambda values: values.pop("fpss"))
    assert "config.json: missing fps" in refusal(folder)


@pytest.mark.parametrize("version", [2, 99, None, "1"])
def test_another_format_is_refused(folder, version):
    change(folder, lambda values: values.update({"format": version}))
    assert f"format {version!r}; this version of phenaki reads 1" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"format": 1}', "\x00" * 30])
def test_a_config_that_is_none_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder)


ALLOWED = [
    ("name", "text"), ("generator", None), ("text", {}), ("fps", 3), ("sampling", {}), ("text_encoder", "text"), ("training", {}),
    ("training", {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize("value", [None, 3, "text", [], ["a"], {}, {"a": 1}, True])
@pytest.mark.parametrize("key", ["name", "tokenizer", "generator", "text", "fps", "sampling", "text_encoder", "training", "files"])
def test_a_value_of_the_wrong_kind_is_refused_and_the_file_named(folder, key, value):
    change(folder, lambda values: values.update({key: value}))
    if (key, value) in ALLOWED:
        load_model(folder)
    else:
        assert str(folder) in refusal(folder)


def test_networks_of_two_models_are_refused(folder):
    change(folder, lambda values: values["generator"].update({"codebook_size": 64}))
    assert "the generator knows 64 tokens, its tokenizer 16: they are not of one model" in refusal(folder)


class Trap:
    """Pickled, it is an order to create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["tokenizer.bin", "tokenizer.pt", "tokenizer.ckpt"])
def test_pickled_weights_are_refused_and_not_run(folder, tmp_path, name):
    """Beside a folder without its safetensors, and listed as a weight file with a matching hash."""
    (folder / "tokenizer.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "canary")))
    assert f"found {name}: pickled weights are refused" in refusal(folder)
    change(folder, lambda values: values["files"].update({name: sha256(folder / name)}))
    change(folder, lambda values: values["files"].pop("tokenizer.safetensors"))
    assert "pickles are never read" in refusal(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("as_torch_file", [False, True])
def test_a_pickle_by_another_name_is_refused_and_not_run(folder, tmp_path, as_torch_file):
    path = folder / "tokenizer.safetensors"
    if as_torch_file:
        torch.save(Trap(tmp_path / "canary"), path)
    else:
        path.write_bytes(pickle.dumps(Trap(tmp_path / "canary")))
    change(folder, lambda values: values["files"].update({path.name: sha256(path)}))
    assert "not a whole safetensors file" in refusal(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname.safetensors", "sub/tokenizer.safetensors", "..", "", "x.txt"])
def test_a_weight_file_outside_of_the_folder_is_refused(folder, name):
    shutil.copy(folder / "tokenizer.safetensors", folder.parent / "outside.safetensors")
    (folder / "sub").mkdir()
    shutil.copy(folder / "tokenizer.safetensors", folder / "sub")
    digest = sha256(folder / "tokenizer.safetensors")
    change(folder, lambda values: values["files"].update({name: digest}))
    assert f"weight file {name!r}: needed a plain name" in refusal(folder)


def test_surplus_tensors_are_refused(folder):
    path = folder / "tokenizer.safetensors"
    save_file({**load_file(path), "surplus": torch.zeros(2)}, path)
    change(folder, lambda values: values["files"].update({path.name: sha256(path)}))
    assert "1 unknown" in refusal(folder) and "surplus" in refusal(folder)


@pytest.mark.parametrize("kind", ["F4", "I8", "U8", "BOOL", "C64", "F8_E4M3"])
def test_weights_of_a_kind_that_none_are_of_are_refused(folder, kind):
    """Some of them torch cannot turn into another, others it would take for weights."""
    path = folder / "tokenizer.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(name for name, entry in header.items() if name != "__metadata__" and len(entry["shape"]) == 2)
    count, (begin, end) = math.prod(header[name]["shape"]), header[name]["data_offsets"]
    size = {"F4": count // 2, "C64": 8 * count}.get(kind, count)
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [at - (end - begin) + size for at in entry["data_offsets"]]
    header[name] |= {"dtype": kind, "data_offsets": [begin, begin + size]}
    text, rest = json.dumps(header).encode(), data[8 + length :]
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest[:begin] + bytes(size) + rest[end:])
    change(folder, lambda values: values["files"].update({path.name: sha256(path)}))
    told = refusal(folder)
    assert f"tokenizer.safetensors: {name} is {kind}; weights are F16, BF16" in told or "not a whole safetensors file" in told


def test_an_unknown_name_lists_the_shipped_models(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path)
    for name in ("storybook", "other"):
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=r"'story': no such folder, and not a shipped model \(other, storybook\) or a hub id"):
        find_model("story")
    assert find_model("storybook") == tmp_path / "storybook"
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"not a shipped model \(none\)"):
        find_model("storybook")


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "a/b/c"])
def test_a_path_that_is_missing_is_not_looked_up_at_a_hub(name, monkeypatch):
    def download(*_):
        raise AssertionError("asked the hub")

    monkeypatch.setattr(checkpoint, "_download", download)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_model(name)


def test_a_hub_that_gives_nothing_is_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"'owner/name': not a folder here, and the hub did not give it \(OSError\). Offline\?"):
        load_model("owner/name")


def test_a_save_broken_off_anywhere_leaves_the_old_model_or_the_new_one(folder, made, monkeypatch):
    """An exception at each write, rename and removal in turn: never a mixture of old and new, never a folder that is refused."""
    new, outcomes = networks(2), []

    class Broken(Exception):
        pass

    for last in range(12):
        save_model(folder, INFO, *made)
        left = last

        def counted(function):
            def call(*arguments, **options):
                nonlocal left
                if left == 0:
                    raise Broken
                left -= 1
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", counted(save))
            patch.setattr(os, "replace", counted(os.replace))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            try:
                save_model(folder, INFO, *new)
                whole = True
            except Broken:
                whole = False
        model = load_model(folder)
        is_old = is_equal(model.tokenizer, made[0]) and is_equal(model.generator, made[1])
        is_new = is_equal(model.tokenizer, new[0]) and is_equal(model.generator, new[1])
        assert is_new != is_old and (is_new or not whole)
        outcomes.append("new" if is_new else "old")
    assert outcomes == ["old"] * 8 + ["new"] * 4, "the new ones: with both old files, with one, and twice whole"
    assert len(list(folder.glob("*.safetensors"))) == 2


def test_a_save_removes_its_own_older_weights_and_nothing_else(folder, made):
    for name in ("generator-old.safetensors", "other.safetensors", "notes.txt", "generator-2.safetensors", "tokenizer-0123456789ab.safetensors"):
        (folder / name).write_bytes(b"")
    save_model(folder, replace(INFO, generator=None), made[0], None)
    left = {path.name for path in folder.iterdir()} - set(read_info(folder).files) - {"config.json"}
    assert left == {"generator-old.safetensors", "other.safetensors", "notes.txt", "generator-2.safetensors", "generator.safetensors"}
    save_model(folder, INFO, *made)
    left = {path.name for path in folder.iterdir()} - set(read_info(folder).files) - {"config.json"}
    assert left == {"generator-old.safetensors", "other.safetensors", "notes.txt"}
    names = list(read_info(folder).files)
    save_model(folder, INFO, *made)
    assert list(read_info(folder).files) == names, "the same weights keep their names"


def test_shipped_models_are_whole():
    """Every model that ships loads, and its config.json is small enough to read."""
    for path in sorted(PRETRAINED.iterdir()) if PRETRAINED.is_dir() else []:
        assert load_model(path.name).generator is not None
        assert (path / "config.json").stat().st_size < 20_000


def test_the_hash_of_a_model_is_of_its_settings_too(folder):
    """The same weights may fit into a network that computes something else."""
    info = read_info(folder)
    other = replace(info, tokenizer=replace(info.tokenizer, window=info.tokenizer.window + 1))
    assert weights_hash(info, ()) == weights_hash(read_info(folder), ()) != weights_hash(other, ())
