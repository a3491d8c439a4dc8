"""Parts of a clip made anew: known tokens are never touched, an untouched clip is its reconstruction, what is held does not grow."""

import itertools
import random

import pytest
import torch

from phenaki.director import SceneText
from phenaki.repainting import Repainter, plan_chunks, spared
from phenaki.sampling import SamplingOptions

OPTIONS = SamplingOptions(num_steps=2, guidance_scale=2.0)
SHAPE = (3, 4, 4)  # of a full chunk


def text_of(number: int) -> SceneText:
    rng = torch.Generator().manual_seed(number)
    return SceneText(torch.randn(1, 4, 16, generator=rng) * 3, torch.ones(1, 4, dtype=torch.bool))


def clip_of(num_slices: int, seed: int = 0) -> torch.Tensor:
    """1 + 2k frames (f c h w)."""
    return torch.rand(2 * num_slices - 1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def painted(tokenizer, generator, video, regions, number=0, seed=7, keep=0.0, options=OPTIONS):
    """A clip taken chunk by chunk, a region for each; its frames may end before the regions do."""
    painter, chunks, done = Repainter(tokenizer, generator, text_of(number), options, seed, keep), [], 0
    for index, region in enumerate(regions):
        count = 2 * len(region) - (index == 0)
        chunks.append(painter.paint(video[done : done + count] if done < len(video) else None, region))
        done += count
    return chunks


def random_regions(seed: int, lengths=(3, 2, 3)) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(length, 4, 4, generator=rng) < 0.4 for length in lengths]


# ---- which slices are filled at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_chunks_cover_every_slice_once(seed):
    draw = random.Random(seed)
    touched, most = [draw.random() < draw.choice([0.1, 0.5, 1]) for _ in range(draw.randint(1, 40))], draw.randint(1, 6)
    chunks = plan_chunks(touched, most)
    assert [index for start, stop in chunks for index in range(start, stop)] == list(range(len(touched)))
    assert all(1 <= stop - start <= most for start, stop in chunks)


@pytest.mark.parametrize("gap", range(1, 9))
def test_the_last_chunk_of_a_gap_sees_the_slice_after_it(gap):
    touched = [False] * 4 + [True] * gap + [False] * 6
    chunks = plan_chunks(touched, 4)
    last = next((start, stop) for start, stop in chunks if start <= 3 + gap < stop)
    assert last[1] == 4 + gap + 1 and last[1] - last[0] >= 2
    assert (0, 4) in chunks, "what is not touched is not filled with it"


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.3, 0.5, 0.99])
def test_kept_places_are_a_share_and_spread_evenly(keep):
    region = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.7
    hidden = spared(region, keep)
    assert not (hidden & ~region).any() and hidden.sum() == region.sum() - int(keep * region.sum())
    fewer = spared(region, keep / 2)
    assert not (hidden & ~fewer).any(), "more kept is less hidden, of the same places"
    if keep == 0.3:
        shares = [(region & ~hidden)[part].sum() / region[part].sum() for part in (slice(0, 2), slice(2, 4))]
        assert abs(shares[0] - shares[1]) < 0.1


def test_something_of_a_region_is_always_made_anew():
    one = torch.zeros(SHAPE, dtype=torch.bool)
    one[1, 2, 3] = True
    assert torch.equal(spared(one, 0.99), one)
    assert not spared(torch.zeros(SHAPE, dtype=torch.bool), 0.5).any()


# ---- what becomes of a clip ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_known_tokens_are_never_touched(tokenizer, generator, seed, keep):
    video, regions = clip_of(8, seed), random_regions(seed)
    own = tokenizer.encode(video.transpose(0, 1)[None])[0].split([3, 2, 3])
    for chunk, tokens, region in zip(painted(tokenizer, generator, video, regions, keep=keep), own, regions, strict=True):
        assert torch.equal(chunk.tokens[~region], tokens[~region]) and torch.equal(chunk.tokens[chunk.known], tokens[chunk.known])
        assert torch.equal(chunk.known, ~spared(region, keep))
        assert (chunk.tokens[~chunk.known] != tokens[~chunk.known]).float().mean() > 0.5
        assert ((chunk.tokens >= 0) & (chunk.tokens < 256)).all()


