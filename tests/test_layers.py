"""Attention with rotary positions, the gated feed-forward, and where a token stands in the picture."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from phenaki.layers import (
    MOST_REMEMBERED,
    Attention,
    FeedForward,
    KeysValues,
    PlaceEmbedding,
    grid_positions,
    remembered,
    rotary_angles,
    rotary_turns,
    rotate,
    short_attention,
)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_rotary_inner_products_depend_on_the_distance_alone(axes):
    torch.manual_seed(0)
    query, key = torch.randn(2, 64, 16)
    here, there, shift = torch.randint(-9, 9, (3, 64, axes))

    def products(first, second):
        return (rotate(query, rotary_turns(first, 16)) * rotate(key, rotary_turns(second, 16))).sum(-1)

    torch.testing.assert_close(products(here, there), products(here + shift, there + shift), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(products(here, there), products(here, there + shift + 1), atol=1e-2)


def test_rotation_keeps_lengths_and_position_zero_is_no_rotation():
    x = torch.randn(5, 12)
    turns = rotary_turns(torch.arange(5.0)[:, None], 12)
    torch.testing.assert_close(rotate(x, turns).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate(x, turns)[0], x[0])


def test_every_axis_and_every_channel_pair_turns():
    for axes, head_dim in [(1, 8), (2, 10), (3, 16)]:
        angles = rotary_angles(torch.eye(axes), head_dim)  # row i: one step along axis i
        assert angles.shape == (axes, head_dim // 2)
        assert ((angles > 0).sum(0) == 1).all()  # each pair belongs to one axis
        counts = (angles > 0).sum(1)
        assert counts.max() - counts.min() <= 1 and torch.equal(counts, counts.sort(descending=True).values)
        assert torch.equal(angles.max(1).values, torch.ones(axes))  # the fastest pair turns by the position itself


def rms_normed(vector, weight):
    return vector / math.sqrt(vector.square().mean() + torch.finfo(torch.float32).eps) * weight


@torch.no_grad()
def test_attention_equals_a_slow_reference():
    torch.manual_seed(0)
    attention = Attention(12, heads=3, source_dim=10)
    attention.query_norm.weight.normal_()
    attention.key_norm.weight.normal_()
    x, source = torch.randn(2, 5, 12), torch.randn(2, 7, 10)
    mask = torch.rand(2, 1, 5, 7) < 0.6
    mask[..., 0] = True

    expected = torch.zeros(2, 5, 12)
    to_keys, to_values = attention.to_keys_values.weight[:12], attention.to_keys_values.weight[12:]
    for b in range(2):
        for i in range(5):
            heads = []
            for head in range(3):
                rows = slice(4 * head, 4 * head + 4)
                query = rms_normed(attention.to_queries.weight[rows] @ x[b, i], attention.query_norm.weight)
                seen = [j for j in range(7) if mask[b, 0, i, j]]
                keys = [rms_normed(to_keys[rows] @ source[b, j], attention.key_norm.weight) for j in seen]
                weights = torch.stack([query @ key / math.sqrt(4) for key in keys]).exp()
                values = torch.stack([to_values[rows] @ source[b, j] for j in seen])
                heads.append((weights / weights.sum()) @ values)
            expected[b, i] = attention.to_out.weight @ torch.cat(heads)

    actual = attention.attend(attention.queries(x), attention.keys_values(source), mask)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden", [0, 3])
def test_attention_by_products_and_sums_is_attention(hidden):
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    mask = None if not hidden else torch.arange(7)[None] >= torch.arange(5)[:, None] - hidden + 3
    made, wanted = (one(queries, keys, values, attn_mask=mask) for one in (short_attention, F.scaled_dot_product_attention))
    torch.testing.assert_close(made, wanted)
    gradients = [torch.autograd.grad(one.square().sum(), (queries, keys, values)) for one in (made, wanted)]
    torch.testing.assert_close(*gradients)
    half = (one.detach().bfloat16() for one in (queries, keys, values))
    torch.testing.assert_close(short_attention(*half, attn_mask=mask).float(), made.detach(), atol=2e-2, rtol=2e-2)


def test_keys_in_two_parts_are_the_keys_of_the_whole():
    attention = Attention(8, heads=2)
    x = torch.randn(3, 6, 8)
    whole, joined = attention.keys_values(x), attention.keys_values(x[:, :2]).followed_by(attention.keys_values(x[:, 2:]))
    torch.testing.assert_close(joined.keys, whole.keys)
    torch.testing.assert_close(joined.values, whole.values)
    twice = whole.repeated(2)
    assert isinstance(twice, KeysValues) and torch.equal(twice.keys, torch.cat([whole.keys, whole.keys]))


@pytest.mark.parametrize(("count", "kept"), [(0, 0), (2, 2), (5, 5), (6, 5)])
def test_the_last_keys_are_at_most_those_there_are(count, kept):
    whole = KeysValues(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4))
    last = whole.last(count)
    assert torch.equal(last.keys, whole.keys[:, :, 5 - kept :]) and torch.equal(last.values, whole.values[:, :, 5 - kept :])


def test_keys_are_turned_and_values_are_not():
    whole, turns = KeysValues(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)), rotary_turns(torch.arange(5.0)[:, None], 4)
    turned = whole.turned(turns)
    assert torch.equal(turned.keys, rotate(whole.keys, turns)) and not torch.equal(turned.keys, whole.keys)
    assert turned.values is whole.values


@pytest.mark.parametrize(("dim", "heads"), [(10, 3), (12, 4)])
def test_attention_refuses_heads_without_a_whole_even_width(dim, heads):
    with pytest.raises(ValueError, match=f"heads {heads}: each needs a whole, even part of dim {dim}"):
        Attention(dim, heads)


def test_swiglu_has_the_weights_of_an_mlp_and_its_formula():
    dim, mlp_dim = 20, 96
    layer = FeedForward(dim, mlp_dim)
    assert sum(p.numel() for p in layer.parameters()) == 2 * dim * mlp_dim
    uneven = sum(p.numel() for p in FeedForward(dim, 64).parameters())
    assert 0 <= 2 * dim * 64 - uneven < 3 * dim  # a whole number of hidden units: fewer than one is missing
    x = torch.randn(7, dim)
    value, gate = layer.to_hidden.weight[:64] @ x.T, layer.to_hidden.weight[64:] @ x.T
    expected = layer.to_out.weight @ (value * gate / (1 + (-gate).exp()))
    torch.testing.assert_close(layer(x), expected.T, atol=1e-5, rtol=1e-5)


def test_place_is_the_same_for_the_same_share_of_the_picture():
    place = PlaceEmbedding(16)
    coarse, fine = place(2, 4), place(6, 12)
    torch.testing.assert_close(fine[1::3, 1::3], coarse, atol=1e-4, rtol=1e-4)  # centres of blocks of 3x3
    torch.testing.assert_close(place(7, 3)[3, 1], place(1, 1)[0, 0], atol=1e-4, rtol=1e-4)  # the middle of the picture


def test_place_differs_everywhere_on_a_grid_and_tells_rows_from_columns():
    vectors = PlaceEmbedding(16)(8, 8)
    distances = torch.cdist(vectors.flatten(0, 1), vectors.flatten(0, 1))
    assert (distances + torch.eye(64) > 1e-2).all()
    assert not torch.allclose(vectors, vectors.transpose(0, 1), atol=1e-2)


def test_grid_positions_are_in_raster_order():
    assert grid_positions(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_what_is_reckoned_of_numbers_alone_is_kept_with_gradients_and_there_alone():
    known, asked = {}, []
    reckon = lambda number: asked.append(number) or torch.tensor(number)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert [remembered(known, 1, lambda: reckon(1)) for _ in range(2)] == [1, 1] and not known
    asked.clear()
    for number in (1, 1, 2, 1):
        assert remembered(known, number, lambda number=number: reckon(number)) == number
    assert asked == [1, 2]
    for number in range(3 * MOST_REMEMBERED):
        remembered(known, number, lambda number=number: reckon(number))
    assert len(known) <= MOST_REMEMBERED


def test_networks_keep_where_tokens_stand_and_give_the_same_bits(tokenizer, generator):
    """Whatever they met before: other shapes, a pass without gradients; copies too."""

    def features(network, t: int = 2, side: int = 4) -> torch.Tensor:
        tokens = torch.arange(t * side * side).view(1, t, side, side)
        text = network.encode_text(torch.ones(1, 5, 16), torch.ones(1, 5, dtype=torch.bool))
        return network.features(tokens, text, network.encode_context(tokens[:, :1], tokens.new_zeros(1)), False)

    passes = {generator: features, tokenizer: lambda network, t=2, side=4: network(torch.ones(1, 3, 2 * t - 1, 32, 32)).video}
    for network, forward in passes.items():
        fresh = copy.deepcopy(network)
        with torch.inference_mode():
            wanted = forward(network).clone()
        others = [forward(network, t=3), forward(network, t=1, side=2)]
        first, second = forward(network), forward(network)
        assert torch.equal(first, wanted) and torch.equal(second, wanted) and torch.equal(forward(fresh), wanted) and len(others) == 2
        second.sum().backward()
        forward(copy.deepcopy(network)).sum().backward()
        kept = [module._known for module in network.modules() if hasattr(module, "_known")]
        assert all(kept) and not any(value.requires_grad or value.is_inference() for known in kept for value in known.values())
