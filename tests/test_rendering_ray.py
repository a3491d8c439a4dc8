"""Scripts over a Ray cluster: parcels without one, the loop over its tasks with a stand-in, and a real one where Ray is installed."""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_rendering import SCRIPTS, Notebook, alone, kill_holder_of, model, scripts, settings  # noqa: F401 - fixtures

import phenaki.rendering_ray as rendering_ray
from phenaki.rendering import RenderError, Watcher, render_folder
from phenaki.rendering_ray import (
    Delivery,
    PackedFile,
    check_versions,
    cluster_device,
    lasting_name,
    packed,
    render_on_ray,
    render_parcel,
    unpacked,
    versions,
)
from phenaki.script_folder import find_jobs
from phenaki.story import Story
from phenaki.video import Video

# ruff: noqa: F811 - a fixture's name as a parameter


# ---- parcels -------------------------------------------------------------------------------------------------------


def test_a_parcel_becomes_the_same_bytes_as_its_script(scripts, settings, alone, tmp_path):
    for number, colour in enumerate(("red", "blue")):
        (scripts / str(number)).mkdir()
        Image.new("RGB", (40, 40), colour).save(scripts / str(number) / "house.png")
    (scripts / "b [x].yaml").write_text(
        "scenes:\n  - {prompt: a bear, seconds: 2, image: 0/house.png}\n  - {prompt: a house, seconds: 2, cut: true, end_image: 1/house.png}\n"
    )
    job = find_jobs(scripts, tmp_path / "out")[1]
    parcel = packed(job, settings, versions(settings.model))
    assert str(tmp_path) not in repr(parcel.story) and [(file.scene, file.field, file.name) for file in parcel.files] == [
        (0, "image", "house.png"), (1, "end_image", "house.png"),
    ]  # fmt: skip
    delivery = render_parcel(parcel)
    assert delivery.outcome.error == "" and delivery.outcome.num_frames == 32 and delivery.video == alone("b [x].yaml")


def test_the_names_in_a_parcel_lead_nowhere_else(scripts, settings, tmp_path):
    parcel = packed(find_jobs(scripts, tmp_path)[0], settings, {})
    file = PackedFile(0, "image", "../../up.png", b"x")
    story = unpacked(replace(parcel, files=(file,)), tmp_path / "scripts")
    assert story.scenes[0].image == str(tmp_path / "scripts" / "0" / "up.png") and not (tmp_path / "up.png").exists()


def test_a_machine_that_computes_other_bits_refuses(scripts, settings, tmp_path):
    needed = versions(settings.model)
    parcel = packed(find_jobs(scripts, tmp_path)[0], settings, needed)
    check_versions(parcel)
    for name, words in (("torch", "torch .*, not other"), ("phenaki", "phenaki .*, not other"), ("weights", "other weights")):
        with pytest.raises(RenderError, match=words):
            check_versions(replace(parcel, needed={**needed, name: "other"}))
    delivery = render_parcel(replace(parcel, needed={**needed, "torch": "other"}))
    assert "install the same there" in delivery.outcome.error and delivery.video == b""
    assert "nosuch" in render_parcel(replace(parcel, settings=replace(settings, model="nosuch"))).outcome.error


