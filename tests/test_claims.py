"""The ledger's statistics against hand-worked numbers, scipy, statsmodels and simulation; and what claims.yaml declares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from vitlab import claims, config, plan
from vitlab.claims import Arm, Claim, Ledger, Result
from vitlab.records import DatasetFacts, RunRecord, TeacherFacts
from vitlab.sources import CIFAR10_CLASSES, Source

DIGEST = "c10c" * 8
A, B = Arm(experiment="02_regularized_vit"), Arm(experiment="01_baseline_vit")
UP = (0.0, math.inf)  # the region of at_least: 0
COUNTS = ((50, 7, 3), (5, 60, 5), (1, 2, 27))  # [true][predicted] of cats, dogs and frogs


def run(arm: Arm, seed: int = 0, top1: float = 50.0, *, profile: str = "quick", classes: tuple[str, ...] = ("cat", "dog", "frog"),
        counts: tuple[tuple[int, ...], ...] = COUNTS, metrics: dict[str, float] | None = None, **changes: Any) -> RunRecord:  # fmt: skip
    """A record as a run of `arm` leaves it."""
    resolved = arm.resolve(profile)
    values: dict[str, Any] = {
        "experiment": resolved.id, "variant": resolved.variant, "title": "T", "profile": profile, "seed": seed,
        "fingerprint": claims.fingerprint(resolved, DIGEST),
        "dataset": DatasetFacts(
            name="pets", digest=DIGEST, classes=classes, train=90, validation=10, test=160, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
        ),
        "config": {}, "metrics": {"test_top1": top1, "test_top5": 90.0, "validation_top1": 50.0} | (metrics or {}),
        "per_class": (), "confusion": counts, "history": ({"epoch": 1, "train/loss": 1.5}, {"epoch": 2, "train/loss": 1.25}),
        "params": 1, "flops": 1, "train_seconds": 1.0, "img_s": 1.0, "device": "a CPU", "precision": "fp32", "threads": 1,
        "versions": {}, "git": {}, "started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T11:00:00+00:00",
    }  # fmt: skip
    return RunRecord(**(values | changes))


def claim(**changes: Any) -> Claim:
    """That A is better than B."""
    return Claim(**({"id": "c", "statement": "S.", "source": "§1", "arms": (A, B), "metric": "test_top1", "at_least": 0.0} | changes))


def ledger(*declared: Claim, confidence: float = 0.95) -> Ledger:
    return Ledger(confidence=confidence, seeds=3, claims=declared or (claim(),))


def judge(declared: Ledger, runs: Sequence[RunRecord], before: Sequence[Result] = (), profile: str = "quick") -> list[Result]:
    return claims.judge(declared, profile, runs, lambda claim, runs: None, {result.id: result for result in before})


def family(*groups: tuple[tuple[float, float], Sequence[float]]) -> list[Result]:
    """Verdicts on claims of which nothing is known but their region and their values."""
    declared, measured = [], []
    for i, (region, values) in enumerate(groups):
        low, high = region
        if math.isinf(high):
            rule: dict[str, Any] = {"at_least": low}
        elif math.isinf(low):
            rule = {"at_least": None, "at_most": high}
        else:
            rule = {"at_least": None, "within": claims.Within(of=(low + high) / 2, margin=(high - low) / 2)}
        declared.append(claim(id=str(i), **rule))
        told: dict[str, Any] = {"id": str(i), "statement": "S.", "source": "§1", "declaration": "", "arms": (), "metric": "test_top1"}
        told |= {"low_bound": None, "high_bound": None, "values": tuple(values), "verdict": "undecided"}
        measured.append(Result(**told, **claims._over_seeds(values, declared[-1].region, 0.95)))
    return claims._decide(ledger(*declared), measured)


# --------------------------------------------------------------------------------------------------------- by hand


def test_interval_and_p_of_three_seeds_by_hand() -> None:
    """0.4, 0.7, 1.0: mean 0.7, deviations -0.3, 0, 0.3, so SD sqrt(0.18 / 2) = 0.3 and standard error 0.3 / sqrt(3) = 0.173205.

    Student's t of 2 degrees of freedom has P(|T| > t) = 1 - t / sqrt(t^2 + 2), so t at 95 % is sqrt(2 * 0.95^2 / (1 - 0.95^2)) =
    4.302653: half the interval is 0.745241. Against 0: t = 0.7 / 0.173205 = 4.041452, t^2 = 49/3, p = 1 - 4.041452 / 4.281744 = 0.056120.
    """
    got = claims.estimate([0.4, 0.7, 1.0], UP, 0.95)
    assert (got.mean, got.sd) == pytest.approx((0.7, 0.3), abs=1e-12)
    assert (got.low, got.high) == pytest.approx((0.7 - 0.745241, 0.7 + 0.745241), abs=1e-6)
    assert got.p == pytest.approx(0.056120, abs=1e-6)


def test_within_by_hand() -> None:
    """The same three. Inside 0 ± 1.5: 0.8 from the nearer bound, t = 0.8 / 0.173205 = 4.618802, t^2 = 64/3; the larger of the two one-sided
    p is half of 1 - 4.618802 / 4.830459 = 0.043817. Outside 0 ± 0.1: 0.6 from the bound, t^2 = 12, p = 1 - 3.464102 / 3.741657 = 0.074180.
    """
    assert claims.estimate([0.4, 0.7, 1.0], (-1.5, 1.5), 0.95).p == pytest.approx(0.043817, abs=1e-6)
    assert claims.estimate([0.4, 0.7, 1.0], (-0.1, 0.1), 0.95).p == pytest.approx(0.074180, abs=1e-6)
    (inside,), (outside,) = family(((-1.5, 1.5), [0.4, 0.7, 1.0])), family(((-0.3, 0.3), [0.65, 0.7, 0.75]))
    assert (inside.verdict, outside.verdict) == ("supported", "refuted")


def test_holm_by_hand() -> None:
    """Ascending: 4 * 0.005 = 0.02, 3 * 0.01 = 0.03, 2 * 0.03 = 0.06, and 0.04, which may not be less than the one before."""
    assert claims.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert claims.holm([0.6, 0.7]) == [1.0, 1.0]
    assert claims.holm([]) == []


def test_seeds_needed_by_hand() -> None:
    """One SD away, n seeds have t = sqrt(n). Of n - 1 degrees of freedom t at 95 % is 2.571 for n = 6, over sqrt(6) = 2.449, and 2.447
    for n = 7, under sqrt(7) = 2.646: four more than three."""
    assert claims.seeds_needed(1.0, 1.0, 0.05, have=3) == 4
    assert claims.seeds_needed(0.25, 0.25, 0.05, have=6) == 1
    assert claims.seeds_needed(0.01, 1.0, 0.05, have=3) is None  # about (1.96 / 0.01)^2 = 38,000
    assert claims.seeds_needed(0.0, 1.0, 0.05, have=3) is None


def test_mcnemar_by_hand() -> None:
    """1 of 6 images that only one has right: 2 * (1 + 6) / 2^6 = 0.21875. 1 of 9: 2 * (1 + 9) / 2^9 = 0.0390625."""

    def images(both: int, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        return np.repeat([True, True, False], [both, first, second]), np.repeat([True, False, True], [both, first, second])

    got = claims.pair(*images(20, 1, 5), 0.95)
    assert (got.only_first, got.only_second, got.p) == (1, 5, pytest.approx(0.21875))
    assert claims.pair(*images(0, 8, 1), 0.95).p == pytest.approx(0.0390625)
    assert claims.pair(*images(3, 0, 0), 0.95) == claims.Pair(only_first=0, only_second=0, p=1.0, low=0.0, high=0.0)
    all_apart = claims.pair(*images(0, 4, 0), 0.95)
    assert (all_apart.low, all_apart.high) == (100, 100)


# --------------------------------------------------------------------------------------- against scipy and statsmodels


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_estimates_are_scipys_and_statsmodels(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(10):
        first, second = rng.normal(80, 1, n), rng.normal(79.5, 1, n)
        values = (first - second).tolist()
        got = claims.estimate(values, UP, 0.9)
        assert (got.low, got.high) == pytest.approx(DescrStatsW(values).tconfint_mean(alpha=0.1))
        assert got.p == pytest.approx(stats.ttest_rel(first, second).pvalue)
        bound = float(rng.normal())
        for region in ((bound, math.inf), (-math.inf, bound)):
            assert claims.estimate(values, region, 0.95).p == pytest.approx(stats.ttest_1samp(values, bound).pvalue)
        margin = abs(got.mean) + float(rng.uniform(0.1, 3))
        two_sided = ttost_paired(first, second, -margin, margin)[0]
        assert claims.estimate(values, (-margin, margin), 0.95).p == pytest.approx(2 * two_sided)
        outside = abs(got.mean) / 2
        nearer = math.copysign(outside, got.mean)
        assert claims.estimate(values, (-outside, outside), 0.95).p == pytest.approx(stats.ttest_1samp(values, nearer).pvalue)


def test_p_and_interval_say_the_same() -> None:
    """p is at the level or below exactly where no bound is in the interval."""
    rng, agreed = np.random.default_rng(0), [0, 0]
    for _ in range(400):
        values = rng.normal(0, 1, rng.integers(2, 6)).tolist()
        low = float(rng.normal(0, 2))
        region = [(low, math.inf), (-math.inf, low), (low, low + float(rng.uniform(0.5, 8)))][rng.integers(3)]
        got = claims.estimate(values, region, 0.9)
        clear = not any(got.low < bound < got.high for bound in region)
        assert (got.p <= 0.1) == clear
        agreed[clear] += 1
    assert min(agreed) > 50


@pytest.mark.parametrize("n", [1, 7, 40])
def test_holm_is_statsmodels(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(3):
        ps = rng.choice([*rng.uniform(0, 1, n), *rng.uniform(0, 0.02, n)], n).tolist()  # with ties
        assert claims.holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])


def test_pairs_are_statsmodels_and_scipys() -> None:
    """500 images, 80 % and 75 % right. A bootstrap's bounds are themselves uncertain, by 0.027 SD of 1.9 points with 10,000 resamples,
    twice over; and by a whole image, 0.2 points. That of unpaired images would be 1.3 points wider at each end."""
    both, b, c, none = 340, 60, 35, 65
    first, second = np.repeat([True, True, False, False], [both, b, c, none]), np.repeat([True, False, True, False], [both, b, c, none])
    order = np.random.default_rng(0).permutation(500)
    got = claims.pair(first[order], second[order], 0.95)
    assert (got.only_first, got.only_second) == (b, c)
    assert got.p == pytest.approx(mcnemar([[both, b], [c, none]], exact=True).pvalue)
    theirs = stats.bootstrap(
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
    found = [claims.estimate(values, region, 0.95) for values in draws]
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
    assert sum(claims.estimate(values, (-0.5, 0.5), 0.95).p <= 0.05 for values in draws) / times <= 0.05 + tolerance(0.05, times)


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
        uncorrected += any(result.p <= 0.05 for result in nulls)
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


def test_the_seeds_said_to_be_missing_are_enough_and_one_less_is_not() -> None:
    """With the same mean and spread, and all else as it is: also for a claim that is not the first in Holm's order."""

    def values(n: int, mean: float, sd: float) -> list[float]:
        shape = np.linspace(-1, 1, n)
        return (mean + sd * shape / shape.std(ddof=1)).tolist()

    seen = [(5.0, 0.1), (0.35, 0.2), (0.3, 0.2), (0.25, 0.2)]  # the first is decided, the others are not
    found = family(*((UP, values(3, *each)) for each in seen))
    assert [result.verdict for result in found] == ["supported", "undecided", "undecided", "undecided"]
    assert found[0].more_seeds is None
    for i in (1, 2, 3):
        more = found[i].more_seeds
        assert more > 1
        for n, verdict in ((3 + more, "supported"), (3 + more - 1, "undecided")):
            again = family(*((UP, values(n if j == i else 3, *each)) for j, each in enumerate(seen)))
            assert again[i].verdict == verdict


