"""Who plays in the storybook world: how each actor moves and looks, how large each object stands, which places are indoors."""

from dataclasses import dataclass

RUNS = ("runs left", "runs right")


@dataclass(frozen=True)
class Role:
    """How an actor is drawn. Its picture looks to the left (or to the front) unless `faces_right`."""

    gait: str = "walks"  # how captions name its moves: walks, swims, flies, drives
    scale: float = 1.0  # of the world's actor size
    lift: float = 0.0  # height above the ground at which it hovers, as a share of the picture
    faces_right: bool = False
    unfit: tuple[str, ...] = ()  # motions that its picture cannot show: a head does not run


# Those that are not named here have the plain role. The scales follow nature as far as a picture book does.
ROLES: dict[str, Role] = {
    **{name: Role(unfit=RUNS) for name in ("panda", "fox", "unicorn", "astronaut", "octopus", "robot", "snowman")},
    **{name: Role(scale=0.7) for name in ("mouse", "snail")},
    **{name: Role(scale=0.8) for name in ("hedgehog", "crab", "duck")},
    **{name: Role(scale=0.9) for name in ("rabbit", "turtle", "parrot", "owl", "snake")},
    **{name: Role(scale=1.15) for name in ("elephant", "mammoth", "giraffe", "sauropod")},
    **{name: Role("swims", scale=0.8, lift=0.06) for name in ("fish",)},
    **{name: Role("swims", lift=0.03) for name in ("dolphin", "shark")},
    "whale": Role("swims", scale=1.15, lift=0.03),
    "butterfly": Role("flies", scale=0.75, lift=0.12),
    "honeybee": Role("flies", scale=0.75, lift=0.12),
    "ghost": Role("flies", lift=0.06),
    "helicopter": Role("flies", lift=0.12),
    "flying saucer": Role("flies", lift=0.12),
    "rocket": Role("flies", lift=0.08, faces_right=True),
    **{name: Role("drives") for name in ("automobile", "bus", "tractor", "locomotive")},
}
PLAIN = Role()

# Height of an object, as a share of the world's actor size. Small ones lie in front of the actors, large ones stand behind them.
OBJECT_SCALES: dict[str, float] = {
    "red apple": 0.45, "soccer ball": 0.45, "mushroom": 0.5, "wrapped gift": 0.55, "birthday cake": 0.6, "fire": 0.6, "guitar": 0.65,
    "sunflower": 0.65, "fountain": 0.9, "cactus": 0.95, "tent": 1.0, "christmas tree": 1.1, "palm tree": 1.15, "house": 1.2,
}  # fmt: skip
LARGEST_IN_FRONT = 0.65

INDOORS = ("cave", "spaceship", "stone hall")  # the time of day tints them half as much
SHELTERED = (*INDOORS, "underwater")  # no weather comes in


def role_of(actor: str) -> Role:
    """The role of an actor; the plain one where it has none of its own."""
    return ROLES.get(actor, PLAIN)


def object_scale(name: str) -> float:
    """The size of an object; small where it is not known."""
    return OBJECT_SCALES.get(name, LARGEST_IN_FRONT)


def stands_behind(name: str) -> bool:
    """Whether an object is too large to lie in front of the actors."""
    return object_scale(name) > LARGEST_IN_FRONT
