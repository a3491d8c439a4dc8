"""Truths of training by several processes: the same samples and the same losses as one process with the same batch."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from training_toys import PLAIN, log, newest, settings
from typer.testing import CliRunner

from phenaki.checkpoint import ModelInfo
from phenaki.cli import app
from phenaki.cvivit import CViViT
from phenaki.data.storybook import open_world
from phenaki.training import generator as generator_module
from phenaki.training import run as run_module
from phenaki.training.parallel import Part, checkpoint_activations, layers_of
from phenaki.training.run import Run
from phenaki.training.settings import TokenizerTraining, load_settings
from phenaki.training.tokenizer import TokenizerTask

ROOT = Path(__file__).resolve().parents[1]
TINY = load_settings(ROOT / "configs/tiny.toml")
RUN_TRAIN = Run.train


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """configs/tiny.toml with batches of four, a line each step, and fewer stories."""
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    text = (ROOT / "configs/tiny.toml").read_text()
    for old, new in (("batch_size = 2", "batch_size = 4"), ("log_every = 5", "log_every = 1"), ("num_stories = 8", "num_stories = 4")):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def words_of(config: Path, out: Path, network: str, **changes) -> list[str]:
    """A command line that trains for four steps, with its own settings file."""
    own = config.with_name(f"{out.name}-{network}.toml")
    extra = "".join(f"\n{key} = {json.dumps(value)}" for key, value in changes.items())
    text = "\n".join(line for line in config.read_text().splitlines() if line.split(" =")[0] not in changes)
    own.write_text(text.replace("batch_size = 4", f"batch_size = 4{extra}"))
    return ["train", network, "--config", str(own), "--out", str(out), "--steps", "4", "--device", "cpu"]


def train(words: list[str]) -> None:
    """In this process, with few held-out stories and no look at what a generator tells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_module, "HELD_OUT_STORIES", 8)
        patch.setattr(generator_module, "show_stories", lambda *_: None)
        done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (words, done.output[-3000:])


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    """The folder of a run by one process, with its tokenizer's model kept apart."""
    out = tmp_path_factory.mktemp("alone") / "one"
    train(words_of(config, out, "tokenizer"))
    shutil.copytree(out / "model", out / "tokenizer-model")
    train(words_of(config, out, "generator"))
    return out


def train_together(rank: int, meetings: Path, asked: list[list[str]]) -> None:
    """What each of two processes does: one command after the other, as torchrun would have it, but the processes find each other by a file.

    The first step is rehearsed once for each network. How many tensors each command spread over the processes is written down.
    """
    torch.set_num_threads(1)
    join, really, rehearsed = dist.init_process_group, run_module.rehearse_step, {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2)):
            patch.setenv(name, str(value))
        for number, words in enumerate(asked):
            where = {"init_method": (meetings / str(number)).as_uri(), "rank": rank, "world_size": 2}
            patch.setattr(dist, "init_process_group", lambda backend, where=where, **options: join(backend, **where, **options))
            network, spread = words[1], []
            if network in rehearsed:
                patch.setattr(run_module, "rehearse_step", lambda *_, found=rehearsed[network]: found)
            else:
                patch.setattr(run_module, "rehearse_step", lambda *asked, name=network: rehearsed.setdefault(name, really(*asked)))
            patch.setattr(run_module.Run, "train", counting_spread(RUN_TRAIN, spread))
            train(words)
            (meetings / f"spread-{number}-{rank}.json").write_text(json.dumps(spread))


def counting_spread(train: Callable, spread: list[int]) -> Callable:
    """`Run.train`, which first notes how many of the network's tensors are only partly in this process."""

    def counted(run: Run, *arguments, **options):
        spread.append(sum(isinstance(parameter, DTensor) for parameter in run.tensors.model.parameters()))
        return train(run, *arguments, **options)

    return counted


def as_the_other(index: int, meetings: Path, asked: list[list[str]]) -> None:
    train_together(index + 1, meetings, asked)


@pytest.fixture(scope="module")
def together(alone, config, tmp_path_factory) -> Path:
    """The folder of runs by the same two gloo processes, with the batch of the single one: "two", with DDP, and "sharded", with FSDP2.

    By torchrun it is done in test_training_guide.py.
    """
    folder, asked = tmp_path_factory.mktemp("together"), []
    for name, changes in (("two", {"save_every": 2}), ("sharded", {"sharded": True})):
        for network in ("tokenizer", "generator"):
            begin(alone, folder / f"{name}-{network}", network)
            asked.append(words_of(config, folder / f"{name}-{network}", network, **changes))
    other = torch.multiprocessing.spawn(as_the_other, (folder, asked), nprocs=1, join=False)
    train_together(0, folder, asked)
    while not other.join():
        pass
    return folder


def same_losses(lines: list[dict], wanted: list[dict]) -> None:
    assert [line["step"] for line in lines] == [*range(1, len(wanted) + 1)] and wanted
    for line, other in zip(lines, wanted, strict=True):
        assert {"loss", "grad_norm"} <= line.keys() and ("psnr" in line) == ("psnr" in other)
        for name in {"loss", "grad_norm", "psnr"} & line.keys():
            assert line[name] == pytest.approx(other[name], abs=2e-6, rel=1e-5), (line["step"], name)


