"""The Frechet distance between two sets of features, as in FID and FVD, with a bootstrap interval.

FVD (Unterthiner et al. 2018, arXiv 1812.01717) is this distance between the features that a video network gives to real
and to made videos. It falls as the number of videos grows, so a value means nothing without that number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance of the Gaussians with the means and covariances of two sets of features, (n d) and (m d).

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)  (Dowson and Landau 1982), in float64. The square root of a product of
    covariances is never formed: with C1 = A'A and C2 = B'B the eigenvalues of C1 C2 are the squared singular values of AB',
    so the last trace is the sum of the singular values of AB'. That stays exact where there are fewer videos than features
    and the covariances have no inverse.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features of shapes {tuple(first.shape)} and {tuple(second.shape)}: needed (n d) and (m d)")
    if min(len(first), len(second)) < 2:
        raise ValueError(f"{len(first)} and {len(second)} videos: a Frechet distance needs at least 2 of each")
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise ValueError("features that are not finite: the distance would mean nothing")
    first_mean, first_root = _mean_and_root(first)
    second_mean, second_root = _mean_and_root(second)
    cross = torch.linalg.svdvals(first_root @ second_root.T).sum()
    distance = (first_mean - second_mean).square().sum() + first_root.square().sum() + second_root.square().sum() - 2 * cross
    return max(float(distance), 0.0)  # equal sets give a rounding error of either sign


def _mean_and_root(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and a matrix A with A'A = covariance, of at most d rows, both float64."""
    features = features.to("cpu", torch.float64)
    mean = features.mean(dim=0)
    centred = (features - mean) / (len(features) - 1) ** 0.5
    tall = centred.shape[0] > centred.shape[1]
    return mean, torch.linalg.qr(centred, mode="r").R if tall else centred


def bootstrap_frechet(truth: Tensor, made: Tensor, *, replicates: int = 200, seed: int = 0) -> Interval:
    """The distance between features of true videos and of their reconstructions, (n d) each, row i of both being of one video.

    Replicates draw n videos with replacement, a truth together with its reconstruction. Repeated videos make the covariances
    of a replicate narrower in rank, which raises the distance by itself (the bias of a small n once more); so the replicates
    give only the spread: their 2.5th and 97.5th percentile, moved so that their mean is the value. The bias of the value for
    small n is not in the interval.
    """
    if len(truth) != len(made):
        raise ValueError(f"features of {len(truth)} true and {len(made)} made videos: reconstructions come in pairs with the truth")
    value = frechet_distance(truth, made)
    rng = torch.Generator().manual_seed(seed)
    draws = (torch.randint(len(truth), (len(truth),), generator=rng) for _ in range(replicates))
    spread = torch.tensor([frechet_distance(truth[draw], made[draw]) for draw in draws], dtype=torch.float64)
    low, high = (spread.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)) - spread.mean()).tolist()
    return Interval(value, max(value + low, 0.0), value + high)
