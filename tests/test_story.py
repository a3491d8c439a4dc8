"""Stories: every format reads to the same thing, every bad one is told why, and the plan is exact to the frame."""

import importlib.util
import json
import math
import os
import random
import re
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from phenaki import story_formats
from phenaki.story import Scene, Story, StoryError
from phenaki.story_plan import plan

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".yaml", ".json", ".txt", ".srt", ".vtt"))


def random_story(draw: random.Random) -> tuple[Story, dict]:
    """A story whose scenes are all long enough, and the numbers to plan it with."""
    numbers = {
        "fps": draw.choice([1, 6, 8, 12.5, 23.976, 30]),
        "temporal_patch_size": draw.randint(1, 4),
        "chunk_slices": draw.randint(1, 9),
    }
    least = (2 * numbers["temporal_patch_size"] + 1) / numbers["fps"]
    scenes = [
        Scene(
            prompt=f"scene {index}",
            seconds=round(least + draw.choice([0.001, draw.random(), draw.random() * 20]), draw.choice([3, 6])),
            cut=draw.random() < 0.3,
            **draw.choice([{}, {}, {}, {}, {}, {"image": "picture.png"}, {"video": "clip.mp4"}]),
            end_image="last.png" if draw.random() < 0.15 else None,
            guidance_scale=draw.choice([None, 1, 6.5]),
            negative=draw.choice([None, "", "blurry"]),
        )
        for index in range(draw.randint(1, 12))
    ]
    return Story(title="t", style=draw.choice(["", "a picture book"]), negative="text", seed=draw.randrange(2**63), scenes=scenes), numbers


STORIES = [random_story(random.Random(seed)) for seed in range(300)]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(value, *words: str) -> None:
    """The story is refused with a StoryError that has all the words."""
    with pytest.raises(StoryError) as caught:
        Story.of(value)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


# ---- the plan ------------------------------------------------------------------------------------------------------


def test_frames_are_exact_and_boundaries_within_a_slice():
    for story, numbers in STORIES:
        told = plan(story, **numbers)
        fps, patch = numbers["fps"], numbers["temporal_patch_size"]
        assert abs(told.num_frames - story.seconds * fps) <= 0.5 + 1e-6
        assert told.num_frames == sum(scene.num_frames for scene in told.scenes) == sum(told.segment_frames)
        assert math.isclose(told.seconds * fps, told.num_frames)
        assert told.scenes[0].start_frame == 0
        asked = 0.0
        for scene, following in pairwise(told.scenes):
            asked += story.scenes[scene.index].seconds * fps
            assert scene.num_frames > 0 and following.start_frame == scene.start_frame + scene.num_frames
            assert abs(following.start_frame - asked) <= patch + 1e-6


def test_chunks_cover_the_slices_of_each_segment_once_and_in_order():
    for story, numbers in STORIES:
        told = plan(story, **numbers)
        patch, most = numbers["temporal_patch_size"], numbers["chunk_slices"]
        for segment, frames in enumerate(told.segment_frames):
            scenes = [scene for scene in told.scenes if scene.segment == segment]
            at = int(scenes[0].starts_from_file)
            for scene in scenes:
                sizes = [chunk.num_slices for chunk in scene.chunks]
                assert max(sizes) <= most and max(sizes) - min(sizes) <= 1 and len(sizes) == math.ceil(sum(sizes) / most)
                assert [(chunk.scene, chunk.index, chunk.segment) for chunk in scene.chunks] == [
                    (scene.index, i, segment) for i in range(len(sizes))
                ]
                for chunk in scene.chunks:
                    assert chunk.start_slice == at
                    at += chunk.num_slices
            assert 1 + patch * (at - 1) - patch < frames <= 1 + patch * (at - 1)  # the last slice is needed
        assert told.num_slices == sum(1 + math.ceil((frames - 1) / patch) for frames in told.segment_frames)
        assert told.num_chunks == sum(len(scene.chunks) for scene in told.scenes)


def test_inner_boundaries_stand_on_the_slice_grid():
    for story, numbers in STORIES:
        told = plan(story, **numbers)
        for before, scene in pairwise(told.scenes):
            if not scene.starts_segment:
                first = scene.chunks[0]
                origin = next(s.start_frame for s in told.scenes if s.segment == scene.segment)
                assert scene.start_frame - origin == 1 + numbers["temporal_patch_size"] * (first.start_slice - 1)
                assert before.segment == scene.segment


