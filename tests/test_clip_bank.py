"""Stories that are painted once, and the clips that are cut from them."""

from dataclasses import replace

import pytest
import torch

from phenaki.data.clip_source import ClipSource
from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.world import SMALL_WORLD
from phenaki.pixels import from_bytes, to_bytes
from phenaki.training.clip_bank import ClipBank
from phenaki.training.settings import TokenizerTraining


@pytest.fixture(scope="module")
def world() -> StorybookWorld:
    return open_world(replace(SMALL_WORLD, size=16))


@pytest.fixture(scope="module")
def bank(world) -> ClipBank:
    return ClipBank(world, seed=3, num_stories=5, num_frames=13, align=2)


def test_clips_are_pieces_of_the_painted_stories(world, bank):
    videos, _ = next(world.captioned_clips(3, 5, 13, 2, 3))
    painted = from_bytes(to_bytes(videos))
    pieces = [painted[story, :, begin : begin + 5] for story in range(5) for begin in range(0, 9, 2)]
    found = set()
    for clip in bank.clips(0, 0, 60, 5, 2):
        assert clip.shape == (3, 5, 16, 16)
        same = [number for number, piece in enumerate(pieces) if torch.equal(piece, clip)]
        assert same
        found.add(same[0])
    assert len(found) > 15, "from everywhere in all of them"


def test_a_clip_depends_on_its_seed_and_number_alone(bank):
    whole = bank.clips(0, 0, 8, 5, 2)
    assert torch.equal(torch.cat([bank.clips(0, 0, 3, 5, 2), bank.clips(0, 3, 5, 5, 2)]), whole)
    assert not torch.equal(bank.clips(1, 0, 8, 5, 2), whole) and not torch.equal(bank.clips(0, 8, 8, 5, 2), whole)


def test_what_a_source_has_nothing_of_it_says(world, bank):
    for source in (world, bank):
        assert isinstance(source, ClipSource) and source.num_images == 0 and not source.files and not source.clips_hash and source.fingerprint
    with pytest.raises(NotImplementedError):
        bank.images(0, 0, 1)


def test_a_whole_story_is_a_clip(bank):
    assert bank.clips(0, 0, 2, 13, 2).shape == (2, 3, 13, 16, 16)


def test_stories_that_do_not_fit_and_clips_that_are_too_long_are_refused(world):
    with pytest.raises(ValueError, match=r"num_stories 1000000000000: painted they take .* GB, .* GB are free on cpu\. Lower it, or set it to 0"):
        ClipBank(world, 0, 10**12, 13, 2)
    with pytest.raises(ValueError, match=r"story_slices 5: clips of 7 slices \(num_slices\) are cut from these stories"):
        TokenizerTraining(num_slices=7, num_stories=10, story_slices=5)