# ------------------------------------------------------------------------------------------------ from records to results


def three(arm: Arm, *top1: float, **changes: Any) -> list[RunRecord]:
    return [run(arm, seed, value, **changes) for seed, value in enumerate(top1)]


def test_a_result_tells_all_of_it() -> None:
    runs = [*three(A, 52.1, 52.9, 53.0), *three(B, 50.0, 50.4, 49.9)]
    (got,) = judge(ledger(claim(claimed=2.5)), runs)
    assert (got.seeds, got.values) == ((0, 1, 2), (2.1, 2.5, 3.1))
    assert got.effect == pytest.approx((2.1 + 2.5 + 3.1) / 3)
    assert got.p == got.p_holm == pytest.approx(stats.ttest_rel([52.1, 52.9, 53.0], [50.0, 50.4, 49.9]).pvalue)
    assert got.low < got.effect < got.high
    assert (got.verdict, got.changed, got.more_seeds, got.pair) == ("supported", False, None, None)
    assert [arm.records[2] for arm in got.arms] == ["02_regularized_vit-s2.json", "01_baseline_vit-s2.json"]
    assert [arm.fingerprint for arm in got.arms] == [runs[0].fingerprint, runs[3].fingerprint]
    assert (got.claimed, got.low_bound, got.high_bound, claims.rule(got)) == (2.5, 0.0, None, "≥ 0")
    assert Result.model_validate_json(got.model_dump_json()) == got


