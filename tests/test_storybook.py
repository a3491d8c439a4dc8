"""Truths of the storybook world: what a story says is what its frames show, and what is held out is never trained on."""

import hashlib
import importlib.util
import json
import math
import random
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from phenaki.data import captions
from phenaki.data.art import Art, draw_art, load_atlas
from phenaki.data.captions import is_held_out, phrases
from phenaki.data.storybook import (
    FULL_WORLD,
    GROUND,
    SMALL_WORLD,
    TINTS,
    WEATHER_SPEEDS,
    SceneTruth,
    StorybookWorld,
    StoryTruth,
    open_world,
    pose,
)

TABLES = {
    "a": captions.ACTOR_PHRASES, "p": captions.PLACE_PHRASES, "t": captions.TIME_PHRASES, "w": captions.WEATHER_PHRASES,
    "m": captions.MOTION_PHRASES, "c": captions.CAMERA_PHRASES,
}  # fmt: skip
SCENE = SceneTruth("fox", "beach", "day", "clear", "stands", "still", "", 5)
SECOND = 8  # frames


def tell(*scenes: SceneTruth, x: float = 0.5, phase: int = 0) -> StoryTruth:
    return StoryTruth(scenes, start_x=x, baseline=GROUND, phase=phase)


@pytest.fixture(scope="module")
def small() -> StorybookWorld:
    return open_world(SMALL_WORLD)


@pytest.fixture(scope="module")
def full() -> StorybookWorld:
    return open_world(FULL_WORLD)


@pytest.fixture(scope="module")
def training_stories(small) -> list[StoryTruth]:
    return [small.story(0, index, 33, align=2) for index in range(2000)]


@pytest.fixture(scope="module")
def full_stories(full) -> list[StoryTruth]:
    return [full.story(3, index, 33, align=2) for index in range(120)]


@pytest.fixture(scope="module")
def lantern() -> StorybookWorld:
    """A dark world of 64 pixels with one actor: a half disc of light that has no animation of its own."""
    art = draw_art(("light",), ("dark",), size=32)
    axis = torch.linspace(-1, 1, 32)
    disc = (axis[:, None] ** 2 + axis[None] ** 2 < 0.4) * 255
    disc[:, 20:] = 0  # nothing on its right
    sprite = disc.to(torch.uint8).expand(1, 24, 4, 32, 32).contiguous()
    config = replace(FULL_WORLD, actors=("light",), places=("dark",))
    return StorybookWorld(config, replace(art, actors=sprite, places=torch.zeros_like(art.places)))


def light(lantern: StorybookWorld, motion: str, num_frames: int, x: float = 0.5) -> Tensor:
    """Frames (f h w) in [0, 1] of the light moving."""
    scene = replace(SCENE, actor="light", place="dark", motion=motion, num_frames=num_frames)
    return (lantern.render([tell(scene, x=x)])[0].mean(0) + 1) / 2


