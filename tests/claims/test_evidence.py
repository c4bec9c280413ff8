"""Spread pooled over arms, against statsmodels' linear and mixed models, scipy and hand-worked numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats as scipy_stats

from tests.support.claims import UP, claim, ledger
from vitlab import stats
from vitlab.claims import evidence
from vitlab.claims.declarations import Arm, Family

PLAIN = ("01_baseline_vit", "02_regularized_vit", "05_kd_r18")
HYBRID = ("03_hybrid_r18", "04_explicit_transformer")
ARMS = {name: Arm(experiment=name) for name in (*PLAIN, *HYBRID)}
FAMILIES = {"plain": Family(experiments=PLAIN, sd=1.0), "hybrid": Family(experiments=HYBRID, sd=1.0)}


def table(seed: int, arms: int, seeds: int, sd: float = 1.0, seed_sd: float = 0.5) -> np.ndarray:
    """(arms, seeds): values with a part that the arms share by seed."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, seed_sd, (1, seeds)) + rng.normal(0, sd, (arms, seeds)) + np.arange(arms)[:, None]


def long(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame([{"arm": a, "seed": s, "y": y} for a, row in enumerate(values) for s, y in enumerate(row)])


def given(**rows: np.ndarray) -> evidence.Values:
    """Values of the arms whose names begin with the keywords, `x01` for 01_baseline_vit."""
    by_name = {name: dict(enumerate(rows[f"x{name[:2]}"].tolist())) for name in ARMS if f"x{name[:2]}" in rows}

    def values(arm: Arm, metric: str) -> Mapping[int, float]:
        return by_name.get(arm.experiment, {})

    return values


def no_images(claim: object, seeds: object) -> float:
    return 0.0


# --------------------------------------------------------------------------------------------------- analysis of variance


def test_mean_squares_by_hand() -> None:
    """Arms 1, 2, 3 and 3, 2, 7. Means of arms 2 and 4, of seeds 2, 2, 5, of all 3. Between seeds: 2 * (1 + 1 + 4) / 2 = 6. Residuals 0, 1, -1
    and 0, -1, 1: 4 / 2 = 2. Of the first arm alone, (1 + 0 + 1) / 2 = 1."""
    squares = stats.mean_squares(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]]))
    assert (squares.of_seeds, squares.residual) == pytest.approx((6.0, 2.0))
    assert squares.parts([1, -1]) == [(4.0, 2)]  # twice the residual, and the seeds cancel
    assert squares.parts([1, 0]) == [(3.0, 2), (1.0, 2)]  # half of each
    assert stats.satterthwaite([(3.0, 2), (1.0, 2)]) == pytest.approx((4.0, 16 / (9 / 2 + 1 / 2)))
    alone = stats.mean_squares(np.array([[1.0, 2.0, 3.0]]))
    assert stats.satterthwaite(alone.parts([1])) == (1.0, 2.0)


@pytest.mark.parametrize("seed", range(4))
def test_a_contrast_within_a_family_is_that_of_a_linear_model_of_arm_and_seed(seed: int) -> None:
    values = table(seed, 4, 6)
    fit = smf.ols("y ~ C(arm) + C(seed)", long(values)).fit()
    theirs = fit.t_test("C(arm)[T.2] - C(arm)[T.1] = 0")
    variance, df = stats.satterthwaite(stats.mean_squares(values).parts([0, -1, 1, 0]))
    got = stats.estimate((values[2] - values[1]).tolist(), UP, 0.95, variance, df)
    assert df == pytest.approx(fit.df_resid) == 15
    assert got.mean == pytest.approx(theirs.effect.item())
    assert (got.low, got.high) == pytest.approx(theirs.conf_int(0.05)[0])
    assert got.p == pytest.approx(theirs.pvalue.item())


def test_an_arms_mean_in_a_family_is_that_of_a_mixed_model() -> None:
    """With more spread between seeds than within, REML finds the same parts as the mean squares."""
    values = table(7, 3, 12, sd=0.5, seed_sd=1.5)
    fit = smf.mixedlm("y ~ C(arm)", long(values), groups="seed").fit(reml=True)
    variance, _ = stats.satterthwaite(stats.mean_squares(values).parts([1, 0, 0]))
    assert variance / 12 == pytest.approx(fit.cov_params().loc["Intercept", "Intercept"], rel=1e-3)


