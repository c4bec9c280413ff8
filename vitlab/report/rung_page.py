"""What a set's pages say of one experiment. How it looks, and escaping, are left to the templates and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitlab import records
from vitlab.records import ClassFacts, RunRecord
from vitlab.report import words
from vitlab.report.rungs import Rung, claim_on, claimed_text, mean_of, picture_folder
from vitlab.report.tables import Column, Link, Table, caption, table
from vitlab.stats import mean_and_half

MATRIX_CLASSES = 20  # of more, report.html shows confusion matrices as pictures


def section(rung: Rung, out_dir: Path) -> dict[str, Any]:
    """Return all that the templates show of an experiment; pictures are named where `out_dir` has them.

    What `matrices` has is drawn by report.html itself, in place of the pictures of the same name.
    """
    run = rung.runs[0]
    folder = Path("figures") / picture_folder(run)
    titles = {
        "predictions.png": "Predictions on test images, with confidence; wrong ones framed and marked ✗",
        "mistakes.png": "The wrong predictions with the most confidence: chosen for that, so not typical",
        "attention.png": "Where class attention looks, on the first test images",
        "confusion_normalized.png": "Confusion matrix, percent of each true class",
        "confusion_counts.png": "Confusion matrix, number of images",
        "per_class_accuracy.png": "Accuracy per class",
        "teacher_confusion.png": "Test images by the class that the teacher predicts and the one that the student does",
        "reliability.png": "Calibration: how often predictions are right, by the confidence in them",
        "curves.png": "Loss terms, training and validation top-1, and learning rate by epoch",
    }
    pictures = [
        (name.removesuffix(".png"), (folder / name).as_posix(), f"{title}; {run.title}, seed {run.seed}")
        for name, title in titles.items()
        if (out_dir / folder / name).is_file()
    ]
    return {
        "id": run.experiment,
        "label": rung.label,
        "title": run.title,
        "measured": words.pm(rung.mean, rung.half),
        "seeds": words.seed_count(len(rung.runs)),
        "claimed": claimed_text(run.claim),
        "claim": run.claim,
        "description": str(run.config.get("description") or ""),
        "numbers": _numbers(rung),
        "reported": _reported(rung),
        "named_confusions": _named_confusions(rung),
        "per_class": _per_class(rung),
        "confused": _confused(rung),
        "runs": _every_run(rung),
        "versions": "; ".join(sorted({", ".join(f"{k} {v}" for k, v in sorted(r.versions.items())) for r in rung.runs})),
        "shown_seed": run.seed,
        "pictures": pictures,
        "matrices": _matrices(run, pictures),
    }


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: of each row its class, and of each cell the text and how strongly it is coloured, in percent."""

    title: str
    axes: tuple[str, str]  # across, down
    classes: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, int]]]]
    links: Sequence[tuple[str, str]]  # pictures of the same numbers: text and path


def _matrices(run: RunRecord, pictures: Sequence[tuple[str, str, str]]) -> dict[str, Matrix]:
    """Return the run's confusion matrices by the name of the picture that shows the same."""
    names = run.dataset.classes
    if len(names) > MATRIX_CLASSES:
        return {}
    there = {name: (path, alt.partition(";")[0]) for name, path, alt in pictures}
    counts = np.asarray(run.confusion, float)  # (C, C): [true][predicted]
    shown = {
        "confusion_normalized": (100 * counts / np.maximum(counts.sum(1, keepdims=True), 1), "{:.1f}", ("predicted class", "true class"))
    }
    if run.teacher is not None and run.teacher.confusion is not None:
        shown["teacher_confusion"] = (np.asarray(run.teacher.confusion, float), "{:.0f}", ("student's class", "teacher's class"))
    matrices = {}
    for name, (values, form, axes) in shown.items():
        if name in there:
            path, title = there[name]
            links = [("As a picture", path)]
            if name == "confusion_normalized" and "confusion_counts" in there:
                links.append(("as numbers of images", there["confusion_counts"][0]))
            most = max(values.max(), 1)
            cells = [
                [(form.format(v) if v >= 0.05 else "", round(100 * (v / most) ** 0.4)) for v in row] for row in values
            ]  # errors are few: lifted
            matrices[name] = Matrix(caption(title, [run]), axes, names, list(zip(names, cells, strict=True)), links)
    return matrices


