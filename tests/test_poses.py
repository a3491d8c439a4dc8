"""Truths of where things are in storybook stories, in shares of the picture: nothing jumps but at a cut, and all comes back."""

from dataclasses import replace

import numpy as np
import pytest

from phenaki.data.cast import role_of
from phenaki.data.poses import (
    FEET,
    PAN_REACH,
    Track,
    actor_track,
    camera_track,
    companion_track,
    motion_track,
    object_track,
    seen_by,
)
from phenaki.data.storybook import open_world
from phenaki.data.world import FULL_WORLD, GROUND, MEDIUM_WORLD, SMALL_WORLD, WIDE_WORLD, SceneTruth, StoryTruth

SCENE = SceneTruth("dog", "meadow", "day", "clear", "stands", "still", "", 8)
FPS, SIZE = 8.0, 0.5
LOOSE = ("hops", "flies up", "spins", "grows", "shrinks", "circles", "runs left", "runs right")


def tell(*scenes: SceneTruth, x: float = 0.5) -> StoryTruth:
    return StoryTruth(scenes, start_x=x, baseline=GROUND, phase=0)


def moved(motion: str, seconds: float = 12.0) -> Track:
    return motion_track(motion, np.arange(round(seconds * FPS)) / FPS, 0.5, GROUND)


def steps(track: Track) -> np.ndarray:
    """The largest change from frame to frame of place, relative size and angle."""
    turned = np.abs((np.diff(track.angle) + np.pi) % (2 * np.pi) - np.pi) / np.pi
    return np.max([np.abs(np.diff(track.x)), np.abs(np.diff(track.y)), np.abs(np.diff(np.log(track.scale))), turned], axis=0)


def feet(track: Track) -> np.ndarray:
    return track.y + FEET * SIZE * track.scale


# Motions


@pytest.mark.parametrize("world", [SMALL_WORLD, MEDIUM_WORLD, FULL_WORLD, WIDE_WORLD])
def test_every_motion_of_a_world_is_a_motion_of_its_own(world):
    tracks = {motion: moved(motion) for motion in world.motions}
    told = {name: np.stack([track.x, track.y, track.scale, track.angle]).tobytes() for name, track in tracks.items()}
    assert len(set(told.values())) == len(set(world.motions))


@pytest.mark.parametrize("motion", ["walks right", "runs left"])
def test_who_leaves_on_one_side_returns_on_the_other(motion):
    x = moved(motion).x
    assert x.min() >= -0.25 and x.max() < 1.25
    jumps = np.flatnonzero(np.abs(np.diff(x)) > 0.1)
    assert len(jumps) >= 1 and np.allclose(np.abs(np.diff(x)[jumps]), 1.5, atol=0.04)
    assert motion_track(motion, np.array([12.0]), 0.5, GROUND).x == pytest.approx(0.5)  # 1.5 pictures at 1/8 or 1/4 a second


def test_who_falls_lands_and_falls_again():
    y = moved("falls").y
    assert y[0] < 0 and y.max() == GROUND
    assert (np.diff(y)[np.diff(y) < 0] < -0.75).all(), "it only goes up at once, out of sight"
    assert 1 <= np.sum(y[:14] == GROUND) <= 4


def test_who_flies_up_leaves_at_the_top_and_takes_off_again():
    y = moved("flies up").y
    assert y[0] == GROUND and y.min() > -0.26
    assert (np.diff(y)[np.diff(y) > 0] > 0.8).all() and (np.diff(y) < 0).mean() > 0.9


def test_a_rocket_is_drawn_looking_right_and_a_dog_looking_left():
    for actor, mirrored in (("dog", "walks right"), ("rocket", "walks left")):
        assert role_of(actor).faces_right == (actor == "rocket")
        for motion in ("walks left", "walks right", "runs left", "runs right", "stands"):
            flip = actor_track(tell(replace(SCENE, actor=actor, motion=motion)), FPS, SIZE).flip
            assert flip.all() == flip.any() == (motion.split()[-1] == mirrored.split()[-1])


@pytest.mark.parametrize("motion", ["stands", "grows", "shrinks"])
def test_feet_stay_on_the_ground_whatever_the_size(motion):
    for actor in ("dog", "mouse", "elephant"):
        stood = feet(actor_track(tell(replace(SCENE, actor=actor, motion=motion, num_frames=40)), FPS, SIZE))
        np.testing.assert_allclose(stood, GROUND + FEET * SIZE, atol=1e-9)


def test_who_flies_hovers():
    assert (feet(actor_track(tell(replace(SCENE, actor="butterfly")), FPS, SIZE)) < GROUND + FEET * SIZE - 0.1).all()


# From scene to scene


@pytest.mark.parametrize("first", LOOSE)
@pytest.mark.parametrize("second", ["stands", "walks left", "spins", "shrinks"])
def test_an_actor_gets_back_without_a_jump(first, second):
    """With time to settle, no step at the change of scenes is larger than getting back takes; then it is as if it had always been so."""
    story = tell(replace(SCENE, motion=first, num_frames=11), replace(SCENE, motion=second, num_frames=30))
    settled = actor_track(story, FPS, SIZE, 0.5)
    assert steps(settled)[8:18].max() <= 0.3
    alone = actor_track(tell(replace(SCENE, motion=second, num_frames=30)), FPS, SIZE)
    if first != second:
        np.testing.assert_allclose(settled.y[15:], alone.y[4:], atol=1e-9)
        np.testing.assert_allclose(settled.scale[15:], alone.scale[4:], atol=1e-9)


