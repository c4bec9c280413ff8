"""What claims.yaml declares, and what a record or a configuration says of a metric."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.claims import COUNTS, DIGEST, A, B, claim, judge, ledger, run, three
from vitlab import config
from vitlab.claims import declarations, metrics
from vitlab.claims.declarations import Arm, Family, Stage
from vitlab.data.sources import CIFAR10_CLASSES, Source
from vitlab.errors import UserError
from vitlab.records import TeacherFacts
from vitlab.run import plan


@pytest.mark.parametrize(
    "change",
    [
        {"statement": "S, in other words."}, {"source": "§2"}, {"arms": (B, A)}, {"metric": "test_top5"}, {"relative": True}, {"claimed": 1.0},
        {"at_least": 0.1}, {"at_least": None, "at_most": 0.0}, {"full_size_only": True},
        {"arms": (A, B, B, A)}, {"spread": True}, {"primary": False}, {"brief": "A gives"}, {"expected": 1.0}, {"sd": 0.5}, {"arms": (A, Arm(experiment=B.experiment, set=("train.epochs=2",)))},
    ],
    ids=str,
)  # fmt: skip
def test_everything_said_of_a_claim_is_part_of_its_declaration(change: dict[str, Any]) -> None:
    """The statement as well: what was measured answers the words that stood there."""
    own = ledger()
    assert own.declaration(claim(**change)) != own.declaration(claim())
    assert ledger(confidence=0.9).declaration(claim()) != own.declaration(claim())
    assert own.declaration(claim(relative=False, claimed=None, within=None)) == own.declaration(claim())


@pytest.mark.parametrize(
    "change",
    [
        {"first_seed": 10}, {"stages": (Stage(seeds=4, alpha=0.05),)}, {"stages": (Stage(seeds=3, alpha=0.03), Stage(seeds=6, alpha=0.02))},
        {"levene": 0.1}, {"families": {"plain": Family(experiments=(A.experiment,), sd=0.5)}}, {"claims": (claim(), claim(id="d"))},
    ],
    ids=str,
)  # fmt: skip
def test_the_design_is_part_of_what_is_declared_of_a_tested_claim_alone(change: dict[str, Any]) -> None:
    """Its test depends on the seeds, on the families and on which other claims are tested; an exploratory claim and a formula have no test."""
    own = ledger()
    other = own.model_copy(update=change)
    assert other.declaration(claim()) != own.declaration(claim())
    for untested in (claim(primary=False), claim(metric="params")):
        assert other.declaration(untested) == own.declaration(untested)


def test_a_claim_that_is_not_primary_changes_no_other_ones_declaration() -> None:
    assert ledger(claim(), claim(id="d", primary=False)).declaration(claim()) == ledger().declaration(claim())


# ------------------------------------------------------------------------------------------------------------- metrics


def test_confusions_by_hand() -> None:
    """7 of 60 cats are called dogs, 5 of 70 dogs cats. Taken for one another: cat and dog 12, cat and frog 4, dog and frog 7."""
    record = run(A)
    assert metrics.measure(record, "confusion.cat.dog") == pytest.approx(100 * 7 / 60)
    assert metrics.measure(record, "confusion.dog.cat") == pytest.approx(100 * 5 / 70)
    assert metrics.measure(record, "confusion.frog.frog") == pytest.approx(90)
    assert metrics.measure(record, "confusion_lead.cat.dog") == metrics.measure(record, "confusion_lead.dog.cat") == 12 - 7
    assert metrics.measure(record, "confusion_lead.frog.dog") == 7 - 12
    assert metrics.measure(record, "confusion_lead.cat.frog") == 4 - 12


def test_leads_of_a_class_by_hand() -> None:
    """Accuracies: cat 50 of 60, dog 60 of 70, frog 27 of 30."""
    record = run(A)
    assert metrics.measure(record, "class_lead.frog") == pytest.approx(90 - 600 / 7)
    assert metrics.measure(record, "class_lead.cat") == pytest.approx(500 / 6 - 90)
    assert metrics.measure(record, "class_lag.cat") == pytest.approx(600 / 7 - 500 / 6)
    assert metrics.measure(record, "class_lag.frog") == pytest.approx(500 / 6 - 90)
    assert metrics.measure(record, "confusion_either.cat.dog") == metrics.measure(record, "confusion_either.dog.cat") == 12
    assert metrics.measure(record, "confusion_either.cat.frog") == 4


def test_other_metrics() -> None:
    taught = TeacherFacts(
        experiment="t", fingerprint="f", seed=0, weights_sha256="a", validation_top1=1.0, test_top1=49.0, agreement=1.0, gain=1.0
    )
    assert metrics.measure(run(A, teacher=taught), "teacher_gain") == 1.0
    assert metrics.measure(run(A), "train_loss") == 1.25
    assert metrics.measure(run(A, metrics={"test_cls_top1": 44.0}), "test_cls_top1") == 44.0


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("confusion.cat.lion", "confusion.cat.lion: pets has no class lion; expected two of cat, dog, frog"),
        ("confusion_lead.wolf.lion", "pets has no class lion, wolf; expected two of cat, dog, frog"),
        ("confusion_lead.cat.cat", "expected two different classes"),
        ("confusion_either.cat.cat", "expected two different classes"),
        ("class_lead.lion", "pets has no class lion; expected one of cat, dog, frog"),
        ("confusion.cat", "expected test_top1, test_top5, validation_top1, train_loss, teacher_gain, confusion"),
        ("test_ema_top1", "test_ema_top1: not in the record of 02_regularized_vit; expected test_top1, test_top5, validation_top1"),
        ("teacher_gain", "teacher_gain: not in the record of 02_regularized_vit"),
        ("train_loss.last", "train_loss.last: not in the record"),
    ],
)
def test_what_a_record_lacks_is_named(metric: str, expected: str) -> None:
    with pytest.raises(UserError) as e:
        metrics.measure(run(A), metric)
    assert expected in str(e.value)


def test_metrics_that_cannot_be_had_are_named() -> None:
    with pytest.raises(UserError, match=r"confusion\.cat\.dog: pets has no test image of cat"):
        metrics.measure(run(A, counts=((0, 0, 0), *COUNTS[1:])), "confusion.cat.dog")
    with pytest.raises(UserError, match="train_loss: not in the record"):
        metrics.measure(run(A, history=()), "train_loss")
    with pytest.raises(UserError, match="gflops_last_third: resnet50 is no ViT"):
        metrics.exact(Arm(experiment="teachers/resnet50").resolve("full"), "gflops_last_third", 10)
    with pytest.raises(UserError, match="c: relative to test_top1 of its second arm, which is 0"):
        judge(ledger(claim(relative=True)), [*three(A, 1, 2, 3), *three(B, 0, 1, 2)])


BLOCK_PARAMS = 4 * (256 * 256 + 256) + (256 * 1024 + 1024) + (1024 * 256 + 256) + 2 * 2 * 256  # q k v and out, MLP, two norms: 789,760
AROUND = (3 * 16 * 256 + 256) + 2 * 256 + 2 * 256 + 2 * (256 * 10 + 10)  # patches, two tokens, last norm, two heads: 18,708
RELATIVE = (
    8 * 8 * (3 + 2 * 8)
)  # eight full blocks, eight heads; distances of 0 to 7 down and across, three terms with special tokens: 1,216
SECOND = 4 * (256 * 256 + 256)  # in each of four class blocks the distillation token has an attention of its own: 263,168
STUDENT = 12 * BLOCK_PARAMS + 4 * SECOND + AROUND + RELATIVE  # 10,549,716


def full_block(tokens: int) -> int:
    """2 FLOPs for each token in each of 4 x 256 x 256 + 2 x 256 x 1024 weights, and for q k^T and the weights times v 2 x 256 each."""
    return tokens * 2 * 786_432 + 2 * 2 * tokens * tokens * 256


def class_block(tokens: int) -> int:
    """As before for the two special tokens, but each with keys and values, 2 x 256 x 256 weights, of the patches alone."""
    patches = tokens - 2
    return 2 * 2 * (2 * 65_536 + 2 * 262_144) + 2 * patches * 2 * 131_072 + 2 * 2 * 2 * patches * 256


def test_exact_metrics_by_hand() -> None:
    """What the ledger says at full size without a run: patches of 4 leave 64 + 2 tokens, of 2 leave 256 + 2.

    Without class attention the last of the full blocks computes its two special tokens alone, from keys and values of all 66.
    """
    assert (BLOCK_PARAMS, STUDENT, full_block(66), class_block(66)) == (789_760, 10_549_716, 108_269_568, 36_306_944)
    flops = {patch: 64 * 2 * 48 * 256 + 8 * full_block(n) + 4 * class_block(n) + 2 * 2 * 2560 for patch, n in ((4, 66), (2, 258))}
    assert flops[4] == 1_012_967_424
    last = 2 * 2 * (2 * 65_536 + 2 * 262_144) + 66 * 2 * 131_072 + 2 * 2 * 2 * 66 * 256
    without = 64 * 2 * 48 * 256 + 11 * full_block(66) + last + 2 * 2 * 2560
    got = {result.id: result for result in judge(declarations.load(), (), profile="full")}
    by_formula = {
        "class-attention-work-there": ("exploratory", 100 * (class_block(66) / full_block(66) - 1)),  # plain blocks count whole
        "class-attention-work": ("refuted", 100 * (flops[4] / without - 1)),  # a sixth less, where the report has a quarter
        "patch-2-cost": ("exploratory", 100 * (flops[2] / flops[4] - 1)),
        "relative-position-params": ("exploratory", (RELATIVE - 66 * 256) / 1e6),
        "student-params": ("exploratory", STUDENT / 1e6),
        # torchvision's ResNet-50, see tests/models/test_cost.py
        "student-half-the-params": ("exploratory", 100 * (STUDENT / 23_520_842 - 1)),
    }
    for name, (verdict, effect) in by_formula.items():
        assert (got[name].verdict, got[name].effect) == (verdict, pytest.approx(effect, abs=1e-8)), name
        assert (got[name].p, got[name].note) == (None, "by formula: nothing to estimate")
    assert got["class-attention-work"].effect == pytest.approx(-16.46, abs=0.01)
    assert got["patch-2-cost"].effect == pytest.approx(328.7, abs=0.1)
    assert {result.verdict for name, result in got.items() if name not in by_formula} == {"not measured", "exploratory"}
    assert {name for name, result in got.items() if result.effect is not None} == by_formula.keys()


# --------------------------------------------------------------------------------------------------------- claims.yaml

PRIMARY = """
distillation-helps distillation-helps-plain hybrid-beats-distillation
distillation-above-regularisation distillation-above-hybrid distillation-above-explicit
patch-8-worse class-attention-gain class-attention-work relative-position-accuracy hybrid-gain explicit-equals-built-in
ema-gain clean-tail-rise regularisation-gain
"""
EXPLORATORY = """
student-beats-weak-teacher student-beats-sound-teacher teacher-strength-matters
best-class-automobile worst-class-cat airplane-ship-minor cat-dog-largest cat-to-dog-more cat-to-dog-share
patch-2-marginal patch-2-cost smaller-patches-no-gain relative-position-params two-heads-beat-class-head
two-heads-beat-distillation-head student-params student-half-the-params hybrid-gain-moderate
class-attention-work-there regularisation-gain-crops ema-schedule clean-tail mixed-loss-plateau hybrid-stability plain-vit-near-80 confidence-above-90
headline-01 headline-02 headline-03 headline-04 headline-05 headline-06 headline-06-top5 headline-teacher
temperature-above-1 temperature-below-4 kd-weight-half trivial-augment-alone random-erasing-alone drop-path-alone label-smoothing-alone
"""
DECLARED = declarations.load()
ARMS = {arm.model_copy(update={"metric": None}) for declared in DECLARED.claims for arm in declared.arms}


def test_no_statement_of_the_reports_is_left_out() -> None:
    """49 are the reports', of which 15 are tested; the last seven of the others are not theirs."""
    assert {declared.id for declared in DECLARED.claims if declared.primary} == set(PRIMARY.split())
    assert {declared.id for declared in DECLARED.claims if not declared.primary} == set(EXPLORATORY.split())
    assert (len(PRIMARY.split()), len(DECLARED.claims)) == (15, 49 + 7)
    assert (DECLARED.confidence, DECLARED.first_seed) == (0.95, 10)
    assert [(stage.seeds, stage.alpha) for stage in DECLARED.stages] == [(6, 0.03), (12, 0.02)]


