"""Sentences about the storybook world, made of the phrasings of its attributes.

A tenth of the phrasings, of the (actor, place) pairs and of the (actor, motion) pairs is held out from training.
Which ones depends on their words alone (`is_held_out`), so the lists stay the same when the cast grows.
The first phrasing of an attribute is its plain name in a prompt and is never held out.
"""

import hashlib
import random
from collections.abc import Sequence

from phenaki.data.cast import role_of
from phenaki.data.phrasings import WORDINGS, Phrasings

HELD_OUT_SHARE = 0.1


def is_held_out(*words: str) -> bool:
    """True for a tenth of all word tuples, by the words alone: SHA-256 of "a|b" as a fraction of 1 is below 0.1."""
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELD_OUT_SHARE


def phrases(table: Phrasings, name: str) -> tuple[str, ...]:
    """All phrasings of `name`; a name that the table lacks is phrased by itself."""
    return table.get(name) or (f"a {name}", f"the {name}", f"one {name}")


def motion_phrases(wording: str, actor: str, motion: str) -> tuple[str, ...]:
    """The phrasings of an actor's motion: a fish swims where a fox walks."""
    words = WORDINGS[wording]
    return words.gaits.get((role_of(actor).gait, motion)) or phrases(words.motions, motion)


def choose(rng: random.Random, options: Sequence[str], held_out: bool) -> str:
    """Draws a phrasing: one that training shows or, with held_out, one held out from it where there are any."""
    hidden = held_out_of(options)
    kept = [option for option in options if option not in hidden]
    return rng.choice(hidden if held_out and hidden else kept)


def held_out_of(options: Sequence[str]) -> list[str]:
    """The phrasings that are held out from training; never the first one."""
    return [option for option in options[1:] if is_held_out(option)]


def attribute_phrases(attribute: str, value: str, actor: str = "", wording: str = "first") -> tuple[str, ...]:
    """The phrasings of an attribute of an actor's scene; ("",) where captions leave it out: no companion, clear weather, a still camera."""
    if not value:
        return ("",)
    if attribute == "motion":
        return motion_phrases(wording, actor, value)
    words = WORDINGS[wording]
    tables = {
        "actor": words.actors, "place": words.places, "time": words.times, "weather": words.weathers, "camera": words.cameras,
        "companion": words.actors, "object": words.objects,
    }  # fmt: skip
    return phrases(tables[attribute], value)


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
    object: str = "",
    held_out: bool = False,
    wording: str = "first",
) -> str:
    """A sentence that says the given attributes; an empty `place` or `time` is left out of it."""
    words = WORDINGS[wording]

    def say(options: Sequence[str]) -> str:
        return choose(rng, options, held_out)

    parts = {
        "a": say(phrases(words.actors, actor)),
        "m": say(motion_phrases(wording, actor, motion)),
        "p": say(phrases(words.places, place)) if place else "",
        "t": say(phrases(words.times, time)) if time else "",
        "w": say(phrases(words.weathers, weather)),
        "c": say(phrases(words.cameras, camera)),
        "o": f" {say(words.companions)}".format(say(phrases(words.actors, companion))) if companion else "",
        "j": say(words.object_ways).format(say(phrases(words.objects, object))) if object else "",
    }
    template = say(words.templates)
    if "{j}" not in template:
        parts["o"] += f" {parts['j']}"
    sentence = template.format(**parts)
    clauses = [" ".join(clause.split()) for clause in sentence.split(",")]
    return ", ".join(clause for clause in clauses if clause)
