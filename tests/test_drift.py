"""`phenaki evaluate drift` with a referee that reads the truth from the pixels, and videos that drift by a known amount or not at all."""

import copy
import io
import json
import math
import os
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_story_evaluation import CONFIG, LABELS, CodedWorld, Reader, atlas, features, folder  # noqa: F401
from typer.testing import CliRunner

from phenaki.cli import app
from phenaki.data.storybook import draw_art
from phenaki.data.world import StoryTruth
from phenaki.evaluation import drift_program
from phenaki.evaluation import exam as exam_module
from phenaki.evaluation.drift import Judge, JudgedTokens, Side, Window, made_windows, num_windows, read_windows, shortest_window, watch, window_chunks
from phenaki.evaluation.drift_figures import LOOKS, mode_figures, ratio_interval, trend
from phenaki.evaluation.drift_plot import COLOURS, ROWS, drift_plot
from phenaki.evaluation.drift_program import GOOD_REFEREE, DriftExam, cautions, run_drift_evaluation
from phenaki.evaluation.drift_scripts import (
    ENDLESS,
    HELD,
    MODES,
    RECALLING,
    RETURN_AFTER,
    RETURNING,
    SWITCHING,
    DriftSettings,
    LongScript,
    draw_long_script,
)  # fmt: skip
from phenaki.evaluation.looks import Looks
from phenaki.evaluation.networks import MetricNetworks
from phenaki.evaluation.story_figures import DRAWN_TRUTH
from phenaki.pipeline import Phenaki, StoryChunk
from phenaki.recording import note_of
from phenaki.video import read_video
from phenaki.video_encoders import part_path

MINUTE = DriftSettings(minutes=1.0)
GREEN = 30.0  # levels that a drifting video gains from its first frame to its last

Change = Callable[[torch.Tensor, int, float], torch.Tensor]  # video (c f h w) of window i at a share of the story -> what is shown


@pytest.fixture(scope="module")
def world() -> CodedWorld:
    return CodedWorld(replace(CONFIG, omit_prob=0.0), draw_art(CONFIG.actors, CONFIG.places))


@pytest.fixture(scope="module")
def phenaki(folder) -> Phenaki:  # noqa: F811
    return Phenaki.from_pretrained(folder, device="cpu")


