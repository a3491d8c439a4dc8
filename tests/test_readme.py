"""The README runs as printed: its Python blocks, its story, its commands' options; what it links to is there."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from phenaki import pipeline
from phenaki.checkpoint import PRETRAINED, find_model, read_info
from phenaki.cli import app
from phenaki.story import Story
from phenaki.story_for_model import checked_plan, unfamiliar
from phenaki.video import Video

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
shipped = pytest.mark.skipif(not (PRETRAINED / "storybook").is_dir(), reason="no trained weights in this checkout")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = ("generate", "plan", "edit", "train", "tokenizer", "generator", "data", "preview", "check", "evaluate", "story", "drift")


def commands() -> list[str]:
    return [line.strip() for line in README.splitlines() if line.startswith("    ") and line.strip()]


def test_the_two_commands_of_a_fresh_machine_are_there():
    assert "pip install -e . && phenaki generate examples/bear_and_sea.yaml -o bear.mp4" in commands()
    assert "pip install -e '.[test]' && pytest -n 2" in commands()


def test_ci_calls_the_test_command_of_the_readme():
    assert "pip install -q -e '.[test]' && pytest -n 2" in (ROOT / ".ci/run").read_text()


def test_the_story_shown_is_the_example_file():
    (shown,) = blocks("yaml")
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "examples/bear_and_sea.yaml").read_text())


def test_the_plain_text_shown_is_a_story():
    (shown,) = blocks("text")
    story = Story.from_text(shown)
    assert (story.title, story.seed, story.seconds) == ("The bear and the panda", 7, 9.5)
    assert (story.scenes[1].guidance_scale, story.scenes[1].num_steps, story.scenes[2].cut) == (4, 16, True)


def test_every_phenaki_command_has_the_options_it_is_shown_with():
    lines = [part for line in commands() for part in line.split("&&") if part.strip().startswith("phenaki ")]
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line)[1:]
        path = [word for word in words[:2] if word in COMMANDS]
        shown = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, [*path, "--help"])
        assert shown.exit_code == 0, shown.output
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", shown.output), f"{line}: {option}"


@shipped
def test_every_example_loads_and_fits_the_shipped_world():
    scripts, info = [path for path in (ROOT / "examples").iterdir() if path.suffix != ".md"], read_info(find_model("storybook"))
    assert len(scripts) >= 4
    for script in scripts:
        story = Story.load(script)
        assert len(story.scenes) >= 3 and story.seconds >= 10, script.name
        assert not unfamiliar(checked_plan(story, info), info), script.name


def test_links_and_pictures_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"`((?:docs|configs|tools|examples|phenaki)/[\w./-]+)`", README):
        assert (ROOT / target).exists(), target


@shipped
def test_python_blocks_run(tmp_path, monkeypatch):
    """With two rounds a chunk: how good the video is does not matter here."""
    monkeypatch.chdir(tmp_path)
    really = pipeline.sampling_options
    monkeypatch.setattr(pipeline, "sampling_options", lambda *given: replace(really(*given), num_steps=2, num_corrections=0))
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    video = Video.load(tmp_path / "bear.mp4")
    assert (len(video), video.fps, video.frames.shape[1:], len(video.scenes)) == (64, 8.0, (128, 128, 3), 2)
    assert video.script["seed"] == 7 and video.scenes[1].prompt == "The teddy bear hops at sunset" and video.frames.std() > 10


@shipped
def test_shipped_weights_are_small_half_precision_and_described():
    folder = find_model("storybook")
    sizes = [file.stat().st_size for file in folder.iterdir()]
    assert max(sizes) <= 16 * 2**20 and sum(file.stat().st_size for file in PRETRAINED.rglob("*") if file.is_file()) <= 60 * 2**20
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("Fluent Emoji", "MIT", "CC0", "PSNR", "two CPU cores"):
        assert word in card
    assert read_info(folder).training["generator_steps"] > 0
