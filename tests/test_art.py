"""Truths of the art of the storybook world: drawn by code, packed into an atlas, read from it."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

from phenaki.data.art import Art, draw_art, load_atlas
from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.world import SMALL_WORLD


def test_art_without_a_name_is_refused():
    art = draw_art(("fox", "panda"), ("beach",))
    with pytest.raises(ValueError, match=r"the art has no actor \['unicorn'\]: it has fox, panda"):
        StorybookWorld(replace(SMALL_WORLD, actors=("fox", "unicorn"), places=("beach",)), art)
    with pytest.raises(ValueError, match=r"the art has no place \['city'\]: it has beach"):
        StorybookWorld(replace(SMALL_WORLD, actors=("fox",), places=("city",)), art)


def test_drawn_art_tells_every_name_apart():
    art = draw_art(SMALL_WORLD.actors, SMALL_WORLD.places)
    for pictures in (art.actors[:, 0].float(), art.places.float()):
        gaps = [(one - two).abs().mean() for i, one in enumerate(pictures) for two in pictures[:i]]
        assert min(gaps) > 2


@pytest.fixture(scope="module")
def art_folder(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder like the real one: two strips of 24 frames of 12 pixels and one of a single frame, three places, three particles."""
    folder, rng, made = tmp_path_factory.mktemp("art"), np.random.default_rng(0), {}

    def draw(name: str, height: int, width: int, channels: int) -> None:
        made[name] = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(made[name]).save(folder / name)

    for name in ("fox", "owl"):
        draw(f"sprites/{name}.png", 12, 12 * 24, 4)
    draw("sprites/rock.png", 12, 12, 4)
    for name in ("1", "2", "18"):
        draw(f"backgrounds/{name}.png", 89, 137, 3)
    for name, height, width in (("rain-2", 12, 6), ("snow-particle-3", 4, 4), ("leaf-2", 12, 12)):
        draw(f"particles/{name}.png", height, width, 4)
    (folder / "sprites/index.json").write_text(json.dumps([{"name": name, "file": f"{name}.png"} for name in ("fox", "owl", "rock")]))
    places = [{"name": "beach", "file": "1.png"}, {"name": "desert", "file": "2.png"}]
    (folder / "backgrounds/index.json").write_text(json.dumps(places))
    return folder, made


def test_particles_keep_their_shapes_and_sizes(art_folder, atlas):
    """The largest fills its square; the others stand in the middle of squares as large as that."""
    made, art = art_folder[1], load_atlas(atlas)
    rain, snow = art.particles[0].numpy(), art.particles[1].numpy()
    assert np.abs(rain[:, :, 3:9] - premultiplied(made["particles/rain-2.png"])).max() <= 1
    assert np.abs(snow[:, 4:8, 4:8] - premultiplied(made["particles/snow-particle-3.png"])).max() <= 1
    assert rain.sum() == rain[:, :, 3:9].sum() and snow.sum() == snow[:, 4:8, 4:8].sum()


@pytest.fixture(scope="module")
def atlas(art_folder) -> Path:
    """The folder packed by the tool."""
    path = Path(__file__).resolve().parents[1] / "tools/pack_storybook.py"
    spec = importlib.util.spec_from_file_location("pack_storybook", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    output = art_folder[0] / "atlas.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pack", str(art_folder[0]), "-o", str(output), "--size", "12", "--world", "all"])
        tool.main()
    return output


def premultiplied(picture: np.ndarray) -> np.ndarray:
    rgba = picture.astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return (rgba * 255).round().transpose(2, 0, 1)


def test_a_packed_atlas_has_the_pictures_of_the_folder(art_folder, atlas):
    made, art = art_folder[1], load_atlas(atlas)
    assert (art.actor_names, art.place_names, art.particle_names) == (("fox", "owl", "rock"), ("beach", "desert"), ("rain", "snow", "leaves"))
    assert art.actors.shape == (3, 24, 4, 12, 12) and art.places.shape == (2, 3, 89, 137) and art.particles.shape == (3, 4, 12, 12)
    assert art.actors.dtype == art.places.dtype == art.particles.dtype == torch.uint8
    for index, name in enumerate(("fox", "owl")):
        for frame in (0, 7, 23):
            strip = made[f"sprites/{name}.png"][:, 12 * frame : 12 * frame + 12]
            assert np.abs(art.actors[index, frame].numpy() - premultiplied(strip)).max() <= 1
    assert (art.actors[2] == art.actors[2, :1]).all(), "a picture of one frame stays"
    assert np.abs(art.actors[2, 5].numpy() - premultiplied(made["sprites/rock.png"])).max() <= 1
    assert np.array_equal(art.places[0].numpy(), made["backgrounds/1.png"].transpose(2, 0, 1))
    assert np.array_equal(art.places[1].numpy(), made["backgrounds/18.png"].transpose(2, 0, 1)), "the desert has a picture of its own"
    assert np.abs(art.particles[2].numpy() - premultiplied(made["particles/leaf-2.png"])).max() <= 1


