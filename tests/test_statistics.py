"""The ledger's statistics against hand-worked numbers, scipy, statsmodels and simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from tests.support.claims import UP, claim, ledger
from vitlab import stats
from vitlab.claims import declarations, verdicts
from vitlab.claims.declarations import Arm

pytestmark = pytest.mark.slow

Group = tuple[tuple[float, float], Sequence[float]]  # a claim's region, and its value for each seed


def family(*groups: Group) -> list[verdicts.Decision]:
    """The decisions on claims of which nothing is known but their region and their values."""
    declared = []
    for i, ((low, high), _) in enumerate(groups):
        rule: dict[str, Any] = {"at_least": low}
        if math.isinf(low):
            rule = {"at_least": None, "at_most": high}
        elif math.isfinite(high):
            rule = {"at_least": None, "within": declarations.Within(of=(low + high) / 2, margin=(high - low) / 2)}
        declared.append(claim(id=str(i), arms=(Arm(experiment=str(i)),), **rule))
    values = {str(i): dict(enumerate(values)) for i, (_, values) in enumerate(groups)}
    own = ledger(*declared, seeds=(len(groups[0][1]),))
    decided = verdicts.decide(own, declared, lambda arm, metric: values[arm.experiment], lambda claim, seeds: 0.0).decisions
    return [decided[str(i)] for i in range(len(groups))]


# --------------------------------------------------------------------------------------------------------- by hand


def test_interval_and_p_of_three_seeds_by_hand() -> None:
    """0.4, 0.7, 1.0: mean 0.7, deviations -0.3, 0, 0.3, so SD sqrt(0.18 / 2) = 0.3 and standard error 0.3 / sqrt(3) = 0.173205.

    Student's t of 2 degrees of freedom has P(|T| > t) = 1 - t / sqrt(t^2 + 2), so t at 95 % is sqrt(2 * 0.95^2 / (1 - 0.95^2)) =
    4.302653: half the interval is 0.745241. Against 0: t = 0.7 / 0.173205 = 4.041452, t^2 = 49/3, p = 1 - 4.041452 / 4.281744 = 0.056120.
    """
    got = stats.estimate([0.4, 0.7, 1.0], UP, 0.95)
    assert (got.mean, got.sd) == pytest.approx((0.7, 0.3), abs=1e-12)
    assert (got.low, got.high) == pytest.approx((0.7 - 0.745241, 0.7 + 0.745241), abs=1e-6)
    assert got.p == pytest.approx(0.056120, abs=1e-6)


def test_within_by_hand() -> None:
    """The same three. Inside 0 ± 1.5: 0.8 from the nearer bound, t = 0.8 / 0.173205 = 4.618802, t^2 = 64/3; the larger of the two one-sided
    p is half of 1 - 4.618802 / 4.830459 = 0.043817. Outside 0 ± 0.1: 0.6 from the bound, t^2 = 12, p = 1 - 3.464102 / 3.741657 = 0.074180.
    """
    assert stats.estimate([0.4, 0.7, 1.0], (-1.5, 1.5), 0.95).p == pytest.approx(0.043817, abs=1e-6)
    assert stats.estimate([0.4, 0.7, 1.0], (-0.1, 0.1), 0.95).p == pytest.approx(0.074180, abs=1e-6)
    (inside,), (outside,) = family(((-1.5, 1.5), [0.4, 0.7, 1.0])), family(((-0.3, 0.3), [0.65, 0.7, 0.75]))
    assert (inside.verdict, outside.verdict) == ("supported", "refuted")


def test_holm_by_hand() -> None:
    """Ascending: 4 * 0.005 = 0.02, 3 * 0.01 = 0.03, 2 * 0.03 = 0.06, and 0.04, which may not be less than the one before."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_seeds_needed_by_hand() -> None:
    """One SD away, n seeds have t = sqrt(n). Of n - 1 degrees of freedom t at 95 % is 2.571 for n = 6, over sqrt(6) = 2.449, and 2.447
    for n = 7, under sqrt(7) = 2.646: four more than three."""
    assert stats.seeds_needed(1.0, 1.0, 0.05, have=3) == 4
    assert stats.seeds_needed(0.25, 0.25, 0.05, have=6) == 1
    assert stats.seeds_needed(0.01, 1.0, 0.05, have=3) is None  # about (1.96 / 0.01)^2 = 38,000
    assert stats.seeds_needed(0.0, 1.0, 0.05, have=3) is None


