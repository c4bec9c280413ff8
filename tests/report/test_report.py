"""report.py: what the pages say is what the records hold."""

from __future__ import annotations

import base64
import csv
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.support.pages import EVIL, Page, files, markdown_rows
from tests.support.records import CIFAR10, LADDER, THREE, digits, fake_record, fake_set, make_claim
from vitlab import config, records
from vitlab.config import Claim
from vitlab.errors import UserError
from vitlab.figures import style
from vitlab.figures.run import run_figures
from vitlab.paths import EXPERIMENTS
from vitlab.records import ClassFacts, DatasetFacts, RunRecord
from vitlab.report import publishing, rung_page, rungs, set_page, tables, words
from vitlab.stats import mean_and_half
from vitlab.track import read

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


# ------------------------------------------------------------------------------------------------------------ statistics


def test_interval_by_hand() -> None:
    mean, half = mean_and_half([1.0, 2.0, 3.0])  # deviation 1, t(2, 0.975) = 4.3027, so 4.3027 / sqrt(3)
    assert mean == 2.0
    assert half == pytest.approx(2.48414, abs=1e-5)


def test_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(90, 1, 5)
    mean, half = mean_and_half(values.tolist())
    low, high = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_one_seed_has_no_interval() -> None:
    assert mean_and_half([81.5]) == (81.5, None)


@pytest.mark.parametrize(
    ("text", "top1", "expected", "shown"),
    [
        ("82–83", (82, 83), (82, 83), "82–83"),
        ("83-84 %", (83, 84), (83, 84), "83–84"),
        ("~80", 80, (80, 80), "~80"),
        ("95.69", 95.69, (95.69, 95.69), "95.69"),
        ("90-92 with tricks", 91, (91, 91), "91"),  # the text is shown, and nothing read from it
        ("somewhat better", None, None, ""),
    ],
)
def test_claimed_range(text: str, top1: float | tuple | None, expected: tuple[float, float] | None, shown: str) -> None:
    claim = make_claim(text, top1)
    assert rungs.claimed_range(claim) == expected
    assert rungs.claimed_text(claim) == shown


# ------------------------------------------------------------------------------------------------- which runs are shown


def test_newest_configuration_is_taken_whole() -> None:
    old = [fake_record(seed=s, fingerprint="aaaaaaaaaaaa", finished="2025-01-01T10:00:00+00:00") for s in (0, 1, 2)]
    new = [fake_record(seed=s, fingerprint="bbbbbbbbbbbb", finished="2025-01-02T10:00:00+00:00") for s in (0, 1)]
    kept, left_out = rungs.newest([*new, *old])
    assert kept == new
    assert left_out == old


def test_repeated_seed_counts_once() -> None:
    first = fake_record(finished="2025-01-01T10:00:00+00:00")
    again = fake_record(finished="2025-01-03T10:00:00+00:00")
    assert rungs.newest([again, first]) == ([again], [first])


def test_ladder_order_and_variants() -> None:
    runs = [*fake_set(1)[::-1], fake_record("01_baseline_vit", 0, variant="model.patch_size=2", fingerprint="feedbeef0001")]
    assert [rung.runs[0].experiment for rung in rungs.ladder(runs)] == list(LADDER)
    assert all(not run.variant for rung in rungs.ladder(runs) for run in rung.runs)


def test_left_out_runs_are_told(tmp_path: Path, undrawn: None) -> None:
    old = fake_record(seed=0, fingerprint="aaaaaaaaaaaa", finished="2024-12-31T10:00:00+00:00", top1=11.0)
    publishing.build([old, *fake_set(2, THREE)], tmp_path, {})
    for page in ("README.md", "report.html"):
        assert "1 earlier run is left out" in (tmp_path / page).read_text(encoding="utf-8")
    assert old.fingerprint not in "".join(p.read_text(encoding="utf-8") for p in (tmp_path / "records").iterdir())
    before = files(tmp_path)
    publishing.rebuild(tmp_path)  # what was left out is remembered
    assert files(tmp_path) == before
    noted = [{"experiment": old.experiment, "variant": "", "fingerprint": old.fingerprint, "seed": 0}]
    publishing.build(fake_set(2, THREE), tmp_path, {}, earlier=noted)  # from another store, which does not know the run
    assert "1 earlier run is left out" in (tmp_path / "README.md").read_text(encoding="utf-8")
    publishing.build(fake_set(2, THREE), tmp_path, {})
    assert "left out" not in (tmp_path / "README.md").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- what pages say


