"""Any length: frames are exact and in order, edits stay local, cuts forget, and what is held does not grow."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from conftest import TOKENIZERS, build_tokenizer

from phenaki.director import Given, SceneFiller, SceneText, direct, guided_logits
from phenaki.maskgit import ANCHOR, FIRST, ORDINARY
from phenaki.masking import between_mask, continuation_mask
from phenaki.past import Past
from phenaki.sampling import NoiseKey, SamplingOptions, guided
from phenaki.story import Scene, Story
from phenaki.story_plan import plan

GRID = (4, 4)
OPTIONS = SamplingOptions(num_steps=2, guidance_scale=3.0)


def plan_of(*scenes, fps=8):
    """A plan of (seconds) or Scene each, for chunks of 3 slices of 2 frames."""
    scenes = [scene if isinstance(scene, Scene) else Scene(prompt="a bear", seconds=scene) for scene in scenes]
    return plan(Story(scenes=scenes), fps=fps, temporal_patch_size=2, chunk_slices=3)


def text_of(number, negative=None):
    """Every number is another prompt."""
    rng = torch.Generator().manual_seed(1000 + number)
    length = 3 + number % 4
    return SceneText(torch.randn(1, length, 16, generator=rng) * 3, torch.ones(1, length, dtype=torch.bool), negative)


@pytest.fixture
def run(tokenizer, generator):
    """Directs a plan with texts by number; returns the list of what came."""

    def directed(plan, numbers=None, seed=7, options=OPTIONS, pictures=None, given=None):
        texts = [text_of(number) for number in (numbers or range(len(plan.scenes)))]
        given = given or {index: Given(start=picture[None]) for index, picture in (pictures or {}).items()}
        return list(direct(plan, tokenizer, generator, texts, options, seed, GRID, given))

    return directed


@pytest.fixture
def feature_calls(generator, monkeypatch):
    """(batch size, starts) of every call of generator.features."""
    calls, features = [], generator.features

    def watching(tokens, text, context, starts, condition=None):
        calls.append((len(tokens), starts))
        return features(tokens, text, context, starts, condition)

    monkeypatch.setattr(generator, "features", watching)
    return calls


@pytest.fixture
def context_calls(generator, monkeypatch):
    """The kinds of slices of every context that was encoded."""
    calls, encode_context = [], generator.encode_context

    def watching(tokens, kinds, corruption=None):
        calls.append(kinds.tolist())
        return encode_context(tokens, kinds, corruption)

    monkeypatch.setattr(generator, "encode_context", watching)
    return calls


def frames_of(chunks, scenes=None):
    return torch.cat([chunk.frames for chunk in chunks if scenes is None or chunk.scene in scenes])


def tokens_of(chunks):
    return torch.cat([chunk.tokens for chunk in chunks])


def random_plan(draw):
    scenes = [
        Scene(
            prompt="a bear", seconds=round(draw.uniform(0.6, 2.5), 3), cut=draw.random() < 0.3,
            image="picture.png" if draw.random() < 0.25 else None,
        )
        for _ in range(draw.randint(1, 4))
    ]  # fmt: skip
    return plan_of(*scenes, fps=draw.choice([6, 8, 10.5]))


@pytest.mark.parametrize("number", range(10))
def test_frames_are_as_many_as_planned_and_in_order(run, number):
    planned = random_plan(random.Random(number))
    pictures = {scene.index: torch.rand(3, 32, 32) * 2 - 1 for scene in planned.scenes if scene.image}
    chunks = run(planned, pictures=pictures, options=replace(OPTIONS, num_steps=1))

    assert sum(len(chunk.frames) for chunk in chunks) == planned.num_frames
    assert [chunk.start_frame for chunk in chunks] == [sum(len(c.frames) for c in chunks[:i]) for i in range(len(chunks))]
    for scene in planned.scenes:
        own = [chunk for chunk in chunks if chunk.scene == scene.index]
        assert own[0].start_frame == scene.start_frame and sum(len(chunk.frames) for chunk in own) == scene.num_frames
        assert [chunk.chunk for chunk in own] == [*([-1] if scene.image else []), *range(len(scene.chunks))]
        assert len(tokens_of(own)) == scene.num_slices
    assert [chunk.scene for chunk in chunks] == sorted(chunk.scene for chunk in chunks)
    for chunk in chunks:
        assert chunk.frames.shape[1:] == (3, 32, 32) and len(chunk.frames) > 0 and chunk.frames.abs().max() <= 1
        assert chunk.tokens.shape[1:] == GRID and chunk.tokens.max() < 256  # nothing is left hidden


def test_frames_come_before_later_chunks_are_made(tokenizer, generator, feature_calls):
    stream = direct(plan_of(4.0), tokenizer, generator, [text_of(0)], OPTIONS, 7, GRID)
    assert not feature_calls
    first = next(stream)
    assert len(first.frames) == 5 and len(feature_calls) == OPTIONS.num_steps
    next(stream)
    assert len(feature_calls) == 2 * OPTIONS.num_steps


@pytest.mark.parametrize("changed", [1, 2])
def test_a_changed_prompt_leaves_all_before_it_as_it_was(run, changed):
    planned = plan_of(1.6, 1.1, Scene(prompt="a bear", seconds=1.2, cut=True))
    numbers = [0, 1, 2]
    original = run(planned, numbers)
    numbers[changed] = 50
    edited = run(planned, numbers)
    start = planned.scenes[changed].start_frame
    assert torch.equal(frames_of(edited)[:start], frames_of(original)[:start])
    assert not torch.equal(frames_of(edited, [changed]), frames_of(original, [changed]))


def test_a_changed_length_leaves_all_before_it_as_it_was(run):
    original, edited = run(plan_of(1.6, 1.1)), run(plan_of(1.6, 3.1))
    start = plan_of(1.6, 1.1).scenes[1].start_frame
    assert torch.equal(frames_of(edited)[:start], frames_of(original)[:start])


def test_a_cut_forgets_and_without_one_the_past_is_seen(run):
    for cut in (True, False):
        scene = Scene(prompt="a bear", seconds=2.0, cut=cut)
        one, other = run(plan_of(1.0, 1.0, scene), [0, 1, 2]), run(plan_of(1.0, 1.0, scene), [8, 9, 2])
        assert not torch.equal(frames_of(one, [0, 1]), frames_of(other, [0, 1]))
        assert torch.equal(frames_of(one, [2]), frames_of(other, [2])) == cut
    longer = run(plan_of(1.0, 2.5, Scene(prompt="a bear", seconds=2.0, cut=True)), [8, 9, 2])
    shorter = run(plan_of(1.0, 1.0, Scene(prompt="a bear", seconds=2.0, cut=True)), [8, 9, 2])
    assert torch.equal(frames_of(longer, [2]), frames_of(shorter, [2]))


def test_the_seed_decides(run):
    planned = plan_of(1.6, 1.1)
    first, again, other = run(planned, seed=7), run(planned, seed=7), run(planned, seed=8)
    assert torch.equal(tokens_of(first), tokens_of(again)) and torch.equal(frames_of(first), frames_of(again))
    assert (tokens_of(first) != tokens_of(other)).float().mean() > 0.5


def test_scenes_of_one_prompt_have_noise_of_their_own(run):
    cut = Scene(prompt="a bear", seconds=1.6, cut=True)
    chunks = run(plan_of(cut, cut), [3, 3])
    first, second = [tokens_of([chunk for chunk in chunks if chunk.scene == scene]) for scene in (0, 1)]
    assert first.shape == second.shape and not torch.equal(first, second)


def test_noise_is_keyed_by_seed_scene_and_chunk_of_the_scene(run, monkeypatch):
    keys, fill = [], SceneFiller.fill

    def watching(self, num_slices, past, grid, key, known):
        keys.append(key)
        return fill(self, num_slices, past, grid, key, known)

    monkeypatch.setattr(SceneFiller, "fill", watching)
    planned = plan_of(1.6, 1.1)
    run(planned, seed=11)
    assert keys == [NoiseKey(11, scene.index, index) for scene in planned.scenes for index in range(len(scene.chunks))]
    assert len(set(keys)) == 5


def test_guidance_one_runs_one_branch(run, feature_calls):
    options = SamplingOptions(num_steps=4, guidance_scale=3.0)
    planned = plan_of(1.6)  # 3 chunks
    assert planned.num_chunks == 3
    run(planned, options=replace(options, guidance_scale=1.0))
    assert [batch for batch, _ in feature_calls] == [1] * 12
    feature_calls.clear()
    run(planned, options=options)  # the ramp begins at 1
    assert [batch for batch, _ in feature_calls] == [1, 2, 2, 2] * 3
    feature_calls.clear()
    run(planned, options=replace(options, guidance_ramp=False))
    assert [batch for batch, _ in feature_calls] == [2] * 12


def test_guidance_between_equal_texts_changes_nothing(tokenizer, generator):
    planned, text = plan_of(1.6), text_of(0)
    against_itself = replace(text, negative=(text.text, text.text_mask))
    guided = tokens_of(list(direct(planned, tokenizer, generator, [against_itself], OPTIONS, 7, GRID)))
    alone = tokens_of(list(direct(planned, tokenizer, generator, [text], replace(OPTIONS, guidance_scale=1.0), 7, GRID)))
    assert torch.equal(guided, alone)


@torch.no_grad()
@pytest.mark.parametrize("num_factors", [0, 1])
def test_guided_states_give_guided_logits(generator, num_factors):
    heads, features = generator.to_logits, torch.randn(4, 6, generator.config.dim)
    factors = [torch.randint(generator.config.factor_size, (2, 6)) for _ in range(num_factors)]
    both = heads(features, [factor.repeat(2, 1) for factor in factors])
    torch.testing.assert_close(guided_logits(heads, features, factors, 3.0), guided(*both.chunk(2), 3.0), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(guided_logits(heads, features, factors, 3.0), both[:2], atol=1e-3)


def test_negative_prompts_are_heard_whatever_their_length(tokenizer, generator):
    def tokens(negative):
        return tokens_of(list(direct(plan_of(1.6), tokenizer, generator, [replace(text_of(0), negative=negative)], OPTIONS, 7, GRID)))

    null = generator.null_text.detach(), torch.ones(1, 1, dtype=torch.bool)
    longer = text_of(3)
    assert torch.equal(tokens(None), tokens(null))
    assert not torch.equal(tokens(None), tokens((longer.text, longer.text_mask)))


def test_scenes_have_their_own_rounds_and_guidance(run, feature_calls):
    scenes = [
        Scene(prompt="a bear", seconds=0.625),
        Scene(prompt="a bear", seconds=0.75, num_steps=5, guidance_scale=1),
        Scene(prompt="a bear", seconds=0.75, guidance_scale=6),
    ]
    options = SamplingOptions(num_steps=3, guidance_scale=1.0)
    planned = plan_of(*scenes)
    assert [len(scene.chunks) for scene in planned.scenes] == [1, 1, 1]
    run(planned, options=options)
    assert [batch for batch, _ in feature_calls] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]


def test_what_is_held_does_not_grow(tokenizer, generator, monkeypatch):
    held, fill = [], SceneFiller.fill

    def watching(self, num_slices, past, grid, key, known):
        keys = [memory.keys.shape[2] for memory in past.decoder.memory if memory is not None]
        held.append((len(past.slices), max(keys, default=0)))
        return fill(self, num_slices, past, grid, key, known)

    monkeypatch.setattr(SceneFiller, "fill", watching)
    planned = plan_of(10.0, 5.0)
    for _ in direct(planned, tokenizer, generator, [text_of(0), text_of(1)], replace(OPTIONS, num_steps=1), 7, GRID):
        pass
    assert len(held) == planned.num_chunks > 20
    assert held[0] == (0, 0)
    assert set(held[1:]) == {(2, 2)}  # context_slices, window - 1


@torch.no_grad()
def test_streamed_frames_are_those_of_all_tokens_at_once(run, tokenizer):
    planned = plan_of(1.7, 1.3, Scene(prompt="a bear", seconds=1.9, cut=True))
    chunks = run(planned)
    for segment, scenes in enumerate([(0, 1), (2,)]):
        own = [chunk for chunk in chunks if chunk.scene in scenes]
        whole = tokenizer.decode(tokens_of(own)[None])[0].clamp(-1, 1).transpose(0, 1)
        frames = frames_of(own)
        assert len(frames) == planned.segment_frames[segment] <= len(whole)
        torch.testing.assert_close(frames, whole[: len(frames)], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_scene_starts_from_its_picture(run, tokenizer, context_calls, feature_calls):
    planned = plan_of(1.0, Scene(prompt="a bear", seconds=1.5, image="picture.png"))
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = next(chunk for chunk in run(planned, pictures={1: picture}) if chunk.scene == 1)
    tokens = tokenizer.encode(picture[None, :, None])
    assert first.chunk == -1 and first.start_frame == planned.scenes[1].start_frame == 8
    assert torch.equal(first.tokens, tokens[0])
    torch.testing.assert_close(first.frames[0], tokenizer.decode(tokens)[0, :, 0].clamp(-1, 1), atol=1e-5, rtol=1e-5)
    assert [kinds for kinds in context_calls if kinds[0] == FIRST][-1] == [FIRST]  # the picture is the first chunk's only past
    starts = [starts for _, starts in feature_calls]
    assert sum(starts) == OPTIONS.num_steps and all(starts[: OPTIONS.num_steps])  # only the very first chunk starts from nothing

    other = run(planned, pictures={1: -picture})
    assert torch.equal(frames_of(other, [0]), frames_of(run(planned, pictures={1: picture}), [0]))


@pytest.mark.parametrize("shape", [(3, 32, 40), (3, 16, 16), (4, 32, 32), (1, 3, 32, 32)])
def test_a_picture_of_another_size_is_refused(run, shape):
    planned = plan_of(Scene(prompt="a bear", seconds=1.5, image="picture.png"))
    message = rf"picture of shape \({', '.join(map(str, shape))}\): this story needs \(3, 32, 32\)"
    with pytest.raises(ValueError, match=message):
        run(planned, pictures={0: torch.zeros(shape)})


@torch.no_grad()
def test_a_scene_goes_on_from_a_video(run, tokenizer, context_calls, monkeypatch):
    contexts, encode_context = [], SceneFiller._context
    monkeypatch.setattr(SceneFiller, "_context", lambda self, past: contexts.append(list(past.slices)) or encode_context(self, past))
    planned = plan_of(1.0, Scene(prompt="a bear", seconds=1.5, video="clip.mp4"))
    frames = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    own = [chunk for chunk in run(planned, given={1: Given(start=frames)}) if chunk.scene == 1]
    tokens = tokenizer.encode(frames.transpose(0, 1)[None])
    assert torch.equal(own[0].tokens, tokens[0]) and own[0].start_frame == 8 and len(own[0].frames) == 1
    torch.testing.assert_close(own[0].frames[0], tokenizer.decode(tokens)[0, :, -1].clamp(-1, 1), atol=1e-5, rtol=1e-5)
    assert sum(len(chunk.frames) for chunk in own) == planned.scenes[1].num_frames == 12
    seen = contexts[len(planned.scenes[0].chunks)]  # of the scene's first chunk
    assert torch.equal(torch.stack(seen), tokens[0, -2:]), "the video's last slices are what it remembers"
    assert [ANCHOR, ORDINARY, ORDINARY] in context_calls, "the video's first slice is its anchor"
    together = torch.cat([tokens[0], *(chunk.tokens for chunk in own[1:])])
    whole = tokenizer.decode(together[None])[0].clamp(-1, 1).transpose(0, 1)[4:]
    torch.testing.assert_close(frames_of(own), whole[:12], atol=1e-5, rtol=1e-5)  # the decoder goes on too


@torch.no_grad()
@pytest.mark.parametrize("scene", [{}, {"image": "a.png"}])
def test_a_scene_ends_on_its_picture_which_is_seen_before(run, tokenizer, scene):
    planned = plan_of(Scene(prompt="a bear", seconds=1.5, end_image="b.png", **scene), 1.0)
    start, end = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ends = [run(planned, given={0: Given(start[None] if scene else None, picture)}) for picture in (end, -end)]
    for chunks, picture in zip(ends, (end, -end), strict=True):
        still = tokenizer.encode(picture[None, :, None].expand(-1, -1, 3, -1, -1))
        assert torch.equal(tokens_of([chunk for chunk in chunks if chunk.scene == 0])[-1], still[0, 1])
    last = len(planned.scenes[0].chunks) - 1 + bool(scene)
    before, with_it, after = (slice(0, last), slice(last, last + 1), slice(last + 1, last + 2))
    assert torch.equal(*(tokens_of(chunks[before]) for chunks in ends)), "earlier chunks know nothing of it"
    assert not torch.equal(*(tokens_of(chunks[with_it])[:-1] for chunks in ends)), "what lies before it in its chunk works towards it"
    assert not torch.equal(*(tokens_of(chunks[after]) for chunks in ends)), "the next scene goes on from it"


def test_an_end_of_another_size_is_refused(run):
    with pytest.raises(ValueError, match=r"picture of shape \(3, 16, 16\): this story needs \(3, 32, 32\)"):
        run(plan_of(Scene(prompt="a bear", seconds=1.5, end_image="b.png")), given={0: Given(end=torch.zeros(3, 16, 16))})


def test_the_anchor_is_shown_once_it_has_left_the_recent_slices(run, context_calls):
    scenes = [plan_of(1.5, 2.5), plan_of(1.5, Scene(prompt="a bear", seconds=2.5, cut=True))]
    for planned, cut in zip(scenes, (False, True), strict=True):
        context_calls.clear()
        run(planned)
        expected = []
        for scene in planned.scenes:
            first_slice = scene.chunks[0].start_slice
            for chunk in scene.chunks:
                recent = min(chunk.start_slice, 2)
                if not recent:
                    continue  # nothing has been seen: no context
                kinds = [FIRST if chunk.start_slice == recent else ORDINARY] + [ORDINARY] * (recent - 1)
                expected.append([ANCHOR, *kinds] if first_slice < chunk.start_slice - recent else kinds)
        assert context_calls == expected
        assert sum(kinds[0] == ANCHOR for kinds in expected) >= 2 and any(kinds[0] != ANCHOR for kinds in expected) != cut


def test_the_anchor_is_the_first_slice_of_its_scene(generator, run, monkeypatch):
    contexts, encode_context = [], generator.encode_context

    def watching(tokens, kinds):
        contexts.append((tokens[0], kinds))
        return encode_context(tokens, kinds)

    monkeypatch.setattr(generator, "encode_context", watching)
    planned = plan_of(1.5, 2.5)
    chunks = run(planned)
    made = tokens_of(chunks)
    filled = [chunk for scene in planned.scenes for chunk in scene.chunks if chunk.start_slice]
    for chunk, (tokens, kinds) in zip(filled, contexts, strict=True):
        assert torch.equal(tokens[-2:], made[chunk.start_slice - 2 : chunk.start_slice])
        if kinds[0] == ANCHOR:
            assert torch.equal(tokens[0], made[planned.scenes[chunk.scene].chunks[0].start_slice])


# Going on after chunks of an earlier run


@pytest.mark.parametrize("window", [0, 1, 4])
@torch.no_grad()
def test_a_story_goes_on_after_any_chunk_as_if_it_had_not_stopped(generator, window):
    model = build_tokenizer(replace(TOKENIZERS["default"], decoder_layers="st st t", window=window))
    frames = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cut = Scene(prompt="a bear", seconds=1.5, cut=True, end_image="b.png")
    planned = plan_of(1.6, 7.0, cut, Scene(prompt="a bear", seconds=2.0, image="a.png"), Scene(prompt="a bear", seconds=2.0, video="a.mp4"))
    given = {2: Given(end=frames[0]), 3: Given(frames[:1]), 4: Given(frames)}
    arguments = (planned, model, generator, [text_of(n) for n in range(5)], replace(OPTIONS, num_steps=1), 7, GRID, given)
    whole = list(direct(*arguments))
    assert len(whole) == planned.num_chunks + 2 > 20
    for done in range(len(whole) + 1):
        rest = list(itertools.islice(direct(*arguments, made=[chunk.tokens for chunk in whole[:done]]), 2))
        assert len(rest) == min(len(whole) - done, 2)
        for chunk, wanted in zip(rest, whole[done:], strict=False):
            assert torch.equal(chunk.tokens, wanted.tokens) and torch.equal(chunk.frames, wanted.frames)
            assert (chunk.scene, chunk.chunk, chunk.start_frame) == (wanted.scene, wanted.chunk, wanted.start_frame)


def test_going_on_decodes_and_fills_no_more_than_it_must(tokenizer, run, generator, feature_calls, monkeypatch):
    planned, decoded = plan_of(20.0), []
    whole, decode = list(run(planned)), tokenizer.decode
    feature_calls.clear()
    monkeypatch.setattr(tokenizer, "decode", lambda tokens, stream: decoded.append(tokens) or decode(tokens, stream))
    made = [chunk.tokens for chunk in whole[:-1]]
    rest = list(direct(planned, tokenizer, generator, [text_of(0)], OPTIONS, 7, GRID, made=made))
    assert len(rest) == 1 and len(feature_calls) == OPTIONS.num_steps and tokenizer.decoder_reach == 4
    assert [len(tokens[0]) for tokens in decoded] == [len(chunk.tokens) for chunk in whole[-5:]]


# Chunks that are partly known


BOX = torch.zeros(3, *GRID, dtype=torch.bool)
BOX[:, 1:3, :3] = True
KNOWN = {
    "first slice": continuation_mask((1, 3, *GRID), 1)[0],
    "both ends": between_mask((1, 3, *GRID))[0],
    "around a box": BOX,
    "a box": ~BOX,
}


def fill_with(generator, known, past=None, order="confidence"):
    filler = SceneFiller(generator, text_of(1), SamplingOptions(num_steps=4, guidance_scale=3.0, order=order))
    return filler.fill(3, past or Past(), GRID, NoiseKey(3, 0, 0), known)


@pytest.mark.parametrize("order", ["confidence", "halton"])
@pytest.mark.parametrize("hidden", KNOWN.values(), ids=KNOWN)
def test_what_is_known_of_a_chunk_stays_and_is_seen(generator, hidden, order):
    past = Past()
    past.remember(torch.randint(256, (2, *GRID)), 2)
    for before in (None, past):
        filled = []
        for seed in (0, 1):
            true = torch.randint(256, (3, *GRID), generator=torch.Generator().manual_seed(seed))
            filled.append(fill_with(generator, true.masked_fill(hidden, -1), before, order))
            assert torch.equal(filled[-1][~hidden], true[~hidden])
            assert ((filled[-1] >= 0) & (filled[-1] < 256)).all()
        assert not torch.equal(filled[0][hidden], filled[1][hidden]), "the known tokens are seen"


def test_nothing_known_is_as_if_it_were_not_given(generator):
    assert torch.equal(fill_with(generator, None), fill_with(generator, torch.full((3, *GRID), -1)))


def test_known_tokens_of_another_shape_are_refused(generator):
    with pytest.raises(ValueError, match=r"known tokens of shape \(2, 4, 4\): this chunk needs \(3, 4, 4\)"):
        fill_with(generator, torch.zeros(2, *GRID, dtype=torch.long))
