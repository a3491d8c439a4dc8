"""The command line: what each command writes and prints, and that every mistake is one message with exit code 2."""

import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import phenaki.checkpoint
import phenaki.pipeline
import phenaki.training.generator
from phenaki.checkpoint import ModelInfo, load_model, save_model
from phenaki.cli import app
from phenaki.cli_messages import told_errors
from phenaki.contact_sheet import LABEL_HEIGHT
from phenaki.cvivit import CViViT
from phenaki.data.tokens import StoryTokens, TokensError
from phenaki.maskgit import MaskGIT
from phenaki.planning import story_operations
from phenaki.sampling import SamplingOptions
from phenaki.story import Story
from phenaki.story_for_model import model_info, plan_story
from phenaki.text import TextEncoder
from phenaki.training.settings import load_settings
from phenaki.training.stories import prepared_tokens
from phenaki.video import Video, read_video

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "title: A [bold]story[/bold] [/]\nseed: 3\n---\n[1.5s] a bear walks\n[2s, cut] a panda sleeps\n"
runner = CliRunner(env={"COLUMNS": "200", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder of random weights."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    settings = load_settings(ROOT / "configs" / "tiny.toml")
    torch.manual_seed(3)
    info = ModelInfo(
        "tiny", settings.tokenizer, settings.generator, settings.text, settings.world.fps,
        sampling=SamplingOptions(num_steps=1), text_encoder=TextEncoder.load().fingerprint,
    )  # fmt: skip
    save_model(folder, info, CViViT(settings.tokenizer), MaskGIT(settings.generator))
    return folder


@pytest.fixture
def script(tmp_path) -> Path:
    (tmp_path / "a.txt").write_text(SCRIPT)
    return tmp_path / "a.txt"


@pytest.fixture
def config(tmp_path) -> Path:
    """configs/tiny.toml, with stories of a size for two steps."""
    text = (ROOT / "configs" / "tiny.toml").read_text()
    path = tmp_path / "tiny.toml"
    path.write_text(text.replace("num_stories = 8", "num_stories = 2").replace("batch_size = 2", "batch_size = 1"))
    return path


def run(*arguments) -> str:
    """Standard output and standard error of a command that went well."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def fails(*arguments) -> str:
    """The one message of a command that did not: exit code 2, nothing on standard output."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert result.stdout == "" and result.stderr.startswith("error: ") and result.stderr.count("error:") == 1, result.output
    assert "Traceback" not in result.output
    return result.stderr


# ---- generate ------------------------------------------------------------------------------------------------------


def test_generate_writes_the_video(script, model, tmp_path):
    output = tmp_path / "out [/] [bold].mp4"
    output.parent.mkdir()
    told = run("generate", script, "-o", output, "--model", model, "--device", "cpu")
    video = read_video(output)
    assert told.startswith(f"{output}: 28 frames, 3.50 s of video in ")
    assert len(video) == 28 and [scene.prompt for scene in video.scenes] == ["a bear walks", "a panda sleeps"]
    assert video.script["seed"] == 3 and video.script["title"] == "A [bold]story[/bold] [/]"


def test_a_video_goes_by_its_scripts_name_where_none_is_given(script, model, tmp_path, monkeypatch):
    """Or by a prompt's first words; what is there already is left alone."""
    monkeypatch.chdir(tmp_path)
    options = ["--model", model, "--device", "cpu"]
    assert run("generate", script, *options).startswith(f"{script.stem}.mp4: 28 frames")
    before = Path(f"{script.stem}.mp4").read_bytes()
    assert run("generate", script, "--seed", 9, *options).startswith(f"{script.stem}-1.mp4: 28 frames")
    assert Path(f"{script.stem}.mp4").read_bytes() == before
    assert run("generate", "A bear walks, to the \"sea\"", *options).startswith("a-bear-walks-to.mp4: 32 frames")
    assert "no folder for its videos came" in fails("generate", "--scripts", tmp_path)


def test_a_video_told_again_finds_its_pictures_by_what_is_in_them(model, tmp_path):
    """Two of one name, in folders of their own, and another file of that name elsewhere."""
    for name, colour in (("a/x.png", "red"), ("b/x.png", "blue")):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (32, 32), colour).save(tmp_path / name)
    scenes = [{"prompt": "a bear", "seconds": 1, "image": name} for name in ("a/x.png", "b/x.png")]
    (tmp_path / "s.json").write_text(json.dumps({"scenes": scenes}))
    options = ["--model", model, "--device", "cpu"]
    run("generate", tmp_path / "s.json", "-o", tmp_path / "s.mp4", *options)
    run("generate", tmp_path / "s.mp4", "-o", tmp_path / "again.mp4", *options)
    assert np.array_equal(read_video(tmp_path / "s.mp4").frames, read_video(tmp_path / "again.mp4").frames)
    (tmp_path / "b/x.png").unlink()
    Image.new("RGB", (32, 32), "green").save(tmp_path / "x.png")
    told = fails("plan", tmp_path / "s.mp4")
    assert "scenes[1].image = 'x.png': is another file than the one that it was made from; put that one there" in told


def test_a_video_whose_scenes_are_prompts_alone_is_told_again(tmp_path):
    """A script of somebody else's inside a video."""
    Video(np.zeros((9, 32, 32, 3), np.uint8), 8.0, script={"scenes": ["a dog runs", {"prompt": "a cat"}]}).save(tmp_path / "a.mp4")
    assert "a dog runs" in run("plan", tmp_path / "a.mp4")


def test_the_version_is_told():
    assert run("--version").strip() == f"phenaki {phenaki.__version__}"


def test_generates_options_reach_the_video(script, model, tmp_path):
    options = {"--seed": 5, "--fps": 12, "--negative": "a red house", "--guidance-scale": 2, "--num-steps": 2, "--device": "cpu"}
    run("generate", script, "-o", tmp_path / "a.webm", "--model", model, *(part for pair in options.items() for part in pair))
    video = read_video(tmp_path / "a.webm")
    assert len(video) == 42 and video.fps == 12 and video.script["seed"] == 5 and video.script["negative"] == "a red house"
    sampling = video.script["made_with"]["sampling"]
    assert (sampling["guidance_scale"], sampling["num_steps"]) == (2.0, 2)


def test_generate_goes_on_where_it_was_stopped(script, model, tmp_path, monkeypatch):
    command = ["generate", script, "--model", model, "--device", "cpu", "-o"]
    run(*command, tmp_path / "whole.mp4")
    output, stream = tmp_path / "a.mp4", phenaki.pipeline.Phenaki.stream

    def stopping(self, *arguments):
        yield from itertools.islice(stream(self, *arguments), 3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(phenaki.pipeline.Phenaki, "stream", stopping)
        stopped = runner.invoke(app, [str(argument) for argument in [*command, output]])
    part = tmp_path / ".a.part.mp4"
    told = f"stopped\nwhat was made so far plays in {part}; the same run goes on from there\n"
    assert stopped.exit_code == 130 and stopped.stderr == told
    assert "num_steps = 1, not 2" in fails(*command, output, "--resume", "--num-steps", 2) and part.exists()
    told = run(*command, output)
    assert told.startswith(f"{output}: goes on after 12 frames, 3 of 6 chunks\n{output}: 28 frames, 3.50 s of video in ")
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes() and not part.exists()
    assert "begins at the first frame" in run(*command, output, "--resume")
    assert "only .mp4 and .webm" in fails(*command, tmp_path / "a.gif", "--resume")


def test_generate_computes_in_what_it_is_asked_to(script, model, tmp_path):
    for dtype in ("bfloat16", "float32"):
        run("generate", script, "--model", model, "--device", "cpu", "--dtype", dtype, "-o", tmp_path / f"{dtype}.mp4")
    run("generate", script, "--model", model, "--device", "cpu", "--dtype", "float32", "-o", tmp_path / "again.mp4")
    made = {name: (tmp_path / f"{name}.mp4").read_bytes() for name in ("bfloat16", "float32", "again")}
    assert made["float32"] == made["again"] != made["bfloat16"]


@pytest.fixture
def no_models(monkeypatch):
    """Loading a model fails the test."""

    def load(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(phenaki.pipeline, "load", load)


BAD_OUTPUTS = [("a.avi", "unknown ending"), ("missing/a.mp4", "does not exist"), (".", "is a folder"), ("a", "ending ''")]


@pytest.mark.parametrize("output, words", BAD_OUTPUTS)
def test_a_bad_output_is_told_before_the_model_is_loaded(script, tmp_path, no_models, output, words):
    assert words in fails("generate", script, "-o", tmp_path / output)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["a.yaml", "No such file"]),
        ("scenes:\n  - {prompt: a bear, secnods: 3}\n", ["a.yaml:2: ", "unknown key 'secnods'", "did you mean 'seconds'"]),
        ("titel: x\nscenes:\n  - prompt: a bear\n", ["a.yaml:1: ", "did you mean 'title'"]),
        ("scenes:\n  - {prompt: a bear, seconds: -1}\n", ["a.yaml:2: ", "seconds = -1"]),
        ("scenes: [\n", ["a.yaml"]),
        ("[/] [bold]\n", ["a.yaml"]),
        ("scenes:\n  - {prompt: a, '[/] [red]x': 1}\n", ["'[/] [red]x'"]),
        ("", ["a.yaml"]),
    ],
)
@pytest.mark.parametrize("command", ["generate", "plan"])
def test_a_bad_script_is_told_before_the_model_is_loaded(tmp_path, no_models, model, command, content, words):
    if content is not None:
        (tmp_path / "a.yaml").write_text(content)
    told = fails(command, tmp_path / "a.yaml", "--model", model, *(["-o", tmp_path / "a.mp4"] if command == "generate" else []))
    assert not [word for word in words if word not in told], told


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--num-steps", 0, "num_steps = 0: needs a whole number"),
        ("--guidance-scale", 1e9, "1 (guidance off) to 100"),
        ("--guidance-scale", "nan", "guidance_scale = nan"),
        ("--fps", 0, "fps = 0.0"),
        ("--fps", 0.01, "has no frame"),
        ("--seed", -1, "seed = -1"),
        ("--device", "gpu", "device 'gpu': allowed are auto, cpu, cuda"),
        ("--negative", "bear " * 90, "prompt of 92 tokens: 64 at most"),
    ],
)
def test_bad_options_are_told(script, model, tmp_path, option, value, words):
    assert words in fails("generate", script, "-o", tmp_path / "a.mp4", "--model", model, option, value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_a_script_that_cannot_be_told_is_named_before_the_model_is_loaded(tmp_path, no_models, monkeypatch, model, command):
    monkeypatch.setattr(TextEncoder, "load", lambda *_: pytest.fail("the text encoder was loaded"))
    long = "a bear\n" + "bear " * 90
    for text, words in [("[0.05s] a bear\n", "scenes[0].seconds = 0.05: at 8 fps"), (long, "scenes[1].prompt: prompt of 92 tokens")]:
        (tmp_path / "tiny.txt").write_text(text)
        told = fails(command, tmp_path / "tiny.txt", "--model", model, *(["-o", tmp_path / "a.mp4"] if command == "generate" else []))
        assert told.startswith(f"error: {tmp_path / 'tiny.txt'}: {words}")


def test_models_that_cannot_be_used(script, model, tmp_path):
    output = ["-o", tmp_path / "a.mp4", "--device", "cpu"]
    assert "model 'nosuch': no such folder, and not a shipped model" in fails("generate", script, *output, "--model", "nosuch")
    assert "config.json is missing" in fails("generate", script, *output, "--model", tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (copy / "generator.safetensors").unlink()
    assert "generator.safetensors: missing. Copy the whole folder again" in fails("generate", script, *output, "--model", copy)
    shutil.copy(model / "tokenizer.safetensors", copy / "generator.safetensors")
    assert "generator.safetensors: damaged or changed" in fails("generate", script, *output, "--model", copy)
    (copy / "config.json").write_text("{")
    assert "not a JSON file" in fails("generate", script, *output, "--model", copy)
    assert "offline" in fails("generate", script, *output, "--model", "nobody/nothing").lower()


# ---- edit ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path) -> Path:
    """Nine frames of 40x32 pixels."""
    frames = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
    Video(frames.repeat(8, axis=1).repeat(8, axis=2), 8.0).save(tmp_path / "clip [red].mp4")
    return tmp_path / "clip [red].mp4"


def test_edit_writes_the_video(clip, model, tmp_path):
    options = ["--box", "8,8,16,8", "--outside", "--frames", "2-6", "--extend", 0.5, "--seed", 3, "--no-paste", "--size", 48, "--num-steps", 1]
    told = run("edit", clip, "a [bold]bear[/]", "-o", tmp_path / "b.mp4", "--model", model, "--device", "cpu", "--dtype", "float32", *options)
    video = read_video(tmp_path / "b.mp4")
    assert told.startswith(f"{tmp_path / 'b.mp4'}: 13 frames, 1.62 s of video in ") and video.frames.shape == (13, 48, 48, 3)
    edited = video.script["edit"]
    assert "b.mp4: is an edit of a clip, which its prompt alone does not make again" in fails("plan", tmp_path / "b.mp4")
    assert video.script["seed"] == 3 and video.script["scenes"][0]["prompt"] == "a [bold]bear[/]" and edited["clip"] == clip.name
    assert (edited["box"], edited["outside"], edited["frames"], edited["paste"]) == ([8, 8, 16, 8], True, [2, 6], False)


def test_edit_takes_a_mask_and_keeps_a_share(clip, model, tmp_path):
    """A mask whose right half is white; of the clip the model sees columns 4 .. 35."""
    Image.fromarray(np.repeat([[0, 255]], 20, axis=1).repeat(32, axis=0).astype(np.uint8)).save(tmp_path / "mask.png")
    before = (tmp_path / "mask.png").read_bytes()
    told = fails("edit", clip, "a bear", "-o", tmp_path / "mask.png", "--model", model, "--mask", tmp_path / "mask.png", "--keep", 0.3)
    assert "would write over mask.png, which it is made from" in told and (tmp_path / "mask.png").read_bytes() == before
    options = ["--mask", tmp_path / "mask.png", "--keep", 0.3, "--negative", "rain", "--guidance-scale", 1.5, "--num-steps", 2, "--dtype", "float32"]
    run("edit", clip, "a bear", "-o", tmp_path / "b.mp4", "--model", model, "--device", "cpu", *options)
    video = read_video(tmp_path / "b.mp4")
    edited, told = video.script["edit"], {"negative": "rain", "guidance_scale": 1.5, "num_steps": 2}
    assert (edited["mask"], edited["box"], edited["keep"], edited["extend"], edited["paste"]) == (True, None, 0.3, 0.0, True)
    assert {name: video.script[name] for name in told} == told
    change = np.abs(video.frames.astype(float) - read_video(clip).frames[:, :, 4:36]).mean(axis=(0, 1, 3))
    assert change[:16].max() < 10 and change[16:].min() > 30, "what is black in the mask stays"


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "nothing is to be made anew"),
        (["--box", "1,2,3"], "box '1,2,3': needed x,y,width,height"),
        (["--frames", "4"], "frames '4': needed first-last"),
        (["--outside"], "outside: needs a box"),
        (["--mask", "gone.png"], "gone.png: No such file"),
        (["--keep", 2], "keep 2.0"),
        (["--extend", "inf"], "extend inf"),
        (["--extend", 1, "--seed", -1], "seed = -1"),
        (["--extend", 1, "-o", "a.avi"], "unknown ending"),
        (["--extend", 1, "-o", "clip [red].mp4"], "which it is made from"),
    ],
)
def test_bad_edits_are_told_before_the_model_is_loaded(clip, no_models, monkeypatch, options, words):
    monkeypatch.chdir(clip.parent)
    assert words in fails("edit", clip, "a bear", "-o", "b.mp4", *options)
    assert not Path("b.mp4").exists()


