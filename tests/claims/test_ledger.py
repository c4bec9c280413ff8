"""The ledger as people see it: from records to claims.json, the pages and MLflow."""

from __future__ import annotations

import io
import math
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from rich.console import Console
from scipy import stats as scipy_stats

from tests.support.claims import ledger as planned
from tests.support.pages import EVIL, Page, files, markdown_rows
from tests.support.records import digits, fake_record
from vitlab import records, stats, terminal
from vitlab.claims import declarations, images, ledger, verdicts
from vitlab.claims.declarations import Arm, Claim, Family
from vitlab.errors import UserError
from vitlab.records import RunRecord
from vitlab.report import publishing
from vitlab.track import ledgers, read

BASELINE, REGULARISED, STUDENT = "01_baseline_vit", "02_regularized_vit", "06_kd_r50_class_attention"
GAIN = Claim(
    id="gain", statement="Regularisation helps.", source="report §2", arms=(Arm(experiment=REGULARISED), Arm(experiment=BASELINE)),
    metric="test_top1", claimed=2.5, at_least=0, primary=True, brief="regularisation gives",
)  # fmt: skip
SMALLER = Claim(
    id="smaller", statement="Relative positions take fewer parameters.", source="report §5",
    arms=(Arm(experiment=STUDENT), Arm(experiment=STUDENT, set=("model.position=learned",))), metric="params", at_most=0,
    primary=True,
)  # fmt: skip
HEADLINE = Claim(
    id="headline", statement="The baseline reaches 80 %.", source="report §1", arms=(Arm(experiment=BASELINE),), metric="test_top1",
    at_least=80, full_size_only=True, primary=True,
)  # fmt: skip
TOP1 = {REGULARISED: (53.0, 54.2, 55.1), BASELINE: (50.0, 51.0, 52.0)}  # by seed; differences 3.0, 3.2, 3.1
LOAD = declarations.load  # what is declared in earnest


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(autouse=True)
def _three_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, GAIN, SMALLER, HEADLINE)


def declare(monkeypatch: pytest.MonkeyPatch, *declared: Claim, **design: Any) -> None:
    monkeypatch.setattr(declarations, "load", lambda: planned(*declared, **design))


def run(experiment: str, seed: int, top1: float, profile: str = "overnight", sets: tuple[str, ...] = ()) -> RunRecord:
    """The record of a run of exactly what experiments/ says, on so many test images that their own variance is next to nothing."""
    resolved = Arm(experiment=experiment, set=sets).resolve(profile)
    record = fake_record(experiment, seed, profile=profile, variant=resolved.variant)
    record = record.model_copy(update={"dataset": record.dataset.model_copy(update={"test": 10_000_000})})
    found = {"fingerprint": declarations.fingerprint(resolved, record.dataset.digest), "metrics": record.metrics | {"test_top1": top1}}
    return record.model_copy(update=found)


def arms(seeds: Sequence[int] = (0, 1, 2), profile: str = "overnight") -> list[RunRecord]:
    return [run(experiment, seed, TOP1[experiment][seed], profile) for experiment in TOP1 for seed in seeds]


def result(out_dir: Path, claim: Claim) -> verdicts.Result:
    (found,) = [r for r in ledger.read(out_dir / ledger.FILE).results if r.id == claim.id]
    return found


def test_the_terminal_says_what_a_claim_waits_for() -> None:
    """Its own runs are there, but not those of the third arm of its family."""
    taught = GAIN.model_copy(update={"id": "taught", "arms": (Arm(experiment="05_kd_r18"), GAIN.arms[0])})
    names = (BASELINE, REGULARISED, "05_kd_r18")
    declared = planned(GAIN, taught, families={"plain": Family(experiments=names, sd=0.5)})
    console = Console(file=io.StringIO(), width=300)
    terminal.print_ledger(console, declared, Path("claims.yaml"), "overnight", ledger.judge(declared, arms(), lambda *_: None, {}))
    said = " ".join(console.file.getvalue().split())
    assert "interim: its own seeds are complete; its spread is its family's, which lacks seeds of 05_kd_r18" in said