def test_segments_start_at_cuts_and_files_only():
    for story, numbers in STORIES:
        told = plan(story, **numbers)
        starts = [index == 0 or scene.cut or scene.image is not None or scene.video is not None for index, scene in enumerate(story.scenes)]
        assert [scene.starts_segment for scene in told.scenes] == starts
        assert len(told.segment_frames) == sum(starts)


def test_plan_of_earlier_scenes_does_not_depend_on_later_text():
    for story, numbers in STORIES[:100]:
        changed = [*story.scenes[:-1], story.scenes[-1].model_copy(update={"prompt": "something else"})]
        other = story.model_copy(update={"scenes": tuple(changed)})
        before, after = plan(story, **numbers), plan(other, **numbers)
        assert before.scenes[:-1] == after.scenes[:-1]
        assert before.scenes[-1].chunks == after.scenes[-1].chunks


def test_rounding_does_not_pile_up():
    story = Story.of([(f"scene {index}", 0.3125) for index in range(1000)])  # 2.5 frames each
    told = plan(story, fps=8, temporal_patch_size=2, chunk_slices=4)
    assert told.num_frames == 2500
    assert all(abs(scene.start_frame - 2.5 * scene.index) <= 2 for scene in told.scenes)


def test_nine_slices_at_most_four_are_three_threes():
    told = plan(Story.of([("a bear", 17 / 8)]), fps=8, temporal_patch_size=2, chunk_slices=4)
    assert [chunk.num_slices for chunk in told.scenes[0].chunks] == [3, 3, 3]


def test_a_picture_is_slice_zero():
    story = Story(scenes=[Scene(prompt="a bear", seconds=2), Scene(prompt="a panda", seconds=2, image="panda.png")])
    told = plan(story, fps=8, temporal_patch_size=2, chunk_slices=4)
    assert told.scenes[1].chunks[0].start_slice == 1 and told.scenes[1].num_slices == 9


@pytest.mark.parametrize(
    "files, seconds, least",
    [
        ({}, 0.01, "0.25 s (one token slice)"),
        ({"image": "panda.png"}, 0.125, "0.375 s (one token slice and the frame it starts from)"),
        ({"video": "clip.mp4"}, 0.125, "0.375 s"),
        ({"end_image": "panda.png"}, 0.125, "0.5 s (one token slice and the picture it ends on)"),
        ({"image": "a.png", "end_image": "b.png"}, 0.375, "0.625 s (one token slice and the frame it starts from and the picture it ends on)"),
    ],
)
def test_a_scene_without_a_slice_is_refused(files, seconds, least):
    story = Story(scenes=[Scene(prompt="a bear"), Scene(prompt="a panda", seconds=seconds, **files)])
    with pytest.raises(StoryError, match=rf"scenes\[1\].seconds = {seconds}.*8 fps.*at least {re.escape(least)}"):
        plan(story, fps=8, temporal_patch_size=2, chunk_slices=4)


@pytest.mark.parametrize("files", [{"image": "a.png"}, {"end_image": "b.png"}, {"video": "a.mp4", "end_image": "b.png"}])
@pytest.mark.parametrize("patch", range(1, 6))
def test_the_least_told_is_enough_for_what_is_given(files, patch):
    def planned(seconds):
        scenes = [Scene(prompt="a", seconds=1.37), *[Scene(prompt="b", seconds=seconds, **files)] * 5]
        return plan(Story(scenes=scenes), fps=8, temporal_patch_size=patch, chunk_slices=3)

    with pytest.raises(StoryError) as caught:
        planned(0.01)
    least = float(re.search(r"at least ([0-9.]+) s", str(caught.value))[1])
    assert all(sum(chunk.num_slices for chunk in scene.chunks) >= 1 + ("end_image" in files) for scene in planned(least).scenes[1:])


def test_the_least_told_is_enough():
    for patch in range(1, 6):
        story = Story.of([("a", 1.37), *[("b", patch / 8)] * 20])
        assert plan(story, fps=8, temporal_patch_size=patch, chunk_slices=3).num_frames == round(story.seconds * 8)


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"fps": math.nan}, {"temporal_patch_size": 0}, {"chunk_slices": 0}])
def test_plan_refuses_numbers_that_are_none(wrong):
    with pytest.raises(ValueError, match="above 0"):
        plan(Story.of("a bear"), **{"fps": 8, "temporal_patch_size": 2, "chunk_slices": 4, **wrong})


