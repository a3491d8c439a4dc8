"""Words of the storybook world: several phrasings of every attribute, and sentences made of them.

A tenth of the phrasings, of the (actor, place) pairs and of the (actor, motion) pairs is held out from training.
Which ones depends on their words alone (`is_held_out`), so the lists stay the same when the cast grows.
The first phrasing of an attribute is its plain name in a prompt and is never held out.
"""

import hashlib
import random
from collections.abc import Sequence

HELD_OUT_SHARE = 0.1

# Attributes whose plain sprite name would read oddly in a sentence, with their synonyms; other actors use their own name.
ACTOR_PHRASES: dict[str, tuple[str, ...]] = {
    "teddy bear": ("a teddy bear", "the teddy bear", "a brown teddy bear", "a stuffed bear", "a toy bear"),
    "panda": ("a panda", "the panda", "a panda bear", "a black and white panda", "a giant panda"),
    "astronaut": ("an astronaut", "the astronaut", "an astronaut in a white suit", "a spaceman", "a space traveller"),
    "t rex": ("a dinosaur", "the dinosaur", "a green dinosaur", "a t rex", "a tyrannosaurus"),
    "penguin": ("a penguin", "the penguin", "a little penguin", "a purple penguin", "a waddling penguin"),
    "octopus": ("an octopus", "the octopus", "an orange octopus", "a small octopus", "an octopus with pink arms"),
    "fox": ("a fox", "the fox", "a red fox", "an orange fox", "a little fox"),
    "unicorn": ("a unicorn", "the unicorn", "a pink unicorn", "a white unicorn with a horn", "a magical unicorn"),
}
PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "along the beach", "by the sea", "at the seaside", "on the sand by the ocean"),
    "desert": ("in the desert", "across the desert", "in a hot dry desert", "among red rocks in the desert", "in the sandy desert"),
    "snowy forest": ("in the snowy forest", "in a forest full of snow", "in the snow", "in the winter woods", "on the snow among fir trees"),
    "city": ("in the city", "in a big city", "in front of skyscrapers", "downtown", "among the tall buildings of a city"),
    "underwater": ("underwater", "under the sea", "at the bottom of the sea", "deep under water", "on the ocean floor"),
    "meadow": ("in the meadow", "on a green meadow", "in a grassy field", "on the grass", "among green hills"),
}
TIME_PHRASES: dict[str, tuple[str, ...]] = {
    "day": ("by day", "in the daytime", "on a sunny day", "in daylight"),
    "sunset": ("at sunset", "in the evening", "at dusk", "in the light of the setting sun"),
    "night": ("at night", "by night", "in the dark of the night", "late at night"),
    "dawn": ("at dawn", "early in the morning", "at sunrise", "in the first light"),
}
WEATHER_PHRASES: dict[str, tuple[str, ...]] = {
    "clear": ("",),
    "rain": ("in the rain", "while it rains", "on a rainy day", "under falling rain"),
    "snow": ("while it snows", "in falling snow", "under snowflakes", "in a snowfall"),
    "leaves": ("among falling leaves", "while leaves fall", "with leaves in the wind", "in a shower of leaves"),
}
MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "stands": ("stands still", "is standing", "waits", "stays where it is", "does not move"),
    "walks left": ("walks to the left", "is walking left", "moves to the left", "strolls leftwards", "goes left"),
    "walks right": ("walks to the right", "is walking right", "moves to the right", "strolls rightwards", "goes right"),
    "hops": ("hops", "jumps up and down", "is hopping", "is jumping", "bounces up and down"),
    "runs left": ("runs to the left", "is running left", "races to the left", "dashes leftwards"),
    "runs right": ("runs to the right", "is running right", "races to the right", "dashes rightwards"),
    "flies up": ("flies up", "rises into the air", "floats upwards", "takes off"),
    "falls": ("falls down", "drops from the sky", "is falling", "comes down from above"),
    "spins": ("spins", "turns around and around", "is spinning", "whirls"),
    "grows": ("grows", "gets bigger and bigger", "is growing", "becomes huge"),
    "shrinks": ("shrinks", "gets smaller and smaller", "is shrinking", "becomes tiny"),
    "circles": ("goes round in circles", "circles in the air", "flies in circles", "moves in a circle"),
}
CAMERA_PHRASES: dict[str, tuple[str, ...]] = {
    "still": ("",),
    "pan": ("the camera pans", "the camera moves sideways", "a panning shot", "camera pan"),
    "zoom": ("the camera zooms in", "the camera comes closer", "a slow zoom", "camera zoom"),
}
PHRASES = {
    "actor": ACTOR_PHRASES, "place": PLACE_PHRASES, "time": TIME_PHRASES, "weather": WEATHER_PHRASES,
    "motion": MOTION_PHRASES, "camera": CAMERA_PHRASES, "companion": ACTOR_PHRASES,
}  # fmt: skip
# Orders of words: {a}ctor, {m}otion, {p}lace, {t}ime, {w}eather, {o}ther actor or object, {c}amera.
TEMPLATES = (
    "{a}{o} {m} {p} {t} {w}, {c}",
    "{t}, {a}{o} {m} {p} {w}, {c}",
    "{p}, {a}{o} {m} {t} {w}, {c}",
    "{a}{o} {m} {t} {p} {w}, {c}",
    "{c}, {a}{o} {m} {p} {w} {t}",
    "a video of {a}{o}, it {m} {p} {t} {w}, {c}",
)


