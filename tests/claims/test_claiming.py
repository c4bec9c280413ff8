"""The commands about claims: `vitlab claims` and `vitlab plan-claims`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scipy import stats as scipy_stats

from tests.support.claims import claim, ledger
from tests.support.cli import run
from tests.support.records import digits, fake_record
from vitlab import claiming, cli, records
from vitlab.claims import declarations, needed, power
from vitlab.claims import ledger as books
from vitlab.claims.declarations import Arm
from vitlab.data.sources import resolve

pytestmark = pytest.mark.slow

SMALL, TWICE = (Arm(experiment="01_baseline_vit", set=(f"train.epochs={n}",)) for n in (1, 2))
ON = ("--profile", "quick", "--data", "digits")
DIGITS = resolve("digits", Path("nowhere"), "quick", download=False)


@pytest.fixture
def declared(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> declarations.Ledger:
    two = claim(id="two", statement="Two epochs are better than one.", arms=(TWICE, SMALL))
    exact = claim(id="exact", arms=(Arm(experiment="01_baseline_vit"),), metric="params")
    cats = claim(id="cats", arms=(SMALL,), metric="confusion.cat.dog")
    found = ledger(two, exact, cats, seeds=(2, 3))
    monkeypatch.setattr(declarations, "load", lambda path: found)
    return found


def test_claims_are_planned_trained_and_judged(declared: declarations.Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "claims", "--run", "--dry-run", *ON, main=cli.main)
    assert code == 0, err
    assert "quick · data digits · seeds 0, 1 · 4 runs" in out
    assert [line.split()[-1] for line in out.splitlines() if "01_baseline_vit" in line][-1] == "two"
    code, out, err = run(capsys, "claims", "--run", "--seeds", "0", *ON, main=cli.main)
    assert code == 0, err
    assert "0:0" in out
    assert "interim; of these two runs: p " in " ".join(out.split())
    code, out, _ = run(capsys, "claims", "--json", "--data", "digits", main=cli.main)  # the only profile with runs
    assert code == 0
    results = {r["id"]: r for r in json.loads(out)}
    assert results.keys() == {"two", "exact"}, "digits has no cats"
    assert results["two"]["seeds"] == [0]
    assert results["two"]["pair"]["only_first"] - results["two"]["pair"]["only_second"] == pytest.approx(
        results["two"]["effect"] * 3.59, abs=0.01
    )
    code, out, err = run(capsys, "claims", "--run", *ON, main=cli.main)
    assert code == 0, err
    assert out.count("finished before, skipped") == 2
    code, out, _ = run(capsys, "claims", "--json", *ON, main=cli.main)
    assert json.loads(out)[0]["seeds"] == [0, 1]
    assert (json.loads(out)[0]["stage"], json.loads(out)[0]["p_holm"] is not None) == (1, True)
    code, out, _ = run(capsys, "claims", "--run", "--dry-run", *ON, main=cli.main)
    decided = json.loads(run(capsys, "claims", "--json", *ON, main=cli.main)[1])[0]["verdict"] != "undecided"
    assert ("all planned seeds of these claims are there: nothing to train" if decided else "seeds 0, 1, 2 · 6 runs") in out


def test_what_was_declared_otherwise_when_published_is_said(
    declared: declarations.Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(declared.claims[0], (50.0, 52.0), (50.0, 50.5))
    book = needed.judged(declared, "quick", "digits", claiming.RUNS, claiming.RESULTS)
    (claiming.RESULTS / "quick-digits").mkdir(parents=True)
    books.write(book, claiming.RESULTS / "quick-digits" / "claims.json")
    assert "declared anew" not in run(capsys, "claims", *ON, main=cli.main)[1]
    stricter = declared.claims[0].model_copy(update={"at_least": 5.0})
    changed = declared.model_copy(update={"claims": (stricter, *declared.claims[1:])})
    monkeypatch.setattr(declarations, "load", lambda path: changed)
    out = run(capsys, "claims", *ON, main=cli.main)[1]
    assert " ".join(out.split()).count("declared anew") == 1
    assert not claiming.REPORTS.exists(), "the history of the project's own claims is what is published"


OWN = """\
confidence: 0.95
stages:
  - {seeds: 3, alpha: 0.03}
  - {seeds: 5, alpha: 0.02}
