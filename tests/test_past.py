"""What a chunk is given of the ones before: slices as they were made or encoded anew, and first slices of scenes kept under a name."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import TOKENIZERS, build_tokenizer
from test_director import GRID, OPTIONS, frames_of, plan_of, text_of, tokens_of

from phenaki.director import Given, SceneFiller, direct
from phenaki.maskgit import ANCHOR, FIRST, ORDINARY
from phenaki.past import Anchor, Past
from phenaki.sampling import SamplingOptions
from phenaki.story import Scene

FRAMES = replace(OPTIONS, num_steps=1, context="frames")
TOKENS = replace(FRAMES, context="tokens")


@pytest.fixture(params=["default", "paper"])
def any_tokenizer(request):
    """The default configuration, and the paper's with as many codes as the generator knows."""
    config = TOKENIZERS[request.param]
    return build_tokenizer(replace(config, codebook_size=256) if request.param == "paper" else config)


def replace_scene(scene, **changes):
    return scene.model_copy(update=changes)


def told(tokenizer, generator, plan, options=FRAMES, numbers=None, **more):
    texts = [text_of(number) for number in numbers or range(len(plan.scenes))]
    return direct(plan, tokenizer, generator, texts, options, 7, GRID, **more)


@pytest.fixture
def contexts(generator, monkeypatch):
    """(slices (t h w), kinds) of every context that was encoded."""
    calls, encode_context = [], generator.encode_context

    def watching(tokens, kinds, corruption=None):
        calls.append((tokens[0], kinds.tolist()))
        return encode_context(tokens, kinds, corruption)

    monkeypatch.setattr(generator, "encode_context", watching)
    return calls


# ---- decoded and encoded anew --------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_chunk_sees_the_last_frames_encoded_anew(any_tokenizer, generator, contexts):
    """The slow reference: every chunk is a video of its own that starts with the last frames of what was shown."""
    plan = plan_of(4.0)
    chunks = list(told(any_tokenizer, generator, plan))
    assert len(contexts) == len(chunks) - 1 > 4
    shown = chunks[0].frames
    for chunk, (slices, kinds) in zip(chunks[1:], contexts, strict=True):
        recent = slices[-2:]
        assert kinds[-2:] == [FIRST, ORDINARY]
        assert torch.equal(recent, any_tokenizer.encode(shown[-3:].transpose(0, 1)[None])[0]), "1 + 2 frames are two slices"
        whole = any_tokenizer.decode(torch.cat([recent, chunk.tokens])[None])[0, :, 3:].clamp(-1, 1).transpose(0, 1)
        torch.testing.assert_close(chunk.frames, whole[: len(chunk.frames)], atol=1e-5, rtol=1e-5)
        shown = torch.cat([shown, chunk.frames])
    assert len(shown) == plan.num_frames


def test_both_contexts_begin_alike_and_have_the_same_frames_in_number(tokenizer, generator):
    plan = plan_of(1.6, 1.1, Scene(prompt="a bear", seconds=1.2, cut=True))
    frames, tokens = (list(told(tokenizer, generator, plan, options)) for options in (FRAMES, TOKENS))
    assert [(len(chunk.frames), chunk.start_frame) for chunk in frames] == [(len(chunk.frames), chunk.start_frame) for chunk in tokens]
    assert torch.equal(frames[0].tokens, tokens[0].tokens) and not torch.equal(tokens_of(frames), tokens_of(tokens))
    starts = next(index for index, chunk in enumerate(frames) if chunk.scene == 2)
    assert torch.equal(frames[starts].frames, tokens[starts].frames), "a cut forgets either"


def test_one_slice_of_context_is_one_frame_encoded_anew(tokenizer, generator, contexts):
    generator.config = replace(generator.config, context_slices=1, anchor=False)
    list(told(tokenizer, generator, plan_of(2.0)))
    assert contexts and all(kinds == [FIRST] for _, kinds in contexts)


def test_without_recent_slices_there_is_nothing_to_encode_anew(tokenizer, generator, monkeypatch):
    generator.config = replace(generator.config, context_slices=0)
    wanted = tokens_of(told(tokenizer, generator, plan_of(2.0), TOKENS))
    monkeypatch.setattr(tokenizer, "encode", None)
    assert torch.equal(tokens_of(told(tokenizer, generator, plan_of(2.0))), wanted)


