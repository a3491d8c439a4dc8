"""What is reckoned of a step's memory is what the step then holds; a run that cannot fit is refused before it begins."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training_toys import Toy, little, settings
from typer.testing import CliRunner

from phenaki.checkpoint import ModelInfo
from phenaki.cli import app
from phenaki.cvivit import CViViT
from phenaki.data.storybook import open_world
from phenaki.maskgit import MaskGIT
from phenaki.training import memory as memory_module
from phenaki.training.generator import GeneratorTask
from phenaki.training.memory import StepMemory, free_memory, judge, left_of_container, rehearsed, step_memory
from phenaki.training.optimizers import make_optimizers
from phenaki.training.run import Run
from phenaki.training.settings import TokenizerTraining, load_settings
from phenaki.training.tokenizer import TokenizerTask

CPU = torch.device("cpu")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TINY = load_settings(CONFIGS / "tiny.toml")
pytestmark = pytest.mark.usefixtures("synced")


def really_kept(network: nn.Module, forward) -> int:
    """Bytes of all storages that a real forward pass saves, the weights' left out."""
    kept = {}
    own = {one.untyped_storage().data_ptr() for one in network.state_dict().values()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = forward(network)  # so that no address is given twice
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own) if held.requires_grad else 0


def tokenizer_task() -> TokenizerTask:
    own = TokenizerTraining(num_slices=3, losses=TINY.train_tokenizer.losses)
    return TokenizerTask(CViViT(TINY.tokenizer), open_world(TINY.world), own, ModelInfo("tiny", TINY.tokenizer, None, TINY.text, 8.0))


def generator_task() -> GeneratorTask:
    stories = SimpleNamespace(tokens=torch.zeros(3, 9, 4, 4), text_spans=torch.tensor([[0, 5], [5, 12]]), captions=[])
    return GeneratorTask(MaskGIT(TINY.generator), stories, TINY.train_generator, SimpleNamespace(words=()), None)


@pytest.mark.parametrize("make", [tokenizer_task, generator_task])
@pytest.mark.parametrize("num_rows", [1, 6])
def test_activations_are_reckoned_to_the_byte(make, num_rows):
    task = make()
    forward = lambda network: task.rehearse(network, num_rows)
    kept = lambda bf16=False, **changes: rehearsed(task.build, task.rehearse, num_rows, settings(**changes), CPU, bf16).kept
    state = torch.get_rng_state()
    reckoned = kept()
    assert torch.equal(state, torch.get_rng_state()), "no randomness of training is used up"
    assert reckoned == pytest.approx(really_kept(task.build(), forward), rel=0.02) and reckoned > 10_000
    assert kept(activation_checkpointing=True) < reckoned and kept(bf16=True) < reckoned


@pytest.mark.parametrize("make", [tokenizer_task, generator_task])
def test_operations_are_those_of_a_step_and_the_same_for_each_clip(make):
    """Three times a forward pass, but for products of which one side is given, as pixels and texts are: no gradient goes there."""
    task = make()
    made = [rehearsed(task.build, task.rehearse, num_rows, settings(), CPU, bf16=False).operations_per_clip for num_rows in (1, 6)]
    with FlopCounterMode(display=False) as counter:
        task.rehearse(task.build(), 6).backward()
    assert made[1] == pytest.approx(made[0], rel=0.05) and 0.85 < counter.get_total_flops() / 6 / made[1] <= 1