def test_prompt_gets_the_style_and_negative_falls_back():
    story = Story(style="a picture book", negative="text", scenes=[Scene(prompt="a bear"), Scene(prompt="a panda", negative="blurry")])
    told = plan(story, fps=8, temporal_patch_size=2, chunk_slices=4)
    assert [scene.prompt for scene in told.scenes] == ["a bear, a picture book", "a panda, a picture book"]
    assert [scene.negative for scene in told.scenes] == ["text", "blurry"]
    assert Story.of("a bear").resolved_prompt(0) == "a bear"


# ---- what a story may be made of -----------------------------------------------------------------------------------


def test_dict_round_trip_through_json():
    for story, _ in STORIES:
        assert Story.from_dict(json.loads(json.dumps(story.to_dict()))) == story


def test_lists_texts_and_dicts_say_the_same():
    whole = Story(scenes=[Scene(prompt="a bear", seconds=4), Scene(prompt="a panda", seconds=2.5)])
    assert Story.of(whole) is whole
    assert Story.of(["a bear", ("a panda", 2.5)]) == whole
    assert Story.of([Scene(prompt="a bear"), {"prompt": "a panda", "seconds": 2.5}]) == whole
    assert Story.of("a bear\n\n# a remark\n[2.5s] a panda\n") == whole
    assert Story.of(whole.to_dict()) == whole


def test_plain_text_header_and_options():
    header = "title: Two\nfps: 8\nseed: 3\nsize: 64\nnum_steps: 6\nguidance_scale: 2.5\ncontext: frames"
    story = Story.of(f"{header}\n---\na bear\n[4.5 s, cut, guidance 6, steps 12]  a   panda")
    assert (story.title, story.fps, story.seed, story.size) == ("Two", 8, 3, 64)
    assert (story.num_steps, story.guidance_scale, story.context) == (6, 2.5, "frames") and story.scenes[0] == Scene(prompt="a bear")
    with pytest.raises(StoryError, match='line 1: context = \'pictures\': needs what a chunk sees of those before it: "tokens" or "frames"'):
        Story.from_text("context: pictures\n---\na bear")
    assert story.scenes[1] == Scene(prompt="a panda", seconds=4.5, cut=True, guidance_scale=6, num_steps=12)


def test_plain_text_as_people_write_it():
    """A list's dashes and numbers, capitals; what stands in brackets elsewhere, or is a number of something, belongs to the prompt."""
    story = Story.of("Title: Two\nSEED: 3\n---\n1. a bear\n- [4S, CUT, Steps 12] a panda\n3 foxes\n* a cat [who] sings\n2.5 pears [ripe]")
    assert (story.title, story.seed) == ("Two", 3)
    assert [scene.prompt for scene in story.scenes] == ["a bear", "a panda", "3 foxes", "a cat [who] sings", "2.5 pears [ripe]"]
    assert story.scenes[1] == Scene(prompt="a panda", seconds=4, cut=True, num_steps=12)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", "- a bear\n- prompt: a panda\n  seconds: 2\n"),
        ("a.yaml", "scenes:\n- a bear\n- {prompt: a panda, seconds: 2}\n"),
        ("a.json", '["a bear", {"prompt": "a panda", "seconds": 2}]'),
    ],
    ids=str,
)
def test_a_scene_is_a_prompt_alone_and_a_story_a_list_where_that_says_all(tmp_path, name, content):
    assert Story.load(write(tmp_path, name, content)) == Story.of(["a bear", ("a panda", 2.0)])
    assert Story.from_dict({"scenes": ["a bear", {"prompt": "a panda", "seconds": 2}]}) == Story.of(["a bear", ("a panda", 2)])
    items = Story.json_schema()["properties"]["scenes"]["items"]["anyOf"]
    assert items == [{"$ref": "#/$defs/Scene"}, {"type": "string", "minLength": 1, "maxLength": 1000}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a bear\n- 3\n", r"a\.yaml:2: scenes\[1\] = 3: needs a prompt, or a mapping with a `prompt`"),
        ("- a bear\n- seconds: x\n", r"a\.yaml:2: scenes\[1\]\.prompt is missing"),
        ("- a bear\n- ''\n", r"a\.yaml:2: scenes\[1\]\.prompt = ''"),
        ("3\n", r"3 is not a story: needs a list of scenes, or a mapping with `scenes`"),
    ],
    ids=str,
)
def test_what_is_wrong_in_a_list_of_scenes_is_told_with_its_line(tmp_path, content, said):
    with pytest.raises(StoryError, match=said):
        Story.load(write(tmp_path, "a.yaml", content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", "scenes: [" + "1," * 500_000 + "1]"),
        ("a.json", '{"scenes": [' + "1," * 500_000 + "1]}"),
        ("a.yaml", "scenes: [" + ("[" + "1," * 9_000 + "1]," * 50) + "1]"),
        ("a.json", '{"scenes": 1, "' + '": 1, "'.join(map(str, range(90_000))) + '": 1}'),
    ],
    ids=["list", "json-list", "lists", "json-keys"],
)
def test_a_mebibyte_of_entries_is_refused_at_once(tmp_path, name, content):
    path, began = write(tmp_path, name, content), time.process_time()
    with pytest.raises(StoryError) as caught:
        Story.load(path)
    assert time.process_time() - began < 3 and len(str(caught.value)) < 2000


