"""The figures of an evaluation of stories, from the records of its work folder: plain values for JSON, each with its n."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from phenaki.evaluation.adherence import Right, SceneCase, Switch, adherence, persistence, scene_cases, scenes_seen, switches
from phenaki.evaluation.bootstrap import Estimate, mean_estimate, quantile_estimate, ratio_estimate
from phenaki.evaluation.frechet import bootstrap_frechet
from phenaki.evaluation.story_scripts import KINDS, PHRASINGS, Script, is_of_kind
from phenaki.evaluation.story_work import Judged, Record

USUAL_VIDEOS = 2048  # of published FVDs
GOOD_REFEREE = 0.98  # share of rendered truth that a referee should have right
DRAWN_TRUTH = (
    "no --data: rendered truth is drawn by code, which the referee does not know: figures in brackets mean nothing, and FVD is not measured; "
    "the model itself is judged rightly where it makes pictures of the referee's own atlas"
)


@dataclass(frozen=True)
class JudgedStory:
    """A script beside what the referee saw of one video of it."""

    script: Script
    cases: list[SceneCase]
    judged: Judged
    found: list[dict[str, str]]  # of each scene: attribute -> label

    @classmethod
    def of(cls, script: Script, judged: Judged, fps: float) -> "JudgedStory":
        cases = scene_cases(script.truth, tuple(judged.seen))
        return cls(script, cases, judged, scenes_seen(cases, judged.seen, fps))

    @property
    def share_right(self) -> float:
        """Of all attributes asked for, over all scenes."""
        answers = [answer.right for answer in adherence(self.cases, self.found)]
        return sum(answers) / len(answers)


def story_figures(scripts: Sequence[Script], record: Callable[[int], Record], fps: float) -> dict[str, Any]:
    """Everything measured of a model, and under "truth" the same figures of rendered videos. record: index of a story -> its record."""
    records = [record(script.index) for script in scripts]
    made = [JudgedStory.of(script, one.made, fps) for script, one in zip(scripts, records, strict=True)]
    rendered = [JudgedStory.of(script, one.rendered, fps) for script, one in zip(scripts, records, strict=True)]
    reference = [one.reference for one in records]
    wall_seconds, video_seconds = [(one.wall_seconds, 1) for one in records], [(one.video_seconds, 1) for one in records]
    return {
        **measures(made, reference),
        "seconds_per_second_of_video": plain(ratio_estimate(range(len(records)), wall_seconds, video_seconds)),
        "truth": measures(rendered, reference),
    }


def measures(stories: Sequence[JudgedStory], reference: Sequence[list[float]]) -> dict[str, Any]:
    """The figures of one side, made or rendered. reference: features of other renderings of the truth, in the order of the stories."""
    return {
        "adherence": {kind: adherence_of_kind(stories, kind) for kind in KINDS},
        "persistence": persistence_figures(stories),
        "switch_time": switch_figures(stories),
        "fvd": frechet_figures([story.judged.features for story in stories], reference),
        "seam_score": seam_figures(stories),
    }


def adherence_of_kind(stories: Sequence[JudgedStory], kind: str) -> dict[str, Any]:
    """Share of scenes in which each attribute is as its prompt says, and of scenes in which all are ("scene").

    In scenes of held-out phrasings an attribute counts only where its own words are held out; the whole scene always counts.
    """
    answers: dict[str, list[tuple[int, bool]]] = {name: [] for name in [*names_of(stories), "scene"]}
    for story, scene, rights in scenes_of_kind(stories, kind):
        truth = story.script.truth.scenes[scene]
        counted = truth.told_in_held_out_words if kind == PHRASINGS else {answer.attribute for answer in rights}
        for answer in rights:
            if answer.attribute in counted:
                answers[answer.attribute].append((story.script.index, answer.right))
        answers["scene"].append((story.script.index, all(answer.right for answer in rights)))
    return {name: share(found) for name, found in answers.items()}


def scenes_of_kind(stories: Sequence[JudgedStory], kind: str) -> Iterator[tuple[JudgedStory, int, list[Right]]]:
    """Story, scene and its answers, for every scene that is what its script's kind says."""
    for story in stories:
        if story.script.kind != kind:
            continue
        answers = list(adherence(story.cases, story.found))
        for index, scene in enumerate(story.script.truth.scenes):
            if is_of_kind(scene, kind):
                yield story, index, [answer for answer in answers if answer.scene == index]


