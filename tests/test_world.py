"""Truths of the casts of the storybook worlds: how much there is, in how many words, and how much is held out."""

import hashlib
import re
from collections import Counter
from dataclasses import fields, replace
from itertools import chain, product

import pytest
import torch

from phenaki.data.art import draw_art
from phenaki.data.captions import is_held_out, motion_phrases
from phenaki.data.cast import HALF_TINTED, OBJECT_SCALES, ROLES, SHELTERED, role_of, stands_behind
from phenaki.data.phrasings import WORDINGS
from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.world import FULL_WORLD, LATER_FIELDS, MEDIUM_WORLD, SMALL_WORLD, WIDE_WORLD, WORLDS, SceneTruth, WorldConfig, described

RICH = WORDINGS["rich"]
TABLES = {
    "actors": RICH.actors, "places": RICH.places, "times": RICH.times, "weathers": RICH.weathers, "motions": RICH.motions,
    "cameras": RICH.cameras, "objects": RICH.objects,
}  # fmt: skip


@pytest.fixture(scope="module")
def full() -> StorybookWorld:
    return open_world(replace(FULL_WORLD, size=16))


@pytest.fixture(scope="module")
def scenes(full) -> list[SceneTruth]:
    return [scene for index in range(1500) for scene in full.story(1, index, 33, align=2).scenes]


# What there is


def test_the_full_world_is_as_large_as_it_is_said_to_be():
    sizes = {name: len(getattr(FULL_WORLD, name)) for name in TABLES}
    least = {"actors": 48, "places": 20, "times": 4, "weathers": 4, "motions": 12, "cameras": 3, "objects": 12}
    assert all(sizes[name] >= least[name] for name in least), sizes
    assert (FULL_WORLD.size, FULL_WORLD.fps) == (128, 8)
    assert FULL_WORLD.companion_prob > 0 and FULL_WORLD.object_prob > 0


def test_the_medium_world_is_between_the_two():
    sizes = [len(getattr(MEDIUM_WORLD, name)) for name in ("actors", "places", "times", "weathers", "motions", "cameras", "objects")]
    assert sizes == [16, 10, 3, 3, 6, 1, 0] and MEDIUM_WORLD.size == 64 and MEDIUM_WORLD.companion_prob == 0
    for name in ("actors", "places", "motions", "weathers", "times"):
        assert set(getattr(SMALL_WORLD, name)) <= set(getattr(MEDIUM_WORLD, name)) <= set(getattr(FULL_WORLD, name))


def test_the_wide_world_has_all_of_the_full_one_as_large_as_the_small_one():
    for name in TABLES:
        assert set(getattr(WIDE_WORLD, name)) == set(getattr(FULL_WORLD, name)), name
    for name in ("size", "actor_size", "start_step", "fps"):
        assert getattr(WIDE_WORLD, name) == getattr(SMALL_WORLD, name), name
    assert (WIDE_WORLD.wording, WIDE_WORLD.settle_seconds) == (FULL_WORLD.wording, FULL_WORLD.settle_seconds)


def test_calm_scenes_are_likelier_in_the_wide_world():
    world = open_world(replace(WIDE_WORLD, size=16))
    stories = [world.story(1, index, 9, max_scenes=1) for index in range(2000)]
    shares = {name: Counter(getattr(story.scenes[0], name) for story in stories) for name in ("weather", "camera", "motion")}
    share = lambda name, value: shares[name][value] / len(stories)
    assert share("weather", "clear") == pytest.approx(1 / 2 + 1 / 2 * 4 / 23, abs=0.05), "four of the places are sheltered"
    assert share("camera", "still") == pytest.approx(4 / 6, abs=0.04)
    assert min(share("motion", name) for name in SMALL_WORLD.motions) > 1.3 * max(
        share("motion", name) for name in FULL_WORLD.motions if name not in SMALL_WORLD.motions
    )


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_name_is_twice_in_a_world_where_it_shall_be_likelier_alone(world):
    likelier = {"weathers": {"clear"}, "cameras": {"still"}, "motions": set(SMALL_WORLD.motions)} if world == WIDE_WORLD else {}
    for name in TABLES:
        twice = {value for value, count in Counter(getattr(world, name)).items() if count > 1}
        assert twice == likelier.get(name, set()), name
    assert not set(world.actors) & set(world.objects)