def begin(alone: Path, out: Path, network: str) -> None:
    """A run folder to train in; for a generator it holds the tokenizer of the single process."""
    shutil.rmtree(out / "model", ignore_errors=True)
    if network == "generator":
        shutil.copytree(alone / "tokenizer-model", out / "model")


def same_weights(out: Path, wanted: Path, network: str, **tolerance: float) -> None:
    one, two = (load_file(newest(folder / network) / "weights.safetensors") for folder in (wanted, out))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, **tolerance)


@pytest.mark.parametrize("network", ["tokenizer", "generator"])
def test_two_processes_train_as_one_and_one_goes_on(alone, together, config, network):
    """Then their last checkpoint is lost, and a single process takes the last steps again."""
    out, wanted = together / f"two-{network}", log(alone / network)
    same_losses(log(out / network), wanted)
    same_weights(out, alone, network, atol=2e-5, rtol=1e-3)
    shutil.rmtree(newest(out / network))
    begin(alone, out, network)
    train(words_of(config, out, network, save_every=2))
    same_losses(log(out / network), wanted)


@pytest.mark.parametrize("network", ["tokenizer", "generator"])
def test_sharded_processes_have_the_losses_of_one_and_leave_whole_weights(alone, together, network):
    out = together / f"sharded-{network}"
    same_losses(log(out / network), log(alone / network))
    same_weights(out, alone, network, atol=1e-5, rtol=1e-4)
    number = ["tokenizer", "generator"].index(network)
    for rank in range(2):
        whole, sharded = (json.loads((together / f"spread-{command}-{rank}.json").read_text()) for command in (number, 2 + number))
        assert whole == [0] and len(sharded) == 1 and sharded[0] > 10, "with FSDP2, and only then, tensors are spread over the processes"


def tokenizer_run(folder: Path, **changes) -> Run:
    torch.manual_seed(0)
    network = CViViT(TINY.tokenizer)
    losses = replace(PLAIN, quantizer_weight=0.0)
    own = TokenizerTraining(num_slices=2, losses=losses, optimizer=settings(batch_size=4, num_steps=3, log_every=1, **changes))
    task = TokenizerTask(network, open_world(TINY.world), own, ModelInfo("tiny", network.config, None, TINY.text, 8.0))
    return Run(folder, task, own.optimizer)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory) -> list[dict]:
    """The log of a run that takes each batch at once and keeps what its layers have computed."""
    lines = []
    tokenizer_run(tmp_path_factory.mktemp("whole")).train(lines.append)
    return lines


@pytest.mark.usefixtures("synced")
@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"accumulate": 4}, {"activation_checkpointing": True}], ids=str)
def test_less_memory_at_once_gives_the_same_steps(tmp_path, at_once, changes):
    """Parts of a batch come one after the other; with `activation_checkpointing` a layer computes twice a step what it would else keep."""
    lines, rows = [], []
    run = tokenizer_run(tmp_path, **changes)
    layers_of(run.task.model)[0].attention.to_queries.register_forward_hook(lambda layer, given, out: rows.append(len(given[0])))
    run.train(lines.append)
    same_losses(lines, at_once)
    accumulate, times = changes.get("accumulate", 1), 1 + changes.get("activation_checkpointing", False)
    assert rows == [8 // accumulate] * (3 * accumulate * times), "rows of a slice each, in three steps"


@pytest.mark.usefixtures("synced")
def test_layers_are_computed_again_in_the_backward_pass(tmp_path):
    network, calls = CViViT(TINY.tokenizer), []
    layer = layers_of(network)[0]
    layer.attention.to_queries.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_activations(network)
    network(torch.zeros(1, 3, 3, 32, 32)).video.sum().backward()
    assert len(calls) == 2


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size 4: cannot be shared by 3 equal parts \(processes x accumulate\); needed a multiple"):
        tokenizer_run(tmp_path, accumulate=3)
    rows = [Part(index, 3).of(12) for index in range(3)]
    assert [row for part in rows for row in range(part.start, part.stop)] == list(range(12))


def test_sharded_needs_torchrun_and_adamw(tmp_path):
    with pytest.raises(ValueError, match="start the program with torchrun"):
        tokenizer_run(tmp_path, sharded=True)
    with pytest.raises(ValueError, match=r"sharded = true needs optimizer = .adamw."):
        settings(sharded=True, optimizer="muon")


@pytest.mark.usefixtures("synced")
def test_bf16_is_used_where_it_is_asked_for(tmp_path):
    """Matrix products in bf16, losses and weights in fp32."""
    seen = []
    run = tokenizer_run(tmp_path, precision="bf16")
    run.task.model.encoder.layers[0].feed_forward.to_out.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    run.train(lambda line: None)
    assert seen[:3] == [torch.bfloat16] * 3
    assert {value.dtype for value in run.task.model.state_dict().values()} == {torch.float32}
    assert not any(isinstance(module, nn.Linear) and module.weight.dtype != torch.float32 for module in run.task.model.modules())
