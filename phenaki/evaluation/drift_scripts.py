"""The scripts on which drift is measured, from a minute to an hour long, drawn from the storybook world.

    held        one prompt from beginning to end, of a motion that can go on so long
    switching   another prompt every four seconds
    returning   as switching, and the first prompt comes again after every ten others
    recalling   as returning, and the first scene is remembered by name and recalled where it returns

Every prompt names all that is asked of its scene, so a scene can be judged by itself, however far from the story's start.
"""

from dataclasses import dataclass
from typing import Any

from phenaki.config import check_range
from phenaki.data.order import EVALUATION_SEED
from phenaki.data.storybook import StorybookWorld
from phenaki.data.world import SceneTruth
from phenaki.story import MAX_SCENE_SECONDS, Story

HELD, SWITCHING, RETURNING, RECALLING = MODES = ("held", "switching", "returning", "recalling")
WINDOW_SECONDS = 4.0  # of a prompt, and of what is judged at once
RETURN_AFTER = 10  # other prompts before the first one comes again
LEAST_MINUTES, MOST_MINUTES = 0.5, MAX_SCENE_SECONDS / 60
ENDLESS = ("stands", "hops", "spins", "circles")  # motions that can be held for minutes: the others leave the picture or end
TOLD = ("actor", "place", "time", "motion")  # what the first prompt must name
NAME = "first"  # of the scene that is recalled
ATTEMPTS, MOST_STORIES = 1000, 10_000


@dataclass(frozen=True)
class DriftSettings:
    """Which scripts, and how long."""

    minutes: float = 10.0
    modes: tuple[str, ...] = (HELD, SWITCHING, RETURNING)
    num_stories: int = 1  # of each mode
    seed: int = EVALUATION_SEED

    def __post_init__(self):
        check_range(self, "seed", at_least=0)
        if not LEAST_MINUTES <= self.minutes <= MOST_MINUTES:
            raise ValueError(f"{self.minutes:g} minutes: needed {LEAST_MINUTES:g} to {MOST_MINUTES:g}")
        if not 1 <= self.num_stories <= MOST_STORIES:
            raise ValueError(f"{self.num_stories} stories: needed 1 to {MOST_STORIES}")
        if not self.modes or set(self.modes) - set(MODES):
            raise ValueError(f"modes {', '.join(self.modes) or 'none'}: allowed are {', '.join(MODES)}")

    @property
    def num_windows(self) -> int:
        """Windows of a story whose scenes are windows."""
        return round(self.minutes * 60 / WINDOW_SECONDS)


@dataclass(frozen=True)
class LongScript:
    """A long script and the truth of what it asks for. scenes: one for each window; a held prompt has one for all."""

    mode: str
    index: int
    scenes: tuple[SceneTruth, ...]
    minutes: float

    def scene(self, window: int) -> SceneTruth:
        """What a window should show."""
        return self.scenes[0 if self.mode == HELD else window]

    @property
    def story(self) -> Story:
        """The script that the model is given."""
        seconds = self.minutes * 60 if self.mode == HELD else WINDOW_SECONDS
        scenes = [{"prompt": scene.caption, "seconds": seconds, **self._named(number)} for number, scene in enumerate(self.scenes)]
        return Story.of({"seed": self.index, "scenes": scenes})

    def _named(self, number: int) -> dict[str, Any]:
        if self.mode != RECALLING or number % (RETURN_AFTER + 1):
            return {}
        return {"recall": NAME} if number else {"remember": NAME}


def draw_long_script(world: StorybookWorld, settings: DriftSettings, mode: str, index: int) -> LongScript:
    """Script `index` of a mode; in all modes with several prompts it has the same first scene. ValueError where the world has no fit scene.

    The world's captions must leave nothing out (omit_prob 0).
    """
    count = 1 if mode == HELD else settings.num_windows
    for attempt in range(ATTEMPTS):
        truth = world.story(settings.seed, index + MOST_STORIES * attempt, count, lengths=[1] * count)
        first = truth.scenes[0]
        if set(TOLD) <= set(first.told) and (mode != HELD or first.motion in ENDLESS):
            scenes = truth.scenes
            if mode in (RETURNING, RECALLING):
                scenes = tuple(scenes[0] if number % (RETURN_AFTER + 1) == 0 else scene for number, scene in enumerate(scenes))
            return LongScript(mode, index, scenes, settings.minutes)
    raise ValueError(f"this world has no scene whose motion can be held: needed one of {', '.join(ENDLESS)}")