def _numbers(rung: Rung) -> list[tuple[str, str]]:
    run = rung.runs[0]
    model, optim, train = (run.config.get(key) or {} for key in ("model", "optim", "train"))
    pairs = [
        ("Top-1", f"{words.pm(rung.mean, rung.half)} %"),
        ("Top-5", words.two(mean_of(rung.runs, "test_top5"))),
        ("Difference to claimed", words.signed(rung.difference)),
        ("Calibration error", _calibration(rung)),
        ("Parameters", f"{run.params:,}"),
        ("Forward cost", f"{words.sig(run.flops / 1e9)} GFLOPs per image"),
        ("Training", f"{words.duration(rung.timed.train_seconds)}, {rung.timed.img_s:,.0f} images/s"),
        ("Speed", speed(rung)),
        ("Device", f"{words.devices(rung.runs)}, {', '.join(sorted({r.precision for r in rung.runs}))}"),
    ]
    keys = ("stem", "encoder", "patch_size", "dim", "depth", "heads", "width", "class_attention")
    shape = ", ".join(f"{k.replace('_', ' ')} {model[k]}" for k in keys if model.get(k) not in (None, 0))
    if shape:
        pairs.append(("Model", f"{model.get('name', '')}: {shape}"))
    if train.get("epochs") is not None:
        pairs.append(("Schedule", f"{train['epochs']} epochs, batch {train.get('batch_size')}, {optim.get('name')}, lr {optim.get('lr')}"))
    return [(name, value) for name, value in pairs if value != words.NONE]


def _calibration(rung: Rung) -> str:
    if any("test_calibration_error" not in run.metrics for run in rung.runs):
        return words.NONE
    return f"{words.two(mean_of(rung.runs, 'test_calibration_error'))} points (expected calibration error, 15 bins)"


def speed(rung: Rung) -> str:
    """Return the speed of the run that is timed, beside that of the machine's own large matrix product, and where the time went; of a student
    also how many of its steps cost no forward pass of the teacher, since an earlier run had stored its logits.
    """
    perf = rung.timed.perf
    if not perf:
        return words.NONE
    spent = {key.removeprefix("seconds_"): value for key, value in perf.items() if key.startswith("seconds_")}
    shares = sorted(((seconds / sum(spent.values()), phase.replace("_", " and ")) for phase, seconds in spent.items()), reverse=True)
    read = perf.get("teacher_logits_read", 0.0)
    spared = f"; {read:.0f} % of the steps read the teacher's stored logits" if read else ""
    return (
        f"{words.sig(perf['tflops'])} TFLOP/s, {perf['mfu']:.0f} % of the machine's peak; "
        + ", ".join(f"{phase} {share:.1%}" for share, phase in shares)
        + spared
    )


class _Said(NamedTuple):
    metric: str
    report: str
    measured: str