def test_a_world_opens_from_an_atlas(atlas):
    world = open_world(replace(SMALL_WORLD, actors=("fox", "owl"), places=("beach", "desert"), size=32), atlas)
    assert world.render([world.story(0, 0, 5)]).shape == (1, 3, 5, 32, 32)
    assert world.fingerprint != open_world(replace(world.config)).fingerprint, "other pictures, other fingerprint"


def test_a_fingerprint_is_of_names_and_of_what_falls_too(atlas):
    art = load_atlas(atlas)
    changes = [{"particles": art.particles.flip(1)}, {"place_names": art.place_names[::-1]}, {"actor_names": art.actor_names[::-1]}]
    assert len({art.hash(), *(replace(art, **change).hash() for change in changes)}) == 4
    assert art.hash() == load_atlas(atlas).hash()


def nameless(atlas) -> bytes:
    """The pictures of an atlas, with fewer names than there are."""
    return save(load_file(atlas), {"names": json.dumps({"actors": ["fox"], "places": [], "particles": []})})


def test_a_broken_atlas_is_refused(tmp_path, atlas):
    with pytest.raises(ValueError, match=r"none: no such atlas file. Pack one"):
        load_atlas(tmp_path / "none")
    whole = atlas.read_bytes()
    for number, content in enumerate((b"", b"text", whole[:100], whole[:-1], save({"actors": torch.zeros(1)}), nameless(atlas))):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a storybook atlas") as error:
            load_atlas(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "harm",
    [
        lambda parts, names: parts.update(actors=parts["actors"][:, :10]),
        lambda parts, names: parts.update(actors=parts["actors"][:, :, :3]),
        lambda parts, names: parts.update(actors=parts["actors"][..., :-1]),
        lambda parts, names: parts.update(actors=parts["actors"][..., :0, :0]),
        lambda parts, names: parts.update(places=parts["places"][..., :8, :8]),
        lambda parts, names: parts.update(places=parts["places"][:, :1]),
        lambda parts, names: parts.update(particles=parts["particles"][:, :3]),
        lambda parts, names: parts.update(particles=torch.zeros(len(parts["particles"]), 4, 1025, 1025, dtype=torch.uint8)),
        lambda parts, names: names.update(places=list(range(len(names["places"])))),
        lambda parts, names: names.update(places=names["places"][:1] * len(names["places"])),
        lambda parts, names: names.update(places=[["beach"]] * len(names["places"])),
    ],
)
def test_an_atlas_of_other_shapes_or_names_is_refused(tmp_path, atlas, harm):
    with safe_open(atlas, "pt") as file:
        names = json.loads(file.metadata()["names"])
    parts = load_file(atlas)
    harm(parts, names)
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({name: part.contiguous() for name, part in parts.items()}, {"names": json.dumps(names)}))
    with pytest.raises(ValueError, match=r"a.safetensors: not a storybook atlas \(.*(needed uint8 \(n, .* at most 1024|names given twice)"):
        load_atlas(path)


def test_a_world_with_weather_needs_its_particles():
    art = replace(draw_art(("fox",), ("beach",)), particle_names=("rain",), particles=draw_art(("fox",), ("beach",)).particles[:1])
    own = replace(SMALL_WORLD, actors=("fox",), places=("beach",))
    StorybookWorld(replace(own, weathers=("clear", "rain")), art)
    with pytest.raises(ValueError, match=r"the art has no weather \['snow'\]: it has rain"):
        StorybookWorld(replace(own, weathers=("clear", "snow")), art)
    with pytest.raises(ValueError, match=r"the art has no weather \['rain'\]: it has none"):
        StorybookWorld(replace(own, weathers=("rain",)), replace(art, particle_names=(), particles=art.particles[:0]))


def test_art_is_data_of_one_kind():
    art = draw_art(("fox",), ("beach",))
    assert isinstance(art, Art) and art.actors.dtype == torch.uint8
    assert (art.actors[:, :, :3] <= art.actors[:, :, 3:]).all(), "colours are premultiplied by alpha"