def stand_in(world: CodedWorld, script: LongScript, change: Change, scene_of=lambda script, window: script.scene(window)):
    """In place of `Phenaki.stream`: shows what the script asks for, changed, half as bright so that nothing is cut off."""

    def stream(self, prepared, made=()):
        plan, start = prepared.plan, 0
        windows = [window for window, count in enumerate(window_chunks(plan, script.mode)) for _ in range(count)]
        for number, chunk in enumerate(chunk for scene in plan.scenes for chunk in scene.chunks):
            count = min(1 + 2 * (chunk.start_slice + chunk.num_slices - 1), plan.num_frames) - start
            scene = replace(scene_of(script, windows[number]), num_frames=count)
            video = world.render([StoryTruth((scene,), 0.5, 0.6, 0)])[0]
            share = (start + torch.arange(count)) / plan.num_frames
            video[:, :, 1:] = change(video[:, :, 1:] / 2 - 0.25, windows[number], share[:, None, None])
            if number >= len(made):
                frames = ((video + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
                tokens = torch.full((chunk.num_slices, *self.grid), number)
                yield StoryChunk(frames, tokens, chunk.scene, "", start, plan.num_frames)
            start += count

    return stream


def measured(phenaki, world, mode, path: Path, monkeypatch, change: Change = lambda video, *_: video, settings=MINUTE, **more) -> dict:
    script = draw_long_script(world, settings, mode, 0)
    with monkeypatch.context() as patched:
        patched.setattr(Phenaki, "stream", stand_in(world, script, change, **more))
        watch(phenaki, script, "tokens", Judge(world, Reader(), features), path, {})
    return mode_figures([read_windows(path.with_suffix(".jsonl"), num_windows(phenaki, script))], mode, 8.0)


# ---- scripts -------------------------------------------------------------------------------------------------------


def test_long_scripts_are_the_same_for_a_seed_and_name_all_that_is_asked(world):
    for mode in MODES:
        script = draw_long_script(world, MINUTE, mode, 2)
        assert script == draw_long_script(world, MINUTE, mode, 2) != draw_long_script(world, MINUTE, mode, 1)
        assert script == draw_long_script(world, replace(MINUTE, num_stories=9), mode, 2), "more stories leave those before as they were"
        assert script.story.seconds == 60 and script.story.seed == 2
        assert {"actor", "place", "motion"} <= set(script.scenes[0].told) and all("actor" in scene.told for scene in script.scenes)
    held = [draw_long_script(world, MINUTE, HELD, index) for index in range(9)]
    assert {script.scene(7).motion for script in held} <= set(ENDLESS) and {len(script.story.scenes) for script in held} == {1}
    assert len(draw_long_script(world, DriftSettings(minutes=60.0), SWITCHING, 0).story.scenes) == 900


def test_the_first_prompt_returns_after_each_ten(world):
    prompts = [scene.prompt for scene in draw_long_script(world, DriftSettings(minutes=2.0), RETURNING, 0).story.scenes]
    plain = draw_long_script(world, DriftSettings(minutes=2.0), SWITCHING, 0)
    assert prompts[0] == prompts[11] == prompts[22] and prompts[1:11] == [scene.caption for scene in plain.scenes[1:11]]
    recalling = draw_long_script(world, DriftSettings(minutes=2.0), RECALLING, 0).story
    assert [scene.prompt for scene in recalling.scenes] == prompts
    assert {index: (scene.remember, scene.recall) for index, scene in enumerate(recalling.scenes) if scene.remember or scene.recall} == {
        0: ("first", None), 11: (None, "first"), 22: (None, "first"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"minutes": 0.1}, "0.5 to 60"), ({"minutes": 61.0}, "0.5 to 60"), ({"num_stories": 0}, "needed 1 to"),
        ({"modes": ("loud",)}, "allowed are held"), ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        DriftSettings(**settings)


# ---- known answers -------------------------------------------------------------------------------------------------


def test_a_video_that_does_not_drift_shows_none(phenaki, world, tmp_path, monkeypatch):
    found = measured(phenaki, world, HELD, tmp_path / "a.mp4", monkeypatch)
    assert found["windows"] == 16 and [minute["minute"] for minute in found["minutes"]] == [1] and found["ends"]["windows"] == 2
    for name in LOOKS:
        ends = found["ends"][name]
        assert ends["made"]["drift"] <= 0.05 * ends["made"]["first"], name
    assert found["ends"]["adherence"]["made"] == {"first": 1.0, "last": 1.0, "drift": 0.0, "ratio": 1.0}
    assert found["minutes"][0]["adherence"]["made"]["value"] == found["minutes"][0]["adherence"]["truth"]["value"] == 1
    assert found["whole"] == {name: value for name, value in found["minutes"][0].items() if name != "minute"}, "of one minute"


def test_a_video_that_turns_green_drifts_by_that_much_and_in_nothing_else(phenaki, world, tmp_path, monkeypatch):
    def greener(video, window, share):
        return video + share * torch.tensor([0.0, GREEN / 127.5, 0.0])[:, None, None, None]

    found = measured(phenaki, world, HELD, tmp_path / "a.mp4", monkeypatch, greener)["ends"]
    wanted = GREEN * 70.25 / 81 * 31 / 32  # of 81 chunks, from the middle of the first two windows to that of the last two; one row stays
    assert found["green"]["made"]["drift"] == pytest.approx(wanted, abs=0.6)
    assert found["brightness"]["made"]["drift"] == pytest.approx(0.587 * wanted, abs=0.6)
    assert found["red"]["made"]["drift"] < 0.6 > found["blue"]["made"]["drift"] and found["green"]["truth"]["drift"] < 12
    assert found["fvd"]["ratio"] != 1 and found["adherence"]["made"]["drift"] == 0
    green = found["green"]
    assert 0.1 < green["beyond_truth"] == pytest.approx(abs(green["made"]["ratio"] / green["truth"]["ratio"] - 1), abs=1e-3)


def test_a_video_that_blurs_and_stands_still_is_seen_to(phenaki, world, tmp_path, monkeypatch):
    def blurs(video, window, share):
        smooth = torch.nn.functional.avg_pool2d(video.transpose(0, 1), 5, 1, 2, count_include_pad=False).transpose(0, 1)
        return smooth.mean(1, keepdim=True).expand_as(video) if window >= 13 else video

    found = measured(phenaki, world, HELD, tmp_path / "a.mp4", monkeypatch, blurs)["ends"]
    assert found["sharpness"]["made"]["ratio"] < 0.75 and found["sharpness"]["beyond_truth"] > 0.15  # the coded row stays sharp
    assert found["motion"]["made"]["ratio"] < 0.5


def test_a_model_that_forgets_who_it_shows_loses_that_share(phenaki, world, tmp_path, monkeypatch):
    def wrong(script, window):
        scene = script.scene(window)
        return scene if window < 12 else replace(scene, actor=next(name for name in CONFIG.actors if name != scene.actor))

    found = measured(phenaki, world, SWITCHING, tmp_path / "a.mp4", monkeypatch, scene_of=wrong)
    assert found["ends"]["adherence"]["made"] == {"first": 1.0, "last": 0.75, "drift": 0.25, "ratio": 0.75}
    assert found["ends"]["adherence"]["truth"]["drift"] == 0 and found["ends"]["adherence"]["beyond_truth"] == 0.25
    whole = found["minutes"][0]["by_attribute"]
    assert whole["actor"]["made"]["value"] == 0.8 and whole["place"]["made"]["value"] == 1 and whole["actor"]["made"]["n"] == 15


def side_of(**looks: float) -> Side:
    return Side({}, {}, Looks(**{name: looks.get(name, 1.0) for name in LOOKS}), [], [])


def test_a_trend_is_what_a_measure_gains_beside_the_truth_whatever_is_shown():
    """Two stories of four minutes: what they show is drawn, sharpness gains a fifth, green is as far from the truth throughout."""
    draw, stories = random.Random(0), []
    for level in (0.5, 0.8):
        truths = [{"sharpness": draw.uniform(100, 900), "green": draw.uniform(10, 200), "motion": draw.choice([0.0, 5.0])} for _ in range(60)]
        made = [truth | {"sharpness": level * 1.2 ** (i / 59) * truth["sharpness"], "green": 0.9 * truth["green"]} for i, truth in enumerate(truths)]
        stories.append([Window(i, 32 * i, 32, side_of(**made[i]), side_of(**truth)) for i, truth in enumerate(truths)])
    found = {name: trend(stories, name, 8.0) for name in LOOKS}
    assert (found["sharpness"].value, found["sharpness"].low, found["sharpness"].high) == pytest.approx((0.2, 0.2, 0.2))
    assert found["green"].value == pytest.approx(0) == found["motion"].value and found["green"].n == 120
    assert 30 < found["motion"].n < 90, "what stands still says nothing of a ratio"
    assert trend([], "green", 8.0).value is None is trend([stories[0][:1]], "green", 8.0).value


def test_what_is_shown_late_is_no_trend_of_like_windows():
    """The sea is coded half as sharply as the land and comes at the end; each by itself stays as sharp as it was."""
    truth = side_of(sharpness=100.0)
    at = lambda side, place: replace(side, seen={"place": place})
    places = ["land"] * 25 + ["sea", "land"] * 5 + ["sea"] * 25
    story = [Window(i, 32 * i, 32, side_of(sharpness=40.0 if place == "sea" else 80.0), at(truth, place)) for i, place in enumerate(places)]
    assert trend([story], "sharpness", 8.0).value < -0.5
    assert trend([story], "sharpness", 8.0, like_windows=True).value == pytest.approx(0, abs=1e-9)


def test_pictures_that_went_black_count_in_a_trend():
    truth = side_of(sharpness=100.0)
    story = [Window(i, 32 * i, 32, side_of(sharpness=100.0 if i < 30 else 0.0), truth) for i in range(60)]
    found = trend([story], "sharpness", 8.0)
    assert found.n == 60 and found.value < -0.9


@pytest.mark.parametrize("kept", [True, False])
def test_what_returns_is_held_against_how_it_was(phenaki, world, tmp_path, monkeypatch, kept):
    def other(script, window):
        scene = script.scene(window)
        return scene if kept or not window else replace(scene, place=next(place for place in CONFIG.places if place != scene.place))

    lighter = lambda video, window, share: video + (0 if kept or not window else 0.1)
    found = measured(phenaki, world, RETURNING, tmp_path / "a.mp4", monkeypatch, lighter, scene_of=other)["returns"]
    assert [one["minute"] for one in found["each"]] == [pytest.approx(11 * 4 / 60, abs=0.01)] and RETURN_AFTER == 10
    assert found["made"]["same"]["value"] == (1.0 if kept else 0.75) and found["truth"]["same"]["value"] == 1
    assert (found["made"]["likeness"]["value"] == pytest.approx(1, abs=1e-3)) == kept
    assert (found["made"]["colour_distance"]["value"] < 1) == kept


def test_an_interval_of_a_ratio_is_as_wide_as_both_its_ends_make_it():
    exact, wide = {"value": 100.0, "low": 100.0, "high": 100.0}, {"value": 200.0, "low": 180.0, "high": 220.0}
    assert ratio_interval(exact, exact) == {"ratio_low": 1.0, "ratio_high": 1.0}
    one, both = ratio_interval(exact, wide), ratio_interval(wide, wide)
    assert one["ratio_high"] == pytest.approx(2 * math.exp(0.1), abs=1e-3) and one["ratio_low"] == pytest.approx(2 * math.exp(-0.1), abs=1e-3)
    assert both["ratio_high"] == pytest.approx(math.exp(0.1 * math.sqrt(2)), abs=1e-3)
    assert ratio_interval({"value": 0.0, "low": 0.0, "high": 0.0}, wide) == {"ratio_low": None, "ratio_high": None}


def test_without_i3d_there_is_no_fvd(phenaki, world, tmp_path, monkeypatch):
    script = draw_long_script(world, DriftSettings(minutes=0.5), SWITCHING, 0)
    monkeypatch.setattr(Phenaki, "stream", stand_in(world, script, lambda video, *_: video))
    watch(phenaki, script, "tokens", Judge(world, Reader(), None), tmp_path / "a.mp4", {})
    found = mode_figures([read_windows(tmp_path / "a.jsonl", num_windows(phenaki, script))], SWITCHING, 8.0)
    assert found["minutes"][0]["fvd"] is None and "fvd" not in found["ends"]


# ---- windows, and going on -----------------------------------------------------------------------------------------


class Blind:
    """Sees the same in everything, and counts what it is shown."""

    labels = LABELS

    def __init__(self, dies_at: int = 10**9):
        self.shown, self.dies_at = 0, dies_at

    def __call__(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        self.shown += 1
        if self.shown == self.dies_at:
            raise KeyboardInterrupt
        return {name: torch.ones(1, video.shape[2], len(one)) for name, one in LABELS.items()}


@pytest.mark.parametrize("mode", MODES)
def test_windows_are_whole_chunks_and_all_of_them(phenaki, world, mode):
    plan = phenaki.plan(draw_long_script(world, MINUTE, mode, 0).story)
    chunks = window_chunks(plan, mode)
    assert sum(chunks) == plan.num_chunks and len(chunks) == (16 if mode == HELD else 15)  # of five chunks of three slices, as near as may be
    assert len(set(chunks[1:-1])) == 1 or mode != HELD


def test_a_window_is_made_when_it_is_asked_for(phenaki, world, monkeypatch):
    script, made = draw_long_script(world, DriftSettings(minutes=0.5), SWITCHING, 0), []
    stream = Phenaki.stream
    monkeypatch.setattr(Phenaki, "stream", lambda *arguments: (made.append(chunk) or chunk for chunk in stream(*arguments)))
    prepared = phenaki.prepare(script.story)
    chunks = window_chunks(prepared.plan, SWITCHING)
    windows = made_windows(phenaki, prepared, chunks, [])
    first = next(windows)
    assert len(made) == chunks[0] and len(first.frames) == prepared.plan.scenes[0].num_frames and first.start_frame == 0
    assert first.video.shape == (3, len(first.frames), 32, 32) and first.video.abs().max() <= 1
    notes = [note_of(first.tokens), note_of(next(windows).tokens)]
    tokens = JudgedTokens(notes, chunks, prepared.plan, phenaki.grid)
    assert len(tokens) == chunks[0] + chunks[1]
    assert all(torch.equal(tokens[index], chunk.tokens) for index, chunk in enumerate(made[: len(tokens)]))


@pytest.mark.parametrize(("mode", "context"), [(HELD, "frames"), (RECALLING, "tokens")])
def test_a_killed_evaluation_goes_on_to_the_same_video_and_figures(phenaki, world, tmp_path, mode, context):
    script = draw_long_script(world, DriftSettings(minutes=0.8 if mode == RECALLING else 0.5), mode, 0)
    watch(phenaki, script, context, Judge(world, Blind(), features), tmp_path / "whole.mp4", {})
    for dies_at in (1, 8, 10):  # two looks a window
        with pytest.raises(KeyboardInterrupt):
            watch(phenaki, script, context, Judge(world, Blind(dies_at), features), tmp_path / "a.mp4", {})
    counted, blind = [], Blind()
    watch(phenaki, script, context, Judge(world, blind, features), tmp_path / "a.mp4", {}, counted.append)
    windows = read_windows(tmp_path / "a.jsonl", counted[-1])
    assert shortest_window(phenaki, script) == min(window.num_frames for window in windows)
    assert num_windows(phenaki, script) == counted[-1] and blind.shown == 2 * (len(windows) - 3 - 4), "three windows were judged, then four more"
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert len(read_video(tmp_path / "a.mp4")) == sum(window.num_frames for window in windows) == round(script.story.seconds * 8)
    watch(phenaki, script, context, None, tmp_path / "a.mp4", {}, counted.append)
    assert counted[-1] == len(windows), "nothing is made or judged again"


def test_lines_that_are_missing_are_told(phenaki, world, tmp_path):
    script = draw_long_script(world, DriftSettings(minutes=0.5), SWITCHING, 0)
    with pytest.raises(KeyboardInterrupt):
        watch(phenaki, script, "tokens", Judge(world, Blind(6), None), tmp_path / "a.mp4", {})
    with pytest.raises(ValueError, match=r"was begun with model left out, not .*another.* Remove the folder .*, and run again"):
        watch(phenaki, script, "tokens", Judge(world, Blind(), None), tmp_path / "a.mp4", {"model": "another"})
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"0 of 2 windows are whole\. Remove it and \.a\.part\.mp4 beside it, and run again"):
        watch(phenaki, script, "tokens", Judge(world, Blind(), None), tmp_path / "a.mp4", {})
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="damaged"):
        read_windows(tmp_path / "b.jsonl", 1)
    for name in ("a.jsonl", ".a.part.mp4"):
        (tmp_path / name).unlink()
    watch(phenaki, script, "tokens", Judge(world, Blind(), None), tmp_path / "a.mp4", {})
    assert len(read_windows(tmp_path / "a.jsonl", 8)) == 8, "what the message advises helps"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("index",), 7), (("start_frame",), None), (("made", "right"), ["a"]), (("made", "right"), {"beauty": True}),
        (("truth", "seen"), {"actor": 3}),
        (("made", "looks", "motion"), None), (("made", "looks", "sharpness"), float("nan")), (("truth", "impression"), ["a"]), (("made",), 3),
        (("made", "looks", "motion"), 10**400),
    ],
    ids=str,
)
def test_a_window_that_nobody_judged_so_is_refused(phenaki, world, tmp_path, place, value):
    script, path = draw_long_script(world, DriftSettings(minutes=0.5), SWITCHING, 0), tmp_path / "a.jsonl"
    frames = torch.zeros(3, 32, 16, 16)
    values = asdict(Judge(world, Blind(), None).window(script, 0, 0, frames))
    path.write_text(json.dumps(values) + "\n")
    (window,) = read_windows(path, 1)
    assert asdict(window) == values
    inner = values
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(values) + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: damaged \(.+\)\. Remove it and a\.mp4, and run again"):
        read_windows(path, 1)