def persistence_figures(stories: Sequence[JudgedStory]) -> dict[str, Any]:
    """Of attributes that were right and do not change, the share that is right in the next scene: left unsaid, said again, and by attribute."""
    answers = [(story.script.index, answer) for story in stories for answer in persistence(story.cases, story.found)]
    where = lambda keep: share([(index, answer.right) for index, answer in answers if keep(answer)])
    return {
        "unsaid": where(lambda answer: not answer.told),
        "said_again": where(lambda answer: answer.told),
        "by_attribute": {name: where(lambda answer, name=name: answer.attribute == name) for name in names_of(stories)},
    }


def switch_figures(stories: Sequence[JudgedStory]) -> dict[str, Any]:
    """Frames from a scene's start until its change is seen; a change that is never seen counts with the scene's length."""
    found = [(story.script.index, switch) for story in stories for switch in switches(story.cases, story.judged.seen)]
    by_attribute = {name: [one for one in found if one[1].attribute == name] for name in names_of(stories)}
    return {"unit": "frames", **switch_times(found), "by_attribute": {name: switch_times(some) for name, some in by_attribute.items()}}


def switch_times(found: Sequence[tuple[int, Switch]]) -> dict[str, Any]:
    """found: (story, switch)."""
    stories, frames = [index for index, _ in found], [switch.frames for _, switch in found]
    quantiles = {name: plain(quantile_estimate(stories, frames, part)) for name, part in (("median", 0.5), ("p90", 0.9))}
    return {**quantiles, "never_seen": share([(index, switch.never) for index, switch in found])}


def seam_figures(stories: Sequence[JudgedStory]) -> dict[str, Any]:
    """Mean change at joins of chunks divided by mean change inside chunks, over all stories; n = joins.

    "beside_slices": divided by the mean change from slice to slice inside chunks. Where that is 1, joins are as smooth as these, and the
    score is above 1 only because the frames of a slice are more alike.
    """
    seams = [story.judged.seams for story in stories]
    indices, joins = [story.script.index for story in stories], [one.joins for one in seams]
    whole, beside = (plain(ratio_estimate(indices, joins, other)) for other in ([one.inside for one in seams], [one.between for one in seams]))
    return {**whole, "n": sum(count for _, count in joins), "beside_slices": beside}


def frechet_figures(features: Sequence[list[float]], reference: Sequence[list[float]]) -> dict[str, Any] | None:
    """Frechet distance of I3D logits of videos, 400 each; None where they were not taken, and for a single one.

    reference: those of the truth, in the order of the videos, with which they are drawn in pairs for the interval.
    """
    if len(features) < 2 or not all(features):
        return None
    found = bootstrap_frechet(torch.tensor(reference), torch.tensor(features))
    return {**{name: round(value, 2) for name, value in asdict(found).items()}, "n": len(features)}


def names_of(stories: Sequence[JudgedStory]) -> list[str]:
    """The attributes that were judged."""
    return list(stories[0].judged.seen)


def share(answers: Sequence[tuple[int, bool]]) -> dict[str, Any]:
    """answers: (story, yes or no)."""
    return plain(mean_estimate([index for index, _ in answers], [float(answer) for _, answer in answers]))


def plain(estimate: Estimate) -> dict[str, Any]:
    """Rounded, for JSON."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(estimate).items()}


def referee_cautions(where: str, shares: dict[str, dict[str, Any]], good: float) -> list[str]:
    """A caution where the referee itself is weak, or none. shares: by attribute, of rendered truth, what it has right; good: the least share."""
    weak = [f"{name} {one['value']:.1%}" for name, one in shares.items() if name != "scene" and one["n"] and one["value"] < good]
    if not weak:
        return []
    return [
        f"Of rendered truth ({where}) the referee itself has only this right: {', '.join(weak)}. The model cannot be seen to do better. "
        "Was --data given the atlas that the referee was trained on?"
    ]


def cautions(figures: dict[str, Any], scripts: int, usual: int, drawn: bool = False) -> list[str]:
    """What a reader of the figures must know. drawn: see `exam.is_drawn`."""
    truth = {} if drawn else figures["truth"]["adherence"]
    said = [DRAWN_TRUTH] if drawn else []
    said += [caution for kind, shares in truth.items() for caution in referee_cautions(kind, shares, GOOD_REFEREE)]
    nothing = [f"{name} ({kind})" for kind, one in figures["adherence"].items() for name, value in one.items() if not value["n"]]
    if nothing:
        said.append(f"Not to be judged in this world, it has no such scenes: {', '.join(nothing)}.")
    if scripts < usual:
        said.append(f"Of {scripts} scripts: figures are stated of {usual} or more.")
    if figures["fvd"]:
        said.append(f"FVD is of {scripts} videos: it is biased upward for few (published: {USUAL_VIDEOS} or more). Compare it with the truth's.")
    return said
