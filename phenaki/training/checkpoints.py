"""Checkpoints of a run: folders that are there whole or not at all, and that are model folders, too.

checkpoints/step-0000200/ holds config.json and the averaged weights (`phenaki.load` takes it), the weights as they are,
the optimiser's state, and a manifest with the hash of every file. It is written beside its final name, synced, and renamed
when it is whole. What is read is checked against the manifest before a tensor is used. Nothing is ever unpickled.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import load_file, save_file
from torch import Tensor

from phenaki.atomic import free_name, open_to_others, put, sha256, sync
from phenaki.locks import take_folder

WEIGHTS, OPTIMIZER, DISCRIMINATOR, MANIFEST = "weights.safetensors", "optimizer.safetensors", "discriminator.safetensors", "manifest.json"
NEEDED = (WEIGHTS, OPTIMIZER)
TOKENS_AND_TEXTS = "tokens and texts"  # in a generator run's identity: hashes of what its tokens and texts depend on; one has to match
# What the loss on held-out clips depends on: settings, and the clips.
MEASURED_BY = ("losses", "num_slices", "image_prob", "from_text_prob", "tasks", "per_slice_prob", "held_out")
MAX_VALUE_CHARS = 80  # of a setting in a note


@dataclass(frozen=True)
class RunState:
    """Where a run stands, besides its tensors; a manifest has these fields by name."""

    step: int = 0  # steps done
    skipped_in_a_row: int = 0  # steps just before this one whose gradient was not finite (NaN or infinite)
    since: int = 0  # steps since the last line of the log
    sums: dict[str, float] = field(default_factory=dict)  # of these steps' losses by name
    validation: float | None = None  # loss on held-out clips


def take(run: Path) -> BinaryIO:
    """Locks a run's folder for this process while the returned file is open. BusyError where another process has locked it."""
    return take_folder(run, f"{run}: another process trains in this folder; wait for it, or give another --out")


def checkpoint_folders(run: Path) -> list[Path]:
    """Finished checkpoint folders, oldest first; what else lies there is left alone."""
    steps = {folder: folder.name.removeprefix("step-") for folder in (run / "checkpoints").glob("step-*")}
    return sorted((folder for folder, step in steps.items() if step.isdecimal()), key=lambda folder: int(steps[folder]))


def begin_checkpoint(run: Path, step: int) -> Path:
    """An empty part folder for the files of a checkpoint. What kills have left half written or half removed is cleared away."""
    part = run / "checkpoints" / f".part-step-{step:07d}"
    for left in (run / "checkpoints").glob(".*-step-*"):
        remove(left)
    part.mkdir(parents=True)
    return part


def save_part(tensors: dict[str, Tensor], path: Path) -> None:
    """Tensors by name, as one safetensors file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    open_to_others(path)


def finish_checkpoint(part: Path, state: RunState, settings: dict[str, Any], identity: dict[str, Any]) -> Path:
    """Hashes, syncs and names what lies in the part folder; returns the checkpoint.

    identity: what a run must have alike to resume from it; settings: what of them has changed is noted then.
    """
    hashes = {file.name: sha256(file) for file in sorted(part.iterdir())}
    text = json.dumps({**vars(state), "sha256": hashes, "settings": settings, "identity": identity})
    (part / MANIFEST).write_text(text, encoding="utf-8")
    (part / f"{MANIFEST}.sha256").write_text(hashlib.sha256(text.encode()).hexdigest(), encoding="utf-8")
    for file in part.iterdir():
        sync(file)
    final = part.with_name(part.name.removeprefix(".part-"))
    discard(final)
    put(part, final)
    return final


def remove(folder: Path) -> None:
    """A folder with all that is in it; of a link the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def discard(folder: Path) -> None:
    """Removes a checkpoint; it loses its name first, so that none is ever seen half removed."""
    if folder.exists():
        old = folder.with_name(f".old-{folder.name}")
        if os.path.lexists(old):
            remove(old)
        os.replace(folder, old)
        remove(old)


def set_aside(folder: Path) -> None:
    """Renames a damaged checkpoint to damaged-step-N, or damaged-step-N-1, -2 and so on: no run resumes from it, and its files are kept."""
    aside = folder.with_name(f"damaged-{folder.name}")
    if os.path.lexists(aside):
        aside = free_name(aside)
    os.replace(folder, aside)


