"""The worlds of the storybook: what exists in each, and the truth of a story that takes place in one.

A story is a list of scenes; a scene = place x time of day x weather x actor (maybe with a companion and an object) x motion x camera.
"""

from dataclasses import dataclass, field, fields, replace

from phenaki.config import check_range
from phenaki.data.phrasings import CAMERA_PHRASES, MOTION_PHRASES, TIME_PHRASES, WEATHER_PHRASES, WORDINGS

TIMES = tuple(TIME_PHRASES)
WEATHERS = tuple(WEATHER_PHRASES)
MOTIONS = tuple(MOTION_PHRASES)
CAMERAS = tuple(CAMERA_PHRASES)
GROUND = 44 / 64  # height of an actor's middle, as a share of the picture's height from its top


@dataclass(frozen=True)
class WorldConfig:
    """What there is in a world, and how large and fast it is drawn.

    A name that stands twice in a tuple is drawn twice as often; it is one thing all the same.
    """

    actors: tuple[str, ...]
    places: tuple[str, ...]
    times: tuple[str, ...] = ("day", "sunset", "night")
    weathers: tuple[str, ...] = ("clear",)
    motions: tuple[str, ...] = ("stands", "walks left", "walks right", "hops")
    cameras: tuple[str, ...] = ("still",)
    companion_prob: float = 0.0  # chance that a second actor stands in a scene
    size: int = 64  # pixels a side
    fps: float = 8.0
    actor_size: float = 0.5  # side of a sprite as a share of the picture
    start_step: int = 1  # pixels at size 64 between the places where an actor may start; more = fewer ways to look, learnt sooner
    change_prob: float = 0.5  # chance that an attribute changes from one scene to the next
    omit_prob: float = 0.3  # chance that a caption leaves out an attribute that did not change
    objects: tuple[str, ...] = ()  # things that may stand in a scene
    object_prob: float = 0.0  # chance that one does
    wording: str = "first"  # the captions' words (`phrasings.WORDINGS`)
    small_share: float = 0.0  # share of the stories that show only what the small world has
    settle_seconds: float = 0.0  # in which an actor that ended a scene in the air, turned or off the picture is back; 0 = at once

    def __post_init__(self):
        check_range(self, "size", "start_step", at_least=1)
        check_range(self, "fps", above=0, below=1000)
        check_range(self, "actor_size", above=0, at_most=1)
        check_range(self, "companion_prob", "change_prob", "omit_prob", "object_prob", "small_share", at_least=0, at_most=1)
        check_range(self, "settle_seconds", at_least=0)
        for name in ("actors", "places", "times", "weathers", "motions", "cameras"):
            if not getattr(self, name):
                raise ValueError(f"{name} (): needed one at least")
        for name, known in (("times", TIMES), ("weathers", WEATHERS), ("motions", MOTIONS), ("cameras", CAMERAS)):
            if unknown := [one for one in getattr(self, name) if one not in known]:
                raise ValueError(f"{name} {unknown[0]!r}: known are {', '.join(known)}")
        if self.wording not in WORDINGS:
            raise ValueError(f"wording {self.wording!r}: known are {', '.join(WORDINGS)}")
        if round(self.actor_size * self.size) < 1:
            raise ValueError(f"actor_size {self.actor_size}: less than a pixel of {self.size}; make it greater")


# Fields that came after the first weights were trained; their defaults are what those weights know.
LATER_FIELDS = ("objects", "object_prob", "wording", "small_share", "settle_seconds")


def described(config: WorldConfig) -> str:
    """The config as text for fingerprints. Later fields are named only where they are set, so tokens stored before them stay known."""
    shown = [one for one in fields(config) if one.name not in LATER_FIELDS or getattr(config, one.name) != one.default]
    return f"WorldConfig({', '.join(f'{one.name}={getattr(config, one.name)!r}' for one in shown)})"


