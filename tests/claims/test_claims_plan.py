"""Which runs the claims take and in what order, and what two runs say of each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.claims import A as A_ARM
from tests.support.claims import B as B_ARM
from tests.support.claims import claim, three
from tests.support.claims import ledger as made_up
from tests.support.records import fake_record
from vitlab import records
from vitlab.claims import declarations, images, needed
from vitlab.claims.ledger import judge as judge_book
from vitlab.data.sources import Source, resolve
from vitlab.errors import UserError
from vitlab.records import RunRecord
from vitlab.run import plan

pytestmark = pytest.mark.slow

CIFAR10 = resolve("cifar10", Path("nowhere"), "quick", download=False)


def ledger(*declared: dict) -> declarations.Ledger:
    usual = {"statement": "S", "source": "a report", "metric": "test_top1", "at_least": 0, "primary": True}
    stages = [{"seeds": 2, "alpha": 0.03}, {"seeds": 3, "alpha": 0.02}]
    found = {"confidence": 0.95, "stages": stages, "claims": [usual | d for d in declared]}
    return declarations.Ledger.model_validate_json(json.dumps(found))


def arm(experiment: str, *sets: str, **more: str) -> dict:
    return {"experiment": experiment, "set": sets} | more


C_ARM = declarations.Arm(experiment="03_hybrid_r18")
BASE, TAUGHT, PLAIN = arm("01_baseline_vit"), arm("05_kd_r18"), arm("02_regularized_vit")
SMALL = arm("01_baseline_vit", "train.epochs=1")


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., needed.Plan]:
    def make(
        declared: declarations.Ledger,
        *only: str,
        profile: str = "ledger",
        source: Source = CIFAR10,
        seeds: tuple[int, ...] = (0, 1),
        **more: object,
    ) -> needed.Plan:
        return needed.make(declared, only, profile, source, seeds, tmp_path / "runs", tmp_path / "results", **more)

    return make


def names(planned: needed.Plan) -> list[tuple[str, int]]:
    return [(r.resolved.label, r.seed) for r in planned.runs]


def settled(planned: needed.Plan) -> list[list[str]]:
    """By run, in order: the claims settled with it."""
    return [planned.settles.get(r.folder, []) for r in planned.runs]


# ------------------------------------------------------------------------------------------------------------ the plan


def test_every_arm_has_a_run_a_seed_its_teacher_first_and_none_twice(planned: Callable[..., needed.Plan]) -> None:
    found = planned(
        ledger({"id": "kd", "arms": [TAUGHT, PLAIN]}, {"id": "again", "arms": [PLAIN, arm("02_regularized_vit", "train.batch_size=64")]})
    )
    # `again` costs less and comes first; its two arms are one run, the profile's batch size being 64 already
    assert names(found) == [
        ("02_regularized_vit", 0), ("02_regularized_vit", 1), ("resnet18", 0), ("05_kd_r18", 0), ("resnet18", 1), ("05_kd_r18", 1),
    ]  # fmt: skip
    assert settled(found) == [[], ["again"], [], [], [], ["kd"]]
    by_name = {(r.resolved.id, r.seed): r for r in found.runs}
    assert by_name["05_kd_r18", 1].teacher is by_name["resnet18", 1]


def test_the_claim_with_the_least_left_comes_next_and_what_was_planned_for_others_costs_nothing(
    planned: Callable[..., needed.Plan],
) -> None:
    declared = ledger(
        {"id": "taught", "arms": [TAUGHT, PLAIN]},
        {"id": "teaches", "arms": [TAUGHT], "metric": "teacher_gain"},
        {"id": "base", "arms": [BASE, PLAIN]},
        {"id": "small", "arms": [BASE, SMALL]},
        {"id": "equal", "arms": [SMALL, BASE]},
    )
    found = planned(declared, seeds=(0,))
    assert [claim for ids in settled(found) for claim in ids] == ["small", "equal", "base", "taught", "teaches"]
    assert names(found) == [
        ("01_baseline_vit", 0), ("01_baseline_vit [train.epochs=1]", 0), ("02_regularized_vit", 0), ("resnet18", 0), ("05_kd_r18", 0),
    ]  # fmt: skip


def test_a_tested_claim_needs_the_runs_that_its_spread_is_pooled_over(planned: Callable[..., needed.Plan]) -> None:
    """Of its family those that are tested by the same metric, until a stage has decided the claims that they are of."""
    families = {"plain": declarations.Family(experiments=("01_baseline_vit", "02_regularized_vit", "05_kd_r18"), sd=0.5)}
    declared = ledger(
        {"id": "c", "arms": [BASE, PLAIN]},
        {"id": "d", "arms": [PLAIN, TAUGHT]},
        {"id": "e", "arms": [SMALL, PLAIN], "metric": "test_top5"},
        {"id": "f", "arms": [SMALL, PLAIN], "primary": False},
    ).model_copy(update={"families": families})
    found = planned(declared, "c", seeds=(0,))
    assert names(found) == [("01_baseline_vit", 0), ("02_regularized_vit", 0), ("resnet18", 0), ("05_kd_r18", 0)]
    assert settled(found) == [[], [], [], ["c"]]
    assert names(planned(declared, "f", seeds=(0,))) == [("01_baseline_vit [train.epochs=1]", 0), ("02_regularized_vit", 0)]
    found = planned(declared, seeds=(0,))
    assert [claim for ids in settled(found) for claim in ids] == ["e", "c", "d"]
    book = judge_book(declared, [*three(A_ARM, 60.0, 61.0), *three(B_ARM, 50.0, 50.5)], lambda claim, runs: None, {})
    second = [result.model_copy(update={"awaits": 2 if result.id == "c" else None}) for result in book.results]
    book = book.model_copy(update={"results": second})
    assert len(planned(declared, "c", seeds=(0, 1), book=book).runs) == 8, "the stage that decides d, too"
    assert {r.resolved.id for r in planned(declared, "c", seeds=(0, 1, 2), book=book).runs} == {"01_baseline_vit", "02_regularized_vit"}
    first_open = book.model_copy(update={"results": [r.model_copy(update={"awaits": 1}) for r in second[1:]] + second[:1]})
    assert len(planned(declared, "c", seeds=(0, 1, 2), book=first_open).runs) == 12, (
        "the seeds of both stages, while the first is not complete"
    )


def test_finished_runs_cost_nothing(planned: Callable[..., needed.Plan]) -> None:
    declared = ledger({"id": "cheap", "arms": [SMALL]}, {"id": "dear", "arms": [TAUGHT]})
    for r in planned(declared, "dear").runs:
        r.folder.mkdir(parents=True)
        records.write(fake_record(r.resolved.id, r.seed), r.folder / "record.json")
    assert [claim for ids in settled(planned(declared)) for claim in ids] == ["dear", "cheap"]


def test_published_runs_are_not_trained_again_but_to_teach(planned: Callable[..., needed.Plan], tmp_path: Path) -> None:
    declared = ledger({"id": "kd", "arms": [TAUGHT, PLAIN]})
    by_name = {(r.resolved.id, r.seed): r for r in planned(declared).runs}

    def publish(name: str, seed: int) -> None:
        record = fake_record(name, seed).model_copy(update={"fingerprint": by_name[name, seed].fingerprint})
        records.write(record, tmp_path / "results" / "ledger-cifar10" / "records" / records.file_name(record))

    (tmp_path / "results" / "ledger-cifar10" / "records").mkdir(parents=True)
    for name in ("02_regularized_vit", "resnet18"):
        publish(name, 0)
    publish("02_regularized_vit", 1)
    assert names(planned(declared)) == [("resnet18", 0), ("05_kd_r18", 0), ("resnet18", 1), ("05_kd_r18", 1)]
    publish("05_kd_r18", 0)
    assert names(planned(declared)) == [("resnet18", 1), ("05_kd_r18", 1)]
    publish("resnet18", 1)
    publish("05_kd_r18", 1)
    assert planned(declared).runs == []


def test_what_needs_no_run_is_not_planned(planned: Callable[..., needed.Plan], tmp_path: Path) -> None:
    full = {"id": "full", "arms": [BASE], "full_size_only": True, "at_least": 80}
    exact = {"id": "exact", "arms": [BASE], "metric": "params"}
    cats = {"id": "cats", "arms": [SMALL], "metric": "confusion.cat.dog"}
    assert len(planned(ledger(full, exact, cats)).runs) == 2
    assert {r.resolved.variant for r in planned(ledger(full, exact, cats), profile="full").runs} == {"", "train.epochs=1"}
    for declared, source in ((ledger(full, exact), CIFAR10), (ledger(cats), resolve("digits", tmp_path, "quick"))):
        with pytest.raises(UserError, match="none of these claims needs a run"):
            planned(declared, source=source)


def test_only_names_claims(planned: Callable[..., needed.Plan]) -> None:
    declared = ledger({"id": "small", "arms": [SMALL]}, {"id": "taught", "arms": [TAUGHT]})
    assert {r.resolved.id for r in planned(declared, "small").runs} == {"01_baseline_vit"}
    with pytest.raises(UserError, match="--only smal: no such claim; did you mean small"):
        planned(declared, "smal")
    with pytest.raises(UserError, match=r"--only xyz: no such claim; they are declared in claims.yaml"):
        planned(declared, "xyz")


def test_without_names_the_primary_claims_are_meant(planned: Callable[..., needed.Plan]) -> None:
    declared = ledger({"id": "small", "arms": [SMALL]}, {"id": "taught", "arms": [TAUGHT], "primary": False})
    assert {r.resolved.id for r in planned(declared).runs} == {"01_baseline_vit"}
    assert {r.resolved.id for r in planned(declared, "taught").runs} == {"resnet18", "05_kd_r18"}
    with pytest.raises(UserError, match="no claim is primary, so none is tested; add 'primary: true'"):
        planned(ledger({"id": "small", "arms": [SMALL], "primary": False}))


def test_the_committed_claims_can_all_be_planned_in_the_order_of_what_is_left(planned: Callable[..., needed.Plan]) -> None:
    declared = declarations.load()
    wanted = [c for c in declared.claims if not c.exact and not c.full_size_only]
    for only in ((), tuple(c.id for c in wanted)):
        found = planned(declared, *only, seeds=(10,))
        assert len({needed.key(r) for r in found.runs}) == len(found.runs)
        assert sorted(c for ids in settled(found) for c in ids) == sorted(c.id for c in wanted if only or c.primary)
        for i, r in enumerate(found.runs):
            assert r.teacher is None or r.teacher in found.runs[:i]


def test_under_a_budget_students_and_their_teachers_come_first(tmp_path: Path) -> None:
    from vitlab.paths import EXPERIMENTS

    runs = plan.students_first(plan.make([EXPERIMENTS], "quick", CIFAR10, [0, 1], (), tmp_path))
    order = ["resnet18", "05_kd_r18", "resnet50", "06_kd_r50_class_attention", "07_conv_stem_kd", "01_baseline_vit"]
    order += ["02_regularized_vit", "03_hybrid_r18", "04_explicit_transformer"]
    assert [(r.seed, r.resolved.id) for r in runs] == [(seed, name) for seed in (0, 1) for name in order]


# ------------------------------------------------------------------------------------------------------ what runs had right


def predictions(folder: Path, heads: tuple[str, ...] = ("cls", "dist"), **logits: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"logits_{kind}": np.array(z, np.float32) for kind, z in logits.items()}
    np.savez(folder / "predictions.npz", labels=np.array([0, 1, 1]), heads=np.array(heads), classes=np.array(["a", "b"]), **arrays)
    return folder / "predictions.npz"


A, B = [2.0, 0.0], [0.0, 1.0]  # logits for the first class, and, less surely, for the second


def test_each_metric_reads_its_own_logits(tmp_path: Path) -> None:
    path = predictions(tmp_path / "run", raw=[[A, A, A], [A, A, A]], ema=[[A, B, A], [B, B, B]])
    expected = {
        "test_top1": [1, 1, 0],  # the mean of EMA's two heads: where they differ the surer one wins
        "test_ema_top1": [1, 1, 0],
        "test_raw_top1": [1, 0, 0],
        "test_cls_top1": [1, 1, 0],
        "test_dist_top1": [0, 1, 1],
    }
    for metric, hits in expected.items():
        assert images.correct(path, metric)[1].tolist() == [bool(h) for h in hits], metric
    for metric in ("test_top5", "teacher_gain", "train_loss", "test_other_top1", "confusion.a.b"):
        assert images.correct(path, metric) is None
    assert images.correct(predictions(tmp_path / "plain", ("cls",), raw=[[A, B, B]]), "test_top1")[1].all()
    assert images.correct(tmp_path / "plain" / "predictions.npz", "test_ema_top1") is None
    assert images.correct(tmp_path / "nowhere" / "predictions.npz", "test_top1") is None
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"predictions.npz: no readable predictions .*--force"):
        images.correct(path, "test_top1")


def test_of_equal_logits_a_run_has_predicted_the_first_class(tmp_path: Path) -> None:
    """As in its metrics: of the labels 0, 1, 1 the first run has one right, the second all."""
    tied, all_right = [[[1.0, 1.0]] * 3], [[A, B, B]]
    found = [predictions(tmp_path / name, ("cls",), raw=raw) for name, raw in (("a", tied), ("b", all_right))]
    (claim,) = ledger({"id": "c", "arms": [BASE, PLAIN]}).claims
    pair = images.compare(claim, found, 0.95)
    assert (pair.only_first, pair.only_second) == (0, 2)


def test_two_runs_are_compared_image_by_image(tmp_path: Path) -> None:
    first, second = predictions(tmp_path / "a", ("cls",), raw=[[A, B, B]]), predictions(tmp_path / "b", ("cls",), raw=[[B, B, A]])
    (claim,) = ledger({"id": "c", "arms": [BASE, PLAIN]}).claims
    found = images.compare(claim, [first, second], 0.95)
    assert (found.only_first, found.only_second, found.p) == (2, 0, 0.5)
    assert images.compare(claim, [first, None], 0.95) is None
    (alone,) = ledger({"id": "c", "arms": [BASE]}).claims
    assert images.compare(alone, [first], 0.95) is None


def test_a_run_that_is_published_and_here_counts_once(tmp_path: Path) -> None:
    declared = ledger({"id": "c", "arms": [BASE]})
    resolved = declared.claims[0].arms[0].resolve("ledger")
    for seed, top1 in ((0, 50.0), (1, 52.0), (2, 54.0)):
        record = fake_record(seed=seed, profile="ledger", top1=top1)
        record = record.model_copy(update={"fingerprint": declarations.fingerprint(resolved, record.dataset.digest)})
        if seed < 2:
            (tmp_path / "results" / "ledger-cifar10" / "records").mkdir(parents=True, exist_ok=True)
            records.write(record, tmp_path / "results" / "ledger-cifar10" / "records" / records.file_name(record))
        if seed > 0:
            folder = tmp_path / "runs" / "ledger-cifar10" / record.experiment / f"{record.fingerprint}-s{seed}"
            folder.mkdir(parents=True)
            records.write(record, folder / "record.json")
    book = needed.judged(declared, "ledger", "cifar10", tmp_path / "runs", tmp_path / "results")
    assert (book.results[0].seeds, book.results[0].effect) == ((0, 1), pytest.approx(51, abs=1))  # of the first stage; it decides
    assert needed.judged(declared, "quick", "cifar10", tmp_path / "runs", tmp_path / "results") is None
    other = ledger({"id": "c", "arms": [PLAIN]})
    assert needed.judged(other, "ledger", "cifar10", tmp_path / "runs", tmp_path / "results") is None
    looked_at = ledger({"id": "c", "arms": [BASE]}, {"id": "d", "arms": [BASE], "primary": False})
    (_, result) = needed.judged(looked_at, "ledger", "cifar10", tmp_path / "runs", tmp_path / "results").results
    assert (result.seeds, result.effect) == ((0, 1, 2), pytest.approx(52, abs=1))


def test_of_a_run_that_was_repeated_the_last_one_counts_wherever_it_is(tmp_path: Path) -> None:
    """Its predictions are compared only if they are the counted run's."""
    declared = ledger({"id": "c", "arms": [BASE, PLAIN]})
    last = "2099-01-01T00:00:00+00:00"
    runs = []
    for name, top1 in (("01_baseline_vit", 50.0), ("02_regularized_vit", 53.0)):
        record = fake_record(name, profile="ledger", top1=top1)
        resolved = declarations.Arm(experiment=name).resolve("ledger")
        found = {"fingerprint": declarations.fingerprint(resolved, record.dataset.digest), "metrics": record.metrics | {"test_top1": top1}}
        runs.append(record.model_copy(update=found))
        folder = tmp_path / "runs" / "ledger-cifar10" / name / f"{found['fingerprint']}-s0"
        predictions(folder, ("cls",), raw=[[A, B, B]])
        records.write(runs[-1], folder / "record.json")
    here, there = tmp_path / "runs", tmp_path / "results" / "ledger-cifar10" / "records"

    def effect_and_pair() -> tuple[float, bool]:
        (result,) = needed.judged(declared, "ledger", "cifar10", here, tmp_path / "results").results
        return result.effect, result.pair is not None

    assert effect_and_pair() == (-3.0, True)
    there.mkdir(parents=True)
    records.write(runs[0], there / records.file_name(runs[0]))  # published as it is
    assert effect_and_pair() == (-3.0, True)
    again = runs[0].model_copy(update={"finished": last, "metrics": runs[0].metrics | {"test_top1": 60.0}})
    records.write(again, there / records.file_name(again))  # published anew, from elsewhere
    assert effect_and_pair() == (7.0, False)