def test_the_other_way_round_it_is_refuted_and_of_one_arm_it_is_the_value() -> None:
    runs = [*three(A, 52.1, 52.9, 53.0), *three(B, 50.0, 50.4, 49.9)]
    back = claim(arms=(B, A))
    alone = claim(id="d", arms=(A,), at_least=None, at_most=60.0)
    near = claim(id="e", arms=(A,), at_least=None, within=claims.Within(of=52.5, margin=20.0))
    in_percent = claim(id="f", relative=True, at_least=4.0)
    got = judge(ledger(back, alone, near, in_percent), runs)
    assert [r.verdict for r in got] == ["refuted", "supported", "supported", "undecided"]
    assert got[1].values == (52.1, 52.9, 53.0)
    assert got[3].values == (4.2, 4.9603, 6.2124)  # 2.1 / 50.0, 2.5 / 50.4, 3.1 / 49.9
    assert [claims.rule(r) for r in got] == ["≥ 0", "≤ 60", "52.5 ± 20", "≥ 4"]
    assert got[0].p_holm == pytest.approx(2 * got[0].p)  # the larger ones are of the bounds far off


def test_arms_may_differ_in_the_metric() -> None:
    six = "06_kd_r50_class_attention"
    arms = tuple(Arm(experiment=six, metric=metric) for metric in ("test_ema_top1", "test_raw_top1"))
    runs = [run(arms[0], seed, metrics={"test_ema_top1": 50.0 + seed, "test_raw_top1": 49.0}) for seed in range(3)]
    (got,) = judge(ledger(claim(arms=arms, metric=None)), runs)
    assert got.values == (1.0, 2.0, 3.0)
    assert got.metric == "test_ema_top1 less test_raw_top1"


