"""What the referee learns from: labels that are true of the pixels, evenly drawn, and a bank that is painted once."""

import functools
import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from referee_toys import TINY_WORLD, story, tiny_bank, tiny_coder

from phenaki.cvivit import CViViT
from phenaki.data.captions import is_held_out
from phenaki.data.storybook import open_world
from phenaki.data.world import FULL_WORLD, SMALL_WORLD
from phenaki.evaluation.referee import labels_of
from phenaki.pixels import from_bytes, to_bytes
from phenaki.training import referee_examples
from phenaki.training.referee_bank import PART, Bank, BankSettings, Workers
from phenaki.training.referee_examples import (
    BLOCKS,
    KINDS,
    UNJUDGED,
    actor_pixels,
    draw_examples,
    draw_kinds,
    draw_stories,
    held_out_share,
    inside,
    reconstructed,
    truth_of,
    without_actor,
)

NAMES = labels_of(TINY_WORLD)


@pytest.fixture(scope="module")
def coder() -> CViViT:
    return tiny_coder()


# Stories


def test_held_out_pairs_are_as_likely_as_others():
    share = held_out_share(SMALL_WORLD)
    cases = itertools.product(SMALL_WORLD.actors, SMALL_WORLD.places, SMALL_WORLD.motions)
    hidden = [case for case in cases if is_held_out(case[0], case[1]) or is_held_out(case[0], case[2])]
    assert share == len(hidden) / (8 * 6 * 4) and len(hidden) > 20
    scenes = [one.scenes[0] for one in draw_stories(open_world(SMALL_WORLD), 0, range(1500), 5)]
    drawn = Counter((scene.actor, scene.place, scene.motion) for scene in scenes)
    assert sum(drawn[case] for case in hidden) / len(scenes) == pytest.approx(share, abs=0.03)
    for attribute in ("actor", "place", "motion"):
        counts = Counter(getattr(scene, attribute) for scene in scenes)
        assert max(counts.values()) / min(counts.values()) < 1.5, counts


def test_a_pair_of_what_is_drawn_twice_as_often_counts_twice():
    once, twice = (replace(SMALL_WORLD, places=places) for places in (("city", "beach"), ("city", "beach", "beach")))
    of_place = lambda *places: held_out_share(replace(SMALL_WORLD, places=places))
    assert held_out_share(once) == pytest.approx((of_place("city") + of_place("beach")) / 2)
    assert held_out_share(twice) == pytest.approx((of_place("city") + 2 * of_place("beach")) / 3)


def test_stories_of_one_kind_can_be_asked_for(tiny_world):
    is_hidden = lambda scene: is_held_out(scene.actor, scene.place) or is_held_out(scene.actor, scene.motion)
    for held_out in (True, False):
        scenes = [scene for one in draw_stories(tiny_world, 0, range(40), 9, held_out) for scene in one.scenes]
        assert {is_hidden(scene) for scene in scenes} == {held_out}
    assert draw_stories(tiny_world, 0, range(5, 9), 9) == draw_stories(tiny_world, 0, range(20), 9)[5:9]


def test_kinds_come_in_their_shares():
    counts = Counter(draw_kinds(0, range(4000)))
    assert sum(KINDS.values()) == pytest.approx(1) and set(counts) == set(KINDS)
    for kind, share in KINDS.items():
        assert counts[kind] / 4000 == pytest.approx(share, abs=0.02)


# Truth


def test_labels_name_what_each_frame_shows(tiny_world):
    labels, near_change = truth_of(tiny_world, [story({"num_frames": 7}, {"actor": "fox", "time": "night", "motion": "hops", "num_frames": 9})])
    said = [{name: names[labels[0, frame, i]] for i, (name, names) in enumerate(NAMES.items())} for frame in range(16)]
    assert said[:7] == [{"actor": "panda", "place": "beach", "time": "day", "motion": "stands"}] * 7
    assert said[7:] == [{"actor": "fox", "place": "beach", "time": "night", "motion": "hops"}] * 9
    assert near_change[0].tolist() == [False] * 3 + [True] * 8 + [False] * 5, "four frames on both sides of frame 7"


