"""Tokenising in parts: merged they are what one go would have made, an interruption costs one part, damage is told."""

import weakref
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from phenaki.data import token_parts
from phenaki.data.tensor_file import write_tensors
from phenaki.data.token_parts import TokenPlan, drop_parts, merge, parts_folder, tokenize_source
from phenaki.data.tokens import StoryTokens, TokensError, is_story_tokens, make_story_tokens
from phenaki.locks import BusyError

PLAN = TokenPlan(seed=3, num_stories=10, num_slices=4, temporal_patch_size=2, max_scenes=2, num_images=5)
CAPTIONS = ("a bear", "a fox runs", "the sea", "a very long walk home", "")


@dataclass
class Source:
    """Clips whose frames are grey as their number says, of two scenes that share captions with others; pictures likewise."""

    fail_at: int | None = None
    num_images: int = 5

    def __post_init__(self):
        self.painted: list[int] = []

    def captioned_clips(self, seed, count, num_frames, align, max_scenes, first=0):
        for number in range(first, first + count):
            if number == self.fail_at:
                raise KeyboardInterrupt
            self.painted.append(number)
            scenes = [SimpleNamespace(caption=CAPTIONS[(number + k) % 5], num_frames=frames) for k, frames in enumerate((3, num_frames - 3))]
            yield torch.full((1, 3, num_frames, 4, 4), seed + number / 100), [SimpleNamespace(scenes=scenes)]

    def images(self, seed, first, count):
        numbers = list(range(first, first + count))
        self.painted += [1000 + number for number in numbers]
        pictures = torch.tensor(numbers)[:, None, None, None, None] / 100 + seed + 0.5
        return pictures.expand(-1, 3, 1, 4, 4), [("a picture", *CAPTIONS)[number % 6] for number in numbers]


def encode(video: Tensor) -> Tensor:
    return (video[:, 0, ::2, :2, :3] * 100).round().long()


def encode_text(captions: list[str]) -> list[Tensor]:
    return [torch.tensor([[float(len(word)), float(len(caption))] for word in ("start", *caption.split())]) for caption in captions]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(token_parts, "PART_SIZE", 3)


def tokenize(path, source, plan=PLAN, description="mine") -> list[str]:
    notes: list[str] = []
    tokenize_source(source, encode, encode_text, plan, path, description, notes.append)
    return notes


def made_at_once() -> StoryTokens:
    return make_story_tokens(
        Source(), encode, encode_text, seed=3, num_stories=10, num_slices=4, temporal_patch_size=2, max_scenes=2, description="mine"
    )