def test_tables_hold_the_records_numbers(tmp_path: Path, undrawn: None) -> None:
    runs = fake_set(3, THREE)
    publishing.build(runs, tmp_path, {})
    page = Page(tmp_path / "report.html")
    rows = {row[0]: row for row in page.table("Test top-1, mean")}
    for name, label in (("01_baseline_vit", "01 Baseline ViT"), ("resnet50", "ResNet-50 teacher")):
        same = [r for r in runs if r.experiment == name]
        top1 = np.array([r.metrics["test_top1"] for r in same])
        half = stats.t.ppf(0.975, 2) * stats.sem(top1)
        claim = same[0].claim
        assert rows[label][1:5] == [claim.text, f"{top1.mean():.2f} ± {half:.2f}", "3", f"{top1.mean() - claim.top1:+.2f}"]
        assert rows[label][5:] == [
            {"01_baseline_vit": "9.57", "resnet50": "23.5"}[name],
            {"01_baseline_vit": "1.29", "resnet50": "2.60"}[name],
            {"01_baseline_vit": "25.1 min", "resnet50": "50.3 min"}[name],
            "9,001",
            "NVIDIA H100 80GB HBM3",
        ]
        assert [publishing.md(cell) for cell in rows[label]] in markdown_rows(tmp_path / "README.md")
    student = [r for r in runs if r.experiment.startswith("06")]
    (taught,) = page.table("Test top-1; gain")[1:]
    gain = np.mean([r.teacher.gain for r in student])
    assert taught[1] == "ResNet-50 teacher"
    assert taught[4].split(" ± ")[0] == f"{gain:+.2f}".replace("-", "−")
    assert taught[5:] == ["93.50", "10.6 / 23.5", "58.1 min / 50.3 min"]
    heads = page.table("Top-1 (%) by weights")
    assert heads[0][2:6] == ["Raw weights", "EMA weights", "Class head", "Distillation head"]
    assert heads[2][4] == f"{np.mean([r.metrics['test_cls_top1'] for r in student]):.2f}"
    assert heads[1][3:6] == ["–", "–", "–"]  # the baseline has neither EMA nor a second head


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def test_summary_csv_holds_the_numbers_unrounded(tmp_path: Path, undrawn: None) -> None:
    runs = fake_set(3)
    publishing.build(runs, tmp_path, {})
    rows = csv_rows(tmp_path / "summary.csv")
    assert [row["experiment"] for row in rows] == list(LADDER)
    for row in rows:
        same = [r for r in runs if r.experiment == row["experiment"]]
        top1 = [r.metrics["test_top1"] for r in same]
        assert (row["profile"], row["dataset"], row["seeds"], row["device"]) == ("full", "cifar10", "3", "NVIDIA H100 80GB HBM3")
        assert float(row["top1"]) == np.mean(top1)  # to the last bit
        assert float(row["ci95_half"]) == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(top1), rel=1e-12)
        assert (int(row["params"]), float(row["gflops"])) == (same[0].params, same[0].flops / 1e9)
        assert float(row["train_seconds"]) == np.median([r.train_seconds for r in same])
    claimed = {row["experiment"]: (row["claimed"], row["claimed_low"], row["claimed_high"]) for row in rows}
    assert claimed["02_regularized_vit"] == ("82–83", "82.0", "83.0")
    assert claimed["06_kd_r50_class_attention"] == ("95.69", "95.69", "95.69")
    assert claimed["resnet18"] == ("", "", "")
    publishing.build(fake_set(1, THREE), tmp_path, {})
    assert [row["ci95_half"] for row in csv_rows(tmp_path / "summary.csv")] == ["", "", ""]  # one seed has no interval
    publishing.build([fake_record(variant="model.patch_size=2", fingerprint="feedbeef0001")], tmp_path, {})
    assert not (tmp_path / "summary.csv").exists()  # of a set without a ladder


