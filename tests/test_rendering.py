"""A folder of scripts: each becomes the video that it becomes alone, however many are made at once and whatever fails or dies."""

import json
import os
import shutil
import signal
import sys
import threading
import time
import unicodedata
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import fails, run, runner
from test_pipeline import save_tiny

import phenaki.data.clip_decoder
import phenaki.pipeline
import phenaki.rendering
import phenaki.video_files
from phenaki.checkpoint import load_model, save_model
from phenaki.cli import app
from phenaki.pipeline import Phenaki, load
from phenaki.recording import generate_to_file
from phenaki.rendering import Outcome, RenderError, RenderSettings, Watcher, render_folder
from phenaki.rendering_processes import MAX_TRIES, RenderWorker, render_in_processes
from phenaki.rendering_program import choose_runner
from phenaki.script_folder import Job, ScriptFolderError, find_jobs, open_output
from phenaki.text import TextEncoder
from phenaki.video import Video
from phenaki.video_encoders import part_path

SCRIPTS = {
    "a.txt": "[1.5s] a bear walks\n[2s] a panda sleeps\n",
    "b [x].yaml": "seed: 4\nscenes:\n  - {prompt: a red house, seconds: 2}\n",
    "c.srt": "1\n00:00:00,000 --> 00:00:02,500\na bear sits\n",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), TextEncoder.load().fingerprint)


@pytest.fixture(scope="module")
def settings(model) -> RenderSettings:
    return RenderSettings(str(model), "cpu")


