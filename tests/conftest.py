"""Models of a few thousand random weights, the same in every run."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest
import torch

from phenaki import locks
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.evaluation.weights import weights_path
from phenaki.maskgit import MaskGIT, MaskGITConfig

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n 2 each process takes half of the tests, in their order: what a file sets up is set up once. Who is done takes of the other's."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


@pytest.fixture(autouse=True, scope="session")
def nobody_waits_for_the_disk():
    """What is written through to it, and before what, tests look at by what is asked for; how long a disk takes shows nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Verdicts about test footage are kept out of the user's cache; the metric networks that are installed there can be used."""
    cache, installed = tmp_path_factory.mktemp("cache"), weights_path("lpips").parent
    if installed.is_dir():
        (cache / "metrics").symlink_to(installed)
    monkeypatch.setenv("PHENAKI_CACHE", str(cache))


@pytest.fixture(scope="session")
def pool():
    """One decoding process for all tests."""
    from phenaki.data.decoding import DecodingPool  # which needs the video codec: tests of networks run without it, as on a machine that only trains

    with DecodingPool(1) as shared:
        yield shared


@pytest.fixture(scope="session")
def rehearsals() -> dict:
    """What rehearsals of training steps came to in this process, by all that they depend on."""
    return {}


@pytest.fixture(autouse=True)
def rehearse_once(rehearsals, monkeypatch):
    """A run that is set up as one before it does not rehearse its first step again, which would take half a second each time."""
    if "phenaki.training.run" not in sys.modules:
        return
    run = sys.modules["phenaki.training.run"]
    really = run.rehearse_step

    def rehearse_step(task, settings, group, bf16):
        plain = lambda one: replace(one, optimizer=None) if is_dataclass(getattr(one, "optimizer", None)) else one
        values = [plain(one) for one in vars(task).values() if is_dataclass(one)]
        batch = settings.batch_size, settings.accumulate, settings.activation_checkpointing, group.size, group.device, bf16
        key = repr((type(task), str(task.model), getattr(task.model, "config", None), values, batch))
        if key not in rehearsals:
            rehearsals[key] = really(task, settings, group, bf16)
        return rehearsals[key]

    monkeypatch.setattr(run, "rehearse_step", rehearse_step)


@pytest.fixture
def held_elsewhere():
    """A folder that another process works in, while the block runs."""
    if locks.fcntl is None:
        pytest.skip("there are no locks here")
    program = "import pathlib, sys; from phenaki import locks; kept = locks.take_folder(pathlib.Path(sys.argv[1]), ''); print(flush=True); input()"

    @contextlib.contextmanager
    def held(folder: Path) -> Iterator[None]:
        with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout.readline()
            try:
                yield
            finally:
                other.kill()

    return held


TOKENIZERS = {
    "default": CViViTConfig(
        image_size=32, dim=32, heads=2, mlp_dim=64, encoder_layers="st st", decoder_layers="st st", window=3,
        stem_dim=16, stem_blocks=1, head_blocks=1, fsq_levels=(4, 4, 4, 4),
    ),
    "paper": CViViTConfig(
        image_size=32, dim=32, heads=2, mlp_dim=64, encoder_layers="ssss tttt", decoder_layers="tttt ssss", window=0,
        stem="linear", first_frame_stem=True, quantizer="vq", codebook_size=64, code_dim=8,
    ),
}  # fmt: skip


def build_tokenizer(config: CViViTConfig) -> CViViT:
    torch.manual_seed(1)
    return CViViT(config).eval()


@pytest.fixture
def tokenizer() -> CViViT:
    """32x32 pixels, slices of 4x4 tokens of 256 kinds, two frames a slice, a window of three slices."""
    return build_tokenizer(TOKENIZERS["default"])


@pytest.fixture(params=list(TOKENIZERS))
def any_tokenizer(request) -> CViViT:
    """The default configuration and the paper's."""
    return build_tokenizer(TOKENIZERS[request.param])


@pytest.fixture
def generator() -> MaskGIT:
    """Two factors of 16 values, chunks of up to 3 slices, 2 recent slices and an anchor. Its answers depend on all it is given."""
    torch.manual_seed(2)
    sizes = {"dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64, "text_dim": 16}
    model = MaskGIT(MaskGITConfig(codebook_size=256, token_factors=2, chunk_slices=3, context_slices=2, **sizes)).eval()
    with torch.no_grad():
        model.condition_embedding.normal_()
        for head in model.to_logits.heads:
            head.weight.normal_(std=0.3)
    return model

pytest_plugins = ["training_toys", "referee_toys"]  # their fixtures
