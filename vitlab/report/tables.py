"""What a set's pages say, as texts and tables; how it looks is the templates' and the figures' business. Escaping is not done here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitlab import records
from vitlab.config import Claim
from vitlab.records import RunRecord
from vitlab.report.rungs import Rung, claim_on, claimed_range, picture_folder
from vitlab.run import published
from vitlab.stats import mean_and_half

RULE = "last weights, test split read once; EMA where the experiment has one"
NONE = "–"


class Link(NamedTuple):
    text: str
    href: str  # relative, or #anchor within the HTML page


@dataclass(frozen=True)
class Table:
    caption: str
    columns: tuple[str, ...]
    align: str  # "l" or "r" of each column: texts flush left, numbers flush right
    rows: list[tuple[str | Link, ...]]
    rule_before: int | None = None  # the row from which on other things stand than above


# ---------------------------------------------------------------------------------------------------- what the page says


def page(rungs: list[Rung], varied: list[Rung], left_out: list[dict[str, Any]], out_dir: Path) -> dict[str, Any]:
    """All that the templates show, as texts and tables; escaping is the templates' business."""
    every = [run for rung in (*rungs, *varied) for run in rung.runs]
    first = every[0]
    best = {rung.runs[0].experiment: rung for rung in rungs}
    return {
        "set": f"{first.profile}-{first.dataset.name}",
        "profile": first.profile,
        "dataset": first.dataset.name,
        "facts": _facts(every),
        "minute": _minute(rungs, every) if rungs else [],
        "scale": _scale(every),
        "left_out": _left_out(left_out),
        "has_ladder": bool(rungs),
        "summary": _summary(rungs),
        "teachers": _teachers(rungs, best),
        "heads": _heads(rungs),
        "variants": _variations(varied, best),
        "experiments": [_experiment(rung, out_dir) for rung in rungs],
        "commits": sorted({_commit(run, 12) for run in every}),
        "finished": max(run.finished for run in every)[:10],
    }


def weights(run: RunRecord | None) -> dict[str, Any] | None:
    """Of the run whose weights are published with its set, if there are any."""
    if run is None:
        return None
    what = "student" if run.teacher is not None else "run"
    best = f"the best {what} by validation top-1 ({run.metrics['validation_top1']:.2f} %)"
    return {
        "said": f"Weights for 'vitlab predict', in half precision, of {best}: “{run.title}”, seed {run.seed}",
        "file": published.FILE,
        "record": f"records/{records.file_name(run)}",
    }


