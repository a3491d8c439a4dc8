"""Many scripts over a Ray cluster: each is one task, done again elsewhere when the worker or machine that had it is lost.

A task carries all that it needs, the story and its pictures and videos, and returns the bytes of the finished file, which are
written here, whole or not at all: the machines need no folder in common. They need this package with the same torch, and the
model: a shipped name, a hub id, or a folder that lies under the same path on each. A machine whose package, torch or weights
are others refuses the task, for it would compute other bits. The half of a video that a lost worker leaves behind is lost.

Ray itself runs whatever code reaches a cluster: use only one that nobody else can reach.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from phenaki import __version__
from phenaki.atomic import write_bytes
from phenaki.checkpoint import find_model
from phenaki.rendering import Outcome, RenderError, RenderSettings, Watcher, loaded, reason_of, render, settled_dtype
from phenaki.rendering_processes import MAX_WORKERS, check_num_workers
from phenaki.script_folder import Job
from phenaki.story import Story
from phenaki.story_for_model import model_info
from phenaki.story_formats import FILE_FIELDS

MAX_RETRIES = 3  # of a task whose worker died


@dataclass(frozen=True)
class PackedFile:
    """A picture or video of a scene, as it travels."""

    scene: int
    field: str  # which of the scene's
    name: str  # without folders
    data: bytes


@dataclass(frozen=True)
class Parcel:
    """A script as it travels to another machine."""

    output_name: str
    story: dict[str, Any]  # as Story.to_dict gives it, without the files
    files: tuple[PackedFile, ...]
    settings: RenderSettings
    needed: dict[str, Any]  # what the machine must have, see `versions`


@dataclass(frozen=True)
class Delivery:
    """What comes back: the finished file, or why there is none."""

    outcome: Outcome
    video: bytes


def import_ray() -> ModuleType:
    """Ray, where it is installed; RenderError where it is not."""
    try:
        import ray
    except ImportError as error:
        raise RenderError("--ray needs Ray, which is not installed: pip install 'ray>=2.40'; --workers needs nothing") from error
    return ray


def render_on_ray(
    jobs: Sequence[Job], settings: RenderSettings, watcher: Watcher, address: str, num_workers: int | None = None
) -> Iterator[Outcome]:
    """Makes the jobs over a Ray cluster, one CPU each (with device cuda: and one GPU); outcomes as they come.

    address: as `ray.init` takes it: "auto", "host:port", "ray://host:port", or "local" for one of this machine's own.
    num_workers: scripts in work at a time; by default as many as the cluster has room for. With device auto they are all made
    on GPUs where the cluster has any, else all on CPUs. RenderError where there is no cluster.
    """
    ray = import_ray()
    with connected(ray, address):
        settings = replace(settings, model=lasting_name(settings.model), device=cluster_device(settings.device, ray.cluster_resources()))
        settings = replace(settings, dtype=settled_dtype(settings)) if settings.device == "cpu" else settings  # as on this machine
        room = ray.cluster_resources().get("GPU" if settings.device == "cuda" else "CPU", 1)
        if num_workers is not None:
            check_num_workers(num_workers)
        num_workers = num_workers or min(max(int(room), 1), MAX_WORKERS)
        num_gpus = 1 if settings.device == "cuda" else 0
        task = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=MAX_RETRIES, retry_exceptions=False)(render_parcel)
        yield from rendered(ray, task, iter(jobs), settings, num_workers)


def rendered(ray: ModuleType, task: Any, waiting: Iterator[Job], settings: RenderSettings, num_workers: int) -> Iterator[Outcome]:
    """Outcomes of tasks, of which so many are with the cluster at a time: what waits takes no memory there."""
    needed, running = versions(settings.model), {}
    try:
        while True:
            while len(running) < num_workers and (job := next(waiting, None)) is not None:
                try:
                    running[task.remote(packed(job, settings, needed))] = job
                except (ValueError, OSError) as error:
                    yield Outcome(job, reason_of(error))
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            yield received(ray, done[0], running.pop(done[0]))
    finally:
        for reference in running:
            with contextlib.suppress(Exception):  # the cluster may be gone
                ray.cancel(reference, force=True)


def received(ray: ModuleType, reference: Any, job: Job) -> Outcome:
    """Writes what came back under the job's name."""
    try:
        delivery = ray.get(reference)
        if not delivery.outcome.error:
            write_bytes(job.output, delivery.video)
    except ray.exceptions.RayTaskError as error:  # of the task's own: not tried again
        return Outcome(job, reason_of(error.cause))
    except ray.exceptions.RayError as error:
        return Outcome(job, f"lost on the cluster after {1 + MAX_RETRIES} tries: {first_line(error)}", tries=1 + MAX_RETRIES)
    except OSError as error:
        return Outcome(job, reason_of(error))
    return replace(delivery.outcome, job=job)


