"""The Frechet distance: against scipy's matrix square root, against closed forms, and where covariances have no inverse."""

import numpy as np
import pytest
import scipy.linalg
import torch

from phenaki.evaluation.frechet import bootstrap_frechet, frechet_distance


def drawn(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Correlated features (count, width), float64."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=rng, dtype=torch.float64)
    return scale * torch.randn(count, width, generator=rng, dtype=torch.float64) @ mix + shift


def by_sqrtm(first: torch.Tensor, second: torch.Tensor) -> float:
    """The textbook formula with a matrix square root."""
    a, b = first.numpy(), second.numpy()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * np.trace(root.real))


def exactly(mean: float, deviations: list[float], count: int = 64) -> torch.Tensor:
    """Features whose mean is `mean` everywhere and whose covariance is diagonal with exactly these deviations."""
    rng = torch.Generator().manual_seed(5)
    raw = torch.randn(count, len(deviations), generator=rng, dtype=torch.float64)
    white = torch.linalg.qr(raw - raw.mean(dim=0)).Q * (count - 1) ** 0.5
    return white * torch.tensor(deviations, dtype=torch.float64) + mean


@pytest.mark.parametrize(("count", "other"), [(50, 50), (40, 90), (13, 200)])
def test_agrees_with_the_matrix_square_root(count, other):
    first, second = drawn(count, 12, 1), drawn(other, 12, 2, scale=1.5, shift=0.3)
    assert frechet_distance(first, second) == pytest.approx(by_sqrtm(first, second), rel=1e-8)


def test_agrees_with_the_square_root_of_the_matrices_where_there_are_fewer_videos_than_features():
    """The product of such covariances is singular; (C1^1/2 C2 C1^1/2)^1/2 by eigenvalues is a slow way around that."""
    first, second = drawn(6, 20, 1), drawn(9, 20, 2, shift=0.5)
    ca, cb = (np.cov(one.numpy(), rowvar=False) for one in (first, second))
    values, vectors = np.linalg.eigh(ca)
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(half @ cb @ half).clip(0)).sum()
    expected = float((first.mean(0) - second.mean(0)).square().sum()) + np.trace(ca) + np.trace(cb) - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_gaussians_with_a_closed_form():
    """Diagonal covariances: squared distance of the means plus that of the deviations."""
    first, second = exactly(0.0, [1.0, 2.0, 3.0]), exactly(0.5, [2.0, 2.0, 0.5])
    assert frechet_distance(first, second) == pytest.approx(3 * 0.25 + 1.0 + 0.0 + 6.25, rel=1e-9)
    assert frechet_distance(first, first + 2.0) == pytest.approx(12.0, rel=1e-9)
    assert frechet_distance(first, 3 * first) == pytest.approx(4 * (1 + 4 + 9), rel=1e-9)


@pytest.mark.parametrize("count", [3, 30])
def test_equal_sets_are_at_no_distance_and_order_does_not_matter(count):
    first, second = drawn(count, 10, 3), drawn(count, 10, 4)
    assert frechet_distance(first, first.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)
    assert frechet_distance(first, second) > 1


def test_large_features_in_float32_lose_nothing():
    first = exactly(0.0, [1.0, 2.0]).float() + 1000
    assert frechet_distance(first, first + 1) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (torch.zeros(1, 4), torch.zeros(5, 4), "at least 2"),
        (torch.zeros(5, 4), torch.zeros(5, 3), "needed"),
        (torch.full((5, 4), float("nan")), torch.zeros(5, 4), "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, said):
    with pytest.raises(ValueError, match=said):
        frechet_distance(first, second)


def test_the_interval_holds_the_value_and_narrows_with_more_clips():
    def width(count: int) -> float:
        truth = drawn(count, 4, 7)
        found = bootstrap_frechet(truth, truth + 0.5 + 0.3 * drawn(count, 4, 8), replicates=60)
        assert 0 <= found.low < found.value < found.high
        assert found.value == frechet_distance(truth, truth + 0.5 + 0.3 * drawn(count, 4, 8))
        return found.high - found.low

    assert width(800) < width(50) / 2  # a fourth would be expected


def test_the_interval_covers_the_true_distance_about_as_often_as_it_says():
    """Pairs of two Gaussians whose distance is known, one the other shifted by (1, 1) with noise of deviation 1 on top: 2 + 2 (sqrt 2 - 1)^2."""
    exact, hits = 2 + 2 * (2**0.5 - 1) ** 2, 0
    for trial in range(40):
        rng = torch.Generator().manual_seed(trial)
        truth = torch.randn(300, 2, generator=rng, dtype=torch.float64)
        made = truth + 1 + torch.randn(300, 2, generator=rng, dtype=torch.float64)
        found = bootstrap_frechet(truth, made, replicates=80, seed=trial)
        hits += found.low <= exact <= found.high
    assert hits >= 34  # 38 expected of 40; 33 or fewer come up once in a hundred tries at 95%


def test_the_same_seed_gives_the_same_interval_and_pairs_must_match():
    truth, made = drawn(20, 3, 1), drawn(20, 3, 2)
    assert bootstrap_frechet(truth, made, replicates=20) == bootstrap_frechet(truth, made, replicates=20)
    assert bootstrap_frechet(truth, made, replicates=20) != bootstrap_frechet(truth, made, replicates=20, seed=1)
    with pytest.raises(ValueError, match="pairs"):
        bootstrap_frechet(truth, made[:10])
