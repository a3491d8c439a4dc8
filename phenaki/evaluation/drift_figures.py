"""The figures of drift, from the judged windows of long stories: by minute, first part against last part, and of what returns.

A story's own change is told apart from the model's: everything is measured of rendered truth of the same windows too, and
`beyond_truth` says how much more the model's video has changed than that. First part against last part is what FramePack
measures; of looks, which hang on what a window shows, `trends` says more, for there each window stands beside its own truth.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F

from phenaki.evaluation.bootstrap import Estimate, mean_estimate, slope_estimate
from phenaki.evaluation.drift import MOST_WINDOWS, Side, Window
from phenaki.evaluation.drift_scripts import RECALLING, RETURN_AFTER, RETURNING
from phenaki.evaluation.looks import Looks
from phenaki.evaluation.story_figures import frechet_figures, plain

END_SHARE = 0.15  # of a story's windows: FramePack's measure of drift (Zhang & Agrawala 2025, arXiv 2504.12626)
LOOKS = tuple(one.name for one in fields(Looks))
SIDES = ("made", "truth")
LEAST_RATIO = 0.01  # of what was made to the truth, in a trend
LEAST_TRUTH = 0.1  # of the mean truth: a window with less says nothing of a ratio to it

Stories = Sequence[Sequence[Window]]  # the windows of each story of one mode, in order


def mode_figures(stories: Stories, mode: str, fps: float) -> dict[str, Any]:
    """Everything measured of the stories of one mode, as plain values for JSON."""
    figures = {
        "stories": len(stories),
        "windows": sum(map(len, stories)),
        "by_attribute": attribute_figures([window for story in stories for window in story]),
        "whole": span_figures(stories),
        "minutes": by_minute(stories, fps),
        "ends": end_figures(stories),
        "trends": {name: plain(trend(stories, name, fps)) for name in LOOKS},
        "trends_of_like_windows": {name: plain(trend(stories, name, fps, like_windows=True)) for name in LOOKS},
    }
    return {**figures, "returns": return_figures(stories, fps)} if mode in (RETURNING, RECALLING) else figures


def by_minute(stories: Stories, fps: float) -> list[dict[str, Any]]:
    """The figures of each minute, of the windows that begin in it."""
    minute = lambda window: int(window.start_frame / fps // 60)
    parts = [{number: list(some) for number, some in groupby(story, minute)} for story in stories]
    numbers = sorted({number for part in parts for number in part})
    return [{"minute": number + 1, **span_figures([part.get(number, []) for part in parts])} for number in numbers]


def end_figures(stories: Stories) -> dict[str, Any]:
    """Every measure of the first and the last END_SHARE of the stories, and what came between."""
    count = lambda story: max(1, round(END_SHARE * len(story)))
    first = span_figures([story[: count(story)] for story in stories])
    last = span_figures([story[-count(story) :] for story in stories])
    found: dict[str, Any] = {"windows": first["windows"]}
    for name in ("adherence", *LOOKS):
        found[name] = {side: change(first[name][side]["value"], last[name][side]["value"]) for side in SIDES}
        found[name]["beyond_truth"] = beyond_truth(found[name])
    if first["fvd"] and last["fvd"]:
        found["fvd"] = change(first["fvd"]["value"], last["fvd"]["value"]) | ratio_interval(first["fvd"], last["fvd"])
    return found


def ratio_interval(first: dict[str, Any], last: dict[str, Any]) -> dict[str, float | None]:
    """95% of last / first from the intervals of both, as if they were independent and their logarithms normal (the delta method)."""
    if not first["value"] or not last["value"]:
        return {"ratio_low": None, "ratio_high": None}
    wide = math.hypot(*((one["high"] - one["low"]) / 2 / one["value"] for one in (first, last)))
    ratio = last["value"] / first["value"]
    return {"ratio_low": round(ratio * math.exp(-wide), 4), "ratio_high": round(ratio * math.exp(wide), 4)}


def change(first: float | None, last: float | None) -> dict[str, float | None]:
    """drift = |first - last|, in the measure's own unit; ratio = last / first. None where there is nothing to measure or divide by."""
    if first is None or last is None:
        return {"first": first, "last": last, "drift": None, "ratio": None}
    return {"first": first, "last": last, "drift": round(abs(first - last), 4), "ratio": round(last / first, 4) if first else None}


def beyond_truth(sides: dict[str, dict[str, float | None]]) -> float | None:
    """|ratio of what was made / ratio of the truth - 1|: 0.05 = 5% more or less change than the script asks for."""
    made, truth = (sides[side]["ratio"] for side in SIDES)
    return round(abs(made / truth - 1), 4) if made is not None and truth else None