SMALL_WORLD = WorldConfig(
    actors=("teddy bear", "panda", "astronaut", "t rex", "penguin", "octopus", "fox", "unicorn"),
    places=("beach", "desert", "snowy forest", "city", "underwater", "meadow"),
    actor_size=0.625,
    start_step=4,
)
# For two CPU cores at 64x64: twice the small world's cast, weather, and two more motions.
MEDIUM_WORLD = replace(
    SMALL_WORLD,
    actors=(*SMALL_WORLD.actors, "elephant", "tiger", "giraffe", "pig", "rabbit", "parrot", "turtle", "automobile"),
    places=(*SMALL_WORLD.places, "jungle", "volcano", "castle wall", "wheat field"),
    weathers=("clear", "rain", "snow"),
    motions=("stands", "walks left", "walks right", "hops", "spins", "flies up"),
    wording="rich",
    settle_seconds=0.5,
)
FULL_WORLD = WorldConfig(
    actors=(
        *MEDIUM_WORLD.actors,
        "sauropod", "cat", "black cat", "dog", "horse", "leopard", "monkey", "gorilla", "kangaroo", "zebra", "cow", "ewe", "camel", "deer",
        "hedgehog", "mammoth", "mouse", "snake", "dragon", "snail",
        "whale", "dolphin", "shark", "fish", "crab",
        "duck", "swan", "flamingo", "owl", "peacock", "butterfly", "honeybee",
        "ghost", "snowman", "robot", "rocket", "helicopter", "flying saucer", "bus", "tractor", "locomotive",
    ),
    places=(
        *MEDIUM_WORLD.places,
        "red-trunk forest", "red canyon", "village", "sky with clouds", "pyramids", "savanna", "cave", "temple columns", "spaceship",
        "Mars base", "stone hall", "arena", "pagoda",
    ),
    times=TIMES,
    weathers=WEATHERS,
    motions=(
        "stands", "walks left", "walks right", "hops", "runs left", "runs right", "flies up", "falls", "spins", "grows", "shrinks", "circles",
    ),
    cameras=("still", "pan", "zoom"),
    companion_prob=0.2,
    size=128,
    objects=(
        "red apple", "soccer ball", "mushroom", "wrapped gift", "birthday cake", "fire", "guitar", "sunflower", "fountain", "cactus", "tent",
        "christmas tree", "palm tree", "house",
    ),
    object_prob=0.3,
    wording="rich",
    settle_seconds=0.5,
)  # fmt: skip
# All that the full world has, for machines on which an hour must do: actors as large as the small world's and on its grid, and
# what is calm (clear weather, a camera that stands still, the small world's motions, no company) more often, for it is learnt sooner.
WIDE_WORLD = replace(
    FULL_WORLD,
    size=SMALL_WORLD.size,
    actor_size=SMALL_WORLD.actor_size,
    start_step=SMALL_WORLD.start_step,
    weathers=("clear", "clear", "clear", "rain", "snow", "leaves"),
    motions=(*SMALL_WORLD.motions, *FULL_WORLD.motions),
    cameras=("still", "still", "still", "still", "pan", "zoom"),
    companion_prob=0.1,
    object_prob=0.2,
)
WORLDS = {"small": SMALL_WORLD, "medium": MEDIUM_WORLD, "full": FULL_WORLD, "wide": WIDE_WORLD}


def named_world(name: str) -> WorldConfig:
    """The world of a name; ValueError where there is none."""
    if name not in WORLDS:
        raise ValueError(f"world {name!r}: known worlds are {', '.join(WORLDS)}")
    return WORLDS[name]


def small_part(config: WorldConfig) -> WorldConfig:
    """The world `config` reduced to what the small world has; it is drawn and worded as before. ValueError where it lacks some of that."""
    names = ("actors", "places", "times", "weathers", "motions", "cameras")
    for name in names:
        if missing := set(getattr(SMALL_WORLD, name)) - set(getattr(config, name)):
            raise ValueError(f"small_share {config.small_share}: this world has no {min(missing)!r}, which is one of the small world's {name}")
    return replace(config, **{name: getattr(SMALL_WORLD, name) for name in names}, companion_prob=0.0, objects=(), object_prob=0.0, small_share=0.0)


@dataclass(frozen=True)
class SceneTruth:
    """Everything that is seen in one scene, and the caption that the generator is given for it."""

    actor: str
    place: str
    time: str
    weather: str
    motion: str
    camera: str
    companion: str  # "" = none
    num_frames: int
    caption: str = ""
    object: str = ""  # "" = none
    told: tuple[str, ...] = field(default=(), repr=False)  # the attributes that the caption names
    told_in_held_out_words: tuple[str, ...] = field(default=(), repr=False)  # those of them whose words training does not show


@dataclass(frozen=True)
class StoryTruth:
    """Scenes, and where the first one starts: the actor's middle in [0, 1), its baseline, its animation phase."""

    scenes: tuple[SceneTruth, ...]
    start_x: float
    baseline: float
    phase: int

    @property
    def num_frames(self) -> int:
        return sum(scene.num_frames for scene in self.scenes)