def _facts(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    first = runs[0]
    sizes = sorted({(r.dataset.train, r.dataset.validation, r.dataset.test) for r in runs})
    train, validation, test = (_span([s[i] for s in sizes]) for i in range(3))
    return [
        ("Data set", f"{first.dataset.name}, {len(first.dataset.classes)} classes"),
        ("Images", f"{train} to train, {validation} to validate, {test} to test"),
        ("Profile", first.profile),
        ("Epochs", _span([e for r in runs if (e := _get(r.config, "train", "epochs")) is not None]) or NONE),
        ("Runs", f"{len(runs)}, {_seeds(runs)}"),
        ("Training time", _duration(sum(r.train_seconds for r in runs)) + " in all"),
        ("Device", devices(runs)),
    ]


def _minute(rungs: list[Rung], runs: Sequence[RunRecord]) -> list[str]:
    """What a reader must know, one sentence each."""
    top = max(rungs, key=lambda r: r.mean)
    said = [f"Best: “{top.runs[0].title}”, {pm(top.mean, top.half)} % of the test images right{_against(top)}."]
    compared = [r for r in rungs if r.claimed is not None]
    if compared and runs[0].profile == "full":
        reached = [r for r in compared if r.mean >= sum(r.claimed) / 2]
        surely = sum(r.half is not None and r.mean - r.half >= sum(r.claimed) / 2 for r in reached)
        said.append(
            f"{len(reached)} of {len(compared)} claimed accuracies are reached by the mean over seeds (of a claimed range: its middle), "
            f"{surely} with the whole confidence interval."
        )
    taught = [r for r in rungs if r.runs[0].teacher is not None]
    for rung in taught:
        gain, half = mean_and_half([r.teacher.gain for r in rung.runs])
        agreement = np.mean([r.teacher.agreement for r in rung.runs])
        verb = "is ahead of" if gain > 0 else "is behind" if gain < 0 else "equals"
        unsure = "; the interval includes no difference" if half is not None and abs(gain) <= half else ""
        said.append(
            f"Student “{rung.runs[0].title}” {verb} its teacher ({rung.runs[0].teacher.experiment}) by {pm(abs(gain), half)} points{unsure}, "
            f"and predicts the same class on {agreement:.1f} % of the test images."
        )
    seeds = Counter(len(r.runs) for r in rungs)
    if seeds[1]:
        some = "Every experiment has" if seeds[1] == len(rungs) else f"{seeds[1]} of {len(rungs)} experiments have"
        said.append(f"{some} one seed only: no interval can be given, and small differences mean nothing.")
    return said


def _against(rung: Rung) -> str:
    if rung.claimed is None or rung.runs[0].profile != "full":
        return ""
    return f" (claimed {_claimed(rung.runs[0].claim)}, difference {signed(rung.mean - sum(rung.claimed) / 2)})"


def _scale(runs: Sequence[RunRecord]) -> list[str]:
    first = runs[0]
    notes = []
    if first.profile != "full":
        train = _span([r.dataset.train for r in runs])
        epochs = _span([e for r in runs if (e := _get(r.config, "train", "epochs")) is not None])
        sizes = [r.params / 1e6 for r in runs]
        sizes = _sig(min(sizes)) if len(set(sizes)) == 1 else f"{_sig(min(sizes))} to {_sig(max(sizes))}"
        notes.append(
            f"This is not the original reports' scale. Profile {first.profile}: {train} training images, {epochs or 'few'} epochs, models of "
            f"{sizes} million parameters; the reports: 50,000 images, up to 300 epochs, 10.6 million parameters (the best student). The "
            f"numbers show that the whole path works and how the experiments compare at this size. They neither confirm nor refute what the "
            f"reports claim for theirs."
        )
    if first.dataset.name != "cifar10":
        notes.append(f"The claims are about CIFAR-10; this set is of {first.dataset.name}, so no difference to them is given.")
    if len({r.dataset.digest for r in runs}) > 1:
        notes.append("The runs saw different versions of the data set (their digests differ): compare them with care.")
    return notes


def _left_out(entries: list[dict[str, Any]]) -> str:
    if not entries:
        return ""
    counts = Counter(f"{e['experiment']} {e['variant']}".strip() for e in entries)
    named = ", ".join(f"{name}: {n}" for name, n in sorted(counts.items()))
    runs = "1 earlier run is" if len(entries) == 1 else f"{len(entries)} earlier runs are"
    return f"{runs} left out, since a later configuration or repetition of the same experiment finished ({named})."


def caption(what: str, runs: Sequence[RunRecord], rule: bool = True) -> str:
    first = runs[0]
    where = f"Data set {first.dataset.name}, profile {first.profile}, {_seeds(runs)}, device {devices(runs)}"
    return f"{what}. {where}{'; ' + RULE if rule else ''}."


def _summary(rungs: list[Rung]) -> Table | None:
    if not rungs:
        return None
    rows = []
    for rung in rungs:
        run = rung.runs[0]
        rows.append(
            (
                Link(rung.label, f"#{run.experiment}"), run.claim.text if run.claim else NONE, pm(rung.mean, rung.half),
                _seed_count(rung.runs), NONE if rung.claimed is None else signed(rung.mean - sum(rung.claimed) / 2), _sig(run.params / 1e6), _sig(run.flops / 1e9),
                _duration(rung.seconds), f"{np.mean([r.img_s for r in rung.runs]):,.0f}", devices(rung.runs),
            )
        )  # fmt: skip
    columns = ("Experiment", "Claimed top-1 (%)", "Measured top-1 (%)", "Seeds", "Difference to claimed", "Parameters (M)",
               "GFLOPs", "Training time", "Images/s", "Device")  # fmt: skip
    what = (
        "Test top-1, mean ± 95 % CI (Student's t) over seeds; difference in points, to a claimed range's middle; GFLOPs: forward, per image"
    )
    outside = next((i for i, r in enumerate(rungs) if not r.number.isdigit()), None)
    return Table(caption(what, [run for r in rungs for run in r.runs]), columns, "lrrrrrrrrl", rows, outside or None)


def opening(rungs: list[Rung]) -> Table:
    """The summary's most telling columns, for the README to open with."""
    summary, runs = _summary(rungs), [run for rung in rungs for run in rung.runs]
    assert summary is not None
    shown = ("Experiment", "Claimed top-1 (%)", "Measured top-1 (%)", "Seeds", "Parameters (M)", "GFLOPs", "Training time")
    columns = [summary.columns.index(name) for name in shown]
    what = "Test top-1, mean ± 95 % CI (Student's t) over seeds; GFLOPs: forward, per image"
    rows = [tuple(row[i] for i in columns) for row in summary.rows]
    return Table(caption(what, runs), shown, "".join(summary.align[i] for i in columns), rows)


def _teachers(rungs: list[Rung], by_name: dict[str, Rung]) -> Table | None:
    rows, runs = [], []
    for rung in rungs:
        facts = [r.teacher for r in rung.runs if r.teacher is not None]
        if not facts:
            continue
        runs += rung.runs
        teacher = by_name.get(facts[0].experiment)
        taught = [r for r in teacher.runs if r.fingerprint == facts[0].fingerprint] if teacher else []
        rows.append(
            (
                rung.label, taught[0].title if taught else facts[0].experiment, pm(rung.mean, rung.half),
                f"{np.mean([f.test_top1 for f in facts]):.2f}",
                signed(*mean_and_half([f.gain for f in facts])), f"{np.mean([f.agreement for f in facts]):.2f}",
                f"{_sig(rung.runs[0].params / 1e6)} / {_sig(taught[0].params / 1e6) if taught else NONE}",
                f"{_duration(rung.seconds)} / {_duration(float(np.mean([r.train_seconds for r in taught]))) if taught else NONE}",
            )
        )  # fmt: skip
    columns = ("Student", "Teacher", "Student top-1 (%)", "Teacher top-1 (%)", "Gain (points)", "Agreement (%)",
               "Parameters (M), student / teacher", "Training time, student / teacher")  # fmt: skip
    what = "Test top-1; gain: student minus teacher; agreement: share of the test images that both give the same class"
    return Table(caption(what, runs), columns, "llrrrrrr", rows) if rows else None


NAMED_TOP1 = {
    "test_raw_top1": "Raw weights",
    "test_ema_top1": "EMA weights",
    "test_cls_top1": "Class head",
    "test_dist_top1": "Distillation head",
}


def _heads(rungs: list[Rung]) -> Table | None:
    """The other top-1 readings of the same runs, where there are any."""
    keys = [k for k in NAMED_TOP1 if any(k in r.metrics for rung in rungs for r in rung.runs)]
    found = {k for rung in rungs for r in rung.runs for k in r.metrics if re.fullmatch(r"test_\w+_top1", k)}
    extra = sorted(found - set(NAMED_TOP1))
    if not rungs or not (keys or extra):
        return None
    keys += extra
    names = [NAMED_TOP1.get(k) or k.removeprefix("test_").removesuffix("_top1") + " head" for k in keys]
    shown = ("test_top1", *keys, "validation_top1", "test_top5")
    rows = [(rung.label, *(_mean_of(rung.runs, k) for k in shown), _mean_of(rung.runs, "test_loss", 3)) for rung in rungs]
    what = "Top-1 (%) by weights and head, mean over seeds; the headline averages all heads"
    columns = ("Experiment", "Headline", *names, "Validation", "Top-5", "Test loss")
    return Table(caption(what, [run for r in rungs for run in r.runs]), columns, "l" + "r" * (len(columns) - 1), rows)


def _variations(variants: list[Rung], by_name: dict[str, Rung]) -> Table | None:
    rows = []
    for rung in variants:
        run, base = rung.runs[0], by_name.get(rung.runs[0].experiment)
        rows.append(
            (
                rung.label, run.variant, pm(rung.mean, rung.half), _seed_count(rung.runs),
                NONE if base is None else signed(rung.mean - base.mean),
                _sig(run.params / 1e6), _sig(run.flops / 1e9), _duration(rung.seconds), devices(rung.runs),
            )
        )  # fmt: skip
    columns = ("Experiment", "Changed", "Measured top-1 (%)", "Seeds", "Difference to it unchanged", "Parameters (M)", "GFLOPs",
               "Training time", "Device")  # fmt: skip
    what = "Experiments with settings changed; test top-1, mean ± 95 % CI over seeds, difference in points. Not part of the ladder"
    return Table(caption(what, [run for r in variants for run in r.runs]), columns, "llrrrrrrl", rows) if rows else None


def _experiment(rung: Rung, out_dir: Path) -> dict[str, Any]:
    run = rung.runs[0]
    folder = Path("figures") / picture_folder(run)
    titles = {
        "predictions.png": "Predictions on test images, with confidence; wrong ones framed and marked ✗",
        "confusion_normalized.png": "Confusion matrix, percent of each true class",
        "confusion_counts.png": "Confusion matrix, number of images",
        "per_class_accuracy.png": "Accuracy per class",
        "curves.png": "Loss terms, training and validation top-1, and learning rate by epoch",
    }
    return {
        "id": run.experiment,
        "label": rung.label,
        "title": run.title,
        "measured": pm(rung.mean, rung.half),
        "seeds": _seed_count(rung.runs),
        "claimed": "" if claimed_range(run.claim) is None else _claimed(run.claim),
        "claim": run.claim,
        "description": str(run.config.get("description") or ""),
        "numbers": _numbers(rung),
        "reported": _reported(rung),
        "named_confusions": _named_confusions(rung),
        "per_class": _per_class(rung),
        "confused": _confused(rung),
        "runs": _run_table(rung),
        "versions": "; ".join(sorted({", ".join(f"{k} {v}" for k, v in sorted(r.versions.items())) for r in rung.runs})),
        "shown_seed": run.seed,
        "pictures": [
            (name.removesuffix(".png"), (folder / name).as_posix(), f"{title}; {run.title}, seed {run.seed}")
            for name, title in titles.items()
            if (out_dir / folder / name).is_file()
        ],
    }


def _numbers(rung: Rung) -> list[tuple[str, str]]:
    run = rung.runs[0]
    model, optim, train = (run.config.get(key) or {} for key in ("model", "optim", "train"))
    pairs = [
        ("Top-1", f"{pm(rung.mean, rung.half)} %"),
        ("Top-5", _mean_of(rung.runs, "test_top5")),
        ("Difference to claimed", NONE if rung.claimed is None else signed(rung.mean - sum(rung.claimed) / 2)),
        ("Parameters", f"{run.params:,}"),
        ("Forward cost", f"{_sig(run.flops / 1e9)} GFLOPs per image"),
        ("Training", f"{_duration(rung.seconds)}, {np.mean([r.img_s for r in rung.runs]):,.0f} images/s"),
        ("Speed", _speed(rung)),
        ("Device", f"{devices(rung.runs)}, {', '.join(sorted({r.precision for r in rung.runs}))}"),
    ]
    keys = ("stem", "encoder", "patch_size", "dim", "depth", "heads", "width", "class_attention")
    shape = ", ".join(f"{k.replace('_', ' ')} {model[k]}" for k in keys if model.get(k) not in (None, 0))
    if shape:
        pairs.append(("Model", f"{model.get('name', '')}: {shape}"))
    if train.get("epochs") is not None:
        pairs.append(("Schedule", f"{train['epochs']} epochs, batch {train.get('batch_size')}, {optim.get('name')}, lr {optim.get('lr')}"))
    return [(name, value) for name, value in pairs if value != NONE]


def _speed(rung: Rung) -> str:
    """Achieved against the machine's own large matrix product, mean over the runs that measured it; and where the time went."""
    perfs = [r.perf for r in rung.runs if r.perf]
    if not perfs:
        return NONE
    tflops, mfu = (float(np.mean([p[key] for p in perfs])) for key in ("tflops", "mfu"))
    spent = {key.removeprefix("seconds_"): sum(p.get(key, 0.0) for p in perfs) for p in perfs for key in p if key.startswith("seconds_")}
    shares = sorted(((seconds / sum(spent.values()), phase.replace("_", " and ")) for phase, seconds in spent.items()), reverse=True)
    return f"{_sig(tflops)} TFLOP/s, {mfu:.0f} % of the machine's peak; " + ", ".join(f"{phase} {share:.1%}" for share, phase in shares)


def _reported(rung: Rung) -> Table | None:
    """What the report says of the experiment as a whole beside what was measured; None where it says nothing."""
    claim, runs = claim_on(rung.runs), rung.runs
    if claim is None:
        return None
    rows: list[tuple[str | Link, ...]] = []
    if rung.claimed is not None:
        rows.append(("Top-1 (%)", _claimed(claim), pm(rung.mean, rung.half)))
    if claim.top5 is not None:
        rows.append(("Top-5 (%)", f"{claim.top5:.2f}", pm(*mean_and_half([r.metrics["test_top5"] for r in runs]))))
    if claim.train_loss is not None:
        losses = [r.history[-1]["train/loss"] for r in runs if r.history]
        rows.append(("Training loss, last epoch", f"{claim.train_loss:g}", pm(*mean_and_half(losses)) if losses else NONE))
    if claim.params is not None:
        rows.append(("Parameters (M)", f"{claim.params:g}", _sig(runs[0].params / 1e6)))
    if claim.train_minutes is not None:
        reported = ", ".join(filter(None, [f"{claim.train_minutes:g} min", claim.device]))
        rows.append(("Training time", reported, f"{_duration(rung.seconds)}, {devices(runs)}"))
    if claim.per_class and runs[0].per_class:
        said = {name: of.accuracy for name, of in claim.per_class.items()}
        own = {same[0].name: float(np.mean([c.accuracy for c in same])) for same in zip(*(r.per_class for r in runs), strict=True)}
        for row, extreme in (("Best class, accuracy (%)", max), ("Worst class, accuracy (%)", min)):
            names = [extreme(of, key=lambda name: of[name]) for of in (said, own)]
            rows.append((row, *(f"{name} {of[name]:.2f}" for name, of in zip(names, (said, own), strict=True))))
    if claim.teacher_top1 is not None:
        teachers = [r.teacher for r in runs if r.teacher is not None]
        rows.append(
            ("Teacher's top-1 (%)", f"{claim.teacher_top1:.2f}", pm(*mean_and_half([t.test_top1 for t in teachers])) if teachers else NONE)
        )
        if claim.top1 is not None:
            gain = signed(*mean_and_half([t.gain for t in teachers])) if teachers else NONE
            rows.append(("Gain over the teacher (points)", signed(claim.top1 - claim.teacher_top1), gain))
    if claim.ema_gain is not None:
        reported = f"{signed(claim.ema_gain.low)} to {signed(claim.ema_gain.high)}"
        rows.append(("EMA's gain (points)", reported, _difference(runs, "test_ema_top1", "test_raw_top1")))
    if claim.before_tail_top1 is not None and claim.top1 is not None:
        # The test split is read at the end only: what the last phase adds within a run is seen on the validation split.
        before = f"validation_top1_phase_{len(runs[0].config.get('phases') or ()) - 2}"
        measured = (_mean_of(runs, before), _difference(runs, "validation_top1", before))
        on_validation = [text if text == NONE else f"{text}, validation" for text in measured]
        rise = signed(claim.top1 - claim.before_tail_top1)
        rows.append(("Before the clean tail (%)", f"{claim.before_tail_top1:.2f}, test", on_validation[0]))
        rows.append(("Rise from there to the end (points)", f"{rise}, test", on_validation[1]))
    if claim.confidence is not None:
        rows.append(("Mean confidence (%)", f"above {claim.confidence:g}", _mean_of(runs, "test_confidence")))
        rows.append(("Images with confidence above 90 % (%)", NONE, _mean_of(runs, "test_confidence_above_90")))
        rows.append(("Of these right (%)", NONE, _mean_of(runs, "test_confidence_above_90_accuracy")))
    what = "What the report says, and what was measured: mean ± 95 % CI over seeds"
    return Table(caption(what, runs), ("Metric", "Report", "Measured"), "lrr", rows)


def _difference(runs: Sequence[RunRecord], first: str, second: str) -> str:
    """Of two metrics of the same run, in points."""
    if not all({first, second} <= r.metrics.keys() for r in runs):
        return NONE
    return signed(*mean_and_half([r.metrics[first] - r.metrics[second] for r in runs]))


def _per_class(rung: Rung) -> Table:
    claim = claim_on(rung.runs)
    reported = claim.per_class if claim is not None else {}
    keys = ("precision", "recall", "f1", "accuracy")
    rows = []
    for same in zip(*(r.per_class for r in rung.runs), strict=True):
        name = same[0].name
        cells = [f"{np.mean([getattr(c, key) for c in same]):.2f}" for key in keys]
        if reported:
            said = [f"{getattr(reported[name], key):.2f}" if name in reported else NONE for key in keys]
            cells = [f"{theirs} / {ours}" for theirs, ours in zip(said, cells, strict=True)]
        rows.append((name, *cells, f"{same[0].support:,}"))
    columns = ("Class", "Precision", "Recall", "F1", "Accuracy", "Test images")
    what = "Per class, in percent, " + ("report / measured, " if reported else "") + "mean over seeds"
    return Table(caption(f"{what}; accuracy is of this class's images, hence equal to recall", rung.runs), columns, "lrrrrr", rows)


def _named_confusions(rung: Rung) -> Table | None:
    """The confusions that the report counts, beside what was measured; None where it counts none."""
    claim, names = claim_on(rung.runs), rung.runs[0].dataset.classes
    counted = [(n, true, predicted) for true, of in (claim.confusions if claim else {}).items() for predicted, n in of.items()]
    rows = []
    for images, true, predicted in sorted(counted, key=lambda c: (-c[0], c[1:])):
        if {true, predicted} <= set(names):
            of = [r.confusion[names.index(true)] for r in rung.runs]
            shares = [1000 * row[names.index(predicted)] / sum(row) for row in of if sum(row)]
            rows.append((f"{true} → {predicted}", str(images), f"{np.mean(shares):.1f}" if shares else NONE))
    what = "Confusions that the report counts, true → predicted: images of 1,000 of the true class, mean over seeds"
    return Table(caption(what, rung.runs), ("Pair", "Report", "Measured"), "lrr", rows) if rows else None


def _confused(rung: Rung, most: int = 5) -> Table | None:
    total = np.sum([r.confusion for r in rung.runs], axis=0)  # (C, C): [true][predicted]
    names = rung.runs[0].dataset.classes
    pairs = [(int(total[i, j]), i, j) for i in range(len(names)) for j in range(len(names)) if i != j and total[i, j]]
    pairs = sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))[:most]
    rows = [(f"{names[i]} → {names[j]}", f"{n / len(rung.runs):.1f}", f"{100 * n / total[i].sum():.1f}") for n, i, j in pairs]
    what = "Most confused pairs, true → predicted: images per seed, and their share of the true class, all seeds together"
    return Table(caption(what, rung.runs), ("Pair", "Images", "Share (%)"), "lrr", rows) if rows else None


