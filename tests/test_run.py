"""Truths of the loop: it resumes to the bit after anything, and what is damaged is named and passed over."""

import errno
import hashlib
import importlib.util
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_toys import Stop, Toy, little, log, newest, settings, state

from phenaki import atomic
from phenaki.data.ahead import Ahead, drawn_ahead
from phenaki.locks import BusyError, take_folder
from phenaki.training import checkpoints
from phenaki.training import run as run_module
from phenaki.training.beginning import folder_alone
from phenaki.training.checkpoints import RunState, changed, check_identity, damage, newest_whole
from phenaki.training.interrupts import Stopped
from phenaki.training.journal import Journal, Meter
from phenaki.training.optimizers import EMA, OptimizerSettings, learning_rate
from phenaki.training.parallel import Group
from phenaki.training.run import MAX_SKIPPED, Run, TrainingError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
pytestmark = pytest.mark.usefixtures("synced")


def test_the_average_is_that_of_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema = EMA(model, 0.9)
    slow = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(200):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model[1].num_batches_tracked += 1
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            slow[name] = decay * slow[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor.clone()
    for name, tensor in ema.weights.items():
        torch.testing.assert_close(tensor, slow[name])
    assert ema.weights["1.num_batches_tracked"] == 200


def test_two_processes_do_not_train_in_one_folder(tmp_path, held_elsewhere):
    with held_elsewhere(tmp_path), pytest.raises(BusyError, match="another process trains in this folder; wait for it, or give another --out"):
        Run(tmp_path, Toy(), settings())
    assert Run(tmp_path, Toy(), settings()).step == 0


def test_the_learning_rate_warms_up_and_falls():
    own = OptimizerSettings(num_steps=1000, learning_rate=2.0, warmup_steps=100, final_lr_ratio=0.1)
    assert learning_rate(0, own) == pytest.approx(0.02)
    assert learning_rate(49, own) == pytest.approx(1.0, rel=0.01)
    assert learning_rate(500, own) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(1000, own) == pytest.approx(0.2) == learning_rate(5000, own)
    rates = [learning_rate(step, own) for step in range(1001)]
    assert max(rates) < 2.0 and rates.index(max(rates)) in range(95, 105)
    assert rates[:99] == sorted(rates[:99]) and rates[100:] == sorted(rates[100:], reverse=True)
    assert learning_rate(0, replace(own, warmup_steps=0)) == pytest.approx(2.0)


def test_the_optimizer_is_given_the_rate_of_its_step(tmp_path):
    rates = []
    run = Run(tmp_path, Toy(), settings())
    (optimizer,) = run.optimizers
    step_of = optimizer.step
    optimizer.step = lambda: (rates.append([group["lr"] for group in optimizer.param_groups]), step_of())[1]
    run.train(lambda line: None)
    assert rates == [[learning_rate(step, run.settings)] * 2 for step in range(10)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_a_number_is_skipped_and_counted(tmp_path, value):
    states, lines = [], []

    def loss_at(model, step, loss):
        states.append([tensor.clone() for tensor in model.state_dict().values()])
        good = loss(step)["loss"]
        return {"loss": good * value if step == 4 else good}

    run = little(tmp_path, num_steps=8, loss_at=loss_at, on_log=lines.append, log_every=1)
    assert [line["skipped"] for line in lines] == [0, 0, 0, 0, 1, 0, 0, 0]
    unchanged = [all(torch.equal(a, b) for a, b in zip(states[i], states[i + 1], strict=True)) for i in range(7)]
    assert unchanged == [False, False, False, False, True, False, False]
    assert all(tensor.isfinite().all() for tensor in [*run.task.model.state_dict().values(), *run.ema.weights.values()])
    assert all(value.isfinite().all() for value in run.tensors.optimizer_state().values())
    assert little(tmp_path, num_steps=8, loss_at=loss_at, log_every=1).step == 8, "a log with such a line is read again"


def test_gradients_are_cut_to_their_largest_norm(tmp_path):
    lines, norms = [], []
    task = Toy()
    task.loss_at = lambda step: {"loss": 100 * task.model(torch.ones(3)).square().sum()}
    run = Run(tmp_path, task, settings(num_steps=2, max_grad_norm=0.5, log_every=1))
    (optimizer,) = run.optimizers
    step_of = optimizer.step
    optimizer.step = lambda: (norms.append(torch.stack([p.grad.norm() for p in run.task.model.parameters()]).norm().item()), step_of())[1]
    run.train(lines.append)
    assert norms == pytest.approx([0.5, 0.5], rel=1e-3) and lines[0]["grad_norm"] > 0.5


def test_the_log_has_the_mean_of_its_interval(tmp_path):
    lines = []
    little(tmp_path, num_steps=7, log_every=5, on_log=lines.append, loss_at=lambda m, step, loss: {"loss": loss(step)["loss"] * 0 + step})
    assert [(line["step"], line["loss"]) for line in lines] == [(5, 2.0), (7, 5.5)]
    assert [(line["step"], line["loss"]) for line in log(tmp_path)] == [(5, 2.0), (7, 5.5)]


def test_sums_are_those_of_single_numbers_to_the_bit_and_go_on_as_they_were():
    torch.manual_seed(0)
    steps = [{"loss": torch.rand(()), "skipped": torch.tensor(0.0), "rate": torch.rand((), dtype=torch.float64)} for _ in range(40)]
    sums, whole, cut = dict.fromkeys(steps[0], 0.0), Meter(), Meter()
    for number, values in enumerate(steps):
        sums = {name: sums[name] + value.item() for name, value in values.items()}
        whole.add(values, 1, 0.0)
        cut.add(values, 1, 0.0)
        if number % 7 == 3:
            cut = Meter(cut.since, {name: value.item() for name, value in cut.sums.items()})
    assert {name: value.item() for name, value in whole.sums.items()} == {name: value.item() for name, value in cut.sums.items()} == sums


@pytest.mark.parametrize("stop_at", [None, 3])
def test_a_skipped_step_is_counted_and_spoils_no_mean(tmp_path, stop_at):
    """Also after a stop within its interval; an interval of such steps alone has null, which is JSON."""
    own, asked = {"num_steps": 9, "log_every": 5, "save_every": 4}, []

    def loss_at(model, step, loss):
        if step == stop_at and not asked:
            asked.append(step)
            os.kill(os.getpid(), signal.SIGINT)
        return {"loss": loss(step)["loss"] * (math.nan if step in (1, 5, 6, 7, 8) else 0) + step}

    if stop_at:
        with pytest.raises(Stopped):
            little(tmp_path, loss_at=loss_at, **own)
    little(tmp_path, loss_at=loss_at, **own)
    first, last = log(tmp_path)
    assert (first["step"], first["loss"], first["grad_norm"], first["skipped"]) == (5, pytest.approx((0 + 2 + 3 + 4) / 4), 0, 1)
    assert (last["step"], last["loss"], last["grad_norm"], last["skipped"]) == (9, None, None, 4)
    assert list(first) == list(last) and "NaN" not in (tmp_path / "log.jsonl").read_text()


def test_the_share_of_the_peak_is_that_of_the_interval(tmp_path, monkeypatch):
    """Operations are those of the rehearsal, three times its forward pass; each line has the clips' worth of its own steps."""
    monkeypatch.setattr(run_module, "peak_operations", lambda device: 1e6)
    lines, task = [], Toy(effort_at=lambda step: 4 if step < 3 else 8)
    little(tmp_path, num_steps=6, log_every=3, task=task, on_log=lines.append, batch_size=2, accumulate=2)
    operations = [line["mfu"] * 1e6 * 3 * line["seconds_per_step"] for line in lines]
    once = 3 * 2 * 3 * 2  # forward and backward, a product and a sum for each of 3 x 2 weights
    assert operations == pytest.approx([3 * 2 * 4 * once, 3 * 2 * 8 * once], rel=1e-6)


def test_small_figures_of_the_log_keep_their_digits_and_steps_all_of_them(tmp_path):
    little(tmp_path, num_steps=1, learning_rate=1.2345678e-9, warmup_steps=0)
    assert log(tmp_path)[0]["learning_rate"] == 1.23457e-9
    Journal(tmp_path).write({"step": 12345678, "loss": 12345678.0})
    assert log(tmp_path)[-1] == {"step": 12345678, "loss": 1.23457e7}


def test_a_log_line_cut_in_two_by_a_stop_is_that_of_an_unbroken_run(tmp_path):
    """The sums of an interval are part of a checkpoint."""
    rare = {"save_every": 3, "log_every": 5}
    little(tmp_path / "whole", **rare)

    def until_eight(model, step, loss):
        if step == 8:
            raise Stop
        return loss(step)

    with pytest.raises(Stop):
        little(tmp_path / "cut", loss_at=until_eight, **rare)
    assert newest(tmp_path / "cut").name == "step-0000006"
    little(tmp_path / "cut", **rare)
    assert log(tmp_path / "cut") == log(tmp_path / "whole") and len(log(tmp_path / "cut")) == 2


def test_ten_steps_in_a_row_without_a_number_stop_the_run(tmp_path):
    def broken(model, step, loss):
        return {"loss": loss(step)["loss"] * (math.nan if step in (1, 2) or step >= 4 else 1)}

    with pytest.raises(TrainingError, match=r"no number for 10 steps in a row, up to step 14 .+ Lower learning_rate"):
        little(tmp_path, num_steps=40, loss_at=broken, save_every=6, log_every=1)
    assert [line["skipped"] for line in log(tmp_path)] == [0, 1, 1, 0] + [1] * MAX_SKIPPED
    with pytest.raises(TrainingError, match="up to step 14 "):
        little(tmp_path, num_steps=40, loss_at=broken, save_every=6, log_every=1)  # two of the ten were before the checkpoint


def test_a_short_run_without_a_number_ends_with_that_each_time(tmp_path):
    """Its last step is not kept: the same command again would find the run done, and write a model of untrained weights."""
    for _ in range(2):
        with pytest.raises(TrainingError, match="no number for 3 steps in a row, up to step 3 "):
            little(tmp_path, num_steps=3, save_every=2, log_every=1, loss_at=lambda model, step, loss: {"loss": loss(step)["loss"] * math.nan})
        assert newest(tmp_path).name == "step-0000002" and [line["skipped"] for line in log(tmp_path)] == [1, 1, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_saves_where_it_is(tmp_path, number):
    def interrupted(model, step, loss):
        if step == 3:
            os.kill(os.getpid(), number)
        return loss(step)

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=r"stopped after step 4, which is saved in .+; the same command goes on from there"):
        little(tmp_path / "cut", loss_at=interrupted)
    assert signal.getsignal(number) == before and newest(tmp_path / "cut").name == "step-0000004"
    little(tmp_path / "cut")
    little(tmp_path / "whole")
    assert state(tmp_path / "cut") == state(tmp_path / "whole") and log(tmp_path / "cut") == log(tmp_path / "whole")


@pytest.fixture
def heeded():
    """Signals are heeded as in a terminal; tests that run in the background begin with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_stops_at_once(heeded, tmp_path):
    def interrupted(model, step, loss):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return loss(step)

    with pytest.raises(KeyboardInterrupt) as caught:
        little(tmp_path, loss_at=interrupted)
    assert not isinstance(caught.value, Stopped) and not checkpoints.checkpoint_folders(tmp_path)


def test_clips_are_drawn_a_step_ahead_and_their_errors_told():
    drawn = []

    def draw(step: int) -> int:
        drawn.append(step)
        if step == 2:
            raise ValueError("no clip")
        return step * 10

    with Ahead(draw, 0, 5) as ahead:
        assert ahead.take()[0] == 0 and ahead.take()[0] == 10
        with pytest.raises(ValueError, match="no clip"):
            ahead.take()
    assert drawn == [0, 1, 2]
    with Ahead(draw, 4, 5) as ahead:
        assert ahead.take()[0] == 40 and ahead.coming is None, "nothing after the last step"


def test_numbers_are_drawn_in_order_and_one_ahead_of_what_is_used():
    drawn, begun = [], threading.Event()

    def draw(number: int) -> int:
        drawn.append(number)
        if number == 5:
            begun.set()
        return -number

    batches = drawn_ahead(draw, range(3, 9, 2))
    assert drawn == [] and next(batches) == -3
    assert begun.wait(10) and drawn == [3, 5], "the next one, and no more, before it is asked for"
    assert list(batches) == [-5, -7] and list(drawn_ahead(draw, range(0))) == []


def test_waiting_for_clips_is_told(tmp_path):
    task, lines = Toy(), []
    task.draw = lambda step, parts: (time.sleep(0.05), [step])[1]
    little(tmp_path, num_steps=4, task=task, on_log=lines.append, log_every=4)
    assert 0.5 < lines[0]["waiting"] <= 1 and lines[0]["tokens_per_second"] == pytest.approx(7 / lines[0]["seconds_per_step"])
    assert lines[0]["clips_per_second"] == pytest.approx(2 / lines[0]["seconds_per_step"])


# Checkpoints


def test_the_best_checkpoint_on_held_out_clips_stays(tmp_path):
    task = Toy(held_out=[3.0, 1.0, 2.0, 5.0, 4.0])
    little(tmp_path, task=task, save_every=2)
    assert [path.name[-2:] for path in checkpoints.checkpoint_folders(tmp_path)] == ["04", "08", "10"]
    assert checkpoints.best_checkpoint(tmp_path).name == "step-0000004"
    task = Toy(held_out=[3.0, 1.0, 2.0, 5.0, 4.0])
    little(tmp_path / "last", task=task, save_every=2, keep_best=False)
    assert [path.name[-2:] for path in checkpoints.checkpoint_folders(tmp_path / "last")] == ["08", "10"]


def test_losses_on_other_clips_are_not_compared(tmp_path):
    for clips, losses, steps in ("easy", [0.1, 0.2], 4), ("hard", [3.0, 1.0, 2.0], 10):
        little(tmp_path, task=Toy(held_out=losses, habits={"held_out": [clips, 4]}), num_steps=steps, save_every=2, keep_last=1)
    assert [path.name[-2:] for path in checkpoints.checkpoint_folders(tmp_path)] == ["08", "10"]


def test_losses_of_other_weights_are_not_compared(tmp_path):
    """A setting that was none before, and is off, is no other weight."""
    little(tmp_path, task=Toy(held_out=[0.1, 0.2], habits={"losses": {"l1_weight": 1.0}}), num_steps=4, save_every=2)
    own = {"losses": {"l1_weight": 2.0}}
    little(tmp_path, task=Toy(held_out=[3.0, 1.0, 2.0], habits=own), save_every=2, keep_last=1)
    assert [path.name[-2:] for path in checkpoints.checkpoint_folders(tmp_path)] == ["08", "10"]
    little(tmp_path, task=Toy(held_out=[4.0], habits={"losses": {"l1_weight": 2.0, "l2_weight": 0}}), num_steps=12, keep_last=1)
    assert [path.name[-2:] for path in checkpoints.checkpoint_folders(tmp_path)] == ["08", "12"]


@pytest.mark.parametrize("own", [False, True])
def test_a_command_that_is_refused_leaves_no_folder_of_its_own(tmp_path, own):
    """One that was there stays, and so does what was made before."""
    out = tmp_path / "out"
    if own:
        out.mkdir()
    with pytest.raises(ValueError, match="refused"), folder_alone(out / "part", OptimizerSettings(num_steps=1), Group()):
        raise ValueError("refused")
    assert out.exists() == own and not (out / "part").exists()
    with pytest.raises(ValueError, match="later"), folder_alone(out / "part", OptimizerSettings(num_steps=1), Group()):
        (out / "part/tokens").touch()
        raise ValueError("later")
    assert (out / "part/tokens").exists()


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path):
    little(tmp_path, task=Toy(held_out=[math.nan, 1.0, math.inf, 5.0, math.nan]), save_every=2, keep_last=1)
    assert [path.name[-2:] for path in checkpoints.checkpoint_folders(tmp_path)] == ["04", "10"]
    little(tmp_path / "none", task=Toy(held_out=[math.nan] * 5), save_every=2, keep_last=1)
    assert [path.name[-2:] for path in checkpoints.checkpoint_folders(tmp_path / "none")] == ["10"]


def test_a_sample_that_fails_ends_no_training(tmp_path, capsys):
    task = Toy()
    task.sample = lambda *_: (_ for _ in ()).throw(ValueError("nothing to see"))
    little(tmp_path, task=task, sample_every=3, save_every=5)
    told = [f"step {step}: no sample could be made (ValueError: nothing to see)" for step in (3, 6, 9, 10)]
    assert [line for line in capsys.readouterr().out.splitlines() if "no sample" in line] == told
    assert newest(tmp_path).name == "step-0000010"


def test_a_validation_that_fails_costs_no_checkpoint(tmp_path, capsys):
    """The same command goes on behind it, where it would else come to the same end each time."""
    task = Toy()
    task.validate = lambda *_: (_ for _ in ()).throw(ValueError("no clips to validate on"))
    for step in (5, 10):
        with pytest.raises(ValueError, match="no clips to validate on"):
            little(tmp_path, task=task)
        assert newest(tmp_path).name == f"step-{step:07d}" and not damage(newest(tmp_path)) and state(tmp_path)["validation"] is None
        assert f"step {step} is saved, but its validation failed" in capsys.readouterr().out
    little(tmp_path / "other", task=Toy())
    assert state(tmp_path)["sha256"] == state(tmp_path / "other")["sha256"]


def test_the_newest_checkpoint_is_the_one_of_the_highest_step_however_many_digits_it_has(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (9_999_990, 9_999_995, 10_000_000, 12_000_000):
        (folder / f"step-{step:07d}").mkdir(parents=True)
    (folder / "step-9999990.copy").mkdir()
    assert [path.name for path in checkpoints.checkpoint_folders(tmp_path)] == ["step-9999990", "step-9999995", "step-10000000", "step-12000000"]
    checkpoints.drop_old(tmp_path, keep_last=2, keep_best=False)
    assert sorted(path.name for path in folder.iterdir()) == ["step-10000000", "step-12000000", "step-9999990.copy"]


SAVE_CALLS = [(checkpoints, "save_file"), (checkpoints, "sync"), (atomic, "sync"), (atomic.os, "replace")]


@pytest.mark.parametrize(("module", "name"), SAVE_CALLS, ids=lambda value: getattr(value, "__name__", value))
def test_a_failing_write_leaves_the_checkpoints_before_and_nothing_half(tmp_path, module, name):
    """A full disk at each single call of a save: it is told, and the same command goes on when there is room."""
    little(tmp_path / "whole")
    calls, original = 0, getattr(module, name)

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    fails_at, refused = 1, 0
    while True:
        folder, calls = tmp_path / str(fails_at), 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, counted)
            try:
                little(folder)
            except TrainingError as error:
                refused += 1
                kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
                assert kept in ([], ["step-0000005"], ["step-0000005", "step-0000010"])
                assert not any(map(damage, checkpoints.checkpoint_folders(folder)))
                assert "No space left on device" in str(error) and (f"goes on from {kept[-1]}" if kept else "there is none") in str(error)
        if calls < fails_at:
            break  # it was never asked that often
        little(folder)
        assert state(folder) == state(tmp_path / "whole") and log(folder) == log(tmp_path / "whole")
        fails_at += 1
    assert refused >= 2 and fails_at > 3


def test_every_cut_and_every_flipped_bit_of_a_checkpoint_is_found(tmp_path, capsys):
    """64 truncations and 256 flipped bits, over all its files: found before a tensor is used, and the checkpoint before is taken."""
    little(tmp_path, save_every=5)
    folder, rng = newest(tmp_path), random.Random(0)
    files = sorted(folder.iterdir())
    used = []
    for number in range(64 + 256):
        path = files[number % len(files)]
        content = path.read_bytes()
        if number < 64:
            harmed = content[: rng.randrange(len(content))]
        else:
            place = rng.randrange(8 * len(content))
            harmed = bytearray(content)
            harmed[place // 8] ^= 1 << place % 8
        path.write_bytes(harmed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "load_file", lambda path: (used.append(path), load_file(path))[1])
            run = Run(tmp_path, Toy(), settings())
        assert run.step == 5 and not [file for file in used if file.parent == folder], (number, path.name)
        assert f"{folder}: " in capsys.readouterr().out
        aside = folder.with_name(f"damaged-{folder.name}")
        assert (aside / path.name).read_bytes() == bytes(harmed), "nothing is thrown away"
        aside.rename(folder)
        path.write_bytes(content)
    assert Run(tmp_path, Toy(), settings()).step == 10


def harm(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "flip":
        path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    elif how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "delete"])
@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors", "optimizer.safetensors", "manifest.json", "manifest.json.sha256"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, capsys, name, how):
    often = {"save_every": 2, "log_every": 2}
    little(tmp_path / "whole", **often)
    little(tmp_path / "harmed", **often)
    harm(newest(tmp_path / "harmed") / name, how)
    assert damage(newest(tmp_path / "harmed")) and newest_whole(tmp_path / "harmed").name == "step-0000008"
    run = Run(tmp_path / "harmed", Toy(), settings(save_every=2))
    said = capsys.readouterr().out
    assert run.step == 8 and "step-0000010" in said and "going back to the checkpoint before" in said
    assert name.split(".")[0] in said or name == "manifest.json"  # a manifest of wrong hashes accuses another file
    little(tmp_path / "harmed", **often)
    assert state(tmp_path / "harmed") == state(tmp_path / "whole") and log(tmp_path / "harmed") == log(tmp_path / "whole")


def test_two_damaged_checkpoints_of_one_name_are_both_kept(tmp_path, capsys):
    found = []
    for how in ("flip", "cut"):
        little(tmp_path, save_every=5)
        path = newest(tmp_path) / "weights.safetensors"
        assert path.parent.name == "step-0000010"
        harm(path, how)
        found.append(path.read_bytes())
        assert Run(tmp_path, Toy(), settings()).step == 5
    asides = [tmp_path / "checkpoints" / name / "weights.safetensors" for name in ("damaged-step-0000010", "damaged-step-0000010-1")]
    assert [path.read_bytes() for path in asides] == found
    assert newest_whole(tmp_path).name == "step-0000005"


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"step": 10}', '{"step": 9, "sha256": {}}', '{"sha256": {}}', '{"step": "10", "sha256": {}}']
)
def test_a_manifest_of_something_else_is_damage(tmp_path, text):
    little(tmp_path, save_every=2)
    (newest(tmp_path) / "manifest.json").write_text(text)
    assert Run(tmp_path, Toy(), settings()).step == 8


@pytest.mark.parametrize("value", ["[1]", "3", "null", '"adamw"'])
def test_a_manifest_whose_settings_are_no_table_is_damage(tmp_path, value):
    little(tmp_path, save_every=2)
    path = newest(tmp_path) / "manifest.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "settings": json.loads(value)}))
    assert Run(tmp_path, Toy(), settings()).step == 8


def test_a_manifest_of_another_step_is_damage(tmp_path):
    """Though all hashes are right: the run would go on from the wrong step."""
    little(tmp_path, save_every=2)
    path = newest(tmp_path) / "manifest.json"
    path.write_text(path.read_text().replace('"step": 10', '"step": 11'))
    assert Run(tmp_path, Toy(), settings()).step == 8


def test_without_any_whole_checkpoint_a_run_begins_anew(tmp_path, capsys):
    little(tmp_path / "whole")
    little(tmp_path / "harmed")
    for folder in (tmp_path / "harmed/checkpoints").iterdir():
        harm(folder / "model.safetensors", "flip")
    little(tmp_path / "harmed")
    assert state(tmp_path / "harmed") == state(tmp_path / "whole") and log(tmp_path / "harmed") == log(tmp_path / "whole")
    said = capsys.readouterr().out
    assert said.count("hash differs") == 2 and "none of its checkpoints is whole, so it begins anew, at step 0" in said and "going back" not in said


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path, monkeypatch):
    little(tmp_path, num_steps=4, save_every=2)
    run = Run(tmp_path, Toy(), settings())
    for last in range(2):
        left = last
        save_file = checkpoints.save_file

        def counted(*arguments, save_file=save_file):
            nonlocal left
            if left == 0:
                raise Stop
            left -= 1
            save_file(*arguments)

        run.state = RunState(9)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_file", counted)
            with pytest.raises(Stop):
                run.save()
        assert (tmp_path / "checkpoints/.part-step-0000009").is_dir()
        assert Run(tmp_path, Toy(), settings()).step == 4
    run.save()
    assert Run(tmp_path, Toy(), settings()).step == 9 and not list((tmp_path / "checkpoints").glob(".part*"))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, synced, monkeypatch):
    """Each file, then the rename, then the folder that the name is in: a power cut finds it whole or not at all."""
    rename = atomic.os.replace

    def renamed(source, target):
        synced.append(("renamed", Path(target).name))
        rename(source, target)

    monkeypatch.setattr(atomic.os, "replace", renamed)
    little(tmp_path, num_steps=1)
    *files, names, name, parent = synced[-8:]
    wanted = {"model.safetensors", "weights.safetensors", "optimizer.safetensors", "manifest.json", "manifest.json.sha256"}
    assert {path.name for path in files} == wanted and all(path.parent.name == ".part-step-0000001" for path in files)
    assert names.name == ".part-step-0000001" and name == ("renamed", "step-0000001") and parent == tmp_path / "checkpoints"


def test_only_the_newest_checkpoints_stay(tmp_path):
    little(tmp_path, num_steps=9, save_every=2)
    assert OptimizerSettings().keep_last >= 2, "the newest may turn out to be damaged"
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-0000008", "step-0000009"]
    weights = load_file(newest(tmp_path) / "model.safetensors")
    assert sum(path.stat().st_size for path in newest(tmp_path).iterdir()) < 4000 and len(weights) == 2


@pytest.mark.parametrize("tail", ['{"step": 10, "lo', '{"step"', "\x00\x00\x00", "[1]\n", "{}\n", "\n"])
def test_a_half_written_log_line_does_not_stop_a_run(tmp_path, tail):
    little(tmp_path / "whole")
    little(tmp_path / "cut")
    with open(tmp_path / "cut/log.jsonl", "a") as file:
        file.write(tail)
    little(tmp_path / "cut")
    assert log(tmp_path / "cut") == log(tmp_path / "whole")


KILLED = """
import os, random, signal, sys, time
import torch
import torch._dynamo  # which optimizers import, here once and not in each child
torch.set_num_threads(1)
from dataclasses import replace
from pathlib import Path
from phenaki.checkpoint import ModelInfo
from phenaki.cvivit import CViViT
from phenaki.data.storybook import open_world
from phenaki.training.optimizers import OptimizerSettings
from phenaki.training.run import Run
from phenaki.training.settings import TokenizerTraining, load_settings
from phenaki.training.tokenizer import TokenizerTask

settings = load_settings(sys.argv[1])
world = open_world(settings.world)
own = OptimizerSettings(num_steps=14, batch_size=2, log_every=1, save_every=1, sample_every=7)

def train(folder):
    torch.manual_seed(0)
    info = ModelInfo("killed", settings.tokenizer, None, settings.text, 8.0)
    training = TokenizerTraining(num_slices=2, losses=settings.train_tokenizer.losses, optimizer=own)
    task = TokenizerTask(CViViT(settings.tokenizer), world, training, info)
    Run(Path(folder), task, own).train(lambda line: None)

def start(folder):
    child = os.fork()
    if not child:
        try:
            train(folder)
            os._exit(0)
        except BaseException as error:
            print(type(error), error, flush=True)
            os._exit(1)
    return child

began = time.perf_counter()
assert os.waitpid(start(sys.argv[2]), 0)[1] == 0
needed = time.perf_counter() - began
kills, rng = 0, random.Random(int(sys.argv[4]))
for _ in range(4):
    child = start(sys.argv[3])
    time.sleep(rng.uniform(0.03, 0.25) * needed)
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
assert os.waitpid(start(sys.argv[3]), 0)[1] == 0
print("kills", kills)
"""


def test_a_run_killed_at_any_moment_ends_as_an_unkilled_one(tmp_path):
    """kill -9, several times in one run that saves after each step. Children are forked: only the parent pays for imports."""
    seed = random.randrange(2**30)
    arguments = [str(CONFIGS / "tiny.toml"), str(tmp_path / "whole"), str(tmp_path / "killed"), str(seed)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, cwd=CONFIGS.parent)
    assert done.returncode == 0, (seed, done.stdout, done.stderr)
    assert int(done.stdout.split("kills")[1]) >= 2, (seed, "it was done before it was killed")
    assert state(tmp_path / "killed") == state(tmp_path / "whole"), seed
    assert log(tmp_path / "killed") == log(tmp_path / "whole"), seed


def test_a_run_with_muon_resumes_to_the_bit(tmp_path):
    def run_to(folder, stop: int) -> Run:
        torch.manual_seed(0)
        model = nn.Sequential(OrderedDict(layers=nn.Linear(4, 4), head=nn.Linear(4, 1)))
        task = Toy(lambda step: {"loss": model(torch.arange(4.0) + step).square().sum()}, model)
        task.build = lambda: nn.Sequential(OrderedDict(layers=nn.Linear(4, 4), head=nn.Linear(4, 1)))
        run = Run(folder, task, settings(num_steps=stop, optimizer="muon", learning_rate=0.01, warmup_steps=0, final_lr_ratio=1.0, save_every=3))
        run.train(lambda line: None)
        return run

    whole = run_to(tmp_path / "whole", 6)
    run_to(tmp_path / "halves", 3)
    resumed = run_to(tmp_path / "halves", 6)
    for name, value in whole.task.model.state_dict().items():
        assert torch.equal(value, resumed.task.model.state_dict()[name]), name
    assert any("momentum_buffer" in name for name in whole.tensors.optimizer_state())
    for name, value in whole.tensors.optimizer_state().items():
        assert torch.equal(value, resumed.tensors.optimizer_state()[name]), name


def test_that_nothing_is_left_to_train_is_told(tmp_path, capsys):
    little(tmp_path, num_steps=3)
    assert "nothing is left" not in capsys.readouterr().out
    little(tmp_path, num_steps=2)
    assert f"{tmp_path} stands at step 3 of 2: nothing is left to train. More steps: a larger --steps" in capsys.readouterr().out


def test_going_on_with_other_settings_is_told(tmp_path, capsys):
    little(tmp_path, num_steps=2)
    capsys.readouterr()
    assert Run(tmp_path, Toy(), settings(num_steps=2)).step == 2 and "other settings" not in capsys.readouterr().out
    assert Run(tmp_path, Toy(), settings(num_steps=5, seed=9)).step == 2
    said = capsys.readouterr().out
    assert "step-0000002: going on with other settings: " in said and "num_steps 2 -> 5" in said and "seed 0 -> 9" in said
    with pytest.raises(ValueError, match=r"step-0000002: was saved by a run that was not this one: optimizer adamw -> muon\. Set it back to go on"):
        Run(tmp_path, Toy(), settings(num_steps=5, optimizer="muon"))


@pytest.mark.parametrize("saved", ["b", ["b"], ["a", "c"]])
def test_one_hash_of_the_tokens_has_to_be_alike(tmp_path, saved):
    """Older versions wrote one, as text."""
    (tmp_path / "manifest.json").write_text(json.dumps({"identity": {"tokens and texts": saved}}))
    check_identity(tmp_path, {"tokens and texts": ["a", "b"]})
    with pytest.raises(ValueError, match=r"not this one: tokens and texts .+ so its tokenizer or text encoder is another"):
        check_identity(tmp_path, {"tokens and texts": ["d", "e"]})


def test_whoever_may_see_a_run_may_read_all_of_its_checkpoints(tmp_path):
    before = os.umask(0o022)
    try:
        little(tmp_path, num_steps=2)
    finally:
        os.umask(before)
    files = [path for path in newest(tmp_path).rglob("*") if path.is_file()]
    assert files and {oct(path.stat().st_mode & 0o777) for path in files} == {"0o644"}


def test_a_setting_that_was_none_when_a_run_was_saved_is_no_change():
    before = {"learning_rate": 0.1, "losses": {"l1_weight": 0.3}}
    assert changed(before, {"learning_rate": 0.1, "losses": {"l1_weight": 0.3, "still_weight": 0.0}, "seed": 0}) == []
    assert changed(before, {"learning_rate": 0.2, "losses": {"l1_weight": 0.1}}) == ["learning_rate 0.1 -> 0.2", "l1_weight 0.3 -> 0.1"]


def test_tensorboard_forgets_what_is_written_again(tmp_path, monkeypatch):
    """TensorBoard, where it is installed, shows no step of before a resume that the run takes once more."""
    opened = []

    class Board:
        def __init__(self, folder, purge_step=None):
            opened.append((folder, purge_step))

        add_scalar = flush = close = lambda self, *_: None

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Board))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    journal = Journal(tmp_path)
    for step in (1, 2, 3):
        journal.write({"step": step, "loss": 1.0})
    journal.forget_after(2)
    assert [line["step"] for line in log(tmp_path)] == [1, 2]
    assert opened == [(str(tmp_path / "tensorboard"), None), (str(tmp_path / "tensorboard"), 3)]


def test_the_log_of_a_run_whose_checkpoints_are_gone_is_kept(tmp_path):
    notes = []
    Run(tmp_path, Toy(), settings(num_steps=3, log_every=1)).train(lambda line: None)
    before = (tmp_path / "log.jsonl").read_text()
    checkpoints_folder = tmp_path / "checkpoints"
    checkpoints_folder.rename(tmp_path / "elsewhere")
    Run(tmp_path, Toy(), settings(num_steps=3, log_every=1), on_note=notes.append).train(lambda line: None)
    assert (tmp_path / "log-1.jsonl").read_text() == before and len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    assert any("there is no checkpoint to go on from; the log of the run before is kept as log-1.jsonl" in note for note in notes)


@pytest.mark.parametrize("line", ['{"step": null}', '{"step": "5"}', "[" * 100_000, '{"step": [1]}'])
def test_lines_of_a_log_that_are_no_lines_are_dropped(tmp_path, line):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n' + line + "\n")
    Journal(tmp_path).forget_after(3)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'


def test_a_checkpoint_that_was_moved_and_linked_back_is_dropped_as_a_link(tmp_path):
    run = Run(tmp_path / "run", Toy(), settings(num_steps=6, save_every=1, keep_last=1, keep_best=False))
    moved = tmp_path / "moved"

    def move(line):
        first = tmp_path / "run/checkpoints/step-0000002"
        if first.is_dir() and not moved.exists():
            first.rename(moved)
            first.symlink_to(moved)

    run.train(move)
    assert newest(tmp_path / "run").name == "step-0000006" and not (tmp_path / "run/checkpoints/step-0000002").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path.with_name("other"))])
def test_a_lock_that_is_a_pipe_or_a_link_is_refused(tmp_path, make):
    make(tmp_path / ".lock")
    with pytest.raises(ValueError, match=r"\.lock: is no plain file, as a lock is; remove it"):
        take_folder(tmp_path, "")
    assert not (tmp_path / "other").exists()


def test_a_manifest_nested_too_deep_is_damage(tmp_path):
    Run(tmp_path, Toy(), settings(num_steps=1)).train(lambda line: None)
    manifest = newest(tmp_path) / "manifest.json"
    manifest.write_text("[" * 100_000)
    manifest.with_name("manifest.json.sha256").write_text(hashlib.sha256(manifest.read_bytes()).hexdigest())
    assert "cannot be read" in damage(newest(tmp_path))
