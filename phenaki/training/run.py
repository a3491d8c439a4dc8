"""What both training programs share: the loop of optimiser steps, EMA, checkpoints and exact resume.

Everything random in step n is drawn from (seed, n), so a checkpoint needs no random state and a resumed run takes the
same steps to the bit. A checkpoint is a folder of safetensors with a manifest of hashes, written beside its final name,
synced, and renamed when it is whole; the newest whole one is taken to go on from.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phenaki.atomic import sync
from phenaki.checkpoint import load_model, sha256
from phenaki.config import as_dict

KEEP_CHECKPOINTS = 2
OPTIMIZERS = ("adamw", "muon")
CHECKPOINT_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class OptimizerSettings:
    """How a network is trained, whatever its loss."""

    num_steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3  # at its peak
    warmup_steps: int = 100
    final_lr_ratio: float = 0.05  # of the peak, at the end of the cosine
    optimizer: str = "adamw"  # or "muon", for the matrices of the layers
    weight_decay: float = 1e-2  # of matrices only
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    log_every: int = 20  # steps
    save_every: int = 200
    sample_every: int = 400
    seed: int = 0

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}: allowed are {', '.join(OPTIMIZERS)}")


def generator_for(seed: int, step: int, purpose: str = "") -> torch.Generator:
    """The random stream of one step: keyed by its arguments, so that it does not depend on the steps before."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def learning_rate(step: int, settings: OptimizerSettings) -> float:
    """Linear warm-up, then a cosine from the peak to final_lr_ratio of it at num_steps."""
    warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    progress = min(step / max(settings.num_steps, 1), 1.0)
    cosine = settings.final_lr_ratio + (1 - settings.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.learning_rate * warm * cosine


def make_optimizers(model: nn.Module, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    """AdamW over the model's own trainable parameters, in the order of their names; vectors are not decayed.

    With optimizer = "muon", the matrices of the layers are Muon's (Jordan et al. 2024), its steps scaled to be as long as
    AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both.
    """
    muons, matrices, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if settings.optimizer == "muon" and "layers." in name and parameter.ndim == 2:
            muons.append(parameter)
        else:
            (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)
    return [adamw, _muon(muons, settings)] if muons else [adamw]


def _muon(parameters: list[Tensor], settings: OptimizerSettings) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer 'muon': needs torch 2.9 or newer, found {torch.__version__}; set optimizer = \"adamw\"")
    return torch.optim.Muon(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")


class EMA:
    """An average of the weights over the last steps, kept as tensors by name; it starts as the weights themselves."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # early on the average follows faster
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, 1 - decay)
            else:
                self.weights[name].copy_(tensor)

    def copy_to(self, model: nn.Module) -> None:
        model.load_state_dict(self.weights)


def start_from(model: nn.Module, weights: dict[str, Tensor], source: str) -> str:
    """Copies the weights of a trained model into `model`; parts that it lacks, like added layers, keep their fresh start.

    Returns a line that says what was copied. ValueError where a shape differs or nothing fits.
    """
    own = model.state_dict()
    shared = {name: value for name, value in weights.items() if name in own}
    wrong = [name for name, value in shared.items() if value.shape != own[name].shape]
    if wrong or not shared:
        what = "no weight has a name in common"
        if wrong:
            what = f"{wrong[0]} is {tuple(shared[wrong[0]].shape)} there and {tuple(own[wrong[0]].shape)} here"
        raise ValueError(f"--init-from {source}: {what}. Start from a model of the same widths, or change the settings to its own")
    model.load_state_dict(shared, strict=False)
    fresh, left = len(own) - len(shared), len(weights) - len(shared)
    return f"starting from {source}: {len(shared)} tensors copied, {fresh} start afresh, {left} not used"


def load_start(network: nn.Module, part: str, source: str, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Starts `network` from the weights of a model's `part`, "tokenizer" or "generator"; returns what the new model's config.json says of it."""
    model = load_model(source)
    trained = getattr(model, part)
    if trained is None:
        raise ValueError(f"--init-from {source}: holds a tokenizer alone; a generator starts from a whole model")
    on_note(start_from(network, trained.state_dict(), source))
    return {f"{part}_init": {"name": model.info.name, **model.info.training}}


class Run:
    """One training run in `folder`: model, its average, optimiser, step; saved and resumed as a whole."""

    def __init__(self, folder: str | Path, model: nn.Module, settings: OptimizerSettings):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model, self.settings = model, settings
        self.optimizers = make_optimizers(model, settings)
        self.ema = EMA(model, settings.ema_decay)
        self.step = 0
        self.resume()

    def train(self, loss_at: Callable[[int], dict[str, Tensor]], on_sample: Callable[[int], None], on_log: Callable[[dict], None]) -> None:
        """Steps until num_steps. `loss_at(step)` gives named losses: "loss" is minimised, all are logged."""
        settings, sums, since, started = self.settings, {}, 0, time.perf_counter()
        while self.step < settings.num_steps:
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = learning_rate(self.step, settings)
            losses = loss_at(self.step)
            losses["loss"].backward()
            grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
            finite = torch.isfinite(grad_norm)
            for optimizer in self.optimizers:
                if finite:
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses["skipped"] = (~finite).float()
            self.ema.update(self.model, self.step)
            self.step, since = self.step + 1, since + 1
            for name, value in {**losses, "grad_norm": grad_norm}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().item()
            if self.step % settings.log_every == 0 or self.step == settings.num_steps:
                seconds = (time.perf_counter() - started) / since
                line = {"step": self.step, **{name: total / since for name, total in sums.items()}, "seconds_per_step": seconds}
                self._log(line)
                on_log(line)
                sums, since, started = {}, 0, time.perf_counter()
            if self.step % settings.save_every == 0 or self.step == settings.num_steps:
                self.save()
            if self.step % settings.sample_every == 0 or self.step == settings.num_steps:
                on_sample(self.step)

    def _log(self, line: dict) -> None:
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({key: round(value, 6) for key, value in line.items()}) + "\n")

    def save(self) -> None:
        """Writes checkpoints/step-N whole or not at all, then drops all but the newest ones."""
        final = self.folder / "checkpoints" / f"step-{self.step:07d}"
        part = final.with_name(f".part-{final.name}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}, part / "model.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in self.ema.weights.items()}, part / "ema.safetensors")
        save_file(self._optimizer_tensors(), part / "optimizer.safetensors")
        hashes = {file.name: sha256(file) for file in sorted(part.iterdir())}
        (part / "manifest.json").write_text(json.dumps({"step": self.step, "sha256": hashes, "settings": lasting(self.settings)}), encoding="utf-8")
        for file in part.iterdir():
            sync(file)
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)
        sync(final.parent)
        for old in self.checkpoints()[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)

    def checkpoints(self) -> list[Path]:
        """Finished checkpoint folders, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def resume(self) -> None:
        """Goes on from the newest checkpoint whose files are those of its manifest; damaged ones are named and passed over.

        Settings that have changed since are told; another optimizer cannot use what was saved, which is a ValueError.
        """
        for folder in reversed(self.checkpoints()):
            problem = damage(folder)
            if problem:
                print(f"{folder}: {problem}; going back to the checkpoint before")
                continue
            manifest = json.loads((folder / "manifest.json").read_text())
            tell_changes(folder, manifest.get("settings", {}), lasting(self.settings))
            self.model.load_state_dict(load_file(folder / "model.safetensors"))
            self.ema.weights = load_file(folder / "ema.safetensors")
            device = next(self.model.parameters()).device
            self.ema.weights = {name: tensor.to(device) for name, tensor in self.ema.weights.items()}
            self._load_optimizer(load_file(folder / "optimizer.safetensors"))
            self.step = manifest["step"]
            break
        self._forget_log_after(self.step)

    def _forget_log_after(self, step: int) -> None:
        """Lines logged after the checkpoint will be written again; a line that was cut off is dropped too."""
        log = self.folder / "log.jsonl"
        if log.exists():
            lines = [line for line in log.read_text(errors="replace").splitlines() if _step_of(line) <= step]
            part = log.with_name(f".{log.name}.part")
            part.write_text("".join(line + "\n" for line in lines))
            os.replace(part, log)

    def _parameter_names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in self.model.named_parameters()}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        names = self._parameter_names()
        states = [(parameter, state) for optimizer in self.optimizers for parameter, state in optimizer.state.items()]
        return {f"{names[parameter]}|{key}": value for parameter, state in states for key, value in state.items()}

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        names = self._parameter_names()
        owners = {names[one]: (one, optimizer) for optimizer in self.optimizers for group in optimizer.param_groups for one in group["params"]}
        for key, value in tensors.items():
            name, field = key.split("|")
            parameter, optimizer = owners[name]
            optimizer.state[parameter][field] = value if field == "step" else value.to(parameter.device)


def lasting(settings: OptimizerSettings) -> dict[str, Any]:
    """The settings that shape the weights: all but how often something is written."""
    return {key: value for key, value in as_dict(settings).items() if not key.endswith("_every")}


def tell_changes(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Prints which settings of a run differ from those of the checkpoint it goes on from; ValueError for another optimizer."""
    changed = {key: (old, now[key]) for key, old in before.items() if key in now and old != now[key]}
    if "optimizer" in changed:
        old, new = changed["optimizer"]
        raise ValueError(
            f"{folder}: was saved by a run with optimizer {old!r}, the settings say {new!r}. "
            f"Go on with {old!r}, or begin in another run folder with --init-from"
        )
    if changed:
        print(f"{folder}: going on with other settings: {', '.join(f'{key} {old} -> {new}' for key, (old, new) in changed.items())}")


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint folder, "" where nothing is."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        hashes, own_name = dict(manifest["sha256"]), f"step-{manifest['step']:07d}"
        dict(manifest.get("settings", {}))  # older ones have none
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    if own_name != folder.name:
        return f"its manifest is that of {own_name}"
    for name in CHECKPOINT_FILES:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != hashes.get(name):
            return f"{name} is not what was saved (its hash differs)"
    return ""


def _step_of(line: str) -> float:
    """The step of a line of the log; infinity for one that is not whole."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