@pytest.mark.parametrize("profile", config.PROFILES)
def test_every_arm_resolves_and_two_arms_are_two_experiments(profile: str) -> None:
    """Also in a small profile, which could scale the difference away."""
    prints = {arm: declarations.fingerprint(arm.resolve(profile), DIGEST) for arm in ARMS}
    assert len(set(prints.values())) == len(ARMS)


def test_every_arm_has_what_its_claim_measures() -> None:
    needs = {"test_ema_top1": "ema", "test_raw_top1": "ema", "teacher_gain": "distill"}
    names = ("test_raw_top1", "test_ema_top1", "test_cls_top1", "test_dist_top1", "test_confidence", "validation_top1_phase_0")
    values = dict.fromkeys(names, 50.0)
    taught = TeacherFacts(
        experiment="t", fingerprint="f", seed=0, weights_sha256="a", validation_top1=1.0, test_top1=49.0, agreement=1.0, gain=1.0
    )
    counts = tuple(map(tuple, np.ones((10, 10), int).tolist()))
    record = run(A, classes=CIFAR10_CLASSES, counts=counts, metrics=values, teacher=taught)
    for declared in DECLARED.claims:
        for arm in declared.arms:
            metric, cfg = declared.metric_of(arm), arm.resolve("full").config
            if metric in metrics.EXACT:
                assert metrics.exact(arm.resolve("full"), metric, 10) > 0
                continue
            assert math.isfinite(metrics.measure(record, metric)), declared.id
            if metric in needs:
                assert getattr(cfg, needs[metric]) is not None, declared.id
            if metric in ("test_cls_top1", "test_dist_top1"):
                assert cfg.model.distill_token, declared.id