def _reported(rung: Rung) -> Table | None:
    """Return what the report says of the experiment as a whole beside what was measured; None where it says nothing."""
    claim, runs = claim_on(rung.runs), rung.runs
    if claim is None:
        return None
    rows: list[_Said] = []
    if rung.claimed is not None:
        rows.append(_Said("Top-1 (%)", claimed_text(claim), words.pm(rung.mean, rung.half)))
    if claim.top5 is not None:
        rows.append(_Said("Top-5 (%)", f"{claim.top5:.2f}", words.pm(*mean_and_half([r.metrics["test_top5"] for r in runs]))))
    if claim.train_loss is not None:
        losses = [r.history[-1]["train/loss"] for r in runs if r.history]
        rows.append(_Said("Training loss, last epoch", f"{claim.train_loss:g}", words.pm(*mean_and_half(losses)) if losses else words.NONE))
    if claim.params is not None:
        rows.append(_Said("Parameters (M)", f"{claim.params:g}", words.sig(runs[0].params / 1e6)))
    if claim.train_minutes is not None:
        reported = ", ".join(filter(None, [f"{claim.train_minutes:g} min", claim.device]))
        rows.append(_Said("Training time", reported, f"{words.duration(rung.timed.train_seconds)}, {words.devices(runs)}"))
    if claim.per_class and runs[0].per_class:
        claimed = {name: of.accuracy for name, of in claim.per_class.items()}
        own = {same[0].name: float(np.mean([c.accuracy for c in same])) for same in zip(*(r.per_class for r in runs), strict=True)}
        for row, extreme in (("Best class, accuracy (%)", max), ("Worst class, accuracy (%)", min)):
            names = [extreme(of, key=lambda name: of[name]) for of in (claimed, own)]
            rows.append(_Said(row, *(f"{name} {of[name]:.2f}" for name, of in zip(names, (claimed, own), strict=True))))
    if claim.teacher_top1 is not None:
        teachers = [r.teacher for r in runs if r.teacher is not None]
        rows.append(
            _Said(
                "Teacher's top-1 (%)",
                f"{claim.teacher_top1:.2f}",
                words.pm(*mean_and_half([t.test_top1 for t in teachers])) if teachers else words.NONE,
            )
        )
        if claim.top1 is not None:
            gain = words.signed(*mean_and_half([t.gain for t in teachers])) if teachers else words.NONE
            rows.append(_Said("Gain over the teacher (points)", words.signed(claim.top1 - claim.teacher_top1), gain))
    if claim.ema_gain is not None:
        reported = f"{words.signed(claim.ema_gain.low)} to {words.signed(claim.ema_gain.high)}"
        rows.append(_Said("EMA's gain (points)", reported, _difference(runs, "test_ema_top1", "test_raw_top1")))
    if claim.before_tail_top1 is not None and claim.top1 is not None:
        # The test split is read at the end only: what the last phase adds within a run is seen on the validation split.
        before = f"validation_top1_phase_{len(runs[0].config.get('phases') or ()) - 2}"
        measured = (words.two(mean_of(runs, before)), _difference(runs, "validation_top1", before))
        on_validation = [text if text == words.NONE else f"{text}, validation" for text in measured]
        rise = words.signed(claim.top1 - claim.before_tail_top1)
        rows.append(_Said("Before the clean tail (%)", f"{claim.before_tail_top1:.2f}, test", on_validation[0]))
        rows.append(_Said("Rise from there to the end (points)", f"{rise}, test", on_validation[1]))
    if claim.confidence is not None:
        rows.append(_Said("Mean confidence (%)", f"above {claim.confidence:g}", words.two(mean_of(runs, "test_confidence"))))
        rows.append(_Said("Images with confidence above 90 % (%)", words.NONE, words.two(mean_of(runs, "test_confidence_above_90"))))
        rows.append(_Said("Of these right (%)", words.NONE, words.two(mean_of(runs, "test_confidence_above_90_accuracy"))))
    what = "What the report says, and what was measured: mean ± 95 % CI over seeds"
    columns = (
        Column("Metric", {"metric": lambda row: row.metric}, left=True),
        Column("Report", {"report": lambda row: row.report}),
        Column("Measured", {"measured": lambda row: row.measured}),
    )
    return table(caption(what, runs), columns, rows)


def _difference(runs: Sequence[RunRecord], first: str, second: str) -> str:
    """Return the first metric less the second, of the same runs, in points."""
    if not all({first, second} <= r.metrics.keys() for r in runs):
        return words.NONE
    return words.signed(*mean_and_half([r.metrics[first] - r.metrics[second] for r in runs]))