def test_a_key_is_told_as_far_as_one_can_read(tmp_path):
    path = write(tmp_path, "a.json", '{"scenes": ["a"], "\\u001b[31m' + "x" * 100_000 + '": 1}')
    with pytest.raises(StoryError, match=r"unknown key '\\x1b\[31mx+ \.\.\.: known keys are title") as caught:
        Story.load(path)
    assert len(str(caught.value)) < 1000 and "\x1b" not in str(caught.value)


def test_yaml_is_read_without_its_library_in_c_too(tmp_path, monkeypatch):
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    spec = importlib.util.spec_from_file_location("formats_in_python", story_formats.__file__)
    formats = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, formats)
    spec.loader.exec_module(formats)
    text = "title: Two\nscenes:\n  - {prompt: a bear, seconds: 3}\n"
    told, usual = formats.parse_yaml(text), story_formats.parse_yaml(text)
    assert told.data == usual.data and told.lines == usual.lines and told.lines[("scenes", 0, "seconds")] == 3
    with pytest.raises(formats.StoryError, match="line 1: YAML anchor or alias 'all'"):
        formats.parse_yaml("scenes: &all [a]\n")


def test_yaml_and_json_files_say_the_same(tmp_path):
    yaml_text = "title: Two\nscenes:\n  - prompt: a bear\n    seconds: 3\n  - {prompt: a panda, cut: true}\n"
    json_text = json.dumps({"title": "Two", "scenes": [{"prompt": "a bear", "seconds": 3}, {"prompt": "a panda", "cut": True}]})
    assert Story.load(write(tmp_path, "a.yaml", yaml_text)) == Story.of(str(write(tmp_path, "a.JSON", "\ufeff" + json_text)))


def test_a_long_file_with_a_key_twice_is_refused_at_once(tmp_path):
    """All pairs of 20,000 keys take three seconds to compare."""
    keys = [*(f"{number:05d}" for number in range(20_000)), "again", "anew", "anew", "again"]
    path, began = write(tmp_path, "a.json", "{" + ", ".join(f'"{key}": 1' for key in keys) + "}"), time.process_time()
    refused(path, "a.json: key 'again' is given twice: keep one of them")
    assert time.process_time() - began < 1


def test_subtitles(tmp_path):
    srt = "1\n00:00:02,000 --> 00:00:03,000\n<i>a bear</i>\nwalks\n\n2\n00:00:05,500 --> 00:00:07,000\n{\\an8}a panda\n"
    vtt = "WEBVTT - a film\n\nNOTE nothing\nof use\n\nSTYLE\n::cue {}\n\n00:02.000 --> 00:03.000 align:start\n<v Ann>a bear walks\n\n"
    vtt += "second\n00:00:05.500 --> 00:00:07.000\na panda &amp; co\n"
    told = Story.load(write(tmp_path, "a.srt", srt.replace("\n", "\r\n")))
    assert [(scene.prompt, scene.seconds) for scene in told.scenes] == [("a bear walks", 5.5), ("a panda", 1.5)], "7 s as in the subtitles"
    told = Story.load(write(tmp_path, "a.vtt", vtt))
    assert [(scene.prompt, scene.seconds) for scene in told.scenes] == [("a bear walks", 5.5), ("a panda & co", 1.5)]


