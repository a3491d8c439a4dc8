"""Schedules, training masks, the Halton order and the masks of the tasks. True = hidden."""

import math
from itertools import pairwise

import pytest
import torch

from phenaki import masking
from phenaki.masking import (
    MASK_SCHEDULES,
    between_mask,
    continuation_mask,
    halton_order,
    hide_within,
    mask_schedule,
    num_hidden_after,
    random_boxes,
    training_mask,
)


@pytest.mark.parametrize("name", MASK_SCHEDULES)
def test_schedules_fall_from_one_to_zero(name):
    shares = [mask_schedule(name)(step / 100) for step in range(101)]
    assert shares[0] == 1 and abs(shares[-1]) < 1e-12
    assert all(later < earlier for earlier, later in pairwise(shares))


def test_the_cosine_is_that_of_maskgit():
    assert mask_schedule("cosine")(1 / 3) == pytest.approx(math.sqrt(3) / 2)
    assert mask_schedule("cosine")(1 / 2) == pytest.approx(math.sqrt(1 / 2))


def test_an_unknown_schedule_is_told_the_known_ones():
    with pytest.raises(ValueError, match="mask schedule 'sine'; known: cosine, linear, square, square_root"):
        mask_schedule("sine")


@pytest.mark.parametrize("name", MASK_SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 5, 12, 48, 100])
def test_every_round_reveals_at_least_one_and_the_last_all(name, num_steps):
    for num_tokens in (1, 2, 7, 16, 48, 97):
        hidden = [num_tokens, *(num_hidden_after(step, num_steps, num_tokens, MASK_SCHEDULES[name]) for step in range(num_steps))]
        assert hidden[-1] == 0
        assert all(later < earlier or earlier == 0 for earlier, later in pairwise(hidden))
        scheduled = [MASK_SCHEDULES[name](step / num_steps) * num_tokens for step in range(num_steps)]
        assert all(count <= most for count, most in zip(hidden[:-1], scheduled, strict=True))


def test_hidden_counts_of_few_rounds_are_those_of_the_schedule():
    assert [num_hidden_after(step, 4, 100, MASK_SCHEDULES["cosine"]) for step in range(4)] == [92, 70, 38, 0]
    assert [num_hidden_after(step, 4, 100, MASK_SCHEDULES["linear"]) for step in range(4)] == [75, 50, 25, 0]


@pytest.mark.parametrize("per_slice_prob", [0.0, 0.5, 1.0])
def test_training_masks_hide_two_over_pi_on_average(per_slice_prob):
    masks = training_mask((4000, 3, 4, 4), torch.Generator().manual_seed(0), per_slice_prob)
    assert masks.shape == (4000, 3, 4, 4) and masks.dtype == torch.bool
    assert masks.float().mean().item() == pytest.approx(2 / math.pi, abs=0.02)
    shares = masks[:, 0].flatten(1).float().mean(1)  # from hardly any to all
    for share in (4.5 / 16, 8.5 / 16, 12.5 / 16):  # P(cos(pi/2 u) <= share) = 1 - acos(share) * 2 / pi, between two counts of 16
        assert (shares <= share).float().mean().item() == pytest.approx(1 - math.acos(share) * 2 / math.pi, abs=0.025)


def test_every_training_mask_hides_something():
    for shape in [(3000, 1, 1, 1), (3000, 1, 1, 2), (3000, 2, 2, 2)]:
        assert training_mask(shape, torch.Generator().manual_seed(0), 0.5).flatten(1).any(1).all()


@pytest.mark.parametrize(("per_slice_prob", "least", "most"), [(0.0, 0.95, 1.0), (1.0, -0.1, 0.1), (0.5, 0.35, 0.65)])
def test_slices_share_a_ratio_or_have_their_own(per_slice_prob, least, most):
    masks = training_mask((2000, 2, 12, 12), torch.Generator().manual_seed(0), per_slice_prob)
    shares = masks.flatten(2).float().mean(2)  # (b, t)
    assert least <= torch.corrcoef(shares.T)[0, 1] <= most