def _per_class(rung: Rung) -> Table:
    claim = claim_on(rung.runs)
    reported = claim.per_class if claim is not None else {}

    def measure(heading: str, key: str) -> Column:
        measured = {key: lambda same: np.mean([getattr(c, key) for c in same])}
        if not reported:
            return Column(heading, measured, words.two)
        claimed = {f"{key}_reported": lambda same: getattr(reported.get(same[0].name), key, None)}
        return Column(heading, claimed | measured, lambda theirs, ours: f"{words.two(theirs)} / {words.two(ours)}")

    columns = (
        Column("Class", {"class": lambda same: same[0].name}, left=True),
        *(measure(key.capitalize(), key) for key in ("precision", "recall", "f1", "accuracy")),
        Column("Test images", {"images": lambda same: same[0].support}, lambda n: f"{n:,}"),
    )
    what = "Per class, in percent, " + ("report / measured, " if reported else "") + "mean over seeds"
    by_class: list[tuple[ClassFacts, ...]] = list(zip(*(r.per_class for r in rung.runs), strict=True))  # of each class, all seeds' facts
    return table(caption(f"{what}; accuracy is of this class's images, hence equal to recall", rung.runs), columns, by_class)


def _named_confusions(rung: Rung) -> Table | None:
    """Return the confusions that the report counts, beside what was measured; None where it counts none."""
    claim, names = claim_on(rung.runs), rung.runs[0].dataset.classes
    counted = [(n, true, predicted) for true, of in (claim.confusions if claim else {}).items() for predicted, n in of.items()]
    known = [pair for pair in sorted(counted, key=lambda c: (-c[0], c[1:])) if set(pair[1:]) <= set(names)]

    def measured(pair: tuple[int, str, str]) -> float | None:
        _, true, predicted = pair
        of = [r.confusion[names.index(true)] for r in rung.runs]
        shares = [1000 * row[names.index(predicted)] / sum(row) for row in of if sum(row)]
        return np.mean(shares) if shares else None

    columns = (
        Column("Pair", {"true": lambda pair: pair[1], "predicted": lambda pair: pair[2]}, _arrow, left=True),
        Column("Report", {"report": lambda pair: pair[0]}),
        Column("Measured", {"measured": measured}, _one),
    )
    what = "Confusions that the report counts, true → predicted: images of 1,000 of the true class, mean over seeds"
    return table(caption(what, rung.runs), columns, known) if known else None


def _confused(rung: Rung, most: int = 5) -> Table | None:
    total = np.sum([r.confusion for r in rung.runs], axis=0)  # (C, C): [true][predicted]
    names = rung.runs[0].dataset.classes
    pairs = [(int(total[i, j]), i, j) for i in range(len(names)) for j in range(len(names)) if i != j and total[i, j]]
    columns = (
        Column("Pair", {"true": lambda pair: names[pair[1]], "predicted": lambda pair: names[pair[2]]}, _arrow, left=True),
        Column("Images", {"images": lambda pair: pair[0] / len(rung.runs)}, _one if len(rung.runs) > 1 else "{:.0f}".format),
        Column("Share (%)", {"share": lambda pair: 100 * pair[0] / total[pair[1]].sum()}, _one),
    )
    what = "Most confused pairs, true → predicted: images per seed, and their share of the true class, all seeds together"
    return table(caption(what, rung.runs), columns, sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))[:most]) if pairs else None


def _arrow(true: str, predicted: str) -> str:
    return f"{true} → {predicted}"


def _one(value: float) -> str:
    return f"{value:.1f}"


def _every_run(rung: Rung) -> Table:
    columns = (
        Column("Record", {"seed": lambda r: r.seed, "record": records.file_name}, lambda seed, name: Link(f"seed {seed}", f"records/{name}"), left=True),
        Column("Fingerprint", {"fingerprint": lambda r: r.fingerprint}, left=True),
        Column("Commit", {"commit": lambda r: words.commit(r, 10)}, left=True),
        Column("Finished (UTC)", {"finished": lambda r: r.finished[:16].replace("T", " ")}, left=True),
        Column("Device", {"device": words.device}, left=True),
        Column("Test top-1 (%)", {"test_top1": lambda r: r.metrics["test_top1"]}, words.two),
        Column("Validation top-1 (%)", {"validation_top1": lambda r: r.metrics["validation_top1"]}, words.two),
        Column("Training time", {"train_seconds": lambda r: r.train_seconds}, words.duration),
    )  # fmt: skip
    return table(caption("Every run", rung.runs), columns, rung.runs)
