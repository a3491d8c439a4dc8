"""Values with 95% bootstrap intervals, of observations that come in groups.

Scenes of one story are no independent witnesses: what went wrong in one often stays wrong in the next. So whole stories are
drawn with replacement, each with all of its observations (the cluster bootstrap; Davison and Hinkley 1997, section 3.8).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

REPLICATES = 1000
LEAST_SPREAD = 1e-9  # of the times' squares: less is rounding, there is no slope


@dataclass(frozen=True)
class Estimate:
    """A value, its 95% interval and its number of observations. value is None without any; low and high also where all are of one story."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def bootstrap(groups: Sequence[int], statistic: Callable[[Tensor], Tensor], *, replicates: int = REPLICATES, seed: int = 0) -> Estimate:
    """groups: the story of each of n observations. statistic: weights (r n) float64, how often each observation counts -> values (r,).

    The interval runs from the 2.5th to the 97.5th percentile of the replicates. A replicate whose draw leaves nothing to measure (not
    finite) is left out.
    """
    if not groups:
        return Estimate(None, None, None, 0)
    stories, story_of = torch.tensor(groups).unique(return_inverse=True)
    value = float(statistic(torch.ones(1, len(groups), dtype=torch.float64)))
    if len(stories) < 2:  # of how others would differ it says nothing
        return Estimate(value, None, None, len(groups))
    draws = torch.randint(len(stories), (replicates, len(stories)), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(replicates, len(stories), dtype=torch.float64).scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    spread = statistic(times[:, story_of])
    low, high = spread[spread.isfinite()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, low, high, len(groups))


def mean_estimate(groups: Sequence[int], values: Sequence[float]) -> Estimate:
    """The mean; of zeros and ones it is a share."""
    observed = torch.tensor(values, dtype=torch.float64)
    return bootstrap(groups, lambda weights: (weights @ observed) / weights.sum(1))


def quantile_estimate(groups: Sequence[int], values: Sequence[float], share: float) -> Estimate:
    """The smallest value that at least this share of the observations do not exceed (so it is one of them)."""
    observed, order = torch.tensor(values, dtype=torch.float64).sort()

    def quantile(weights: Tensor) -> Tensor:
        reached = weights[:, order].cumsum(1) >= share * weights.sum(1, keepdim=True) - 1e-9
        return observed[reached.double().argmax(1)]

    return bootstrap(groups, quantile)


def ratio_estimate(groups: Sequence[int], upper: Sequence[tuple[float, int]], lower: Sequence[tuple[float, int]]) -> Estimate:
    """One pooled mean over another: upper and lower hold (sum, count) of each group's parts. None where either mean has no parts or is 0."""
    over, under = (torch.tensor(part, dtype=torch.float64).view(-1, 2) for part in (upper, lower))
    if not len(groups) or over[:, 1].sum() == 0 or under[:, 0].sum() == 0:
        return Estimate(None, None, None, len(groups))
    mean = lambda weights, part: (weights @ part[:, 0]) / (weights @ part[:, 1])
    return bootstrap(groups, lambda weights: mean(weights, over) / mean(weights, under))


def slope_estimate(groups: Sequence[int], lines: Sequence[int], times: Sequence[float], values: Sequence[float], *kinds: Sequence[str]) -> Estimate:
    """The slope of values over times by least squares: one for all lines, each of which has a level of its own (fixed effects).

    groups, lines: those of each observation. kinds: more labels of each observation; each label moves the level by as much as fits best.
    None where no line has two times, or where the labels leave nothing of the times. (Solved as Frisch, Waugh and Lovell do: the times'
    rest, once the labels have explained what they can, against the values.)
    """
    x, y = (torch.tensor(one, dtype=torch.float64) for one in (times, values))
    if not len(x):
        return Estimate(None, None, None, 0)
    labels = torch.cat([F.one_hot(torch.tensor(_numbered(kind))).double() for kind in (lines, *kinds)], dim=1)  # (n labels)
    products = (labels[:, :, None] * labels[:, None]).flatten(1)

    def slope(weights: Tensor) -> Tensor:
        squares = (weights @ products).unflatten(1, (labels.shape[1], -1))
        explained = (torch.linalg.pinv(squares, hermitian=True) @ ((weights * x) @ labels)[..., None])[..., 0] @ labels.T  # (r n)
        rest = weights * (x - explained)
        spread = (rest * x).sum(1)
        return torch.where(spread > LEAST_SPREAD * (weights * x**2).sum(1), (rest * y).sum(1) / spread, torch.nan)

    if not slope(torch.ones(1, len(x), dtype=torch.float64)).isfinite():
        return Estimate(None, None, None, len(x))
    return bootstrap(groups, slope)


def _numbered(labels: Sequence) -> list[int]:
    """Each label's place among the distinct ones, in order of appearance."""
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return [places[label] for label in labels]
