"""Generates the README's story, every actor and every place with the shipped model: contact sheets, and the story as a GIF, in docs/sheets/.

    python tools/make_contact_sheets.py [--model storybook] [--output docs/sheets]

Nothing is picked by hand: the story runs once, with the seed in its script; each actor stands in the meadow for a second and each
place is seen with a penguin in it, seed 0, the frame in the middle.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import phenaki
from phenaki.data.captions import attribute_phrases
from phenaki.data.world import WIDE_WORLD

STORY = Path(__file__).parent.parent / "examples/bear_and_sea.yaml"
COLUMNS, SIDE, LABEL = 12, 96, 14  # pictures in a row; pixels a side; pixels of a name below


def labelled(name: str, prompt: str, model: phenaki.Phenaki) -> np.ndarray:
    """The frame in the middle of a second of a prompt, its name below: (h w 3)."""
    frames = model.generate_story([(prompt, 1.0)], seed=0, progress=False).frames
    cell = Image.new("RGB", (SIDE, SIDE + LABEL), "white")
    cell.paste(Image.fromarray(frames[len(frames) // 2]).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    ImageDraw.Draw(cell).text((2, SIDE), name, fill="black")
    return np.asarray(cell)


def sheet(prompts: dict[str, str], model: phenaki.Phenaki) -> Image.Image:
    """Prompts by name, a picture of each."""
    cells = [labelled(name, prompt, model) for name, prompt in prompts.items()]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[first : first + COLUMNS], axis=1) for first in range(0, len(cells), COLUMNS)]
    return Image.fromarray(np.concatenate(rows))


def phrase(attribute: str, name: str) -> str:
    return attribute_phrases(attribute, name, "penguin", WIDE_WORLD.wording)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--output", type=Path, default=Path("docs/sheets"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    model = phenaki.load(options.model)
    actors = {name: f"{phrase('actor', name)} stands still {phrase('place', 'meadow')} by day" for name in WIDE_WORLD.actors}
    places = {name: f"{phrase('actor', 'penguin')} stands still {phrase('place', name)} by day" for name in WIDE_WORLD.places}
    for name, prompts in (("actors", actors), ("places", places)):
        sheet(prompts, model).save(options.output / f"{name}.png", optimize=True)
    video = model.generate_story(STORY)
    video.save(options.output / f"{STORY.stem}.gif")
    Image.fromarray(np.ascontiguousarray(video.contact_sheet(columns=8))).save(options.output / f"{STORY.stem}.png", optimize=True)


if __name__ == "__main__":
    main()
