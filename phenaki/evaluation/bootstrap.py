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


@dataclass(frozen=True)
class Estimate:
    """A value, the ends of its 95% interval, and how many observations it is of; None where there are none, the ends also where one story has all."""

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


def slope_estimate(groups: Sequence[int], lines: Sequence[int], times: Sequence[float], values: Sequence[float]) -> Estimate:
    """The slope of values over times by least squares: one for all lines, each of which has a level of its own (fixed effects).

    groups, lines: those of each observation. None where no line has two times.
    """
    x, y = (torch.tensor(one, dtype=torch.float64) for one in (times, values))
    members = F.one_hot(torch.tensor(lines, dtype=torch.long).unique(return_inverse=True)[1]).double() if len(lines) else x.new_zeros(0, 0)

    def slope(weights: Tensor) -> Tensor:
        count = (weights @ members).clamp(min=1e-12)  # (r lines)
        away = lambda one: one - ((weights * one) @ members / count) @ members.T  # from the mean of its line, (r n)
        return (weights * away(x) * away(y)).sum(1) / (weights * away(x) ** 2).sum(1)

    if not (members.T @ x**2 * members.sum(0) - (members.T @ x) ** 2 > 1e-12).any():
        return Estimate(None, None, None, len(groups))
    return bootstrap(groups, slope)
