"""Adherence, persistence, switch time and seams, on labels and pictures made by hand, with answers known beforehand."""

from dataclasses import replace

import pytest
import torch

from phenaki.data.world import SceneTruth, StoryTruth
from phenaki.evaluation.adherence import (
    Switch,
    adherence,
    judged_frames,
    majority,
    persistence,
    scene_cases,
    scenes_seen,
    switch_frames,
    switches,
)
from phenaki.evaluation.seams import seam_parts

FPS = 4
NAMES = ("actor", "place", "motion")


def scene(actor: str, place: str, motion: str, told: str) -> SceneTruth:
    return SceneTruth(actor, place, "day", "clear", motion, "still", "", 8, told=tuple(told.split()))


STORY = StoryTruth(
    (
        scene("fox", "beach", "hops", "actor motion"),
        scene("fox", "beach", "stands", "actor motion"),  # the place is not known yet
        scene("panda", "city", "stands", "actor place motion"),
        scene("panda", "city", "stands", "motion"),  # actor and place are left unsaid
    ),
    0.5, 0.7, 0,
)  # fmt: skip
CASES = scene_cases(STORY, NAMES)


def as_told() -> dict[str, list[str]]:
    return {name: [getattr(one, name) for one in STORY.scenes for _ in range(8)] for name in NAMES}


def test_cases_know_what_was_told_and_what_changed():
    assert [(case.start, case.end) for case in CASES] == [(0, 8), (8, 16), (16, 24), (24, 32)]
    assert [set(case.known) for case in CASES] == [{"actor", "motion"}, {"actor", "motion"}, set(NAMES), set(NAMES)]
    assert [set(case.changed) for case in CASES] == [set(), {"motion"}, {"actor", "place"}, set()]
    assert [set(case.told) for case in CASES] == [set(one.told) & set(NAMES) for one in STORY.scenes]


def test_the_first_second_is_not_judged_and_motion_ends_before_the_scene():
    assert judged_frames("place", CASES[1], FPS) == range(12, 16)
    assert judged_frames("motion", CASES[1], FPS) == range(12, 14)


def test_the_majority_and_of_equals_the_first():
    assert majority(["a", "b", "b"]) == "b" and majority(["b", "a", "a", "b"]) == "b" and majority([""]) == ""


def test_a_video_that_does_what_it_is_told_has_no_fault():
    seen = as_told()
    found = scenes_seen(CASES, seen, FPS)
    answers = list(adherence(CASES, found))
    assert len(answers) == 2 + 2 + 3 + 3 and all(answer.right for answer in answers)
    assert all(answer.right for answer in persistence(CASES, found))
    assert list(switches(CASES, seen)) == [Switch(1, "motion", 0, False), Switch(2, "actor", 0, False), Switch(2, "place", 0, False)]


def test_what_is_wrong_in_the_first_second_alone_costs_no_adherence():
    seen = as_told()
    seen["actor"][16:20] = ["fox"] * 4
    assert all(answer.right for answer in adherence(CASES, scenes_seen(CASES, seen, FPS)))
    seen["actor"][16:23] = ["fox"] * 7
    wrong = [(answer.scene, answer.attribute) for answer in adherence(CASES, scenes_seen(CASES, seen, FPS)) if not answer.right]
    assert wrong == [(2, "actor")]


def test_what_was_never_told_is_not_counted():
    seen = as_told()
    seen["place"][:16] = ["underwater"] * 16
    assert all(answer.right for answer in adherence(CASES, scenes_seen(CASES, seen, FPS)))


def test_persistence_counts_what_was_right_before_and_says_whether_it_was_said_again():
    seen = as_told()
    seen["place"][24:] = ["beach"] * 8  # unsaid, and lost
    answers = {(answer.scene, answer.attribute): (answer.right, answer.told) for answer in persistence(CASES, scenes_seen(CASES, seen, FPS))}
    assert answers == {
        (1, "actor"): (True, True),
        (2, "motion"): (True, True),
        (3, "actor"): (True, False),
        (3, "motion"): (True, True),
        (3, "place"): (False, False),
    }
    seen["place"][16:] = ["beach"] * 16  # wrong from the start: nothing that could be lost
    assert (3, "place") not in {(answer.scene, answer.attribute) for answer in persistence(CASES, scenes_seen(CASES, seen, FPS))}


@pytest.mark.parametrize(
    ("labels", "frames"),
    [("bbbbbb", 0), ("aabbbb", 2), ("abbabbb", 4), ("aaabbb", 3), ("aaaabb", None), ("aaaa", None), ("bb", None), ("bbba", 0)],
)
def test_a_switch_counts_from_when_it_stays_for_three_frames(labels, frames):
    assert switch_frames(labels, "b") == frames


def test_a_switch_that_never_comes_counts_with_the_scene_s_length():
    seen = as_told()
    seen["place"] = ["beach"] * 32
    seen["actor"][16:21] = ["fox"] * 5
    assert list(switches(CASES, seen))[1:] == [Switch(2, "actor", 5, False), Switch(2, "place", 8, True)]


def test_silence_tells_of_what_has_no_words():
    """Rain that was told of and is not told of any more has ended: clear weather is told by silence."""
    clear = SceneTruth("fox", "beach", "day", "clear", "hops", "still", "", 8)
    rain = replace(clear, weather="rain", told=("weather",))
    cases = scene_cases(StoryTruth((clear, rain, clear), 0.5, 0.7, 0), ("weather",))
    assert [set(case.known) for case in cases] == [set(), {"weather"}, {"weather"}]
    assert [set(case.changed) for case in cases] == [set(), {"weather"}, {"weather"}]


def stepped(steps: list[float]) -> torch.Tensor:
    """A video (3 f 2 2) whose frames differ by the given numbers of 8-bit levels."""
    levels = torch.tensor([0.0, *steps]).cumsum(0)
    return (levels / 127.5 - 1).view(1, -1, 1, 1).expand(3, -1, 2, 2)


def test_seams_are_changes_where_chunks_join():
    """Chunks of 3 frames; a scene changes at frame 6, and shows it until frame 9."""
    video = stepped([1, 1, 5, 1, 1, 90, 40, 40, 7, 2, 2])
    parts = seam_parts(video, (0, 3, 6, 9), {0, 6}, {0, 1, 3, 5, 6, 8, 9, 11})
    assert parts.joins == (pytest.approx(5 + 7, abs=1e-3), 2)
    assert parts.inside == (pytest.approx(1 + 1 + 1 + 1 + 2 + 2, abs=1e-3), 6)
    assert parts.between == (pytest.approx(1 + 1 + 2, abs=1e-3), 3)


def test_a_scene_of_one_chunk_has_no_joins():
    parts = seam_parts(stepped([1, 1, 9, 1, 1]), (0, 3), {0, 3}, {0, 3})
    assert parts.joins == parts.between == (0, 0) and parts.inside == (pytest.approx(2, abs=1e-3), 2)