def test_mcnemar_by_hand() -> None:
    """1 of 6 images that only one has right: 2 * (1 + 6) / 2^6 = 0.21875. 1 of 9: 2 * (1 + 9) / 2^9 = 0.0390625."""

    def images(both: int, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        return np.repeat([True, True, False], [both, first, second]), np.repeat([True, False, True], [both, first, second])

    got = stats.pair(*images(20, 1, 5), 0.95)
    assert (got.only_first, got.only_second, got.p) == (1, 5, pytest.approx(0.21875))
    assert stats.pair(*images(0, 8, 1), 0.95).p == pytest.approx(0.0390625)
    assert stats.pair(*images(3, 0, 0), 0.95) == stats.Pair(only_first=0, only_second=0, p=1.0, low=0.0, high=0.0)
    all_apart = stats.pair(*images(0, 4, 0), 0.95)
    assert (all_apart.low, all_apart.high) == (100, 100)


# --------------------------------------------------------------------------------------- against scipy and statsmodels


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_estimates_are_scipys_and_statsmodels(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(10):
        first, second = rng.normal(80, 1, n), rng.normal(79.5, 1, n)
        values = (first - second).tolist()
        got = stats.estimate(values, UP, 0.9)
        assert (got.low, got.high) == pytest.approx(DescrStatsW(values).tconfint_mean(alpha=0.1))
        assert got.p == pytest.approx(scipy_stats.ttest_rel(first, second).pvalue)
        bound = float(rng.normal())
        for region in ((bound, math.inf), (-math.inf, bound)):
            assert stats.estimate(values, region, 0.95).p == pytest.approx(scipy_stats.ttest_1samp(values, bound).pvalue)
        margin = abs(got.mean) + float(rng.uniform(0.1, 3))
        two_sided = ttost_paired(first, second, -margin, margin)[0]
        assert stats.estimate(values, (-margin, margin), 0.95).p == pytest.approx(2 * two_sided)
        outside = abs(got.mean) / 2
        nearer = math.copysign(outside, got.mean)
        assert stats.estimate(values, (-outside, outside), 0.95).p == pytest.approx(scipy_stats.ttest_1samp(values, nearer).pvalue)


def test_p_and_interval_say_the_same() -> None:
    """p is at the level or below exactly where no bound is in the interval."""
    rng, agreed = np.random.default_rng(0), [0, 0]
    for _ in range(400):
        values = rng.normal(0, 1, rng.integers(2, 6)).tolist()
        low = float(rng.normal(0, 2))
        region = [(low, math.inf), (-math.inf, low), (low, low + float(rng.uniform(0.5, 8)))][rng.integers(3)]
        got = stats.estimate(values, region, 0.9)
        clear = not any(got.low < bound < got.high for bound in region)
        assert (got.p <= 0.1) == clear
        agreed[clear] += 1
    assert min(agreed) > 50


@pytest.mark.parametrize("n", [1, 7, 40])
def test_holm_is_statsmodels(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(3):
        ps = rng.choice([*rng.uniform(0, 1, n), *rng.uniform(0, 0.02, n)], n).tolist()  # with ties
        assert stats.holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])


def test_pairs_are_statsmodels_and_scipys() -> None:
    """500 images, 80 % and 75 % right. A bootstrap's bounds are themselves uncertain, by 0.027 SD of 1.9 points with 10,000 resamples,
    twice over; and by a whole image, 0.2 points. That of unpaired images would be 1.3 points wider at each end."""
    both, b, c, none = 340, 60, 35, 65
    first, second = np.repeat([True, True, False, False], [both, b, c, none]), np.repeat([True, False, True, False], [both, b, c, none])
    order = np.random.default_rng(0).permutation(500)
    got = stats.pair(first[order], second[order], 0.95)
    assert (got.only_first, got.only_second) == (b, c)
    assert got.p == pytest.approx(mcnemar([[both, b], [c, none]], exact=True).pvalue)
    theirs = scipy_stats.bootstrap(
        (100.0 * first, 100.0 * second), lambda x, y, axis: x.mean(axis) - y.mean(axis), paired=True, method="percentile",
        n_resamples=10_000, batch=1000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (got.low, got.high) == pytest.approx((theirs.low, theirs.high), abs=0.41)


# ------------------------------------------------------------------------------------------------------- by simulation


def tolerance(share: float, times: int) -> float:
    """Three standard errors of a share counted that often."""
    return 3 * math.sqrt(share * (1 - share) / times)


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize(
    ("region", "truth"),
    [((0.0, math.inf), 0.0), ((-math.inf, 1.0), 1.0), ((-0.5, 0.5), 0.5), ((-0.5, 0.5), -0.5)],
    ids=["at_least", "at_most", "within: top", "within: bottom"],
)
def test_at_the_threshold_one_in_twenty_is_decided(region: tuple[float, float], truth: float, n: int) -> None:
    """An effect exactly at the bound gets a verdict with a chance of 1 - confidence, and neither verdict with more than half of that."""
    times = 3000
    draws = np.random.default_rng(n).normal(truth, 0.1, (times, n)).tolist()
    found = [stats.estimate(values, region, 0.95) for values in draws]
    decided = [e for e in found if e.p <= 0.05]
    assert len(decided) / times == pytest.approx(0.05, abs=tolerance(0.05, times))
    for wrong in (True, False):
        share = sum((region[0] <= e.mean <= region[1]) is wrong for e in decided) / times
        assert share <= 0.025 + tolerance(0.025, times)
    covered = sum(e.low <= truth <= e.high for e in found) / times
    assert covered == pytest.approx(0.95, abs=tolerance(0.95, times))


def test_a_wide_spread_supports_no_equality() -> None:
    """Within ± 0.5 with a spread of 2: at the bound hardly anything is decided, and never more often than one in twenty."""
    times = 2000
    draws = np.random.default_rng(3).normal(0.5, 2.0, (times, 3)).tolist()
    assert sum(stats.estimate(values, (-0.5, 0.5), 0.95).p <= 0.05 for values in draws) / times <= 0.05 + tolerance(0.05, times)


@pytest.mark.parametrize("true_effects", [0, 8])
def test_in_a_whole_ledger_one_false_verdict_in_twenty_ledgers(true_effects: int) -> None:
    """20 claims, three seeds. Untrue verdicts on those at the threshold, with some clear effects among them and without."""
    times, claimed, rng = 300, 20, np.random.default_rng(true_effects)
    regions = [[(0.0, math.inf), (-math.inf, 0.0), (-1.0, 0.0)][i % 3] for i in range(claimed)]
    effects = 50.0 * (np.arange(claimed) < true_effects)
    false_verdicts = uncorrected = 0
    for _ in range(times):
        values = rng.normal(effects[:, None], 0.3, (claimed, 3)).tolist()
        nulls = family(*zip(regions, values, strict=True))[true_effects:]
        false_verdicts += any(result.verdict != "undecided" for result in nulls)
        uncorrected += any(result.estimate.p <= 0.05 for result in nulls)
    assert false_verdicts / times <= 0.05 + tolerance(0.05, times)
    # without the correction: 1 - 0.95^20 = 64 %, 1 - 0.95^12 = 46 %
    assert uncorrected / times == pytest.approx(1 - 0.95 ** (claimed - true_effects), abs=tolerance(0.5, times))


@pytest.mark.parametrize("images", [100, 360])
def test_in_coarse_data_agreement_by_chance_decides_nothing(images: int) -> None:
    """Differences of no more than a few test images, so that three seeds often agree: after Holm still no false verdict in twenty ledgers."""
    times = 200
    rng = np.random.default_rng(images)
    whole = np.rint(rng.normal(0, 1, (times, 20, 3)))  # in images
    assert (whole.min(2) == whole.max(2)).mean() > 0.05
    ledgers = np.round(whole * 100 / images, 4).tolist()
    false_verdicts = sum(any(r.verdict != "undecided" for r in family(*((UP, values) for values in each))) for each in ledgers)
    assert false_verdicts / times <= 0.05 + tolerance(0.05, times)


def test_large_effects_get_the_right_verdict() -> None:
    """Effects of 20 spreads from the bound, in a ledger of six with all rules: three in four decided at least, and none wrongly."""
    rules = [
        ((0.0, math.inf), 4.0, "supported"), ((0.0, math.inf), -4.0, "refuted"), ((-math.inf, 1.0), -3.0, "supported"),
        ((-math.inf, 1.0), 5.0, "refuted"), ((-4.0, 4.0), 0.0, "supported"), ((-4.0, 4.0), -8.0, "refuted"),
    ]  # fmt: skip
    rng, right, total = np.random.default_rng(5), 0, 0
    for _ in range(150):
        for result, (_, _, truth) in zip(family(*((region, rng.normal(effect, 0.2, 3).tolist()) for region, effect, _ in rules)), rules):
            assert result.verdict in ("undecided", truth)
            right, total = right + (result.verdict == truth), total + 1
    assert right / total > 0.75


def test_the_seeds_said_to_be_missing_span_what_the_spread_may_be() -> None:
    """A claim 0.3 from its bound with SD 0.2 after three seeds: the SD of two degrees of freedom lies within 0.13 and 0.62 with a chance of
    80 % (chi-square: 2 / 4.605 and 2 / 0.211). With the one a t of 0.3 / (0.13 / sqrt(n)) is to be passed, with the other one of 0.62."""
    seen = (0.3 + 0.2 * np.array([-1, 0, 1])).tolist()
    (found,) = family((UP, seen))
    assert found.verdict == "undecided"
    low, high = stats.sd_range(0.2, 2)
    assert (low, high) == pytest.approx((0.2 * math.sqrt(2 / 4.60517), 0.2 * math.sqrt(2 / 0.210721)), rel=1e-5)
    for more, sd in zip(found.more_seeds, (low, high), strict=True):
        assert more == stats.seeds_needed(0.3, sd, 0.05, 3)
        for n, enough in ((3 + more, True), (3 + more - 1, False)):
            shape = np.linspace(-1, 1, n)
            values = (0.3 + sd * shape / shape.std(ddof=1)).tolist()
            assert (stats.estimate(values, UP, 0.95).p <= 0.05) == enough
