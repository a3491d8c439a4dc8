"""Estimates of grouped observations: against numpy, against a slow bootstrap, and what grouping does to an interval."""

import numpy as np
import pytest
import torch

from phenaki.evaluation.bootstrap import Estimate, bootstrap, mean_estimate, quantile_estimate, ratio_estimate, slope_estimate

NOTHING = Estimate(None, None, None, 0)


def observations(num_groups: int, per_group: int, seed: int = 0) -> tuple[list[int], list[float]]:
    rng = np.random.default_rng(seed)
    return [group for group in range(num_groups) for _ in range(per_group)], rng.integers(0, 20, num_groups * per_group).astype(float).tolist()


def test_values_are_numpy_s():
    groups, values = observations(9, 5)
    assert mean_estimate(groups, values).value == pytest.approx(np.mean(values))
    for share in (0.1, 0.5, 0.9, 1.0):
        assert quantile_estimate(groups, values, share).value == np.quantile(values, share, method="inverted_cdf")
    assert mean_estimate(groups, values).n == 45


def test_replicates_are_those_of_a_slow_bootstrap():
    """Groups of unlike size, drawn by hand with the same stream of numbers."""
    groups, values = [3, 3, 3, 7, 9, 9], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    members = {group: [value for one, value in zip(groups, values, strict=True) if one == group] for group in (3, 7, 9)}
    draws = torch.randint(3, (50, 3), generator=torch.Generator().manual_seed(4)).tolist()
    drawn = [[value for index in draw for value in members[(3, 7, 9)[index]]] for draw in draws]
    weighted = torch.tensor(values, dtype=torch.float64)
    found = bootstrap(groups, lambda weights: (weights @ weighted) / weights.sum(1), replicates=50, seed=4)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile([np.mean(some) for some in drawn], [0.025, 0.975])))


def test_a_quantile_s_replicates_are_quantiles_of_what_was_drawn():
    groups, values = observations(6, 3, seed=2)
    draws = torch.randint(6, (1000, 6), generator=torch.Generator().manual_seed(0)).tolist()
    medians = [np.quantile([value for index in draw for value in values[3 * index : 3 * index + 3]], 0.5, method="inverted_cdf") for draw in draws]
    found = quantile_estimate(groups, values, 0.5)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(medians, [0.025, 0.975])))


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        values = (rng.random(60) < 0.7).astype(float)
        found = mean_estimate(range(60), values.tolist())
        covered += found.low <= 0.7 <= found.high
    assert 88 <= covered <= 100


def test_scenes_of_one_story_that_agree_are_no_further_witnesses():
    rng = np.random.default_rng(3)
    stories = (rng.random(40) < 0.6).astype(float)
    alone = mean_estimate(range(40), stories.tolist())
    repeated = mean_estimate(np.repeat(range(40), 4).tolist(), np.repeat(stories, 4).tolist())
    assert (repeated.value, repeated.low, repeated.high) == pytest.approx((alone.value, alone.low, alone.high))
    independent = mean_estimate(range(160), np.repeat(stories, 4).tolist())
    assert independent.high - independent.low < 0.7 * (repeated.high - repeated.low)


def test_a_ratio_is_of_pooled_means():
    found = ratio_estimate([0, 1], [(6.0, 2), (0.0, 0)], [(2.0, 4), (2.0, 4)])
    assert found.value == pytest.approx((6 / 2) / (4 / 8))
    equal = ratio_estimate(range(5), [(3.0 * i, i) for i in range(1, 6)], [(2.0, 1)] * 5)
    assert (equal.value, equal.low, equal.high) == pytest.approx((1.5, 1.5, 1.5))


def test_where_there_is_nothing_there_is_no_value():
    assert mean_estimate([], []) == quantile_estimate([], [], 0.5) == ratio_estimate([], [], []) == NOTHING
    assert ratio_estimate([0, 1], [(0.0, 0)] * 2, [(1.0, 1)] * 2) == Estimate(None, None, None, 2), "no joins"
    assert ratio_estimate([0, 1], [(1.0, 1)] * 2, [(0.0, 8)] * 2) == Estimate(None, None, None, 2), "a still video"


