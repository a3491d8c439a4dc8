"""Every option of a command reaches the function that it is for, under its own name: values are distinct, so that a swap shows."""

import inspect
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from phenaki.cli import app
from phenaki.data.check import ClipLength
from phenaki.data.sharding import ShardSettings
from phenaki.editing import Edit
from phenaki.evaluation.drift_program import DriftExam
from phenaki.evaluation.drift_scripts import DriftSettings
from phenaki.evaluation.story_program import StoryExam
from phenaki.evaluation.story_scripts import ScriptSettings
from phenaki.evaluation.tokenizer_program import Wishes
from phenaki.regions import Region
from phenaki.rendering import RenderSettings
from phenaki.video import Video


@pytest.fixture
def received(monkeypatch, tmp_path):
    """Runs a command whose function is replaced: what that was given, by the names of its parameters."""
    monkeypatch.chdir(tmp_path)
    Path("bear.txt").write_text("a bear walks")
    Path("scripts").mkdir()
    Video(np.zeros((12, 64, 64, 3), np.uint8), 8.0).save("clip.mp4")

    def run(function: str, *words: object) -> dict:
        module, name = function.rsplit(".", 1)
        home, given = import_module(f"phenaki.{module}"), {}
        signature = inspect.signature(getattr(home, name))

        def instead(*arguments, **options):
            given.update(signature.bind(*arguments, **options).arguments)
            for one in signature.parameters.values():
                given.update(given.pop(one.name, {}) if one.kind is one.VAR_KEYWORD else {})
            raise ValueError("this far")

        with monkeypatch.context() as patch:
            patch.setattr(home, name, instead)
            done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 2 and "this far" in done.output, done.output
        return given

    return run


TOLD = ["--num-steps", 3, "--guidance-scale", 1.5, "--negative", "rain", "--size", 96]


def test_generate(received, monkeypatch):
    loaded = []
    monkeypatch.setattr("phenaki.pipeline.load", lambda *model, **options: loaded.append((model, options)) or "the model")
    words = ["generate", "bear.txt", "-o", "a.mp4", *TOLD, "--seed", 5, "--style", "in oils", "--fps", 12, "--context", "frames"]
    words += ["--device", "cpu", "--dtype", "bfloat16", "--compile"]
    for extra, resume in (([], None), (["--resume"], True), (["--anew"], False)):
        given = received("recording.generate_to_file", *words, *extra)
        assert given.pop("story").scenes[0].prompt == "a bear walks" and given.pop("on_note")
        assert loaded.pop() == (("storybook",), {"device": "cpu", "dtype": "bfloat16", "compile": True})
        assert given == {
            "phenaki": "the model", "path": Path("a.mp4"), "resume": resume, "seed": 5, "fps": 12.0, "size": 96, "style": "in oils",
            "negative": "rain", "guidance_scale": 1.5, "num_steps": 3, "context": "frames",
        }  # fmt: skip


def test_generate_a_folder(received):
    words = ["generate", "--scripts", "scripts", "-o", "out", *TOLD, "--seed", 5, "--style", "in oils", "--fps", 12, "--context", "frames"]
    words += ["--model", "m", "--device", "cpu", "--dtype", "float16", "--compile", "--overwrite", "--format", "webm", "--workers", 4]
    words += ["--ray", "auto"]
    values = {"seed": 5, "fps": 12.0, "size": 96, "style": "in oils", "negative": "rain", "guidance_scale": 1.5, "num_steps": 3, "context": "frames"}
    settings = RenderSettings(**values, device="cpu", dtype="float16", compile=True, model="m", overwrite=True)
    assert received("rendering_program.run_rendering", *words) == {
        "scripts": Path("scripts"), "output": Path("out"), "settings": settings, "ending": ".webm", "num_workers": 4, "ray_address": "auto",
    }  # fmt: skip


def test_edit(received, monkeypatch):
    loaded = []
    monkeypatch.setattr("phenaki.pipeline.load", lambda *model, **options: loaded.append((model, options)) or "the model")
    words = ["edit", "clip.mp4", "a fox", "-o", "b.mp4", "--box", "1,2,30,40", "--frames", "2-9", "--keep", 0.25, "--extend", 0.5, "--no-paste"]
    given = received("editing.edit_to_file", *words, *TOLD, "--model", "m", "--seed", 6, "--device", "cpu", "--dtype", "float32")
    assert loaded == [(("m", "cpu", "float32"), {})]
    edit = Edit(
        prompt="a fox", region=Region.parse("1,2,30,40", False, "2-9", None), keep=0.25, extend=0.5, paste=False, size=96, seed=6, negative="rain",
        guidance_scale=1.5, num_steps=3,
    )  # fmt: skip
    assert edit in given.values() and "the model" in given.values() and Path("b.mp4") in given.values()


@pytest.mark.parametrize("network", ["tokenizer", "generator"])
def test_train(received, network):
    words = ["--config", "c.toml", "--out", "run", "--data", "d", "--validation", "v", "--init-from", "model", "--steps", 7, "--seed", 8]
    words += ["--device", "cpu"]
    own = ["--tokenizer", "t"] if network == "generator" else []
    given = received(f"training.{network}.run_{network}_training", "train", network, *words, *own)
    assert given.pop("on_log") and given.pop("on_note") and given.pop("tokenizer", None) == ("t" if own else None)
    assert given == {
        "config": Path("c.toml"), "out": Path("run"), "data": Path("d"), "validation": Path("v"), "init_from": "model", "steps": 7, "seed": 8,
        "device": "cpu",
    }  # fmt: skip