FILES = {"image": "a bear.png", "end_image": "panda.png", "video": "clip.mp4"}
FILE_STORIES = {
    "a.yaml": "scenes:\n  - {{prompt: a bear, {0}: {1}}}\n",
    "a.json": '{{"scenes": [{{"prompt": "a bear", "{0}": "{1}"}}]}}',
    "a.txt": "[2s, {0} {1}, cut] a bear\n",
}


@pytest.mark.parametrize("script", FILE_STORIES)
@pytest.mark.parametrize("field", FILES)
def test_files_are_found_beside_the_script(tmp_path, field, script):
    write(tmp_path, FILES[field], b"file")
    scene = Story.load(write(tmp_path, script, FILE_STORIES[script].format(field, FILES[field]))).scenes[0]
    assert getattr(scene, field) == str((tmp_path / FILES[field]).resolve()) and scene.prompt == "a bear"
    (tmp_path / FILES[field]).unlink()
    refused(tmp_path / script, script, f"scenes[0].{field}", "no such file")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_load_and_plan(path):
    story = Story.load(path)
    assert len(EXAMPLES) >= 5 and 10 <= story.seconds <= 16
    assert plan(story, fps=story.fps or 8, temporal_patch_size=2, chunk_slices=5).num_frames == round(story.seconds * 8)


@pytest.mark.parametrize("patch", [1, 2, 3, 4])
def test_what_follows_a_scene_changes_nothing_of_its_plan(patch):
    """Whether the next scene carries on, cuts, or is not there."""
    for quarters in range(8, 40):
        first = Scene(prompt="a bear", seconds=quarters / 4)
        found = [
            plan(Story(scenes=(first, *more)), fps=8, temporal_patch_size=patch, chunk_slices=4).scenes[0].chunks
            for more in ((), (Scene(prompt="a panda"),), (Scene(prompt="a panda", cut=True),))
        ]
        assert found[0] == found[1] == found[2], quarters


def test_published_schema_is_current():
    assert json.loads((ROOT / "docs" / "story.schema.json").read_text()) == Story.json_schema()


def test_stories_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Story.of("a bear").seed = 3


# ---- what is refused, and in which words ---------------------------------------------------------------------------

FIELDS = [
    ({"seconds": 0}, "scenes[0].seconds = 0", "above 0 and at most 3600"),
    ({"seconds": -4}, "scenes[0].seconds = -4", "above 0"),
    ({"seconds": 1e9}, "scenes[0].seconds", "at most 3600"),
    ({"seconds": math.nan}, "scenes[0].seconds = nan", "above 0"),
    ({"seconds": math.inf}, "scenes[0].seconds = inf", "at most 3600"),
    ({"seconds": 16**5000}, "scenes[0].seconds = an enormous int", "at most 3600"),
    ({"seconds": "4s"}, "scenes[0].seconds = '4s'", "a number"),
    ({"seconds": True}, "scenes[0].seconds = True", "a number"),
    ({"prompt": 42}, "scenes[0].prompt = 42", "a text"),
    ({"prompt": b"a bear"}, "scenes[0].prompt", "a text"),
    ({"prompt": False}, "scenes[0].prompt = False", "a text", "quotes"),
    ({"prompt": ["a"]}, "scenes[0].prompt = ['a']", "a text"),
    ({"prompt": " \n\t"}, "scenes[0].prompt = ''", "1 to 1000"),
    ({"prompt": "x" * 1001}, "scenes[0].prompt", "1001 long", "1 to 1000"),
    ({"prompt": "\ud800"}, "scenes[0].prompt", "a text"),
    ({"cut": "yes"}, "scenes[0].cut = 'yes'", "true", "false"),
    ({"guidance_scale": 0.5}, "scenes[0].guidance_scale = 0.5", "from 1"),
    ({"guidance_scale": 101}, "scenes[0].guidance_scale = 101", "to 100"),
    ({"num_steps": 0}, "scenes[0].num_steps = 0", "1 to 256"),
    ({"num_steps": 257}, "scenes[0].num_steps = 257", "1 to 256"),
    ({"num_steps": 2.5}, "scenes[0].num_steps = 2.5", "whole number"),
    ({"image": ""}, "scenes[0].image = ''", "path"),
    ({"video": ""}, "scenes[0].video = ''", "path"),
    ({"end_image": 3}, "scenes[0].end_image = 3", "path"),
    ({"image": "a.png", "video": "a.mp4"}, "scenes[0]: image and video", "keep one of them"),
    ({"secnods": 3}, "scenes[0].secnods", "unknown key", "did you mean 'seconds'", "num_steps"),
]


