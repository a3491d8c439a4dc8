"""`phenaki evaluate story` with a referee that reads the truth from the pixels: every measure has an answer known beforehand."""

import base64
import copy
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from phenaki.checkpoint import ModelInfo, save_model
from phenaki.cli import app
from phenaki.cvivit import CViViT
from phenaki.data.captions import attribute_phrases, held_out_of, is_held_out
from phenaki.data.storybook import StorybookWorld, draw_art, open_world
from phenaki.data.world import FULL_WORLD, SMALL_WORLD, SceneTruth, StoryTruth
from phenaki.evaluation import story_program
from phenaki.evaluation.networks import MetricNetworks
from phenaki.evaluation.story import MadeStory, evaluate_stories, fingerprint, judge_story, tell
from phenaki.evaluation.story_figures import DRAWN_TRUTH, cautions, story_figures
from phenaki.evaluation.story_program import StoryExam, run_story_evaluation, scene_lengths, summary
from phenaki.evaluation.story_report import NUM_SHOWN, story_report
from phenaki.evaluation.story_scripts import COMBINATIONS, KINDS, PHRASINGS, SEEN, Script, ScriptSettings, draw_script, is_of_kind
from phenaki.evaluation.story_work import WorkFolder
from phenaki.evaluation.tokenizer import as_shown
from phenaki.maskgit import MaskGIT
from phenaki.pipeline import Phenaki
from phenaki.sampling import SamplingOptions
from phenaki.story_plan import plan
from phenaki.text import TextEncoder
from phenaki.training.settings import load_settings
from phenaki.video import Video

ROOT = Path(__file__).resolve().parents[1]
CONFIG = replace(SMALL_WORLD, size=32)
LENGTHS = [17, 16, 16, 15]
CHUNKS = (0, 5, 11, 17, 25, 33, 41, 49, 57)
SLICES = (0, *range(1, sum(LENGTHS), 2))
LABELS = {"actor": CONFIG.actors, "place": CONFIG.places, "time": CONFIG.times, "motion": CONFIG.motions}
STEP = 16  # 8-bit levels between two labels


class CodedWorld(StorybookWorld):
    """Its first row of pixels says what each frame shows, attribute by attribute, as a referee's figures need it."""

    def render(self, stories: list[StoryTruth]) -> torch.Tensor:
        video = super().render(stories)
        for at, story in enumerate(stories):
            for frame, scene in enumerate(self.scenes_by_frame(story)):
                for column, (name, labels) in enumerate(LABELS.items()):
                    video[at, :, frame, 0, column] = STEP * labels.index(getattr(scene, name)) / 127.5 - 1
        return video