def test_bad_clips_are_told_before_the_model_is_loaded(tmp_path, no_models):
    (tmp_path / "[red].mp4").write_bytes(b"no video")
    assert "not a whole video file" in fails("edit", tmp_path / "[red].mp4", "a bear", "-o", tmp_path / "b.mp4", "--extend", 1)
    assert "gone.mp4" in fails("edit", tmp_path / "gone.mp4", "a bear", "-o", tmp_path / "b.mp4", "--extend", 1)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--box", "0,0,40,32"], "the region is all of the clip"),
        (["--box", "0,0,4,32"], "the region is nowhere in what the model sees"),
        (["--box", "8,8,40,8"], "box 8,8,40,8 (x, y, width, height): the clip has 9 frames of 40x32 pixels"),
        (["--frames", "3-9"], "frames 3-9: the clip has 9 frames"),
        (["--extend", 0.01], "needed 0.125 s at least"),
    ],
)
def test_regions_that_the_clip_does_not_have(clip, model, tmp_path, options, words):
    assert words in fails("edit", clip, "a bear", "-o", tmp_path / "b.mp4", "--model", model, *options)
    assert not (tmp_path / "b.mp4").exists()


# ---- plan ----------------------------------------------------------------------------------------------------------


def test_plan_opens_no_weights(script, model, monkeypatch):
    def opened(*arguments, **options):
        raise AssertionError("weights were opened")

    for name in ("safe_open", "sha256", "load_model"):
        monkeypatch.setattr(phenaki.checkpoint, name, opened)
    monkeypatch.setattr(phenaki.pipeline, "load_model", opened)
    monkeypatch.setattr(TextEncoder, "load", opened)
    told = run("plan", script, "--model", model)
    for number, words in enumerate(("a bear walks", "a panda sleeps"), 1):
        row = next(line for line in told.splitlines() if words in line).replace("│", " ").split()
        wanted = (["1", "0.00", "1.50", "12", "3", "112"], ["2", "cut", "1.50", "2.00", "16", "3", "144"])[number - 1]
        assert row == [*wanted, *words.split()]
    assert "28 frames, 3.50 s at 8 fps, 6 chunks, 256 tokens; about " in told and "s on this machine's CPU" in told
    assert "A [bold]story[/bold] [/]" in told