@pytest.mark.parametrize("fields_and_words", FIELDS, ids=lambda case: next(iter(case[0])))
def test_bad_scene_fields(fields_and_words):
    fields, *words = fields_and_words
    refused([{"prompt": "a bear", **fields}], *words)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"seed": -1}, ["seed = -1", "0 to 2**63"]),
        ({"seed": 2**63}, ["seed", "0 to 2**63"]),
        ({"fps": 0}, ["fps = 0", "above 0"]),
        ({"size": 8.5}, ["size = 8.5", "whole"]),
        ({"titel": "x"}, ["unknown key 'titel'", "did you mean 'title'", "known keys"]),
        ({"scenes": []}, ["scenes = []", "1 to 10000"]),
        ({"scenes": "a bear"}, ["scenes = 'a bear'", "list"]),
        ({"scenes": [["a bear"]]}, ["scenes[0] = ['a bear']", "`prompt`"]),
        ({"scenes": [{"seconds": 3}]}, ["scenes[0].prompt is missing"]),
        ({"scenes": [{"prompt": "a"}] * 10_001}, ["scenes", "10001 of them", "10000"]),
        ({"scenes": [{"prompt": "a", "seconds": 3600}] * 25}, ["90000 s", "86400 s", "24 hours"]),
        ({1: 2}, ["1"]),
    ],
)
def test_bad_story_fields(fields, words):
    refused({"scenes": [{"prompt": "a bear"}], **fields}, *words)


@pytest.mark.parametrize(
    "value, words",
    [
        (None, ["NoneType", "give a path"]),
        (b"a bear", ["bytes", "give a path"]),
        ([], ["scenes = []", "1 to 10000"]),
        ("", ["scenes = []", "1 to 10000"]),
        (["a bear", 4], ["scenes[1] = 4", "(prompt, seconds)"]),
        ("no/such/story.yaml", ["no/such/story.yaml", "No such file"]),
        (Path("story.mp4"), ["story.mp4", "'.mp4'", ".yaml", ".srt"]),
        ("x" * 5000 + ".yaml", ["cannot read"]),
        ("a bear\n[4s a panda", ["line 2", "`[` without `]`"]),
        ("a bear\n[fast] a panda", ["line 2", "'fast'", "`cut`", "guidance 6"]),
        ("[4s, 5s] a panda", ["line 1", "seconds is given twice"]),
        ("a bear\n\n[-4s] a panda", ["line 3", "scenes[1].seconds = -4.0", "above 0"]),
        ("[4s]", ["line 1", "scenes[0].prompt = ''"]),
        ("a bear\na panda hops [4s, cut]", ["line 2", "'[4s, cut]' stands behind its prompt", "`[4s, cut] prompt`"]),
        ("a bear\n(3 s) A fox hops", ["line 2", "'(3 s)' before a prompt", "write `[3s] A fox hops`"]),
        ("- 2.5s: A fox", ["line 1", "'2.5s:'", "write `[2.5s] A fox`"]),
        ("Title: x\na bear", ["line 1", "Title", "`---`"]),
        ("title: x\na bear", ["line 1", "title", "`---`"]),
        ("titel: x\n---\na bear", ["line 1", "titel", "key: value"]),
        ("fps: fast\n---\na bear", ["line 1", "fps = 'fast'", "number"]),
        ("seed: 1.5\n---\na bear", ["line 1", "seed = '1.5'", "whole number"]),
        ("seed: -2\n---\na bear", ["line 1", "seed = -2", "0 to 2**63"]),
        ("a: b\n---\na bear\n---", ["line 4", "`---`"]),
    ],
)
def test_bad_values(value, words):
    refused(value, *words)