def test_what_is_measured_makes_a_ledger_whatever_else_is_not() -> None:
    unmeasured = GAIN.model_copy(update={"id": "other", "arms": (Arm(experiment=STUDENT), GAIN.arms[0])})
    looked_at = GAIN.model_copy(update={"primary": False})
    for claims, measured in (((unmeasured, looked_at), ["gain"]), ((SMALLER, looked_at), ["gain", "smaller"]), ((SMALLER,), ["smaller"])):
        book = ledger.judge(planned(*claims), arms(), lambda *_: None, {})
        assert sorted(r.id for r in book.results if r.effect is not None) == measured
    for claims in ((unmeasured,), (SMALLER, unmeasured)):
        assert ledger.judge(planned(*claims), arms(), lambda *_: None, {}) is None


def test_the_opening_says_that_nothing_is_decided_only_where_that_is_so() -> None:
    nameless = GAIN.model_copy(update={"brief": ""})
    assert ledger.opening(ledger.judge(planned(nameless), arms(), lambda *_: None, {})) == ""
    interim = ledger.judge(planned(nameless, SMALLER), arms((0, 1)), lambda *_: None, {})
    assert ledger.opening(interim) == "At the size of profile overnight, on cifar10, no claim is decided yet."


# --------------------------------------------------------------------------------------------------------------- pages


def test_pages_say_what_was_measured(tmp_path: Path, undrawn: None) -> None:
    publishing.build(arms(), tmp_path, {})
    page = Page(tmp_path / "report.html")
    said = "Of 3 primary claims, 2 are supported and 1 is about full size only; 1 of them judged by formula, without a run."
    assert page.text.count(said) == 2  # in the minute, and above the table
    opening = "At the size of profile overnight, on cifar10, regularisation gives +3.10 [+2.85, +3.35] points."
    assert opening in page.text
    # mean 3.1, deviation 0.1, t(2, 0.975) = 4.3027: 3.1 ± 4.3027 * 0.1 / sqrt(3)
    gain, smaller = page.table("What the reports claim")[1:]
    assert gain[:3] == ["Regularisation helps.", "report §2", "≥ 0 points (claimed +2.5)"]
    assert gain[3:] == ["+3.10 [+2.85, +3.35] points", "3", "< 0.001", "supported"]
    assert smaller[3].endswith("M parameters, by formula")
    assert smaller[4:] == ["–", "–", "supported"]
    by_seed = page.table("Each seed's effect")
    assert by_seed[0] == ["Seed", REGULARISED, BASELINE, "Effect (points)"]
    assert [row[3] for row in by_seed[1:]] == ["+3.00", "+3.20", "+3.10"]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs["href"].startswith("records/")]
    assert {f"records/{e}-s{s}.json" for e in TOP1 for s in (0, 1, 2)} <= set(links)
    assert all((tmp_path / link).is_file() for link in links)
    assert page.table("What has not been measured")[1][0] == "The baseline reaches 80 %."
    assert result(tmp_path, GAIN).declaration in page.text
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {"claims", "claim-gain", "claim-smaller"} <= ids
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.count(said) == 2
    assert f"## Claims\n\n**{publishing.md(opening)}**" in text
    assert "+3.10 \\[+2.85, +3.35\\] points" in text
    assert "figures/claims-light.svg" in text


