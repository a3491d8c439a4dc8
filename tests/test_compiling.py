"""Compiled layers tell the same story, and the video's label says that they were compiled."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pipeline import save_tiny
from typer.testing import CliRunner

import phenaki.pipeline
import phenaki.rendering
from phenaki.cli import app
from phenaki.compiling import check_compiler
from phenaki.part_file import PartFileError
from phenaki.pipeline import Phenaki, load
from phenaki.recording import generate_to_file, label_of
from phenaki.rendering import RenderSettings, render_here
from phenaki.text import TextEncoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import measure_gpu

STORY = [("a bear walks", 0.5)]
OPTIONS = {"guidance_scale": 1, "num_steps": 1, "progress": False}


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """What torch.compile has made, each layer one graph without a break, run as it is: with the bits of a layer that is not compiled."""
    made, compiled = [], torch.compile

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled(function, backend=backend, fullgraph=True, **options))
    torch._dynamo.reset()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), TextEncoder.load().fingerprint)


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What models are loaded with, of which there is none."""
    asked = []

    def refuse(*arguments, **options):
        asked.append((*arguments, *options.values()))
        raise ValueError("there is none")

    for module in (phenaki.pipeline, phenaki.rendering):
        monkeypatch.setattr(module, "load", refuse)
    return asked


def test_compiled_layers_tell_the_same_story(folder, graphs, tmp_path):
    plain = Phenaki.from_pretrained(folder, device="cpu", dtype="float32")
    compiled = load(folder, "cpu", "float32", compile=True)
    assert load(folder, "cpu", "float32", compile=True) is compiled and load(folder, "cpu", "float32") is not compiled
    assert len(graphs) == 1 and compiled.compiled and not plain.compiled, "so far, what was tried"
    video = compiled.generate_story(STORY, **OPTIONS)
    made = len(graphs)
    assert 5 <= made <= 7, "text, a chunk, space, time, a block of convolutions"
    assert np.array_equal(video.frames, plain.generate_story(STORY, **OPTIONS).frames)
    assert np.array_equal(video.frames, compiled.generate_story(STORY, **OPTIONS).frames) and len(graphs) == made
    compiled.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/generator.safetensors").read_bytes() == (folder / "generator.safetensors").read_bytes()


def test_a_machine_without_a_compiler_is_told_so_in_one_line(folder, monkeypatch):
    def fails(function, **options):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nand much more")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ValueError, match=r"^compile: torch cannot compile for cpu here") as told:
        Phenaki.from_pretrained(folder, device="cpu", compile=True)
    reason = "(InvalidCxxCompiler: No working C++ compiler found)"
    assert str(told.value).endswith(f" here {reason}; install a C++ compiler (g++), or leave compile out")
    with pytest.raises(ValueError, match=r"install a C compiler \(gcc\) and Triton"):
        check_compiler(torch.device("cuda"))


def test_what_was_begun_without_compiled_layers_is_not_gone_on_with(folder, tmp_path):
    plain = Phenaki.from_pretrained(folder, device="cpu", dtype="float32")
    label = label_of(plain, plain.prepare(STORY))
    assert "compile" not in label, "as it was before layers could be compiled"

    def stop(chunk):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_to_file(plain, STORY, tmp_path / "a.mp4", on_chunk=stop, **OPTIONS)
    plain.compiled = True
    assert label_of(plain, plain.prepare(STORY)) == label | {"compile": True}
    with pytest.raises(PartFileError, match="compile left out, not true"):
        generate_to_file(plain, STORY, tmp_path / "a.mp4", resume=True, **OPTIONS)


@pytest.mark.parametrize(("options", "wanted"), [(("--compile",), True), ((), False)])
def test_the_command_hands_it_on(options, wanted, asked, tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/a.txt").write_text("a bear walks\n")
    monkeypatch.chdir(tmp_path)
    for words in (["scripts/a.txt", "-o", "a.mp4"], ["--scripts", "scripts", "-o", "out"]):
        done = CliRunner().invoke(app, ["generate", *words, "--device", "cpu", *options])
        assert done.exit_code == 2 and "there is none" in done.stderr
    assert asked == [("storybook", "cpu", "auto", wanted)] * 2


def test_folders_of_scripts_are_rendered_with_it(asked):
    with pytest.raises(ValueError, match="there is none"):
        list(render_here([], RenderSettings("m", "cpu", "float32", compile=True), None))
    assert asked == [("m", "cpu", "float32", True)]


def test_the_tool_says_so_and_writes_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_gpu.Measured, "story", lambda self, seconds, runs: {"frames_per_second": 1.0})
    wrapped, written = [], []
    write = lambda found: written.append(json.dumps(found))
    monkeypatch.setattr(torch, "compile", lambda function, **options: wrapped.append(options) or function)
    plain = measure_gpu.measure(["tiny"], torch.device("cpu"), 1.0, 1)["tiny"]
    assert not wrapped and "compiled" not in plain and "seconds_of_first_pass" not in plain["chunk"]
    found = measure_gpu.measure(["tiny"], torch.device("cpu"), 1.0, 1, compiled=True, on_found=write)["tiny"]
    assert wrapped and found["compiled"] and found["chunk"]["seconds_of_first_pass"] > 0
    assert found["chunk"]["tera_operations"] == plain["chunk"]["tera_operations"]
    assert [set(json.loads(text)["tiny"]) for text in written] == [set(found) - {"story"}, set(found)]
