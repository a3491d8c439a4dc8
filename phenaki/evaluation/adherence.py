"""Does a video keep to its script? What a script asks of each scene, held against what a referee saw in each frame.

Three questions about every scene: does it show what the script told (adherence), is what did not change still right (persistence),
and how long did a change take (switch time). All is computed from labels, whoever gives them: a network, or a test.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from phenaki.data.world import StoryTruth

SETTLING_SECONDS = 1.0  # at a scene's start that adherence leaves out: the time a change may take
MOTION_MARGIN_SECONDS = 0.5  # at a scene's end that motion leaves out: it is seen in several frames, the next scene's among them
STEADY_FRAMES = 3  # that a changed attribute must be seen in a row before it counts as seen

Seen = dict[str, list[str]]  # attribute -> what was seen in each frame of a story


@dataclass(frozen=True)
class SceneCase:
    """One scene as its script wants it: frames start .. end - 1 of the story, and the attributes of it that can be judged."""

    start: int
    end: int
    truth: dict[str, str]  # attribute -> label
    told: frozenset[str]  # named by the scene's own prompt
    known: frozenset[str]  # named by its prompt or an earlier one; others cannot be right or wrong
    changed: frozenset[str]  # known, and not as in the scene before; none in the first scene

    @property
    def num_frames(self) -> int:
        return self.end - self.start


def scene_cases(story: StoryTruth, attributes: Sequence[str]) -> list[SceneCase]:
    """What a story asks of each of its scenes, as far as the referee judges it."""
    cases: list[SceneCase] = []
    for scene in story.scenes:
        before = cases[-1] if cases else None
        truth = {name: getattr(scene, name, "") for name in attributes}
        told = frozenset(scene.told) & set(attributes)
        known = told | (before.known if before else frozenset())
        changed = frozenset(name for name in known if before and before.truth[name] != truth[name])
        start = before.end if before else 0
        cases.append(SceneCase(start, start + scene.num_frames, truth, told, known, changed))
    return cases


def judged_frames(attribute: str, case: SceneCase, fps: float) -> range:
    """The frames of the story in which a scene's attribute is judged."""
    margin = MOTION_MARGIN_SECONDS if attribute == "motion" else 0
    return range(case.start + round(SETTLING_SECONDS * fps), case.end - round(margin * fps))


def majority(labels: Sequence[str]) -> str:
    """The label seen in most frames; of several, the one seen first."""
    return max(dict.fromkeys(labels), key=labels.count)


def scenes_seen(cases: Sequence[SceneCase], seen: Seen, fps: float) -> list[dict[str, str]]:
    """What was seen of each scene: attribute -> the label of most of its judged frames."""
    frames = lambda name, case: judged_frames(name, case, fps)
    return [{name: majority([seen[name][frame] for frame in frames(name, case)]) for name in case.truth} for case in cases]


def switch_frames(labels: Sequence[str], wanted: str) -> int | None:
    """Frames until `wanted` is seen and stays for STEADY_FRAMES frames, 0 = from the first; None = never."""
    for frame in range(len(labels) - STEADY_FRAMES + 1):
        if all(label == wanted for label in labels[frame : frame + STEADY_FRAMES]):
            return frame
    return None


@dataclass(frozen=True)
class Right:
    """One attribute of one scene of a story: was it as asked?"""

    scene: int
    attribute: str
    right: bool
    told: bool  # by this scene's own prompt


@dataclass(frozen=True)
class Switch:
    """One change: frames until it was seen; never = the scene ended first, and `frames` is its length."""

    scene: int
    attribute: str
    frames: int
    never: bool


def adherence(cases: Sequence[SceneCase], found: Sequence[dict[str, str]]) -> Iterator[Right]:
    """Every attribute that the script has named so far, in every scene. found: of `scenes_seen`."""
    for index, (case, scene) in enumerate(zip(cases, found, strict=True)):
        for name in sorted(case.known):
            yield Right(index, name, scene[name] == case.truth[name], name in case.told)


def persistence(cases: Sequence[SceneCase], found: Sequence[dict[str, str]]) -> Iterator[Right]:
    """Every attribute that was right in the scene before and that this scene does not change: is it still right?

    told: whether the scene's prompt says it again. What was wrong before is left out.
    """
    for index in range(1, len(cases)):
        case, before = cases[index], cases[index - 1]
        for name in sorted(before.known - case.changed):
            if found[index - 1][name] == before.truth[name]:
                yield Right(index, name, found[index][name] == case.truth[name], name in case.told)


def switches(cases: Sequence[SceneCase], seen: Seen) -> Iterator[Switch]:
    """Every change of an attribute from one scene to the next: when was the new one seen?"""
    for index, case in enumerate(cases):
        for name in sorted(case.changed):
            frames = switch_frames(seen[name][case.start : case.end], case.truth[name])
            yield Switch(index, name, case.num_frames if frames is None else frames, frames is None)