def _run_table(rung: Rung) -> Table:
    rows = [
        (
            Link(f"seed {r.seed}", f"records/{records.file_name(r)}"), r.fingerprint, _commit(r, 10), r.finished[:16].replace("T", " "),
            f"{r.device}, {r.threads} threads", f"{r.metrics['test_top1']:.2f}",
            _mean_of([r], "validation_top1"), _duration(r.train_seconds),
        )
        for r in rung.runs
    ]  # fmt: skip
    columns = ("Record", "Fingerprint", "Commit", "Finished (UTC)", "Device", "Test top-1 (%)", "Validation top-1 (%)", "Training time")
    return Table(caption("Every run", rung.runs), columns, "lllllrrr", rows)


# -------------------------------------------------------------------------------------------------- numbers into words


def _get(config: dict[str, Any], section: str, key: str) -> Any:
    return (config.get(section) or {}).get(key)


def pm(mean: float, half: float | None) -> str:
    return f"{mean:.2f}" if half is None else f"{mean:.2f} ± {half:.2f}"


def signed(value: float, half: float | None = None) -> str:
    shown = f"{value:+.2f}".replace("-", "−")
    return (shown if shown[1:] != "0.00" else "0.00") + ("" if half is None else f" ± {half:.2f}")


def _seed_count(runs: Sequence[RunRecord]) -> str:
    return "1 seed" if len(runs) == 1 else str(len(runs))


def _mean_of(runs: Sequence[RunRecord], key: str, digits: int = 2) -> str:
    values = [r.metrics[key] for r in runs if key in r.metrics]
    return f"{np.mean(values):.{digits}f}" if len(values) == len(runs) else NONE


def _claimed(claim: Claim | None) -> str:
    """`82–83`, `~80` where the text hedges, `95.69`."""
    span = claimed_range(claim)
    if span is None:
        return NONE
    low, high = span
    if low != high:
        return f"{low:g}–{high:g}"
    return ("~" if re.search(r"[~≈]|about|around", claim.text) else "") + f"{low:g}"


def _sig(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _span(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:,g}" if low == high else f"{low:,g} to {high:,g}"


def _seeds(runs: Iterable[RunRecord]) -> str:
    seeds = sorted({r.seed for r in runs})
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def devices(runs: Iterable[RunRecord]) -> str:
    return " and ".join(sorted({r.device for r in runs}))


def _commit(run: RunRecord, digits: int) -> str:
    dirty = f" + changes {run.git['dirty'][:8]}" if run.git.get("dirty") else ""
    return (run.git.get("commit") or "unknown")[:digits] + dirty
