"""Packs the art of the storybook world into one atlas file that the training programs read.

    python tools/pack_storybook.py ART_FOLDER -o storybook.safetensors [--size 80] [--world small|medium|full|wide|all]

Sprites of 80 pixels do for the small and wide worlds at 128x128, 64 for the full one; at 64x64 half as many do. Places keep the pixels they have.
ART_FOLDER holds `sprites/` (Microsoft's animated Fluent Emoji, MIT licence: strips of 24 frames, or of one, index.json),
`backgrounds/` and `particles/` (Superpowers asset packs, CC0: index.json). The art itself is not part of this
repository; both licences allow the weights that are trained on it, with credit (see the model card).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from phenaki.data.art import LOOP_FRAMES
from phenaki.data.tensor_file import save_tensors
from phenaki.data.world import WORLDS

PARTICLES = {"rain": "rain-2.png", "snow": "snow-particle-3.png", "leaves": "leaf-2.png"}
# Names that prompts use, where they differ from the names of the asset packs.
PLACE_FILES = {"desert": "18.png"}


def premultiplied(picture: Image.Image, size: int) -> np.ndarray:
    """RGBA picture -> (4, s, s) uint8, colours premultiplied by alpha, scaled with a box filter."""
    rgba = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    channels = [Image.fromarray(rgba[..., c]).resize((size, size), Image.Resampling.BOX) for c in range(4)]
    return (np.stack([np.asarray(channel) for channel in channels]) * 255).round().clip(0, 255).astype(np.uint8)


def on_squares(pictures: list[Image.Image]) -> list[Image.Image]:
    """RGBA pictures in the middle of transparent squares of one size, so that their sizes stay what they are to each other."""
    side = max(max(picture.size) for picture in pictures)
    squares = [Image.new("RGBA", (side, side)) for _ in pictures]
    for square, picture in zip(squares, pictures, strict=True):
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return squares


def read_strip(path: Path, size: int) -> np.ndarray:
    """A strip of 24 square frames side by side, or of one that stays -> (24, 4, s, s) uint8."""
    strip = Image.open(path).convert("RGBA")
    side, count = strip.height, strip.width // strip.height
    if count not in (1, LOOP_FRAMES):
        raise SystemExit(f"{path}: {count} frames; needed {LOOP_FRAMES} or 1")
    frames = [premultiplied(strip.crop((side * f, 0, side * (f + 1), side)), size) for f in range(count)]
    return np.stack(frames * (LOOP_FRAMES // count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("art", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=80, help="side of a stored sprite in pixels")
    parser.add_argument("--world", choices=(*WORLDS, "all"), default="small", help="whose actors, objects and places")
    options = parser.parse_args()

    sprites = {entry["name"]: entry["file"] for entry in json.loads((options.art / "sprites/index.json").read_text())}
    places = {entry["name"]: entry["file"] for entry in json.loads((options.art / "backgrounds/index.json").read_text())} | PLACE_FILES
    if options.world != "all":
        world = WORLDS[options.world]
        sprites = {name: sprites[name] for name in (*world.actors, *world.objects)}
        places = {name: places[name] for name in world.places}

    pictures = [Image.open(options.art / "backgrounds" / file).convert("RGB") for file in places.values()]
    particles = on_squares([Image.open(options.art / "particles" / file).convert("RGBA") for file in PARTICLES.values()])
    tensors = {
        "actors": np.stack([read_strip(options.art / "sprites" / file, options.size) for file in sprites.values()]),
        "places": np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures]),
        "particles": np.stack([premultiplied(particle, options.size) for particle in particles]),
    }
    names = {"actors": list(sprites), "places": list(places), "particles": list(PARTICLES)}
    save_tensors(options.output, {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()}, {"names": json.dumps(names)})
    print(f"{options.output}: {len(sprites)} sprites, {len(places)} places, {options.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