def test_no_seeds_one_seed_and_seeds_of_one_arm_only() -> None:
    (none,) = judge(ledger(), three(A, 50, 51, 52))
    assert (none.verdict, none.effect, none.p, none.seeds) == ("not measured", None, None, ())
    (one,) = judge(ledger(), [*three(A, 60, 61), run(B, 1, 50.0), run(B, 7, 40.0)])
    assert (one.verdict, one.effect, one.low, one.p, one.pair, one.seeds) == ("undecided", 11.0, None, None, None, (1,))
    (common,) = judge(ledger(), [*three(A, 60, 61, 62), run(B, 1, 50.0), run(B, 2, 50.5), run(B, 7, 40.0)])
    assert (common.seeds, common.values) == ((1, 2), (11.0, 11.5))
    assert [set(arm.records) for arm in common.arms] == [{1, 2}, {1, 2}]


def test_one_seed_is_compared_image_by_image_and_still_undecided() -> None:
    asked = []
    said = claims.pair(np.array([True] * 40), np.array([False] * 40), 0.95)

    def pairs(claim: Claim, runs: Sequence[RunRecord]) -> claims.Pair:
        asked.append((claim.id, [r.experiment for r in runs], [r.seed for r in runs]))
        return said

    runs = [*three(A, 60, 61), run(B, 1, 50.0)]
    (got,) = claims.judge(ledger(), "quick", runs, pairs)
    assert asked == [("c", ["02_regularized_vit", "01_baseline_vit"], [1, 1])]
    assert (got.verdict, got.pair, got.p_holm) == ("undecided", said, None)
    assert said.p < 1e-11


def test_what_is_not_tested_does_not_count_in_the_family() -> None:
    exact = claim(id="d", metric="params", at_least=None, at_most=0.0)
    single = claim(id="e", arms=(Arm(experiment="03_hybrid_r18"),))
    unmeasured = claim(id="f", arms=(Arm(experiment="04_explicit_transformer"),))
    runs = [*three(A, 52.1, 52.9, 53.0), *three(B, 50.0, 50.4, 49.9), run(single.arms[0])]
    got = judge(ledger(claim(), exact, single, unmeasured), runs)
    assert got[0].p_holm == got[0].p
    assert [r.p_holm for r in got[1:]] == [None, None, None]
    assert [r.verdict for r in got] == ["supported", "supported", "undecided", "not measured"]


def test_no_spread_is_no_evidence() -> None:
    """The same difference three times, far from the bound or at it; also where float32 left accuracies that are not quite the same."""
    (far,) = judge(ledger(), [*three(A, 55, 56, 57), *three(B, 50, 51, 52)])
    assert (far.verdict, far.effect, far.p, far.low, far.more_seeds) == ("undecided", 5.0, 1.0, None, None)
    assert "no spread" in far.note
    as_stored = [float(np.float32(v / 100)) * 100 for v in (50.25, 50.57, 53.21, 49.95, 50.27, 52.91)]
    assert len({a - b for a, b in zip(as_stored[:3], as_stored[3:])}) > 1
    (at,) = judge(ledger(claim(at_least=0.3)), [*three(A, *as_stored[:3]), *three(B, *as_stored[3:])])
    assert (at.verdict, at.values, at.p) == ("undecided", (0.3, 0.3, 0.3), 1.0)