# ------------------------------------------------------------------------------------------------------------ what is due


def test_the_first_stage_is_due_then_what_it_left_undecided_then_nothing() -> None:
    """c is clear after two seeds; d, of 1 and 3, after three not even."""
    c, d, third = claim(id="c"), claim(id="d", arms=(B_ARM, C_ARM)), claim(id="e", metric="params", at_least=None, at_most=1.0)
    declared = made_up(c, d, third, claim(id="f", primary=False), seeds=(2, 3))
    clear = [*three(A_ARM, 60.0, 60.01, 60.02), *three(B_ARM, 50.0, 50.0, 50.0)]
    partly = [*three(C_ARM, 49.0, 47.0, 51.0)]

    def due(runs: list[RunRecord], *only: str) -> tuple[list[str], tuple[int, ...]]:
        book = judge_book(declared, runs, lambda claim, runs: None, {}) if runs else None
        return needed.due(declared, only, "quick", ("cat", "dog"), book)

    assert due([]) == (["c", "d"], (0, 1))
    assert due([r for r in clear if r.seed < 2]) == (["c", "d"], (0, 1))
    assert due([r for r in [*clear, *partly] if r.seed < 2]) == (["d"], (0, 1, 2))
    assert due([r for r in [*clear, *partly] if r.seed < 2], "c") == ([], (0, 1, 2))
    assert due([*clear, *partly]) == ([], (0, 1, 2))
    # d is undecided, and c's first stage not complete: no claim has a second stage yet
    open_first = [r for r in [*clear[:1], *clear[3:], *partly] if r.seed < 2]
    assert due(open_first, "d") == ([], (0, 1, 2))
    assert due(open_first) == (["c", "d"], (0, 1))
    # once begun, it is awaited, whatever the others' later seeds say of its first stage
    begun = judge_book(declared, [r for r in [*clear, *partly] if r.seed < 2], lambda claim, runs: None, {})
    decided = [r.model_copy(update={"verdict": "supported"}) for r in begun.results]
    assert needed.due(declared, (), "quick", ("cat", "dog"), begun.model_copy(update={"results": tuple(decided)})) == (["d"], (0, 1, 2))
    with pytest.raises(UserError, match="--only g: no such claim"):
        due([], "g")