def test_the_actor_is_where_the_picture_differs_from_the_empty_one(tiny_world):
    scenes = [story({}), story({"place": "meadow"}, start_x=0.25)]
    pixels = actor_pixels(tiny_world.render(scenes), tiny_world.render([without_actor(one) for one in scenes]))
    assert pixels.shape == (2, 8, 64, 64)
    centres = [float((clip.any(1).any(0).nonzero().float()).mean()) for clip in pixels.transpose(1, 2)]
    middles = pixels.float().mean(dim=(1, 2))  # (n w)
    centres = (middles * torch.arange(64)).sum(1) / middles.sum(1)
    torch.testing.assert_close(centres, torch.tensor([31.5, 15.5]), atol=2.0, rtol=0)


def test_an_actor_that_has_left_is_not_judged(tiny_world):
    """One that walks to the right from 48/64, a pixel a frame: its box of 40 pixels reaches the edge after 4 frames already."""
    walker = story({"motion": "walks right", "num_frames": 36}, start_x=48 / 64)
    shown = torch.tensor([min(64 - (48 + frame - 20), 40) / 40 for frame in range(32)], dtype=torch.float64)
    torch.testing.assert_close(inside(tiny_world, walker)[:32], shown * inside(tiny_world, story({}))[0])
    examples = draw_examples(tiny_world, [walker], ["plain"])
    hidden = torch.arange(36) >= 23
    panda, motion = NAMES["actor"].index("panda"), NAMES["motion"].index("walks right")
    assert torch.equal(examples.labels[0, :, 0], torch.where(hidden, UNJUDGED, panda).short())
    assert torch.equal(examples.labels[0, :, 3], torch.where(hidden, UNJUDGED, motion).short())
    assert (examples.labels[0, :, 1:3] > 0).all(), "place and time are"


def test_one_that_is_near_the_camera_or_far_is_measured_at_its_size():
    world = open_world(replace(FULL_WORLD, size=16))
    grown, shrunk = (inside(world, story({"motion": motion, "num_frames": 32}, start_x=0.1)) for motion in ("grows", "shrinks"))
    assert grown[0] == shrunk[0] < 1 and shrunk[-1] > shrunk[0] > grown[-1], "small ones are whole sooner"


def test_a_clip_is_cut_from_anywhere_in_its_story_with_its_truth(tiny_world):
    stories = [story({"num_frames": 6}, {"place": "city", "time": "night", "motion": "walks left", "num_frames": 14})] * 12
    whole, parts = draw_examples(tiny_world, stories, ["plain"] * 12), draw_examples(tiny_world, stories, ["plain"] * 12, seed=3, num_frames=5)
    assert parts.video.shape == (12, 3, 5, 64, 64) and len(whole.video[0, 0]) == 20
    firsts = set()
    for clip, labels, near in zip(parts.video, parts.labels, parts.near_change, strict=True):
        first = next(first for first in range(16) if torch.equal(clip, whole.video[0, :, first : first + 5]))
        assert torch.equal(labels, whole.labels[0, first : first + 5]) and torch.equal(near, whole.near_change[0, first : first + 5])
        firsts.add(first)
    assert len(firsts) > 4


# Kinds