BEAR = "scenes:\n  - prompt: a bear\n"


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.yaml", BEAR + "    seconds: -4\n", ["a.yaml:3", "scenes[0].seconds = -4", "above 0"]),
        ("a.yaml", BEAR + "  - prompt: no\n", ["a.yaml:3", "scenes[1].prompt = False", "quotes"]),
        ("a.yaml", BEAR + "    secs: 4\n    fast: 1\n", ["a.yaml:3", "'secs'", "also line 4", "'fast'"]),
        ("a.yaml", BEAR + "    prompt: again\n", ["a.yaml:3", "'prompt'", "twice"]),
        ("a.yaml", "scenes: &all\n  - prompt: a bear\n", ["a.yaml:1", "anchor", "'all'"]),
        ("a.yaml", "a: [x]\nscenes: [*a]\n", ["a.yaml:2", "alias", "'a'"]),
        ("a.yaml", "scenes: " + "[" * 5000, ["a.yaml:1", "nest"]),
        ("a.yaml", "scenes:\n" + "  - " * 20 + "x\n", ["a.yaml:2", "nested 16 deep"]),
        ("a.yaml", "scenes: [\n", ["a.yaml:2", "not YAML"]),
        ("a.yaml", "scenes: !!python/object/apply:os.system [ls]\n", ["a.yaml:1", "not YAML", "python"]),
        ("a.yaml", "seed: " + "9" * 5000 + "\n", ["a.yaml:1", "5000 characters"]),
        ("a.yaml", "scenes:\n- seconds: " + ":".join(["1"] * 60_000), ["a.yaml:2", "119999 characters"]),  # sixties of sixties of sixties
        ("a.yaml", "seed: 2020-13-45\n" + BEAR, ["a.yaml", "not YAML"]),
        ("a.yaml", "seed: !!int\n" + BEAR, ["a.yaml", "not YAML", "not of its kind"]),
        ("a.yaml", "title: a\x07b\n", ["a.yaml:1", "not YAML"]),
        ("a.yaml", "? [a]\n: b\n", ["a.yaml:1", "not YAML"]),
        ("a.yaml", "", ["a.yaml", "empty"]),
        ("a.yaml", "a bear\n", ["a.yaml:1", "mapping with `scenes`"]),
        ("a.yaml", b"\x00\x00\x00 ftypisom\x00", ["a.yaml:1", "not a .yaml file", "binary"]),
        ("a.yml", b"title: x\nscenes: \xff\xfe", ["a.yml:2", "not a .yml file", "UTF-8"]),
        ("a.yaml", b"#" * (1 << 20) + b"#", ["a.yaml", "1 MiB"]),
        ("a.json", '{"scenes": [\n{"prompt" "a"}]}', ["a.json:2", "not JSON"]),
        ("a.json", '{"scenes": [\n{"prompt": "a",\n\t"seconds": NaN}]}', ["a.json:3", "scenes[0].seconds = nan", "above 0"]),
        ("a.json", '{"seed": 1, "seed": 2}', ["a.json", "'seed'", "twice"]),
        ("a.json", "[" * 100_000, ["a.json", "not JSON"]),
        ("a.json", "9" * 5000, ["a.json", "not JSON"]),
        ("a.json", BEAR, ["a.json:1", "not JSON"]),
        ("a.txt", "a bear\n[0s] a panda", ["a.txt:2", "scenes[1].seconds = 0.0"]),
        ("a.story", "# nothing\n", ["a.story", "scenes = []"]),
        ("a.mp4", "a bear", ["a.mp4", "'.mp4'", ".yaml", ".vtt"]),
        ("a.srt", "", ["a.srt:1", "no cues"]),
        ("a.srt", "1\na bear\n", ["a.srt:1", "belongs to no cue"]),
        ("a.srt", "1\n00:00:01 --> 00:00:02\na bear\n", ["a.srt:2", "cue times", "need"]),
        ("a.srt", "1\n00:00:02,000 --> 00:00:02,000\na bear\n", ["a.srt:2", "end must be after the start"]),
        ("a.srt", "00:00:00,000 --> 00:00:04,000\na\n\n00:00:03,000 --> 00:00:05,000\nb\n", ["a.srt:4", "3 s", "4 s", "overlap"]),
        ("a.srt", "00:00:00,000 --> 00:00:04,000\na\n00:00:05,000 --> 00:00:06,000\nb\n", ["a.srt:1", "blank line"]),
        ("a.srt", "00:00:00,000 --> 00:00:04,000\n<i></i>\n", ["a.srt:1", "scenes[0].prompt = ''"]),
        ("a.srt", "00:00:00,000 --> 02:00:00,000\na\n", ["a.srt:1", "scenes[0].seconds = 7200.0", "3600"]),
        ("a.vtt", "00:00:00.000 --> 00:00:04.000\na\n", ["a.vtt:1", "WEBVTT"]),
        ("a.vtt", "WEBVTT\n\nNOTE only this\n", ["a.vtt:1", "no cues"]),
        ("a.vtt", f"WEBVTT\n\n00:00.000 --> 00:04.000\n&#{'9' * 5000};\n", ["a.vtt", "not a .vtt file"]),
    ],
)
def test_bad_files(tmp_path, name, content, words):
    refused(write(tmp_path, name, content), *words)


