"""Drift as one picture: a column for each mode, a row for each measure, a line for each context by minute, the truth in grey."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from phenaki.atomic import png_bytes

ROWS = {
    "adherence": "adherence, share",
    "fvd": "FVD against rendered truth",
    "sharpness": "sharpness, levels squared",
    "brightness": "brightness, levels",
    "colourfulness": "colourfulness, levels",
    "motion": "motion, levels a frame",
}
COLOURS = {"tokens": "#2364aa", "frames": "#d1495b"}  # of the contexts
TRUTH, INK, FAINT = "#8a94a3", "#1c2430", "#d9dee6"
WIDTH, HEIGHT = 420, 170  # pixels of a panel
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 26, 26  # of it, around the curves
HEAD, SIZE = 56, 13  # pixels: above the panels; of letters

Points = list[tuple[float, float]]  # (minute, value)


def drift_plot(figures: dict[str, Any]) -> bytes:
    """The bytes of a PNG. figures: of `run_drift_evaluation`."""
    contexts = figures["contexts"]
    modes = list(next(iter(contexts.values())))
    picture = Image.new("RGB", (WIDTH * len(modes), HEAD + HEIGHT * len(ROWS)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(SIZE)
    draw.text((LEFT, 8), f"{figures['model']['name']}: drift over {figures['minutes']:g} minutes", fill=INK, font=font)
    _legend(draw, font, list(contexts))
    for column, mode in enumerate(modes):
        for row, (name, title) in enumerate(ROWS.items()):
            lines = [(COLOURS[context], points_of(found[mode]["minutes"], name, "made")) for context, found in contexts.items()]
            truth = points_of(next(iter(contexts.values()))[mode]["minutes"], name, "truth")
            _panel(draw, font, (WIDTH * column, HEAD + HEIGHT * row), f"{mode}: {title}", [(TRUTH, truth), *lines])
    return png_bytes(picture)


def points_of(minutes: Sequence[dict[str, Any]], name: str, side: str) -> Points:
    """A measure by minute, without those in which it was not measured. FVD is of both sides at once, and has no truth."""
    found = [(one["minute"], (one["fvd"] if side == "made" else None) if name == "fvd" else one[name][side]) for one in minutes]
    return [(minute, value["value"]) for minute, value in found if value and value["value"] is not None]


def _legend(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, contexts: Sequence[str]) -> None:
    x = LEFT
    for name, colour in [*((context, COLOURS[context]) for context in contexts), ("rendered truth", TRUTH)]:
        draw.line([(x, 40), (x + 20, 40)], fill=colour, width=3)
        draw.text((x + 26, 32), name, fill=INK, font=font)
        x += 46 + round(draw.textlength(name, font=font))


def _panel(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, at: tuple[int, int], title: str, lines: Sequence[tuple[str, Points]]) -> None:
    """One measure of one mode; its axis runs from the lowest value to the highest, a tenth of room on either side."""
    left, top, right, bottom = at[0] + LEFT, at[1] + TOP, at[0] + WIDTH - RIGHT, at[1] + HEIGHT - BOTTOM
    draw.text((left, at[1] + 6), title, fill=INK, font=font)
    draw.rectangle([left, top, right, bottom], outline=FAINT)
    every = [point for _, points in lines for point in points]
    if not every:
        draw.text((left + 8, top + 8), "not measured", fill=TRUTH, font=font)
        return
    values, minutes = [value for _, value in every], [minute for minute, _ in every]
    low, high, first, last = min(values), max(values), min(minutes), max(minutes)
    room = (high - low) / 10 or abs(high) / 10 or 1
    across = lambda minute: left + (minute - first) / ((last - first) or 1) * (right - left)
    down = lambda value: bottom - (value - low + room) / (high - low + 2 * room) * (bottom - top)
    for value in dict.fromkeys((low, high)):
        draw.text((left - 6, down(value)), f"{value:.4g}", fill=INK, font=font, anchor="rm")
    for minute, anchor in {first: "la", last: "ra"}.items():
        draw.text((left if minute == first else right, bottom + 4), f"minute {minute}", fill=INK, font=font, anchor=anchor)
    for colour, points in lines:
        places = [(across(minute), down(value)) for minute, value in points]
        draw.line(places, fill=colour, width=2)
        for x, y in places:
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