def test_models_and_devices_mean_the_same_everywhere(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert lasting_name(model.name) == str(model.resolve()) and lasting_name("storybook") == "storybook"
    assert cluster_device("auto", {"CPU": 8.0}) == "cpu" and cluster_device("auto", {"CPU": 8.0, "GPU": 1.0}) == "cuda"
    assert cluster_device("cuda:3", {}) == "cuda" and cluster_device("cpu", {"GPU": 2.0}) == "cpu"


# ---- the loop, with a stand-in -------------------------------------------------------------------------------------


@dataclass(eq=False)
class Reference:
    """What stands for a task's result until it is asked for."""

    name: str
    work: Callable[[], Delivery]


class StandIn:
    """Ray as far as it is used here: a task runs when its result is asked for, the last that came first."""

    def __init__(self, lost: str = "", words: str = "the worker died\nat length", num_cpus: float = 2.0):
        self.words, self.num_cpus = words, num_cpus
        self.lost, self.asked, self.most, self.cancelled, self.running, self.up = lost, [], 0, [], [], False
        lost = type("RayError", (Exception,), {})
        self.exceptions = SimpleNamespace(RayError=lost, RayTaskError=type("RayTaskError", (lost,), {}))

    def is_initialized(self):
        return self.up

    def init(self, address, **options):
        if address != "auto":
            raise ConnectionError(f"nobody at {address}\nand more words")
        self.up = True

    def shutdown(self):
        self.up = False

    def cluster_resources(self):
        return {"CPU": self.num_cpus}

    def remote(self, **options):
        self.options = options
        return lambda function: SimpleNamespace(remote=lambda parcel: self.submit(function, parcel))

    def submit(self, function, parcel):
        self.asked.append(parcel.output_name)
        reference = Reference(parcel.output_name, lambda: function(parcel))
        self.running.append(reference)
        self.most = max(self.most, len(self.running))
        return reference

    def wait(self, references, num_returns):
        assert set(map(id, references)) == set(map(id, self.running))
        return [references[-1]], references[:-1]

    def get(self, reference):
        self.running.remove(reference)
        if reference.name == self.lost:
            raise self.exceptions.RayError(self.words)
        try:
            return reference.work()
        except Exception as cause:
            failed = self.exceptions.RayTaskError("ray::render_parcel() (pid=1)\n" + str(cause))
            failed.cause = cause
            raise failed from None

    def cancel(self, reference, force):
        self.cancelled.append(reference.name)


def test_each_script_goes_to_the_cluster_once(scripts, settings, alone, tmp_path, monkeypatch):
    ray = StandIn()
    monkeypatch.setattr(rendering_ray, "import_ray", lambda: ray)
    report = render_folder(scripts, tmp_path / "out", settings, runner=partial(render_on_ray, address="auto"))
    assert sorted(ray.asked) == ["a.mp4", "b [x].mp4", "c.mp4"] and ray.most == 2 and not ray.up and not ray.cancelled
    assert ray.options == {"num_cpus": 1, "num_gpus": 0, "max_retries": 3, "retry_exceptions": False}
    assert len(report.made) == 3 and [path.name for path in sorted((tmp_path / "out").iterdir())] == sorted(ray.asked)
    for outcome in report.made:
        assert outcome.job.output.read_bytes() == alone(outcome.job.script.name)


def test_a_large_cluster_has_work_for_as_many_as_are_allowed(scripts, settings, tmp_path, monkeypatch):
    ray = StandIn(num_cpus=5000.0)
    monkeypatch.setattr(rendering_ray, "import_ray", lambda: ray)
    assert len(render_folder(scripts, tmp_path / "out", settings, runner=partial(render_on_ray, address="auto")).made) == 3


@pytest.mark.parametrize(("words", "told"), [("the worker died\nat length", "the worker died"), ("", "RayError")])
def test_a_script_that_the_cluster_loses_fails_alone(scripts, settings, tmp_path, monkeypatch, words, told):
    ray = StandIn(lost="b [x].mp4", words=words)
    monkeypatch.setattr(rendering_ray, "import_ray", lambda: ray)
    report = render_folder(scripts, tmp_path / "out", settings, runner=partial(render_on_ray, address="auto", num_workers=3))
    assert len(report.made) == 2 and [outcome.error for outcome in report.failed] == [f"lost on the cluster after 4 tries: {told}"]
    assert ray.most == 3 and not (tmp_path / "out" / "b [x].mp4").exists()


def test_a_machine_of_the_cluster_that_fails_says_why(scripts, settings, tmp_path, monkeypatch):
    def full(prefix):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(rendering_ray, "import_ray", StandIn)
    monkeypatch.setattr(rendering_ray.tempfile, "TemporaryDirectory", full)
    report = render_folder(scripts, tmp_path / "out", settings, runner=partial(render_on_ray, address="auto"))
    assert {outcome.error for outcome in report.failed} == {"[Errno 2] No usable temporary directory found"} and len(report.failed) == 3
    assert {outcome.tries for outcome in report.failed} == {1}


def test_a_clip_that_a_script_goes_on_from_is_not_sent_to_be_written_over(scripts, settings, tmp_path, monkeypatch):
    """On the other machine the clip lies elsewhere, and its name is free."""
    ray = StandIn()
    monkeypatch.setattr(rendering_ray, "import_ray", lambda: ray)
    Video(np.full((9, 32, 32, 3), 200, np.uint8), 8.0).save(scripts / "bear.mp4")
    before = (scripts / "bear.mp4").read_bytes()
    (scripts / "bear.yaml").write_text("scenes:\n  - {prompt: a bear, seconds: 2, video: bear.mp4}\n")
    report = render_folder(scripts, scripts, replace(settings, overwrite=True), runner=partial(render_on_ray, address="auto"))
    assert len(report.made) == 3 and "bear.mp4" not in ray.asked and (scripts / "bear.mp4").read_bytes() == before
    assert [failed.error for failed in report.failed] == [
        f"{scripts / 'bear.mp4'}: would write over bear.mp4, which it is made from; give the result another name"
    ]


def test_a_stopped_run_takes_its_tasks_back(scripts, settings, tmp_path, monkeypatch):
    ray = StandIn()
    monkeypatch.setattr(rendering_ray, "import_ray", lambda: ray)
    (tmp_path / "out").mkdir()
    outcomes = render_on_ray(find_jobs(scripts, tmp_path / "out"), settings, Watcher(), "auto", 2)
    next(outcomes)
    outcomes.close()
    assert ray.asked == ["a.mp4", "b [x].mp4"] and ray.cancelled == ["a.mp4"] and not ray.up


def test_a_cluster_that_is_not_there_is_told(scripts, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(rendering_ray, "import_ray", StandIn)
    with pytest.raises(RenderError, match=r"--ray far:1: no Ray cluster that can be reached there \(nobody at far:1\)"):
        list(render_on_ray(find_jobs(scripts, tmp_path), settings, Watcher(), "far:1"))
    with pytest.raises(RenderError, match="0 workers"):
        list(render_on_ray(find_jobs(scripts, tmp_path), settings, Watcher(), "auto", 0))


# ---- with Ray itself -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the worker by /proc")
def test_a_worker_of_a_real_cluster_is_killed(scripts, settings, alone, tmp_path, monkeypatch):
    """Two workers; one is killed in the middle of a story, which another one makes again. The same bytes as without Ray."""
    ray = pytest.importorskip("ray")
    (scripts / "a.txt").write_text("[60s] a bear walks\n")
    wanted, out, temporary = {name: alone(name) for name in SCRIPTS}, tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary.resolve()))  # where the workers make their videos
    monkeypatch.setenv("PYTHONPATH", str(Path(rendering_ray.__file__).resolve().parents[1]))
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:  # the name of a socket has 107 bytes at most
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=short)
        try:
            killed = kill_holder_of(lambda: list(temporary.glob("phenaki-*/.a.part.mp4")))
            report = render_folder(scripts, out, settings, runner=partial(render_on_ray, address="local"), watcher=(book := Notebook()))
            assert ray.is_initialized(), "a connection that was there stays"
        finally:
            ray.shutdown()
    assert len(killed) == 1 and len(report.made) == 3 and not report.failed and len(book.outcomes) == 3
    for job in find_jobs(scripts, out):
        assert job.output.read_bytes() == wanted[job.script.name]
    assert Story.load(scripts / "a.txt").seconds == 60 and sorted(path.name for path in out.iterdir()) == ["a.mp4", "b [x].mp4", "c.mp4"]