def test_lines_that_a_whole_video_lacks_are_told(phenaki, world, tmp_path):
    """Else figures would come from fewer windows than there are, and nobody would know."""
    script, lines = draw_long_script(world, DriftSettings(minutes=0.5), SWITCHING, 0), tmp_path / "a.jsonl"
    watch(phenaki, script, "tokens", Judge(world, Blind(), None), tmp_path / "a.mp4", {})
    whole = lines.read_text()
    assert len(read_windows(lines, 8)) == 8
    for left in ("", "".join(whole.splitlines(keepends=True)[:7]), whole + whole.splitlines(keepends=True)[0]):
        lines.write_text(left)
        count = left.count("\n")
        with pytest.raises(ValueError, match=rf"a\.jsonl: {count} windows, the story has 8.*[Rr]emove it and a\.mp4, and run again"):
            read_windows(lines, 8)
        with pytest.raises(ValueError, match=f"{count} windows, the story has 8"):
            watch(phenaki, script, "tokens", None, tmp_path / "a.mp4", {})
    lines.unlink()
    with pytest.raises(ValueError, match=r"a\.jsonl: 0 windows, the story has 8"):
        watch(phenaki, script, "tokens", None, tmp_path / "a.mp4", {})
    (tmp_path / "a.mp4").unlink()
    watch(phenaki, script, "tokens", Judge(world, Blind(), None), tmp_path / "a.mp4", {})
    assert lines.read_text() == whole, "what the message advises helps"