def test_identical_arms_are_undecided() -> None:
    (got,) = judge(ledger(claim(arms=(A, A))), three(A, 50.1, 51.7, 52.2))
    assert (got.values, got.verdict) == ((0.0, 0.0, 0.0), "undecided")


def test_a_repeated_run_counts_once_and_the_last_one_does() -> None:
    later = run(A, 1, 58.0, finished="2026-01-02T11:00:00+00:00")
    (got,) = judge(ledger(), [later, *three(A, 52, 53, 54), *three(B, 50, 50, 51)])
    assert got.values == (2.0, 8.0, 3.0)


def test_runs_of_other_settings_are_not_taken() -> None:
    changed = Arm(experiment=A.experiment, set=("train.epochs=2",))
    (got,) = judge(ledger(), [*three(changed, 52, 53, 54), *three(B, 50, 50, 51)])
    assert got.verdict == "not measured"
    (other_profile,) = judge(ledger(), [*three(A, 52, 53, 54, profile="laptop"), *three(B, 50, 50, 51, profile="laptop")])
    assert other_profile.verdict == "not measured"
    spelt_out = Arm(experiment=A.experiment, set=("train.precision=auto",))
    (same,) = judge(ledger(), [*three(spelt_out, 52, 53, 54), *three(B, 50, 50, 51)])
    assert same.seeds == (0, 1, 2)


def test_full_size_only_is_about_full_size_only() -> None:
    at_full = claim(arms=(B,), full_size_only=True, at_least=None, within=claims.Within(of=80.0, margin=1.0))
    (small,) = judge(ledger(at_full), three(B, 79.9, 80.0, 80.1))
    assert (small.verdict, small.note, small.p) == ("not measured", "about full size only", None)
    (full,) = judge(ledger(at_full), three(B, 79.9, 80.0, 80.1, profile="full"), profile="full")
    assert full.verdict == "supported"
    # also where nothing is trained: the number is of the full size
    params = claim(arms=(B,), metric="params", full_size_only=True)
    assert [judge(ledger(params), (), profile=profile)[0].verdict for profile in config.PROFILES] == ["not measured"] * 3 + ["supported"]


# -------------------------------------------------------------------------------------------------------- declarations


def test_a_claim_changed_after_measuring_is_marked_and_stays_marked() -> None:
    runs = [*three(A, 52.1, 52.9, 53.0), *three(B, 50.0, 50.4, 49.9)]
    first = judge(ledger(), runs)
    assert not judge(ledger(), runs, first)[0].changed
    stricter = judge(ledger(claim(at_least=1.0)), runs, first)
    assert stricter[0].changed
    assert judge(ledger(claim(at_least=1.0)), runs, stricter)[0].changed
    assert judge(ledger(), runs, stricter)[0].changed  # and back
    lost = judge(ledger(claim(at_least=1.0)), [], stricter)
    assert (lost[0].verdict, lost[0].changed) == ("not measured", True)
    assert judge(ledger(claim(at_least=1.0)), runs, lost)[0].changed


def test_a_claim_may_change_until_it_is_measured() -> None:
    before = judge(ledger(), [])
    assert before[0].verdict == "not measured"
    runs = [*three(A, 52.1, 52.9, 53.0), *three(B, 50.0, 50.4, 49.9)]
    assert not judge(ledger(claim(at_least=1.0)), runs, before)[0].changed
    one_seed = judge(ledger(), [runs[0], runs[3]])  # undecided, but seen
    assert judge(ledger(claim(at_least=1.0)), runs, one_seed)[0].changed


@pytest.mark.parametrize(
    "change",
    [
        {"statement": "S, in other words."}, {"source": "§2"}, {"arms": (B, A)}, {"metric": "test_top5"}, {"relative": True}, {"claimed": 1.0},
        {"at_least": 0.1}, {"at_least": None, "at_most": 0.0}, {"full_size_only": True},
        {"arms": (A, Arm(experiment=B.experiment, set=("train.epochs=2",)))},
    ],
    ids=str,
)  # fmt: skip
def test_everything_said_of_a_claim_is_part_of_its_declaration(change: dict[str, Any]) -> None:
    """The statement as well: what was measured answers the words that stood there."""
    own = ledger()
    assert own.declaration(claim(**change)) != own.declaration(claim())
    assert ledger(confidence=0.9).declaration(claim()) != own.declaration(claim())
    assert own.declaration(claim(relative=False, claimed=None, within=None)) == own.declaration(claim())


# ------------------------------------------------------------------------------------------------------------- metrics