def drop_old(run: Path, keep_last: int, keep_best: bool) -> None:
    """Removes all but the newest checkpoints and the one with the lowest validation loss."""
    folders = checkpoint_folders(run)
    kept = set(folders[-keep_last:])
    if keep_best and (best := best_checkpoint(run)):
        kept.add(best)
    for folder in folders:
        if folder not in kept:
            discard(folder)


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest loss on held-out clips; None where none has a finite one.

    Compared are losses that are measured as the newest checkpoint's is (`MEASURED_BY`): others have another scale.
    """
    folders = [folder for folder in checkpoint_folders(run) if not damaged_manifest(folder)]
    manifests = {folder: read_manifest(folder) for folder in folders}
    losses: dict[Path, float] = {}
    for folder in folders:
        if changed(measured_by(manifests[folder]), measured_by(manifests[folders[-1]])):
            continue
        loss = manifests[folder].get("validation")
        if loss is not None and math.isfinite(loss):
            losses[folder] = loss
    return min(losses, key=losses.get) if losses else None


def measured_by(manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint that its loss on held-out clips depends on; None for those that it does not have."""
    return {name: manifest["settings"].get(name) for name in MEASURED_BY}


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest: the fields of `RunState`, and the tables "sha256" (a hash for each file name), "settings" and "identity".

    Not checked (`damaged_manifest` does that): OSError or ValueError where it cannot be read.
    """
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def read_state(folder: Path) -> RunState:
    """The state that a checkpoint's manifest holds; KeyError where a field is missing."""
    manifest = read_manifest(folder)
    return RunState(**{name: manifest[name] for name in RunState.__dataclass_fields__})


def read_part(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of part.safetensors, or of its shards part-1.safetensors, part-2.safetensors, ..."""
    tensors: dict[str, Tensor] = {}
    for name in read_manifest(folder)["sha256"]:
        if name.endswith(".safetensors") and name.removesuffix(".safetensors").split("-")[0] == part:
            tensors |= load_file(folder / name)
    return tensors


def damaged_manifest(folder: Path) -> str:
    """What is wrong with a checkpoint's manifest, "" where nothing is."""
    try:
        content = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(content).hexdigest() != (folder / f"{MANIFEST}.sha256").read_text(encoding="utf-8"):
            return "its manifest is not what was saved (its hash differs)"
        manifest = json.loads(content)
        for table in ("sha256", "settings", "identity"):
            dict(manifest[table])  # raises where it is no table
        read_state(folder)
        own_name = f"step-{manifest['step']:07d}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"its manifest cannot be read ({error})"
    return "" if own_name == folder.name else f"its manifest is that of {own_name}"


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint folder, "" where nothing is."""
    if problem := damaged_manifest(folder):
        return problem
    hashes = read_manifest(folder)["sha256"]
    for name in {*hashes, *NEEDED}:
        if Path(name).name != name or not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != hashes.get(name):
            return f"{name} is not what was saved (its hash differs)"
    return ""


def newest_whole(run: Path, on_damage: Callable[[Path, str], None] = lambda folder, problem: None) -> Path | None:
    """The checkpoint that a run resumes from: the newest whose files are those of its manifest; None where there is none.

    on_damage: called with each newer one's folder and what is wrong with it.
    """
    for folder in reversed(checkpoint_folders(run)):
        problem = damage(folder)
        if not problem:
            return folder
        on_damage(folder, problem)
    return None


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two tables of settings, each as "name old -> new"; tables in tables are compared entry by entry.

    Keys missing in `before` are skipped (the setting is newer); so are falsy ones missing in `now` (it was off and is gone).
    """
    lines = []
    for key in sorted(before):
        old, new = before[key], now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changed(old, new)
        elif old != new and (old or key in now):
            lines.append(f"{key} {_brief(old)} -> {_brief(new)}")
    return lines


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[: MAX_VALUE_CHARS - 4]} ..."


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """ValueError where a checkpoint is of another network than the run that would resume from it, or of one trained on other tokens."""
    before, now = read_manifest(folder)["identity"], json.loads(json.dumps(identity))
    saved = before.get(TOKENS_AND_TEXTS, [])
    saved_hashes = {saved} if isinstance(saved, str) else set(saved)  # a string, in older versions
    if saved_hashes & set(now.get(TOKENS_AND_TEXTS, [])):
        now[TOKENS_AND_TEXTS] = saved
    if other := changed(before, now):
        if any(one.startswith(TOKENS_AND_TEXTS) for one in other):
            other.append(f"so its tokenizer or text encoder is another than now; --tokenizer {folder} goes on with its own")
        raise ValueError(
            f"{folder}: was saved by a run that was not this one: {', '.join(other)}. Set it back to go on, "
            f"or begin in another run folder (--init-from {folder} starts from its weights where the widths are the same)"
        )
