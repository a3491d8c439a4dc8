"""An evaluation of stories as one page of HTML: the figures, and the worst and best stories as clips that play in it."""

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from phenaki.evaluation.outputs import page
from phenaki.evaluation.story_figures import JudgedStory
from phenaki.evaluation.story_scripts import Script
from phenaki.evaluation.story_work import WorkFolder

NUM_SHOWN = 4  # worst stories, and as many of the best
SHOWN_PIXELS = 256  # a side of a clip on the page

Row = tuple[str, str, str, str]  # what it is, the model's, rendered truth's, how many observations


def story_report(figures: dict[str, Any], scripts: Sequence[Script], work: WorkFolder, fps: float) -> str:
    """The whole page. figures: of `run_story_evaluation`; work: where the stories' records and videos are."""
    stories = [JudgedStory.of(script, work.record(script.index).made, fps) for script in scripts]
    ranked = sorted(stories, key=lambda story: story.share_right)
    shown = min(NUM_SHOWN, len(ranked) // 2)
    worst, best = ranked[:shown], ranked[::-1][:shown]
    title = f"Stories of {figures['model']['name']}"
    rows = [*adherence_rows(figures), *persistence_rows(figures), *switch_rows(figures), *other_rows(figures)]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(measured_on(figures))}</p>',
        *(f'<p class="caution">{escape(caution)}</p>' for caution in figures["cautions"]),
        "<h2>Figures</h2>", table(("measure", "model", "rendered truth", "n"), rows),
        '<p class="note">In brackets 95% intervals, from a bootstrap over stories. Rendered truth is the same scripts as drawn by the world: '
        "what the referee misses there, no model can be blamed for.</p>",
        "<h2>The worst stories</h2>", *(case(story, work) for story in worst),
        "<h2>The best stories</h2>", *(case(story, work) for story in best),
        "<h2>Where this comes from</h2>", f"<pre>{escape(origin(figures))}</pre>",
    ]  # fmt: skip
    return page(title, parts)


def measured_on(figures: dict[str, Any]) -> str:
    scripts, size = figures["scripts"], figures["size"]
    scenes = f"{scripts['scenes']} scenes of {scripts['seconds']:g} s each"
    return f"{scripts['scripts']} scripts of {scenes}, {figures['frames']} frames at {size}x{size} pixels and {figures['fps']:g} frames a second"


def origin(figures: dict[str, Any]) -> str:
    return json.dumps({key: figures[key] for key in ("model", "sampling", "scripts", "world", "data", "referee", "machine")}, indent=2)


def adherence_rows(figures: dict[str, Any]) -> list[Row]:
    true = figures["truth"]["adherence"]
    called = lambda kind, name: f"adherence, {kind.replace('_', ' ')}: {'all attributes of a scene' if name == 'scene' else name}"
    return [share_row(called(kind, name), one, true[kind][name]) for kind, answers in figures["adherence"].items() for name, one in answers.items()]


def persistence_rows(figures: dict[str, Any]) -> list[Row]:
    made, true = figures["persistence"], figures["truth"]["persistence"]
    rows = [share_row(f"persistence, {name.replace('_', ' ')}", made[name], true[name]) for name in ("unsaid", "said_again")]
    return rows + [share_row(f"persistence: {name}", one, true["by_attribute"][name]) for name, one in made["by_attribute"].items()]


def switch_rows(figures: dict[str, Any]) -> list[Row]:
    made, true = figures["switch_time"], figures["truth"]["switch_time"]
    rows = times_rows("switch time", made, true)
    for name, one in made["by_attribute"].items():
        rows += times_rows(f"switch time: {name}", one, true["by_attribute"][name])
    return rows


def times_rows(name: str, made: dict[str, Any], true: dict[str, Any]) -> list[Row]:
    times = [(f"{name}, {part}, frames", numbers(made[part]), numbers(true[part]), str(made[part]["n"])) for part in ("median", "p90")]
    return [*times, share_row(f"{name}, never seen", made["never_seen"], true["never_seen"])]


def share_row(name: str, made: dict[str, Any], true: dict[str, Any]) -> Row:
    return name, shares(made), shares(true), str(made["n"])


def other_rows(figures: dict[str, Any]) -> list[Row]:
    truth, fvd, seam, speed = figures["truth"], figures["fvd"], figures["seam_score"], figures["seconds_per_second_of_video"]
    distance = (numbers(fvd), numbers(truth["fvd"]), str(fvd["n"])) if fvd else (figures["not_measured"].get("fvd", "needs 2 stories"), "", "")
    return [
        ("FVD of whole stories against rendered truth", *distance),
        ("seam score: change at chunk joins over change inside chunks", numbers(seam), numbers(truth["seam_score"]), str(seam["n"])),
        ("the same over change from slice to slice", *(numbers(one["beside_slices"]) for one in (seam, truth["seam_score"])), str(seam["n"])),
        ("seconds per second of video", numbers(speed), "", str(speed["n"])),
    ]


def shares(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    return f"{100 * estimate['value']:.1f}%" + ("" if estimate["low"] is None else f" ({100 * estimate['low']:.0f} to {100 * estimate['high']:.0f})")


def numbers(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    return f"{estimate['value']:g}" + ("" if estimate["low"] is None else f" ({estimate['low']:g} to {estimate['high']:g})")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is words, the others are figures."""
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    figures = lambda cells: "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
    lines = "".join(f"<tr><td>{escape(row[0])}</td>{figures(row[1:])}</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{lines}</table>"


def case(story: JudgedStory, work: WorkFolder) -> str:
    """A story's clip above its prompts, each with what was asked and seen; what was seen otherwise is marked."""
    data = base64.b64encode(work.video(story.script.index).read_bytes()).decode("ascii")
    clip = f'<video controls loop muted width="{SHOWN_PIXELS}" src="data:video/mp4;base64,{data}"></video>'
    words = f"story {story.script.index}, {story.script.kind.replace('_', ' ')}: {100 * story.share_right:.0f}% of what was asked for was seen"
    rows = []
    for scene, one, found in zip(story.script.truth.scenes, story.cases, story.found, strict=True):
        answers = ", ".join(answer(name, one.truth[name], found[name]) for name in one.truth if name in one.known)
        rows.append(f"<tr><td>{escape(scene.caption)}</td><td>{answers}</td></tr>")
    return f"<figure>{clip}<figcaption>{escape(words)}</figcaption><table><tr><th>prompt</th><th>seen</th></tr>{''.join(rows)}</table></figure>"


def answer(name: str, asked: str, seen: str) -> str:
    """HTML: what was seen, and where it is not what was asked, that."""
    told = f"{name} {seen or 'none'}"
    return escape(told) if seen == asked else f"<mark>{escape(told)}, asked: {escape(asked or 'none')}</mark>"
