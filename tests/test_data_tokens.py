"""Truths of tokenised stories: every slice has the tokens, the scene and the words of the story it was made of."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.tensor_file import NO_HASH, save_tensors
from phenaki.data.tokens import COLUMNS, FORMAT, StoryTokens, TokensError, make_story_tokens, slice_scenes, words_of
from phenaki.data.world import SMALL_WORLD, StoryTruth

NUM_STORIES, NUM_SLICES, PT, SEED = 20, 7, 2, 3  # 20 stories: more than are painted at once
NUM_FRAMES = 1 + PT * (NUM_SLICES - 1)


def encode(video: Tensor) -> Tensor:
    """Stands for a tokenizer: a token is the brightness of a quarter of the slice's last frame."""
    last = video[:, :, ::PT]  # slice s ends with frame pt*s
    quarters = torch.nn.functional.adaptive_avg_pool2d(last.mean(1), 2)
    return ((quarters + 1) * 5000).round().long()


def encode_text(captions: list[str]) -> list[Tensor]:
    """Stands for a text encoder: the letters of each word summed, as long as the caption has words."""
    return [torch.tensor([[float(sum(map(ord, word)) % 997), float(len(word))] for word in caption.split()]) for caption in captions]


@pytest.fixture(scope="module")
def world() -> StorybookWorld:
    return open_world(replace(SMALL_WORLD, size=16))


@pytest.fixture(scope="module")
def truths(world) -> list[StoryTruth]:
    return [world.story(SEED, index, NUM_FRAMES, max_scenes=3, align=PT) for index in range(NUM_STORIES)]


@pytest.fixture(scope="module")
def stories(world) -> StoryTokens:
    return make_story_tokens(
        world, encode, encode_text, seed=SEED, num_stories=NUM_STORIES, num_slices=NUM_SLICES, temporal_patch_size=PT, max_scenes=3,
        description="made here",
    )  # fmt: skip


@pytest.mark.parametrize("pt", [1, 2, 3])
@pytest.mark.parametrize("slices", [1, 2, 8])
def test_scenes_tile_the_slices_and_no_tube_shows_two(world, pt, slices):
    for index in range(40):
        story = world.story(1, index, 1 + pt * (slices - 1), align=pt)
        spans = slice_scenes(story, pt)
        assert [first for first, _ in spans] == [0, *(end for _, end in spans[:-1])] and spans[-1][1] == slices
        shown = world.scenes_by_frame(story)
        for (first, end), scene in zip(spans, story.scenes, strict=True):
            for place in range(first, end):
                frames = range(max(0, 1 + pt * (place - 1)), 1 + pt * place)
                assert {shown[frame] for frame in frames} == {scene}


def test_every_slice_has_its_own_tokens(world, stories, truths):
    video = torch.cat([world.render([story]) for story in truths])
    assert stories.tokens.dtype == torch.int32 and stories.tokens.shape == (NUM_STORIES, NUM_SLICES, 2, 2)
    assert (stories.tokens - encode(video)).abs().max() <= 1


def test_every_slice_is_in_its_own_scene(world, stories, truths):
    for index, story in enumerate(truths):
        for place in range(NUM_SLICES):
            scene = next(number for number, (first, end) in enumerate(slice_scenes(story, PT)) if first <= place < end)
            first, end = slice_scenes(story, PT)[scene]
            assert (stories.scene_start[index, place], stories.scene_end[index, place]) == (first, end)


def test_every_slice_has_the_caption_of_the_scene_it_shows(world, stories, truths):
    for index, story in enumerate(truths):
        text, text_mask = stories.text(stories.caption[index])
        for place in range(NUM_SLICES):
            (wanted,) = encode_text([world.scenes_by_frame(story)[PT * place].caption])
            assert torch.equal(text[place][text_mask[place]], wanted)


def test_each_caption_is_embedded_once(stories, truths):
    captions = list(dict.fromkeys(scene.caption for story in truths for scene in story.scenes))
    lengths = (stories.text_spans[:, 1] - stories.text_spans[:, 0]).tolist()
    assert lengths == [len(caption.split()) for caption in captions]
    assert len(stories.texts) == sum(lengths) and stories.texts.dtype == torch.float16


def test_text_is_padded_with_zeros_and_the_mask_says_where(stories):
    lengths = stories.text_spans[:, 1] - stories.text_spans[:, 0]
    assert lengths.unique().numel() > 2
    chosen = torch.tensor([int(lengths.argmin()), int(lengths.argmax()), 0, int(lengths.argmin())])
    text, text_mask = stories.text(chosen)
    assert text.shape == (4, int(lengths.max()), 2) and text.dtype == torch.float32
    assert text_mask.dtype == torch.bool and torch.equal(text_mask.sum(1), lengths[chosen])
    assert (text_mask.int().diff(dim=1) <= 0).all(), "real tokens come first"
    assert (text[~text_mask] == 0).all() and (text[text_mask] != 0).all()
    assert torch.equal(text[0], text[3])
    alone, _ = stories.text(chosen[:1])
    assert torch.equal(alone[0], text[0, : alone.shape[1]]), "a caption's text depends on its neighbours"