def test_with_two_arms_it_is_the_paired_test_and_across_single_arms_welchs() -> None:
    values = table(1, 2, 5)
    variance, df = stats.satterthwaite(stats.mean_squares(values).parts([1, -1]))
    paired = scipy_stats.ttest_rel(values[0], values[1])
    assert stats.estimate((values[0] - values[1]).tolist(), UP, 0.95, variance, df).p == pytest.approx(paired.pvalue)
    parts = [part for row, weight in zip(values, (1, -1), strict=True) for part in stats.mean_squares(row[None]).parts([weight])]
    welch = scipy_stats.ttest_ind(values[0], values[1], equal_var=False)
    variance, df = stats.satterthwaite(parts)
    assert df == pytest.approx(welch.df)
    assert stats.estimate((values[0] - values[1]).tolist(), UP, 0.95, variance, df).p == pytest.approx(welch.pvalue)


def test_equal_spread_is_scipys_levene_by_medians() -> None:
    for seed in range(5):
        values = table(seed, 3, 6) * np.array([[1.0], [3.0], [0.5]])
        assert stats.equal_spread(values) == pytest.approx(scipy_stats.levene(*values, center="median").pvalue)
    assert stats.equal_spread(np.zeros((2, 3))) == 1.0


# -------------------------------------------------------------------------------------------------------------- pooling


def test_a_claims_family_is_all_arms_that_are_tested_by_the_same_metric() -> None:
    gain = claim(arms=(ARMS[PLAIN[1]], ARMS[PLAIN[0]]))
    taught = claim(id="d", arms=(ARMS[PLAIN[2]], ARMS[PLAIN[1]]))
    top5 = claim(id="e", arms=(Arm(experiment=PLAIN[0], set=("train.epochs=2",)), ARMS[PLAIN[0]]), metric="test_top5")
    across = claim(id="f", arms=(ARMS[HYBRID[0]], ARMS[PLAIN[1]]))
    own = ledger(gain, taught, top5, across, families=FAMILIES)
    assert evidence.pools(own, gain, own.claims) == {"plain": [ARMS[PLAIN[1]], ARMS[PLAIN[0]], ARMS[PLAIN[2]]]}
    assert {name: len(arms) for name, arms in evidence.pools(own, across, own.claims).items()} == {"hybrid": 1, "plain": 3}
    assert len(evidence.pools(own, top5, own.claims)["plain"]) == 2
    for other in (claim(arms=(ARMS[PLAIN[0]],)), claim(relative=True), claim(spread=True)):
        assert evidence.pools(own, other, own.claims) == {}
    assert evidence.pools(ledger(gain), gain, (gain,)) == {}


def test_the_variance_is_the_familys_and_never_less_than_the_claims_own() -> None:
    """The two arms' differences hardly spread, as they may by chance; the family's arms do."""
    first, off = np.array([50.0, 51.2, 49.1, 50.6, 52.0, 50.3]), np.array([0.02, -0.02, 0.01, 0.0, -0.01, 0.0])
    third = np.array([51.0, 50.2, 50.9, 49.6, 51.3, 52.1])
    gain = claim(arms=(ARMS[PLAIN[1]], ARMS[PLAIN[0]]))
    taught = claim(id="d", arms=(ARMS[PLAIN[2]], ARMS[PLAIN[1]]))
    own = ledger(gain, taught, families=FAMILIES, seeds=(6,))
    values = given(x01=first, x02=first + 2 + off, x05=third)
    squares = stats.mean_squares(np.array([first + 2 + off, first, third]))
    seeds = own.seeds(1)
    seen = evidence.gather(own, gain, own.claims, seeds, values, no_images)
    assert (seen.variance, seen.df, seen.spread) == (pytest.approx(2 * squares.residual), 10.0, "pooled over plain")
    assert seen.values == pytest.approx(2 + off)
    own_spread = np.var(third - (first + 2 + off), ddof=1)
    assert own_spread > 2 * squares.residual
    wider = evidence.gather(own, taught, own.claims, seeds, values, no_images)
    assert (wider.variance, wider.df) == (pytest.approx(own_spread, rel=1e-3), 5.0)
    assert wider.spread == "its own, larger than pooled over plain"
    images = evidence.gather(own, gain, own.claims, seeds, values, lambda claim, seeds: 9.0)
    assert (images.variance, images.df, images.spread) == (9.0, 10.0, "that of the test images")
    narrow = evidence.gather(own, taught, own.claims, seeds, values, lambda claim, seeds: 1.01 * own_spread)
    assert (narrow.df, narrow.spread) == (5.0, "that of the test images"), "its own spread was the larger one, and has fewer"