def first_line(error: Exception) -> str:
    """Of its words; its type where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def connected(ray: ModuleType, address: str) -> Iterator[None]:
    """A connection to a cluster; one that the program has already is used, and stays."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise RenderError(f"--ray {address}: no Ray cluster that can be reached there ({first_line(error)})") from error
    try:
        yield
    finally:
        ray.shutdown()


def cluster_device(device: str, resources: dict[str, float]) -> str:
    """The one kind of device that all tasks use: bits of CPUs and of GPUs differ."""
    if device == "auto":
        return "cuda" if resources.get("GPU") else "cpu"
    return "cuda" if device.startswith("cuda") else device  # a task sees the GPU that it was given, and no other


def lasting_name(model: str) -> str:
    """A model's name as other processes find it too: a folder by its whole path."""
    found = find_model(model)
    return str(found.resolve()) if found == Path(model) else model


def versions(model: str) -> dict[str, Any]:
    """What the bits of a video depend on besides story and settings; weights by their SHA-256."""
    return {"phenaki": __version__, "torch": torch.__version__, "weights": model_info(model).files}


# ---- there and back ------------------------------------------------------------------------------------------------


def packed(job: Job, settings: RenderSettings, needed: dict[str, Any]) -> Parcel:
    """A job's script with the contents of its files."""
    values, files = Story.load(job.script).to_dict(), []
    for index, scene in enumerate(values["scenes"]):
        for field in FILE_FIELDS:
            if field in scene:
                path = Path(scene.pop(field))
                files.append(PackedFile(index, field, path.name, path.read_bytes()))
    return Parcel(job.output.name, values, tuple(files), settings, needed)


def unpacked(parcel: Parcel, folder: Path) -> Story:
    """The story, its files put into a folder, each into one of its own: two may have the same name."""
    values = parcel.story
    scenes = [dict(scene) for scene in values["scenes"]]
    for number, file in enumerate(parcel.files):
        path = folder / str(number) / Path(file.name).name
        path.parent.mkdir()
        path.write_bytes(file.data)
        scenes[file.scene][file.field] = str(path)
    return Story.from_dict({**values, "scenes": scenes})


def render_parcel(parcel: Parcel) -> Delivery:
    """The task: makes a parcel's video on the machine that it came to. The model stays loaded for the next one."""
    with tempfile.TemporaryDirectory(prefix="phenaki-") as folder:
        output = Path(folder) / Path(parcel.output_name).name
        job = Job(output, output)
        try:
            check_versions(parcel)
            torch.set_num_threads(1)
            phenaki = loaded(parcel.settings)
            story = unpacked(parcel, Path(folder))
        except Exception as error:
            return Delivery(Outcome(job, reason_of(error)), b"")
        outcome = render(phenaki, story, job, parcel.settings, Watcher())
        return Delivery(outcome, b"" if outcome.error else output.read_bytes())


def check_versions(parcel: Parcel) -> None:
    """RenderError where this machine would compute other bits than the one that sent the parcel."""
    for name, own in versions(parcel.settings.model).items():
        if own != parcel.needed[name]:
            other = "other weights" if name == "weights" else f"{name} {own}, not {parcel.needed[name]}"
            raise RenderError(f"a machine of the cluster has {other} for {parcel.settings.model}: install the same there")
