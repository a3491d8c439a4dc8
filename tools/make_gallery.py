"""Generates every example story with seeds 0, 1 and 2 and writes docs/gallery.md: each script beside its frames.

    python tools/make_gallery.py [--model storybook] [--examples examples] [--output docs/gallery.md] [STORY ...]

Nothing is picked by hand: all stories, three fixed seeds, first try. With STORY (file names without their ending) the page
is of those alone; give it another --output then.
"""

import argparse
import io
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

import phenaki
from phenaki.atomic import write_bytes, write_text
from phenaki.contact_sheet import contact_sheet
from phenaki.script_folder import scripts_in
from phenaki.video_files import VideoScene

SEEDS = (0, 1, 2)
FRAMES = 4  # of each scene
MAX_SIDE = 96  # pixels of a frame
MAX_BYTES = 100_000  # of a picture
COLOURS = (256, 128, 64, 32, 16)
HEAD = """# Gallery

Stories of `{folder}/`, told by the model `{model}` with seeds 0, 1 and 2: nothing is picked by hand.
A row of frames is a scene, {frames} frames spread over it. `python tools/make_gallery.py` makes this page again.
"""


def strip(video: phenaki.Video) -> np.ndarray:
    """FRAMES frames of each scene, a row a scene, without words: uint8 (h, w, 3)."""
    height, width = video.frames.shape[1:3]
    side = min(MAX_SIDE, width)
    small = [np.asarray(Image.fromarray(frame).resize((side, side * height // width), Image.Resampling.LANCZOS)) for frame in video.frames]
    unnamed = [VideoScene("", scene.start_frame, scene.num_frames) for scene in video.scenes]
    return contact_sheet(np.stack(small), unnamed, columns=FRAMES)


def small_png(pixels: np.ndarray) -> bytes:
    """uint8 (h, w, 3) as a PNG file below MAX_BYTES, with as many colours as that leaves room for."""
    for colours in COLOURS:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).quantize(colours, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
        if buffer.tell() < MAX_BYTES:
            return buffer.getvalue()
    raise ValueError(f"a picture of {pixels.shape[1]}x{pixels.shape[0]} pixels is above {MAX_BYTES} bytes: tell a story of fewer scenes")


def picture_path(folder: Path, script: Path, seed: int) -> Path:
    return folder / f"{script.stem}-seed{seed}.png"


def section(script: Path, folder: Path) -> str:
    """A story's part of the page: its scenes in words, then a picture for each seed."""
    story = phenaki.Story.load(script)
    lengths = [f"{scene.seconds:g} s{', cut' if scene.cut else ''}" for scene in story.scenes]
    scenes = "<br>".join(f"{index}. {cell(scene.prompt)} ({lengths[index - 1]})" for index, scene in enumerate(story.scenes, 1))
    pictures = " | ".join(f"![{script.stem}, seed {seed}]({folder.name}/{picture_path(folder, script, seed).name})" for seed in SEEDS)
    titles = " | ".join(f"seed {seed}" for seed in SEEDS)
    table = f"| script | {titles} |\n|---|{'---|' * len(SEEDS)}\n| {scenes} | {pictures} |"
    return f"\n## {cell(story.title or script.stem)}\n\n`{script.parent.name}/{script.name}`\n\n{table}\n"


def cell(text: str) -> str:
    """Words of a script as they may stand in a table of Markdown."""
    return escape(text, quote=False).replace("|", "&#124;")


def make_gallery(model: str, examples: Path, page: Path, only: list[str]) -> None:
    """Pictures go into a folder beside the page, under the page's name."""
    scripts = scripts_in(examples)
    unknown = sorted(set(only) - {script.stem for script in scripts})
    if unknown:
        raise ValueError(f"no story {', '.join(unknown)} in {examples}: it has {', '.join(script.stem for script in scripts)}")
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    shown = [script for script in scripts if not only or script.stem in only]
    for script in shown:
        for seed in SEEDS:
            video = phenaki.generate_story(script, model=model, seed=seed)
            write_bytes(picture_path(folder, script, seed), small_png(strip(video)))
            print(f"{script.name}, seed {seed}: {video}", flush=True)
    write_text(page, HEAD.format(folder=examples.name, model=model, frames=FRAMES) + "".join(section(script, folder) for script in shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="STORY")
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--examples", type=Path, default=Path("examples"))
    parser.add_argument("--output", type=Path, default=Path("docs/gallery.md"))
    options = parser.parse_args()
    try:
        make_gallery(options.model, options.examples, options.output, options.only)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
