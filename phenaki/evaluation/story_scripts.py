"""The scripts that a model is examined on: drawn from the storybook world, the same ones for the same seed.

Three kinds in turn, which show where a model fails: combinations that training shows in its words, combinations held out from
training in its words, and combinations that training shows in words held out from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from phenaki.config import check_range
from phenaki.data.captions import is_held_out
from phenaki.data.order import EVALUATION_SEED
from phenaki.data.storybook import StorybookWorld
from phenaki.data.world import SceneTruth, StoryTruth
from phenaki.evaluation.adherence import MOTION_MARGIN_SECONDS, SETTLING_SECONDS
from phenaki.story import Story

SEEN, COMBINATIONS, PHRASINGS = KINDS = ("seen", "held_out_combinations", "held_out_phrasings")
LEAST_SECONDS = SETTLING_SECONDS + 2 * MOTION_MARGIN_SECONDS  # of a scene: something must be left to judge


@dataclass(frozen=True)
class ScriptSettings:
    """Which scripts."""

    scripts: int = 200
    scenes: int = 4
    seconds: float = 2.0  # of a scene
    seed: int = EVALUATION_SEED

    def __post_init__(self):
        check_range(self, "seed", at_least=0)
        if self.scripts < len(KINDS):
            raise ValueError(f"{self.scripts} scripts: needed at least {len(KINDS)}, one of each kind ({', '.join(KINDS)})")
        if self.scenes < 2:
            raise ValueError(f"{self.scenes} scenes: needed at least 2, persistence and switch time are seen where a scene follows another")
        if not LEAST_SECONDS <= self.seconds <= 60:
            raise ValueError(f"{self.seconds:g} seconds a scene: needed {LEAST_SECONDS:g} to 60; the first second is left for the change")


@dataclass(frozen=True)
class Script:
    """A script and the truth of what it asks for; the noise that it is generated from is keyed by `index`."""

    index: int
    kind: str
    truth: StoryTruth
    seconds: float  # of a scene, as asked

    @property
    def story(self) -> Story:
        """The script that the model is given."""
        return Story.of({"seed": self.index, "scenes": [{"prompt": scene.caption, "seconds": self.seconds} for scene in self.truth.scenes]})


def draw_script(world: StorybookWorld, settings: ScriptSettings, index: int, lengths: Sequence[int]) -> Script:
    """Script `index`. lengths: frames of each scene, as the model's plan has them."""
    kind = KINDS[index % len(KINDS)]
    truth = world.story(
        settings.seed, index, sum(lengths), held_out=kind == COMBINATIONS, held_out_words=kind == PHRASINGS, lengths=lengths
    )  # fmt: skip
    return Script(index, kind, truth, settings.seconds)


def is_of_kind(scene: SceneTruth, kind: str) -> bool:
    """Whether a scene of a script of this kind really is of the kind; a small cast may allow no such scene."""
    paired = is_held_out(scene.actor, scene.place) or is_held_out(scene.actor, scene.motion)
    return paired == (kind == COMBINATIONS) and (kind == PHRASINGS) == bool(scene.told_in_held_out_words)