def test_confusions_by_hand() -> None:
    """7 of 60 cats are called dogs, 5 of 70 dogs cats. Taken for one another: cat and dog 12, cat and frog 4, dog and frog 7."""
    record = run(A)
    assert claims.measure(record, "confusion.cat.dog") == pytest.approx(100 * 7 / 60)
    assert claims.measure(record, "confusion.dog.cat") == pytest.approx(100 * 5 / 70)
    assert claims.measure(record, "confusion.frog.frog") == pytest.approx(90)
    assert claims.measure(record, "confusion_lead.cat.dog") == claims.measure(record, "confusion_lead.dog.cat") == 12 - 7
    assert claims.measure(record, "confusion_lead.frog.dog") == 7 - 12
    assert claims.measure(record, "confusion_lead.cat.frog") == 4 - 12


def test_other_metrics() -> None:
    taught = TeacherFacts(
        experiment="t", fingerprint="f", seed=0, weights_sha256="a", validation_top1=1.0, test_top1=49.0, agreement=1.0, gain=1.0
    )
    assert claims.measure(run(A, teacher=taught), "teacher_gain") == 1.0
    assert claims.measure(run(A), "train_loss") == 1.25
    assert claims.measure(run(A, metrics={"test_cls_top1": 44.0}), "test_cls_top1") == 44.0


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("confusion.cat.lion", "confusion.cat.lion: pets has no class lion; expected two of cat, dog, frog"),
        ("confusion_lead.wolf.lion", "pets has no class lion, wolf; expected two of cat, dog, frog"),
        ("confusion_lead.cat.cat", "expected two different classes"),
        ("confusion.cat", "expected test_top1, test_top5, validation_top1, train_loss, teacher_gain or confusion"),
        ("test_ema_top1", "test_ema_top1: not in the record of 02_regularized_vit; expected test_top1, test_top5, validation_top1"),
        ("teacher_gain", "teacher_gain: not in the record of 02_regularized_vit"),
        ("train_loss.last", "train_loss.last: not in the record"),
    ],
)
def test_what_a_record_lacks_is_named(metric: str, expected: str) -> None:
    with pytest.raises(ValueError) as e:  # noqa: PT011
        claims.measure(run(A), metric)
    assert expected in str(e.value)


def test_metrics_that_cannot_be_had_are_named() -> None:
    with pytest.raises(ValueError, match=r"confusion\.cat\.dog: pets has no test image of cat"):
        claims.measure(run(A, counts=((0, 0, 0), *COUNTS[1:])), "confusion.cat.dog")
    with pytest.raises(ValueError, match="train_loss: not in the record"):
        claims.measure(run(A, history=()), "train_loss")
    with pytest.raises(ValueError, match="gflops_last_third: resnet50 is no ViT"):
        claims.exact(Arm(experiment="teachers/resnet50").resolve("full"), "gflops_last_third", 10)
    with pytest.raises(ValueError, match="c: relative to test_top1 of its second arm, which is 0"):
        judge(ledger(claim(relative=True)), [*three(A, 1, 2, 3), *three(B, 0, 1, 2)])


BLOCK_PARAMS = 4 * (256 * 256 + 256) + (256 * 1024 + 1024) + (1024 * 256 + 256) + 2 * 2 * 256  # q k v and out, MLP, two norms: 789,760
AROUND = (3 * 16 * 256 + 256) + 2 * 256 + 2 * 256 + 2 * (256 * 10 + 10)  # patches, two tokens, last norm, two heads: 18,708
RELATIVE = 8 * 8 * (3 + 2 * 15) + 4 * 8 * 2  # eight full blocks, four of class attention, eight heads: 2,176
STUDENT = 12 * BLOCK_PARAMS + AROUND + RELATIVE  # 9,498,004


def full_block(tokens: int) -> int:
    """2 FLOPs for each token in each of 4 x 256 x 256 + 2 x 256 x 1024 weights, and for q k^T and the weights times v 2 x 256 each."""
    return tokens * 2 * 786_432 + 2 * 2 * tokens * tokens * 256


def class_block(tokens: int) -> int:
    """As before for the two special tokens, but keys and values, 2 x 256 x 256 weights, of all."""
    return 2 * 2 * (2 * 65_536 + 2 * 262_144) + tokens * 2 * 131_072 + 2 * 2 * 2 * tokens * 256


