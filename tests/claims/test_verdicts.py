"""From declared claims and records to verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tests.support.claims import A, B, claim, judge, ledger, run, three
from vitlab import config, stats
from vitlab.claims import declarations, verdicts
from vitlab.claims.declarations import Arm, Claim, Family
from vitlab.claims.verdicts import Result
from vitlab.records import RunRecord

AHEAD = [*three(A, 52.1, 52.9, 53.0), *three(B, 50.0, 50.4, 49.9)]  # A's runs ahead of B's, by 2.1, 2.5 and 3.1

# ------------------------------------------------------------------------------------------------ from records to results


def test_a_result_tells_all_of_it() -> None:
    (got,) = judge(ledger(claim(claimed=2.5)), AHEAD)
    assert (got.seeds, got.values) == ((0, 1, 2), (2.1, 2.5, 3.1))
    assert got.effect == pytest.approx((2.1 + 2.5 + 3.1) / 3)
    assert got.p == got.p_holm == pytest.approx(scipy_stats.ttest_rel([52.1, 52.9, 53.0], [50.0, 50.4, 49.9]).pvalue)
    assert got.low < got.effect < got.high
    assert (got.verdict, got.changed, got.more_seeds, got.pair, got.history) == ("supported", False, None, None, ())
    assert (got.stage, got.df, got.spread) == (1, 2.0, "its own")
    assert got.sd == pytest.approx(np.std(got.values, ddof=1))
    assert [arm.records[2] for arm in got.arms] == ["02_regularized_vit-s2.json", "01_baseline_vit-s2.json"]
    assert [arm.fingerprint for arm in got.arms] == [AHEAD[0].fingerprint, AHEAD[3].fingerprint]
    assert (got.claimed, got.low_bound, got.high_bound, verdicts.rule(got)) == (2.5, 0.0, None, "≥ 0")
    assert Result.model_validate_json(got.model_dump_json()) == got


def test_the_other_way_round_it_is_refuted_and_of_one_arm_it_is_the_value() -> None:
    back = claim(arms=(B, A))
    alone = claim(id="d", arms=(A,), at_least=None, at_most=60.0)
    near = claim(id="e", arms=(A,), at_least=None, within=declarations.Within(of=52.5, margin=20.0))
    in_percent = claim(id="f", relative=True, at_least=4.0)
    got = judge(ledger(back, alone, near, in_percent), AHEAD)
    assert [r.verdict for r in got] == ["refuted", "supported", "supported", "undecided"]
    assert got[1].values == (52.1, 52.9, 53.0)
    assert got[3].values == (4.2, 4.9603, 6.2124)  # 2.1 / 50.0, 2.5 / 50.4, 3.1 / 49.9
    assert [verdicts.rule(r) for r in got] == ["≥ 0", "≤ 60", "52.5 ± 20", "≥ 4"]
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
    assert (one.verdict, one.effect, one.low, one.p, one.pair, one.seeds) == ("interim", 11.0, None, None, None, (1,))
    (common,) = judge(ledger(), [*three(A, 60, 61, 62), run(B, 1, 50.0), run(B, 2, 50.5), run(B, 7, 40.0)])
    assert (common.verdict, common.seeds, common.values) == ("interim", (1, 2), (11.0, 11.5))
    assert [set(arm.records) for arm in common.arms] == [{1, 2}, {1, 2}]


def test_one_seed_is_compared_image_by_image_and_still_interim() -> None:
    asked = []
    said = stats.pair(np.array([True] * 40), np.array([False] * 40), 0.95)

    def pairs(claim: Claim, runs: Sequence[RunRecord]) -> stats.Pair:
        asked.append((claim.id, [r.experiment for r in runs], [r.seed for r in runs]))
        return said

    runs = [*three(A, 60, 61), run(B, 1, 50.0)]
    (got,) = verdicts.judge(ledger(), "quick", runs, pairs)
    assert asked == [("c", ["02_regularized_vit", "01_baseline_vit"], [1, 1])]
    assert (got.verdict, got.pair, got.p_holm) == ("interim", said, None)
    assert said.p < 1e-11


def test_holm_counts_what_is_declared_primary_measured_or_not() -> None:
    """Of these five, three: what follows by formula has no p, what is exploratory is not tested."""
    exact = claim(id="d", metric="params", at_least=None, at_most=-1.0)
    single = claim(id="e", arms=(Arm(experiment="03_hybrid_r18"),))
    unmeasured = claim(id="f", arms=(Arm(experiment="04_explicit_transformer"),))
    looked_at = claim(id="g", primary=False)
    got = judge(ledger(claim(), exact, single, unmeasured, looked_at), [*AHEAD, run(single.arms[0])])
    assert got[0].p_holm == pytest.approx(3 * got[0].p)
    assert [r.p_holm for r in got[1:]] == [None] * 4
    assert [r.verdict for r in got] == ["supported", "refuted", "interim", "not measured", "exploratory"]


def test_no_spread_is_no_evidence() -> None:
    """The same difference three times, far from the bound or at it; also where float32 left numbers that are not quite the same."""

    def losses(arm: Arm, *values: float) -> list[RunRecord]:
        return [run(arm, seed, metrics={"test_loss": value}) for seed, value in enumerate(values)]

    (far,) = judge(ledger(claim(metric="test_loss")), [*losses(A, 5.5, 5.6, 5.7), *losses(B, 5.0, 5.1, 5.2)])
    assert (far.verdict, far.effect, far.p, far.low, far.more_seeds) == ("undecided", 0.5, 1.0, None, None)
    assert "no spread" in far.note
    as_stored = [float(np.float32(v / 100)) * 100 for v in (50.25, 50.57, 53.21, 49.95, 50.27, 52.91)]
    assert len({a - b for a, b in zip(as_stored[:3], as_stored[3:])}) > 1
    (at,) = judge(ledger(claim(metric="test_loss", at_least=0.3)), [*losses(A, *as_stored[:3]), *losses(B, *as_stored[3:])])
    assert (at.verdict, at.values, at.p) == ("undecided", (0.3, 0.3, 0.3), 1.0)


# ----------------------------------------------------------------------------------------------- at least the images' variance


def test_no_interval_is_narrower_than_the_test_images_allow() -> None:
    """5 points in every seed, on 10,000 images: at least 500 of them apart, so a variance of (0.05 - 0.05^2) / 10,000, or 0.0475 points^2."""
    (got,) = judge(ledger(), [*three(A, 55, 56, 57, test=10_000), *three(B, 50, 51, 52, test=10_000)])
    assert (got.values, got.spread, got.df) == ((5.0, 5.0, 5.0), "that of the test images", 2.0)
    assert got.sd == pytest.approx(math.sqrt(0.0475))
    assert got.high - got.effect == pytest.approx(4.302653 * math.sqrt(0.0475 / 3), rel=1e-6)
    assert got.p == pytest.approx(2 * scipy_stats.t.sf(5 / math.sqrt(0.0475 / 3), 2))
    # differences of 4, 5, 6 have a variance of 1 of their own
    (own,) = judge(ledger(), [*three(A, 54, 56, 58, test=10_000), *three(B, 50, 51, 52, test=10_000)])
    assert (own.sd, own.spread) == (pytest.approx(1.0), "its own")


def test_of_averaged_and_raw_weights_it_is_known_how_many_images_they_share() -> None:
    """Half a point on 10,000 images; 2, 3 and 4 % of them are right by one of the two alone: (0.03 - 0.005^2) / 10,000 on average."""
    arms = tuple(Arm(experiment="06_kd_r50_class_attention", metric=metric) for metric in ("test_ema_top1", "test_raw_top1"))
    both = {"test_ema_top1": 50.5, "test_raw_top1": 50.0}
    declared = ledger(claim(arms=arms, metric=None))
    (got,) = judge(declared, [run(arms[0], s, metrics=both | {"test_ema_or_raw_alone": 2.0 + s}, test=10_000) for s in range(3)])
    assert (got.sd, got.spread) == (pytest.approx(math.sqrt(0.03 - 0.005**2)), "that of the test images")
    (unknown,) = judge(declared, [run(arms[0], s, metrics=both, test=10_000) for s in range(3)])
    assert unknown.sd == pytest.approx(math.sqrt(0.005 - 0.005**2))


def test_the_validation_images_count_for_what_they_measure() -> None:
    """10 points on 10 images: (0.1 - 0.1^2) / 10, or 90 points^2."""
    arms = tuple(Arm(experiment=A.experiment, metric=metric) for metric in ("validation_top1", "validation_top1_phase_0"))
    runs = [run(A, seed, metrics={"validation_top1": 60.0, "validation_top1_phase_0": 50.0}) for seed in range(3)]
    (got,) = judge(ledger(claim(arms=arms, metric=None)), runs)
    assert got.sd == pytest.approx(math.sqrt(90))


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
    (other_profile,) = judge(ledger(), [*three(A, 52, 53, 54, profile="overnight"), *three(B, 50, 50, 51, profile="overnight")])
    assert other_profile.verdict == "not measured"
    spelt_out = Arm(experiment=A.experiment, set=("train.precision=auto",))
    (same,) = judge(ledger(), [*three(spelt_out, 52, 53, 54), *three(B, 50, 50, 51)])
    assert same.seeds == (0, 1, 2)


def test_full_size_only_is_about_full_size_only() -> None:
    at_full = claim(arms=(B,), full_size_only=True, at_least=None, within=declarations.Within(of=80.0, margin=1.0))
    (small,) = judge(ledger(at_full), three(B, 79.9, 80.0, 80.1))
    assert (small.verdict, small.note, small.p) == ("not measured", "about full size only", None)
    (full,) = judge(ledger(at_full), three(B, 79.9, 80.0, 80.1, profile="full"), profile="full")
    assert full.verdict == "supported"
    # also where nothing is trained: the number is of the full size
    params = claim(arms=(B,), metric="params", full_size_only=True)
    assert [judge(ledger(params), (), profile=profile)[0].verdict for profile in config.PROFILES] == ["not measured"] * 3 + ["supported"]


def test_a_gain_is_held_against_another_gain() -> None:
    """(53 - 50) - (51 - 50.5) = 2.5 and so on; what only one of the four arms has not counts for none."""
    c, d = Arm(experiment="03_hybrid_r18"), Arm(experiment="04_explicit_transformer")
    runs = [*three(A, 53, 54, 55.5, 99.0), *three(B, 50, 50, 51), *three(c, 51, 52, 52), *three(d, 50.5, 51, 51)]
    (got,) = judge(ledger(claim(arms=(A, B, c, d))), runs)
    assert got.values == (2.5, 3.0, 3.5)
    assert (got.unit, got.verdict, len(got.arms)) == ("points", "supported", 4)


def test_spread_is_the_distance_from_the_arms_median() -> None:
    """Distances of 50, 54, 51 from 51: 1, 3, 0; of 60, 60.5, 62 from 60.5: 0.5, 0, 1.5. Their means are what Brown and Forsythe compare."""
    first, second = (50.0, 54.0, 51.0), (60.0, 60.5, 62.0)
    (got,) = judge(ledger(claim(spread=True)), [*three(A, *first), *three(B, *second)])
    assert got.values == (0.5, 3.0, -1.5)
    assert got.metric == "spread over seeds of test_top1"
    (single,) = judge(ledger(claim(spread=True)), [run(A), run(B)])
    assert (single.verdict, single.effect, single.note) == ("not measured", None, "one seed has no spread")
    z = [[abs(v - np.median(of)) for v in of] for of in (first, second)]
    assert scipy_stats.f_oneway(*z).statistic == pytest.approx(scipy_stats.levene(first, second, center="median").statistic)
    assert got.effect == pytest.approx(np.mean(z[0]) - np.mean(z[1]))


def test_what_is_exploratory_is_measured_and_not_judged() -> None:
    exact = claim(id="f", primary=False, metric="params", at_least=None, at_most=-1.0)
    others = [claim(id="d", primary=False), claim(id="e", primary=False, full_size_only=True), exact]
    got = judge(ledger(claim(), *others), AHEAD)
    assert [r.verdict for r in got] == ["supported", *["exploratory"] * 3]
    assert (got[1].values, got[1].low, got[1].high) == (got[0].values, got[0].low, got[0].high)
    assert (got[1].p, got[1].p_holm, got[1].more_seeds, got[1].stage) == (None, None, None, None)
    assert got[0].p_holm == got[0].p  # a family of one
    assert (got[2].effect, got[2].note) == (None, "about full size only")
    assert (got[3].effect, got[3].note) == (0.0, "by formula: nothing to estimate")
    # and of all its seeds, where there are more than are planned
    more = judge(ledger(claim(), *others), [*AHEAD, run(A, 3, 53.0), run(B, 3, 50.0)])
    assert (more[0].seeds, more[1].seeds) == ((0, 1, 2), (0, 1, 2, 3))


def test_records_older_than_a_metric_are_left_out() -> None:
    arms = (Arm(experiment=A.experiment, metric="test_confidence"),)
    younger = [run(A, seed, metrics={"test_confidence": 90.0 + seed}) for seed in (1, 2)]
    (got,) = judge(ledger(claim(arms=arms, metric=None)), [run(A), *younger])
    assert (got.seeds, got.values, got.note) == ((1, 2), (91.0, 92.0), "records without test_confidence are left out")
    (none,) = judge(ledger(claim(arms=arms, metric=None)), [run(A)])
    assert (none.verdict, none.note) == ("not measured", "records without test_confidence are left out")


# -------------------------------------------------------------------------------------------------------- planned seeds

C, D = Arm(experiment="03_hybrid_r18"), Arm(experiment="04_explicit_transformer")


def apart(first: Arm, second: Arm, *differences: float, first_seed: int = 0) -> list[RunRecord]:
    """Runs of two arms that differ by so much, from `first_seed` on."""
    seeds = range(first_seed, first_seed + len(differences))
    return [r for seed, d in zip(seeds, differences, strict=True) for r in (run(first, seed, 50.0 + d), run(second, seed, 50.0))]


def test_until_the_planned_seeds_are_complete_a_result_is_interim() -> None:
    """However clear it looks."""
    (two,) = judge(ledger(), apart(A, B, 9.9, 10.0))
    assert (two.verdict, two.seeds, two.stage, two.p, two.p_holm, two.more_seeds) == ("interim", (0, 1), None, None, None, None)
    assert two.effect == pytest.approx(9.95)
    assert two.high - two.effect == pytest.approx(scipy_stats.t.ppf(0.975, 1) * np.std([9.9, 10.0], ddof=1) / math.sqrt(2))
    (three_of,) = judge(ledger(), apart(A, B, 9.9, 10.0, 10.1))
    assert (three_of.verdict, three_of.stage) == ("supported", 1)


def test_seeds_outside_the_plan_give_no_verdict_and_change_none() -> None:
    planned = ledger(first_seed=10)
    tuning, tested = apart(A, B, *[9.9, 10.0, 10.1] * 3), apart(A, B, -3.0, -3.1, -3.2, first_seed=10)
    (before,) = judge(planned, tuning)
    assert (before.verdict, before.seeds, before.p_holm) == ("interim", tuple(range(9)), None)
    assert before.note == "of seeds that are never tested, which begin with 10"
    (begun,) = judge(planned, [*tuning, *tested[:2]])
    assert (begun.verdict, begun.seeds, begun.values, begun.note) == ("interim", (10,), (-3.0,), "one seed: no interval over seeds")
    (alone,), (among) = judge(planned, tested), judge(planned, [*tuning, *tested, *apart(A, B, 50.0, first_seed=13)])
    assert (alone.verdict, alone.seeds) == ("refuted", (10, 11, 12))
    assert among == [alone]


def test_no_claim_is_judged_before_all_arms_of_its_families_are_there() -> None:
    """c's own runs are complete; what it is judged by has a third arm. With that the variance is the mean one of the three differences."""
    taught = Arm(experiment="05_kd_r18")
    plain = {"plain": Family(experiments=tuple(arm.experiment for arm in (A, B, taught)), sd=0.5)}
    declared = ledger(claim(), claim(id="d", arms=(taught, B)), families=plain)
    values = ((52.0, 52.9, 53.0), (50.0, 50.6, 50.4), (51.0, 51.2, 52.0))
    runs = [r for arm, of in zip((A, B, taught), values, strict=True) for r in three(arm, *of)]
    missing = judge(declared, runs[:-1])
    assert [(r.verdict, r.p, r.family) for r in missing] == [("interim", None, "plain")] * 2
    assert missing[0].note == "its own seeds are complete; its spread is its family's, which lacks seeds of 05_kd_r18"
    assert missing[1].note == ""
    first, second = judge(declared, runs)
    pairs = [np.var(np.subtract(values[i], values[j]), ddof=1) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert first.sd == pytest.approx(math.sqrt(np.mean(pairs)))
    assert (first.spread, first.df, second.stage) == ("pooled over plain", 4.0, 1)


# --------------------------------------------------------------------------------------------------------------- stages

TWO_STAGES = (3, 6)  # each with half the level
CLEAR, OPEN = (2.5, 2.6, 2.7), (1.0, 3.0, 2.0)  # t = 45 and 3.46, with two degrees of freedom
BOTH = ledger(claim(), claim(id="d", arms=(C, D)), seeds=TWO_STAGES)


def test_a_second_stage_is_for_what_the_first_left_open() -> None:
    """d's six values are 2.0 on average with a variance of 0.404: t = 7.71. c's later seeds, for it or against it, are not asked."""
    first, open_still = judge(BOTH, [*apart(A, B, *CLEAR), *apart(C, D, *OPEN)])
    assert (first.verdict, first.stage, first.p_holm) == ("supported", 1, pytest.approx(2 * 2 * first.p))
    assert (open_still.verdict, open_still.stage, open_still.seeds) == ("undecided", 1, (0, 1, 2))
    assert (first.awaits, open_still.awaits) == (None, 2)
    assert open_still.p_holm == pytest.approx(2 * scipy_stats.ttest_1samp(OPEN, 0).pvalue)
    few, many = open_still.more_seeds
    assert 1 <= few < many

    six = (*OPEN, 2.0, 2.1, 1.9)
    for later in ((-5.0, -5.1, -5.2), (2.6, 2.6, 2.6)):
        kept, decided = judge(BOTH, [*apart(A, B, *CLEAR, *later), *apart(C, D, *six)])
        assert kept.model_copy(update={"p_holm": first.p_holm}) == first
        assert kept.p_holm <= first.p_holm
    assert (decided.verdict, decided.stage, decided.seeds) == ("supported", 2, tuple(range(6)))
    assert decided.p == pytest.approx(scipy_stats.ttest_1samp(six, 0).pvalue)
    # half the level each; c's p is the smaller one, so it has Holm's factor of 2, and no later step is below it
    assert 2 * kept.p < 2 * decided.p < 2 * 2 * kept.p
    assert decided.p_holm == kept.p_holm == pytest.approx(2 * 2 * kept.p)


def test_a_second_stage_begins_when_it_and_the_first_are_complete() -> None:
    six = (*OPEN, 2.0, 2.1, 1.9)
    for runs in ([*apart(A, B, *CLEAR), *apart(C, D, *six[:5])], [*apart(A, B, *CLEAR[:2]), *apart(C, D, *six)]):
        waiting = judge(BOTH, runs)[1]
        assert (waiting.verdict, waiting.stage, waiting.seeds) == ("undecided", 1, (0, 1, 2))
    assert [r.awaits for r in judge(BOTH, runs)] == [1, None], "a second stage begins when all have their first"


def test_what_the_first_stage_left_open_stays_open_when_others_decide_it() -> None:
    """Two-sided p of .02 and .03, doubled for the stage's half of the level: .04 and .06, and Holm doubles the smaller one again, so both are open.
    d's second stage is clear, which lets c pass by its first one: .04. c's second stage began all the same, and is not cut short."""
    off = np.array([-1.0, 0.0, 1.0])  # SD 1
    c_first, d_first = (float(scipy_stats.t.isf(p / 2, 2)) / math.sqrt(3) + off for p in (0.02, 0.03))
    first = [*apart(A, B, *c_first), *apart(C, D, *d_first)]
    c, d = judge(BOTH, first)
    assert [c.p_holm, d.p_holm] == pytest.approx([0.08, 0.08], rel=1e-3)
    assert [(r.verdict, r.stage, r.awaits) for r in (c, d)] == [("undecided", 1, 2)] * 2
    second = apart(C, D, *(float(d_first.mean()) + off / 100), first_seed=3)
    c, d = judge(BOTH, [*first, *second])
    assert [(r.verdict, r.stage, r.awaits) for r in (c, d)] == [("supported", 1, 2), ("supported", 2, None)]
    assert c.p_holm == pytest.approx(0.04, rel=1e-3)


def test_a_verdict_that_was_given_is_not_given_again_by_a_later_stage() -> None:
    """c is supported by its first stage once d is decided, as above. Its own second stage is far below 0, with a smaller p."""
    declared = ledger(*BOTH.claims, seeds=(3, 12))
    off = np.array([-1.0, 0.0, 1.0])
    c_first, d_first = (float(scipy_stats.t.isf(p / 2, 2)) / math.sqrt(3) + off for p in (0.02, 0.03))
    c_later, d_later = (middle + np.tile(off / 100, 3) for middle in (-60.0, d_first.mean()))
    runs = [*apart(A, B, *c_first), *apart(C, D, *d_first, *d_later)]
    given, _ = judge(declared, runs)
    c, _ = judge(declared, [*runs, *apart(A, B, *c_later, first_seed=3)], [given])
    assert (given.verdict, given.stage) == (c.verdict, c.stage) == ("supported", 1)
    assert (c.seeds, c.history) == ((0, 1, 2), ())
    assert scipy_stats.ttest_1samp([*c_first, *c_later], 0).pvalue < 0.001


def test_more_seeds_are_counted_with_holms_factor_of_all_that_is_not_decided() -> None:
    """Measured or not: 1, 3, 2 alone, and beside a claim without any runs."""
    (alone,) = judge(ledger(), apart(A, B, *OPEN))
    beside, _ = judge(ledger(claim(), claim(id="d", arms=(C, D))), apart(A, B, *OPEN))
    for got, undecided in ((alone, 1), (beside, 2)):
        assert got.more_seeds == tuple(stats.seeds_needed(2.0, sd, 0.05 / undecided, 3) for sd in stats.sd_range(1.0, 2))
    assert alone.more_seeds != beside.more_seeds


def test_one_configuration_spelt_in_two_ways_is_one_arm_of_its_family() -> None:
    """`precision: auto` is the default. As two arms they would halve their spread and have degrees of freedom that they do not have."""
    spelt_out = Arm(experiment=B.experiment, set=("train.precision=auto",))
    plain = {"plain": Family(experiments=(A.experiment, B.experiment), sd=0.5)}
    runs = [*three(A, 52.0, 52.9, 53.0), *three(B, 50.0, 50.6, 50.4)]
    alike, apart = (ledger(claim(), claim(id="d", arms=(A, arm), at_least=1.0), families=plain) for arm in (B, spelt_out))
    assert [(r.sd, r.df, r.p) for r in judge(alike, runs)] == [(r.sd, r.df, r.p) for r in judge(apart, runs)]
    (family,) = verdicts.families(apart, "quick", runs)
    assert (family.arms, family.df) == ((A.experiment, B.experiment), 2)


def test_families_of_one_arm_each_are_not_said_to_be_pooled() -> None:
    families = {name: Family(experiments=(arm.experiment,), sd=0.5) for name, arm in (("plain", A), ("hybrid", C))}
    (got,) = judge(ledger(claim(arms=(A, C)), families=families), [*three(A, 51.0, 53.0, 53.0), *three(C, 50.0, 50.4, 49.9)])
    assert got.sd == pytest.approx(math.sqrt(np.var([51, 53, 53], ddof=1) + np.var([50, 50.4, 49.9], ddof=1)))
    assert got.spread == "its arms' variances, added up"


# -------------------------------------------------------------------------------------------------------------- history


def test_a_claim_changed_after_measuring_is_marked_and_stays_marked() -> None:
    first = judge(ledger(), AHEAD)
    assert not judge(ledger(), AHEAD, first)[0].changed
    stricter = judge(ledger(claim(at_least=1.0)), AHEAD, first)
    assert stricter[0].changed
    assert judge(ledger(claim(at_least=1.0)), AHEAD, stricter)[0].changed
    assert judge(ledger(), AHEAD, stricter)[0].changed  # and back
    lost = judge(ledger(claim(at_least=1.0)), [], stricter)
    assert (lost[0].verdict, lost[0].changed) == ("not measured", True)
    assert judge(ledger(claim(at_least=1.0)), AHEAD, lost)[0].changed


def test_a_claim_may_change_until_it_is_measured() -> None:
    before = judge(ledger(), [])
    assert before[0].verdict == "not measured"
    assert not judge(ledger(claim(at_least=1.0)), AHEAD, before)[0].changed
    unseen = judge(ledger(claim(primary=False)), [])
    assert not judge(ledger(), AHEAD, unseen)[0].changed
    one_seed = judge(ledger(), [AHEAD[0], AHEAD[3]])  # interim, but seen
    assert judge(ledger(claim(at_least=1.0)), AHEAD, one_seed)[0].changed


def test_a_claim_may_change_while_its_seeds_for_tuning_alone_were_seen() -> None:
    seen, planned = AHEAD, apart(A, B, *CLEAR, first_seed=10)
    for runs, changed in ((seen, False), ([*seen, *planned[:2]], True)):
        before = judge(ledger(first_seed=10), runs)
        assert judge(ledger(claim(at_least=1.0), first_seed=10), [*seen, *planned], before)[0].changed == changed


def test_who_deletes_all_runs_first_has_changed_the_claim_all_the_same() -> None:
    emptied = judge(ledger(), [], judge(ledger(), AHEAD))
    assert (emptied[0].verdict, emptied[0].changed, [past.verdict for past in emptied[0].history]) == ("not measured", False, ["supported"])
    assert judge(ledger(claim(at_least=1.0)), AHEAD, emptied)[0].changed


def test_a_verdict_that_lost_a_seed_stays_in_the_history() -> None:
    first = judge(ledger(), AHEAD)
    dropped = judge(ledger(), AHEAD[:-1], first)
    (was,) = dropped[0].history
    assert (dropped[0].verdict, dropped[0].seeds) == ("interim", (0, 1))
    assert {name: getattr(was, name) for name in verdicts.Past.model_fields} == {
        name: getattr(first[0], name) for name in verdicts.Past.model_fields
    }
    assert (was.verdict, was.seeds, was.p_holm) == ("supported", (0, 1, 2), first[0].p_holm)
    assert judge(ledger(), AHEAD[:-1], dropped) == dropped, "judged again, nothing is added"
    (back,) = judge(ledger(), AHEAD, dropped)
    assert (back.verdict, back.history, back.changed) == ("supported", (was,), False)


def test_undecided_after_its_stage_and_then_interim_stays_in_the_history() -> None:
    """c has all its seeds; the third arm of its family has lost one."""
    taught = Arm(experiment="05_kd_r18")
    plain = {"plain": Family(experiments=tuple(arm.experiment for arm in (A, B, taught)), sd=0.5)}
    declared = ledger(claim(), claim(id="d", arms=(taught, B)), families=plain)
    runs = [*three(A, 50.5, 52.9, 49.0), *three(B, 50.0, 50.6, 50.4), *three(taught, 51.0, 51.2, 52.0)]
    first = judge(declared, runs)
    assert first[0].verdict == "undecided"
    lost = judge(declared, runs[:-1], first)
    assert (lost[0].verdict, lost[0].seeds, [past.verdict for past in lost[0].history]) == ("interim", (0, 1, 2), ["undecided"])
    assert judge(declared, runs[:-1], lost) == lost


def test_a_bad_seed_trained_anew_is_not_forgotten() -> None:
    first = judge(ledger(), apart(A, B, 2.0, 2.1, -9.0))
    again = [*apart(A, B, 2.0, 2.1), run(A, 2, 52.2, finished="2026-01-02T11:00:00+00:00"), run(B, 2, 50.0)]
    (got,) = judge(ledger(), again, first)
    assert (got.verdict, got.values) == ("supported", (2.0, 2.1, 2.2))
    assert [(past.verdict, past.values) for past in got.history] == [("undecided", (2.0, 2.1, -9.0))]


def test_what_an_earlier_declaration_said_stays_in_the_history() -> None:
    first = judge(ledger(), AHEAD)
    stricter = judge(ledger(claim(at_least=2.5)), AHEAD, first)
    assert [(past.declaration, past.verdict) for past in stricter[0].history] == [(first[0].declaration, "supported")]
    back = judge(ledger(), AHEAD, stricter)
    said = [(first[0].declaration, "supported"), (stricter[0].declaration, "undecided")]
    assert [(past.declaration, past.verdict) for past in back[0].history] == said
    assert judge(ledger(), AHEAD, back) == back


def test_seeds_that_are_added_as_planned_leave_no_history() -> None:
    before: list[Result] = []
    said = []
    for n in range(2, len(AHEAD) + 1, 2):
        before = judge(ledger(), [*AHEAD[: n // 2], *AHEAD[3 : 3 + n // 2]], before)
        said.append((before[0].verdict, before[0].history, before[0].changed))
    assert said == [("interim", (), False), ("interim", (), False), ("supported", (), False)]
    spread = ledger(claim(spread=True, primary=False))
    fewer, more = (apart(A, B, *(2.0, 2.4, 9.0)[:n]) for n in (2, 3))
    assert judge(spread, more, judge(spread, fewer))[0].history == (), "though the median has moved"
    six = [*apart(A, B, *CLEAR), *apart(C, D, *OPEN, 2.0, 2.1, 1.9)]
    staged = judge(BOTH, six, judge(BOTH, [*apart(A, B, *CLEAR), *apart(C, D, *OPEN)]))
    assert [(r.stage, r.history, r.changed) for r in staged] == [(1, (), False), (2, (), False)]


def test_planned_seeds_that_a_verdict_does_not_ask_leave_no_history() -> None:
    """While the third arm of c's family lacks a seed, c is shown with all four of its own; judged it is by the three of the stage."""
    taught = Arm(experiment="05_kd_r18")
    plain = {"plain": Family(experiments=tuple(arm.experiment for arm in (A, B, taught)), sd=0.5)}
    declared = ledger(claim(), claim(id="d", arms=(taught, B)), families=plain, seeds=TWO_STAGES)
    runs = [*three(A, 52.0, 52.9, 53.0, 52.5), *three(B, 50.0, 50.6, 50.4, 50.1), *three(taught, 51.0, 51.2, 52.0)]
    waiting = judge(declared, runs[:-1])
    assert (waiting[0].verdict, waiting[0].seeds) == ("interim", (0, 1, 2, 3))
    judged = judge(declared, runs, waiting)
    assert (judged[0].verdict, judged[0].seeds, judged[0].history) == ("supported", (0, 1, 2), ())
    (lost, _) = judge(declared, [r for r in runs if (r.seed, r.experiment) != (3, A.experiment)], waiting)
    assert [past.seeds for past in lost.history] == [(0, 1, 2, 3)], "a run that is gone does"