def test_a_draw_that_leaves_nothing_is_left_out():
    """Half of the draws of these two stories can hold no join at all."""
    found = ratio_estimate([0, 1], [(6.0, 2), (0.0, 0)], [(2.0, 4), (2.0, 4)])
    assert found.low == found.high == pytest.approx(6.0)


def test_a_slope_is_numpy_s_and_lines_have_levels_of_their_own():
    rng = np.random.default_rng(3)
    times, values = rng.random(12), rng.random(12)
    one = slope_estimate(range(12), [0] * 12, times.tolist(), values.tolist())
    assert one.value == pytest.approx(np.polyfit(times, values, 1)[0]) and one.low < one.value < one.high and one.n == 12
    levels = [5.0] * 6 + [-40.0] * 6
    shifted = slope_estimate(range(12), [7] * 6 + [2] * 6, times.tolist(), (values + levels).tolist())
    dummies = np.stack([times, np.arange(12) < 6, np.arange(12) >= 6], axis=1)
    assert shifted.value == pytest.approx(np.linalg.lstsq(dummies, values, rcond=None)[0][0])
    exact = slope_estimate(range(6), [0, 0, 0, 1, 1, 1], [0, 1, 2] * 2, [1, 3, 5, 9, 11, 13])
    assert (exact.value, exact.low, exact.high) == pytest.approx((2, 2, 2))


def test_labels_of_other_kinds_move_the_level_too():
    rng = np.random.default_rng(4)
    times, places, actors = rng.random(60), rng.integers(0, 3, 60), rng.integers(0, 4, 60)
    values = 0.7 * times + np.array([0, 5, -3])[places] + np.array([1, 0, 9, 2])[actors]
    kinds = [[f"place {one}" for one in places], [f"actor {one}" for one in actors]]
    found = slope_estimate([*range(30)] * 2, [0] * 60, times.tolist(), values.tolist(), *kinds)
    assert (found.value, found.low, found.high) == pytest.approx((0.7, 0.7, 0.7)) and found.n == 60
    noisy = values + rng.normal(size=60)
    dummies = np.concatenate([times[:, None], np.eye(3)[places], np.eye(4)[actors]], axis=1)
    found = slope_estimate(range(60), [0] * 60, times.tolist(), noisy.tolist(), *kinds)
    assert found.value == pytest.approx(np.linalg.lstsq(dummies, noisy, rcond=None)[0][0]) and found.low < found.value < found.high
    explained = slope_estimate(range(6), [0] * 6, [0.0, 1.0] * 3, [1.0, 2.0] * 3, ["early", "late"] * 3)
    assert explained == Estimate(None, None, None, 6), "what the labels say of the times leaves nothing"


def test_a_slope_s_replicates_are_slopes_of_what_was_drawn():
    groups, times, values = [0, 0, 1, 1, 1, 2], [0.0, 0.1, 0.4, 0.5, 0.6, 1.0], [3.0, 1.0, 2.0, 5.0, 4.0, 9.0]
    draws = torch.randint(3, (1000, 3), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = [[index for group in draw for index, one in enumerate(groups) if one == group] for draw in draws]
    slopes = [np.polyfit(np.array(times)[some], np.array(values)[some], 1)[0] for some in drawn if len({times[index] for index in some}) > 1]
    found = slope_estimate(groups, [0] * 6, times, values)
    assert len(slopes) < 1000 and (found.low, found.high) == pytest.approx(tuple(np.quantile(slopes, [0.025, 0.975])))


def test_without_two_times_in_a_line_there_is_no_slope():
    assert slope_estimate([], [], [], []) == NOTHING
    assert slope_estimate([0, 1], [0, 1], [0.0, 1.0], [1.0, 2.0]) == Estimate(None, None, None, 2)
    assert slope_estimate([0, 1], [0, 0], [0.5, 0.5], [1.0, 2.0]) == Estimate(None, None, None, 2)


def test_one_story_says_nothing_of_others():
    for found in (mean_estimate([3, 3, 3], [0.0, 1.0, 1.0]), slope_estimate([0, 0], [0, 0], [0.0, 1.0], [1.0, 2.0])):
        assert found.value is not None and found.low is None and found.high is None
