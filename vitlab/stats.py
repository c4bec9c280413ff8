"""Estimates over seeds, spread pooled over arms, Holm's correction, and two runs compared image by image.

Numbers in, numbers out; no torch is loaded.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitlab.config import Schema

MOST_SEEDS = 1000  # the largest number of seeds that `seeds_needed` considers
BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval, and the p-value of its distance from the nearest bound of a region."""

    mean: float
    low: float
    high: float
    sd: float
    p: float


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float, float]:
    """Return the mean, the standard deviation (n - 1), and the bounds of the mean's confidence interval by Student's t.

    With one value the last three are NaN.
    """
    from scipy.special import stdtrit  # a fraction of scipy.stats' import

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, math.nan, math.nan, math.nan
    sd = float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return mean, sd, mean - half, mean + half


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its 95 % confidence interval; None for a single value."""
    mean, _, _, high = interval(values)
    return mean, None if math.isnan(high) else high - mean


def estimate(
    values: Sequence[float], region: tuple[float, float], confidence: float, variance: float | None = None, df: float | None = None
) -> Estimate:
    """Return the mean of two or more values, its t interval, and the two-sided p-value against the nearest bound of `region`.

    `variance` of one value and its degrees of freedom `df` replace the values' own, where more is known of the spread than they tell. With
    two finite bounds and the mean between them, p is the larger one of the two one-sided tests (Schuirmann 1987), doubled as for every other
    claim. So p <= 1 - confidence exactly where the interval contains no bound.

    Without any spread there is nothing to compare the distance with, so p is 1. Three runs may agree by chance, the more easily the
    fewer test images there are, and a p of 0 would survive every correction.
    """
    from scipy.special import stdtrit  # a fraction of scipy.stats' import

    n = len(values)
    assert n >= 2
    if variance is None:
        # asked of the values themselves: the computed mean of equal ones need not equal them to the last bit
        variance, df = 0.0 if min(values) == max(values) else float(np.var(values, ddof=1)), n - 1
    if not variance:
        return Estimate(values[0], values[0], values[0], 0.0, 1.0)
    mean, sd = float(np.mean(values)), math.sqrt(variance)
    half = float(stdtrit(df, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, sd, _p_value(distance(mean, region), sd, n, df))


def _p_value(gap: float, sd: float, n: int, df: float) -> float:
    """Return the two-sided p of Student's t test, for a mean of n values that is `gap` from what it is tested against."""
    from scipy.special import stdtr

    return 2 * float(stdtr(df, -gap * math.sqrt(n) / sd))


# ------------------------------------------------------------------------------------------------------ arms by seeds


@dataclass(frozen=True)
class MeanSquares:
    """A two-way analysis of variance of arms by seeds, one value in each cell."""

    arms: int
    seeds: int
    of_seeds: float  # its expectation: residual + arms * variance between seeds
    residual: float  # NaN with one arm

    def parts(self, weights: Sequence[float]) -> list[tuple[float, int]]:
        """Return what the two mean squares add to the variance of a seed's contrast, each with its degrees of freedom.

        `weights`: one for each arm. Where they add up to zero, the seeds' own spread cancels and the residual alone counts.
        """
        shared = sum(weights) ** 2 / self.arms
        own = sum(w * w for w in weights) - shared
        parts = [(shared * self.of_seeds, self.seeds - 1), (own * self.residual, (self.arms - 1) * (self.seeds - 1))]
        return [(part, df) for part, df in parts if df and part > 0]


def mean_squares(values: np.ndarray) -> MeanSquares:
    """Return the analysis of variance of `values`, (arms, seeds), two seeds or more."""
    arms, seeds = values.shape
    of_arm, of_seed, all_over = values.mean(1, keepdims=True), values.mean(0, keepdims=True), values.mean()
    between = arms * float(np.square(of_seed - all_over).sum()) / (seeds - 1)
    residual = float(np.square(values - of_arm - of_seed + all_over).sum()) / ((arms - 1) * (seeds - 1)) if arms > 1 else math.nan
    return MeanSquares(arms, seeds, between, residual)