families:
  plain: {experiments: [01_baseline_vit], sd: 0.5}
claims:
  - id: mine
    statement: Two epochs are better than one.
    brief: a second epoch gives
    primary: true
    source: my own question
    expected: 2
    arms:
      - {experiment: 01_baseline_vit, set: [train.epochs=2]}
      - {experiment: 01_baseline_vit, set: [train.epochs=1]}
    metric: test_top1
    at_least: 0
  - {id: size, statement: It is small., primary: true, source: mine, arms: [{experiment: 01_baseline_vit}], metric: params, at_most: 20}
"""


def finish(of: declarations.Claim, *top1: tuple[float, ...], profile: str = "quick") -> list[Path]:
    """Leave finished runs of the claim's arms, as a test on digits at the profile finds them; returns their folders."""
    folders = []
    for arm, values in zip(of.arms, top1, strict=True):
        resolved = arm.resolve(profile)
        for seed, value in enumerate(values):
            record = digits(fake_record("01_baseline_vit", seed, profile=profile, variant=resolved.variant))
            facts = record.dataset.model_copy(update={"classes": DIGITS.classes, "digest": DIGITS.digest})
            record = record.model_copy(update={"dataset": facts})
            found = {
                "fingerprint": declarations.fingerprint(resolved, record.dataset.digest),
                "metrics": record.metrics | {"test_top1": value},
            }
            folder = claiming.RUNS / f"{profile}-digits" / record.experiment / f"{found['fingerprint']}-s{seed}"
            folder.mkdir(parents=True)
            records.write(record.model_copy(update=found), folder / "record.json")
            folders.append(folder)
    return folders


def test_own_declarations_keep_their_history_in_reports(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN, encoding="utf-8")
    code, out, err = run(capsys, "claims", path, *ON, main=cli.main)
    assert (code, "no claim is measured; '--run' trains what they need" in out) == (0, True), err
    assert not claiming.REPORTS.exists()

    folders = finish(declarations.load(path).claims[0], (53.0, 54.2, 55.1), (50.0, 51.0, 52.0))
    code, out, err = run(capsys, "claims", path, *ON, main=cli.main)
    assert code == 0, err
    said = " ".join(out.split())
    assert "At the size of profile quick, on digits, a second epoch gives +3.10 [" in said
    assert "Of 2 primary claims, 2 are supported; 1 of them judged by formula, without a run." in said
    assert "planned: 3 or 5 seeds from 0 on; Holm over 1 claim; declared in " in said
    kept = claiming.kept(path, "quick-digits")
    (first, _) = books.read(kept).results
    assert (first.verdict, first.seeds, first.history) == ("supported", (0, 1, 2), ())

    (folders[-1] / "record.json").unlink()
    for _ in range(2):  # and the second time it stays as it is
        code, out, _ = run(capsys, "claims", path, "--json", *ON, main=cli.main)
        (now, _) = books.read(kept).results
        assert (now.verdict, [(past.verdict, past.values) for past in now.history]) == ("interim", [("supported", first.values)])
        assert json.loads(out)[0]["history"][0]["verdict"] == "supported"

    path.write_text(OWN.replace("at_least: 0", "at_least: 1"), encoding="utf-8")
    out = run(capsys, "claims", path, *ON, main=cli.main)[1]
    assert "interim, declared anew" in " ".join(out.split())
    assert not claiming.RESULTS.exists(), "nothing is published"

    other = tmp_path / "another study" / "mine.yaml"  # of the same name, with a claim of the same name
    other.parent.mkdir()
    other.write_text(OWN, encoding="utf-8")
    assert json.loads(run(capsys, "claims", other, "--json", *ON, main=cli.main)[1])[0]["history"] == []
    assert len(list(kept.parent.glob("claims-mine-*.json"))) == 2