@pytest.fixture
def scripts(tmp_path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def alone(settings, scripts, tmp_path):
    """The bytes that a script becomes when it is made by itself."""

    def make(name: str) -> bytes:
        path = tmp_path / "alone.mp4"
        generate_to_file(load(settings.model, "cpu"), scripts / name, path, progress=False)
        return path.read_bytes()

    return make


@pytest.fixture
def no_models(monkeypatch):
    """Loading a model fails the test."""

    def load(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(phenaki.rendering, "load", load)


class Notebook(Watcher):
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.outcomes, self.counts, self.began = [], [], {}, None

    def begin(self, num_kept, num_jobs):
        self.began = num_kept, num_jobs

    def frames(self, job, done, total):
        self.counts.setdefault(job.script.name, []).append((done, total))

    def note(self, text):
        self.notes.append(text)

    def outcome(self, outcome):
        self.outcomes.append(outcome)


# ---- which video of which script -----------------------------------------------------------------------------------


def test_every_script_of_a_folder_has_a_video_of_its_name(scripts):
    for other in (".hidden.txt", "README.md", "clip.mp4"):
        (scripts / other).write_text("x")
    (scripts / "folder.txt").mkdir()
    (scripts / "d.txt").symlink_to(scripts / "a.txt")
    jobs = find_jobs(scripts, "out", ".webm")
    assert [(job.script.name, str(job.output)) for job in jobs] == [
        ("a.txt", "out/a.webm"), ("b [x].yaml", "out/b [x].webm"), ("c.srt", "out/c.webm"), ("d.txt", "out/d.webm"),
    ]  # fmt: skip


@pytest.mark.parametrize("one, other", [("a.txt", "a.yaml"), ("Bear.txt", "bear.srt"), ("\u00e9.txt", unicodedata.normalize("NFD", "\u00e9.json"))])
def test_two_scripts_of_one_video_are_refused_before_anything_is_made(scripts, settings, tmp_path, no_models, one, other):
    for name in (one, other):
        (scripts / name).write_text("a bear\n")
    with pytest.raises(ScriptFolderError, match="would both become"):
        render_folder(scripts, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_words_that_the_model_never_learnt_are_told_by_script(scripts, settings, tmp_path, monkeypatch):
    info = phenaki.rendering.model_info(settings.model)
    for name in "defgh":
        (scripts / f"{name}.txt").write_text("a wizard walks\na wizard brews\n")
    monkeypatch.setattr(phenaki.rendering, "model_info", lambda name: replace(info, words=("bear", "panda", "red", "house", "walks", "sleeps")))
    notebook, skip = Notebook(), lambda jobs, settings, watcher: (outcome for outcome in ())
    render_folder(scripts, tmp_path / "out", settings, runner=skip, watcher=notebook)
    told = [f"{name}.txt: {info.name} was not trained on 'wizard', 'brews'; it may not show what that means" for name in "defg"]
    assert notebook.notes == [f"c.srt: {info.name} was not trained on 'sits'; it may not show what that means", *told, "and 1 script more"]
    monkeypatch.undo()
    notebook = Notebook()
    render_folder(scripts, tmp_path / "out", settings, runner=skip, watcher=notebook)
    assert not notebook.notes, "a model that does not name its words"


def test_links_that_lead_out_of_the_folder_are_refused(scripts, tmp_path):
    (tmp_path / "secret.txt").write_text("a bear\n")
    (scripts / "z.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ScriptFolderError, match=r"z\.txt is a link that leaves the folder"):
        find_jobs(scripts, tmp_path / "out")


def test_a_link_that_leads_to_itself_does_not_stop_the_others(scripts, tmp_path):
    (scripts / "z.txt").symlink_to("z.txt")
    assert scripts / "z.txt" in [job.script for job in find_jobs(scripts, tmp_path / "out")], "it fails by itself, when it is read"


def test_folders_that_cannot_be(scripts, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, words in (("nosuch", "there is none"), ("scripts/a.txt", "there is a file"), ("empty", "holds no story scripts")):
        with pytest.raises(ScriptFolderError, match=words):
            find_jobs(tmp_path / folder, tmp_path / "out")
    with pytest.raises(ScriptFolderError, match=r"'\.gif': needed \.mp4 or \.webm"):
        find_jobs(scripts, tmp_path / "out", ".gif")
    for folder in ("scripts/a.txt", "nosuch/out"):
        with pytest.raises(ScriptFolderError, match="no folder that videos can be written to"):
            open_output(tmp_path / folder)


# ---- in this process -----------------------------------------------------------------------------------------------


def test_a_folder_becomes_the_videos_that_its_scripts_become_alone(scripts, settings, alone, tmp_path):
    book = Notebook()
    report = render_folder(scripts, tmp_path / "out", settings, watcher=book)
    assert [outcome.num_frames for outcome in report.made] == [28, 16, 20] and not report.kept and not report.failed
    assert book.began == (0, 3) and book.outcomes == list(report.made) and not book.notes
    assert book.counts["a.txt"][-1] == (28, 28) and len(book.counts["a.txt"]) > 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mp4", "b [x].mp4", "c.mp4"]
    for outcome in report.made:
        assert outcome.job.output.read_bytes() == alone(outcome.job.script.name)


def test_what_is_finished_is_kept_and_what_was_made_from_else_is_told(scripts, settings, tmp_path, monkeypatch):
    out = tmp_path / "out"
    render_folder(scripts, out, settings)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(phenaki.rendering, "load", None)  # needs no model any more
        report = render_folder(scripts, out, settings)
        assert len(report.kept) == 3 and not report.made and not report.failed
        (scripts / "a.txt").write_text("[1.5s] a bear walks\n[2s] a panda sits\n")
        (out / "c.mp4").write_bytes(b"no video")
        report = render_folder(scripts, out, settings)
        assert [job.script.name for job in report.kept] == ["b [x].yaml"] and not report.made
        assert 'scenes[1].prompt = "a panda sleeps", not "a panda sits"' in report.failed[0].error and "--overwrite" in report.failed[0].error
        assert "not a whole video file" in report.failed[1].error
        assert len(render_folder(scripts, out, RenderSettings(settings.model, "cpu", seed=9)).failed) == 3
    assert (out / "a.mp4").stat().st_mtime_ns == before["a.mp4"] and (out / "c.mp4").read_bytes() == b"no video"
    report = render_folder(scripts, out, RenderSettings(settings.model, "cpu", overwrite=True))
    assert len(report.made) == 3 and (out / "b [x].mp4").stat().st_mtime_ns > before["b [x].mp4"]


@pytest.mark.parametrize("changes", [{"num_steps": 3}, {"guidance_scale": 1.5}, {"context": "frames"}])
def test_videos_made_with_other_options_are_made_anew_and_told(scripts, settings, tmp_path, changes):
    out, other = tmp_path / "out", replace(settings, **changes)
    (scripts / "c.srt").unlink()
    render_folder(scripts, out, settings)
    before = (out / "a.mp4").read_bytes()
    book, (name, value) = Notebook(), next(iter(changes.items()))
    report = render_folder(scripts, out, other, watcher=book)
    assert len(report.made) == 2 and not report.kept and not report.failed and (out / "a.mp4").read_bytes() != before
    for note, video in zip(book.notes, ("a.mp4", "b [x].mp4"), strict=True):
        assert note.startswith(f"{out / video}: is made anew, it was made with sampling.{name} = ")
    assert book.notes[0].endswith(f", not {json.dumps(value)}")
    assert len(render_folder(scripts, out, other).kept) == 2


def test_a_video_that_is_there_is_asked_for_its_script_in_another_process(scripts, settings, tmp_path, monkeypatch):
    """Its header may promise more frames than there is memory for."""
    for name in ("a.txt", "c.srt"):
        (scripts / name).unlink()
    render_folder(scripts, tmp_path / "out", settings)
    monkeypatch.setattr(phenaki.video_files, "open_strictly", lambda *given: pytest.fail("it was opened here"))
    monkeypatch.setattr(phenaki.data.clip_decoder, "open_strictly", lambda *given: pytest.fail("it was opened here"))
    assert len(render_folder(scripts, tmp_path / "out", settings).kept) == 1


def test_a_clip_that_another_script_goes_on_from_is_not_written_over(scripts, settings, tmp_path, no_models):
    for script in scripts.iterdir():
        script.unlink()
    Video(np.full((9, 32, 32, 3), 200, np.uint8), 8.0).save(scripts / "clip.mp4")
    before = (scripts / "clip.mp4").read_bytes()
    (scripts / "clip.txt").write_text("a bear\n")
    (scripts / "goes on.yaml").write_text("scenes:\n  - {prompt: a panda, seconds: 2, video: clip.mp4}\n")
    runner = lambda jobs, settings, watcher: (Outcome(job, "not made") for job in jobs)
    report = render_folder(scripts, scripts, replace(settings, overwrite=True), runner=runner)
    assert [failed.job.output.name for failed in report.failed] == ["clip.mp4", "goes on.mp4"] and report.failed[1].error == "not made"
    assert "would write over clip.mp4, which the video of goes on.yaml is made from" in report.failed[0].error
    assert (scripts / "clip.mp4").read_bytes() == before


def test_videos_of_another_picture_are_made_anew_though_it_has_the_same_name(scripts, settings, tmp_path):
    out, book = tmp_path / "out", Notebook()
    for script in scripts.iterdir():
        script.unlink()
    (scripts / "a.txt").write_text("[1s, image x.png] a bear walks\n")
    Image.new("RGB", (16, 16), "red").save(scripts / "x.png")
    render_folder(scripts, out, settings)
    assert len(render_folder(scripts, out, settings).kept) == 1
    Image.new("RGB", (16, 16), "blue").save(scripts / "x.png")
    report = render_folder(scripts, out, settings, watcher=book)
    assert len(report.made) == 1 and "is made anew, it was made with files" in book.notes[0]


def test_videos_of_other_weights_are_made_anew_and_told(scripts, model, tmp_path):
    out, folder, book = tmp_path / "out", tmp_path / "model", Notebook()
    shutil.copytree(model, folder)
    render_folder(scripts, out, RenderSettings(str(folder), "cpu"))
    trained = load_model(folder)
    trained.generator.null_text += 1
    save_model(folder, trained.info, trained.tokenizer, trained.generator)
    report = render_folder(scripts, out, RenderSettings(str(folder), "cpu"), watcher=book)
    assert len(report.made) == 3 and len(book.notes) == 3 and all("is made anew, it was made with weights = " in note for note in book.notes)
    assert len(render_folder(scripts, out, RenderSettings(str(folder), "cpu")).kept) == 3


def test_a_video_that_does_not_say_what_it_was_made_with_is_neither_kept_nor_replaced(scripts, settings, tmp_path, monkeypatch):
    """Those of earlier versions."""
    out, resolved = tmp_path / "out", phenaki.pipeline.resolved_script
    with monkeypatch.context() as patch:
        patch.setattr(phenaki.pipeline, "resolved_script", lambda *given: {k: v for k, v in resolved(*given).items() if k != "made_with"})
        render_folder(scripts, out, settings)
    before = (out / "a.mp4").read_bytes()
    report = render_folder(scripts, out, settings)
    assert not report.made and not report.kept and (out / "a.mp4").read_bytes() == before
    assert all("weights and sampling options that it does not tell" in failed.error and "--overwrite" in failed.error for failed in report.failed)


def test_what_fails_does_not_stop_the_rest(scripts, settings, alone, tmp_path):
    (scripts / "a0.yaml").write_text("scenes:\n  - {prompt: a bear, secnods: 3}\n")
    (scripts / "a1.txt").write_text("bear " * 90)  # only the text encoder finds out
    report = render_folder(scripts, tmp_path / "out", settings)
    assert [outcome.job.script.name for outcome in report.made] == list(SCRIPTS)
    assert "a0.yaml:2: " in report.failed[0].error and "did you mean 'seconds'" in report.failed[0].error
    assert "64 at most" in report.failed[1].error
    assert (tmp_path / "out" / "c.mp4").read_bytes() == alone("c.srt")


def test_an_error_nobody_thought_of_is_told_with_its_type(scripts, settings, tmp_path, monkeypatch):
    stream = Phenaki.stream

    def failing(self, prepared, made):
        if "panda" in prepared.plan.scenes[-1].prompt:
            raise RuntimeError("out of memory")
        return stream(self, prepared, made)

    monkeypatch.setattr(Phenaki, "stream", failing)
    report = render_folder(scripts, tmp_path / "out", settings)
    assert len(report.made) == 2 and [outcome.error for outcome in report.failed] == ["RuntimeError: out of memory"]


class Impatient(Notebook):
    """Stops the run after some chunks."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def frames(self, job, done, total):
        super().frames(job, done, total)
        if sum(map(len, self.counts.values())) == self.after:
            raise KeyboardInterrupt


def test_stopped_it_goes_on_to_the_same_bytes(scripts, settings, alone, tmp_path):
    out, book = tmp_path / "out", Notebook()
    with pytest.raises(KeyboardInterrupt):
        render_folder(scripts, out, settings, watcher=Impatient(after=8))
    assert (out / "a.mp4").exists() and not (out / "b [x].mp4").exists() and part_path(out / "b [x].mp4").exists()
    report = render_folder(scripts, out, settings, watcher=book)
    assert len(report.kept) == 1 and len(report.made) == 2 and len(book.notes) == 1 and "goes on after" in book.notes[0]
    for job in find_jobs(scripts, out):
        assert job.output.read_bytes() == alone(job.script.name)


def test_a_part_file_of_another_story_is_kept_and_told(scripts, settings, tmp_path):
    """As of one script alone."""
    out, book = tmp_path / "out", Notebook()
    with pytest.raises(KeyboardInterrupt):
        render_folder(scripts, out, settings, watcher=Impatient(after=2))
    before = part_path(out / "a.mp4").read_bytes()
    (scripts / "a.txt").write_text("[3s] a bear\n")
    report = render_folder(scripts, out, settings, watcher=book)
    assert not report.failed and report.made[0].num_frames == 24
    (note,) = (note for note in book.notes if "begins anew" in note)
    assert "was begun with" in note and any(file.read_bytes() == before for file in out.glob(".a.*"))


def test_a_script_that_no_video_can_be_of_fails_before_a_model_is_loaded(scripts, settings, tmp_path, no_models):
    for script in scripts.iterdir():
        script.unlink()
    (scripts / "large.yaml").write_text("size: 4096\nfps: 240\nscenes: [{prompt: a bear}]\n")
    report = render_folder(scripts, tmp_path / "out", settings)
    assert "the frames of a chunk would take" in report.failed[0].error


def test_a_thousand_scripts_with_pictures_are_checked_at_once(scripts, settings, tmp_path):
    for script in scripts.iterdir():
        script.unlink()
    Image.new("RGB", (16, 16)).save(scripts / "x.png")
    for number in range(1000):
        (scripts / f"{number}.txt").write_text("[image x.png] a bear\n")
    jobs = find_jobs(scripts, tmp_path / "out")
    stories, failed = phenaki.rendering.read_stories(jobs)
    assert not failed
    began = time.process_time()
    sources = phenaki.rendering.sources_of(stories)
    for job in jobs:
        phenaki.rendering.check_sources_spared(job, sources)
    assert time.process_time() - began < 2, "not each with each"


# ---- in several processes ------------------------------------------------------------------------------------------


def holder_of(path: Path) -> int | None:
    """The id of another process that has a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(path) and int(link.parts[2]) != os.getpid():
                return int(link.parts[2])
        except OSError:
            continue
    return None


def kill_holder_of(paths, least_bytes: int = 6000) -> list[int]:
    """Kills, once, the first process seen to have written some chunks of one of the part files (`paths()` lists them)."""
    killed, holder = [], None

    def watch():
        nonlocal holder
        end = time.monotonic() + 300
        while not killed and time.monotonic() < end:
            for path in filter(Path.exists, paths()):
                holder = holder or holder_of(path)
                if holder and path.stat().st_size > least_bytes:
                    os.kill(holder, signal.SIGKILL)
                    killed.append(holder)
            time.sleep(0.002)

    threading.Thread(target=watch, daemon=True).start()
    return killed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the process by /proc")
def test_two_processes_one_of_them_killed_make_the_same_bytes(scripts, settings, alone, tmp_path):
    (scripts / "a.txt").write_text("[12s] a bear walks\n")
    wanted = {name: alone(name) for name in SCRIPTS}
    out, book = (tmp_path / "out").resolve(), Notebook()
    killed = kill_holder_of(lambda: [part_path(out / "a.mp4")])
    report = render_folder(scripts, out, settings, runner=partial(render_in_processes, num_workers=2), watcher=book)
    assert len(killed) == 1 and len(report.made) == 3 and not report.failed
    assert {outcome.job.script.name: outcome.tries for outcome in report.made} == {"a.txt": 2, "b [x].yaml": 1, "c.srt": 1}
    assert f"a.txt: its process died (SIGKILL), try 1 of {MAX_TRIES}" in book.notes and any("goes on after" in note for note in book.notes)
    assert book.counts["a.txt"][-1] == (96, 96)
    for job in find_jobs(scripts, out):
        assert job.output.read_bytes() == wanted[job.script.name]
    assert len(list(out.iterdir())) == 3


def stand_in(tmp_path: Path, monkeypatch, script: str) -> None:
    """A shell script in place of the Python that the worker processes run."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


needs_sh = pytest.mark.skipif(not Path("/bin/sh").exists(), reason="the stand-in is a shell script")


@needs_sh
def test_a_script_whose_processes_always_die_fails(settings, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, f"echo x >> {tmp_path}/starts; echo no memory >&2; exit 3")
    book, job = Notebook(), Job(Path("a.txt"), tmp_path / "a.mp4")
    (outcome,) = render_in_processes([job], settings, book, 2)
    assert outcome.error == "its process died 3 times (status 3: no memory); too little memory?" and outcome.tries == 3
    assert (tmp_path / "starts").read_text() == "x\n" * 3 and len(book.notes) == 3


@needs_sh
def test_a_model_that_does_not_load_stops_everything(settings, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, """read line; echo '{"status": "unable", "error": "no weights"}'""")
    jobs = [Job(Path(f"{name}.txt"), tmp_path / f"{name}.mp4") for name in "abc"]
    with pytest.raises(RenderError, match="no weights"):
        list(render_in_processes(jobs, settings, Watcher(), 2))


@needs_sh
@pytest.mark.parametrize("has_frames", [False, True])
def test_a_process_dies_and_the_model_does_not_load_again(settings, tmp_path, monkeypatch, has_frames):
    """The first process dies at its job, the second finds no memory; the third is asked to overwrite only what is not of this run."""
    working = """echo '{"status": "working", "frames": 1, "total": 9}';""" if has_frames else ""
    first = f"""echo '{{"status": "ready"}}'; read job; {working} exit 9"""
    second = """echo '{"status": "unable", "error": "no memory"}'"""
    third = f"""echo '{{"status": "ready"}}'; read job; echo "$job" > {tmp_path}/job; echo '{{"status": "done", "num_frames": 8}}'"""
    starts = f"echo x >> {tmp_path}/starts; read line; case $(wc -l < {tmp_path}/starts) in 1) {first};; 2) {second};; *) {third};; esac"
    stand_in(tmp_path, monkeypatch, starts)
    book = Notebook()
    (outcome,) = render_in_processes([Job(Path("a.txt"), tmp_path / "a.mp4")], replace(settings, overwrite=True), book, 1)
    assert (outcome.error, outcome.num_frames, outcome.tries) == ("", 8, 3)
    assert [note.split(": ", 1)[1] for note in book.notes] == [
        "its process died (status 9), try 1 of 3", "its process died (no memory), try 2 of 3",
    ]  # fmt: skip
    assert json.loads((tmp_path / "job").read_text())["overwrite"] is not has_frames


@needs_sh
def test_the_processes_end_with_the_run(settings, tmp_path, monkeypatch):
    answer = """echo '{"status": "done", "num_frames": 8}'"""
    stand_in(tmp_path, monkeypatch, f"""echo $$ >> {tmp_path}/ids; read line; echo '{{"status": "ready"}}'; read line; {answer}; exec sleep 600""")
    jobs = [Job(Path(f"{name}.txt"), tmp_path / f"{name}.mp4") for name in "abcd"]
    outcomes = render_in_processes(jobs, settings, Watcher(), 2)
    assert next(outcomes).num_frames == 8
    outcomes.close()
    ids = [int(line) for line in (tmp_path / "ids").read_text().split()]
    assert 1 <= len(ids) <= 2  # the second one may not have begun yet
    for one in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(one, 0)


@needs_sh
def test_a_stopped_worker_begins_no_process(settings, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "exec sleep 600")
    worker = RenderWorker(settings, 1)
    worker.stop()
    with pytest.raises(EOFError):
        worker.render(Job(Path("a.txt"), tmp_path / "a.mp4"), Watcher())
    assert worker.process is None
    worker.close()


def test_workers_share_the_threads(settings, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(RenderWorker, "render", lambda self, job, watcher: seen.append(self.num_threads))
    jobs = [Job(Path(f"{index}.txt"), tmp_path / f"{index}.mp4") for index in range(3)]
    for num_workers in (1, 2, 3, 100):
        list(render_in_processes(jobs, settings, Watcher(), num_workers))
    assert seen == [8] * 3 + [4] * 3 + [2] * 6


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_makes_a_folder_of_videos(scripts, model, tmp_path):
    command = ["generate", "--scripts", scripts, "-o", tmp_path / "out", "--model", model, "--device", "cpu", "--format", "webm", "--num-steps", 1]
    (scripts / "a.txt").write_text("[0.01s] a bear\n")
    result = runner.invoke(app, [str(argument) for argument in command])
    told = result.stderr.splitlines()
    assert result.exit_code == 1 and result.stdout == "" and len(told) == 4
    assert told[0].startswith("failed: a.txt: ") and told[1].startswith(f"{tmp_path / 'out' / 'b [x].webm'}: 16 frames, 2.00 s of video in ")
    assert told[3] == f"{tmp_path / 'out'}: 2 videos made, 0 kept, 1 failed"
    (scripts / "a.txt").unlink()
    assert run(*command) == f"2 of 2 videos are there already\n{tmp_path / 'out'}: 0 videos made, 2 kept, 0 failed\n"


def test_a_stopped_command_says_how_to_go_on(scripts, model, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(phenaki.rendering, "render", stop)
    result = runner.invoke(app, ["generate", "--scripts", str(scripts), "-o", str(tmp_path / "out"), "--model", str(model), "--device", "cpu"])
    assert result.exit_code == 130 and result.stderr == "stopped\nfinished videos and part files stay: the same command goes on from there\n"


@pytest.mark.parametrize(
    "options, words",
    [
        (["--scripts", "nosuch"], "needed a folder of scripts, there is none"),
        (["a.txt", "--scripts", "scripts"], "a.txt: a script beside --scripts"),
        (["a.txt", "--workers", 2], "go with --scripts FOLDER"),
        (["a.txt", "--ray", "auto"], "go with --scripts FOLDER"),
        ([], "no script came"),
        (["--scripts", "scripts", "--anew"], "--resume and --anew go with one script"),
        (["--scripts", "scripts", "--resume"], "--overwrite makes all anew"),
        (["--scripts", "scripts", "--workers", 0], "0 workers: needed 1 to 1024"),
        (["--scripts", "scripts", "--num-steps", 0], "num_steps = 0: needs a whole number"),
        (["--scripts", "scripts", "--seed", -1], "seed = -1"),
        (["--scripts", "scripts", "--model", "nosuch"], "no such folder"),
        (["--scripts", "scripts", "--device", "gpu"], "device 'gpu'"),
    ],
)
def test_bad_options_of_a_folder_are_told(scripts, model, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    assert words in fails("generate", *options, "-o", "out", *([] if "--model" in options else ["--model", model]))
    assert not list(tmp_path.glob("out/*"))


def test_ray_that_is_not_installed_is_told(scripts, tmp_path, monkeypatch, no_models):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'ray>=2.40'" in fails("generate", "--scripts", scripts, "-o", tmp_path / "out", "--ray", "auto")
    assert not (tmp_path / "out").exists()
    assert choose_runner(1) is choose_runner() is phenaki.rendering.render_here


def test_processes_on_cpus_are_told_which_numbers_to_use(settings, tmp_path, monkeypatch):
    """Each that measured for itself might choose others."""
    stand_in(tmp_path, monkeypatch, f"""read line; echo "$line" >> {tmp_path}/told; echo '{{"status": "unable", "error": "enough"}}'""")
    monkeypatch.setattr(phenaki.rendering, "choose_dtype", lambda dtype, device: torch.bfloat16 if dtype == "auto" else getattr(torch, dtype))
    for dtype, wanted in (("auto", "bfloat16"), ("float32", "float32")):
        with pytest.raises(RenderError, match="enough"):
            list(render_in_processes([Job(Path("a.txt"), tmp_path / "a.mp4")], replace(settings, dtype=dtype, device="cpu"), Watcher(), 1))
        assert json.loads((tmp_path / "told").read_text().splitlines()[-1])["dtype"] == wanted


def test_somebody_else_s_video_stays_and_is_told_of(scripts, settings, tmp_path):
    (tmp_path / "out").mkdir()
    Video(np.full((8, 32, 32, 3), 99, np.uint8), 8.0).save(tmp_path / "out/a.mp4")
    before = (tmp_path / "out/a.mp4").read_bytes()
    report = render_folder(scripts, tmp_path / "out", settings)
    assert [failed.error for failed in report.failed] == [
        f"{tmp_path / 'out/a.mp4'}: is there, made with a script that it does not tell. Move it away, or --overwrite makes all videos anew"
    ]
    assert (tmp_path / "out/a.mp4").read_bytes() == before and len(report.made) == 2