class Reader:
    """The referee that reads that row."""

    labels = LABELS

    def __call__(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        codes = ((video[:, 0, :, 0] + 1) * 127.5 / STEP).round().long()
        return {name: torch.nn.functional.one_hot(codes[..., i], len(labels)).float() for i, (name, labels) in enumerate(LABELS.items())}


@pytest.fixture(scope="module")
def world() -> CodedWorld:
    return CodedWorld(CONFIG, draw_art(CONFIG.actors, CONFIG.places))


@pytest.fixture(scope="module")
def scripts(world) -> list[Script]:
    return [draw_script(world, ScriptSettings(scripts=9), index, LENGTHS) for index in range(9)]


def shows(world: StorybookWorld, change=lambda scene: scene, seconds: float = 4.0):
    """A model that shows each script with its scenes changed."""

    def teller(script: Script) -> MadeStory:
        truth = replace(script.truth, scenes=tuple(change(scene) for scene in script.truth.scenes))
        return MadeStory(as_shown(world.render([truth]))[0], CHUNKS, SLICES, seconds)

    return teller


def features(video: torch.Tensor) -> torch.Tensor:
    """In place of I3D: six means of each video, in 8-bit levels."""
    return 127.5 * video.unflatten(2, (2, -1)).mean(dim=(3, 4, 5)).flatten(1)


def measured(scripts, teller, world, folder, i3d=features) -> dict:
    work = WorkFolder(folder, {})
    evaluate_stories(scripts, teller, world, Reader(), i3d, work)
    return story_figures(scripts, work.record, CONFIG.fps)


# ---- scripts -------------------------------------------------------------------------------------------------------


def test_scripts_are_the_same_for_a_seed_and_of_three_kinds_in_turn(world):
    settings = ScriptSettings(scripts=60)
    drawn = [draw_script(world, settings, index, LENGTHS) for index in range(60)]
    assert drawn == [draw_script(world, settings, index, LENGTHS) for index in range(60)]
    assert drawn != [draw_script(world, replace(settings, seed=1), index, LENGTHS) for index in range(60)]
    assert [script.kind for script in drawn] == list(KINDS) * 20
    for script in drawn:
        assert [scene.num_frames for scene in script.truth.scenes] == LENGTHS
        assert all(is_of_kind(scene, script.kind) for scene in script.truth.scenes)


def test_kinds_keep_held_out_pairs_and_held_out_words_apart(world):
    hidden = {phrase for name, values in LABELS.items() for value in values for phrase in held_out_of(attribute_phrases(name, value))}
    for index in range(90):
        script = draw_script(world, ScriptSettings(scripts=90), index, LENGTHS)
        for scene in script.truth.scenes:
            paired = is_held_out(scene.actor, scene.place) or is_held_out(scene.actor, scene.motion)
            worded = any(phrase in scene.caption for phrase in hidden)
            assert (paired, worded) == {SEEN: (False, False), COMBINATIONS: (True, False), PHRASINGS: (False, True)}[script.kind], scene.caption
            assert bool(scene.told_in_held_out_words) == (script.kind == PHRASINGS)


def test_a_caption_names_what_it_is_said_to_name(world):
    for index in range(60):
        for scene in draw_script(world, ScriptSettings(scripts=60), index, LENGTHS).truth.scenes:
            assert {"actor", "motion"} <= set(scene.told)
            for name in ("place", "time"):
                found = any(phrase in scene.caption for phrase in attribute_phrases(name, getattr(scene, name)))
                assert found == (name in scene.told), (name, scene)


def test_the_full_world_has_scripts_of_every_kind():
    world = open_world(replace(FULL_WORLD, size=16))
    scripts = [draw_script(world, ScriptSettings(scripts=60), index, LENGTHS) for index in range(60)]
    scenes = [(script, scene) for script in scripts for scene in script.truth.scenes]
    assert all(is_of_kind(scene, script.kind) for script, scene in scenes)
    for name, silent in (("weather", "clear"), ("companion", ""), ("camera", "still")):
        assert {name in scene.told for _, scene in scenes if getattr(scene, name) == silent} == {False}
        assert {name in scene.told for _, scene in scenes if getattr(scene, name) != silent} == {True}


def test_a_script_tells_its_captions(scripts):
    story = scripts[1].story
    assert [scene.prompt for scene in story.scenes] == [scene.caption for scene in scripts[1].truth.scenes]
    assert story.seconds == 8 and story.seed == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scripts": 2}, "at least 3"), ({"scenes": 1}, "at least 2"), ({"seconds": 1.5}, "needed 2 to 60"),
        ({"seconds": float("nan")}, "needed 2"), ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_that_cannot_be_judged_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ScriptSettings(**settings)


# ---- figures -------------------------------------------------------------------------------------------------------


def test_the_truth_has_full_marks(scripts, world, tmp_path):
    found = measured(scripts, shows(world), world, tmp_path / "work")
    for side in (found, found["truth"]):
        for answers in side["adherence"].values():
            assert all(one["value"] == 1 for one in answers.values() if one["n"]) and answers["scene"]["n"] == 12
        assert side["persistence"]["unsaid"]["value"] == side["persistence"]["said_again"]["value"] == 1
        assert side["switch_time"]["median"]["value"] == side["switch_time"]["p90"]["value"] == side["switch_time"]["never_seen"]["value"] == 0
        assert side["seam_score"]["n"] == 9 * 5 and 0.5 < side["seam_score"]["value"] < 1.5
        assert side["fvd"]["n"] == 9
    assert found["fvd"] == found["truth"]["fvd"] and found["fvd"]["value"] > 0, "another start is another video"
    assert found["seconds_per_second_of_video"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 9}
    assert found["adherence"][PHRASINGS]["time"]["n"] == 0 and found["adherence"][PHRASINGS]["time"]["value"] is None  # there are no such words


def test_a_model_that_knows_one_actor_is_right_where_it_is_asked_for(scripts, world, tmp_path):
    found = measured(scripts, shows(world, lambda scene: replace(scene, actor="panda", companion="")), world, tmp_path / "work")
    for kind in (SEEN, COMBINATIONS):
        asked = [scene.actor for script in scripts if script.kind == kind for scene in script.truth.scenes]
        share = asked.count("panda") / len(asked)
        assert found["adherence"][kind]["actor"]["value"] == pytest.approx(share, abs=1e-4)
        assert found["adherence"][kind]["actor"]["n"] == found["adherence"][kind]["scene"]["n"] == 12
        assert found["adherence"][kind]["scene"]["value"] == pytest.approx(share, abs=1e-4), "the others are right"
        assert found["adherence"][kind]["place"]["value"] == found["adherence"][kind]["motion"]["value"] == 1
    assert found["truth"]["adherence"][SEEN]["actor"]["value"] == 1


def test_held_out_words_count_for_the_attributes_that_have_them(scripts, world, tmp_path):
    found = measured(scripts, shows(world), world, tmp_path / "work")["adherence"][PHRASINGS]
    scenes = [scene for script in scripts if script.kind == PHRASINGS for scene in script.truth.scenes]
    for name in ("actor", "place", "motion"):
        assert found[name]["n"] == sum(name in scene.told_in_held_out_words for scene in scenes)
    assert 0 < found["place"]["n"] < 12


def late(script: Script, frames: int) -> StoryTruth:
    """Every scene but the first begins some frames later than the script says."""
    scenes = script.truth.scenes
    lengths = [scenes[0].num_frames + frames, *(scene.num_frames for scene in scenes[1:-1]), scenes[-1].num_frames - frames]
    return replace(script.truth, scenes=tuple(replace(scene, num_frames=length) for scene, length in zip(scenes, lengths, strict=True)))


@pytest.mark.parametrize("frames", [3, 7])
def test_a_model_that_is_late_has_that_switch_time_and_no_other_fault(scripts, world, tmp_path, frames):
    found = measured(scripts, lambda script: MadeStory(world.render([late(script, frames)])[0], CHUNKS, SLICES, 1.0), world, tmp_path / "work")
    times = found["switch_time"]
    assert times["median"]["value"] == times["p90"]["value"] == frames and times["unit"] == "frames"
    assert times["never_seen"]["value"] == 0 and times["median"]["n"] > 20
    assert {one["median"]["value"] for one in times["by_attribute"].values()} == {frames}
    assert all(one["value"] == 1 for one in found["adherence"][SEEN].values())


def test_a_model_that_stays_where_it_was_never_switches(scripts, world, tmp_path):
    def stays(script: Script) -> MadeStory:
        first = script.truth.scenes[0]
        scenes = tuple(replace(scene, place=first.place) for scene in script.truth.scenes)
        return MadeStory(world.render([replace(script.truth, scenes=scenes)])[0], CHUNKS, SLICES, 1.0)

    found = measured(scripts, stays, world, tmp_path / "work")["switch_time"]["by_attribute"]
    assert found["actor"]["never_seen"]["value"] == 0 < found["place"]["never_seen"]["value"]


def test_a_model_that_forgets_what_is_unsaid_fails_persistence_alone_there(scripts, world, tmp_path):
    """Places that a prompt leaves out are forgotten; those it says again are not."""
    other = lambda scene: next(place for place in CONFIG.places if place != scene.place)
    forgets = lambda scene: scene if "place" in scene.told else replace(scene, place=other(scene))
    found = measured(scripts, shows(world, forgets), world, tmp_path / "work")["persistence"]
    assert found["said_again"]["value"] == 1
    unsaid = [name for script in scripts for scene in script.truth.scenes[1:] for name in ("place", "time") if name not in scene.told]
    assert 0 < found["unsaid"]["value"] < 1 and found["unsaid"]["n"] <= len(unsaid)
    assert found["by_attribute"]["place"]["value"] < 1 == found["by_attribute"]["time"]["value"]


def test_a_jump_at_every_chunk_join_is_seen_in_the_seam_score(scripts, world, tmp_path):
    def jumps(script: Script) -> MadeStory:
        video = world.render([script.truth])[0]
        for number, start in enumerate(CHUNKS):
            video[:, start:, 1:] = (video[:, start:, 1:] + (0.3 if number % 2 else -0.3)).clamp(-1, 1)
        return MadeStory(video, CHUNKS, SLICES, 1.0)

    found = measured(scripts, jumps, world, tmp_path / "work")
    assert found["seam_score"]["low"] > 2 > found["truth"]["seam_score"]["high"]
    assert found["seam_score"]["beside_slices"]["low"] > 2 > found["truth"]["seam_score"]["beside_slices"]["high"]


def test_pictures_that_change_at_every_slice_alone_have_seams_like_any_slice(scripts, world, tmp_path):
    def jumps(script: Script) -> MadeStory:
        video = world.render([script.truth])[0]
        for number, start in enumerate(SLICES):
            video[:, start:, 1:] = (video[:, start:, 1:] + (0.3 if number % 2 else -0.3)).clamp(-1, 1)
        return MadeStory(video, CHUNKS, SLICES, 1.0)

    found = measured(scripts, jumps, world, tmp_path / "work")["seam_score"]
    assert found["low"] > 1.3 and 0.8 < found["beside_slices"]["value"] < 1.2


def test_without_i3d_there_is_no_fvd_and_all_else(scripts, world, tmp_path):
    found = measured(scripts, shows(world), world, tmp_path / "work", i3d=None)
    assert found["fvd"] is None and found["truth"]["fvd"] is None and found["adherence"][SEEN]["actor"]["value"] == 1


def test_a_weak_referee_few_scripts_and_missing_scenes_are_told(scripts, world, tmp_path):
    found = measured(scripts, shows(world), world, tmp_path / "work")
    said = cautions(found, 9, 200)
    assert len(said) == 3 and "time (held_out_phrasings)" in said[0] and "Of 9 scripts" in said[1] and "FVD is of 9 videos" in said[2]
    found["truth"]["adherence"][SEEN]["motion"]["value"] = 0.9
    assert "only this right: motion 90.0%" in cautions(found, 200, 200)[0]


# ---- the loop, and going on ----------------------------------------------------------------------------------------


def test_a_killed_evaluation_goes_on_and_comes_to_the_same(scripts, world, tmp_path):
    asked = []

    def dies(script: Script) -> MadeStory:
        asked.append(script.index)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return shows(world)(script)

    folder = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        measured(scripts, dies, world, folder)
    found = measured(scripts, dies, world, folder)
    assert asked == [0, 1, 2, 2, 3, 4, 5, 6, 7, 8]
    assert found == measured(scripts, shows(world), world, tmp_path / "other")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert len(Video.load(folder / "story-0003.mp4")) == sum(LENGTHS)


def test_a_work_folder_is_of_one_evaluation(tmp_path):
    settings = {"sampling": {"num_steps": 8}, "world": "small"}
    WorkFolder(tmp_path / "a", settings)
    WorkFolder(tmp_path / "a", dict(settings))
    with pytest.raises(ValueError, match=r"another evaluation \(sampling not as now\).*--work"):
        WorkFolder(tmp_path / "a", {**settings, "sampling": {"num_steps": 9}})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        WorkFolder(tmp_path / "b", settings)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".settings.json.part").write_text("{")  # of a run that was killed as it began
    assert WorkFolder(tmp_path / "c", settings).record(0) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"made": 3}', '{"index": 0, "made": {"seen": {}}}'])