def test_exact_metrics_by_hand() -> None:
    """What the ledger says at full size without a run: patches of 4 leave 64 + 2 tokens, of 2 leave 256 + 2."""
    assert (BLOCK_PARAMS, STUDENT, full_block(66), class_block(66)) == (789_760, 9_498_004, 108_269_568, 20_058_112)
    flops = {patch: 64 * 2 * 48 * 256 + 8 * full_block(n) + 4 * class_block(n) + 2 * 2 * 2560 for patch, n in ((4, 66), (2, 258))}
    assert flops[4] == 947_972_096
    got = {result.id: result for result in judge(claims.load(), (), profile="full")}
    by_formula = {
        "class-attention-work": ("supported", 100 * (20_058_112 / 108_269_568 - 1)),  # four fifths less, where the report has a quarter
        "patch-2-cost": ("supported", 100 * (flops[2] / flops[4] - 1)),
        "relative-position-params": ("supported", (RELATIVE - 66 * 256) / 1e6),
        "student-params": ("refuted", STUDENT / 1e6),
        "student-half-the-params": ("supported", 100 * (STUDENT / 23_520_842 - 1)),  # torchvision's ResNet-50, see test_cost.py
    }
    for name, (verdict, effect) in by_formula.items():
        assert (got[name].verdict, got[name].effect) == (verdict, pytest.approx(effect, abs=1e-8)), name
        assert (got[name].p, got[name].note) == (None, "by formula: nothing to estimate")
    assert got["class-attention-work"].effect == pytest.approx(-81.47, abs=0.01)
    assert got["patch-2-cost"].effect == pytest.approx(330.0, abs=0.1)
    assert {result.verdict for name, result in got.items() if name not in by_formula} == {"not measured"}


# --------------------------------------------------------------------------------------------------------- claims.yaml

LISTED = """
distillation-helps distillation-helps-plain student-beats-weak-teacher student-beats-sound-teacher teacher-strength-matters
temperature-above-1 temperature-below-4 kd-weight-half hybrid-beats-distillation
cat-dog-largest cat-to-dog-more cat-to-dog-share
patch-8-worse patch-2-marginal patch-2-cost smaller-patches-no-gain
class-attention-gain class-attention-work relative-position-accuracy relative-position-params two-heads-beat-class-head
two-heads-beat-distillation-head student-params student-half-the-params hybrid-gain hybrid-gain-moderate explicit-equals-built-in
ema-gain ema-schedule clean-tail regularisation-gain mixed-loss-plateau trivial-augment-alone random-erasing-alone drop-path-alone
label-smoothing-alone plain-vit-near-80
headline-01 headline-02 headline-03 headline-04 headline-05 headline-06 headline-06-top5 headline-teacher
"""
REQUIRED = LISTED.split()
DECLARED = claims.load()
ARMS = {arm.model_copy(update={"metric": None}) for declared in DECLARED.claims for arm in declared.arms}


def test_no_statement_of_the_reports_is_left_out() -> None:
    assert len(REQUIRED) == 45
    assert set(REQUIRED) <= {declared.id for declared in DECLARED.claims}
    assert (DECLARED.confidence, DECLARED.seeds) == (0.95, 3)


@pytest.mark.parametrize("profile", config.PROFILES)
def test_every_arm_resolves_and_two_arms_are_two_experiments(profile: str) -> None:
    """Also in a small profile, which could scale the difference away."""
    prints = {arm: claims.fingerprint(arm.resolve(profile), DIGEST) for arm in ARMS}
    assert len(set(prints.values())) == len(ARMS)


def test_every_arm_has_what_its_claim_measures() -> None:
    needs = {"test_ema_top1": "ema", "test_raw_top1": "ema", "teacher_gain": "distill"}
    metrics = dict.fromkeys(("test_raw_top1", "test_ema_top1", "test_cls_top1", "test_dist_top1"), 50.0)
    taught = TeacherFacts(
        experiment="t", fingerprint="f", seed=0, weights_sha256="a", validation_top1=1.0, test_top1=49.0, agreement=1.0, gain=1.0
    )
    counts = tuple(map(tuple, np.ones((10, 10), int).tolist()))
    record = run(A, classes=CIFAR10_CLASSES, counts=counts, metrics=metrics, teacher=taught)
    for declared in DECLARED.claims:
        for arm in declared.arms:
            metric, cfg = declared.metric_of(arm), arm.resolve("full").config
            if metric in claims.EXACT:
                assert claims.exact(arm.resolve("full"), metric, 10) > 0
                continue
            assert math.isfinite(claims.measure(record, metric)), declared.id
            if metric in needs:
                assert getattr(cfg, needs[metric]) is not None, declared.id
            if metric in ("test_cls_top1", "test_dist_top1"):
                assert cfg.model.distill_token, declared.id