def test_training_masks_follow_their_generator():
    masks = [training_mask((4, 2, 4, 4), torch.Generator().manual_seed(seed), 0.5) for seed in (5, 5, 6)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_the_halton_order_of_a_shape_is_reckoned_once_and_no_caller_can_spoil_it(monkeypatch):
    first = halton_order(3, 5, 7)
    wanted = first.clone()
    first.zero_()
    monkeypatch.setattr(masking, "_radical_inverse", None)
    assert torch.equal(halton_order(3, 5, 7), wanted)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 8, 8), (3, 4, 4), (5, 2, 7)])
def test_halton_order_is_a_permutation(shape):
    ranks = halton_order(*shape)
    assert sorted(ranks.tolist()) == list(range(math.prod(shape)))


def test_halton_prefixes_are_spread():
    positions = halton_order(1, 8, 8).argsort()  # in the order they are taken
    rows, columns = positions // 8, positions % 8
    assert rows[:3].tolist() == [4, 2, 6] and columns[:3].tolist() == [2, 5, 0]  # bases 2 and 3 from index 1
    assert set(rows[:8].tolist()) == set(columns[:8].tolist()) == set(range(8))  # 8 tokens: one in each row, one in each column
    for count in range(8, 65):  # every quarter of the picture has its share, give or take two
        quarters = torch.bincount(rows[:count] // 4 * 2 + columns[:count] // 4, minlength=4)
        assert (quarters - count / 4).abs().max() <= 2
    raster = torch.bincount(torch.arange(16) // 8 // 4 * 2 + torch.arange(16) % 8 // 4, minlength=4)
    assert (raster - 4).abs().max() > 2  # which raster order does not give


def test_halton_prefixes_are_spread_over_time():
    slices = halton_order(4, 8, 8).argsort() // 64
    for count in range(8, 257, 8):
        assert (torch.bincount(slices[:count], minlength=4) - count / 4).abs().max() <= 4


def test_continuation_hides_all_but_the_first_slices():
    mask = continuation_mask((2, 5, 3, 4), 2)
    assert mask.shape == (2, 5, 3, 4)
    assert not mask[:, :2].any() and mask[:, 2:].all()
    assert continuation_mask((1, 2, 2, 2), 0).all()


def test_between_hides_all_but_both_ends():
    for known in (1, 2):
        mask = between_mask((2, 5, 3, 4), known)
        assert mask[0, :, 0, 0].tolist() == [known <= t < 5 - known for t in range(5)]
        assert torch.equal(mask, mask[:1, :, :1, :1].expand(2, 5, 3, 4))


@pytest.mark.parametrize(("height", "width"), [(4, 6), (1, 5), (5, 1), (1, 2), (2, 2)])
def test_random_boxes_are_boxes_of_every_size_and_place_but_the_whole(height, width):
    boxes = random_boxes(4000, height, width, torch.Generator().manual_seed(0))
    assert boxes.shape == (4000, 1, height, width) and boxes.dtype == torch.bool
    seen = set()
    for box in boxes[:, 0]:
        rows, columns = box.any(1).nonzero().flatten().tolist(), box.any(0).nonzero().flatten().tolist()
        top, left, tall, wide = rows[0], columns[0], len(rows), len(columns)
        assert box[top : top + tall, left : left + wide].all() and box.sum() == tall * wide
        seen.add((top, left, tall, wide))
    sizes = [(tall, wide) for tall in range(1, height + 1) for wide in range(1, width + 1) if (tall, wide) != (height, width)]
    assert seen == {(top, left, tall, wide) for tall, wide in sizes for top in range(height - tall + 1) for left in range(width - wide + 1)}


def test_a_picture_of_one_token_has_no_box():
    with pytest.raises(ValueError, match="a picture of 1 x 1 tokens"):
        random_boxes(3, 1, 1, torch.Generator())


def test_a_mask_is_kept_to_its_region():
    rng = torch.Generator().manual_seed(0)
    mask = torch.rand((500, 3, 4, 4), generator=rng) < torch.rand((500, 1, 1, 1), generator=rng) ** 4
    region = random_boxes(500, 4, 4, rng).expand(-1, 3, -1, -1)
    kept = hide_within(mask, region)
    met = (mask & region).flatten(1).any(1)
    assert 50 < met.sum() < 450
    assert torch.equal(kept[met], (mask & region)[met]) and torch.equal(kept[~met], region[~met])