def test_each_kind_shows_what_its_labels_say(tiny_world):
    scenes = [story({"num_frames": 9, "motion": "hops"}, start_x=0.25 + 0.1 * i) for i in range(4)]
    examples = draw_examples(tiny_world, scenes, list(KINDS), seed=1)
    full, empty = tiny_world.render(scenes), tiny_world.render([without_actor(one) for one in scenes])
    truth, _ = truth_of(tiny_world, scenes)
    plain, nobody, garbled, unrecognisable = (examples.video[i] for i in range(4))
    assert torch.equal(plain, to_bytes(full[0])) and torch.equal(examples.labels[0], truth[0])
    assert torch.equal(nobody, to_bytes(empty[1]))
    assert (examples.labels[1, :, [0, 3]] == 0).all() and torch.equal(examples.labels[1, :, 1:3], truth[1, :, 1:3])
    changed = (garbled != to_bytes(full[2])).any(0)
    blocks = actor_pixels(full, empty)[2].unflatten(2, (BLOCKS, -1)).unflatten(1, (BLOCKS, -1)).any(4).any(2)
    allowed = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert not (changed & ~allowed).any() and (changed & allowed).sum() > 0.5 * allowed.sum(), "in the actor's blocks alone"
    assert (examples.labels[2, :, 0] == 0).all() and (examples.labels[2, :, 3] == UNJUDGED).all()
    assert (examples.labels[3] == 0).all()
    assert (unrecognisable != to_bytes(full[3])).any(0).float().mean() > 0.7
    with pytest.raises(ValueError, match="kind 'upside down': allowed are plain, nobody"):
        draw_examples(tiny_world, scenes[:1], ["upside down"])


def test_a_world_with_companions_and_objects_keeps_them_where_nobody_acts():
    world = open_world(replace(FULL_WORLD, size=64))
    scenes = [story({"companion": "fox", "object": "tent", "weather": "snow"}), story({"actor": "fox"})]
    examples = draw_examples(world, scenes, ["nobody", "plain"])
    names = labels_of(world.config)
    said = {name: labels[examples.labels[0, 0, i]] for i, (name, labels) in enumerate(names.items())}
    assert said == {"actor": "", "place": "beach", "time": "day", "weather": "snow", "motion": "", "companion": "fox", "object": "tent"}
    assert [names[name][examples.labels[1, 0, list(names).index(name)]] for name in ("actor", "companion", "object")] == ["fox", "", ""]


def test_a_world_of_one_actor_has_no_label_for_it():
    world = open_world(replace(TINY_WORLD, actors=("panda",)))
    examples = draw_examples(world, [story({}), story({})], ["plain", "nobody"])
    assert examples.labels.shape[2] == len(labels_of(world.config)) == 3
    assert (examples.labels[0, :, 2] > 0).all() and (examples.labels[1, :, 2] == 0).all()


# Through a tokenizer


def test_a_reconstruction_is_the_tokenizer_s_and_slips_are_another_clip_s_tokens(coder, tiny_world):
    clips = tiny_world.render([story({"num_frames": 9}), story({"num_frames": 9, "place": "city", "time": "night"})])
    tokens = coder.encode(clips)
    torch.testing.assert_close(reconstructed(coder, clips), coder.decode(tokens).clamp(-1, 1))
    rng = torch.Generator().manual_seed(0)
    all_slips = reconstructed(coder, clips, 1.0, rng)
    assert not torch.equal(all_slips, reconstructed(coder, clips))
    rate = torch.rand(2, 1, 1, 1, generator=rng.manual_seed(0))
    slipped = torch.where(torch.rand(tokens.shape, generator=rng) < rate, tokens.flip(0), tokens)
    torch.testing.assert_close(all_slips, coder.decode(slipped).clamp(-1, 1))
    examples = draw_examples(tiny_world, [story({"num_frames": 9})], ["plain"], tokenizer=coder)
    assert torch.equal(examples.video, to_bytes(reconstructed(coder, clips[:1])))


def test_bytes_and_floats_go_to_and_fro():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(values)), values)
    assert from_bytes(values).min() == -1 and from_bytes(values).max() == 1


# The bank