def trend(stories: Stories, name: str, fps: float, like_windows: bool = False) -> Estimate:
    """How much a measure changes from the first window to the last beside rendered truth: 0.05 = it ends 5% above where it began.

    log(made / truth, one percent at least) of every window on a straight line over time, by least squares, each story with a level of its
    own. Intervals: the windows that begin in one minute of a story are one observation.

    like_windows: each place, actor and so on (as the referee sees them in rendered truth) moves the level, too. Some are coded more
    faithfully than others, and which of them come late in a story is no matter of the model; so this says the same more exactly.
    """
    mean = looks_mean([window.truth for story in stories for window in story], name)["value"] or 0.0
    groups, lines, times, ratios, shown = [], [], [], [], []
    for number, story in enumerate(stories):
        for index, window in enumerate(story):
            made, truth = (getattr(getattr(window, side).looks, name) for side in SIDES)
            if truth > LEAST_TRUTH * mean:
                groups.append(MOST_WINDOWS * number + int(window.start_frame / fps // 60))
                lines.append(number)
                times.append(index / max(len(story) - 1, 1))
                ratios.append(math.log(max(made / truth, LEAST_RATIO)))  # of a black picture, or one that stands still
                shown.append(window.truth.seen)
    attributes = sorted(shown[0]) if like_windows and shown else []
    found = slope_estimate(groups, lines, times, ratios, *([seen[attribute] for seen in shown] for attribute in attributes))
    change_of = lambda slope: None if slope is None else math.expm1(slope)
    return replace(found, value=change_of(found.value), low=change_of(found.low), high=change_of(found.high))


def span_figures(stories: Stories) -> dict[str, Any]:
    """The figures of some windows of each story. Intervals: a window is one observation of looks, and a group of answers."""
    windows = [window for story in stories for window in story]
    return {
        "windows": len(windows),
        "adherence": of_sides(windows, adherence_of),
        "by_attribute": attribute_figures(windows),
        "fvd": frechet_figures([window.made.features for window in windows], [window.truth.features for window in windows]),
        **{name: of_sides(windows, lambda sides, name=name: looks_mean(sides, name)) for name in LOOKS},
    }


def of_sides(windows: Sequence[Window], figure: Callable[[list[Side]], dict[str, Any]]) -> dict[str, Any]:
    """The same figure of what was made and of the truth."""
    return {side: figure([getattr(window, side) for window in windows]) for side in SIDES}


def attribute_figures(windows: Sequence[Window]) -> dict[str, Any]:
    """Adherence of every attribute that was asked for in any of the windows."""
    asked = dict.fromkeys(name for window in windows for name in window.made.right)
    return {name: of_sides(windows, lambda sides, name=name: adherence_of(sides, name)) for name in asked}


def adherence_of(sides: Sequence[Side], attribute: str | None = None) -> dict[str, Any]:
    """Share of what was asked for that is seen; of one attribute or of all."""
    answers = [(index, right) for index, side in enumerate(sides) for name, right in side.right.items() if attribute in (None, name)]
    return plain(mean_estimate([index for index, _ in answers], [float(right) for _, right in answers]))


def looks_mean(sides: Sequence[Side], name: str) -> dict[str, Any]:
    return plain(mean_estimate(range(len(sides)), [getattr(side.looks, name) for side in sides]))


def return_figures(stories: Stories, fps: float) -> dict[str, Any]:
    """Is what returns as it was? The first window of each story against those in which its prompt comes again, and their mean.

    truth: the first window's rendered truth against that of the return, which begins elsewhere: as alike as can be asked for.
    """
    found = []
    for number, story in enumerate(stories):
        for window in story[RETURN_AFTER + 1 :: RETURN_AFTER + 1]:
            sides = {side: likeness(getattr(story[0], side), getattr(window, side)) for side in SIDES}
            found.append({"story": number, "minute": round(window.start_frame / fps / 60, 2), **sides})
    mean = lambda side, name: plain(mean_estimate([one["story"] for one in found], [one[side][name] for one in found]))
    return {**{side: {name: mean(side, name) for name in ("same", "likeness", "colour_distance")} for side in SIDES}, "each": found}


def likeness(first: Side, later: Side) -> dict[str, float]:
    """same: share of attributes that are seen as before, right or wrong; likeness: cosine of the referee's impressions, 1 = alike;
    colour_distance: mean absolute difference of mean red, green and blue, in levels."""
    same = [later.seen[name] == label for name, label in first.seen.items()]
    cosine = F.cosine_similarity(torch.tensor(first.impression), torch.tensor(later.impression), dim=0)
    distances = [abs(getattr(first.looks, colour) - getattr(later.looks, colour)) for colour in ("red", "green", "blue")]
    return {"same": round(sum(same) / len(same), 4), "likeness": round(float(cosine), 4), "colour_distance": round(sum(distances) / 3, 4)}