@pytest.mark.parametrize("prompt", ["[bold]x[/bold]", "[/]", "a [red]bear", "[/bold] [[x]]", "bear :bear: [link=x]y", "back\\slash\\"])
def test_prompts_and_titles_are_printed_as_they_are(tmp_path, model, prompt):
    name = prompt.replace("/", "|")
    (tmp_path / f"{name}.json").write_text(json.dumps({"scenes": [{"prompt": prompt}]}))
    told = run("plan", tmp_path / f"{name}.json", "--model", model)
    assert prompt in told.split(name, 1)[1] and name in told


def test_plan_counts_what_generate_would_do(model):
    story, info = Story.of([{"prompt": "a bear", "seconds": 2, "num_steps": 4}]), model_info(model)
    other = Story.of([("a bear", 2)])
    plans = [plan_story(told, info) for told in (story, other)]
    asked = lambda rounds: replace(info.sampling, num_steps=rounds)
    assert story_operations(plans[0], info, asked(9)) == story_operations(plans[0], info, info.sampling) == story_operations(plans[1], info, asked(4))
    assert story_operations(plans[1], info, replace(info.sampling, context="frames")) > story_operations(plans[1], info, info.sampling)
    assert story_operations(plans[1], info, asked(9)) > story_operations(plans[1], info, asked(4)) > story_operations(plans[1], info, info.sampling)