def test_a_family_that_spreads_unequally_is_not_pooled() -> None:
    rng = np.random.default_rng(0)
    calm, wild = rng.normal(50, 0.3, (2, 6)), rng.normal(50, 9.0, 6)
    values = given(x01=calm[0], x02=calm[1], x05=wild)
    gain = claim(arms=(ARMS[PLAIN[1]], ARMS[PLAIN[0]]))
    taught = claim(id="d", arms=(ARMS[PLAIN[2]], ARMS[PLAIN[1]]))
    own = ledger(gain, taught, families=FAMILIES, seeds=(6,))
    seen = evidence.gather(own, gain, own.claims, own.seeds(1), values, no_images)
    assert (seen.variance, seen.df) == (pytest.approx(np.var(calm[1] - calm[0], ddof=1), rel=1e-3), 5.0)
    assert seen.spread == "its own, since arms of plain spread unequally"
    (family,) = evidence.families(own, [own.claims], values)
    assert (family.name, family.seeds, len(family.arms), family.df, family.pooled) == ("plain", 6, 3, 10, False)
    assert family.levene == pytest.approx(scipy_stats.levene(*calm, wild, center="median").pvalue)
    assert family.levene < own.levene


def test_a_familys_spread_is_shown_for_each_stage_as_its_claims_are_judged_by_it() -> None:
    """The second stage is for `taught` alone: of its two arms, over all four seeds."""
    gain = claim(arms=(ARMS[PLAIN[1]], ARMS[PLAIN[0]]))
    taught = claim(id="d", arms=(ARMS[PLAIN[2]], ARMS[PLAIN[1]]))
    own = ledger(gain, taught, families=FAMILIES, seeds=(3, 4))
    values = table(3, 3, 4)
    found = evidence.families(own, [[gain, taught], [taught]], given(x01=values[0][:3], x02=values[1], x05=values[2]))
    assert [(f.name, f.seeds, f.arms, f.df) for f in found] == [
        ("plain", 3, (PLAIN[1], PLAIN[0], PLAIN[2]), 4),
        ("plain", 4, (PLAIN[2], PLAIN[1]), 3),
    ]
    for f, rows in zip(found, (values[:, :3], values[1:]), strict=True):
        assert f.sd == pytest.approx(stats.mean_squares(rows).residual ** 0.5)
    assert found[:1] == evidence.families(own, [[gain, taught], [taught]], given(x01=values[0], x02=values[1], x05=values[2][:3]))


def test_settings_in_another_order_or_spelling_are_the_same_arm() -> None:
    first, second = (
        Arm(experiment=PLAIN[0], set=of) for of in (("optim.lr=2e-4", "train.epochs=2"), ("train.epochs=2", "optim.lr=0.0002"))
    )
    third = Arm(experiment=PLAIN[0], set=("optim.lr=2e-3", "train.epochs=2"))
    one, other = claim(arms=(first, ARMS[PLAIN[0]])), claim(id="d", arms=(second, third))
    own = ledger(one, other, families=FAMILIES)
    assert evidence.pools(own, one, own.claims) == {"plain": [first, ARMS[PLAIN[0]], third]}


def test_a_stage_waits_for_all_arms_of_the_family() -> None:
    gain = claim(arms=(ARMS[PLAIN[1]], ARMS[PLAIN[0]]))
    taught = claim(id="d", arms=(ARMS[PLAIN[2]], ARMS[PLAIN[1]]))
    own = ledger(gain, taught, families=FAMILIES)
    both = {"x01": np.arange(3.0), "x02": np.arange(3.0)}
    assert evidence.lacking(own, gain, own.claims, own.seeds(1), given(**both, x05=np.arange(2.0))) == [ARMS[PLAIN[2]]]
    assert evidence.lacking(own, gain, own.claims, own.seeds(1), given(**both, x05=np.arange(3.0))) == []
    assert evidence.lacking(own, gain, (gain,), own.seeds(1), given(**both)) == []
    assert evidence.lacking(own, gain, (gain,), own.seeds(1), given(x01=np.arange(3.0))) == [ARMS[PLAIN[1]]]