def test_fingerprints_are_the_plans(tmp_path: Path) -> None:
    """What the ledger looks for is what a run of the same experiment and settings leaves, its teacher's fingerprint included."""
    source = Source("cifar10", "cifar10", None, DIGEST, CIFAR10_CLASSES, mirror=True, train=50_000)
    taught = 0
    for arm in ARMS:
        (*before, planned) = plan.make([arm.path], "ledger", source, [0], arm.set, tmp_path)
        assert declarations.fingerprint(arm.resolve("ledger"), DIGEST) == planned.fingerprint
        taught += bool(before)
    assert taught > 5
    weak = Arm(experiment="06_kd_r50_class_attention", set=("distill.teacher=teachers/resnet50_weak.yaml",)).resolve("ledger")
    assert declarations.fingerprint(weak, DIGEST) != declarations.fingerprint(weak, DIGEST[::-1])


GOOD = """\
confidence: 0.95
stages:
  - {seeds: 3, alpha: 0.05}
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
STAGE = "  - {seeds: 3, alpha: 0.05}\n"
MISTAKES = {
    "unknown key": (GOOD + "    atleast: 1\n", "x.yaml:13: claims.0.atleast: unknown key, expected one of: id, statement, brief, source, arms,"),
    "unknown in an arm": (
        GOOD.replace("{experiment: 01_baseline_vit}", "{experiment: 01_baseline_vit, sets: [a]}"),
        "x.yaml:10: claims.0.arms.1.sets: unknown key, expected one of: experiment, set, metric",
    ),
    "unknown in within": (
        GOOD.replace("at_least: 0", "within: {of: 1, margin: 1, by: 2}"),
        "x.yaml:12: claims.0.within.by: unknown key, expected one of: of, margin",
    ),
    "unknown at the top": (GOOD + "family: 1\n", "x.yaml:13: family: unknown key, expected one of: confidence, first_seed, stages, families, levene, claims"),
    "missing": (GOOD.replace("    statement: S.\n", ""), "x.yaml:5: claims.0.statement: missing; add it"),
    "two rules": (GOOD + "    at_most: 1\n", "x.yaml:5: claims.0: give exactly one of 'at_least', 'at_most', 'within'"),
    "no rule": (GOOD.replace("    at_least: 0\n", ""), "x.yaml:5: claims.0: give exactly one of"),
    "no metric": (GOOD.replace("    metric: test_top1\n", ""), "x.yaml:5: claims.0: give 'metric', for the claim or for each arm"),
    "a metric of one arm only": (
        GOOD.replace("    metric: test_top1\n", "").replace("02_regularized_vit}", "02_regularized_vit, metric: test_top1}"),
        "x.yaml:5: claims.0: give 'metric'",
    ),
    "relative to nothing": (GOOD.replace(SECOND, "") + "    relative: true\n", "x.yaml:5: claims.0: relative: needs a second arm"),
    "formula and training mixed": (
        GOOD.replace("01_baseline_vit}", "01_baseline_vit, metric: params}"),
        "x.yaml:5: claims.0: metric: one arm's is trained for and the other's is not",
    ),
    "no arms": (GOOD.replace("      - {experiment: 02_regularized_vit}\n" + SECOND, "").replace("arms:", "arms: []"), "x.yaml:8: claims.0.arms:"),
    "three arms": (GOOD.replace(SECOND, 2 * SECOND), "x.yaml:8: claims.0.arms: expected one, two, or four"),
    "five arms": (GOOD.replace(SECOND, 4 * SECOND), "x.yaml:8: claims.0.arms:"),
    "relative to two": (GOOD.replace(SECOND, 3 * SECOND) + "    relative: true\n", "x.yaml:5: claims.0: relative: needs a second arm"),
    "the spread of one arm": (GOOD.replace(SECOND, "") + "    spread: true\n", "x.yaml:5: claims.0: spread: needs two arms"),
    "one id twice": (GOOD + GOOD.partition("claims:\n")[2], "x.yaml:1: ledger: claims: two have the id a"),
    "no id": (GOOD.replace("id: a", "id: A b"), "x.yaml:5: claims.0.id:"),
    "a word for a number": (GOOD.replace("at_least: 0", "at_least: much"), "x.yaml:12: claims.0.at_least: Input should be a valid number"),
    "not finite": (GOOD.replace("at_least: 0", "at_least: .inf"), "x.yaml:12: claims.0.at_least: Input should be a finite number"),
    "no margin": (GOOD.replace("at_least: 0", "within: {of: 1, margin: 0}"), "x.yaml:12: claims.0.within.margin:"),
    "no such metric's name": (GOOD.replace("metric: test_top1", "metric: Test top1"), "x.yaml:11: claims.0.metric:"),
    "confidence in percent": (GOOD.replace("confidence: 0.95", "confidence: 95"), "x.yaml:1: confidence: Input should be less than 1"),
    "one seed": (GOOD.replace("seeds: 3", "seeds: 1"), "x.yaml:3: stages.0.seeds: Input should be greater than or equal to 2"),
    "no stages": (GOOD.replace("stages:\n  - {seeds: 3, alpha: 0.05}\n", ""), "x.yaml:1: stages: missing; add it"),
    "three stages": (
        GOOD.replace(STAGE, "".join(STAGE.replace("3", str(n)) for n in (3, 6, 9))),
        "x.yaml:2: stages: Tuple should have at most 2 items",
    ),
    "more than the chance there is": (
        GOOD.replace(STAGE, STAGE + STAGE.replace("3", "6")),
        "x.yaml:1: ledger: stages: their alphas add up to 0.1; expected 1 - confidence, 0.05",
    ),
    "a second stage as large as the first": (
        GOOD.replace(STAGE, 2 * STAGE.replace("0.05", "0.025")),
        "x.yaml:1: ledger: stages: each has more seeds in all than the one before",
    ),
    "a second stage smaller than the first": (
        GOOD.replace(STAGE, STAGE.replace("0.05", "0.025") + STAGE.replace("0.05", "0.025").replace("3", "2")),
        "x.yaml:1: ledger: stages: each has more seeds in all than the one before",
    ),
    "unknown in a stage": (GOOD.replace("alpha", "alhpa"), "x.yaml:3: stages.0.alpha: missing; add it"),
    "unknown in a family": (
        GOOD + "families:\n  plain: {experiments: [01_baseline_vit], sd: 1, sds: 1}\n",
        "x.yaml:14: families.plain.sds: unknown key, expected one of: experiments, sd, seed_sd",
    ),
    "an experiment in two families": (
        GOOD + "families:\n  a: {experiments: [01_baseline_vit], sd: 1}\n  b: {experiments: [01_baseline_vit], sd: 1}\n",
        "x.yaml:1: ledger: families: 01_baseline_vit is in two of them",
    ),
    "a family of a misspelt experiment": (
        GOOD + "families:\n  a: {experiments: [01_baselin_vit], sd: 1}\n",
        "x.yaml:14: families.a.experiments: no experiment 01_baselin_vit; expected the name of a file beside this one or in experiments/",
    ),
    "a misspelt metric of classes": (
        GOOD.replace("metric: test_top1", "metric: confusoin.cat.dog"),
        "x.yaml:5: claims.0: metric: confusoin.cat.dog is none; of classes there are confusion.A.B, ",
    ),
    "a dot for a line": (GOOD.replace("metric: test_top1", "metric: test.top1"), "x.yaml:5: claims.0: metric: test.top1 is none; "),
    "one class of two": (GOOD.replace("metric: test_top1", "metric: confusion.cat"), "x.yaml:5: claims.0: metric: confusion.cat is none; "),
    "a family without spread": (GOOD + "families:\n  a: {experiments: [01_baseline_vit], sd: 0}\n", "x.yaml:14: families.a.sd: Input should be greater than 0"),
}  # fmt: skip


def test_the_file_without_mistakes_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(GOOD, encoding="utf-8")
    got = declarations.load(tmp_path / "x.yaml")
    assert (got.claims, got.stages) == ((claim(id="a", primary=False),), (Stage(seeds=3, alpha=0.05),))


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_file_and_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as e:
        declarations.load(Path("x.yaml"))
    assert str(e.value).startswith(expected)
