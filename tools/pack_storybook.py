"""Packs the art of the storybook world into one atlas file that the training programs read.

    python tools/pack_storybook.py ART_FOLDER -o storybook.safetensors [--size 48] [--world small|all]

ART_FOLDER holds `sprites/` (Microsoft's animated Fluent Emoji, MIT licence: strips of 24 frames, index.json),
`backgrounds/` and `particles/` (Superpowers asset packs, CC0: index.json). The art itself is not part of this
repository; both licences allow the weights that are trained on it, with credit (see the model card).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from phenaki.data.art import LOOP_FRAMES
from phenaki.data.storybook import SMALL_WORLD

PARTICLES = {"rain": "rain-1.png", "snow": "snow-particle-5.png", "leaves": "leaf-1.png"}
# Names that prompts use, where they differ from the names of the asset packs.
PLACE_FILES = {"desert": "18.png"}


def premultiplied(picture: Image.Image, size: int) -> np.ndarray:
    """RGBA picture -> (4, s, s) uint8, colours premultiplied by alpha, scaled with a box filter."""
    rgba = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    channels = [Image.fromarray(rgba[..., c]).resize((size, size), Image.Resampling.BOX) for c in range(4)]
    return (np.stack([np.asarray(channel) for channel in channels]) * 255).round().clip(0, 255).astype(np.uint8)


def read_strip(path: Path, size: int) -> np.ndarray:
    """A strip of 24 square frames side by side -> (24, 4, s, s) uint8."""
    strip = Image.open(path).convert("RGBA")
    side = strip.height
    return np.stack([premultiplied(strip.crop((side * f, 0, side * (f + 1), side)), size) for f in range(LOOP_FRAMES)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("art", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=48, help="side of a stored sprite in pixels")
    parser.add_argument("--world", choices=("small", "all"), default="small", help="which actors and places")
    options = parser.parse_args()

    sprites = {entry["name"]: entry["file"] for entry in json.loads((options.art / "sprites/index.json").read_text())}
    places = {entry["name"]: entry["file"] for entry in json.loads((options.art / "backgrounds/index.json").read_text())} | PLACE_FILES
    if options.world == "small":
        sprites = {name: sprites[name] for name in SMALL_WORLD.actors}
        places = {name: places[name] for name in SMALL_WORLD.places}

    pictures = [Image.open(options.art / "backgrounds" / file).convert("RGB") for file in places.values()]
    tensors = {
        "actors": np.stack([read_strip(options.art / "sprites" / file, options.size) for file in sprites.values()]),
        "places": np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures]),
        "particles": np.stack([premultiplied(Image.open(options.art / "particles" / file), options.size) for file in PARTICLES.values()]),
    }
    names = {"actors": list(sprites), "places": list(places), "particles": list(PARTICLES)}
    save_file({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()}, options.output, {"names": json.dumps(names)})
    print(f"{options.output}: {len(sprites)} actors, {len(places)} places, {options.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