def middles(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Centre of the light in each frame: columns and rows in pixels."""
    axis = torch.arange(frames.shape[-1], dtype=torch.float32)
    weight = frames.sum((1, 2))
    return (frames.sum(1) * axis).sum(1) / weight, (frames.sum(2) * axis).sum(1) / weight


# Stories


def test_a_story_depends_on_its_seed_and_index_alone(small):
    wanted = [small.story(5, index, 17) for index in range(20)]
    random.seed(1)
    torch.manual_seed(1)
    other = open_world(replace(SMALL_WORLD, size=16))
    assert [other.story(5, index, 17) for index in reversed(range(20))] == wanted[::-1]
    assert len(set(wanted)) == 20
    assert not set(wanted) & {small.story(6, index, 17) for index in range(20)}


def test_the_drawing_of_stories_has_not_changed(small):
    """Trained models and stored tokens were made of these stories; another process and another Python draw the same."""
    drawn = repr([small.story(7, index, 33, align=2) for index in range(50)])
    assert hashlib.sha256(drawn.encode()).hexdigest() == "72262a32b1df8bdc86231dc7714fdf90d70cc9ae2652a975fed947a7a9286040"


@pytest.mark.parametrize(("num_frames", "align"), [(1, 1), (2, 1), (17, 1), (17, 2), (33, 4), (32, 3)])
def test_scenes_tile_the_frames_and_change_where_slices_do(small, num_frames, align):
    counts = set()
    for index in range(150):
        story = small.story(1, index, num_frames, align=align, max_scenes=3)
        assert story.num_frames == num_frames == len(small.scenes_by_frame(story)) == len(small.poses(story))
        cuts = np.cumsum([scene.num_frames for scene in story.scenes])[:-1]
        assert all((cut - 1) % align == 0 for cut in cuts)
        assert all(scene.num_frames >= 1 for scene in story.scenes)
        counts.add(len(story.scenes))
    assert counts == set(range(1, min(3, 1 + len(range(1, num_frames, align))) + 1))


def test_every_attribute_occurs_and_changes(training_stories):
    scenes = [scene for story in training_stories for scene in story.scenes]
    for name, values in (("actor", "actors"), ("place", "places"), ("time", "times"), ("motion", "motions")):
        assert {getattr(scene, name) for scene in scenes} == set(getattr(SMALL_WORLD, values))
    pairs = [pair for story in training_stories for pair in zip(story.scenes, story.scenes[1:], strict=False)]
    for name in ("actor", "place", "time"):
        changed = sum(getattr(one, name) != getattr(two, name) for one, two in pairs) / len(pairs)
        assert 0.25 < changed < 0.6, name


def test_an_actor_is_not_its_own_companion(full_stories):
    scenes = [scene for story in full_stories for scene in story.scenes]
    assert all(scene.companion != scene.actor for scene in scenes)
    assert 0.05 < sum(bool(scene.companion) for scene in scenes) / len(scenes) < 0.35


# What is held out


def has_hidden_pair(scene: SceneTruth) -> bool:
    return is_held_out(scene.actor, scene.place) or is_held_out(scene.actor, scene.motion)


def test_training_stories_have_no_held_out_pair(training_stories, full_stories):
    assert not any(has_hidden_pair(scene) for story in [*training_stories, *full_stories] for scene in story.scenes)


@pytest.mark.parametrize("config", [SMALL_WORLD, FULL_WORLD], ids=["small", "full"])
def test_test_stories_always_have_one(config):
    world = open_world(config)
    assert all(has_hidden_pair(scene) for index in range(60) for scene in world.story(2, index, 17, held_out=True).scenes)


def test_about_a_tenth_is_held_out():
    every = [phrase for table in TABLES.values() for options in table.values() for phrase in options] + list(captions.TEMPLATES)
    hidden = [phrase for table in TABLES.values() for options in table.values() for phrase in options[1:] if is_held_out(phrase)]
    assert 0.05 < len(hidden) / len(every) < 0.15
    words = [f"word {number}" for number in range(3000)]
    assert 0.085 < sum(is_held_out(word, "beach") for word in words) / 3000 < 0.115
    pairs = [(actor, other) for actor in SMALL_WORLD.actors for other in (*SMALL_WORLD.places, *FULL_WORLD.motions)]
    assert 0.05 < sum(is_held_out(*pair) for pair in pairs) / len(pairs) < 0.15


def test_the_first_phrasing_is_always_trained_on():
    every = [options for table in TABLES.values() for options in table.values()] + [captions.TEMPLATES]
    for options in every:
        drawn = {captions.choose(random.Random(seed), options, held_out=False) for seed in range(200)}
        assert options[0] in drawn
        assert drawn == {options[0], *(option for option in options[1:] if not is_held_out(option))}


def test_test_stories_use_held_out_words(small):
    """Where an attribute has a held-out phrasing, a test story says nothing else."""
    said = {small.story(2, index, 9, held_out=True).scenes[0].caption for index in range(80)}
    hidden = [phrase for table in TABLES.values() for options in table.values() for phrase in options[1:] if is_held_out(phrase)]
    assert {phrase for phrase in hidden if any(phrase in caption for caption in said)} >= {"by the sea", "is jumping"}
    assert not any("on the beach" in caption or re.search(r"\bhops\b", caption) for caption in said)


# Captions


@cache
def sentence(scene: SceneTruth, silent: frozenset[str]) -> re.Pattern:
    """What a caption of a scene may be in training: any template with any phrasing that is not held out."""

    def any_of(options: tuple[str, ...]) -> str:
        return "(?:" + "|".join(re.escape(option) for i, option in enumerate(options) if i == 0 or not is_held_out(option)) + ")"

    own = {"a": scene.actor, "p": scene.place, "t": scene.time, "w": scene.weather, "m": scene.motion, "c": scene.camera}
    parts = {key: any_of(phrases(TABLES[key], name)) for key, name in own.items()}
    parts |= {key: "" for key in ("p", "t") if {"p": "place", "t": "time"}[key] in silent}
    parts |= {key: "" for key, none in (("w", "clear"), ("c", "still")) if own[key] == none}
    parts["o"] = f" with {any_of(phrases(TABLES['a'], scene.companion))}" if scene.companion else ""
    sentences = []
    for template in captions.TEMPLATES:
        if template == captions.TEMPLATES[0] or not is_held_out(template):
            clauses = [re.sub(r"\{(\w)\}", lambda found: parts[found[1]] and f"<{found[1]}>", clause) for clause in template.split(",")]
            tidy = ", ".join(" ".join(clause.split()) for clause in clauses if clause.strip())
            sentences.append(re.sub(r"<(\w)>", lambda found: parts[found[1]], tidy))
    return re.compile("|".join(f"(?:{text})" for text in sentences))


def left_out(scene: SceneTruth) -> frozenset[str] | None:
    """What of place and time the caption leaves out; None where it is no caption of this scene."""
    for way in ((), ("place",), ("time",), ("place", "time")):
        if sentence(replace(scene, caption="", num_frames=1), frozenset(way)).fullmatch(scene.caption):
            return frozenset(way)
    return None


@pytest.mark.parametrize("stories", ["training_stories", "full_stories"])
def test_captions_say_what_is_seen_and_use_no_held_out_phrasing(stories, request):
    """Actor and motion always; place and time unless they did not change, or a first scene is by day."""
    kept_and_silent = 0
    for story in request.getfixturevalue(stories):
        for previous, scene in zip([None, *story.scenes], story.scenes, strict=False):
            silent = left_out(scene)
            assert silent is not None, f"not a caption of {scene}"
            if "place" in silent:
                assert previous and previous.place == scene.place, scene
            if "time" in silent:
                assert previous.time == scene.time if previous else scene.time == "day", scene
            kept_and_silent += previous is not None and bool(silent)
    assert kept_and_silent > 20


def test_captions_are_tidy(training_stories, full_stories):
    for story in [*training_stories, *full_stories]:
        for scene in story.scenes:
            assert re.fullmatch(r"[a-z]+( [a-z]+|, [a-z]+)*", scene.caption), scene.caption


def test_a_name_without_phrasings_is_said_by_itself():
    said = captions.caption(random.Random(0), actor="zebra", motion="hops")
    assert "zebra" in said and "{" not in said


# Pictures


@pytest.mark.parametrize("size", [32, 64])
def test_video_has_the_promised_shape_and_range(size):
    world = open_world(replace(FULL_WORLD, size=size))
    video = world.render([world.story(0, index, 9) for index in range(6)])
    assert video.shape == (6, 3, 9, size, size) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1 and video.std() > 0.1


@pytest.mark.parametrize("world", ["small", "full"])
def test_a_batch_shows_what_each_story_shows_alone(world, request):
    world = request.getfixturevalue(world)
    stories = [world.story(4, index, 9) for index in range(6)]
    torch.testing.assert_close(world.render(stories), torch.cat([world.render([story]) for story in stories]), atol=1e-6, rtol=0)


def test_stories_of_unequal_length_are_refused(small):
    with pytest.raises(ValueError, match=r"stories of \[5, 6\] frames in one batch"):
        small.render([tell(SCENE), tell(replace(SCENE, num_frames=6))])


def away_from_actor(world: StorybookWorld, x: float) -> Tensor:
    """(h w) True where a standing actor at x cannot reach."""
    size = world.config.size
    columns, rows = torch.arange(size)[None] / size, torch.arange(size)[:, None] / size
    reach = world.config.actor_size / 2 + 1 / size
    return ((columns - x).abs() > reach) | ((rows - GROUND).abs() > reach)


def test_another_actor_changes_nothing_around_it(small):
    one, two = small.render([tell(SCENE), tell(replace(SCENE, actor="panda"))])
    away = away_from_actor(small, 0.5)
    assert torch.equal(one[:, :, away], two[:, :, away])
    assert (one - two)[:, :, ~away].abs().max() > 0.3


def test_another_place_changes_nothing_where_the_actor_is_opaque(small):
    scenes = [replace(SCENE, place=place) for place in ("beach", "city")]
    one, two = small.render([tell(scene) for scene in scenes])
    middle = (slice(None), slice(None), slice(42, 48), slice(29, 35))
    torch.testing.assert_close(one[middle], two[middle], atol=1e-6, rtol=0)
    assert (one - two).abs().max() > 0.3


def test_another_time_of_day_only_tints(small):
    day, night = ((video + 1) / 2 for video in small.render([tell(SCENE), tell(replace(SCENE, time="night"))]))
    away = away_from_actor(small, 0.5)
    for colour in range(3):
        place, actor = (TINTS["night"][layer][colour] for layer in (0, 1))
        torch.testing.assert_close(night[colour][:, away], day[colour][:, away] * place, atol=1e-5, rtol=0)
        torch.testing.assert_close(night[colour, :, 44, 32], day[colour, :, 44, 32] * actor, atol=1e-5, rtol=0)


def test_another_camera_moves_the_place_and_not_the_actor(full):
    scenes = [replace(SCENE, camera=camera, num_frames=9) for camera in ("still", "pan", "zoom")]
    still, pan, zoom = full.render([tell(scene) for scene in scenes])
    assert torch.equal(still[:, 0], pan[:, 0]) and torch.equal(still[:, 0], zoom[:, 0]), "all start from the same view"
    for moved in (pan, zoom):
        assert (still - moved)[:, 8].abs().max() > 0.1
        torch.testing.assert_close(still[:, 8, 42:48, 29:35], moved[:, 8, 42:48, 29:35], atol=1e-6, rtol=0)


@pytest.mark.parametrize("weather", ["rain", "snow", "leaves"])
def test_weather_is_a_layer_that_moves_by_whole_pixels(lantern, weather):
    scene = replace(SCENE, actor="light", place="dark", weather=weather, num_frames=4)
    falling, clear = lantern.render([tell(scene), tell(replace(scene, weather="clear"))])
    away = (clear == -1).all(0).all(0)  # where the picture behind is black in all frames
    assert (falling - clear).abs().max() > 0.2
    x, y = WEATHER_SPEEDS[weather]
    for frame in range(1, 4):
        moved = falling[:, 0].roll((y * frame, x * frame), dims=(1, 2))
        both = away & away.roll((y * frame, x * frame), dims=(0, 1))
        torch.testing.assert_close(falling[:, frame][:, both], moved[:, both], atol=1e-6, rtol=0)


def test_a_companion_stands_aside(full):
    alone, together = full.render([tell(SCENE, x=0.3), tell(replace(SCENE, companion="panda"), x=0.3)])
    changed = (alone - together).abs().amax((0, 1)) > 0.05
    assert changed.any() and changed.nonzero()[:, 1].min() >= 0.8 * 64 - 0.2 * 64 - 2


@pytest.mark.parametrize("size", [32, 64])
def test_a_still_camera_copies_the_place(size):
    world = open_world(replace(SMALL_WORLD, size=size))
    away = away_from_actor(world, 0.5)
    for place in SMALL_WORLD.places:
        video = (world.render([tell(replace(SCENE, place=place))])[0] + 1) / 2
        picture = world.places[world.place_index[place]]
        spare = picture.shape[-1] - size
        crops = [picture[:, :, start : start + size] for start in (spare // 2, spare - spare // 2)]
        gaps = [(video[:, :, away] - crop[:, None][:, :, away]).abs().max().item() for crop in crops]
        assert min(gaps) < 1e-4, (place, gaps)
        assert torch.equal(video[:, :1, away].expand_as(video[:, :, away]), video[:, :, away]), "frames differ"


def test_an_actor_plays_its_loop_from_the_story_s_phase(small):
    video = small.render([tell(replace(SCENE, num_frames=30), phase=3)])[0]
    later = small.render([tell(replace(SCENE, num_frames=30), phase=5)])[0]
    torch.testing.assert_close(video[:, 24:], video[:, :6], atol=1e-6, rtol=0)  # 24 frames a loop
    torch.testing.assert_close(video[:, 2:], later[:, :28], atol=1e-6, rtol=0)
    assert (video[:, 0] - video[:, 12]).abs().max() > 0.05


# Motions


@pytest.mark.parametrize(
    ("motion", "right", "down"),
    [("stands", 0, 0), ("walks right", 1, 0), ("walks left", -1, 0), ("runs right", 2, 0), ("runs left", -2, 0), ("flies up", 0, -2)],
)
def test_whole_pixels_a_frame(lantern, motion, right, down):
    columns, rows = middles(light(lantern, motion, 6))
    torch.testing.assert_close(columns.diff(), torch.full((5,), float(right)), atol=0.02, rtol=0)
    torch.testing.assert_close(rows.diff(), torch.full((5,), float(down)), atol=0.02, rtol=0)


def test_who_falls_comes_down(lantern):
    rows = middles(light(lantern, "falls", 3))[1]
    torch.testing.assert_close(rows.diff(), torch.full((2,), 2.0), atol=0.02, rtol=0)


def test_a_hop_leaves_the_ground_and_returns(lantern):
    columns, rows = middles(light(lantern, "hops", 2 * SECOND + 1))
    ground = rows[0]
    torch.testing.assert_close(rows[[SECOND, 2 * SECOND]], ground.expand(2), atol=0.02, rtol=0)
    assert (rows <= ground + 0.02).all() and rows.min() < ground - 14
    assert rows[1 : SECOND // 2 + 1].diff().max() < 0 < rows[SECOND // 2 : SECOND].diff().min()
    assert columns.std() < 0.02


def test_a_spin_turns_on_the_spot(lantern):
    frames = light(lantern, "spins", 2 * SECOND + 1)
    torch.testing.assert_close(frames[0], frames[2 * SECOND], atol=1e-4, rtol=0)
    half = frames[SECOND]  # after one second, upside down about the actor's own middle
    top = 2 * round(GROUND * 64) - 64
    torch.testing.assert_close(half[top:], frames[0][top:].flip(0, 1), atol=0.6, rtol=0)
    assert (middles(frames)[0][SECOND] - 31.5).sign() == -(middles(frames)[0][0] - 31.5).sign()
    torch.testing.assert_close(frames.sum((1, 2)), frames[0].sum().expand(2 * SECOND + 1), atol=0, rtol=0.05)


@pytest.mark.parametrize(("motion", "sign"), [("grows", 1), ("shrinks", -1)])
def test_size_changes_steadily_and_within_limits(lantern, motion, sign):
    areas = light(lantern, motion, 3 * SECOND).sum((1, 2))
    assert (sign * areas.diff() > 0).all()
    assert 0.4 <= pose(motion, 1000, 0.5, GROUND).scale <= 1.8


def test_a_circle_is_closed(lantern):
    columns, rows = middles(light(lantern, "circles", 2 * SECOND + 1))
    assert abs(columns[0] - columns[-1]) < 0.02 and abs(rows[0] - rows[-1]) < 0.02
    assert (columns - columns[0]).max() > 7 and (columns - columns[0]).min() < -7 and (rows - rows[0]).min() < -14
    centre = torch.stack([columns - columns[0], rows - rows[0] + 0.12 * 64])
    torch.testing.assert_close(centre.norm(dim=0), torch.full((2 * SECOND + 1,), 0.12 * 64), atol=0.05, rtol=0)


def test_walkers_look_where_they_go(lantern):
    """The light has nothing on its right; walking right it is mirrored."""
    left, right, still = (light(lantern, motion, 1)[0] for motion in ("walks left", "walks right", "stands"))
    assert torch.equal(left, still)
    torch.testing.assert_close(right, left.flip(1), atol=1e-5, rtol=0)


def test_who_leaves_on_one_side_returns_on_the_other():
    places = [pose("walks right", frame / 8, 0.5, GROUND).x for frame in range(96)]
    assert min(places) >= -0.25 and max(places) < 1.25
    assert places.index(min(places)) == places.index(max(places)) + 1
    assert math.isclose(pose("walks right", 12, 0.5, GROUND).x, 0.5, abs_tol=1e-9)  # 1.5 pictures at an eighth a second


def test_every_motion_of_the_world_is_a_motion_of_its_own():
    """None falls through to standing still, and each name has its words."""
    still = [pose("stands", frame / 8, 0.5, GROUND) for frame in range(12)]
    assert len(set(still)) == 1
    tracks = {motion: tuple(pose(motion, frame / 8, 0.5, GROUND) for frame in range(12)) for motion in FULL_WORLD.motions}
    assert len(set(tracks.values())) == len(FULL_WORLD.motions)
    assert set(FULL_WORLD.motions) == set(captions.MOTION_PHRASES)
    for key, names in (("p", "places"), ("t", "times"), ("w", "weathers"), ("c", "cameras"), ("a", "actors")):
        assert set(getattr(FULL_WORLD, names)) == set(TABLES[key])


@pytest.mark.parametrize("second", ["stands", "walks left", "hops", "spins"])
def test_the_actor_goes_on_from_where_it_was(lantern, second):
    scene = replace(SCENE, actor="light", place="dark")
    story = tell(replace(scene, motion="walks right", num_frames=10), replace(scene, motion=second, num_frames=5), x=0.3)
    assert lantern.poses(story)[10].x == pytest.approx(0.3 + 10 / 64)
    frames = (lantern.render([story])[0].mean(0) + 1) / 2
    straight = light(lantern, second, 5, x=0.3 + 10 / 64)
    torch.testing.assert_close(frames[10:], straight, atol=1e-5, rtol=0)


def test_a_scene_never_starts_outside_of_the_picture(training_stories, small):
    for story in training_stories[:300]:
        starts = np.cumsum([0, *(scene.num_frames for scene in story.scenes)])[:-1]
        assert all(0.1 <= small.poses(story)[start].x <= 0.9 for start in starts)


# Art


def test_art_without_a_name_is_refused():
    art = draw_art(("fox", "panda"), ("beach",))
    with pytest.raises(ValueError, match=r"the art has no actor \['unicorn'\]: it has fox, panda"):
        StorybookWorld(replace(SMALL_WORLD, actors=("fox", "unicorn"), places=("beach",)), art)
    with pytest.raises(ValueError, match=r"the art has no place \['city'\]: it has beach"):
        StorybookWorld(replace(SMALL_WORLD, actors=("fox",), places=("city",)), art)


def test_drawn_art_tells_every_name_apart():
    art = draw_art(SMALL_WORLD.actors, SMALL_WORLD.places)
    for pictures in (art.actors[:, 0].float(), art.places.float()):
        gaps = [(one - two).abs().mean() for i, one in enumerate(pictures) for two in pictures[:i]]
        assert min(gaps) > 2


@pytest.fixture(scope="module")
def art_folder(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder like the real one: two strips of 24 frames of 12 pixels, three places, three particles."""
    folder, rng, made = tmp_path_factory.mktemp("art"), np.random.default_rng(0), {}

    def draw(name: str, height: int, width: int, channels: int) -> None:
        made[name] = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(made[name]).save(folder / name)

    for name in ("fox", "owl"):
        draw(f"sprites/{name}.png", 12, 12 * 24, 4)
    for name in ("1", "2", "18"):
        draw(f"backgrounds/{name}.png", 89, 137, 3)
    for name in ("rain-1", "snow-particle-5", "leaf-1"):
        draw(f"particles/{name}.png", 12, 12, 4)
    (folder / "sprites/index.json").write_text(json.dumps([{"name": name, "file": f"{name}.png"} for name in ("fox", "owl")]))
    places = [{"name": "beach", "file": "1.png"}, {"name": "desert", "file": "2.png"}]
    (folder / "backgrounds/index.json").write_text(json.dumps(places))
    return folder, made


@pytest.fixture(scope="module")
def atlas(art_folder) -> Path:
    """The folder packed by the tool."""
    path = Path(__file__).resolve().parents[1] / "tools/pack_storybook.py"
    spec = importlib.util.spec_from_file_location("pack_storybook", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    output = art_folder[0] / "atlas.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pack", str(art_folder[0]), "-o", str(output), "--size", "12", "--world", "all"])
        tool.main()
    return output