def is_held_out(*words: str) -> bool:
    """True for a tenth of all word tuples, by the words alone: SHA-256 of "a|b" as a fraction of 1 is below 0.1."""
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELD_OUT_SHARE


def phrases(table: dict[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    """All phrasings of `name`; a name that the table lacks is phrased by itself."""
    return table.get(name) or (f"a {name}", f"the {name}", f"one {name}")


def choose(rng: random.Random, options: Sequence[str], held_out: bool) -> str:
    """One phrasing: of those trained on, or (held_out) of those held out where there are any."""
    hidden = held_out_of(options)
    kept = [option for option in options if option not in hidden]
    return rng.choice(hidden if held_out and hidden else kept)


def held_out_of(options: Sequence[str]) -> list[str]:
    """The phrasings that are held out from training; never the first one."""
    return [option for option in options[1:] if is_held_out(option)]


def attribute_phrases(attribute: str, value: str) -> tuple[str, ...]:
    """How an attribute of a scene may be said; ("",) where it is told by silence: no companion, clear weather, a still camera."""
    return phrases(PHRASES[attribute], value) if value else ("",)


def caption(
    rng: random.Random,
    *,
    actor: str,
    motion: str,
    place: str = "",
    time: str = "",
    weather: str = "clear",
    camera: str = "still",
    companion: str = "",
    held_out: bool = False,
) -> str:
    """A sentence that says the given attributes; an empty `place` or `time` is left out of it."""
    parts = {
        "a": choose(rng, phrases(ACTOR_PHRASES, actor), held_out),
        "m": choose(rng, phrases(MOTION_PHRASES, motion), held_out),
        "p": choose(rng, phrases(PLACE_PHRASES, place), held_out) if place else "",
        "t": choose(rng, phrases(TIME_PHRASES, time), held_out) if time else "",
        "w": choose(rng, phrases(WEATHER_PHRASES, weather), held_out),
        "c": choose(rng, phrases(CAMERA_PHRASES, camera), held_out),
        "o": f" with {choose(rng, phrases(ACTOR_PHRASES, companion), held_out)}" if companion else "",
    }
    sentence = choose(rng, TEMPLATES, held_out).format(**parts)
    clauses = [" ".join(clause.split()) for clause in sentence.split(",")]
    return ", ".join(clause for clause in clauses if clause)