def test_an_actor_that_is_named_twice_is_drawn_once_by_code():
    world = open_world(replace(SMALL_WORLD, size=16, actors=("fox", "fox", "panda"), places=("beach", "city", "beach")))
    assert list(world.actor_index) == ["fox", "panda"] and list(world.place_index) == ["beach", "city"]
    drawn = Counter(world.story(0, index, 5, max_scenes=1).scenes[0].actor for index in range(600))
    assert drawn["fox"] / 600 == pytest.approx(2 / 3, abs=0.07)


def test_roles_and_sizes_are_of_names_that_exist():
    assert set(ROLES) <= set(FULL_WORLD.actors)
    assert set(OBJECT_SCALES) == set(FULL_WORLD.objects) and {stands_behind(name) for name in OBJECT_SCALES} == {True, False}
    assert set(SHELTERED) | set(HALF_TINTED) <= set(FULL_WORLD.places)
    assert not set(HALF_TINTED) & set(SMALL_WORLD.places), "the small world keeps its looks"
    assert {motion for role in ROLES.values() for motion in role.unfit} <= set(FULL_WORLD.motions)


def test_everything_of_the_full_world_occurs(scenes):
    for attribute, name in (("actor", "actors"), ("companion", "actors"), ("place", "places"), ("motion", "motions"), ("object", "objects")):
        assert {getattr(scene, attribute) for scene in scenes} - {""} == set(getattr(FULL_WORLD, name)), attribute
    assert 0.15 < sum(bool(scene.object) for scene in scenes) / len(scenes) < 0.35
    assert any(scene.companion and scene.object and scene.weather != "clear" and scene.camera != "still" for scene in scenes)


def test_scenes_are_possible(scenes):
    """Heads do not run, no weather comes indoors or under water, and no large object stands where a companion does."""
    for scene in scenes:
        assert scene.motion not in role_of(scene.actor).unfit
        assert scene.weather == "clear" or scene.place not in SHELTERED
        assert not (scene.companion and scene.object and stands_behind(scene.object))


def test_objects_are_said_and_stay(full, scenes):
    words = {name: [phrase.split()[-1] for phrase in RICH.objects[name]] for name in FULL_WORLD.objects}
    for scene in scenes:
        if scene.object:
            assert any(word in scene.caption for word in words[scene.object]), scene
    pairs = [pair for index in range(600) for story in [full.story(2, index, 33)] for pair in zip(story.scenes, story.scenes[1:], strict=False)]
    kept = [one.object == two.object for one, two in pairs if one.object and not two.companion]
    assert 0.4 < sum(kept) / len(kept) < 0.8


# Words


@pytest.mark.parametrize("name", TABLES)
def test_every_value_has_many_phrasings(name):
    silent = {"clear", "still"}
    for value in getattr(FULL_WORLD, name):
        assert len(set(TABLES[name][value])) == len(TABLES[name][value]), f"{value}: a phrasing is there twice"
        assert value in silent or len(TABLES[name][value]) >= 5, value
    assert set(TABLES[name]) == set(getattr(FULL_WORLD, name))


def test_moves_of_all_kinds_have_many_phrasings():
    for actor, motion in product(FULL_WORLD.actors, FULL_WORLD.motions):
        assert len(set(motion_phrases("rich", actor, motion))) >= 5
    assert {gait for gait, _ in RICH.gaits} | {"walks"} == {role_of(actor).gait for actor in FULL_WORLD.actors}


def test_no_phrasing_means_two_things():
    """Of two actors, places, objects and so on: what is said names one of them."""
    for name, table in TABLES.items():
        said = list(chain.from_iterable(options for value, options in table.items()))
        said = [phrase for phrase in said if phrase]
        assert len(set(said)) == len(said), (name, {phrase for phrase in said if said.count(phrase) > 1})
    for motion, other in product(FULL_WORLD.motions, FULL_WORLD.motions):
        if motion != other:
            for actor in ("dog", "fish", "rocket", "bus"):
                assert not set(motion_phrases("rich", actor, motion)) & set(motion_phrases("rich", actor, other)), (actor, motion, other)


def test_articles_fit_the_words_after_them():
    nouns = chain.from_iterable([*RICH.actors.values(), *RICH.objects.values(), *RICH.places.values()])
    for phrase in nouns:
        for article, word in re.findall(r"\b(an?) (\w+)", phrase):
            by_sound = word[0] in "aeiou" and not word.startswith(("uni", "ufo", "eu", "ewe", "one"))
            assert (article == "an") == by_sound, phrase