def test_a_batch_is_so_many_clips_worth_of_a_rehearsal():
    task = tokenizer_task()
    assert task.effort(torch.zeros(4, 3, 5, 32, 32)) == 4 and task.effort(torch.zeros(4, 3, 1, 32, 32)) == pytest.approx(4 / 3)
    task, config = generator_task(), TINY.generator
    longest = config.chunk_slices + config.context_slices + 1
    chunk, context = torch.zeros(5, config.chunk_slices, 4, 4), torch.zeros(5, config.context_slices + 1, 4, 4)
    effort = lambda **own: task.effort(SimpleNamespace(batch=SimpleNamespace(**{"tokens": chunk, "context": None, "rollout": None} | own)))
    assert effort(context=context) == 5 and effort(tokens=chunk[:, :1]) == pytest.approx(5 / longest)
    passed = task.training.num_rollout_steps * config.chunk_slices + config.context_slices  # forward alone
    assert effort(context=context, rollout=()) == 5 and effort(context=context, rollout="one") == pytest.approx(5 + 5 * passed / 3 / longest)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_lasts_is_counted_to_the_byte(optimizer):
    network, own = CViViT(TINY.tokenizer), settings(optimizer=optimizer)
    next(network.parameters()).requires_grad_(False)
    optimizers = make_optimizers(network, own)
    network(torch.zeros(1, 3, 3, 32, 32)).video.sum().backward()
    for one in network.parameters():
        if one.requires_grad and one.grad is None:
            one.grad = torch.zeros_like(one)
    for one in optimizers:
        one.step()
    memory = step_memory([network], network, own, activations=0)
    states = [value for one in optimizers for state in one.state.values() for value in state.values() if value.ndim]
    assert memory.optimizer == sum(value.nbytes for value in states)
    assert memory.gradients == sum(one.grad.nbytes for one in network.parameters() if one.grad is not None)
    assert memory.averages == memory.saved_copy == sum(one.nbytes for one in network.state_dict().values())
    halves = step_memory([network], network, own, 0, num_shards=2)
    assert (halves.gradients, halves.optimizer, halves.averages) == (memory.gradients // 2, memory.optimizer // 2, memory.averages // 2)


def test_what_is_needed_at_once():
    assert StepMemory(10, 20, 10, 10, 100).least == 20 + 10 + 100, "gradients come as activations go"
    assert StepMemory(10, 20, 10, 10, 100, adds_up=True).least == 20 + 10 + 100 + 10
    assert StepMemory(10, 20, 10, 10, 3).least == 20 + 10 + 10


def test_a_run_that_cannot_fit_is_refused_and_a_tight_one_warned():
    memory, own = StepMemory(10**9, 2 * 10**9, 10**9, 10**9, 5 * 10**9), settings()
    assert judge(memory, 12 * 10**9, "cpu", own, 4) == judge(memory, None, "cpu", own, 4) == ""
    assert judge(memory, 9 * 10**9, "cpu", own, 4).startswith("memory may be too tight: a step of 4 clips at once needs 8 GB at least")
    with pytest.raises(ValueError, match=r"needs 8 GB at least .+, 7.5 GB are free on cpu \(gradients 1 GB, .+activations 5 GB\). Lower batch_size"):
        judge(memory, 75 * 10**8, "cpu", own, 4)
    for guessed in ({"compile": True}, {"activation_checkpointing": True}):
        assert "too tight" in judge(memory, 75 * 10**8, "cpu", replace(own, **guessed), 4), "activations may be fewer"
        with pytest.raises(ValueError, match="are free on cpu"):
            judge(memory, 35 * 10**8, "cpu", replace(own, **guessed), 4)


def test_the_loop_asks_before_the_first_step(tmp_path, monkeypatch):
    notes, task = [], Toy()
    monkeypatch.setattr(memory_module, "free_memory", lambda device: 250)
    Run(tmp_path / "tight", task, settings(), on_note=notes.append)  # 8 weights: 64 bytes of states, 32 each of average and copy
    assert not notes
    monkeypatch.setattr(memory_module, "free_memory", lambda device: 150)
    Run(tmp_path / "tight", task, settings(), on_note=notes.append)
    assert len(notes) == 1 and "too tight" in notes[0]
    monkeypatch.setattr(memory_module, "free_memory", lambda device: 100)
    with pytest.raises(ValueError, match="are free on cpu"):
        little(tmp_path / "none")
    assert not (tmp_path / "none/checkpoints").exists()


def test_the_paper_s_tokenizer_on_a_small_machine_is_told_what_to_lower(tmp_path, monkeypatch):
    text = (CONFIGS / "paper.toml").read_text()
    path = tmp_path / "paper.toml"
    path.write_text(text + "\n[train_tokenizer.losses]\nlpips_weight = 0  # needs no networks that may not be installed\ni3d_weight = 0\n")
    monkeypatch.setattr(memory_module, "free_memory", lambda device: 24 * 10**9)
    monkeypatch.setattr(Run, "train", lambda *_: pytest.fail("it began"))
    done = CliRunner().invoke(app, ["train", "tokenizer", "--config", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert done.exit_code == 2 and "a step of 128 clips at once needs 1" in done.output and "Lower batch_size" in done.output


def test_what_torch_keeps_of_a_gpu_is_free(monkeypatch):
    for name, count in (("mem_get_info", (700, 1000)), ("memory_reserved", 250), ("memory_allocated", 50)):
        monkeypatch.setattr(torch.cuda, name, lambda device, count=count: count)
    assert free_memory(torch.device("cuda")) == 900


def test_free_memory_is_that_of_the_system_and_of_the_container(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    whole = free_memory(torch.device("cpu"))
    if whole is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert 0.5 < free_memory(torch.device("cpu")) * 4 / whole < 2
    assert left_of_container(tmp_path) is None
    for name, said in (("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", "anon 500\ninactive_file 150\n")):
        (tmp_path / name).write_text(said)
    assert left_of_container(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert left_of_container(tmp_path) is None


def test_a_container_that_is_full_leaves_nothing(monkeypatch):
    for left, wanted in ((0, 0), (1000, 1000)):
        monkeypatch.setattr("phenaki.training.memory.left_of_container", lambda folder, left=left: left)
        assert free_memory(CPU) == wanted
    monkeypatch.setattr("phenaki.training.memory.left_of_container", lambda folder: None)
    assert free_memory(CPU) > 1 << 20