def premultiplied(picture: np.ndarray) -> np.ndarray:
    rgba = picture.astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return (rgba * 255).round().transpose(2, 0, 1)


def test_a_packed_atlas_has_the_pictures_of_the_folder(art_folder, atlas):
    made, art = art_folder[1], load_atlas(atlas)
    assert (art.actor_names, art.place_names, art.particle_names) == (("fox", "owl"), ("beach", "desert"), ("rain", "snow", "leaves"))
    assert art.actors.shape == (2, 24, 4, 12, 12) and art.places.shape == (2, 3, 89, 137) and art.particles.shape == (3, 4, 12, 12)
    assert art.actors.dtype == art.places.dtype == art.particles.dtype == torch.uint8
    for index, name in enumerate(("fox", "owl")):
        for frame in (0, 7, 23):
            strip = made[f"sprites/{name}.png"][:, 12 * frame : 12 * frame + 12]
            assert np.abs(art.actors[index, frame].numpy() - premultiplied(strip)).max() <= 1
    assert np.array_equal(art.places[0].numpy(), made["backgrounds/1.png"].transpose(2, 0, 1))
    assert np.array_equal(art.places[1].numpy(), made["backgrounds/18.png"].transpose(2, 0, 1)), "the desert has a picture of its own"
    assert np.abs(art.particles[2].numpy() - premultiplied(made["particles/leaf-1.png"])).max() <= 1