@pytest.mark.parametrize(
    ("part", "name", "value", "told"),
    [
        ("generator", "dim", 2**40, "there can be no generator of these sizes"),
        ("text", "source", "~nobody/x", "~nobody/x"),
        (None, "fps", 1e-308, "fps 1e-308: needed at least 1e-05"),
    ],
)
def test_a_config_that_no_model_can_have_is_told_by_plan_and_generate(script, model, tmp_path, part, name, value, told):
    shutil.copytree(model, tmp_path / "odd")
    values = json.loads((tmp_path / "odd/config.json").read_text())
    (values[part] if part else values)[name] = value
    (tmp_path / "odd/config.json").write_text(json.dumps(values))
    assert told in fails("generate", script, "-o", tmp_path / "a.mp4", "--model", tmp_path / "odd", "--device", "cpu")
    if name != "source":  # a plan needs no text encoder
        assert told in fails("plan", script, "--model", tmp_path / "odd")


def test_plan_shows_the_video_that_generate_makes(script, model, tmp_path):
    options = ["--fps", 12, "--negative", "red", "--size", 64]
    told = run("plan", script, "--model", model, "--guidance-scale", 1, *options)
    run("generate", script, "--model", model, "--device", "cpu", "-o", tmp_path / "a.mp4", *options)
    video = read_video(tmp_path / "a.mp4")
    assert f"{len(video)} frames, {len(video) / 12:.2f} s at 12 fps (made at 8 fps), 6 chunks" in told and video.frames.shape[1:3] == (64, 64)
    for shown in video.scenes:
        row = next(line for line in told.splitlines() if shown.prompt in line).replace("│", " ").split()
        assert {f"{shown.start_frame / 12:.2f}", f"{shown.num_frames / 12:.2f}", str(shown.num_frames)} <= set(row)


def test_words_that_the_model_was_not_trained_on_are_told(model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**values, "words": ["bear", "walks", "beach"]}))
    (tmp_path / "a.txt").write_text("a bear walking at the beach\na wizard brews with them\n")
    told = run("plan", tmp_path / "a.txt", "--model", copy)
    assert "scene 2: tiny was not trained on 'wizard', 'brews'; it may not show what that means" in told and "scene 1:" not in told
    assert "not trained on" not in run("plan", tmp_path / "a.txt", "--model", model), "which does not say what it was trained on"
    (copy / "config.json").write_text(json.dumps({**values, "words": ["bear", 3]}))
    assert "config.json: words = 3: needed str, found int" in fails("plan", tmp_path / "a.txt", "--model", copy)


# ---- what stands for a script --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["a bear walks on the beach", "A bear, a panda. "])
def test_a_prompt_stands_for_a_script(model, given):
    assert " ".join(given.split()) in run("plan", given, "--model", model)