def satterthwaite(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the sum of independent estimates of variance, and its degrees of freedom (Satterthwaite 1946; Welch 1947 for two of them).

    `parts`: each estimate as it enters the sum, with its degrees of freedom. Returns (0.0, 1.0) for none.
    """
    total = sum(part for part, _ in parts)
    return (total, total**2 / sum(part**2 / df for part, df in parts)) if total else (0.0, 1.0)


def equal_spread(values: np.ndarray) -> float:
    """Return the p-value of Levene's test, by medians (Brown and Forsythe 1974), that all arms spread alike. `values`: (arms, seeds).

    Returns 1.0 where no arm has any spread.
    """
    from scipy.special import fdtrc

    arms, seeds = values.shape
    away = np.abs(values - np.median(values, axis=1, keepdims=True))
    of_arm = away.mean(1, keepdims=True)
    between, within = seeds * float(np.square(of_arm - away.mean()).sum()), float(np.square(away - of_arm).sum())
    if not within:
        return 0.0 if between else 1.0
    return float(fdtrc(arms - 1, arms * (seeds - 1), between / (arms - 1) / (within / (arms * (seeds - 1)))))


def distance(effect: float, region: tuple[float, float]) -> float:
    """Return how far the effect is from the region's nearest bound, inside or outside."""
    return min(abs(effect - bound) for bound in region)


def holm(ps: Sequence[float]) -> list[float]:
    """Return the adjusted p-values (Holm 1979). Judged by them, the chance of any false verdict in the family stays at the level."""
    order = np.argsort(ps, kind="stable")
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def seeds_needed(gap: float, sd: float, level: float, have: int) -> int | None:
    """Return how many more seeds would make an effect that is `gap` from the bound significant at `level`, with this spread.

    None beyond MOST_SEEDS, and where there is no distance or no spread.
    """
    if gap == 0 or sd == 0:
        return None
    more = range(1, MOST_SEEDS - have + 1)
    # p falls as seeds are added
    first = bisect.bisect_left(more, True, key=lambda k: _p_value(gap, sd, have + k, have + k - 1) <= level)
    return more[first] if first < len(more) else None


def least_distance(mean: float, variance: float, df: float, n: int, level: float) -> float:
    """Return how far an effect must be above a bound to be significant at `level`, if n values are `mean` off it and have this variance."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - level / 2)) * math.sqrt(variance / n) - mean


def sd_range(sd: float, df: float, confidence: float = 0.8) -> tuple[float, float]:
    """Return the confidence interval of a standard deviation that was estimated with `df` degrees of freedom (chi-square)."""
    from scipy.special import chdtri

    tail = (1 - confidence) / 2
    return sd * math.sqrt(df / float(chdtri(df, tail))), sd * math.sqrt(df / float(chdtri(df, 1 - tail)))


class Pair(Schema):
    """Two runs compared on the same test images. It is used with one seed, and is about these two runs, not about their experiments."""

    only_first: int  # images that only the first has right
    only_second: int
    p: float  # exact McNemar test
    low: float  # of the difference in top-1, points: bootstrap over the test images
    high: float


def pair(first: np.ndarray, second: np.ndarray, confidence: float) -> Pair:
    """Compare two runs image by image. `first` and `second`, (N,) bool, say of which test images each run predicts the right class."""
    from scipy.stats import binomtest

    assert first.shape == second.shape
    assert first.dtype == second.dtype == bool
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(b, b + c).pvalue) if b + c else 1.0
    # The difference of a resample depends on how many images of each of the three kinds it drew, and on nothing else.
    n = len(first)
    draws = np.random.default_rng(0).multinomial(n, (b / n, c / n, 1 - (b + c) / n), BOOTSTRAPS)
    low, high = np.quantile(100 * (draws[:, 0] - draws[:, 1]) / n, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Pair(only_first=b, only_second=c, p=p, low=float(low), high=float(high))