def test_a_claim_about_full_size_alone_does_not_hold_up_the_second_stage() -> None:
    d, at_full = claim(id="d", arms=(B_ARM, C_ARM)), claim(id="full", arms=(B_ARM,), full_size_only=True)
    declared = made_up(d, at_full, seeds=(2, 3))
    book = judge_book(declared, [*three(B_ARM, 50.0, 50.0), *three(C_ARM, 49.0, 47.0)], lambda claim, runs: None, {})
    assert needed.due(declared, (), "quick", ("cat", "dog"), book) == (["d"], (0, 1, 2))


def test_what_waits_for_the_first_stage_of_its_family_needs_its_runs_and_no_seeds_of_the_second() -> None:
    families = {"plain": declarations.Family(experiments=(A_ARM.experiment, B_ARM.experiment, C_ARM.experiment), sd=0.5)}
    declared = made_up(claim(id="c"), claim(id="d", arms=(B_ARM, C_ARM)), seeds=(2, 3), families=families)
    book = judge_book(declared, [*three(A_ARM, 60.0, 61.0), *three(B_ARM, 50.0, 50.5)], lambda claim, runs: None, {})
    assert [result.verdict for result in book.results] == ["interim", "not measured"]
    assert needed.due(declared, ("c",), "quick", ("cat", "dog"), book) == (["c"], (0, 1))
    assert needed.due(declared, (), "quick", ("cat", "dog"), book) == (["c", "d"], (0, 1))