def test_what_claims_can_find_out_is_said_before_anything_is_trained(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 points at a spread of 0.5: seen by three seeds already, as good as always by five."""
    path = tmp_path / "mine.yaml"
    path.write_text(OWN, encoding="utf-8")
    code, out, err = run(capsys, "plan-claims", path, *ON, main=cli.main)
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["claim", "wanted", "expected", "3", "seeds", "5", "seeds", "sees"]
    (mine,) = [line for line in lines if line[0] == "mine"]
    assert (mine[1:4], mine[-1]) == (["≥", "0", "+2"], "points")
    three, five = int(mine[4]), int(mine[6])
    assert 30 < three < five
    assert five > 90
    assert "Holm over 1 claim; sees" in out
    assert "1 more by formula, without a run" in out
    assert "stage 1, seeds 0 to 2: 6 runs more, 0 finished; about " in out
    assert "stage 2, seeds 0 to 4: at most 4 runs more, 0 finished; about " in out
    assert "an assumed 45 GFLOP/s per CPU core" in out
    assert not claiming.RUNS.exists()
    assert not claiming.REPORTS.exists()


def test_chances_are_those_of_a_t_test() -> None:
    """One claim alone, its effect 1 and its seeds' standard deviation 0.8, against the power by the noncentral t distribution."""
    n, sd = 6, 0.8
    (of,) = power.power(ledger(claim(sd=sd, expected=1.0), seeds=(n,)), "quick").values()
    least = scipy_stats.t.ppf(0.975, n - 1)
    exact = scipy_stats.nct.sf(least, n - 1, n**0.5 / sd) + scipy_stats.nct.cdf(-least, n - 1, n**0.5 / sd)
    assert of.chances == pytest.approx([exact], abs=4 * (exact * (1 - exact) / power.LEDGERS) ** 0.5)
    assert scipy_stats.nct.sf(least, n - 1, of.distance * n**0.5 / sd) == pytest.approx(power.WANTED, abs=0.08)


def test_claims_in_percent_and_of_spread_are_planned_by_the_sd_of_their_effect() -> None:
    """As a plain difference with that sd: of its own seeds alone, whatever its two arms are."""
    usual = {"sd": 0.8, "expected": 1.0}
    plain, percent, spread = (
        claim(id=name, **usual, **{name: True}) if name != "c" else claim(**usual) for name in ("c", "relative", "spread")
    )
    found = [power.power(ledger(one, seeds=(6,)), "quick")[one.id] for one in (plain, percent, spread)]
    assert found[0].chances[0] > 0.5
    assert found == [found[0]] * 3


def test_exploratory_claims_alone_are_trained_and_shown(
    declared: declarations.Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = declared.claims[0].model_copy(update={"primary": False})
    alone = declared.model_copy(update={"claims": (two,)})
    monkeypatch.setattr(declarations, "load", lambda path: alone)
    finish(two, (53.0, 54.0), (50.0, 52.0))
    code, out, err = run(capsys, "claims", *ON, main=cli.main)
    assert code == 0, err
    said = " ".join(out.split())
    assert "2.5 [" in said
    assert "No claim is primary, so none is tested. intervals over seeds, 95%; planned: 2 or 3 seeds from 0 on; declared in " in said
    code, out, err = run(capsys, "claims", "--run", "--only", "two", "--dry-run", *ON, main=cli.main)
    assert (code, "all planned seeds of these claims are there: nothing to train" in out) == (0, True), err


def test_a_metric_that_the_finished_runs_lack_is_told_and_asks_for_no_second_stage(
    declared: declarations.Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typo = claim(id="typo", metric="test_tpo1", arms=(TWICE, SMALL))
    monkeypatch.setattr(declarations, "load", lambda path: ledger(typo, declared.claims[0], seeds=(2, 3)))
    finish(typo, (50.1, 49.0), (50.0, 50.0))
    code, out, _ = run(capsys, "claims", *ON, main=cli.main)
    assert (code, "not measured: records without test_tpo1 are left out" in " ".join(out.split())) == (0, True)
    for more in ((), ("--dry-run",), ("--seeds", "0", "--only", "typo")):
        code, out, err = run(capsys, "claims", "--run", *more, *ON, main=cli.main)
        assert (code, "typo: test_tpo1: not in the record of 01_baseline_vit; expected test_" in err) == (2, True), err
        assert "; mend the claim, or train the run anew by runner.py --force" in err
        assert "the next stage" not in out


def test_the_next_stage_is_told_of_when_it_is_due(
    declared: declarations.Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not where training ended before the first one was complete."""
    two = declared.claims[0]
    (last, *_) = finish(two, (50.1, 49.0), (50.0, 50.0))
    record, claims = (last / "record.json").read_text(encoding="utf-8"), claiming.claims
    for complete in (False, True):
        (last / "record.json").unlink(missing_ok=True)

        def train(*_: object, complete: bool = complete) -> int:
            if complete:
                (last / "record.json").write_text(record, encoding="utf-8")
            return 0

        monkeypatch.setattr(claiming, "claims", lambda args, _, train=train: claims(args, train))
        code, out, err = run(capsys, "claims", "--run", *ON, main=cli.main)
        assert (code, "the next stage has more seeds for what is undecided" in out) == (0, complete), err


def test_without_a_profile_the_one_with_the_most_verdicts_is_shown(
    declared: declarations.Ledger, small_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of equals the largest."""
    shutil.copy(small_world / "profiles" / "quick.yaml", small_world / "profiles" / "ledger.yaml")
    shown = []
    for top1, profile in (((63.0, 64.1), "quick"), ((63.0,), "ledger"), ((63.0, 64.2), "ledger")):
        shutil.rmtree(claiming.RUNS / f"{profile}-digits", ignore_errors=True)
        finish(declared.claims[0], top1, (50.0, 51.0)[: len(top1)], profile=profile)
        code, out, err = run(capsys, "claims", "--data", "digits", main=cli.main)
        assert code == 0, err
        shown.append(out.split()[0])
    assert shown == ["quick", "quick", "ledger"]


def test_claims_about_classes_that_the_data_lacks_are_named(declared: declarations.Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    finish(declared.claims[0], (53.0, 54.2), (50.0, 51.0))
    code, out, _ = run(capsys, "claims", *ON, main=cli.main)
    assert (code, "left out, about classes that digits does not have: cats" in out) == (0, True)


def test_what_is_not_trained_for_is_said(
    declared: declarations.Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`cats` for want of cats; `two`, undecided, until `three` has its first stage, too."""
    three = claim(id="three", arms=(TWICE, Arm(experiment="02_regularized_vit")))
    found = declared.model_copy(update={"claims": (*declared.claims, three)})
    monkeypatch.setattr(declarations, "load", lambda path: found)
    finish(declared.claims[0], (50.1, 49.0), (50.0, 50.0))
    code, out, err = run(capsys, "claims", "--run", "--only", "two,cats", "--dry-run", *ON, main=cli.main)
    assert code == 0, err
    assert "left out, about classes that digits does not have: cats (cat, dog)" in out
    assert "undecided after 2 seeds; 3 are planned" in " ".join(out.split())
    assert "nothing to train: what these leave undecided has more seeds once the first stage is complete for all primary claims" in out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--dry-run",), "--dry-run: about training; add --run"),
        (("--run", "--only", "tow"), "--only tow: no such claim; did you mean two?"),
        (("--run", "--json"), "not allowed with argument"),
        (("--run", "--budget", "25"), "expected a time with its unit"),
        (("--run", "--budget", "0m"), "expected a time with its unit"),
    ],
)
def test_mistakes_exit_2(argv: tuple[str, ...], expected: str, declared: declarations.Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "claims", *argv, *ON, main=cli.main)
    assert (code, expected in err) == (2, True), err