def test_lines_are_on_the_disk_before_their_video_has_its_name(phenaki, world, tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(handle: int) -> None:
        synced.append((os.fstat(handle).st_ino, os.fstat(handle).st_size, (tmp_path / "a.mp4").exists()))
        fsync(handle)

    script = draw_long_script(world, DriftSettings(minutes=0.5), SWITCHING, 0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", noted)
        watch(phenaki, script, "tokens", Judge(world, Blind(), None), tmp_path / "a.mp4", {})
    lines, inside = (tmp_path / "a.jsonl").stat(), tmp_path.stat().st_ino
    assert (lines.st_ino, lines.st_size, False) in synced and inside in [inode for inode, _, there in synced if not there]


# ---- the command and the picture -----------------------------------------------------------------------------------


def run(*arguments) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["evaluate", "drift", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.fixture
def no_networks(monkeypatch):
    monkeypatch.setattr(drift_program, "shipped_referee", lambda exam: Blind())
    missing = MetricNetworks(missing={"i3d": "not measured: run `phenaki metrics install`"})
    monkeypatch.setattr(exam_module, "video_network", lambda exam: missing)


def test_the_command_compares_contexts_and_makes_nothing_twice(folder, atlas, no_networks, monkeypatch, tmp_path):  # noqa: F811
    arguments = ("--model", folder, "--data", atlas, "--minutes", 0.5, "--mode", "switching", "-o", tmp_path / "a.json", "--context", "frames")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/phenaki", "evaluate", "drift", "-o", "a.json"])
    arguments += ("--dtype", "bfloat16")
    code, said = run(*arguments)
    assert code == 0, said
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["command"] == "phenaki evaluate drift -o a.json" and figures["dtype"] == "bfloat16"
    assert list(figures["contexts"]) == ["tokens", "frames"] and list(figures["contexts"]["frames"]) == figures["modes"] == ["switching"]
    one, other = (figures["contexts"][context]["switching"] for context in ("tokens", "frames"))
    assert one["windows"] == other["windows"] == 8 and one["minutes"] != other["minutes"], "the videos differ"
    assert one["minutes"][0]["sharpness"]["truth"] == other["minutes"][0]["sharpness"]["truth"], "what they are held against does not"
    for trends in ("trends", "trends_of_like_windows"):
        assert list(one[trends]) == list(LOOKS) and one[trends]["green"]["n"] == 8
    assert "from start to end beside rendered truth (95%): sharpness" in said
    assert "metrics install" in figures["not_measured"]["fvd"] and "switching, frames: adherence" in said and "metrics install" in said
    assert all(f"caution: Of rendered truth (switching, {context}) the referee itself" in said for context in ("tokens", "frames"))
    assert any("Of one story" in caution for caution in figures["cautions"]) and "context" not in figures["sampling"]
    names = [f"{context}-switching-0000.{ending}" for context in ("frames", "tokens") for ending in ("jsonl", "mp4")]
    assert sorted(path.name for path in (tmp_path / "a-work").iterdir()) == sorted([*names, "settings.json"])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.height > 6 * 100

    monkeypatch.setattr("phenaki.pipeline.Phenaki.stream", None)  # nothing is made again
    assert run(*arguments)[0] == 0 and json.loads((tmp_path / "a.json").read_text()) == figures
    code, said = run(*arguments, "--num-steps", 2)
    assert code == 2 and "another evaluation (sampling not as now)" in said


def test_truth_drawn_by_code_is_told_before_the_work_and_blamed_on_nobody(folder, no_networks, tmp_path):  # noqa: F811
    code, said = run("--model", folder, "--minutes", 0.5, "--mode", "switching", "-o", tmp_path / "a.json")
    figures = json.loads((tmp_path / "a.json").read_text())
    assert code == 0 and said.startswith(DRAWN_TRUTH) and said.count(f"caution: {DRAWN_TRUTH}") == 1
    assert figures["cautions"][0] == DRAWN_TRUTH and not any("referee itself" in caution for caution in figures["cautions"])
    assert "without --data" in figures["not_measured"]["fvd"]


def test_a_stopped_command_says_what_is_kept_and_goes_on_from_there(folder, atlas, no_networks, monkeypatch, tmp_path):  # noqa: F811
    arguments = ("--model", folder, "--data", atlas, "--minutes", 0.5, "--mode", "switching", "-o", tmp_path / "a.json")
    monkeypatch.setattr(drift_program, "shipped_referee", lambda exam: Blind(dies_at=6))
    code, said = run(*arguments)
    work = tmp_path / "a-work"
    part, kept = part_path(work / "tokens-switching-0000.mp4"), f"what was judged is kept in {work}: the same command goes on from there"
    assert code == 130 and said.strip().split("\n") == ["stopped", f"what was made so far plays in {part}; the same run goes on from there", kept]
    assert not (tmp_path / "a.json").exists() and part.exists()

    blind = Blind()
    monkeypatch.setattr(drift_program, "shipped_referee", lambda exam: blind)
    assert run(*arguments)[0] == 0 and blind.shown == 2 * (8 - 2), "two of eight windows were judged before"


def test_stopped_before_the_first_story_nothing_is_said_to_be_kept(folder, atlas, no_networks, monkeypatch, tmp_path):  # noqa: F811
    def stops(exam):
        raise KeyboardInterrupt

    monkeypatch.setattr(drift_program, "shipped_referee", stops)
    code, said = run("--model", folder, "--data", atlas, "--minutes", 0.5, "-o", tmp_path / "a.json")
    assert code == 130 and said.strip() == "stopped" and not list(tmp_path.iterdir())


def test_a_referee_that_is_weak_on_the_truth_is_told(phenaki, world, tmp_path, monkeypatch):
    """The truth's share, not that of what was made; each mode and context with its own."""
    found = measured(phenaki, world, SWITCHING, tmp_path / "a.mp4", monkeypatch)
    assert set(found["by_attribute"]) == set(LABELS) and found["by_attribute"]["motion"]["truth"]["n"] == 15
    weak = copy.deepcopy(found)
    weak["by_attribute"]["motion"]["truth"]["value"] = 0.9
    weak["by_attribute"]["place"] = {"made": {"value": 0.5, "n": 15}, "truth": {"value": GOOD_REFEREE, "n": 15}}
    figures = {"minutes": 10.0, "stories": 2, "contexts": {"tokens": {SWITCHING: found}, "frames": {SWITCHING: weak}}}
    said = cautions(figures)
    assert len(said) == 2 and "FVD is of" in said[1]
    assert said[0].startswith(
        "Of rendered truth (switching, frames) the referee itself has only this right: motion 90.0%. The model cannot be seen to do better."
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"-o": "a.txt"}, "must end in .json"),
        ({"-o": "folder.json"}, "folder.json: is a folder"),
        ({"-o": "/proc/t.json"}, "cannot write in /proc"),
        ({"--work": "file.txt"}, "file.txt: is a file; needed a folder"),
        ({"--work": "file.txt/a"}, "file.txt is a file; needed a folder"),
        ({"--plot": "a.pdf"}, "must end in .png"),
        ({"--model": "missing"}, "no such folder"),
        ({"--minutes": "99"}, "0.5 to 60"),
        ({"--stories": "0"}, "needed 1 to"),
        ({"--guidance-scale": "0"}, "needed 1 (off) to 100"),
    ],
)
def test_mistakes_are_one_message(folder, no_networks, tmp_path, monkeypatch, changed, said):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    Path("folder.json").mkdir()
    Path("file.txt").write_text("a file")
    options = {"--model": folder, "--minutes": 0.5, "-o": "a.json"} | changed
    code, output = run(*(word for pair in options.items() for word in pair))
    assert code == 2 and said in output and output.count("error:") == 1 and "Traceback" not in output