def test_stories_depend_on_the_seed_alone(world, stories):
    options = {"num_slices": NUM_SLICES, "temporal_patch_size": PT, "max_scenes": 3, "description": "made here"}
    again, fewer, other = (
        make_story_tokens(world, encode, encode_text, seed=seed, num_stories=count, **options) for seed, count in ((3, 20), (3, 5), (4, 20))
    )
    for name, value in vars(stories).items():
        assert torch.equal(value, getattr(again, name)) if isinstance(value, Tensor) else value == again.description
    assert torch.equal(fewer.tokens, stories.tokens[:5]) and torch.equal(fewer.scene_start, stories.scene_start[:5])
    assert not torch.equal(other.tokens, stories.tokens)


def test_what_is_saved_comes_back(stories, tmp_path):
    stories.save(tmp_path / "stories.safetensors")
    back = StoryTokens.load(tmp_path / "stories.safetensors")
    assert vars(back).keys() == vars(stories).keys() and back.description == "made here"
    for name, value in vars(stories).items():
        if isinstance(value, Tensor):
            assert torch.equal(getattr(back, name), value) and getattr(back, name).dtype == value.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["stories.safetensors"]


BY_SLICE = ("tokens", "scene_start", "scene_end", "caption")


def damaged(column: Tensor, place: tuple[int, ...], value: int) -> Tensor:
    column = column.clone()
    column[place] = value
    return column


MISFITS = {
    "tokens below 0": lambda stories: {"tokens": damaged(stories.tokens, (1, 2, 0, 0), -5)},
    "captions without a text": lambda stories: {"text_spans": stories.text_spans.flip(1)},
    "not one string for each": lambda stories: {"words": words_of(stories.captions[:-1])},
    "words are not": lambda stories: {"words": words_of([*stories.captions[:-1], 5])},
    "words are not one": lambda stories: {"words": stories.words[:-1]},
}


@pytest.mark.parametrize("told", MISFITS)
def test_tokens_that_do_not_fit_together_are_told(stories, tmp_path, told):
    path = tmp_path / "stories.safetensors"
    replace(stories, **MISFITS[told](stories)).save(path)
    with pytest.raises(TokensError, match=told):
        StoryTokens.load(path)


def other_file(stories: StoryTokens, path: Path, description: str | None = "d", **columns: Tensor | None) -> None:
    """A file that says it is one of story tokens, with other columns (None: without that one)."""
    tensors = {name: value for name, value in {**stories.tensors(), **columns}.items() if value is not None}
    save_tensors(path, tensors, {"format": FORMAT} | ({} if description is None else {"description": description}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"extra": torch.zeros(1)}, "its columns are not those of story tokens: extra"),
        ({"tokens": None, "words": None}, "its columns are not those of story tokens: tokens, words"),
        ({"description": None}, "it has no description"),
        ({"caption": torch.zeros(3, 2)}, r"caption is torch\.float32 of shape \(3, 2\)"),
        ({"tokens": torch.zeros(4, 3, 0, 0, dtype=torch.int32)}, "3 slices of 0x0 tokens; needed 1 to"),
        ({name: torch.zeros(0, 1 << 26, *[2] * (2 * (name == "tokens")), dtype=COLUMNS[name][0]) for name in BY_SLICE}, "67108864 slices of 2x2"),
    ],
    ids=["extra", "missing", "nameless", "kind", "grid", "endless"],
)
def test_files_of_other_columns_are_refused_by_name(stories, tmp_path, changes, told):
    other_file(stories, tmp_path / "stories.safetensors", **changes)
    with pytest.raises(TokensError, match=rf"stories\.safetensors: {'.*' * (told[0].isdigit())}{told}"):
        StoryTokens.load(tmp_path / "stories.safetensors")


@pytest.mark.parametrize(
    ("entry", "digest"),
    [({"dtype": "I32", "shape": [0, 2**63 - 1, 2, 2], "data_offsets": [0, 0]}, None), ({}, "\ud800"), ({}, 5)],
    ids=["shape", "surrogate", "number"],
)
def test_headers_that_no_tensor_fits_are_refused(tmp_path, entry, digest):
    def header(digest) -> bytes:
        text = json.dumps({"__metadata__": {"format": FORMAT, "sha256": digest}} | ({"tokens": entry} if entry else {})).encode()
        return len(text).to_bytes(8, "little") + text

    path = tmp_path / "stories.safetensors"
    path.write_bytes(header(digest or hashlib.sha256(header(NO_HASH)).hexdigest()))
    with pytest.raises(TokensError, match=rf"stories\.safetensors: {'not a whole' if entry else 'damaged or cut short'}"):
        StoryTokens.load(path)


def test_a_save_broken_off_leaves_the_old_file(stories, tmp_path, monkeypatch):
    path = tmp_path / "stories.safetensors"
    stories.save(path)
    whole = path.read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        replace(stories, description="another").save(path)
    assert path.read_bytes() == whole
