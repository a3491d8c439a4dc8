"""The generator: a cached context equals a joint pass, texts and conditions act where they should, probabilities sum to one."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from phenaki.layers import KeysValues, rotate
from phenaki.maskgit import ANCHOR, FIRST, ORDINARY, MaskGIT, MaskGITConfig, TokenEmbedding, split_token

KINDS = torch.tensor([ANCHOR, ORDINARY, ORDINARY])
MASK = 256  # the mask token


@pytest.fixture
def past():
    return torch.randint(256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def chunk():
    rng = torch.Generator().manual_seed(5)
    tokens = torch.randint(256, (2, 3, 4, 4), generator=rng)
    return tokens.masked_fill(torch.rand(2, 3, 4, 4, generator=rng) < 0.6, MASK)


@pytest.fixture
def text():
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = mask[1, 5:] = False
    return torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(6)), mask


def joint_pass(model, past, kinds, corruption, chunk, text, starts=False):
    """One uncached pass over [context; chunk]: context attends to context alone, and only the chunk attends to text.

    Returns the chunk's features and every layer's keys of the context positions.
    """
    (b, t, h, w), s = chunk.shape, past.shape[1]
    chunk_kinds = torch.tensor([FIRST if starts else ORDINARY] + [ORDINARY] * (t - 1))
    seen = model.token_embedding(past) + model.corruption_embedding(corruption)[:, None, None, None]
    asked = model.token_embedding(chunk) + model.time_embedding.weight[:t, None, None]
    x = torch.cat([seen, asked], dim=1) + model.slice_embedding(torch.cat([kinds, chunk_kinds]))[:, None, None] + model.place(h, w)
    x = x.reshape(b, (s + t) * h * w, -1)
    times = [-(model.config.context_slices + 1) if kind == ANCHOR else i - s for i, kind in enumerate(kinds)] + list(range(t))
    angles = model._turns(torch.tensor(times), h, w)
    in_context = torch.arange((s + t) * h * w) < s * h * w
    may_see = in_context[None, :] | ~in_context[:, None]  # (queries, keys)
    context_keys = []
    for layer in model.layers:
        normed = layer.attention_norm(x)
        own = layer.attention.keys_values(normed)
        own = KeysValues(rotate(own.keys, angles), own.values)
        context_keys.append(own.keys[:, :, in_context])
        x = x + layer.attention.attend(rotate(layer.attention.queries(normed), angles), own, may_see)
        queries = layer.text_attention.queries(layer.text_norm(x))
        told = layer.text_attention.attend(queries, layer.text_attention.keys_values(text[0]), text[1][:, None, None])
        x = x + told * ~in_context[:, None]
        x = x + layer.feed_forward(layer.feed_forward_norm(x))
    return model.norm(x)[:, ~in_context].reshape(b, t, h, w, -1), context_keys


@torch.no_grad()
@pytest.mark.parametrize("kinds", [[ANCHOR, ORDINARY, ORDINARY], [FIRST, ORDINARY], [ORDINARY]], ids=str)
@pytest.mark.parametrize("num_slices", [1, 3])
def test_cached_context_equals_a_joint_pass(generator, past, chunk, text, kinds, num_slices):
    past, chunk, corruption = past[:, : len(kinds)], chunk[:, :num_slices], torch.tensor([0, 3])
    context = generator.encode_context(past, torch.tensor(kinds), corruption)
    features = generator.features(chunk, generator.encode_text(*text), context, starts=False)
    expected, _ = joint_pass(generator, past, torch.tensor(kinds), corruption, chunk, text)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_context_knows_neither_text_nor_chunk(generator, past, chunk, text):
    clean = torch.zeros(2, dtype=torch.long)
    context = generator.encode_context(past, KINDS)  # clean by default
    other_text, other_chunk = (text[0].flip(0) * 2, text[1]), (chunk + 1) % 256
    for told, asked in [(text, chunk), (other_text, chunk), (text, other_chunk)]:
        _, keys = joint_pass(generator, past, KINDS, clean, asked, told)
        for actual, expected in zip(context.layers, keys, strict=True):
            torch.testing.assert_close(actual.keys, expected, atol=1e-5, rtol=1e-5)

    first = generator.features(chunk, generator.encode_text(*text), context, False)
    other = generator.features(chunk, generator.encode_text(*other_text), context, False)
    again = generator.features(chunk, generator.encode_text(*text), context, False)
    assert torch.equal(first, again)  # a cache is not used up or written to
    assert not torch.allclose(first, other, atol=1e-3)  # the chunk does hear the text


@torch.no_grad()
def test_features_depend_on_every_part_of_the_past(generator, past, chunk, text):
    told = generator.encode_text(*text)
    features = generator.features(chunk, told, generator.encode_context(past, KINDS), False)
    for index in range(3):
        changed = past.clone()
        changed[:, index] = (changed[:, index] + 1) % 256
        assert not torch.allclose(generator.features(chunk, told, generator.encode_context(changed, KINDS), False), features, atol=1e-3)
    for context in (
        None,
        generator.encode_context(past[:, 1:], KINDS[1:]),  # no anchor
        generator.encode_context(past, KINDS, torch.tensor([4, 4])),  # corrupted
        generator.encode_context(past, torch.tensor([ORDINARY] * 3)),  # the anchor as an ordinary slice
        generator.encode_context(past[:, [0, 2, 1]], KINDS),  # another order
    ):
        assert not torch.allclose(generator.features(chunk, told, context, False), features, atol=1e-4)
    assert not torch.allclose(generator.features(chunk, told, None, True), generator.features(chunk, told, None, False), atol=1e-4)


@torch.no_grad()
def test_anchor_stands_behind_the_recent_slices_however_many_there_are(generator):
    assert generator._context_times(KINDS).tolist() == [-3, -2, -1]
    assert generator._context_times(KINDS[:2]).tolist() == [-3, -1]
    assert generator._context_times(torch.tensor([FIRST, ORDINARY])).tolist() == [-2, -1]


@torch.no_grad()
def test_a_context_repeats_for_a_larger_batch(generator, past, chunk, text):
    told, context = generator.encode_text(*text), generator.encode_context(past, KINDS)
    features = generator.features(chunk, told, context, False)
    told_twice = generator.encode_text(text[0].repeat(2, 1, 1), text[1].repeat(2, 1))
    twice = generator.features(chunk.repeat(2, 1, 1, 1), told_twice, context.repeated(2), False)
    torch.testing.assert_close(twice, features.repeat(2, 1, 1, 1, 1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_of_a_text_has_no_influence(generator, chunk, text):
    features = generator.features(chunk, generator.encode_text(*text), None, True)
    garbage = torch.where(text[1][..., None], text[0], 1e3)
    padded = generator.features(chunk, generator.encode_text(garbage, text[1]), None, True)
    torch.testing.assert_close(padded, features, atol=1e-5, rtol=1e-5)
    shorter = generator.features(chunk[:1], generator.encode_text(text[0][:1, :4], text[1][:1, :4]), None, True)
    torch.testing.assert_close(shorter, features[:1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_dropped_text_is_the_null_text(generator, chunk, text):
    dropped, dropped_mask = generator.drop_text(*text, torch.tensor([True, False]))
    assert torch.equal(dropped[1], text[0][1]) and torch.equal(dropped_mask[1], text[1][1])
    assert dropped_mask[0].tolist() == [True] + [False] * 5
    assert torch.equal(dropped[0, 0], generator.null_text[0, 0])
    features = generator.features(chunk, generator.encode_text(dropped, dropped_mask), None, True)
    null = generator.features(chunk, generator.encode_text(*(part.expand(2, *part.shape[1:]) for part in generator.no_text())), None, True)
    torch.testing.assert_close(features[0], null[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(features[1], null[1], atol=1e-3)


@torch.no_grad()
def test_tokens_are_sums_of_factor_vectors_and_the_mask_token_has_its_own():
    embedding = TokenEmbedding(MaskGITConfig(codebook_size=64, token_factors=3, dim=8, heads=2))
    first, second, third = (factor.weight for factor in embedding.factors)
    for token in (0, 1, 27, 63):
        expected = first[token % 4] + second[token // 4 % 4] + third[token // 16]
        torch.testing.assert_close(embedding(torch.tensor([token]))[0], expected)
    assert torch.equal(embedding(torch.tensor([64]))[0], embedding.mask)
    vectors = embedding(torch.arange(65))
    assert (torch.cdist(vectors, vectors) + torch.eye(65) > 1e-3).all()


@pytest.mark.parametrize(("factor_size", "num_factors"), [(7, 1), (5, 2), (3, 4)])
def test_digits_join_to_their_token(factor_size, num_factors):
    tokens = torch.arange(factor_size**num_factors)
    digits = split_token(tokens, factor_size, num_factors)
    assert len(digits) == num_factors and all(digit.min() >= 0 and digit.max() < factor_size for digit in digits)
    assert torch.equal(sum(digit * factor_size**place for place, digit in enumerate(digits)), tokens)


@torch.no_grad()
@pytest.mark.parametrize(("codebook_size", "token_factors"), [(9, 1), (9, 2), (8, 3)])
def test_probabilities_of_all_tokens_sum_to_one(codebook_size, token_factors):
    torch.manual_seed(0)
    config = MaskGITConfig(codebook_size=codebook_size, token_factors=token_factors, dim=16, depth=1, heads=2, mlp_dim=32, text_dim=8)
    heads = MaskGIT(config)
    for head in heads.to_logits.heads:
        head.weight.normal_()
    features = torch.randn(5, 16)
    joint = torch.stack([heads.score(features, torch.full((5,), token)).log_probs.sum(0) for token in range(codebook_size)])
    torch.testing.assert_close(joint.exp().sum(0), torch.ones(5))
    assert joint.exp().std() > 0.01


@torch.no_grad()
def test_log_probs_by_hand(generator):
    features, tokens = torch.randn(6, 32), torch.randint(256, (6,))
    log_probs = generator.score(features, tokens).log_probs
    assert log_probs.shape == (2, 6)
    heads = generator.to_logits
    for row, token, actual in zip(features, tokens, log_probs.T, strict=True):
        first, second = token % 16, token // 16
        mixed = row + heads.earlier[0].weight[first]
        mixed = mixed + heads.mixers[0](heads.norms[0](mixed))
        expected = [F.log_softmax(heads.heads[0](row), dim=-1)[first], F.log_softmax(heads.heads[1](mixed), dim=-1)[second]]
        torch.testing.assert_close(actual, torch.stack(expected), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_tokens_are_told_apart_when_everything_is_hidden(generator):
    hidden = torch.full((1, 3, 4, 4), MASK)
    features = generator.features(hidden, generator.encode_text(*generator.no_text()), None, True).flatten(0, 3)
    distances = torch.cdist(features, features)
    pairs = list(itertools.combinations(range(48), 2))
    assert min(distances[i, j].item() for i, j in pairs) > 0.01


@torch.no_grad()
def test_condition_is_shown_at_hidden_tokens_only(generator, chunk, text):
    told = generator.encode_text(*text)
    features = generator.features(chunk, told, None, True)
    hidden, rough = chunk == MASK, (torch.arange(96) % 256).view(2, 3, 4, 4)

    at_known = rough.masked_fill(hidden, -1)
    assert torch.equal(generator.features(chunk, told, None, True, at_known), features)
    assert torch.equal(generator.features(chunk, told, None, True, torch.full_like(rough, -1)), features)
    shown = generator.features(chunk, told, None, True, rough)
    assert not torch.allclose(shown, features, atol=1e-3)
    assert torch.equal(generator.features(chunk, told, None, True, rough.masked_fill(~hidden, 77)), shown)
    as_known = generator.features(torch.where(hidden, rough, chunk), told, None, True)
    assert not torch.allclose(as_known, shown, atol=1e-3)  # marked as rough, not as known

    generator.condition_embedding.zero_()
    unmarked = generator.features(chunk, told, None, True, rough)
    torch.testing.assert_close(unmarked, as_known, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_chunk_that_is_too_long_is_refused(generator):
    with pytest.raises(ValueError, match="a chunk of 4 slices: this generator fills at most 3 at once"):
        generator.features(torch.zeros(1, 4, 4, 4, dtype=torch.long), generator.encode_text(*generator.no_text()), None, True)


@pytest.mark.parametrize("shape", [(1, 6, 12), (6, 16)])
def test_text_of_another_width_is_refused(generator, shape):
    with pytest.raises(ValueError, match=r"this generator needs \(b, l, 16\)"):
        generator.encode_text(torch.zeros(shape), torch.ones(shape[:-1], dtype=torch.bool))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cond_drop_prob": 1.0}, "cond_drop_prob 1.0: needed at least 0 and below 1"),
        ({"cond_drop_prob": -0.1}, "cond_drop_prob -0.1"),
        ({"chunk_slices": 0}, "chunk_slices 0: needed at least 1"),
        ({"context_slices": -1}, "context_slices -1: needed at least 0"),
        ({"codebook_size": 1000, "token_factors": 2}, "codebook_size 1000 is not a whole number to the power of token_factors 2"),
    ],
)
def test_wrong_configurations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskGITConfig(**settings)


@pytest.mark.parametrize(("codebook_size", "token_factors", "size"), [(8192, 1, 8192), (4**10, 2, 1024), (1000, 3, 10), (2**60, 3, 2**20)])
def test_factor_size_is_an_exact_root(codebook_size, token_factors, size):
    assert MaskGITConfig(codebook_size=codebook_size, token_factors=token_factors).factor_size == size
