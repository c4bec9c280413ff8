"""Estimates over seeds, Holm's correction, and two runs compared image by image. Numbers in, numbers out; no torch is loaded."""

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


def estimate(values: Sequence[float], region: tuple[float, float], confidence: float) -> Estimate:
    """Return the mean of two or more values, its t interval, and the two-sided p-value against the nearest bound of `region`.

    With two finite bounds and the mean between them, p is the larger one of the two one-sided tests (Schuirmann 1987), doubled as for every
    other claim. So p <= 1 - confidence exactly where the interval contains no bound.

    Values that are all the same show no spread to compare the distance with, so p is 1. Three runs may agree by chance, the more easily the
    fewer test images there are, and a p of 0 would survive every correction.
    """
    n = len(values)
    assert n >= 2
    if min(values) == max(values):  # asked of the values: their computed mean need not equal them to the last bit
        return Estimate(values[0], values[0], values[0], 0.0, 1.0)
    mean, sd, low, high = interval(values, confidence)
    return Estimate(mean, low, high, sd, _p_value(distance(mean, region), sd, n))


def _p_value(gap: float, sd: float, n: int) -> float:
    """Return the two-sided p of Student's t test, for a mean of n values that is `gap` from what it is tested against."""
    from scipy.special import stdtr

    return 2 * float(stdtr(n - 1, -gap * math.sqrt(n) / sd))


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
    first = bisect.bisect_left(more, True, key=lambda k: _p_value(gap, sd, have + k) <= level)  # p falls as seeds are added
    return more[first] if first < len(more) else None


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