def test_a_script_comes_on_standard_input(model, tmp_path):
    command = ["generate", "-", "-o", str(tmp_path / "a.mp4"), "--model", str(model), "--device", "cpu"]
    told = runner.invoke(app, command, input="seed: 5\n---\n[1s] a bear\n[1s] a panda ü\n")
    assert told.exit_code == 0, told.output
    video = read_video(tmp_path / "a.mp4")
    assert [scene.prompt for scene in video.scenes] == ["a bear", "a panda ü"] and video.script["seed"] == 5
    large, binary = (b"a" * (2**20 + 1), "at most 1 MiB"), (b"a\0b", "not plain text: binary data")
    for content, words in [(b"", "scenes = []"), (b"\xff\xfe", "not UTF-8"), large, binary]:
        told = runner.invoke(app, command, input=content)
        assert told.exit_code == 2 and words in told.stderr, told.output


def test_a_video_stands_for_its_script(script, model, tmp_path):
    run("generate", script, "-o", tmp_path / "a.mp4", "--model", model, "--device", "cpu", "--num-steps", 2, "--seed", 9)
    run("generate", tmp_path / "a.mp4", "-o", tmp_path / "b.mp4", "--model", model, "--device", "cpu")
    run("generate", tmp_path / "a.mp4", "-o", tmp_path / "a.gif", "--model", model, "--device", "cpu")
    run("generate", tmp_path / "a.gif", "-o", tmp_path / "c.gif", "--model", model, "--device", "cpu")
    assert (tmp_path / "c.gif").read_bytes() == (tmp_path / "a.gif").read_bytes()
    first, second = (read_video(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    assert np.array_equal(first.frames, second.frames) and second.script == first.script
    run("generate", tmp_path / "a.mp4", "-o", tmp_path / "c.mp4", "--model", model, "--device", "cpu", "--num-steps", 1)
    assert read_video(tmp_path / "c.mp4").script["made_with"]["sampling"]["num_steps"] == 1, "what is asked for goes first"
    for name in ("odd.mp4", "odd.gif"):
        Video(np.zeros((4, 16, 16, 3), np.uint8), 8, script={"scenes": []}).save(tmp_path / name)
        assert f"{name}: its script cannot be told again: scenes = []: needs a list of" in fails("plan", tmp_path / name, "--model", model)
    Video(np.zeros((4, 16, 16, 3), np.uint8), 8).save(tmp_path / "bare.mp4")
    assert "bare.mp4: holds no script" in fails("plan", tmp_path / "bare.mp4", "--model", model)
    assert "none.mp4: no such file" in fails("plan", tmp_path / "none.mp4", "--model", model)


def test_a_name_that_leads_nowhere_is_no_prompt(model, tmp_path):
    for name in ("bear", tmp_path / "my story"):
        assert f"{name}: no such file, and a prompt has more than one word. A script ends in .yaml" in fails("plan", name, "--model", model)
    assert "is a folder; give a script in it, or all of them by `generate --scripts`" in fails("plan", tmp_path, "--model", model)


def test_a_prompt_may_be_longer_than_a_name_and_end_as_one(model, tmp_path):
    lines, odd = "[1s] A teddy bear walks on the beach.\n" * 10, "[10s] A bear looks at bear.mp4"
    for prompt in (lines, odd):
        assert "80 frames, 10.00 s at 8 fps" in run("plan", prompt, "--model", model)
    assert "no such file" in fails("plan", "bear.mp4", "--model", model) and "no such file" in fails("plan", tmp_path / "a b.mp4", "--model", model)


def test_style_and_context_are_options_as_the_others_are(script, model, tmp_path):
    for command in (("plan",), ("generate", "-o", tmp_path / "a.mp4")):
        assert "style = " in fails(*command, script, "--model", model, "--style", "x" * 1001)
    options = ["--style", "in oils", "--context", "frames", "--num-steps", 2]
    told = run("plan", script, "--model", model, *options)
    assert "in oils" in told
    run("generate", script, "-o", tmp_path / "a.mp4", "--model", model, "--device", "cpu", *options)
    made = read_video(tmp_path / "a.mp4").script
    assert made["style"] == "in oils" and (made["made_with"]["sampling"]["context"], made["made_with"]["sampling"]["num_steps"]) == ("frames", 2)


def test_plan_refuses_what_generate_refuses(script, model, tmp_path):
    assert "num_steps = 0: needs a whole number" in fails("plan", script, "--model", model, "--num-steps", 0)
    assert "no such folder" in fails("plan", script, "--model", "nosuch")
    (tmp_path / "large.yaml").write_text("size: 4096\nfps: 240\nscenes: [{prompt: a bear}]\n")
    for command in ("plan",), ("generate", "-o", tmp_path / "a.mp4"):
        said = fails(*command, tmp_path / "large.yaml", "--model", model)
        assert "large.yaml: 4096x4096 pixels at 240 fps: the frames of a chunk would take" in said
    assert "config.json is missing" in fails("plan", script, "--model", tmp_path)


# ---- train and data ------------------------------------------------------------------------------------------------


def test_two_steps_of_both_networks_make_a_model(config, script, tmp_path):
    out = tmp_path / "run [/]"
    told = run("train", "tokenizer", "--config", config, "--out", out, "--steps", 2, "--device", "cpu")
    assert f"tokenizer: {out / 'model'}" in told and "step 2" in told and "psnr" in told
    assert load_model(out / "model").generator is None
    assert "holds a tokenizer alone" in fails("plan", script, "--model", out / "model")
    told = run("train", "generator", "--config", config, "--out", out, "--steps", 2, "--device", "cpu")
    assert f"tokenizer: {out / 'model'}" in told and f"model: {out / 'model'}" in told and "step 2" in told
    run("generate", script, "-o", tmp_path / "a.gif", "--model", out / "model", "--num-steps", 1, "--device", "cpu")
    assert len(read_video(tmp_path / "a.gif")) == 28


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("patch_size = 8", "patch_sise = 8", "unknown key 'patch_sise'; did you mean 'patch_size'"),
        ("[generator]", "[genrator]", "unknown section [genrator]"),
        ("dim = 32", 'dim = "x"', "dim = 'x': needed int, found str"),
        ('name = "small"', 'name = "[/] tiny"', "world '[/] tiny': known worlds are small, medium, full, wide"),
        ("[world]", "[world", "not a TOML file"),
        ("batch_size = 2", "batch_sise = 2", "did you mean 'batch_size'"),
    ],
)
@pytest.mark.parametrize("network", ["tokenizer", "generator"])
def test_bad_settings(tmp_path, network, old, new, words):
    (tmp_path / "a.toml").write_text((ROOT / "configs" / "tiny.toml").read_text().replace(old, new))
    told = fails("train", network, "--config", tmp_path / "a.toml", "--out", tmp_path / "run")
    assert words in told and "a.toml" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("network", ["tokenizer", "generator"])