def test_a_damaged_record_is_told(tmp_path, content):
    work = WorkFolder(tmp_path / "a", {})
    (tmp_path / "a" / "story-0004.json").write_text(content)
    assert work.record(3) is None
    with pytest.raises(ValueError, match=r"story-0004.json: .* Remove it and run again"):
        work.record(4)


def test_a_record_that_says_something_else_is_told(scripts, world, tmp_path):
    work = WorkFolder(tmp_path / "a", {})
    evaluate_stories(scripts[:1], shows(world), world, Reader(), None, work)
    path = tmp_path / "a" / "story-0000.json"
    whole = json.loads(path.read_text())
    assert work.record(0).index == 0
    name = next(iter(whole["made"]["seen"]))
    for place, value in [
        (("index",), 7), (("wall_seconds",), None), (("video_seconds",), float("nan")), (("reference",), "abc"), (("made", "features"), ["a"]),
        (("made", "seen"), {}), (("made", "seen"), []), (("made", "seen", name), "fox"), (("made", "seen", name), ["fox"]),
        (("rendered", "seen", name), [3] * 64), (("made", "seams", "joins"), ["a", "b"]), (("made", "seams", "joins"), [1.0]),
        (("made", "seen", name), dict.fromkeys(whole["made"]["seen"][name][:1])), (("made", "features"), [1.0]), (("wall_seconds",), 10**400),
        (("made", "seams"), {"joins": [1.0, 1, 1], "inside": [1.0], "between": [1.0, 1]}),
    ]:  # fmt: skip
        harmed = copy.deepcopy(whole)
        inner = harmed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        path.write_text(json.dumps(harmed))
        with pytest.raises(ValueError, match=r"story-0000.json: not the record of a story \(.*\). Remove it and run again"):
            work.record(0)
    nothing = {name: [] for name in whole["made"]["seen"]}
    path.write_text(json.dumps({**whole, **{side: {**whole[side], "seen": nothing} for side in ("made", "rendered")}}))
    with pytest.raises(ValueError, match=r"story-0000.json: not the record of a story \(what was seen is not of the same frames"):
        work.record(0)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"story-0000.json: damaged \(.*\). Remove it and run again"):
        work.record(0)


