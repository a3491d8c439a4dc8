"""Truths of storybook pictures: what a story says is what its frames show, pixel for pixel."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phenaki.data.art import draw_art
from phenaki.data.cast import stands_behind
from phenaki.data.painter import TINTS, WEATHER_SPEEDS, place_tint
from phenaki.data.poses import Track, camera_track, companion_track, object_track, seen_by
from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.world import FULL_WORLD, GROUND, SMALL_WORLD, SceneTruth, StoryTruth

SCENE = SceneTruth("teddy bear", "beach", "day", "clear", "stands", "still", "", 5)
SECOND = 8  # frames
SMALL_SUMS = [8.908, 3.514, 42.354, 9.866, 25.169, -1.877, 22.483, -22.075]


def tell(*scenes: SceneTruth, x: float = 0.5, phase: int = 0) -> StoryTruth:
    return StoryTruth(scenes, start_x=x, baseline=GROUND, phase=phase)


@pytest.fixture(scope="module")
def small() -> StorybookWorld:
    return open_world(SMALL_WORLD)


@pytest.fixture(scope="module")
def full() -> StorybookWorld:
    return open_world(replace(FULL_WORLD, size=64))


@pytest.fixture(scope="module")
def lantern() -> StorybookWorld:
    """A dark world of 64 pixels with one actor: a half disc of light that has no animation of its own."""
    art = draw_art(("light",), ("dark",), size=32)
    axis = torch.linspace(-1, 1, 32)
    disc = (axis[:, None] ** 2 + axis[None] ** 2 < 0.4) * 255
    disc[:, 20:] = 0  # nothing on its right
    sprite = disc.to(torch.uint8).expand(1, 24, 4, 32, 32).contiguous()
    config = replace(SMALL_WORLD, actors=("light",), places=("dark",), actor_size=0.5)
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


def slowly(world: StorybookWorld, story: StoryTruth) -> Tensor:
    """The same story painted frame by frame, each layer over the whole picture, as the first renderer did: (c f h w)."""
    config, frames = world.config, []
    camera, size = camera_track([story], config.fps), config.size
    tracks = {"companion": companion_track(story, config.actor_size), "object": object_track(story, config.actor_size)}
    tracks["actor"] = world.actor_track(story)
    for number, scene in enumerate(world.scenes_by_frame(story)):
        place = world.painter.places[world.place_index[scene.place]]
        spare = place.shape[-1] - size
        zoom, pan = camera.zoom[number], 2 * camera.pan[number] * size / place.shape[-1] + (1 / place.shape[-1] if spare % 2 else 0)
        frame = sampled(place, [[zoom * size / place.shape[-1], 0, pan], [0, zoom, 0]], size, "border")
        frame = frame * torch.tensor(place_tint(scene.time, scene.place))[:, None, None]
        for kind in ("companion", "actor", "object") if not stands_behind(scene.object) else ("object", "companion", "actor"):
            if name := getattr(scene, kind):
                layer = one_sprite(world, name, seen_by(camera, tracks[kind])[number], (story.phase + number) % 24)
                frame = layer[:3] * torch.tensor(TINTS[scene.time][1])[:, None, None] + frame * (1 - layer[3:])
        x, y = (round(speed * number * size / 64) for speed in WEATHER_SPEEDS[scene.weather])
        layer = world.painter.weathers[world.painter.weather_names.index(scene.weather)].roll((y, x), dims=(1, 2))
        frames.append(layer[:3] + frame * (1 - layer[3:]))
    return torch.stack(frames, 1).clamp(0, 1) * 2 - 1


def sampled(picture: Tensor, theta: list, size: int, padding: str) -> Tensor:
    grid = F.affine_grid(torch.tensor([theta], dtype=torch.float32), [1, len(picture), size, size], align_corners=False)
    return F.grid_sample(picture[None], grid, padding_mode=padding, align_corners=False)[0]


def one_sprite(world: StorybookWorld, name: str, pose: Track, phase: int) -> Tensor:
    half = world.config.actor_size * pose.scale
    cos, sin, sign = math.cos(pose.angle) / half, math.sin(pose.angle) / half, -1 if pose.flip else 1
    x, y = 2 * pose.x - 1, 2 * pose.y - 1
    theta = [[sign * cos, sign * sin, -sign * (cos * x + sin * y)], [-sin, cos, sin * x - cos * y]]
    return sampled(world.painter.actors[world.actor_index[name], phase], theta, world.config.size, "zeros")


@pytest.mark.parametrize("world", ["small", "full"])
def test_boxes_and_shared_views_paint_what_whole_pictures_do(world, request):
    world = request.getfixturevalue(world)
    stories = [world.story(8, index, 17) for index in range(12)]
    fast = world.render(stories)
    for story, video in zip(stories, fast, strict=True):
        torch.testing.assert_close(video, slowly(world, story), atol=2e-4, rtol=0)


def test_the_small_world_looks_as_it_did_when_the_shipped_weights_were_trained(small):
    """Sums of its pixels, each pixel with a weight of its own, as the renderer of that time gave them; and its captions."""
    stories = [small.story(1, index, 33, align=2) for index in range(8)]
    video = small.render(stories).double().flatten(1)
    weights = torch.sin(torch.arange(video.shape[1], dtype=torch.float64))
    torch.testing.assert_close(video @ weights, torch.tensor(SMALL_SUMS, dtype=torch.float64), atol=0.02, rtol=0)
    captions = "\n".join(scene.caption for story in stories for scene in story.scenes)
    assert hashlib.sha256(captions.encode()).hexdigest()[:16] == "f00561fee735f8ee"


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


def test_a_pan_moves_all_that_stands_in_the_world(full):
    scene = replace(SCENE, companion="panda", object="tent", num_frames=9)
    still, pan = full.render([tell(scene, x=0.25), tell(replace(scene, camera="pan"), x=0.25)])
    assert torch.equal(still[:, 0], pan[:, 0]), "both start from the same view"
    shift = 4  # pixels: half a pixel a frame at size 64
    torch.testing.assert_close(pan[:, 8, :, :-shift], still[:, 8, :, shift:], atol=2e-5, rtol=0)
    assert (still - pan)[:, 8].abs().max() > 0.3


def test_a_zoom_brings_all_of_it_closer(full):
    scene = replace(SCENE, companion="panda", object="tent", num_frames=33)
    still, zoom = full.render([tell(scene), tell(replace(scene, camera="zoom"))])
    assert torch.equal(still[:, 0], zoom[:, 0])
    size, seen = 64, 1 - 0.04 * 32 / 8
    axis = torch.linspace(-1, 1, size) * (size - 1) / size * seen
    grid = torch.stack(torch.broadcast_tensors(axis[None], axis[:, None]), -1)
    closer = F.grid_sample(still[None, :, 32], grid[None], align_corners=False)[0]
    assert (closer - zoom[:, 32]).abs().mean() < 0.04 < (still - zoom)[:, 32].abs().mean()


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
        picture = world.painter.places[world.place_index[place]]
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
    rows = middles(light(lantern, "falls", 9)[6:])[1]
    torch.testing.assert_close(rows.diff(), torch.full((2,), 4.0), atol=0.02, rtol=0)


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
    frames = light(lantern, motion, 3 * SECOND)
    areas = frames.sum((1, 2))
    assert (sign * areas.diff() > 0).all()
    assert 0.4**2 < areas[-1] / areas[0] < 1.8**2
    feet = [frame.sum(1).nonzero().max().item() for frame in frames]
    assert max(feet) - min(feet) <= 4, "the ground stays where it is"


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


@pytest.mark.parametrize("second", ["stands", "walks left", "hops", "spins"])
def test_the_actor_goes_on_from_where_it_was(lantern, second):
    scene = replace(SCENE, actor="light", place="dark")
    story = tell(replace(scene, motion="walks right", num_frames=10), replace(scene, motion=second, num_frames=5), x=0.3)
    assert lantern.actor_track(story).x[10] == pytest.approx(0.3 + 10 / 64)
    frames = (lantern.render([story])[0].mean(0) + 1) / 2
    straight = light(lantern, second, 5, x=0.3 + 10 / 64)
    torch.testing.assert_close(frames[10:], straight, atol=1e-5, rtol=0)