def test_fingerprints_are_the_plans(tmp_path: Path) -> None:
    """What the ledger looks for is what a run of the same experiment and settings leaves, its teacher's fingerprint included."""
    source = Source("cifar10", "cifar10", None, DIGEST, CIFAR10_CLASSES, mirror=True)
    taught = 0
    for arm in ARMS:
        (*before, planned) = plan.make([arm.path], "ledger", source, [0], arm.set, tmp_path)
        assert claims.fingerprint(arm.resolve("ledger"), DIGEST) == planned.fingerprint
        taught += bool(before)
    assert taught > 5
    weak = Arm(experiment="06_kd_r50_class_attention", set=("distill.teacher=teachers/resnet50_weak.yaml",)).resolve("ledger")
    assert claims.fingerprint(weak, DIGEST) != claims.fingerprint(weak, DIGEST[::-1])


GOOD = """\
confidence: 0.95
seeds: 3
claims:
  - id: a
    statement: S.
    source: §1
    arms:
      - {experiment: 02_regularized_vit}
      - {experiment: 01_baseline_vit}
    metric: test_top1
    at_least: 0
"""
SECOND = "      - {experiment: 01_baseline_vit}\n"
MISTAKES = {
    "unknown key": (GOOD + "    atleast: 1\n", "x.yaml:12: claims.0.atleast: unknown key, expected one of: id, statement, source, arms,"),
    "unknown in an arm": (
        GOOD.replace("{experiment: 01_baseline_vit}", "{experiment: 01_baseline_vit, sets: [a]}"),
        "x.yaml:9: claims.0.arms.1.sets: unknown key, expected one of: experiment, set, metric",
    ),
    "unknown in within": (
        GOOD.replace("at_least: 0", "within: {of: 1, margin: 1, by: 2}"),
        "x.yaml:11: claims.0.within.by: unknown key, expected one of: of, margin",
    ),
    "unknown at the top": (GOOD + "family: 1\n", "x.yaml:12: family: unknown key, expected one of: confidence, seeds, claims"),
    "missing": (GOOD.replace("    statement: S.\n", ""), "x.yaml:4: claims.0.statement: missing; add it"),
    "two rules": (GOOD + "    at_most: 1\n", "x.yaml:4: claims.0: give exactly one of 'at_least', 'at_most', 'within'"),
    "no rule": (GOOD.replace("    at_least: 0\n", ""), "x.yaml:4: claims.0: give exactly one of"),
    "no metric": (GOOD.replace("    metric: test_top1\n", ""), "x.yaml:4: claims.0: give 'metric', for the claim or for each arm"),
    "a metric of one arm only": (
        GOOD.replace("    metric: test_top1\n", "").replace("02_regularized_vit}", "02_regularized_vit, metric: test_top1}"),
        "x.yaml:4: claims.0: give 'metric'",
    ),
    "relative to nothing": (GOOD.replace(SECOND, "") + "    relative: true\n", "x.yaml:4: claims.0: relative: needs a second arm"),
    "formula and training mixed": (
        GOOD.replace("01_baseline_vit}", "01_baseline_vit, metric: params}"),
        "x.yaml:4: claims.0: metric: one arm's is trained for and the other's is not",
    ),
    "no arms": (GOOD.replace("      - {experiment: 02_regularized_vit}\n" + SECOND, "").replace("arms:", "arms: []"), "x.yaml:7: claims.0.arms:"),
    "three arms": (GOOD.replace(SECOND, 2 * SECOND), "x.yaml:7: claims.0.arms:"),
    "one id twice": (GOOD + GOOD.partition("claims:\n")[2], "x.yaml:1: ledger: claims: two have the id a"),
    "no id": (GOOD.replace("id: a", "id: A b"), "x.yaml:4: claims.0.id:"),
    "a word for a number": (GOOD.replace("at_least: 0", "at_least: much"), "x.yaml:11: claims.0.at_least: Input should be a valid number"),
    "not finite": (GOOD.replace("at_least: 0", "at_least: .inf"), "x.yaml:11: claims.0.at_least: Input should be a finite number"),
    "no margin": (GOOD.replace("at_least: 0", "within: {of: 1, margin: 0}"), "x.yaml:11: claims.0.within.margin:"),
    "no such metric's name": (GOOD.replace("metric: test_top1", "metric: Test top1"), "x.yaml:10: claims.0.metric:"),
    "confidence in percent": (GOOD.replace("confidence: 0.95", "confidence: 95"), "x.yaml:1: confidence: Input should be less than 1"),
    "one seed": (GOOD.replace("seeds: 3", "seeds: 1"), "x.yaml:2: seeds: Input should be greater than or equal to 2"),
}  # fmt: skip


def test_the_file_without_mistakes_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(GOOD, encoding="utf-8")
    got = claims.load(tmp_path / "x.yaml")
    assert got.claims == (claim(id="a"),)


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_file_and_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as e:  # noqa: PT011
        claims.load(Path("x.yaml"))
    assert str(e.value).startswith(expected)