def test_what_is_held_of_frames_does_not_grow(tokenizer, generator, monkeypatch):
    held, fill = [], SceneFiller.fill

    def watching(self, num_slices, past, grid, key, known):
        held.append((len(past.slices), past.frames.shape[2] if past.frames is not None else 0, past.decoder.num_slices))
        return fill(self, num_slices, past, grid, key, known)

    monkeypatch.setattr(SceneFiller, "fill", watching)
    for _ in told(tokenizer, generator, plan_of(6.0)):
        pass
    assert held[0] == (0, 0, 0) and set(held[1:]) == {(2, 3, 2)} and len(held) > 8


def test_other_contexts_are_refused():
    with pytest.raises(ValueError, match="context 'pixels': allowed are tokens, frames"):
        SamplingOptions(context="pixels")


# ---- remembered by name --------------------------------------------------------------------------------------------


BEAR = Scene(prompt="a bear", seconds=1.6, remember="bear")
OTHER = Scene(prompt="a house", seconds=2.5, cut=True)


def test_a_scene_that_recalls_sees_the_first_slice_of_the_other_in_every_chunk(tokenizer, generator, contexts):
    plan = plan_of(Scene(prompt="a house", seconds=1.6), BEAR, OTHER, Scene(prompt="the bear again", seconds=2.5, recall="bear"), 2.5)
    chunks = list(told(tokenizer, generator, plan, TOKENS))
    remembered = next(chunk for chunk in chunks if chunk.scene == 1).tokens[0]
    by_scene = iter(contexts)
    for chunk in chunks[1:]:
        if chunk.scene == 2 and chunk.chunk == 0:
            continue  # after a cut there is no context
        slices, kinds = next(by_scene)
        if chunk.scene == 3:
            assert kinds[0] == ANCHOR and torch.equal(slices[0], remembered)
        elif kinds[0] == ANCHOR:
            own = next(one for one in chunks if one.scene == chunk.scene).tokens[0]
            assert torch.equal(slices[0], own), "the other scenes have their own"
    assert len([chunk for chunk in chunks if chunk.scene == 3]) > 2


def test_a_recalled_scene_is_seen_across_a_cut_and_alone(tokenizer, generator, contexts):
    plan = plan_of(BEAR, replace_scene(OTHER, recall="bear"))
    chunks = list(told(tokenizer, generator, plan, TOKENS))
    slices, kinds = contexts[len(plan.scenes[0].chunks) - 1]
    assert kinds == [ANCHOR] and torch.equal(slices[0], chunks[0].tokens[0])
    changed = list(told(tokenizer, generator, plan, TOKENS, numbers=[40, 1]))
    assert not torch.equal(frames_of(chunks, [1]), frames_of(changed, [1])), "it follows what it recalls"
    plain = plan_of(BEAR, OTHER)
    one, two = (list(told(tokenizer, generator, plain, TOKENS, numbers=numbers)) for numbers in ([0, 1], [40, 1]))
    assert torch.equal(frames_of(one, [1]), frames_of(two, [1])), "and does not without recalling it"


def test_the_latest_scene_of_a_name_is_the_one_that_is_recalled(tokenizer, generator, contexts):
    again = replace_scene(BEAR, cut=True)
    plan = plan_of(BEAR, again, replace_scene(OTHER, recall="bear", remember="bear"), replace_scene(OTHER, recall="bear"))
    chunks = list(told(tokenizer, generator, plan, TOKENS))
    firsts = [next(chunk for chunk in chunks if chunk.scene == scene).tokens[0] for scene in range(4)]
    alone = [slices[0] for slices, kinds in contexts if kinds == [ANCHOR]]
    assert torch.equal(alone[0], firsts[1]) and torch.equal(alone[1], firsts[2]) and len(alone) == 2


def recalled_after(scene, start, tokenizer, generator, contexts):
    """The slice that the next scene recalls, where a scene that is remembered starts from such pixels."""
    list(told(tokenizer, generator, plan_of(scene, replace_scene(OTHER, recall=scene.remember)), TOKENS, given={0: Given(start)}))
    return next(slices[0] for slices, kinds in contexts if kinds == [ANCHOR])


