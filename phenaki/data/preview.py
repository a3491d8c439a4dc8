"""`phenaki data preview`: a picture of stories of the storybook world with their captions."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from phenaki.atomic import check_file, write_picture
from phenaki.data.storybook import open_world
from phenaki.data.world import named_world
from phenaki.pixels import to_bytes

NUM_STORIES = 8  # rows of the sheet
ROW_FRAMES = 8  # pictures of a story
CAPTION_WIDTH = 640  # pixels beside them
ROW_HEIGHT = 128  # pixels on the sheet


def save_preview(output: Path, *, data: Path | None, world: str, seed: int) -> int:
    """Draws stories seed/0 .. seed/(NUM_STORIES - 1) as rows of frames with their captions; returns how many.

    data: an atlas; None draws the world by code. ValueError where an argument cannot be used.
    """
    config = named_world(world)
    if seed < 0:
        raise ValueError(f"seed {seed}: needed at least 0")
    check_file(output, ".png")
    book = open_world(config, data)
    stories = [book.story(seed, index, 4 * ROW_FRAMES, align=4) for index in range(NUM_STORIES)]
    video = book.render(stories)[:, :, 2::4]
    pixels = to_bytes(video).permute(0, 3, 2, 4, 1).flatten(2, 3).numpy()  # (b h f*w c)
    height, width = ROW_HEIGHT, ROW_HEIGHT * ROW_FRAMES
    sheet = Image.new("RGB", (width + CAPTION_WIDTH, height * NUM_STORIES), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (picture, story) in enumerate(zip(pixels, stories, strict=True)):
        sheet.paste(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.NEAREST), (0, row * height))
        lines = [line for scene in story.scenes for line in textwrap.wrap(f"{scene.num_frames / book.config.fps:g} s: {scene.caption}", 100)]
        pen.multiline_text((width + 8, row * height + 4), "\n".join(lines), fill="black")
    write_picture(output, sheet)
    return NUM_STORIES