@torch.no_grad()
def test_an_untouched_clip_is_its_reconstruction(tokenizer, generator, monkeypatch):
    monkeypatch.setattr(generator, "features", lambda *_: pytest.fail("the generator was asked"))
    video = clip_of(8)
    chunks = painted(tokenizer, generator, video, [torch.zeros(length, 4, 4, dtype=torch.bool) for length in (3, 3, 2)])
    whole = tokenizer.decode(tokenizer.encode(video.transpose(0, 1)[None]))[0].clamp(-1, 1).transpose(0, 1)
    torch.testing.assert_close(torch.cat([chunk.frames for chunk in chunks]), whole, atol=1e-5, rtol=1e-5)


def test_the_generator_does_not_see_what_it_makes_anew(tokenizer, generator, monkeypatch):
    seen, features = [], generator.features
    monkeypatch.setattr(generator, "features", lambda tokens, *rest: seen.append(tokens.clone()) or features(tokens, *rest))
    region = random_regions(5, (3,))[0]
    painted(tokenizer, generator, clip_of(3), [region])
    assert (seen[0][0][region] == generator.mask_token_id).all() and (seen[0][0][~region] != generator.mask_token_id).all()


def test_a_chunk_sees_what_the_ones_before_it_have_become(tokenizer, generator, monkeypatch):
    contexts, encode_context = [], generator.encode_context
    monkeypatch.setattr(generator, "encode_context", lambda tokens, kinds: contexts.append(tokens[0]) or encode_context(tokens, kinds))
    chunks = painted(tokenizer, generator, clip_of(8), random_regions(1))
    made = torch.cat([chunk.tokens for chunk in chunks])
    assert torch.equal(contexts[0][-2:], made[1:3]) and torch.equal(contexts[1][-2:], made[3:5])
    assert torch.equal(contexts[1][0], made[0]), "the anchor is the clip's first slice"


def test_what_is_told_and_the_seed_decide_the_region_and_nothing_else(tokenizer, generator):
    video, regions = clip_of(8), random_regions(2)
    runs = [painted(tokenizer, generator, video, regions, number, seed) for number, seed in ((0, 7), (0, 7), (1, 7), (0, 8))]
    first, again, told, seeded = (torch.cat([chunk.tokens for chunk in chunks]) for chunks in runs)
    region = torch.cat(regions)
    assert torch.equal(first, again)
    for other in (told, seeded):
        assert torch.equal(first[~region], other[~region]) and not torch.equal(first[region], other[region])


def test_after_the_end_of_the_clip_it_goes_on(tokenizer, generator):
    video, regions = clip_of(3), [torch.zeros(SHAPE, dtype=torch.bool), torch.ones(SHAPE, dtype=torch.bool)]
    own, new = painted(tokenizer, generator, video, regions)
    assert own.known.all() and not new.known.any() and len(own.frames) == 5 and len(new.frames) == 6
    other = painted(tokenizer, generator, clip_of(3, seed=1), regions)[1]
    assert not torch.equal(new.tokens, other.tokens), "it goes on from what was seen"


def test_a_chunk_may_hold_the_end_of_the_clip(tokenizer, generator):
    painter = Repainter(tokenizer, generator, text_of(0), OPTIONS, 7, keep=0.5)
    region = torch.zeros(SHAPE, dtype=torch.bool)
    chunk = painter.paint(clip_of(2), region)
    assert chunk.known[:2].all() and not chunk.known[2].any() and len(chunk.frames) == 5


def test_a_region_smaller_than_its_frames_is_refused(tokenizer, generator):
    for shape in ((2, 4, 4), (3, 2, 2)):
        with pytest.raises(ValueError, match=r"region of shape .* slices \(3, 4, 4\)"):
            Repainter(tokenizer, generator, text_of(0), OPTIONS, 7).paint(clip_of(3), torch.ones(shape, dtype=torch.bool))


def test_what_is_held_does_not_grow(tokenizer, generator):
    painter, held = Repainter(tokenizer, generator, text_of(0), SamplingOptions(num_steps=1, guidance_scale=1), 7), []
    for index in range(30):
        painter.paint(clip_of(2)[: 3 if index == 0 else 2], torch.zeros(2 if index == 0 else 1, 4, 4, dtype=torch.bool))
        memory = itertools.chain(painter.source.memory, painter.past.decoder.memory)
        held.append((len(painter.past.slices), [one.keys.shape[2] for one in memory if one is not None]))
    assert held[5:] == [(2, [2] * 4)] * 25  # context_slices; window - 1 for each of the four layers over time
