"""Generates every example story with the shipped model and writes a contact sheet of each to docs/sheets/.

    python tools/make_contact_sheets.py [--model storybook] [--output docs/sheets]

Nothing is picked by hand: each story runs once, with the seed in its script.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import phenaki

EXAMPLES = Path(__file__).parent.parent / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--output", type=Path, default=Path("docs/sheets"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for script in sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".yaml", ".json", ".txt", ".srt", ".vtt")):
        video = phenaki.generate_story(script, model=options.model)
        sheet = Image.fromarray(np.ascontiguousarray(video.contact_sheet(columns=8, scale=2)))
        sheet.save(options.output / f"{script.stem}.png", optimize=True)
        print(f"{script.name}: {video}")


if __name__ == "__main__":
    main()