@pytest.mark.parametrize("motion", FULL_WORLD.motions)
def test_a_motion_that_is_told_twice_goes_on(motion):
    scene = replace(SCENE, motion=motion)
    whole = actor_track(tell(replace(scene, num_frames=24)), FPS, SIZE, 0.5)
    parts = actor_track(tell(replace(scene, num_frames=7), replace(scene, num_frames=17)), FPS, SIZE, 0.5)
    for name in ("x", "y", "scale"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * parts.angle), np.exp(1j * whole.angle), atol=1e-9)


def test_another_actor_or_place_starts_afresh():
    flown = replace(SCENE, motion="flies up", num_frames=12)
    for change in ({"actor": "cat"}, {"place": "beach"}):
        track = actor_track(tell(flown, replace(SCENE, **change)), FPS, SIZE, 0.5)
        assert track.y[11] < GROUND - 0.3 and track.y[12] == GROUND


@pytest.mark.parametrize("config", [SMALL_WORLD, FULL_WORLD, WIDE_WORLD], ids=["small", "full", "wide"])
def test_an_actor_never_starts_outside_of_the_picture(config):
    world = open_world(replace(config, size=16))
    for index in range(200):
        story = world.story(0, index, 33, align=2)
        starts = np.cumsum([0, *(scene.num_frames for scene in story.scenes)])[:-1]
        cuts = [0, *(i for i in range(1, len(starts)) if story.scenes[i].place != story.scenes[i - 1].place)]
        assert all(0.1 <= world.actor_track(story).x[starts[i]] <= 0.9 for i in cuts)



# Companions, objects, camera


def test_companions_and_objects_stay_where_they_are():
    scene = replace(SCENE, companion="duck", object="red apple")
    story = tell(replace(scene, motion="walks right"), replace(scene, motion="hops"), replace(scene, time="night", motion="runs left"), x=0.3)
    for track in (companion_track(story, SIZE), object_track(story, SIZE)):
        assert len(track) == 24 and all(len(np.unique(values)) == 1 for values in (track.x, track.y, track.scale, track.flip))


def test_companions_stand_aside_and_look_to_the_middle():
    for x, side, mirrored in ((0.3, 0.8, False), (0.7, 0.2, True)):
        track = companion_track(tell(replace(SCENE, companion="duck"), x=x), SIZE)
        assert track.x[0] == pytest.approx(side) and track.flip[0] == mirrored
        assert companion_track(tell(replace(SCENE, companion="rocket"), x=x), SIZE).flip[0] == (not mirrored)


def test_small_objects_lie_in_front_and_large_ones_stand_behind():
    near, far = (object_track(tell(replace(SCENE, object=name), x=0.3), SIZE) for name in ("red apple", "house"))
    assert near.x[0] < 0.3 < 0.7 < far.x[0]
    assert feet(near)[0] > GROUND + FEET * SIZE > feet(far)[0]


def test_a_pan_runs_to_and_fro_at_one_speed():
    camera = camera_track([tell(replace(SCENE, camera="pan", num_frames=200))], FPS)
    assert camera.pan[0] == 0 and camera.pan.max() == PAN_REACH == -camera.pan.min()
    np.testing.assert_allclose(np.abs(np.diff(camera.pan)), 1 / 128, atol=1e-9)  # whole pixels at size 128
    assert (camera.zoom == 1).all()


def test_a_camera_goes_on_from_where_it_was_and_starts_afresh_in_a_new_place():
    moves = ("pan", "still", "zoom", "pan")
    camera = camera_track([tell(*(replace(SCENE, camera=move) for move in moves), replace(SCENE, place="beach"))], FPS)
    assert np.abs(np.diff(camera.pan[:32])).max() < 0.008 and np.abs(np.diff(camera.zoom[:32])).max() < 0.006
    assert (camera.pan[8:24] == camera.pan[8]).all() and camera.pan[8] > 0.06
    assert camera.zoom[23] < 0.97 and (camera.zoom[24:32] == camera.zoom[24]).all()
    assert (camera.pan[32:] == 0).all() and (camera.zoom[32:] == 1).all()


def test_what_the_camera_shows_is_the_world_moved_and_scaled():
    story = tell(replace(SCENE, camera="zoom", num_frames=30), replace(SCENE, camera="pan", num_frames=10))
    camera, track = camera_track([story], FPS), actor_track(story, FPS, SIZE)
    shown = seen_by(camera, track)
    assert (shown.x[0], shown.y[0], shown.scale[0]) == (track.x[0], track.y[0], track.scale[0])
    np.testing.assert_allclose(shown.scale * camera.zoom, track.scale)
    np.testing.assert_allclose((shown.x - 0.5) * camera.zoom, track.x - 0.5 - camera.pan, atol=1e-12)