def test_figures_are_written_where_they_are_asked_for(folder, no_networks, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    Path("docs/results").mkdir(parents=True)
    code, said = run("--model", folder, "--minutes", 0.5)
    assert code == 2 and "Missing option" in said and "--output" in said and not list(Path("docs/results").iterdir())


def test_an_unknown_context_is_refused(folder, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="context 'pixels': allowed are tokens, frames"):
        run_drift_evaluation(DriftExam(folder, contexts=("pixels",)), tmp_path / "a.json")


def figures_of(contexts: dict[str, float]) -> dict:
    """Two minutes in which every measure falls from 1 to a value."""
    spans = lambda last: [
        {"minute": minute, "fvd": None, **{name: {side: {"value": value} for side in ("made", "truth")} for name in ROWS if name != "fvd"}}
        for minute, value in ((1, 1.0), (2, last))
    ]
    modes = lambda last: {mode: {"minutes": spans(last)} for mode in (HELD, SWITCHING)}
    return {"model": {"name": "m"}, "minutes": 2.0, "contexts": {context: modes(last) for context, last in contexts.items()}}


def pixels_of(figures: dict, colour: str) -> int:
    picture = np.asarray(Image.open(io.BytesIO(drift_plot(figures))))
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return int((picture == wanted).all(-1).sum())


def test_the_picture_has_a_line_for_what_was_measured_and_none_for_what_was_not():
    one, two = figures_of({"tokens": 0.5}), figures_of({"tokens": 0.5, "frames": 0.8})
    assert pixels_of(one, COLOURS["tokens"]) > 2000 and pixels_of(one, COLOURS["frames"]) == 0
    assert pixels_of(two, COLOURS["frames"]) > 2000 and drift_plot(two) == drift_plot(two) != drift_plot(one)


def test_a_picture_that_nobody_named_is_not_replaced_by_the_plot(folder, tmp_path):  # noqa: F811
    (tmp_path / "cat.png").write_bytes(b"a cat")
    with pytest.raises(ValueError, match=r"cat\.png: is there, and the plot would replace it; name another with --plot"):
        run_drift_evaluation(DriftExam(folder, settings=DriftSettings(0.5, (SWITCHING,))), tmp_path / "cat.json")
    assert (tmp_path / "cat.png").read_bytes() == b"a cat"