def test_bad_training_options(config, tmp_path, network):
    command = ["train", network, "--config", config, "--out", tmp_path / "run"]
    assert "0 steps: needed at least 1" in fails(*command, "--steps", 0)
    assert "seed -1: needed at least 0" in fails(*command, "--seed", -1)
    assert "device 'gpu'" in fails(*command, "--device", "gpu")
    assert "no such file" in fails("train", network, "--config", tmp_path / "none.toml", "--out", tmp_path / "run")
    (tmp_path / "empty.toml").write_text("# nothing\n")
    assert "empty.toml: holds no settings" in fails("train", network, "--config", tmp_path / "empty.toml", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("network", ["tokenizer", "generator"])
def test_a_run_that_cannot_be_written(config, tmp_path, network):
    (tmp_path / "file").write_text("a file")
    for out, words in [("file", "file: is a file; needed a folder"), ("file/run", "file is a file; needed a folder")]:
        assert words in fails("train", network, "--config", config, "--out", tmp_path / out, "--steps", 1, "--device", "cpu")


def test_a_tokenizer_that_is_not_there(config, tmp_path):
    command = ["train", "generator", "--config", config, "--out", tmp_path / "run", "--tokenizer", "nosuch", "--device", "cpu"]
    result = runner.invoke(app, [str(argument) for argument in command])
    told = result.stderr.splitlines()
    assert result.exit_code == 2 and told[0] == "tokenizer: nosuch" and told[1].startswith("error: model 'nosuch': no such folder")
    assert len(told) == 2 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("world", ["small", "medium", "full", "wide"])
def test_a_preview_of_a_world(tmp_path, world):
    (tmp_path / "a [").mkdir()
    told = run("data", "preview", "storybook", "--world", world, "-o", tmp_path / "a [/].png")
    assert told == f"{tmp_path / 'a [/].png'}: 8 stories\n"
    with Image.open(tmp_path / "a [/].png") as picture:
        assert picture.size == (8 * 128 + 640, 8 * 128)


def test_a_preview_that_cannot_be(tmp_path):
    assert "there is a preview of storybook" in fails("data", "preview", "films", "-o", tmp_path / "b.png")
    assert "must end in .png" in fails("data", "preview", "storybook", "-o", tmp_path / "b.jpg")
    assert "seed -1: needed at least 0" in fails("data", "preview", "storybook", "-o", tmp_path / "b.png", "--seed", -1)
    assert "there is no folder" in fails("data", "preview", "storybook", "-o", tmp_path / "none/b.png")
    assert "known worlds are small, medium, full, wide" in fails("data", "preview", "storybook", "-o", tmp_path / "b.png", "--world", "big")


# ---- data tokenize -------------------------------------------------------------------------------------------------


def tokenize(model: Path, output: Path, *options) -> str:
    return run("data", "tokenize", "storybook", "-o", output, "--model", model, "--clips", 3, "--frames", 17, "--device", "cpu", *options)


@pytest.fixture(scope="module")
def tokens(model, tmp_path_factory) -> Path:
    """Three clips of the drawn world, tokenised by the command."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    told = tokenize(model, path)
    assert told.splitlines()[0] == "tokenising 3 stories"
    assert told.splitlines()[-1].startswith(f"{path}: 3 clips of 9 x 4 x 4 tokens, ") and told.endswith(" captions\n")
    return path


@pytest.fixture
def no_samples(monkeypatch):
    """Pictures of samples take longer than the training here."""
    monkeypatch.setattr(phenaki.training.generator, "show_stories", lambda *_: None)


def test_stored_tokens_train_a_generator_as_the_data_itself(config, model, tokens, tmp_path, request):
    options = ["--config", config, "--tokenizer", model, "--steps", 1, "--device", "cpu"]
    config.write_text(config.read_text().replace("num_stories = 2", "num_stories = 3").replace("max_scenes = 2", "max_scenes = 3"))
    assert "tokenising" not in run("train", "generator", *options, "--out", tmp_path / "stored", "--data", tokens)
    assert not (tmp_path / "stored/generator/stories.safetensors").exists()
    assert np.asarray(Image.open(tmp_path / "stored/generator/sample-0000001.png")).shape == (3 * (LABEL_HEIGHT + 32), 13 * 32, 3)
    request.getfixturevalue("no_samples")
    assert "tokenising" in run("train", "generator", *options, "--out", tmp_path / "direct")
    stored, direct = (load_model(tmp_path / name / "model").generator.state_dict() for name in ("stored", "direct"))
    assert all(torch.equal(value, direct[name]) for name, value in stored.items())


def test_tokens_that_are_there_are_not_made_again(model, tokens):
    before = tokens.read_bytes()
    assert "tokenising" not in tokenize(model, tokens) and tokens.read_bytes() == before
    told = tokenize(model, tokens, "--seed", 4)
    assert "making them anew" in told and tokens.read_bytes() != before
    tokens.write_bytes(before)


def test_tokens_of_another_tokenizer_are_refused(config, model, tokens, tmp_path):
    other = tmp_path / "other"
    info, loaded = load_model(model).info, load_model(model)
    with torch.no_grad():
        next(loaded.tokenizer.parameters()).add_(1)
    save_model(other, info, loaded.tokenizer, loaded.generator)
    command = ["train", "generator", "--config", config, "--out", tmp_path / "run", "--data", tokens, "--tokenizer", other, "--device", "cpu"]
    result = runner.invoke(app, [str(argument) for argument in command])
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert f"error: {tokens}: was made with another tokenizer than that of the model 'tiny' in use" in result.stderr
    assert "--tokenizer" in result.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "harm, said",
    [
        (lambda stories: replace(stories, tokens=stories.tokens.clamp(min=300)), "holds the token 300, the tokenizer has 256"),
        (lambda stories: with_pictures(stories, 4, 4, 256), "holds the token 256, the tokenizer has 256"),
        (lambda stories: replace(stories, tokens=stories.tokens[:, :, :3]), "slices of (3, 4) tokens, the tokenizer's are (4, 4)"),
        (lambda stories: with_pictures(stories, 3, 3), "slices of (3, 3) tokens, the tokenizer's are (4, 4)"),
        (lambda stories: replace(stories, texts=stories.texts[:, :100]), "texts 100 wide, the text encoder's are 384"),
        (lambda stories: replace(stories, texts=stories.texts * float("nan")), "texts that are no numbers"),
        (lambda stories: replace(stories, description="[" * 100_000), "does not say what made it"),
    ],
)
def test_tokens_of_other_shapes_and_texts_that_are_no_numbers_are_refused(model, tokens, tmp_path, harm, said):
    harm(StoryTokens.load(tokens)).save(tmp_path / "a.safetensors")
    with pytest.raises(TokensError, match=re.escape(said)):
        prepared_tokens(tmp_path / "a.safetensors", load_model(model), TextEncoder.load())


def with_pictures(stories: StoryTokens, height: int, width: int, token: int = 0) -> StoryTokens:
    """The same with two still pictures of so many tokens, all of them `token`."""
    return replace(stories, images=torch.full((2, height, width), token, dtype=torch.int32), image_caption=torch.zeros(2, dtype=torch.int64))


def test_tokens_with_pictures_of_the_tokenizers_size_are_taken(model, tokens, tmp_path):
    with_pictures(StoryTokens.load(tokens), 4, 4, 255).save(tmp_path / "a.safetensors")
    assert len(prepared_tokens(tmp_path / "a.safetensors", load_model(model), TextEncoder.load()).images) == 2


@pytest.mark.parametrize("harm", [lambda whole: whole[:-40], lambda whole: whole[:50], lambda whole: b"", lambda whole: whole[:-1] + b"\0"])
def test_damaged_tokens_are_told(config, model, tokens, tmp_path, harm):
    path = tmp_path / "harmed.safetensors"
    path.write_bytes(harm(tokens.read_bytes()))
    command = ["train", "generator", "--config", config, "--out", tmp_path / "run", "--data", path, "--tokenizer", model, "--device", "cpu"]
    result = runner.invoke(app, [str(argument) for argument in command])
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert f"error: {path}: " in result.stderr and "`phenaki data tokenize`" in result.stderr


def test_damaged_stories_of_a_run_are_reported_and_made_anew(config, model, tmp_path, no_samples):
    options = ["--config", config, "--out", tmp_path / "run", "--tokenizer", model, "--device", "cpu"]
    run("train", "generator", *options, "--steps", 1)
    path = tmp_path / "run/generator/stories.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    told = run("train", "generator", *options, "--steps", 2)
    assert f"{path}: damaged or cut short" in told and "making the stories anew" in told and "tokenising 2 stories" in told
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("nosuch", [], "nosuch: no such folder or file"),
        (".", [], "holds no videos"),
        ("storybook", ["--frames", 12], "12 frames: C-ViViT needs 1 + 2k frames, so 11 or 13"),
        ("storybook", ["--frames", 0], "0 frames: C-ViViT needs 1 + 2k frames, so 1 or 3"),
        ("storybook", ["--clips", 0], "0 clips of 17 slices and 0 pictures to tokenise: needed at least one"),
        ("storybook", ["--world", "big"], "world 'big': known worlds are small, medium, full, wide"),
        ("storybook", ["--device", "gpu"], "device 'gpu'"),
        ("storybook", ["--seed", -1], "seed -1: needed at least 0"),
        ("storybook", ["-o", "a.npz"], "ending '.npz': tokens are stored as .safetensors"),
    ],
)
def test_bad_options_of_tokenising(model, tmp_path, monkeypatch, path, options, words):
    monkeypatch.chdir(tmp_path)
    assert words in fails("data", "tokenize", path, "-o", "a.safetensors", "--model", model, "--device", "cpu", *options)
    assert not (tmp_path / "a.safetensors").exists()


def test_another_file_is_not_overwritten_by_tokens(model):
    weights = model / "tokenizer.safetensors"
    before = weights.read_bytes()
    assert "is there, and no file of story tokens" in fails("data", "tokenize", "storybook", "-o", weights, "--model", model)
    assert weights.read_bytes() == before


def test_tokens_are_not_tokenised(model, tokens, tmp_path):
    assert "holds story tokens already" in fails("data", "tokenize", tokens, "-o", tmp_path / "b.safetensors", "--model", model)


def test_data_of_another_kind_is_told(config, tokens, tmp_path):
    Video(np.zeros((9, 32, 32, 3), np.uint8), 8).save(tmp_path / "clip.mp4")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    command = ["train", "tokenizer", "--config", config, "--out", tmp_path / "run", "--steps", 1, "--device", "cpu", "--data"]
    assert f"clip.mp4: a single video; give its folder, {tmp_path}" in fails(*command, tmp_path / "clip.mp4")
    assert "a.png: a single picture; give its folder" in fails(*command, tmp_path / "a.png")
    assert "holds story tokens, for `phenaki train generator --data` alone" in fails(*command, tokens)


# ---- as a process --------------------------------------------------------------------------------------------------


def test_a_mistake_as_the_shell_sees_it(tmp_path):
    told = subprocess.run(
        [sys.executable, "-m", "phenaki.cli", "generate", "no/such.yaml", "-o", str(tmp_path / "a.mp4")], capture_output=True, text=True
    )
    assert told.returncode == 2 and told.stdout == "" and told.stderr.startswith("error: ") and len(told.stderr.splitlines()) == 1
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("number, told", [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EFBIG, True), (errno.EACCES, False)])
def test_a_full_disk_is_told_with_what_to_do(capsys, number, told):
    with pytest.raises(typer.Exit), told_errors():
        raise OSError(number, os.strerror(number))
    said = capsys.readouterr().err
    assert os.strerror(number) in said and ("make room there, or give an output on another disk, and run the same command again" in said) == told


LACKS = [
    (MemoryError(), ""),
    (MemoryError("Unable to allocate 8.00 GiB"), " (Unable to allocate 8.00 GiB)"),
    (torch.OutOfMemoryError("CUDA out of memory. It tried 8.00 GiB.\nAnd much advice"), " (CUDA out of memory. It tried 8.00 GiB.)"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), " (DefaultCPUAllocator: can't allocate memory: 8 bytes)"),
]


def test_other_errors_at_run_time_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes differ"), told_errors():
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(("error", "why"), LACKS)
def test_a_lack_of_memory_is_told_with_what_to_do(capsys, error, why):
    with pytest.raises(typer.Exit), told_errors():
        raise error
    assert capsys.readouterr().err == f"error: not enough memory{why}: give a shorter or smaller clip or story, or close other programs\n"


def test_usage_mistakes_are_exit_code_two():
    for arguments in (["generate"], ["plan"], ["nonsense"], ["train", "tokenizer"], ["generate", "a.txt", "-o", "a.mp4", "--seed", "x"]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2 and "Traceback" not in result.output


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.png"])
def test_a_file_that_is_not_the_program_s_own_is_replaced_where_that_is_asked_for(script, model, tmp_path, name):
    output, options = tmp_path / name, ("--model", model, "--device", "cpu", "--num-steps", 1)
    Video(np.full((8, 32, 32, 3), 99, np.uint8), 8).save(output)
    before = output.read_bytes()
    told = f"{output}: is there, and this program did not make it; give the result another name, or --overwrite replaces it"
    assert told in fails("generate", script, "-o", output, *options) and output.read_bytes() == before
    clip = tmp_path / "clip.mp4"
    Video(np.full((8, 32, 32, 3), 50, np.uint8), 8).save(clip)
    assert told in fails("edit", clip, "a bear", "--keep", 0.5, "-o", output, *options) and output.read_bytes() == before
    run("generate", script, "-o", output, "--overwrite", *options)
    made = output.read_bytes()
    assert made != before
    run("generate", script, "-o", output, *options)
    assert output.read_bytes() == made, "its own is made again"
    run("edit", clip, "a bear", "--keep", 0.5, "-o", output, *options)


@pytest.mark.parametrize(("content", "goes"), [(b"", True), (b"no video", False)])
def test_an_empty_file_may_go_and_one_that_cannot_be_read_not(script, model, tmp_path, content, goes):
    for name in ("a.mp4", "a.gif", "a.png"):
        (tmp_path / name).write_bytes(content)
        command = ("generate", script, "-o", tmp_path / name, "--model", model, "--device", "cpu", "--num-steps", 1)
        if goes:
            run(*command)
        else:
            assert "this program did not make it" in fails(*command) and (tmp_path / name).read_bytes() == content


def test_pictures_of_somebody_else_s_are_no_single_frames_of_a_video(script, model, tmp_path):
    options = ("--model", model, "--device", "cpu", "--num-steps", 1)
    run("generate", script, "-o", tmp_path / "f_%03d.png", *options)
    own = sorted(file.name for file in tmp_path.glob("f_*.png"))
    run("generate", "[1s] a bear", "-o", tmp_path / "f_%03d.png", *options)
    assert len(list(tmp_path.glob("f_*.png"))) == 8 < len(own), "a longer video's frames go with it"
    for number in (3, 8, 9000):
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"f_{number:03d}.png")
    before = {file.name: file.read_bytes() for file in tmp_path.glob("f_*.png")}
    said = fails("generate", script, "-o", tmp_path / "f_%03d.png", *options)
    assert "is there, and this program did not make it" in said
    assert before == {file.name: file.read_bytes() for file in tmp_path.glob("f_*.png")}
    run("generate", "[1s] a bear", "-o", tmp_path / "f_%03d.png", "--overwrite", *options)
    for number, stays in ((3, False), (8, True), (9000, True)):
        name = f"f_{number:03d}.png"
        assert ((tmp_path / name).read_bytes() == before[name]) == stays, "only what it writes over is replaced"