def test_a_line_in_the_summary_is_a_column_everywhere(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    column = tables.Column("Steps per second", {"speed": lambda rung: len(rung.runs) / 3}, "{:.1f} /s".format)
    monkeypatch.setattr(set_page, "SUMMARY", (*set_page.SUMMARY, column))
    publishing.build(fake_set(2, THREE), tmp_path, {})
    cells = ["0.7 /s"] * 3
    assert [row[-1] for row in Page(tmp_path / "report.html").table("Test top-1, mean")] == ["Steps per second", *cells]
    rows = markdown_rows(tmp_path / "README.md")
    (head,) = (i for i, row in enumerate(rows) if "Steps per second" in row)
    assert [row[-1] for row in rows[head : head + 2 + len(THREE)]] == ["Steps per second", "---:", *cells]
    assert [float(row["speed"]) for row in csv_rows(tmp_path / "summary.csv")] == [2 / 3] * 3


def test_the_terminals_closing_table() -> None:
    varied = [fake_record(seed=s, variant="model.patch_size=2", fingerprint="feedbeef0001", params=1_234_567) for s in (0, 1)]
    table = set_page.closing([*varied, *fake_set(2, ("resnet18", "01_baseline_vit"))])
    assert table.caption == "full · cifar10 · NVIDIA H100 80GB HBM3"
    rows = [[cell for _, cell in row] for row in table.rows]
    assert [row[0] for row in rows] == ["01_baseline_vit", "resnet18", "01_baseline_vit model.patch_size=2"]
    mean, half = mean_and_half([r.metrics["test_top1"] for r in varied])
    assert rows[2][1:] == ["–", f"{mean:.2f} ± {half:.2f}", "2", "1.23", "25.0 min"]  # of two the quicker one
    assert [row[1] for row in rows] == ["~80", "–", "–"], "the reports claim nothing of a variation"


def test_per_class_and_confusions(tmp_path: Path, undrawn: None) -> None:
    confusion = ((90, 10, 0), (2, 97, 1), (0, 30, 70))
    facts = tuple(
        ClassFacts(name=n, precision=p, recall=r, f1=50, accuracy=r, support=100)
        for n, p, r in (("a", 97.83, 90), ("b", 70.8, 97), ("c", 98.59, 70))
    )
    runs = [fake_record(seed=s, classes=("a", "b", "c"), confusion=confusion, per_class=facts) for s in (0, 1)]
    publishing.build(runs, tmp_path, {})
    page = Page(tmp_path / "report.html")
    assert page.table("Per class")[1] == ["a", "97.83", "90.00", "50.00", "90.00", "100"]
    assert page.table("Most confused")[1:] == [
        ["c → b", "30.0", "30.0"],
        ["a → b", "10.0", "10.0"],
        ["b → a", "2.0", "2.0"],
        ["b → c", "1.0", "1.0"],
    ]


SIX = "06_kd_r50_class_attention"


def told_as_the_reports_do() -> list[RunRecord]:
    """Two seeds of 06 with the claim of its YAML, all they measure worked by hand."""
    claim = config.load(EXPERIMENTS / f"{SIX}.yaml").config.claim
    runs = []
    for seed in (0, 1):
        confusion = np.diag([950, 960, 970, 900, 955, 940, 965, 975, 980, 945])
        confusion[3, 5], confusion[5, 3], confusion[0, 8], confusion[8, 0] = 80 + seed, 60, 20, 19
        confusion[range(10), [1, 2, 1, 4, 5, 6, 7, 8, 9, 0]] += 1000 - confusion.sum(1)
        facts = tuple(
            ClassFacts(name=c, precision=90.0 + i, recall=n / 10, f1=93.5 + seed, accuracy=n / 10, support=1000)
            for i, (c, n) in enumerate(zip(CIFAR10, confusion.diagonal().tolist(), strict=True))
        )
        metrics = {
            "test_top1": 95.4, "test_top5": 99.8 + 0.1 * seed, "test_ema_top1": 95.4, "test_raw_top1": 95.2 - 0.2 * seed,
            "validation_top1": 96.0 + 0.2 * seed, "validation_top1_phase_0": 95.6, "test_confidence": 93.0 + seed,
            "test_confidence_above_90": 80.0 + seed, "test_confidence_above_90_accuracy": 99.0,
        }  # fmt: skip
        record = fake_record(SIX, seed, claim=claim, confusion=tuple(map(tuple, confusion.tolist())), per_class=facts, metrics=metrics)
        teacher = record.teacher.model_copy(update={"test_top1": 95.5, "gain": -0.1})
        runs.append(record.model_copy(update={"teacher": teacher, "config": record.config | {"phases": [{}, {}]}}))
    return runs


def test_what_the_report_says_stands_beside_what_was_measured(tmp_path: Path, undrawn: None) -> None:
    """t(1, 0.975) = 12.706, so two seeds that differ by d have a half-width of 12.706 d / 2."""
    publishing.build(told_as_the_reports_do(), tmp_path, {})
    page = Page(tmp_path / "report.html")
    said = page.table("What the report says, and what was measured")
    assert said == [
        ["Metric", "Report", "Measured"],
        ["Top-1 (%)", "95.69", "95.40 ± 0.00"],
        ["Top-5 (%)", "99.88", "99.85 ± 0.64"],
        ["Parameters (M)", "10.6", "10.6"],
        ["Training time", "68.4 min, A100", "58.0 min, NVIDIA H100 80GB HBM3"],
        ["Best class, accuracy (%)", "automobile 98.20", "ship 98.00"],
        ["Worst class, accuracy (%)", "cat 88.40", "cat 90.00"],
        ["Teacher's top-1 (%)", "88.71", "95.50 ± 0.00"],
        ["Gain over the teacher (points)", "+6.98", "−0.10 ± 0.00"],
        ["EMA's gain (points)", "+0.30 to +0.50", "+0.30 ± 1.27"],
        ["Before the clean tail (%)", "95.51, test", "95.60, validation"],
        ["Rise from there to the end (points)", "+0.18, test", "+0.50 ± 1.27, validation"],
        ["Mean confidence (%)", "above 90", "93.50"],
        ["Images with confidence above 90 % (%)", "–", "80.50"],
        ["Of these right (%)", "–", "99.00"],
    ]
    counted = page.table("Confusions that the report counts")
    assert counted[1:] == [
        ["cat → dog", "62", "80.5"],
        ["dog → cat", "44", "60.0"],
        ["airplane → ship", "13", "20.0"],
        ["ship → airplane", "5", "19.0"],
    ]
    classes = page.table("Per class")
    assert classes[1] == ["airplane", "96.13 / 90.00", "96.90 / 95.00", "96.51 / 94.00", "96.90 / 95.00", "1,000"]
    assert classes[10] == ["truck", "96.92 / 99.00", "97.40 / 94.50", "97.16 / 94.00", "97.40 / 94.50", "1,000"]
    rows = markdown_rows(tmp_path / "README.md")
    for row in (*said[1:], *counted[1:], *classes[1:]):
        assert [publishing.md(cell) for cell in row] in rows


def test_what_a_record_lacks_stays_empty_and_other_data_has_none_of_it(tmp_path: Path, undrawn: None) -> None:
    bare = {"test_top1": 95.4, "test_top5": 99.8, "validation_top1": 96.0}
    old = [r.model_copy(update={"metrics": bare, "teacher": None, "history": ()}) for r in told_as_the_reports_do()]
    publishing.build(old, tmp_path / "old", {})
    said = {row[0]: row[2] for row in Page(tmp_path / "old" / "report.html").table("What the report says, and")}
    assert [name for name, measured in said.items() if measured == "–"] == [
        "Teacher's top-1 (%)", "Gain over the teacher (points)", "EMA's gain (points)", "Before the clean tail (%)",
        "Rise from there to the end (points)", "Mean confidence (%)", "Images with confidence above 90 % (%)", "Of these right (%)",
    ]  # fmt: skip
    publishing.build([digits(r) for r in told_as_the_reports_do()], tmp_path / "digits", {})
    page = Page(tmp_path / "digits" / "report.html")
    assert not [caption for caption in page.tables if caption.startswith(("What the report says, and", "Confusions that the report"))]
    assert page.table("Per class")[1] == ["airplane", "90.00", "95.00", "94.00", "95.00", "1,000"]


def test_every_caption_says_where_the_numbers_are_from(tmp_path: Path, undrawn: None) -> None:
    publishing.build(fake_set(2, THREE), tmp_path, {})
    captions = list(Page(tmp_path / "report.html").tables)
    assert len(captions) > 5
    for caption in captions:
        seeds = "seed 0" if caption.startswith("Confusion matrix") else "seeds 0, 1"
        assert f"Data set cifar10, profile full, {seeds}, device NVIDIA H100" in caption
        assert "last weights, test split read once; EMA where the experiment has one" in caption


def test_one_seed(tmp_path: Path, undrawn: None) -> None:
    publishing.build(fake_set(1, THREE), tmp_path, {})
    page = Page(tmp_path / "report.html")
    rows = page.table("Test top-1, mean")[1:]
    assert [row[3] for row in rows] == ["1 seed"] * 3
    assert not any("±" in cell for row in rows for cell in row)
    assert "Every experiment has one seed only" in page.text


def test_missing_claims_and_teachers(tmp_path: Path, undrawn: None) -> None:
    publishing.build(fake_set(2, ("resnet18",)), tmp_path, {})
    page = Page(tmp_path / "report.html")
    (row,) = page.table("Test top-1, mean")[1:]
    assert (row[1], row[4]) == ("–", "–")
    assert "Students and their teachers" not in page.text
    assert "claimed accuracies" not in page.text


def test_teacher_that_is_not_in_the_set(tmp_path: Path, undrawn: None) -> None:
    publishing.build(fake_set(2, ("05_kd_r18",)), tmp_path, {})
    (row,) = Page(tmp_path / "report.html").table("Test top-1; gain")[1:]
    assert (row[1], row[6]) == ("resnet18", "9.70 / –")


@pytest.mark.parametrize(("profile", "dataset"), [("quick", "cifar10"), ("overnight", "cifar10"), ("full", "digits"), ("full", "cifar10")])
def test_scale_is_said(tmp_path: Path, undrawn: None, profile: str, dataset: str) -> None:
    runs = fake_set(2, THREE, profile=profile)
    runs = [r.model_copy(update={"dataset": r.dataset.model_copy(update={"name": dataset})}) for r in runs]
    publishing.build(runs, tmp_path, {})
    for page in ("README.md", "report.html"):
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert ("not the original reports" in text) == (profile != "full")
        assert ("The claims are about CIFAR-10" in text) == (dataset != "cifar10")
        assert ("claimed accuracies are reached" in text) == (profile == "full" and dataset == "cifar10")
    if dataset != "cifar10":
        assert {row[4] for row in Page(tmp_path / "report.html").table("Test top-1, mean")[1:]} == {"–"}


def test_variants_stand_apart(tmp_path: Path, undrawn: None) -> None:
    varied = [fake_record(seed=s, variant="model.patch_size=2", fingerprint="feedbeef0001", top1=60.0) for s in (1, 2)]
    others = [fake_record(seed=9, variant="model.patch_size=8", fingerprint="feedbeef0002", top1=60.0)]
    ladder = fake_set(2, THREE)
    publishing.build(ladder + varied + others, tmp_path, {})
    page = Page(tmp_path / "report.html")
    assert len(page.table("Test top-1, mean")) == 1 + len(THREE)
    row, other = page.table("Experiments with settings changed")[1:]
    assert row[:2] == ["01 Baseline ViT", "model.patch_size=2"]
    (unchanged,) = (run for run in ladder if (run.experiment, run.seed) == ("01_baseline_vit", 1))
    paired = varied[0].metrics["test_top1"] - unchanged.metrics["test_top1"]  # seed 1, which alone both have
    assert (row[4], other[4]) == (f"−{abs(paired):.2f}", "–")
    assert (tmp_path / "records" / "01_baseline_vit-feedbeef0001-s1.json").is_file()


def test_a_set_of_variants_alone(tmp_path: Path) -> None:
    publishing.build([fake_record(variant="model.patch_size=2", fingerprint="feedbeef0001")], tmp_path / "full-cifar10", {})
    publishing.index(tmp_path)
    text = (tmp_path / "full-cifar10" / "README.md").read_text(encoding="utf-8")
    assert "## Variations" in text
    assert "## Summary" not in text


# ------------------------------------------------------------------------------------------------------- bytes and files


def test_variations_alone_are_a_set_too(tmp_path: Path) -> None:
    varied = [fake_record(seed=s, variant="model.patch_size=2", fingerprint="feedbeef0001", top1=60.0) for s in (0, 1)]
    publishing.build(varied, tmp_path, {})
    assert "model.patch" in (tmp_path / "README.md").read_text()
    assert list((tmp_path / "figures").iterdir()) == []


def test_same_records_same_bytes_and_rebuild(tmp_path: Path) -> None:
    runs = fake_set(2, ("06_kd_r50_class_attention",))
    left_by_run = tmp_path / "run"
    left_by_run.mkdir()
    (left_by_run / "predictions.png").write_bytes(PIXEL)
    pictures = {("06_kd_r50_class_attention", 0): [left_by_run / "predictions.png"]}
    publishing.build(runs, tmp_path / "a", pictures)
    built = files(tmp_path / "a")
    for name, content in built.items():  # what cannot be made anew, and nothing else
        if name.startswith("records/") or name.endswith("predictions.png"):
            (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "b" / name).write_bytes(content)
    publishing.rebuild(tmp_path / "b")
    assert files(tmp_path / "b") == built
    assert records.read_all(tmp_path / "a") == runs


def test_pictures_that_a_run_drew_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = fake_record()
    left = run_figures(record, tmp_path / "run")
    drawn = []
    monkeypatch.setattr(style, "save", lambda fig, path, note="", save=style.save: (drawn.append(path.name), save(fig, path, note)))
    publishing.build([record], tmp_path / "set", {(record.experiment, record.seed): left[:2]})
    assert [name for name in drawn if name.endswith(".png")] == [path.name for path in left[2:]]
    assert [(tmp_path / "set" / "figures" / rungs.picture_folder(record) / path.name).read_bytes() for path in left] == [
        p.read_bytes() for p in left
    ]


def test_order_of_the_records_does_not_matter(tmp_path: Path, undrawn: None) -> None:
    runs = fake_set(3)
    publishing.build(runs, tmp_path / "a", {})
    publishing.build(runs[::-1], tmp_path / "b", {})
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_pictures_of_another_configuration_go(tmp_path: Path, undrawn: None) -> None:
    left_by_run = tmp_path / "run"
    left_by_run.mkdir()
    (left_by_run / "predictions.png").write_bytes(PIXEL)
    out = tmp_path / "set"
    publishing.build(fake_set(1, THREE), out, {("01_baseline_vit", 0): [left_by_run / "predictions.png"]})
    assert len(list(out.glob("figures/*/predictions.png"))) == 1
    publishing.build([fake_record(fingerprint="bbbbbbbbbbbb")], out, {})
    assert [p.name for p in out.glob("figures/*/")] == ["01_baseline_vit-s0-bbbbbbbbbbbb"]
    assert not list(out.glob("figures/*/predictions.png"))
    assert [p.name for p in (out / "records").iterdir()] == ["01_baseline_vit-s0.json"]


def test_html_is_self_contained(tmp_path: Path, undrawn: None) -> None:
    publishing.build(fake_set(2, THREE), tmp_path, {})
    page = Page(tmp_path / "report.html")
    sources = [attrs[key] for tag, attrs in page.tags for key in ("src", "srcset") if key in attrs]
    assert len(sources) == 3 + 3 * 2  # charts, and two pictures an experiment: the confusion matrices are tables
    assert all(source.startswith("data:image/") for source in sources)
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    hrefs = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(h[1:] in ids if h.startswith("#") else (tmp_path / h).is_file() for h in hrefs)
    assert "url(" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_confusion_matrices_are_tables_with_the_records_numbers(tmp_path: Path, undrawn: None) -> None:
    record = fake_record(classes=("a", "b"))
    record = record.model_copy(update={"confusion": ((30, 10), (0, 40))})  # largest share 100 %: strength 100 * share ** 0.4
    publishing.build([record], tmp_path, {})
    page = Page(tmp_path / "report.html")
    assert page.table("Confusion matrix, percent")[1:] == [["a", "75.0", "25.0"], ["b", "", "100.0"]]
    strengths = [attrs["style"] for tag, attrs in page.tags if tag == "td" and "style" in attrs]
    assert strengths == ["--s:89%", "--s:57%", "--s:0%", "--s:100%"]  # 0.75 ** 0.4 = 0.891, 0.25 ** 0.4 = 0.574


def test_of_many_classes_the_confusion_matrices_are_pictures(tmp_path: Path, undrawn: None) -> None:
    publishing.build([fake_record(classes=tuple(f"class {i}" for i in range(21)))], tmp_path, {})
    page = Page(tmp_path / "report.html")
    assert not [caption for caption in page.tables if caption.startswith("Confusion matrix")]
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3 + 4  # charts, and four pictures


def test_markdown_links_and_pictures_exist(tmp_path: Path, undrawn: None) -> None:
    publishing.build(fake_set(2, THREE), tmp_path, {})
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert len(targets) > 20
    assert all((tmp_path / t).is_file() for t in targets)


def test_hostile_names(tmp_path: Path, undrawn: None) -> None:
    runs = [
        fake_record(
            seed=s, classes=(EVIL, "../", "|", "</td>"), title=EVIL, device=EVIL, precision=EVIL, versions={EVIL: EVIL},
            git={"commit": "|<b>", "dirty": "<i>"}, claim=Claim(text=EVIL, top1=80, source=EVIL), config={"description": EVIL},
        )
        for s in (0, 1)
    ]  # fmt: skip
    varied = [r.model_copy(update={"variant": EVIL, "fingerprint": "feedbeef0001"}) for r in runs]
    publishing.build(runs + varied, tmp_path / "set", {})
    page = Page(tmp_path / "set" / "report.html")
    assert not {"script", "b", "i"} & {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert EVIL in page.text  # and yet it is shown as it is
    assert {len(row) for row in page.table("Per class")} == {6}
    text = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<(\w+)", text)) == {"picture", "source", "img", "details", "summary", "b"}
    text = re.sub(r"(?m)^<summary>.*</summary>$", "", text)  # an HTML block, in which Markdown is not read
    assert not re.search(r"(?<!\\)`|(?<!\\)\]\(javascript|^#+ *\$", text, re.MULTILINE)
    widths = {len(row) for row in markdown_rows(tmp_path / "set" / "README.md")}
    assert widths == {2, 3, 6, 8, 9, 10}  # facts, pairs, classes and weights, runs, variations, summary: no cell has split
    publishing.index(tmp_path)
    assert "<script" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    (row,) = csv_rows(tmp_path / "set" / "summary.csv")
    assert row["device"] == row["claimed"] == " ".join(EVIL.split())


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r\n=1"])
def test_a_spreadsheet_runs_no_text_of_a_csv(text: str) -> None:
    table = tables.table("", [tables.Column("a", {"a": str}), tables.Column("b", {"b": lambda _: -1.5})], [text])
    assert tables.csv(table.frame) == f"a,b\n'{text.strip()},-1.5\n"


@pytest.mark.parametrize("name", ["../../evil", "a/b", "..", "<script>", "a|b", "a\n", ""])
def test_a_record_whose_names_cannot_name_a_file_is_refused(name: str) -> None:
    """They are joined to folders, and records come from other machines: none of them leads out, whoever joins them."""
    for field in ("experiment", "profile", "fingerprint"):
        with pytest.raises(ValueError, match=field):
            fake_record(**{field: name})
    values = fake_record().dataset.model_dump()
    with pytest.raises(ValueError, match="name"):
        DatasetFacts(**values | {"name": name})


def test_markdown_escapes() -> None:
    assert publishing.md("a|b<c>`d`[e](f)_g_\nh") == r"a\|b&lt;c&gt;\`d\`\[e\](f)\_g\_ h"
    assert publishing.md("- item") == r"\- item"
    assert publishing.md("1. item") == r"1\. item"
    assert publishing.md("+0.61") == "+0.61"


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished runs"):
        publishing.build([], tmp_path, {})
    with pytest.raises(UserError, match="one profile and one data set, got full-cifar10, quick-cifar10"):
        publishing.build([fake_record(), fake_record(profile="quick")], tmp_path, {})
    with pytest.raises(ValueError, match="no test_top1, test_top5"):
        fake_record(metrics={"validation_top1": 1.0})
    with pytest.raises(UserError, match="no set with records"):
        publishing.index(tmp_path)
    records.write(fake_record(), tmp_path / "record.json")
    whole = (tmp_path / "record.json").read_text(encoding="utf-8")
    for written, version in (("", "None"), ('"version": 2', "2"), ('"version": "1"', "'1'")):
        (tmp_path / "record.json").write_text(re.sub(r',\s*"version": 1', f", {written}" if written else "", whole), encoding="utf-8")
        with pytest.raises(UserError, match=f"run record of version {version}, this vitlab reads 1"):
            records.read(tmp_path / "record.json")


# ------------------------------------------------------------------------------------------------------ index, publishing


def test_index_shows_the_best_set(tmp_path: Path, undrawn: None) -> None:
    for name in ("full-digits", "quick-cifar10", "overnight-cifar10"):
        profile, data = name.split("-")
        runs = fake_set(1, THREE, profile=profile)
        publishing.build([digits(r) if data == "digits" else r for r in runs], tmp_path / name, {})
    publishing.index(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "reports' scale: [overnight-cifar10](overnight-cifar10/README.md)" in text
    listed = re.findall(r"^\| \[([\w-]+)\]", text, re.MULTILINE)
    assert listed == ["overnight-cifar10", "quick-cifar10", "full-digits"]
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert all((tmp_path / t).is_file() for t in targets)


def test_publish_builds_each_set_of_the_store(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for run in [*fake_set(1, THREE), *(digits(r) for r in fake_set(1, THREE))]:
        folder = tmp_path / "store" / f"{run.dataset.name}-{run.experiment}"
        (folder / "figures").mkdir(parents=True)
        (folder / "figures" / "predictions.png").write_bytes(PIXEL)
        records.write(run, folder / "record.json")
        found.append(read.FinishedRun(folder.name, "", {}, tmp_path, folder))
    monkeypatch.setattr(read, "finished_runs", lambda root: found)
    pages = publishing.publish(tmp_path, tmp_path / "results")
    shown = [p.relative_to(tmp_path / "results").as_posix() for p in pages]
    assert shown == ["full-cifar10/README.md", "full-cifar10/report.html", "full-digits/README.md", "full-digits/report.html", "README.md"]
    assert all(p.is_file() for p in pages)
    assert len(list((tmp_path / "results").glob("*/figures/*/predictions.png"))) == 6

    # a repetition that finished earlier, in another store, does not take the last one's place
    (tmp_path / "early").mkdir()
    first = records.read(found[0].folder / "record.json")
    records.write(
        first.model_copy(update={"finished": "2001-01-01T00:00:00+00:00", "train_seconds": 1.0}), tmp_path / "early" / "record.json"
    )
    early = read.FinishedRun("early", "", {}, tmp_path, tmp_path / "early")
    monkeypatch.setattr(read, "finished_runs", lambda root: [early])
    publishing.publish(tmp_path, tmp_path / "results")
    assert records.read(tmp_path / "results" / "full-cifar10" / "records" / records.file_name(first)) == first

    # what was published stays, and what is new joins it
    before = {p: p.read_bytes() for p in (tmp_path / "results").rglob("*.md")}
    other = fake_set(1, THREE)[0].model_copy(update={"seed": 7})
    records.write(other, found[0].folder / "record.json")
    monkeypatch.setattr(read, "finished_runs", lambda root: found[:1])
    publishing.publish(tmp_path, tmp_path / "results")
    assert {r.seed for r in records.read_all(tmp_path / "results" / "full-cifar10")} == {0, 7}
    (tmp_path / "results" / "full-cifar10" / "records" / records.file_name(other)).unlink()
    monkeypatch.setattr(read, "finished_runs", lambda root: [])
    publishing.publish(tmp_path, tmp_path / "results")
    assert {p: p.read_bytes() for p in (tmp_path / "results").rglob("*.md")} == before
    with pytest.raises(UserError, match="no finished runs to report"):
        publishing.publish(tmp_path, tmp_path / "nothing")


def test_times_and_speeds_are_those_of_the_median_run() -> None:
    """A run that was suspended, or had to share its cores, must not make its experiment look slow."""
    seconds, rates = (900.0, 5400.0, 950.0, 1000.0), (600.0, 100.0, 580.0, 540.0)
    quick, stalled, middle, slow = (
        fake_record(seed=i, train_seconds=s, img_s=r) for i, (s, r) in enumerate(zip(seconds, rates, strict=True))
    )
    (of_four,) = rungs.ladder([quick, stalled, middle, slow])
    assert of_four.timed is middle  # of the two in the middle the quicker one
    (of_three,) = rungs.ladder([quick, stalled, slow])
    assert of_three.timed is slow
    row = set_page.summary([of_four]).frame.iloc[0]
    assert (row["train_seconds"], row["images_per_second"]) == (950.0, 580.0)


def test_speed_is_said_as_a_share_of_the_machines_peak() -> None:
    perf = {
        "tflops": 2.0,
        "peak_tflops": 8.0,
        "mfu": 25.0,
        "train_gflops_per_image": 3.0,
        "seconds_data": 1.0,
        "seconds_forward_backward": 98.0,
        "seconds_checkpoint": 1.0,
    }
    (rung,) = rungs.ladder(fake_set(1, ("01_baseline_vit",), perf=perf))
    assert rung_page.speed(rung) == "2.00 TFLOP/s, 25 % of the machine's peak; forward and backward 98.0%, data 1.0%, checkpoint 1.0%"
    (student,) = rungs.ladder(fake_set(1, ("01_baseline_vit",), perf=perf | {"teacher_logits_read": 100.0}))
    assert rung_page.speed(student).endswith("checkpoint 1.0%; 100 % of the steps read the teacher's stored logits")
    (old,) = rungs.ladder(fake_set(1, ("01_baseline_vit",)))
    assert rung_page.speed(old) == words.NONE


def test_two_that_publish_at_once_lose_nothing(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, with a store of its own, publishes when this one has asked its store and waits for the lock."""
    stores = []
    for run in fake_set(1, THREE)[:2]:
        (tmp_path / run.experiment / "figures").mkdir(parents=True)
        records.write(run, tmp_path / run.experiment / "record.json")
        stores.append([read.FinishedRun(run.experiment, "", {}, tmp_path, tmp_path / run.experiment)])

    def finished(root: Path) -> list[read.FinishedRun]:
        own = stores.pop()
        if stores:
            publishing.publish(tmp_path, tmp_path / "results")
        return own

    monkeypatch.setattr(read, "finished_runs", finished)
    publishing.publish(tmp_path, tmp_path / "results")
    assert len(records.read_all(tmp_path / "results" / "full-cifar10")) == 2


def test_whole_numbers_are_written_out_and_a_student_may_equal_its_teacher(tmp_path: Path, undrawn: None) -> None:
    assert words.span([1_217_110]) == "1,217,110"
    assert words.span([0.5, 1_000_000, 4]) == "0.5 to 1,000,000"
    runs = fake_set(1)
    taught = next(run for run in runs if run.teacher is not None)
    same = [r.model_copy(update={"teacher": r.teacher.model_copy(update={"gain": 0.001})}) if r is taught else r for r in runs]
    publishing.build(same, tmp_path, {})
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"“{taught.title}” equals its teacher ({taught.teacher.experiment}), and predicts" in page


def test_devices_are_named_once_with_all_numbers_of_threads() -> None:
    cpu = {"device": "AMD EPYC, 2 cores"}
    begun = records.Part(device=cpu["device"], threads=1, git={})
    resumed = fake_record(**cpu, threads=2, parts=(begun, begun.model_copy(update={"threads": 2})))
    assert words.devices([fake_record(**cpu, threads=1)] * 2) == "AMD EPYC, 2 cores, 1 thread per run"
    assert words.devices([resumed, fake_record(**cpu, threads=2)]) == "AMD EPYC, 2 cores, 1 or 2 threads per run"
    assert words.devices([resumed, fake_record()]) == "AMD EPYC, 2 cores, 1 or 2 threads per run and NVIDIA H100 80GB HBM3"
    assert words.device(resumed) == "AMD EPYC, 2 cores, 1 thread, then AMD EPYC, 2 cores, 2 threads"
    together = fake_record(device="AMD EPYC, 2 cores, 2 processes", threads=1)
    assert words.devices([together, fake_record(**cpu, threads=1)]) == "AMD EPYC, 2 cores, 1 or 2 threads per run"
    assert words.device(together) == "AMD EPYC, 2 cores, 2 processes, 1 thread"