@pytest.mark.parametrize("name", ["a.yaml", "a.txt"])
def test_a_pipe_is_no_story(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, name, "pipe or a device", "give a file")


@pytest.mark.parametrize(
    "image, words",
    [
        ("gone.png", ["no such file"]),
        ("/etc/passwd", ["inside the story's folder", "not absolute"]),
        ("../panda.png", ["inside the story's folder", "`..`"]),
        ("C:\\panda.png", ["not absolute"]),
        ("a/../../panda.png", ["`..`"]),
        ("link.png", ["leaves the story's folder"]),
        ("loop.png", ["no such file", "put the file there"]),
        ("x\\0y", ["scenes[1]."]),
        (".", ["no such file"]),
    ],
)
@pytest.mark.parametrize("field", ["image", "video", "end_image"])
def test_bad_files_of_scenes(tmp_path, field, image, words):
    outside = write(tmp_path, "panda.png", b"picture")
    (tmp_path / "story").mkdir()
    (tmp_path / "story" / "link.png").symlink_to(outside)
    (tmp_path / "story" / "loop.png").symlink_to("loop.png")
    quoted = f'"{image}"' if image == "x\\0y" else f"'{image}'"
    script = write(tmp_path / "story", "a.yaml", BEAR + f"  - prompt: a panda\n    {field}: {quoted}\n")
    refused(script, "a.yaml:4", f"scenes[1].{field}", *words)


# ---- scenes remembered by name -------------------------------------------------------------------------------------

REMEMBERED = {
    "a.yaml": "scenes:\n  - {prompt: a bear, remember: bear}\n  - prompt: a house\n  - {prompt: the bear, recall: bear}\n",
    "a.json": '{"scenes": [{"prompt": "a bear", "remember": "bear"}, {"prompt": "a house"}, {"prompt": "the bear", "recall": "bear"}]}',
    "a.txt": "[remember bear] a bear\na house\n[recall  bear] the bear\n",
}


@pytest.mark.parametrize("name", REMEMBERED)
def test_scenes_are_remembered_by_name_in_every_format(tmp_path, name):
    story = Story.load(write(tmp_path, name, REMEMBERED[name]))
    assert [(scene.remember, scene.recall) for scene in story.scenes] == [("bear", None), (None, None), (None, "bear")]
    planned = plan(story, fps=8, temporal_patch_size=2, chunk_slices=4)
    assert [(scene.remember, scene.recall) for scene in planned.scenes] == [("bear", None), (None, None), (None, "bear")]
    assert Story.from_dict(story.to_dict()) == story


def test_what_is_recalled_must_have_been_remembered_before(tmp_path):
    scenes = "scenes:\n  - {prompt: a, remember: fox}\n  - prompt: b\n    remember: bear\n    recall: bear\n"
    refused(write(tmp_path, "a.yaml", scenes), "a.yaml:5: scenes[1].recall: no earlier scene is remembered as 'bear' (known here: fox)")
    refused([{"prompt": "a", "recall": "x"}], "scenes[0].recall", "(known here: none)")
    refused([{"prompt": "a", "remember": ""}], "scenes[0].remember = ''", "1 to 64 characters")
    refused([{"prompt": "a", "remember": "x" * 65}], "scenes[0].remember", "(65 long)")
    refused([{"prompt": "a", "remember": 3}], "scenes[0].remember = 3")
    refused("[recall] a", "option 'recall'", "`recall bear`")


def test_so_many_names_and_no_more():
    scenes = [{"prompt": "a", "remember": f"n{index}"} for index in range(16)]
    assert len(Story.of([*scenes, scenes[0]]).scenes) == 17, "a name may be given again"
    refused([*scenes, {"prompt": "a", "remember": "one more"}], "scenes[16].remember: more than 16 names")