def test_a_world_opens_from_an_atlas(atlas):
    world = open_world(replace(SMALL_WORLD, actors=("fox", "owl"), places=("beach", "desert"), size=32), atlas)
    assert world.render([world.story(0, 0, 5)]).shape == (1, 3, 5, 32, 32)
    assert world.fingerprint != open_world(replace(world.config)).fingerprint, "other pictures, other fingerprint"


def test_a_broken_atlas_is_refused(tmp_path, atlas):
    with pytest.raises(ValueError, match=r"none: no such atlas file. Pack one"):
        load_atlas(tmp_path / "none")
    whole = atlas.read_bytes()
    for number, content in enumerate((b"", b"text", whole[:100], whole[:-1], save({"actors": torch.zeros(1)}))):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a storybook atlas") as error:
            load_atlas(path)
        assert str(path) in str(error.value)


def test_art_is_data_of_one_kind():
    art = draw_art(("fox",), ("beach",))
    assert isinstance(art, Art) and art.actors.dtype == torch.uint8
    assert (art.actors[:, :, :3] <= art.actors[:, :, 3:]).all(), "colours are premultiplied by alpha"


def test_actors_of_the_small_world_start_on_its_grid(small):
    stories = [small.story(0, index, 9) for index in range(60)]
    assert small.config.start_step == 4
    assert {round(story.start_x * 64) % 4 for story in stories} == {0}
    assert {round((GROUND - story.baseline) * 64) for story in stories} == {0, 4, 8}
    assert {story.phase % 2 for story in stories} == {0}
    assert len({story.start_x for story in stories}) > 8