def test_data(received):
    given = received("data.preview.save_preview", "data", "preview", "storybook", "-o", "a.png", "--data", "atlas", "--world", "full", "--seed", 3)
    assert given == {"output": Path("a.png"), "data": Path("atlas"), "world": "full", "seed": 3}
    config = Path(__file__).resolve().parents[1] / "configs/footage.toml"
    given = received("data.check.check_source", "data", "check", "footage", "--json", "a.json", "--num-workers", 3, "--config", config)
    assert given.pop("needed") == {"tokenizer": ClipLength(9, 8.0), "generator": ClipLength(33, 8.0)}
    assert given.pop("on_progress") and list(given.values()) == [Path("footage"), 3, Path("a.json")]
    assert received("data.check.check_source", "data", "check", "footage")["needed"] == {}
    words = ["-o", "out", "--size", 64, "--fps", 12, "--shard-size", 7, "--num-workers", 3, "--leave-out-failing"]
    given = received("data.sharding.make_shards", "data", "shard", "footage", *words)
    assert given.pop("on_note") and ShardSettings(size=64, fps=12.0, shard_bytes=7_000_000) == given.pop("settings")
    assert given == {"path": Path("footage"), "out": Path("out"), "num_workers": 3, "leave_out_failing": True}
    words = ["-o", "a.safetensors", "--model", "m", "--config", "c.toml", "--seed", 3, "--clips", 4, "--frames", 9, "--world", "wide"]
    words += ["--device", "cpu"]
    given = received("training.stories.tokenize_data", "data", "tokenize", "footage", *words)
    assert given.pop("on_note") and list(given.values())[:3] == [Path("footage"), "m", Path("a.safetensors")]
    named = {"config": Path("c.toml"), "seed": 3, "num_clips": 4, "num_frames": 9, "world": "wide", "device": "cpu"}
    assert {name: given[name] for name in named} == named


def test_evaluate_tokenizer(received, monkeypatch):
    opened = []
    monkeypatch.setattr("phenaki.data.sources.open_source", lambda *given: opened.append(given))
    words = ["--clips", 5, "--frames", 9, "--size", 96, "--batch-size", 4, "--seed", 3, "--html", "a.html", "--device", "cpu", "--world", "wide"]
    words += ["-o", "a.json", "--model", "m", "--data", "d"]
    given = received("evaluation.tokenizer_program.run_tokenizer_evaluation", "evaluate", "tokenizer", *words)
    assert given["wishes"] == Wishes(num_clips=5, num_frames=9, size=96, batch_size=4, seed=3)
    assert (given["model"], given["output"], given["html"], given["device"]) == ("m", Path("a.json"), Path("a.html"), "cpu")
    given["open_source"](12.0, 96)
    ((world, *rest),) = opened
    assert (world.fps, len(world.actors)) == (12.0, 57) and rest == [96, Path("d"), "cpu"]


def test_evaluate_story(received):
    words = ["--scripts", 6, "--seconds", 2.5, "--seed", 3, "--num-steps", 4, "--guidance-scale", 1.5, "--order", "confidence", "--temperature", 0.4]
    words += ["--no-fvd", "--html", "a.html", "--work", "w", "--device", "cpu", "--dtype", "float16", "--world", "full"]
    words += ["-o", "a.json", "--model", "m", "--data", "d"]
    given = received("evaluation.story_program.run_story_evaluation", "evaluate", "story", *words)
    sampling = {"num_steps": 4, "guidance_scale": 1.5, "order": "confidence", "temperature": 0.4}
    assert given["exam"] == StoryExam(
        model="m", world="full", atlas=Path("d"), scripts=ScriptSettings(scripts=6, seconds=2.5, seed=3), sampling=sampling, device="cpu",
        dtype="float16", fvd=False,
    )  # fmt: skip
    assert (given["output"], given["html"], given["work"]) == (Path("a.json"), Path("a.html"), Path("w"))


def test_evaluate_drift(received):
    words = ["--minutes", 1.5, "--mode", "recalling", "--mode", "held", "--context", "frames", "--stories", 2, "--seed", 3, "--num-steps", 4]
    words += ["--guidance-scale", 1.5, "--no-fvd", "--plot", "a.png", "--work", "w", "--device", "cpu", "--dtype", "float16", "--world", "full"]
    given = received("evaluation.drift_program.run_drift_evaluation", "evaluate", "drift", "-o", "a.json", "--model", "m", "--data", "d", *words)
    assert given["exam"] == DriftExam(
        model="m", world="full", atlas=Path("d"), settings=DriftSettings(minutes=1.5, modes=("recalling", "held"), num_stories=2, seed=3),
        contexts=("frames",), sampling={"num_steps": 4, "guidance_scale": 1.5}, device="cpu", dtype="float16", fvd=False,
    )  # fmt: skip
    assert (given["output"], given["plot"], given["work"]) == (Path("a.json"), Path("a.png"), Path("w"))