# Held out


def test_a_tenth_of_the_pairs_is_held_out():
    for world in (MEDIUM_WORLD, FULL_WORLD):
        for others in (world.places, world.motions):
            pairs = list(product(world.actors, others))
            assert 0.07 < sum(is_held_out(*pair) for pair in pairs) / len(pairs) < 0.14


def test_no_actor_place_or_motion_is_held_out_altogether():
    for actor in FULL_WORLD.actors:
        assert sum(is_held_out(actor, place) for place in FULL_WORLD.places) < len(FULL_WORLD.places) / 2
        assert sum(is_held_out(actor, motion) for motion in FULL_WORLD.motions) < len(FULL_WORLD.motions) / 2


def test_a_tenth_of_the_phrasings_is_held_out():
    tables = [*TABLES.values(), RICH.gaits, {"orders": RICH.templates, "ways": RICH.object_ways, "company": RICH.companions}]
    options = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    hidden = [phrase for table in tables for phrases in table.values() for phrase in phrases[1:] if is_held_out(phrase)]
    assert 0.07 < len(hidden) / len(options) < 0.13
    assert any(is_held_out(template) for template in RICH.templates[1:]), "an order of words is held out, too"


def test_the_held_out_lists_do_not_change():
    pairs = sorted(pair for pair in product(FULL_WORLD.actors, (*FULL_WORLD.places, *FULL_WORLD.motions)) if is_held_out(*pair))
    assert hashlib.sha256(repr(pairs).encode()).hexdigest()[:16] == "ed9931e888bda689"


# Fingerprints


HASHES = {"small": "e4892c8ea9f4945b", "medium": "deee56354bc39751", "full": "93288513e42e430b", "wide": "5581d75e7c44b6ca"}


@pytest.mark.parametrize(("world", "start"), HASHES.items())
def test_a_world_s_fingerprint_is_that_of_stored_tokens(world, start):
    assert hashlib.sha256(described(WORLDS[world]).encode()).hexdigest()[:16] == start


def test_fields_that_came_later_are_named_only_where_they_are_set():
    assert not any(name in described(SMALL_WORLD) for name in LATER_FIELDS)
    assert all(f"{name}=" in described(replace(FULL_WORLD, small_share=0.5)) for name in LATER_FIELDS)


def test_a_share_of_the_stories_tells_of_the_small_world():
    config = replace(WIDE_WORLD, small_share=0.3, wording="first")
    art = draw_art((*config.actors, *config.objects), config.places)
    mixed, wide = StorybookWorld(config, art), StorybookWorld(replace(config, small_share=0.0), art)
    told = [mixed.story(0, index, 17) for index in range(400)]
    small = [story for story in told if story != wide.story(0, told.index(story), 17)]
    assert 80 < len(small) < 160
    for name in ("actor", "place", "time", "weather", "motion", "camera"):
        known = getattr(SMALL_WORLD, f"{name}s")
        assert {getattr(scene, name) for story in small for scene in story.scenes} == set(known)
    assert not any(scene.companion or scene.object for story in small for scene in story.scenes)
    assert torch.equal(mixed.render(small[:2]), wide.render(small[:2])), "drawn as in the world that they are part of"
    assert mixed.story(0, told.index(small[0]), 17, held_out=True) != small[0]


def test_a_world_without_what_the_small_one_has_tells_no_share_of_it():
    config = replace(SMALL_WORLD, actors=("fox",), small_share=0.5)
    with pytest.raises(ValueError, match=r"small_share 0\.5: this world has no 'astronaut', which is one of the small world's actors"):
        StorybookWorld(config, draw_art(config.actors, config.places))


@pytest.mark.parametrize("field", [field.name for field in fields(WorldConfig)])
def test_every_setting_changes_the_description(field):
    value = getattr(SMALL_WORLD, field)
    changed = {tuple: lambda: (*value, *(value[:1] or ("tent",))), str: lambda: "rich", int: lambda: value + 1, float: lambda: value / 2 + 0.125}
    other = changed[type(value)]()
    assert described(replace(SMALL_WORLD, **{field: other})) != described(SMALL_WORLD)