def test_a_bank_is_painted_once_half_of_it_through_the_tokenizer(coder, tiny_world, tmp_path, monkeypatch):
    settings = BankSettings(num_clips=2 * PART, num_frames=3, story_frames=3, max_scenes=2)
    bank = Bank(tmp_path / "bank", tiny_world, coder, settings)
    told = []
    first = bank.load(lambda *progress: told.append(progress))
    assert told == [(1, 2), (2, 2)] and first.video.shape == (2 * PART, 3, 3, 64, 64) and len(first) == 2 * PART
    stories = draw_stories(tiny_world, 0, range(2 * PART), 3)
    plain = [i for i, kind in enumerate(draw_kinds(0, range(2 * PART))) if kind == "plain"]
    is_as_rendered = [torch.equal(first.video[i], to_bytes(tiny_world.render([stories[i]]))[0]) for i in plain]
    assert is_as_rendered == [i < PART for i in plain]
    (tmp_path / "bank" / "part-0001.safetensors").unlink()
    assert all(torch.equal(a, b) for a, b in zip(vars(bank.load()).values(), vars(first).values(), strict=True)), "painted again alike"
    monkeypatch.setattr(referee_examples, "draw_examples", None)
    monkeypatch.setattr("phenaki.training.referee_bank.draw_examples", None)
    assert torch.equal(bank.load().labels, first.labels), "read, not painted"


def test_parts_that_other_processes_paint_are_the_same(tmp_path):
    alone, beside = (tiny_bank(tmp_path / name, 3 * PART) for name in ("alone", "beside"))
    painted, told = alone.load(), []
    beside.folder.mkdir()
    (beside.folder / "part-0001.safetensors").write_bytes((alone.folder / "part-0001.safetensors").read_bytes())  # of a run before
    others = beside.load(lambda *progress: told.append(progress), Workers(2, functools.partial(tiny_bank, beside.folder, 3 * PART)))
    assert told == [(2, 3), (3, 3)], "what is there already is not painted again"
    assert all(torch.equal(a, b) for a, b in zip(vars(painted).values(), vars(others).values(), strict=True))
    for path in alone.folder.iterdir():
        assert path.read_bytes() == (beside.folder / path.name).read_bytes()


def test_processes_that_fail_or_end_are_told(tmp_path):
    bank = tiny_bank(tmp_path, 1)
    with pytest.raises(ValueError, match="num_clips 0: needed at least 1"):
        bank.load(workers=Workers(2, functools.partial(tiny_bank, tmp_path, 0)))
    with pytest.raises(ChildProcessError, match="a process that painted examples was ended"):
        bank.load(workers=Workers(2, functools.partial(os._exit, 3)))


def test_processes_end_where_the_one_that_started_them_is_killed(tmp_path):
    """What they make is not told to anyone then; a GPU's memory is free for the next try."""
    wait = f"import os, time; open({str(tmp_path / 'begun')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    program = f"import functools; from phenaki.training.referee_bank import Workers; list(Workers(1, functools.partial(exec, {wait!r})).painted([0]))"
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        try:
            worker = until(lambda: (tmp_path / "begun").is_file() and int((tmp_path / "begun").read_text() or 0))
        finally:
            parent.kill()
    assert until(lambda: not is_running(worker))


def until(happens: Callable[[], int], seconds: float = 60.0) -> int:
    """What it returns once that is true."""
    end = time.monotonic() + seconds
    while not (found := happens()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_wrong_with_parts_of_a_run_before_is_told_before_any_is_painted(tmp_path):
    bank = tiny_bank(tmp_path, 2 * PART)
    (tmp_path / "part-0001.safetensors").write_bytes(b"cut short")
    for workers in (None, Workers(2, functools.partial(os._exit, 3))):
        with pytest.raises(ValueError, match=r"part-0001.safetensors: damaged or cut short"):
            bank.load(workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["part-0001.safetensors"]


def test_a_bank_of_something_else_and_a_damaged_one_are_refused(coder, tiny_world, tmp_path):
    settings = BankSettings(num_clips=1, num_frames=3, story_frames=5)
    Bank(tmp_path, tiny_world, coder, settings).load()
    other = open_world(replace(TINY_WORLD, times=("day", "sunset")))
    for world, changed in ((other, settings), (tiny_world, replace(settings, seed=1)), (tiny_world, replace(settings, num_frames=5))):
        with pytest.raises(ValueError, match="Give another output folder"):
            Bank(tmp_path, world, coder, changed).load()
    path = tmp_path / "part-0000.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"damaged or cut short.*Remove it, and it is painted again"):
        Bank(tmp_path, tiny_world, coder, settings).load()
