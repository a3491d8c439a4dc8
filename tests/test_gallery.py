"""tools/make_gallery.py: every script beside its pictures, one for each seed, small, of the frames that were made."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import phenaki
from phenaki.data.captions import attribute_phrases, is_held_out
from phenaki.data.world import SMALL_WORLD, WIDE_WORLD
from phenaki.video import Video
from phenaki.video_files import VideoScene

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import make_gallery as gallery

ROOT = Path(__file__).resolve().parents[1]
WIDE_STORIES = ("farm_rain", "robot_on_mars", "savanna_morning", "winter_train")


@pytest.fixture
def told(monkeypatch):
    """A model that fills each scene with a grey of its own, brighter for each seed; writes down what it was asked for."""
    asked = []

    def generate_story(script, *, model, seed):
        story, frames, scenes = phenaki.Story.load(script), [], []
        for index, scene in enumerate(story.scenes):
            scenes.append(VideoScene(scene.prompt, 8 * index, 8))
            frames.append(np.full((8, 48, 48, 3), 40 * index + 10 * seed, np.uint8))
        asked.append((script.stem, seed, model))
        return Video(np.concatenate(frames), 8.0, tuple(scenes))

    monkeypatch.setattr(phenaki, "generate_story", generate_story)
    return asked


@pytest.fixture
def examples(tmp_path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "a.txt").write_text("title: One | two\n---\n[2s] A <b>bear</b> | walks\n[3s, cut] A fox\n")
    (folder / "b.yaml").write_text("scenes:\n  - prompt: A panda\n")
    (folder / "README.md").write_text("no story")
    return folder


def test_a_page_of_every_story_with_three_fixed_seeds(told, examples, tmp_path):
    page = tmp_path / "docs" / "stories.md"
    gallery.make_gallery("some model", examples, page, [])
    assert told == [(name, seed, "some model") for name in ("a", "b") for seed in (0, 1, 2)]
    text = page.read_text()
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert pictures == [f"stories/{name}-seed{seed}.png" for name in ("a", "b") for seed in (0, 1, 2)]
    assert all((page.parent / picture).is_file() for picture in pictures)
    assert "1. A &lt;b&gt;bear&lt;/b&gt; &#124; walks (2 s)<br>2. A fox (3 s, cut)" in text and "## One &#124; two" in text and "`some model`" in text
    rows = [line for line in text.splitlines() if line.startswith("| 1. ")]
    assert len(rows) == 2 and all(row.count("|") == 5 for row in rows)


def test_a_strip_has_a_row_for_each_scene(told, examples):
    for seed in (0, 2):
        pixels = gallery.strip(phenaki.generate_story(examples / "a.txt", model="", seed=seed))
        assert pixels.shape == (2 * 48, gallery.FRAMES * 48, 3)
        assert (pixels[:48] == 10 * seed).all() and (pixels[48:] == 40 + 10 * seed).all()


def test_frames_of_a_large_model_are_made_small():
    video = Video(np.zeros((8, 160, 160, 3), np.uint8), 8.0, (VideoScene("a", 0, 8),))
    assert gallery.strip(video).shape == (gallery.MAX_SIDE, gallery.FRAMES * gallery.MAX_SIDE, 3)


def test_pictures_stay_below_their_limit(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    colours = lambda data: len(Image.open(io.BytesIO(data)).convert("RGB").getcolors(1 << 16))
    assert colours(gallery.small_png(noise)) > 200
    monkeypatch.setattr(gallery, "MAX_BYTES", 4000)
    data = gallery.small_png(noise)
    assert len(data) < 4000 and colours(data) <= 128 and Image.open(io.BytesIO(data)).size == (64, 64)
    monkeypatch.setattr(gallery, "MAX_BYTES", 500)
    with pytest.raises(ValueError, match="a picture of 64x64 pixels is above 500 bytes: tell a story of fewer scenes"):
        gallery.small_png(noise)


def test_a_page_can_be_of_some_stories_alone(told, examples, tmp_path):
    page = tmp_path / "gallery.md"
    gallery.make_gallery("m", examples, page, ["b"])
    assert [name for name, _, _ in told] == ["b"] * 3
    assert "A panda" in page.read_text() and "A fox" not in page.read_text()
    with pytest.raises(ValueError, match=r"no story c in .*: it has a, b"):
        gallery.make_gallery("m", examples, page, ["c"])


def test_there_are_at_least_eight_stories_in_words_of_the_small_world():
    scripts = [path for path in (ROOT / "examples").iterdir() if path.suffix != ".md" and path.stem not in WIDE_STORIES]
    assert len(scripts) >= 8
    known = {"actor": SMALL_WORLD.actors, "place": SMALL_WORLD.places, "time": SMALL_WORLD.times, "motion": SMALL_WORLD.motions}
    for script in scripts:
        for scene in phenaki.Story.load(script).scenes:
            prompt = scene.prompt.lower()
            said = {kind: [name for name in names if attribute_phrases(kind, name)[0] in prompt] for kind, names in known.items()}
            assert all(len(names) == 1 for names in said.values()), (script.name, prompt, said)
            actor, place, motion = (said[kind][0] for kind in ("actor", "place", "motion"))
            assert not is_held_out(actor, place), (script.name, prompt)


@pytest.mark.parametrize("stem", WIDE_STORIES)
def test_the_other_stories_are_in_words_of_the_wide_world(stem):
    (script,) = (ROOT / "examples").glob(f"{stem}.*")
    known = {"actor": WIDE_WORLD.actors, "place": WIDE_WORLD.places, "motion": dict.fromkeys(WIDE_WORLD.motions)}
    for scene in phenaki.Story.load(script).scenes:
        said, prompt = {"actor": ""}, scene.prompt.lower()
        for kind, names in known.items():
            found = {phrase: name for name in names for phrase in attribute_phrases(kind, name, said["actor"], "rich") if phrase in prompt}
            longest = max(found, key=len)
            said[kind] = found[longest]
            assert {name for phrase, name in found.items() if phrase not in longest} <= {said[kind]}, (script.name, prompt, found)
        assert not is_held_out(said["actor"], said["place"]), (script.name, prompt)
