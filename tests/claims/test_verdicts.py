"""From declared claims and records to verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tests.support.claims import A, B, claim, judge, ledger, run, three
from vitlab import config, stats
from vitlab.claims import declarations, verdicts
from vitlab.claims.declarations import Arm, Claim
from vitlab.claims.verdicts import Result
from vitlab.records import RunRecord

# ------------------------------------------------------------------------------------------------ from records to results


def test_a_result_tells_all_of_it() -> None:
    runs = [*three(A, 52.1, 52.9, 53.0), *three(B, 50.0, 50.4, 49.9)]
    (got,) = judge(ledger(claim(claimed=2.5)), runs)
    assert (got.seeds, got.values) == ((0, 1, 2), (2.1, 2.5, 3.1))
    assert got.effect == pytest.approx((2.1 + 2.5 + 3.1) / 3)
    assert got.p == got.p_holm == pytest.approx(scipy_stats.ttest_rel([52.1, 52.9, 53.0], [50.0, 50.4, 49.9]).pvalue)
    assert got.low < got.effect < got.high
    assert (got.verdict, got.changed, got.more_seeds, got.pair) == ("supported", False, None, None)
    assert [arm.records[2] for arm in got.arms] == ["02_regularized_vit-s2.json", "01_baseline_vit-s2.json"]
    assert [arm.fingerprint for arm in got.arms] == [runs[0].fingerprint, runs[3].fingerprint]
    assert (got.claimed, got.low_bound, got.high_bound, verdicts.rule(got)) == (2.5, 0.0, None, "≥ 0")
    assert Result.model_validate_json(got.model_dump_json()) == got


def test_the_other_way_round_it_is_refuted_and_of_one_arm_it_is_the_value() -> None:
    runs = [*three(A, 52.1, 52.9, 53.0), *three(B, 50.0, 50.4, 49.9)]
    back = claim(arms=(B, A))
    alone = claim(id="d", arms=(A,), at_least=None, at_most=60.0)
    near = claim(id="e", arms=(A,), at_least=None, within=declarations.Within(of=52.5, margin=20.0))
    in_percent = claim(id="f", relative=True, at_least=4.0)
    got = judge(ledger(back, alone, near, in_percent), runs)
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
    assert (one.verdict, one.effect, one.low, one.p, one.pair, one.seeds) == ("undecided", 11.0, None, None, None, (1,))
    (common,) = judge(ledger(), [*three(A, 60, 61, 62), run(B, 1, 50.0), run(B, 2, 50.5), run(B, 7, 40.0)])
    assert (common.seeds, common.values) == ((1, 2), (11.0, 11.5))
    assert [set(arm.records) for arm in common.arms] == [{1, 2}, {1, 2}]


def test_one_seed_is_compared_image_by_image_and_still_undecided() -> None:
    asked = []
    said = stats.pair(np.array([True] * 40), np.array([False] * 40), 0.95)

    def pairs(claim: Claim, runs: Sequence[RunRecord]) -> stats.Pair:
        asked.append((claim.id, [r.experiment for r in runs], [r.seed for r in runs]))
        return said

    runs = [*three(A, 60, 61), run(B, 1, 50.0)]
    (got,) = verdicts.judge(ledger(), "quick", runs, pairs)
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


def test_seeds_beyond_the_plan_are_said() -> None:
    planned, looked = [*three(A, 52.1, 52.9, 53.0), *three(B, 50.0, 50.4, 49.9)], [run(A, 3, 53.0), run(B, 3, 50.0)]
    assert judge(ledger(), planned)[0].note == ""
    assert judge(ledger(), planned + looked)[0].note.startswith("4 seeds, 3 were planned: where seeds were added because")
    alike = judge(ledger(), [*three(A, 51, 52, 53, 54), *three(B, 50, 51, 52, 53)])[0].note
    assert alike.startswith("the same in every seed")
    assert "4 seeds, 3 were planned" in alike


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


def test_what_no_report_claims_is_measured_and_not_judged() -> None:
    runs = [*three(A, 52.1, 52.9, 53.0), *three(B, 50.0, 50.4, 49.9)]
    got = judge(ledger(claim(), claim(id="d", exploratory=True), claim(id="e", exploratory=True, full_size_only=True)), runs)
    assert [r.verdict for r in got] == ["supported", "exploratory", "exploratory"]
    assert (got[1].values, got[1].low, got[1].high) == (got[0].values, got[0].low, got[0].high)
    assert (got[1].p, got[1].p_holm, got[1].more_seeds) == (None, None, None)
    assert got[0].p_holm == got[0].p  # a family of one
    assert (got[2].effect, got[2].note) == (None, "about full size only")


def test_records_older_than_a_metric_are_left_out() -> None:
    arms = (Arm(experiment=A.experiment, metric="test_confidence"),)
    younger = [run(A, seed, metrics={"test_confidence": 90.0 + seed}) for seed in (1, 2)]
    (got,) = judge(ledger(claim(arms=arms, metric=None)), [run(A), *younger])
    assert (got.seeds, got.values, got.note) == ((1, 2), (91.0, 92.0), "records without test_confidence are left out")
    (none,) = judge(ledger(claim(arms=arms, metric=None)), [run(A)])
    assert (none.verdict, none.note) == ("not measured", "records without test_confidence are left out")


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
    unseen = judge(ledger(claim(exploratory=True)), [])
    assert not judge(ledger(), runs, unseen)[0].changed
    one_seed = judge(ledger(), [runs[0], runs[3]])  # undecided, but seen
    assert judge(ledger(claim(at_least=1.0)), runs, one_seed)[0].changed