@torch.no_grad()
def test_a_picture_that_a_scene_starts_from_is_what_is_remembered(tokenizer, generator, contexts):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    recalled = recalled_after(Scene(prompt="a bear", seconds=1.5, image="a.png", remember="bear"), picture, tokenizer, generator, contexts)
    assert torch.equal(recalled, tokenizer.encode(picture.transpose(0, 1)[None])[0, 0])


@torch.no_grad()
def test_of_a_video_that_a_scene_goes_on_from_what_it_shows_first_is_remembered(tokenizer, generator, contexts):
    frames = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    recalled = recalled_after(Scene(prompt="a bear", seconds=1.5, video="a.mp4", remember="bear"), frames, tokenizer, generator, contexts)
    slices = tokenizer.encode(frames.transpose(0, 1)[None])[0]
    assert torch.equal(recalled, slices[-1]) and not torch.equal(slices[0], slices[-1])


@torch.no_grad()
def test_frames_are_encoded_anew_only_where_something_follows_them(tokenizer, generator, monkeypatch):
    anew, really = [], Past.encode_anew
    monkeypatch.setattr(Past, "encode_anew", lambda self, *args: anew.append(1) or really(self, *args))
    plan = plan_of(BEAR, OTHER, replace_scene(BEAR, cut=True))
    segments = {scene.segment for scene in plan.scenes}
    chunks = list(told(tokenizer, generator, plan, FRAMES))
    assert len(segments) == 3 < len(chunks) - 2 and len(anew) == len(chunks) - len(segments)


@pytest.mark.parametrize("options", [FRAMES, TOKENS], ids=["frames", "tokens"])
@torch.no_grad()
def test_a_story_with_memories_goes_on_after_any_chunk_as_if_it_had_not_stopped(any_tokenizer, generator, options):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scenes = (BEAR, OTHER, Scene(prompt="a bear", seconds=1.5, recall="bear"), Scene(prompt="a bear", seconds=1.5, image="a.png", recall="bear"))
    plan = plan_of(*scenes)
    tell = lambda **more: told(any_tokenizer, generator, plan, options, given={3: Given(picture)}, **more)
    whole = list(tell())
    for done in range(len(whole) + 1):
        rest = list(itertools.islice(tell(made=[chunk.tokens for chunk in whole[:done]]), 2))
        assert len(rest) == min(len(whole) - done, 2)
        for chunk, wanted in zip(rest, whole[done:], strict=False):
            assert torch.equal(chunk.tokens, wanted.tokens) and torch.equal(chunk.frames, wanted.frames)
            assert (chunk.scene, chunk.chunk, chunk.start_frame) == (wanted.scene, wanted.chunk, wanted.start_frame)


@torch.no_grad()
def test_of_a_story_that_goes_on_only_the_segment_at_hand_is_decoded_again(any_tokenizer, generator, monkeypatch):
    plan = plan_of(BEAR, OTHER, Scene(prompt="a bear", seconds=2.5, cut=True))
    whole = list(told(any_tokenizer, generator, plan, FRAMES))
    decoded, decode = [], Past.decode
    monkeypatch.setattr(Past, "decode", lambda self, tokenizer, tokens: decoded.append(len(tokens)) or decode(self, tokenizer, tokens))
    firsts = [index for index, chunk in enumerate(whole) if chunk.scene == 2]
    for done, count in [(len(whole), 0), (firsts[-1], len(firsts)), (firsts[0], len(firsts)), (1, len(whole))]:
        decoded.clear()
        list(told(any_tokenizer, generator, plan, FRAMES, made=[chunk.tokens for chunk in whole[:done]]))
        assert len(decoded) == count


def test_an_anchor_is_distant_once_it_has_left_the_recent_slices():
    past = Past(anchor=Anchor(torch.zeros(4, 4), 0))
    past.remember(torch.zeros(2, 4, 4), 2)
    assert past.distant_anchor is None and past.starts_a_video
    past.remember(torch.zeros(1, 4, 4), 2)
    assert past.distant_anchor is past.anchor.tokens and not past.starts_a_video
    assert Past(anchor=Anchor(torch.ones(1), None)).distant_anchor is not None