def test_a_disk_without_room_for_all_is_told_after_the_first_part_which_stays(tmp_path, monkeypatch):
    """15 clips and pictures in parts of three."""
    path, free = tmp_path / "a.safetensors", SimpleNamespace(free=1)
    monkeypatch.setattr(token_parts.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(ValueError, match=rf"{tmp_path}: the tokens and texts to come take some 0.0 GB in parts, 0.0 GB are free. Make room"):
        tokenize(path, Source())
    (part,) = parts_folder(path).glob("*.safetensors")
    free.free = round(4 * part.stat().st_size)
    source = Source()
    notes = tokenize(path, source)
    assert notes[0] == "3 of 15 clips and pictures were tokenised before" and source.painted[0] == 3
    assert [note for note in notes if note.endswith("that may not fit")] == [notes[1]] and len(StoryTokens.load(path).tokens) == 10


def test_parts_come_to_what_one_go_makes(tmp_path):
    notes = tokenize(tmp_path / "a.safetensors", Source())
    stories, whole = StoryTokens.load(tmp_path / "a.safetensors"), made_at_once()
    for name in ("tokens", "scene_start", "scene_end", "caption"):
        assert torch.equal(getattr(stories, name), getattr(whole, name)), name
    assert stories.captions == [*whole.captions, "a picture"], "a caption of several parts is kept once"
    assert torch.equal(stories.texts[: len(whole.texts)], whole.texts) and stories.description == "mine"
    for index, caption in enumerate(stories.captions):
        text, mask = stories.text(torch.tensor([index]))
        assert torch.equal(text[0][mask[0]], encode_text([caption])[0])
    assert notes[-1] == "15 of 15 clips and pictures tokenised" and len(notes) == 6
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"], "no part is left"


def test_pictures_have_their_tokens_and_captions(tmp_path):
    source = Source()
    tokenize(tmp_path / "a.safetensors", source)
    stories = StoryTokens.load(tmp_path / "a.safetensors")
    assert stories.images.dtype == torch.int32 and stories.images.shape == (5, 2, 3)
    assert [stories.captions[caption] for caption in stories.image_caption] == ["a picture", *CAPTIONS[:4]]
    assert stories.images[:, 0, 0].tolist() == [350, 351, 352, 353, 354]
    alone = replace(PLAN, num_stories=0)
    tokenize(tmp_path / "b.safetensors", source, alone)
    only = StoryTokens.load(tmp_path / "b.safetensors")
    assert torch.equal(only.images, stories.images) and only.tokens.shape == (0, 4, 2, 3)


@pytest.mark.parametrize("fail_at", [0, 2, 3, 8])
def test_broken_off_it_goes_on_with_whole_parts_and_ends_in_the_same_file(tmp_path, fail_at):
    tokenize(tmp_path / "whole.safetensors", Source())
    with pytest.raises(KeyboardInterrupt):
        tokenize(tmp_path / "a.safetensors", Source(fail_at=fail_at))
    assert not (tmp_path / "a.safetensors").exists()
    again = Source()
    notes = tokenize(tmp_path / "a.safetensors", again)
    assert sorted(again.painted)[0] == fail_at // 3 * 3, "only the broken part and what comes after it is made"
    assert sum("before" in note for note in notes) == fail_at // 3
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_parts_that_are_damaged_or_of_another_plan_are_made_anew(tmp_path):
    tokenize(tmp_path / "whole.safetensors", Source())
    with pytest.raises(KeyboardInterrupt):
        tokenize(tmp_path / "a.safetensors", Source(fail_at=8))
    part = tmp_path / ".a.safetensors.parts/stories-00000003.safetensors"
    part.write_bytes(part.read_bytes()[:-5])
    again = Source()
    tokenize(tmp_path / "a.safetensors", again)
    assert sorted(again.painted)[:4] == [3, 4, 5, 6]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    for changes in ({"description": "other weights"}, {"plan": replace(PLAN, seed=4)}):
        with pytest.raises(KeyboardInterrupt):
            tokenize(tmp_path / "b.safetensors", Source(fail_at=8))
        other = Source()
        tokenize(tmp_path / "b.safetensors", other, **changes)
        assert len(other.painted) == 15, changes


def test_a_kill_in_the_merge_leaves_the_parts(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_parts, "write_tensors", fail)
        with pytest.raises(KeyboardInterrupt):
            tokenize(tmp_path / "a.safetensors", Source())
    again = Source()
    tokenize(tmp_path / "a.safetensors", again)
    assert not again.painted and len(StoryTokens.load(tmp_path / "a.safetensors").tokens) == 10


def test_the_parts_stay_until_the_file_has_been_read(tmp_path, monkeypatch):
    def damaging(*arguments):
        write_tensors(*arguments)
        with open(tmp_path / "a.safetensors", "r+b") as file:
            file.seek(-1, 2)
            file.write(b"?")

    with monkeypatch.context() as patch:
        patch.setattr(token_parts, "write_tensors", damaging)
        with pytest.raises(TokensError, match=r"a\.safetensors: damaged or cut short"):
            tokenize(tmp_path / "a.safetensors", Source())
    again = Source()
    tokenize(tmp_path / "a.safetensors", again)
    assert not again.painted and len(StoryTokens.load(tmp_path / "a.safetensors").tokens) == 10


def test_two_processes_do_not_make_one_file(tmp_path, held_elsewhere):
    """The second one is told, and takes no part away from the first: not even as the left-overs of a file that is whole."""
    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        tokenize(path, Source(fail_at=8))
    left = sorted(parts_folder(path).glob("*.safetensors"))
    with held_elsewhere(parts_folder(path)):
        with pytest.raises(BusyError, match=r"a\.safetensors: another process makes this file; wait for it"):
            tokenize(path, Source())
        drop_parts(path)
    assert sorted(parts_folder(path).glob("*.safetensors")) == left and len(left) == 2
    drop_parts(path)
    assert not list(tmp_path.iterdir())
    drop_parts(path)
    assert not list(tmp_path.iterdir())


def test_a_merge_holds_the_tokens_of_a_part_or_two(tmp_path, monkeypatch):
    """Of 30 parts: counted are the tensors of tokens that are alive when another part is read."""
    monkeypatch.setattr(token_parts, "PART_SIZE", 1)
    plan, alive, most = replace(PLAN, num_stories=30, num_images=0), [], [0]
    load = StoryTokens.load

    def counted(path):
        most[0] = max(most[0], sum(one() is not None for one in alive))
        stories = load(path)
        alive.append(weakref.ref(stories.tokens))
        return stories

    monkeypatch.setattr(token_parts.StoryTokens, "load", counted)
    tokenize(tmp_path / "a.safetensors", Source(), plan)
    assert len(alive) >= 60 and most[0] <= 2


def test_merging_one_file_changes_nothing_in_it(tmp_path):
    whole = made_at_once()
    whole.save(tmp_path / "a.safetensors")
    merge([tmp_path / "a.safetensors"], tmp_path / "b.safetensors", "mine")
    merged = StoryTokens.load(tmp_path / "b.safetensors").tensors()
    assert merged.keys() == whole.tensors().keys()
    assert all(torch.equal(merged[name], value) for name, value in whole.tensors().items() if value.numel())


def test_nothing_to_tokenise_is_refused():
    for changes in ({"num_stories": 0, "num_images": 0}, {"num_stories": -1}, {"num_slices": 0}):
        with pytest.raises(ValueError, match="to tokenise: needed at least one"):
            replace(PLAN, **changes)


# Files that cannot be used


@pytest.mark.parametrize("length", [0, 5, 300, -1])
def test_a_file_cut_short_is_told(tmp_path, length):
    path = tmp_path / "a.safetensors"
    made_at_once().save(path)
    assert is_story_tokens(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(TokensError, match=r"a\.safetensors: .*Make it again with `phenaki data tokenize`"):
        StoryTokens.load(path)


def test_another_file_is_told(tmp_path):
    (tmp_path / "a.safetensors").write_text("hello")
    assert not is_story_tokens(tmp_path / "a.safetensors") and not is_story_tokens(tmp_path) and not is_story_tokens(tmp_path / "none")
    with pytest.raises(TokensError, match="not a file of story tokens"):
        StoryTokens.load(tmp_path / "a.safetensors")
    with pytest.raises(TokensError, match="no such file"):
        StoryTokens.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"caption": lambda s: s.caption + 1}, "names captions that it has not"),
        ({"caption": lambda s: s.caption[:, 1:]}, "columns are of different lengths"),
        ({"text_spans": lambda s: s.text_spans + 100}, "point outside its texts"),
        ({"scene_end": lambda s: s.scene_end + 1}, "outside their scenes"),
        ({"scene_start": lambda s: s.scene_start - 1}, "outside their scenes"),
        ({"tokens": lambda s: s.tokens.long()}, "tokens is torch.int64"),
        ({"texts": lambda s: s.texts[0]}, "texts is torch.float16 of shape"),
        ({"image_caption": lambda s: torch.zeros(1, dtype=torch.long)}, "columns are of different lengths"),
    ],
)
def test_a_whole_file_whose_numbers_do_not_fit_together_is_told(tmp_path, changes, said):
    whole = made_at_once()
    replace(whole, **{name: change(whole) for name, change in changes.items()}).save(tmp_path / "a.safetensors")
    with pytest.raises(TokensError, match=said):
        StoryTokens.load(tmp_path / "a.safetensors")