def test_a_video_of_another_length_is_refused(scripts, world):
    told = shows(world)(scripts[0])
    with pytest.raises(ValueError, match=r"story 0: a video of shape \(3, 60, 32, 32\); its script needs \(3, 64, 32, 32\)"):
        judge_story(scripts[0], replace(told, video=told.video[:, :60]), world, Reader(), None)


def test_what_the_referee_has_no_name_for_is_refused(scripts, world, tmp_path):
    narrow = Reader()
    narrow.labels = {**LABELS, "actor": ("fox", "panda")}
    with pytest.raises(ValueError, match=r"actor '[a-z ]+': the referee knows fox, panda"):
        evaluate_stories(scripts, shows(world), world, narrow, None, WorkFolder(tmp_path / "a", {}))


def test_referees_are_told_apart():
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    one.labels = two.labels = LABELS
    assert fingerprint(one) == fingerprint(one) != fingerprint(two) and fingerprint(Reader()) == fingerprint(Reader())


# ---- the page ------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_worst_and_the_best_as_clips(world, tmp_path):
    evil = "<script>alert(1)</script>"
    scripts = [draw_script(world, ScriptSettings(scripts=10), index, LENGTHS) for index in range(10)]
    scenes = tuple(replace(scene, caption=evil) for scene in scripts[6].truth.scenes)
    scripts[6] = replace(scripts[6], truth=replace(scripts[6].truth, scenes=scenes))
    blind = lambda scene: replace(scene, actor="octopus", motion="stands") if scene.caption == evil else scene
    work = WorkFolder(tmp_path / "work", {})
    evaluate_stories(scripts, shows(world, blind), world, Reader(), features, work)
    found = story_figures(scripts, work.record, CONFIG.fps)
    settings = {"model": {"name": evil}, "sampling": {}, "scripts": {"scripts": 10, "scenes": 4, "seconds": 2.0}}
    where = {"world": "small", "data": "", "referee": {}, "machine": ""}
    figures = {**found, **settings, **where, "fps": 8.0, "size": 32, "frames": 64, "cautions": [evil], "not_measured": {}}
    page = story_report(figures, scripts, work, CONFIG.fps)
    assert evil not in page and page.count("&lt;script&gt;alert(1)") >= 6 and not re.search("https?://", page)
    assert "media-src data:" in page
    clips = re.findall(r'<video[^>]* src="data:video/mp4;base64,([^"]+)"', page)
    assert len(clips) == 2 * NUM_SHOWN
    shown = [int(number) for number in re.findall(r"<figcaption>story (\d+),", page)]
    assert shown[0] == 6 and len(set(shown)) == 2 * NUM_SHOWN
    assert base64.b64decode(clips[0]) == work.video(6).read_bytes()
    assert len(page) < 2_000_000
    wrong = [scene for scene in scripts[6].truth.scenes if scene.actor != "octopus"]
    assert page.count("actor octopus, asked: ") == len(wrong) > 0


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model with random weights."""
    settings = load_settings(ROOT / "configs" / "tiny.toml")
    torch.manual_seed(3)
    tokenizer, generator = CViViT(settings.tokenizer).eval(), MaskGIT(settings.generator).eval()
    path = tmp_path_factory.mktemp("model")
    sampling, encoder = SamplingOptions(num_steps=1, guidance_scale=1), TextEncoder.load().fingerprint
    info = ModelInfo("tiny", settings.tokenizer, settings.generator, settings.text, settings.world.fps, sampling=sampling, text_encoder=encoder)
    save_model(path, info, tokenizer, generator)
    return path


@pytest.fixture(scope="module")
def atlas(tmp_path_factory) -> Path:
    """Pictures as of artists, in a file."""
    path, art = tmp_path_factory.mktemp("art") / "atlas.safetensors", draw_art(CONFIG.actors, CONFIG.places)
    names = {"actors": art.actor_names, "places": art.place_names, "particles": art.particle_names}
    save_file({name: getattr(art, name) for name in names}, path, {"names": json.dumps(names)})
    return path


@pytest.fixture
def no_networks(monkeypatch):
    """The referee that reads pixels; I3D is not installed."""
    monkeypatch.setattr(story_program, "shipped_referee", lambda exam: Reader())
    missing = MetricNetworks(missing={"i3d": "not measured: run `phenaki metrics install`"})
    monkeypatch.setattr("phenaki.evaluation.exam.load_i3d_network", lambda device: missing)


def run(*arguments) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["evaluate", "story", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_writes_figures_and_page_and_is_fast_the_second_time(folder, atlas, no_networks, monkeypatch, tmp_path):
    monkeypatch.setattr(Reader, "__call__", lambda self, video: {name: torch.ones(1, video.shape[2], len(one)) for name, one in LABELS.items()})
    arguments = ("--model", folder, "--data", atlas, "--scripts", 3, "-o", tmp_path / "a.json", "--html", tmp_path / "a.html")
    changed = ("--num-steps", 2, "--guidance-scale", 1.5, "--order", "halton", "--temperature", 0.7)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/phenaki", "evaluate", "story", "-o", "a b.json"])
    code, said = run(*arguments, *changed)
    assert code == 0, said
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["command"] == "phenaki evaluate story -o 'a b.json'"
    wanted = {"num_steps": 2, "guidance_scale": 1.5, "order": "halton", "temperature": 0.7}
    assert {name: figures["sampling"][name] for name in wanted} == wanted
    assert figures["scripts"] == {"scripts": 3, "scenes": 4, "seconds": 2.0, "seed": 777, "frames_of_scenes": LENGTHS}
    assert figures["seconds_per_second_of_video"]["value"] > 0 and "threads" in figures["machine"] and figures["frames"] == 64
    assert figures["fvd"] is None and "metrics install" in figures["not_measured"]["fvd"]
    assert "seen: actor" in said and "metrics install" in said and "caution: Of rendered truth (seen) the referee itself has only" in said
    assert DRAWN_TRUTH not in said and (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    kept = [f"story-000{index}.{ending}" for index in range(3) for ending in ("json", "mp4")]
    assert sorted(path.name for path in (tmp_path / "a-work").iterdir()) == ["settings.json", *kept]

    monkeypatch.setattr("phenaki.pipeline.Phenaki.stream_story", None)  # nothing is made again
    code, _ = run(*arguments, *changed)
    assert code == 0 and json.loads((tmp_path / "a.json").read_text()) == figures
    assert run(*arguments, *changed, "--no-fvd")[0] == 0 and "no-fvd" in json.loads((tmp_path / "a.json").read_text())["not_measured"]["fvd"]
    code, said = run(*arguments)
    assert code == 2 and "another evaluation (sampling not as now)" in said


def test_truth_drawn_by_code_is_told_before_the_work_and_blamed_on_nobody(folder, no_networks, monkeypatch, tmp_path):
    """The shipped referee was not trained on such pictures; one that is handed over may know them."""
    monkeypatch.setattr(Reader, "__call__", lambda self, video: {name: torch.ones(1, video.shape[2], len(one)) for name, one in LABELS.items()})
    notes, exam = [], StoryExam(folder, scripts=ScriptSettings(3))
    options = {"on_note": notes.append, "networks": MetricNetworks(i3d=features), "html": tmp_path / "a.html"}

    def noted_tell(phenaki, script):
        assert notes == [DRAWN_TRUTH], "before the first story"
        return tell(phenaki, script)

    monkeypatch.setattr(story_program, "tell", noted_tell)
    found = run_story_evaluation(exam, tmp_path / "a.json", **options)
    assert found["cautions"][0] == DRAWN_TRUTH and not any("referee itself" in caution or "FVD is of" in caution for caution in found["cautions"])
    assert found["fvd"] is None and found["truth"]["fvd"] is None and "without --data" in found["not_measured"]["fvd"]
    assert f"caution: {DRAWN_TRUTH}" in summary(found) and "without --data" in (tmp_path / "a.html").read_text()
    code, said = run("--model", folder, "--scripts", 3, "-o", tmp_path / "a.json")
    assert code == 0 and said.startswith(DRAWN_TRUTH)
    own = run_story_evaluation(exam, tmp_path / "b.json", referee=Reader(), **options)
    assert notes == [DRAWN_TRUTH] and own["fvd"] and any("referee itself" in caution for caution in own["cautions"])


def test_a_stopped_command_says_what_is_kept_and_goes_on_from_there(folder, atlas, no_networks, monkeypatch, tmp_path):
    arguments = ("--model", folder, "--data", atlas, "--scripts", 3, "-o", tmp_path / "a.json", "--work", tmp_path / "kept here")
    told = []

    def dies(phenaki, script):
        told.append(script.index)
        if len(told) == 2:
            raise KeyboardInterrupt
        return tell(phenaki, script)

    monkeypatch.setattr(story_program, "tell", dies)
    monkeypatch.setattr(Reader, "__call__", lambda self, video: {name: torch.ones(1, video.shape[2], len(one)) for name, one in LABELS.items()})
    code, said = run(*arguments)
    kept = tmp_path / "kept here"
    assert code == 130 and said.strip() == f"stopped\nwhat was judged is kept in {kept}: the same command goes on from there"
    assert (kept / "story-0000.json").exists() and not (tmp_path / "a.json").exists()
    assert run(*arguments)[0] == 0 and told == [0, 1, 1, 2]


def test_the_video_that_is_judged_is_the_one_that_a_user_gets(folder, scripts):
    phenaki = Phenaki.from_pretrained(folder, device="cpu")
    starts = []
    frames = phenaki.generate_story(scripts[1].story, progress=False, on_chunk=lambda chunk: starts.append(chunk.start_frame)).frames
    told = tell(phenaki, scripts[1])
    assert np.array_equal(((told.video + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy(), frames)
    assert told.chunk_starts == tuple(starts) and told.chunk_starts[0] == 0 and told.seconds > 0
    assert told.slice_starts == SLICES
    assert scene_lengths(phenaki, ScriptSettings()) == LENGTHS
    slow = SimpleNamespace(info=SimpleNamespace(fps=1.0), plan=lambda story: plan(story, fps=1.0, temporal_patch_size=2, chunk_slices=3))
    with pytest.raises(ValueError, match=r"at 1 frames a second one has 1 frames, of which 1 at its ends are not judged"):
        scene_lengths(slow, ScriptSettings())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"-o": "a.txt"}, "must end in .json"),
        ({"-o": "folder.json"}, "folder.json: is a folder"),
        ({"-o": "/proc/t.json"}, "cannot write in /proc"),
        ({"--work": "file.txt"}, "file.txt: is a file; needed a folder"),
        ({"--work": "file.txt/a"}, "file.txt is a file; needed a folder"),
        ({"--html": "a.pdf"}, "must end in .html"),
        ({"--model": "missing"}, "no such folder"),
        ({"--data": "missing"}, "no such atlas file"),
        ({"--scripts": "1"}, "at least 3"),
        ({"--seconds": "1"}, "needed 2 to 60"),
        ({"--order": "random"}, "allowed are confidence, halton"),
        ({"--temperature": "0"}, "needed above 0"),
    ],
)
def test_mistakes_are_one_message(folder, no_networks, tmp_path, monkeypatch, changed, said):
    monkeypatch.chdir(tmp_path)
    Path("folder.json").mkdir()
    Path("file.txt").write_text("a file")
    options = {"--model": folder, "--scripts": 3, "-o": "a.json"} | changed
    code, output = run(*(word for pair in options.items() for word in pair))
    assert code == 2 and said in output and output.count("error:") == 1 and "Traceback" not in output


def test_scenes_that_are_not_of_their_kind_are_left_out():
    plain = SceneTruth("fox", "beach", "day", "clear", "stands", "still", "", 16, told=("actor",))
    assert [kind for kind in KINDS if is_of_kind(plain, kind)] == [SEEN]
    paired, worded = replace(plain, actor="penguin", place="underwater"), replace(plain, told_in_held_out_words=("actor",))
    assert [kind for kind in KINDS if is_of_kind(paired, kind)] == [COMBINATIONS]
    assert [kind for kind in KINDS if is_of_kind(worded, kind)] == [PHRASINGS]
