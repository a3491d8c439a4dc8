"""The training loop: optimiser steps, logs, validation, checkpoints and exact resume, on any number of processes.

Everything random in step n is drawn from (seed, n), so a checkpoint needs no random state and a resumed run takes the same
steps to the bit. What is trained, on what and by which loss is a Task (`task.py`); this file knows none of the networks.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from phenaki.checkpoint import save_weights
from phenaki.compiling import compile_layers
from phenaki.data.ahead import Ahead
from phenaki.devices import has_bf16
from phenaki.training.beginning import whole_identity
from phenaki.training.checkpoints import (
    RunState,
    begin_checkpoint,
    changed,
    check_identity,
    checkpoint_folders,
    drop_old,
    finish_checkpoint,
    newest_whole,
    read_manifest,
    read_state,
    save_part,
    set_aside,
    take,
)  # fmt: skip
from phenaki.training.heap import keep_freed_memory
from phenaki.training.interrupts import Interrupts, Stopped
from phenaki.training.journal import Journal, Meter, peak_operations
from phenaki.training.memory import check_memory, rehearse_step
from phenaki.training.optimizers import EMA, OptimizerSettings, learning_rate, make_optimizers
from phenaki.training.parallel import Group, Objective, checkpoint_activations, spread, whole
from phenaki.training.run_tensors import RunTensors
from phenaki.training.task import Task

MAX_SKIPPED = 10  # steps in a row whose gradient is not finite (NaN or infinite)


class TrainingError(ValueError):
    """A run that cannot continue; the message says why and what to do."""


class Run:
    """One training run in `folder`: network, its average, optimisers, step; saved and resumed as a whole."""

    def __init__(
        self, folder: str | Path, task: Task, settings: OptimizerSettings, group: Group | None = None, on_note: Callable[[str], None] = print,
        lock: BinaryIO | None = None,
    ):  # fmt: skip
        """lock: of `take`, where the folder was taken before the data was made."""
        self.folder, self.task, self.settings, self.on_note = Path(folder), task, settings, on_note
        self.group = Group(device=task.device) if group is None else group
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock or (take(self.folder) if self.group.leads else None)
        self.parts = self.group.parts(settings.accumulate)
        for part in self.parts:
            part.of(settings.batch_size)
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and has_bf16(self.group.device))
        rehearsal = rehearse_step(task, settings, self.group, self.bf16)
        self._note(check_memory(rehearsal, task, settings, self.group))
        self.peak, self.operations = peak_operations(self.group.device), rehearsal.operations_per_clip
        self.objective = self._objective()
        trained = [task.model] if task.discriminator is None else [task.model, task.discriminator]
        self.optimizers = [optimizer for network in trained for optimizer in make_optimizers(network, settings)]
        self.ema = EMA(task.model, settings.ema_decay)
        self.tensors = RunTensors(task.model, task.discriminator, self.ema, self.optimizers, self.group)
        self.state, self.meter = RunState(), Meter()
        self.saved_step = -1
        self.journal = Journal(self.folder) if self.group.leads else None
        self.resume()
        if not self.group.agrees(self.step):
            raise TrainingError(f"{self.folder}: here it stands at step {self.step}, in other processes elsewhere: all must see the same run folder")

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    def _objective(self) -> nn.Module:
        settings, task = self.settings, self.task
        if settings.compile:
            compile_layers(task.model)
        if settings.activation_checkpointing:
            checkpoint_activations(task.model)
        networks = {"model": task.model} | ({} if task.discriminator is None else {"discriminator": task.discriminator})
        return spread(Objective(networks, task.losses, self.bf16), self.group, settings.sharded)

    def train(self, on_log: Callable[[dict], None] = print) -> None:
        """Steps until num_steps. on_log is called with each line of the log.

        Stopped when a signal asks for it; TrainingError where the gradient was not finite in ten steps in a row, or in all there are.
        """
        settings = self.settings
        if self.step >= settings.num_steps:
            self._note(f"{self.folder} stands at step {self.step} of {settings.num_steps}: nothing is left to train. More steps: a larger --steps")
        keep_freed_memory()
        draw = lambda step: self.task.draw(step, self.parts)
        with Interrupts() as interrupts, Ahead(draw, self.step, settings.num_steps) as ahead:
            while self.step < settings.num_steps:
                batches, waited = ahead.take()
                values = self._step(batches)
                num_tokens = sum(self.task.num_tokens(batch) for batch in batches)
                effort = sum(self.task.effort(batch) for batch in batches)
                self.meter.add(values, num_tokens * self.group.size, waited, self.operations * effort)
                skipped = self.state.skipped_in_a_row + 1 if values["skipped"] else 0
                self.state = RunState(self.step + 1, skipped)
                self._report(on_log)
                if skipped >= min(MAX_SKIPPED, settings.num_steps):
                    raise TrainingError(self._why_it_stopped())
                self._save_when_due()
                if self.group.any(interrupts.asked):
                    if self.saved_step != self.step:
                        self.save()
                    raise Stopped(f"stopped after step {self.step}, which is saved in {self.folder}; the same command goes on from there")

    def _step(self, batches: list[Any]) -> dict[str, Tensor]:
        """Forward and backward of this process's parts, then one step of the optimisers, unless the gradient is not finite."""
        settings, rate = self.settings, learning_rate(self.step, self.settings)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        values = self._backward(batches)
        values["grad_norm"] = whole(nn.utils.clip_grad_norm_(self.task.model.parameters(), settings.max_grad_norm))
        finite = values["grad_norm"].isfinite()
        if self.task.discriminator is not None:
            values["discriminator_grad_norm"] = whole(nn.utils.clip_grad_norm_(self.task.discriminator.parameters(), settings.max_grad_norm))
            finite = finite & values["discriminator_grad_norm"].isfinite()
        finite = bool(finite)  # the one answer of a step that a GPU is waited for
        for optimizer in self.optimizers:
            if finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if finite:
            self.task.after_step(self.step)
        self.ema.update(self.step)
        return {**values, "skipped": torch.tensor(float(not finite)), "learning_rate": torch.tensor(rate)}

    def _backward(self, batches: list[Any]) -> dict[str, Tensor]:
        """Adds up the gradients of the parts; returns the means of their losses, by name."""
        losses_of_parts: list[dict[str, Tensor]] = []
        for number, batch in enumerate(batches):
            if isinstance(self.objective, nn.parallel.DistributedDataParallel):
                self.objective.require_backward_grad_sync = number == len(batches) - 1
            losses = self.objective(batch, self.step)
            total = losses["loss"] + losses["discriminator_loss"] if "discriminator_loss" in losses else losses["loss"]
            (total / len(batches)).backward()
            losses_of_parts.append({name: value.detach() for name, value in losses.items()})
        if len(losses_of_parts) == 1:
            return losses_of_parts[0]
        count = len(losses_of_parts)
        return {name: sum(losses[name] for losses in losses_of_parts) / count for name in losses_of_parts[0]}

    def _report(self, on_log: Callable[[dict], None]) -> None:
        """A line of the log after a step, where one is due."""
        step, settings = self.step, self.settings
        if step % settings.log_every == 0 or step == settings.num_steps:
            line = self.meter.line(step, settings.num_steps, settings.batch_size, self.group, self.peak, self.task.figures)
            if self.group.leads:
                self.journal.write(line)
                on_log(line)

    def _save_when_due(self) -> None:
        """Saves a checkpoint and a sample after a step, where they are due."""
        step, settings, done = self.step, self.settings, self.step == self.settings.num_steps
        began = time.perf_counter()
        saves = done or step % settings.save_every == 0
        looks = done or step % settings.sample_every == 0
        averaged = self.averaged() if saves or looks else None
        if saves:
            self._save(averaged, validate=True)
        if looks:
            if self.group.leads:
                self._show_sample(averaged, self.folder / f"sample-{step:07d}")
            self.group.wait()
        self.meter.pause(time.perf_counter() - began)

    def _show_sample(self, averaged: nn.Module, path: Path) -> None:
        """A look at what the network makes. One that fails ends no training: it would fail again each time that the run came there."""
        try:
            self.task.sample(averaged, path)
        except Exception as error:
            self.on_note(f"step {self.step}: no sample could be made ({type(error).__name__}: {error})")

    def _why_it_stopped(self) -> str:
        return (
            f"the loss was no number for {self.state.skipped_in_a_row} steps in a row, up to step {self.step} of {self.folder}: stopped. "
            "The weights are as they were before; the checkpoints are whole. Lower learning_rate or max_grad_norm, or look for broken clips "
            "with `phenaki data check`"
        )

    @torch.no_grad()
    def averaged(self) -> nn.Module | None:
        """A network with the averaged weights, on the process that leads (all must call this)."""
        weights = self.tensors.whole(self.ema.weights)
        if weights is None:
            return None
        network = self.task.build().to(self.group.device)
        network.load_state_dict(weights)
        return network.eval().requires_grad_(False)

    def save(self) -> None:
        """Writes checkpoints/step-N whole or not at all, then drops the old ones. All processes must call this."""
        self._save(self.averaged(), validate=False)

    def _save(self, averaged: nn.Module | None, *, validate: bool) -> None:
        files = self.tensors.gathered()
        sums = {name: total.item() for name, total in self.group.mean(self.meter.sums).items()}
        if self.group.leads:
            wanted, losses, failure = self.settings.validation_batches if validate else 0, {}, None
            try:
                losses = self.task.validate(averaged, wanted, self.parts[0].count) if wanted else {}
            except Exception as error:  # raised when the step is saved: else the run could never pass it
                failure = error
            self.state = RunState(self.step, self.state.skipped_in_a_row, self.meter.since, sums, losses.get("loss"))
            self._write(averaged, files)
            drop_old(self.folder, self.settings.keep_last, self.settings.keep_best)
            if failure is not None:
                self.on_note(f"step {self.step} is saved, but its validation failed")
                raise failure
            if losses:
                self.on_note(f"step {self.step}, held-out clips: " + "  ".join(f"{name} {value:.4g}" for name, value in losses.items()))
        self.saved_step = self.step
        self.group.wait()

    def _write(self, averaged: nn.Module, files: dict[str, dict[str, Tensor]]) -> None:
        """The files of a checkpoint. Where one cannot be written nothing is left of it, and the checkpoints before it stay."""
        part = begin_checkpoint(self.folder, self.step)
        try:
            self.task.describe(part, save_weights(part, self.task.part, averaged.state_dict()), self.step)
            for name, tensors in files.items():
                save_part(tensors, part / name)
            finish_checkpoint(part, self.state, lasting(self.settings) | self.task.habits, self._identity())
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            kept = checkpoint_folders(self.folder)
            before = f"the run goes on from {kept[-1].name}" if kept else "there is none before it"
            problem = f"{self.folder}: the checkpoint of step {self.step} could not be written ({error}); {before}. Make room and try again"
            raise TrainingError(problem) from error

    def resume(self) -> None:
        """Resumes from the newest checkpoint that is whole; damaged ones are named and set aside.

        Settings that have changed since are noted; ValueError where it was saved with another network or optimizer.
        """
        damaged: dict[Path, str] = {}
        newest = newest_whole(self.folder, damaged.__setitem__)
        for folder, problem in damaged.items():
            self._note(f"{folder}: {problem}" + (f"; going back to the checkpoint before, {newest.name}" if newest else ""))
        if newest is not None:
            check_identity(newest, self._identity())
            now = json.loads(json.dumps(lasting(self.settings) | self.task.habits))
            if other := changed(read_manifest(newest)["settings"], now):
                self._note(f"{newest}: going on with other settings: {', '.join(other)}")
            self.tensors.load(newest, self.task.part)
            self.state = read_state(newest)
        elif damaged:
            self._note(f"{self.folder}: none of its checkpoints is whole, so it begins anew, at step 0")
        self.group.wait()  # all have read before anything is moved
        if self.group.leads:
            for folder in damaged:
                set_aside(folder)
        self.meter = Meter(self.state.since, self.state.sums)
        if self.journal:
            if newest is None and (aside := self.journal.set_aside()):
                self._note(f"{self.folder}: there is no checkpoint to go on from; the log of the run before is kept as {aside.name}")
            self.journal.forget_after(self.step)

    def _identity(self) -> dict[str, Any]:
        return whole_identity(self.settings, self.task.identity)

    def _note(self, text: str) -> None:
        if text and self.group.leads:
            self.on_note(text)


def lasting(settings: OptimizerSettings) -> dict[str, Any]:
    """The settings that shape the weights: not how often something is written, nor how the work is shared out."""
    passing = ("optimizer", "keep_last", "keep_best", "accumulate", "compile", "activation_checkpointing", "sharded", "validation_batches")
    return {key: value for key, value in asdict(settings).items() if not key.endswith("_every") and key not in passing}