def test_every_caption_says_how_sure_and_where(tmp_path: Path, undrawn: None) -> None:
    publishing.build(arms(), tmp_path, {})
    page = Page(tmp_path / "report.html")
    starts = ("What the reports claim", "Each seed's effect", "What has not been measured")
    captions = [caption for caption in page.tables if caption.startswith(starts)]
    captions += re.findall(r"<figcaption>(Effect and interval[^<]*)", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(captions) == 4
    for caption in captions:
        assert "Confidence 95 %, Holm over 1 primary claim." in caption
        assert "Data set cifar10, profile overnight, seeds 0, 1, 2, device NVIDIA H100" in caption


def test_what_no_report_claims_stands_apart(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = GAIN.model_copy(update={"id": "tried", "statement": "One setting against another.", "primary": False})
    unseen = tried.model_copy(update={"id": "unseen", "statement": "Not trained.", "arms": SMALLER.arms})
    declare(monkeypatch, GAIN, SMALLER, HEADLINE, tried, unseen)
    publishing.build(arms(), tmp_path, {})
    page = Page(tmp_path / "report.html")
    assert page.text.count("Of 3 primary claims, 2 are supported") == 2
    assert [row[0] for row in page.table("What the reports claim")[1:]] == [GAIN.statement, SMALLER.statement]
    apart = page.table("Measured, and not tested")
    assert apart[1:] == [
        ["One setting against another.", f"{REGULARISED} against {BASELINE}", "+3.10 [+2.85, +3.35] points", "3"],
        ["Not trained.", f"{STUDENT} against {STUDENT} [model.position=learned]", "–", "–"],
    ]
    assert [publishing.md(cell) for cell in apart[1]] in markdown_rows(tmp_path / "README.md")
    assert "Holm over 1 primary claim." in page.text
    hrefs = {attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs["href"].startswith("#")}
    assert hrefs
    assert hrefs <= {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs}


def test_four_arms_are_two_differences(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, GAIN.model_copy(update={"arms": (GAIN.arms[0], GAIN.arms[1], GAIN.arms[1], GAIN.arms[0])}))
    publishing.build(arms(), tmp_path, {})
    page = Page(tmp_path / "report.html")
    assert page.table("What the reports claim")[1][3].startswith("+6.20 [")
    assert f"{REGULARISED} less {BASELINE} against {BASELINE} less {REGULARISED}" in page.text
    assert page.table("Each seed's effect")[0] == ["Seed", REGULARISED, BASELINE, "Effect (points)"]


@pytest.mark.parametrize("profile", ["overnight", "full"])
def test_the_scale_is_said(tmp_path: Path, undrawn: None, profile: str) -> None:
    publishing.build(arms(profile=profile), tmp_path, {})
    for name in ("README.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert ("at their own size it may be another" in text) == (profile != "full")
    assert result(tmp_path, HEADLINE).verdict == ("refuted" if profile == "full" else "not measured")


def test_the_index_counts(tmp_path: Path, undrawn: None) -> None:
    publishing.build(arms(), tmp_path / "overnight-cifar10", {})
    publishing.index(tmp_path)
    assert "- Of 3 primary claims, 2 are supported" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_claims_of_several_sets_stand_side_by_side(tmp_path: Path, undrawn: None) -> None:
    """Where one size alone has measured any, or formulas alone are common, there is no such table."""
    publishing.build(arms(), tmp_path / "overnight-cifar10", {})
    behind = [run(e, s, 2 * TOP1[BASELINE][s] - TOP1[e][s], "quick") for e in TOP1 for s in (0, 1)]
    for runs, same in ((arms((0, 1), "quick"), "yes"), (behind, "no")):
        publishing.index(tmp_path)
        assert ("## Claims at several sizes" in (tmp_path / "README.md").read_text(encoding="utf-8")) == (same == "no")
        publishing.build(runs, tmp_path / "quick-cifar10", {})
        publishing.index(tmp_path)
        assert "## Claims at several sizes" in (tmp_path / "README.md").read_text(encoding="utf-8")
        rows = markdown_rows(tmp_path / "README.md")
        head = rows.index(["Claim", "Wanted", "overnight-cifar10", "quick-cifar10", "Same side"])
        sign = "+" if same == "yes" else "−"
        claim, wanted, large, small, side = rows[head + 2]
        assert (claim, wanted, side) == ("Regularisation helps.", "≥ 0 points (claimed +2.5)", same)
        assert large == publishing.md("+3.10 [+2.85, +3.35] points, 3, supported")
        assert small.startswith(f"{sign}3.10 ")
        assert small.endswith(" points, 2, interim")
        assert not any(SMALLER.statement in row for row in rows[head + 2 : head + 4])


def test_undecided_says_how_many_more_seeds(tmp_path: Path, undrawn: None) -> None:
    runs = [run(REGULARISED, s, t) for s, t in enumerate((50.0, 52.0, 54.0))] + [run(BASELINE, s, 50.0) for s in range(3)]
    publishing.build(runs, tmp_path, {})
    found = result(tmp_path, GAIN)
    assert found.verdict == "undecided"
    assert found.more_seeds is not None
    page = Page(tmp_path / "report.html")
    few, many = found.more_seeds
    assert (few < many, page.table("What the reports claim")[-1][-1]) == (True, f"undecided, {few} to {many} more seeds")
    assert "more seeds: the range" in page.text
    publishing.build(arms(), tmp_path / "decided", {})
    assert "more seeds: the range" not in Page(tmp_path / "decided" / "report.html").text


def test_pages_say_how_it_was_planned_and_what_of_it_is_still_to_come(
    tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, GAIN.model_copy(update={"at_least": 1.5}), SMALLER, HEADLINE, seeds=(3, 5))
    runs = [run(REGULARISED, s, t) for s, t in enumerate((50.0, 52.0, 54.0))] + [run(BASELINE, s, 50.0) for s in range(3)]
    for found, expected, effect in (
        (runs, "undecided after 3 seeds; 5 are planned", "+2.00 [−2.97, +6.97]"),  # by hand: 2 ± 4.3027 · 2 / √3
        ([r for r in runs if r.seed < 2], "interim", "+1.00 [−11.71, +13.71]"),  # 1 ± 12.706 · √2 / √2
    ):
        publishing.build(found, tmp_path / expected[:7], {})
        assert Page(tmp_path / expected[:7] / "report.html").table("What the reports claim")[-1][-1] == expected
        sentence = f"Not decided by the seeds that are there: regularisation gives {effect} points (wanted ≥ 1.5)."
        for name, said in (("README.md", publishing.md(sentence)), ("report.html", sentence)):
            text = (tmp_path / expected[:7] / name).read_text(encoding="utf-8")
            assert "from 0 on: 3 (2.5 % of the chance of a false verdict), then 5 (2.5 % of the chance of a false verdict)" in text
            assert "no claim is decided yet." in text
            assert said in text
        block = publishing.fill(f"<!-- findings: {expected[:7]} -->\n<!-- end -->", tmp_path)
        assert f"- {publishing.md(ledger.said(ledger.read(tmp_path / expected[:7] / ledger.FILE)))}\n" in block


def test_the_spread_of_each_family_stands_on_the_page(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """53, 54.2, 55.1 and 50, 51, 52 differ by 3.1 with a variance of 0.01. Two arms: half of it is a run's own, so its SD is 0.07. Their means,
    51.5, 52.6 and 53.55, have a variance of 1.0508: what is left without half of 0.005 is between seeds, SD 1.02."""
    plain = Family(experiments=(REGULARISED, BASELINE), sd=0.5)
    declare(monkeypatch, GAIN, SMALLER, HEADLINE, families={"plain": plain})
    publishing.build(arms(), tmp_path, {})
    page = Page(tmp_path / "report.html")
    levene = scipy_stats.levene(*TOP1.values(), center="median").pvalue
    assert page.table("How the arms of each family spread")[1:] == [
        ["plain", "test_top1", "2", "3", "0.07", "1.02", "2", f"{levene:.3f}", "pooled"]
    ]
    assert [publishing.md(cell) for cell in page.table("How the arms of each family spread")[1]] in markdown_rows(tmp_path / "README.md")
    assert "0.10 points with 2.0 degrees of freedom, " in page.text
    assert result(tmp_path, GAIN).family == "plain"


@pytest.mark.parametrize("runs", ["other configurations", "another data set", "one arm"])
def test_nothing_measured_no_section(tmp_path: Path, undrawn: None, runs: str) -> None:
    publishing.build(arms(), tmp_path, {})
    assert (tmp_path / "figures" / "claims-dark.svg").is_file()
    found = {
        "other configurations": [fake_record(e, profile="overnight") for e in TOP1],
        "another data set": [digits(r) for r in arms()],
        "one arm": [r for r in arms() if r.experiment == BASELINE],
    }
    kept = (tmp_path / "claims.json").read_bytes()
    assert publishing.build(found[runs], tmp_path, {}) is None
    assert (tmp_path / "claims.json").read_bytes() == kept, "no ledger is removed"
    assert not list(tmp_path.glob("figures/claims-*"))
    assert 'id="claims"' not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "## Claims" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_hostile_declarations(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = GAIN.model_copy(update={"statement": EVIL, "source": EVIL})
    declare(monkeypatch, evil, HEADLINE.model_copy(update={"statement": EVIL, "source": EVIL}))
    publishing.build(arms(), tmp_path, {})
    page = Page(tmp_path / "report.html")
    assert not {"script", "i"} & {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert page.table("What the reports claim")[1][0] == EVIL
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<(\w+)", text)) == {"picture", "source", "img", "details", "summary", "b"}
    rows = [row for row in markdown_rows(tmp_path / "README.md") if any("alert" in cell for cell in row)]
    assert {len(row) for row in rows} == {2, 5, 7}  # a claim's facts, those not measured, the table: no cell has split


# ---------------------------------------------------------------------------------------------------------- claims.json


def test_round_trip(tmp_path: Path) -> None:
    report_dir = tmp_path / "set"
    report_dir.mkdir()
    book = ledger.build(arms(), report_dir, lambda run: None)
    assert book == ledger.read(report_dir / "claims.json")
    assert (book.profile, book.dataset, book.devices, book.stages[0].seeds, book.confidence, book.tested) == (
        "overnight", "cifar10", ("NVIDIA H100 80GB HBM3",), 3, 0.95, 1,
    )  # fmt: skip
    written = (report_dir / "claims.json").read_bytes()
    ledger.build(arms()[::-1], report_dir, lambda run: None)
    assert (report_dir / "claims.json").read_bytes() == written


@pytest.mark.parametrize(
    ("content", "what"),
    [("{", "not a readable ledger"), ("\udcff", "not a readable ledger"), ('{"version": 1}', "version"), ('{"version": 2}', "profile")],
)
def test_a_damaged_ledger_is_named(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "claims.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=f"claims.json: {what}.*restore it, or delete it"):
        ledger.build(arms(), tmp_path, lambda run: None)


def test_changed_after_measuring(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    publishing.build(arms(), tmp_path, {})
    declare(monkeypatch, GAIN.model_copy(update={"at_least": 2.0}), SMALLER, HEADLINE.model_copy(update={"at_least": 70.0}))
    for _ in range(2):  # and it stays marked
        publishing.rebuild(tmp_path)
        assert [r.changed for r in ledger.read(tmp_path / "claims.json").results] == [True, False, False]
        page = Page(tmp_path / "report.html")
        assert [row[-1] for row in page.table("What the reports claim")[1:]] == ["supported; changed after measuring", "supported"]
        assert "Declared otherwise when first measured: 1." in page.text


def test_what_was_said_before_stays_in_the_ledger_and_on_the_page(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    publishing.build(arms(), tmp_path, {})
    first = result(tmp_path, GAIN)
    declare(monkeypatch, GAIN.model_copy(update={"at_least": 3.0}), SMALLER, HEADLINE)
    for _ in range(2):
        publishing.rebuild(tmp_path)
        assert [(past.declaration, past.verdict) for past in result(tmp_path, GAIN).history] == [(first.declaration, "supported")]
        said = f"supported: +3.10 [+2.85, +3.35] points with 3 seeds, as declaration {first.declaration}"
        assert said in Page(tmp_path / "report.html").text
        assert publishing.md(said) in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_what_one_seed_or_a_formula_said_before(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, GAIN, SMALLER, first_seed=1, seeds=(2,))
    publishing.build(arms((0,)), tmp_path, {})
    declare(monkeypatch, GAIN, SMALLER.model_copy(update={"at_most": -9}), first_seed=1, seeds=(2,))
    publishing.build(arms((1, 2)), tmp_path, {})
    text = Page(tmp_path / "report.html").text
    assert "interim: +3.00 points with seed 0 alone" in text
    assert re.search(r"supported: −0.008 M parameters, by formula, as declaration \w{12}", text)


def test_a_withdrawn_claim_stays_in_the_ledger(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    publishing.build(arms(), tmp_path, {})
    measured = result(tmp_path, GAIN)
    other = GAIN.model_copy(update={"id": "other", "statement": "It is no worse.", "at_least": -1.0})
    declare(monkeypatch, other, SMALLER)
    for _ in range(2):
        publishing.rebuild(tmp_path)
        held = ledger.read(tmp_path / "claims.json")
        assert ([r.id for r in held.results], held.withdrawn) == (["other", "smaller"], (measured,)), "HEADLINE was never measured"
        page = Page(tmp_path / "report.html")
        assert "claim-gain" in {attrs["id"] for _, attrs in page.tags if "id" in attrs}
        assert [row[0] for row in page.table("What the reports claim")[1:]] == ["It is no worse.", SMALLER.statement]
    declare(monkeypatch, GAIN.model_copy(update={"at_least": 2.0}), SMALLER, HEADLINE)
    publishing.rebuild(tmp_path)
    again = ledger.read(tmp_path / "claims.json")
    assert ([r.changed for r in again.results], [r.id for r in again.withdrawn]) == ([True, False, False], ["other"])


def test_a_claim_whose_runs_were_gone_first_is_withdrawn_with_its_history(
    tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who deletes the runs, then the claim, and declares it with another bound has not made it new."""
    of_03 = GAIN.model_copy(update={"id": "of-03", "arms": (Arm(experiment="03_hybrid_r18"), GAIN.arms[1])})
    declare(monkeypatch, GAIN, of_03)
    hybrids = [run("03_hybrid_r18", seed, top1) for seed, top1 in enumerate(TOP1[REGULARISED])]
    publishing.build([*arms(), *hybrids], tmp_path, {})
    baselines = [r for r in arms() if r.experiment == BASELINE]
    publishing.build([*baselines, *hybrids], tmp_path, {})
    assert (result(tmp_path, GAIN).verdict, [past.verdict for past in result(tmp_path, GAIN).history]) == ("not measured", ["supported"])
    declare(monkeypatch, of_03)
    publishing.rebuild(tmp_path)
    assert [r.id for r in ledger.read(tmp_path / ledger.FILE).withdrawn] == ["gain"]
    assert "supported: +3.10 [+2.85, +3.35] points with 3 seeds" in Page(tmp_path / "report.html").text
    declare(monkeypatch, GAIN.model_copy(update={"at_least": 2.0}), of_03)
    publishing.build([*arms(), *hybrids], tmp_path, {})
    again = result(tmp_path, GAIN)
    assert (again.changed, [past.verdict for past in again.history]) == (True, ["supported"])


def predictions(path: Path, right: dict[str, Sequence[bool]]) -> None:
    """Two heads, two classes, the labels all 0; `right`: weights/head -> which images it has right. The heads' mean follows `cls`."""
    arrays = {}
    for kind in ("raw", "ema"):
        if f"{kind}/cls" in right:
            first, second = (np.where(right[f"{kind}/{head}"], 1.0, -1.0) for head in ("cls", "dist"))
            logits = np.stack([3 * first, second])  # (H, N)
            arrays[f"logits_{kind}"] = np.stack([logits, -logits], -1).astype(np.float32)  # (H, N, C)
    images = len(right["raw/cls"])
    np.savez(path, labels=np.zeros(images, np.int64), heads=np.array(["cls", "dist"]), classes=np.array(["a", "b"]), **arrays)


def test_one_seed_is_compared_image_by_image_and_that_is_kept(tmp_path: Path, undrawn: None) -> None:
    rng = np.random.default_rng(0)
    right = {name: rng.random(200) < share for name, share in ((REGULARISED, 0.7), (BASELINE, 0.5))}
    for name, which in right.items():
        predictions(tmp_path / f"{name}.npz", {"raw/cls": which, "raw/dist": ~which})
    out = tmp_path / "set"
    publishing.build(arms([0]), out, {}, lambda run: tmp_path / f"{run.experiment}.npz")
    found = result(out, GAIN)
    assert found.pair == stats.pair(right[REGULARISED], right[BASELINE], 0.95)
    assert (found.pair.only_first, found.pair.only_second) == (
        (right[REGULARISED] & ~right[BASELINE]).sum(), (~right[REGULARISED] & right[BASELINE]).sum(),
    )  # fmt: skip
    page = Page(out / "report.html")
    assert f"only the first right on {found.pair.only_first} test images" in page.text
    assert page.table("What the reports claim")[-1][3:] == ["+3.00 points", "1 seed", "–", "interim"]
    before = files(out)
    publishing.rebuild(out)  # from records alone
    assert files(out) == before
    other = [r.model_copy(update={"metrics": r.metrics | {"test_top1": 60.0}}) if r.experiment == REGULARISED else r for r in arms([0])]
    publishing.build(other, out, {})  # trained anew: what was said of the earlier run does not hold
    assert result(out, GAIN).pair is None


def test_units() -> None:
    units = {claim.id: claim.unit for claim in LOAD().claims}
    assert {units[i] for i in ("clean-tail", "ema-gain", "student-beats-weak-teacher", "cat-to-dog-more")} == {"points"}
    assert {units[i] for i in ("patch-2-cost", "student-half-the-params", "headline-06", "cat-to-dog-share")} == {"%"}
    assert (units["cat-dog-largest"], units["student-params"], units["mixed-loss-plateau"]) == ("images", "M parameters", "nats")


# --------------------------------------------------------------------------------------------------------------- MLflow


def stored(folder: Path, runs: Sequence[RunRecord]) -> list[read.FinishedRun]:
    """As MLflow gives them, artifacts on this machine."""
    found = []
    for r in runs:
        at = folder / records.file_name(r).removesuffix(".json")
        (at / "figures").mkdir(parents=True, exist_ok=True)
        records.write(r, at / "record.json")
        found.append(read.FinishedRun(at.name, "", {}, folder, at))
    return found


def query(root: Path, sql: str) -> list[tuple]:
    with sqlite3.connect(root / "mlflow.db") as db:
        return db.execute(sql).fetchall()


def test_one_run_a_ledger_however_often_it_is_published(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = read.finished_runs
    told: list[str] = []
    found = stored(tmp_path / "store", arms())
    monkeypatch.setattr(read, "finished_runs", lambda root: found)
    for _ in range(2):
        publishing.publish(tmp_path, tmp_path / "results", told.append)
    assert told == []
    [(run_id, name, status, uri)] = query(tmp_path, "SELECT run_uuid, name, status, artifact_uri FROM runs")
    assert (name, status) == ("ledger overnight-cifar10", "FINISHED")
    tags = dict(query(tmp_path, "SELECT key, value FROM tags"))
    assert tags.items() >= {
        "vitlab.kind": "ledger", "vitlab.profile": "overnight", "vitlab.dataset": "cifar10", "claim.gain": "supported", "claim.headline": "not measured",
    }.items()  # fmt: skip
    rows = dict(query(tmp_path, "SELECT key, value FROM metrics"))
    assert len(rows) == len(query(tmp_path, "SELECT * FROM metrics")) == 4
    gain = result(tmp_path / "results" / "overnight-cifar10", GAIN)
    assert (rows["claim/effect/gain"], rows["claim/effect_low/gain"], rows["claim/effect_high/gain"]) == (gain.effect, gain.low, gain.high)
    assert rows["claim/effect/smaller"] < 0
    shipped = Path(unquote(urlparse(uri).path)) / "claims.json"
    assert shipped.read_bytes() == (tmp_path / "results" / "overnight-cifar10" / "claims.json").read_bytes()
    assert real(tmp_path) == []  # it is no finished run

    declare(monkeypatch, GAIN.model_copy(update={"id": "renamed"}), SMALLER)
    publishing.publish(tmp_path, tmp_path / "results", told.append)
    assert query(tmp_path, "SELECT run_uuid FROM runs") == [(run_id,)]
    assert {key for (key,) in query(tmp_path, "SELECT key FROM tags") if key.startswith("claim.")} == {"claim.renamed", "claim.smaller"}
    latest = {key: math.nan if nan else value for key, value, nan in query(tmp_path, "SELECT key, value, is_nan FROM latest_metrics")}
    assert math.isnan(latest["claim/effect/gain"])
    assert latest["claim/effect/renamed"] == gain.effect


def test_a_report_stands_where_mlflow_cannot_be_reached(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(root: Path) -> None:
        raise ConnectionError("nobody is there")

    found, told = stored(tmp_path / "store", arms()), []
    monkeypatch.setattr(read, "finished_runs", lambda root: found)
    monkeypatch.setattr(ledgers, "connect", refuse)
    pages = publishing.publish(tmp_path, tmp_path / "results", told.append)
    assert all(page.is_file() for page in pages)
    assert ["nobody is there" in text for text in told] == [True]


def test_without_runs_in_the_store_no_store_is_made(tmp_path: Path, undrawn: None) -> None:
    publishing.build(arms(), tmp_path / "results" / "overnight-cifar10", {})
    publishing.publish(tmp_path, tmp_path / "results")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_ledger_that_no_run_measures_any_more_is_kept_and_said(tmp_path: Path, undrawn: None) -> None:
    out, said = tmp_path / "results" / "laptop-cifar10", []
    publishing.build(arms(), out, {})
    publishing.publish(tmp_path, tmp_path / "results", said.append)
    kept = (out / "claims.json").read_bytes()
    assert said == []
    publishing.build([r for r in arms() if r.experiment == BASELINE], out, {})
    publishing.publish(tmp_path, tmp_path / "results", said.append)
    assert said == ["laptop-cifar10: no run measures a claim any more; claims.json is left as it is"]
    assert (out / "claims.json").read_bytes() == kept


def test_predictions_come_from_mlflow(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stored(tmp_path / "store", arms([0]))
    monkeypatch.setattr(read, "finished_runs", lambda root: found)
    monkeypatch.setattr(ledgers, "ship_ledger", lambda root, path: "")
    monkeypatch.setattr(read, "download", lambda *_: (_ for _ in ()).throw(UserError("no such artifact")))
    out = tmp_path / "results" / "overnight-cifar10"
    publishing.publish(tmp_path, tmp_path / "results")
    assert result(out, GAIN).pair is None
    for run, share in zip(found, (0.7, 0.5)):
        right = np.random.default_rng(0).random(100) < share
        predictions(run.folder / "predictions.npz", {"raw/cls": right, "raw/dist": right})
    publishing.publish(tmp_path, tmp_path / "results")
    pair = result(out, GAIN).pair
    assert (pair.only_first > 5, pair.only_second) == (True, 0)
    for run in found:
        (run.folder / "predictions.npz").unlink()
    publishing.publish(tmp_path, tmp_path / "results")
    assert result(out, GAIN).pair == pair


def test_runs_on_other_test_images_are_not_compared(tmp_path: Path) -> None:
    right = np.arange(8) < 4
    predictions(tmp_path / "a.npz", {"raw/cls": right, "raw/dist": right})
    with np.load(tmp_path / "a.npz") as held:
        np.savez(tmp_path / "b.npz", **{**held, "labels": np.arange(8) % 2})
    assert images.compare(GAIN, [tmp_path / "a.npz", tmp_path / "a.npz"], 0.95) is not None
    assert images.compare(GAIN, [tmp_path / "a.npz", tmp_path / "b.npz"], 0.95) is None
