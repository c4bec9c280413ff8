"""Records -> what a reader sees: records, charts, README.md and a self-contained report.html for each set, and an index of sets.

A set is all runs of one profile on one data set. Everything but predictions.png, which needs the images, is made from the
records alone, and the same records give the same bytes.
"""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from vitlab import figures, records, tracking
from vitlab.config import PROFILES, Claim
from vitlab.figures import Rung
from vitlab.records import RunRecord

TEMPLATES = Path(__file__).resolve().parent / "templates"
LEFT_OUT = "left_out.json"  # beside the records: runs that were measured and are not shown
RULE = "last weights, test split read once; EMA where the experiment has one"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.json")
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


# ------------------------------------------------------------------------------------------------------------ building


def build(runs: Sequence[RunRecord], out_dir: Path, pictures: dict[tuple[str, int], Path]) -> None:
    """Write a set's records, charts, README.md and report.html into `out_dir`.

    `runs` is the whole set: records and pictures of earlier builds that are not in it are removed. `pictures` names the folder
    where a run, `(experiment, seed)`, left its predictions.png. Of several configurations of one experiment the one finished last
    is taken, and the report says how many runs were left out. Raises ValueError for no runs, runs of more than one
    profile or data set, and names that cannot name a file.
    """
    _check(runs, out_dir)
    kept, left_out = newest(runs)
    folder = out_dir / "records"
    folder.mkdir(parents=True, exist_ok=True)
    names = {records.file_name(run): run for run in kept}
    for stale in set(folder.glob("*.json")) - {folder / name for name in names}:
        stale.unlink()
    for name, run in names.items():
        records.write(run, folder / name)
    entries = [{"experiment": r.experiment, "variant": r.variant, "fingerprint": r.fingerprint, "seed": r.seed} for r in left_out]
    (out_dir / LEFT_OUT).unlink(missing_ok=True)
    if entries:
        (out_dir / LEFT_OUT).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    for shown in (rung.runs[0] for rung in ladder(kept)):
        source = pictures.get((shown.experiment, shown.seed))
        if source is not None and (source / "predictions.png").is_file():
            target = out_dir / "figures" / _picture_folder(shown)
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / "predictions.png", target / "predictions.png")
    rebuild(out_dir)


def rebuild(out_dir: Path) -> None:
    """Draw and write everything anew from `out_dir`/records; a predictions.png that is there is kept."""
    runs = records.read_all(out_dir)
    _check(runs, out_dir)
    rungs = ladder(runs)
    drawn = out_dir / "figures"
    drawn.mkdir(exist_ok=True)
    wanted = {_picture_folder(rung.runs[0]) for rung in rungs}
    for stale in drawn.iterdir():
        if stale.is_dir() and re.fullmatch(r".+-s\d+-[0-9a-f]+", stale.name) and stale.name not in wanted:
            shutil.rmtree(stale)
    figures.set_figures(rungs, drawn)
    for rung in rungs:
        figures.run_figures(rung.runs[0], drawn / _picture_folder(rung.runs[0]))
    left_out = json.loads((out_dir / LEFT_OUT).read_text(encoding="utf-8")) if (out_dir / LEFT_OUT).is_file() else []
    page = _page(rungs, _variants(runs), left_out, out_dir)
    _write(out_dir / "README.md", _markdown().get_template("set.md.j2").render(page))
    inline = {"css": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")), "inline": lambda p: _data_uri(out_dir / p)}
    _write(out_dir / "report.html", _html().get_template("report.html.j2").render(page | inline))


def index(results_dir: Path) -> None:
    """Write `results_dir`/README.md: the best set's summary and headline chart, and a link to every set.

    Sets on CIFAR-10, which the claims are about, come before others; then the larger profile comes first.
    """
    sets = {p.parent.name: records.read_all(p.parent) for p in sorted(results_dir.glob("*/records"))}
    sets = {name: runs for name, runs in sets.items() if runs}
    if not sets:
        raise ValueError(f"{results_dir}: no set with records in it; train and build a report first")
    order = sorted(sets, key=lambda name: _rank(sets[name][0], name))
    rows = []
    for name in order:
        rungs = ladder(sets[name])
        best = max(rungs, key=lambda r: r.mean) if rungs else None
        rows.append(
            (
                Link(name, f"{quote(name)}/README.md"), sets[name][0].dataset.name, sets[name][0].profile, _devices(sets[name]),
                str(len(rungs)), str(len(sets[name])), NONE if best is None else _pm(best.mean, best.half),
                max(r.finished for r in sets[name])[:10],
            )
        )  # fmt: skip
    columns = ("Set", "Data set", "Profile", "Device", "Experiments", "Runs", "Best top-1 (%)", "Last finished")
    table = Table("Every set. Best top-1: mean ± 95 % CI over seeds; " + RULE + ".", columns, "llllrrrl", rows)
    best_set = order[0]
    page = _page(ladder(sets[best_set]), _variants(sets[best_set]), [], results_dir / best_set)
    page |= {"sets": table, "best": best_set, "best_href": quote(best_set)}
    _write(results_dir / "README.md", _markdown().get_template("index.md.j2").render(page))


def publish(root: Path, results_dir: Path) -> list[Path]:
    """Build every set of which the MLflow store of `root` has finished runs, then the index; return the pages written."""
    with tempfile.TemporaryDirectory() as tmp:
        sets: dict[str, dict[str, RunRecord]] = {}  # set -> MLflow run id -> record
        finished = {run.run_id: run for run in tracking.finished_runs(root)}
        for run_id, run in finished.items():
            record = records.read(run.fetch("record.json", Path(tmp) / run_id))
            sets.setdefault(f"{record.profile}-{record.dataset.name}", {})[run_id] = record
        if not sets:
            raise ValueError("no finished runs in MLflow to report; train some first, or ship them with 'vitlab sync'")
        pages = []
        for name, runs in sorted(sets.items()):
            shown = [rung.runs[0] for rung in ladder(newest(runs.values())[0])]
            pictures = {}
            for run_id, record in runs.items():
                if any(record is one for one in shown):
                    pictures[record.experiment, record.seed] = finished[run_id].fetch("figures", Path(tmp) / run_id)
            build(list(runs.values()), results_dir / name, pictures)
            pages += [results_dir / name / "README.md", results_dir / name / "report.html"]
    index(results_dir)
    return [*pages, results_dir / "README.md"]


def newest(runs: Iterable[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """`(kept, left out)`: for each experiment and variant only the configuration finished last, and each seed's last run of it."""
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for run in sorted(runs, key=lambda r: (r.experiment, r.variant, r.seed, r.finished, r.fingerprint)):
        groups.setdefault((run.experiment, run.variant), []).append(run)
    kept, left_out = [], []
    for group in groups.values():
        last = max(group, key=lambda r: (r.finished, r.fingerprint)).fingerprint
        by_seed = {run.seed: run for run in group if run.fingerprint == last}
        kept += by_seed.values()
        left_out += [run for run in group if run is not by_seed.get(run.seed)]
    return kept, left_out


def ladder(runs: Iterable[RunRecord]) -> list[Rung]:
    """The experiments as they stand, variants left out: rungs by number, then the others (teachers)."""
    plain: dict[str, list[RunRecord]] = {}
    for run in runs:
        if not run.variant:
            plain.setdefault(run.experiment, []).append(run)
    return [_rung(plain[name]) for name in sorted(plain, key=lambda n: (not n[0].isdigit(), _natural(n)))]


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % confidence interval (Student's t); None for a single value."""
    mean, _, _, high = tracking.interval(list(values))
    return mean, None if math.isnan(high) else high - mean


def claimed_range(claim: Claim | None) -> tuple[float, float] | None:
    """Lowest and highest claimed top-1. A range in the text counts only if `top1` is its middle."""
    if claim is None or claim.top1 is None:
        return None
    for low, high in re.findall(r"(\d+(?:\.\d+)?)\s*%?\s*(?:-|–|to)\s*(\d+(?:\.\d+)?)", claim.text):
        if abs((float(low) + float(high)) / 2 - claim.top1) < 0.01:
            return float(low), float(high)
    return claim.top1, claim.top1


def _check(runs: Sequence[RunRecord], where: Path) -> None:
    if not runs:
        raise ValueError(f"{where}: no finished runs to report; train some first")
    sets = sorted({f"{r.profile}-{r.dataset.name}" for r in runs})
    if len(sets) > 1:
        raise ValueError(f"{where}: a report is of one profile and one data set, got {', '.join(sets)}; build one for each")
    for run in runs:
        if not SAFE_NAME.fullmatch(records.file_name(run)):
            raise ValueError(f"{where}: '{records.file_name(run)}' cannot name a file; use letters, digits, '.', '_' and '-' only")
        if "test_top1" not in run.metrics:
            raise ValueError(f"{where}: {records.file_name(run)}: metrics have no test_top1; train the run anew with --force")


def _rung(runs: list[RunRecord]) -> Rung:
    runs = sorted(runs, key=lambda r: r.seed)
    mean, half = interval([r.metrics["test_top1"] for r in runs])
    # The claims are about CIFAR-10: on other data there is nothing to hold them against.
    claimed = claimed_range(runs[0].claim) if runs[0].dataset.name == "cifar10" else None
    return Rung(tuple(runs), mean, half, claimed)


def _variants(runs: Iterable[RunRecord]) -> list[Rung]:
    varied: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        if run.variant:
            varied.setdefault((run.experiment, run.variant), []).append(run)
    return [_rung(varied[key]) for key in sorted(varied)]


def _rank(run: RunRecord, name: str) -> tuple[Any, ...]:
    profile = PROFILES.index(run.profile) if run.profile in PROFILES else -1
    return run.dataset.name != "cifar10", -profile, name


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _picture_folder(run: RunRecord) -> str:
    """Carries the fingerprint, so that a picture is never shown beside another configuration's numbers."""
    return f"{run.experiment}-s{run.seed}-{run.fingerprint}"


# ---------------------------------------------------------------------------------------------------- what the page says


def _page(rungs: list[Rung], variants: list[Rung], left_out: list[dict[str, Any]], out_dir: Path) -> dict[str, Any]:
    """All that the templates show, as texts and tables; escaping is the templates' business."""
    every = [run for rung in (*rungs, *variants) for run in rung.runs]
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
        "variants": _variations(variants, best),
        "experiments": [_experiment(rung, out_dir) for rung in rungs],
        "commits": sorted({_commit(run, 12) for run in every}),
        "finished": max(run.finished for run in every)[:10],
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
        ("Device", _devices(runs)),
    ]


def _minute(rungs: list[Rung], runs: Sequence[RunRecord]) -> list[str]:
    """What a reader must know, one sentence each."""
    top = max(rungs, key=lambda r: r.mean)
    said = [f"Best: “{top.runs[0].title}”, {_pm(top.mean, top.half)} % of the test images right{_against(top)}."]
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
        gain, half = interval([r.teacher.gain for r in rung.runs])
        agreement = np.mean([r.teacher.agreement for r in rung.runs])
        verb = "is ahead of" if gain > 0 else "is behind" if gain < 0 else "equals"
        unsure = "; the interval includes no difference" if half is not None and abs(gain) <= half else ""
        said.append(
            f"Student “{rung.runs[0].title}” {verb} its teacher ({rung.runs[0].teacher.experiment}) by {_pm(abs(gain), half)} points{unsure}, "
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
    return f" (claimed {_claimed(rung.runs[0].claim)}, difference {_signed(rung.mean - sum(rung.claimed) / 2)})"


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
            f"numbers show that the whole path works and how the experiments compare at this size. They neither confirm nor refute a claim."
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


def _caption(what: str, runs: Sequence[RunRecord], rule: bool = True) -> str:
    first = runs[0]
    where = f"Data set {first.dataset.name}, profile {first.profile}, {_seeds(runs)}, device {_devices(runs)}"
    return f"{what}. {where}{'; ' + RULE if rule else ''}."


def _summary(rungs: list[Rung]) -> Table | None:
    if not rungs:
        return None
    rows = []
    for rung in rungs:
        run = rung.runs[0]
        rows.append(
            (
                Link(rung.label, f"#{run.experiment}"), run.claim.text if run.claim else NONE, _pm(rung.mean, rung.half),
                _seed_count(rung.runs), NONE if rung.claimed is None else _signed(rung.mean - sum(rung.claimed) / 2), _sig(run.params / 1e6), _sig(run.flops / 1e9),
                _duration(rung.seconds), f"{np.mean([r.img_s for r in rung.runs]):,.0f}", _devices(rung.runs),
            )
        )  # fmt: skip
    columns = ("Experiment", "Claimed top-1 (%)", "Measured top-1 (%)", "Seeds", "Difference to claimed", "Parameters (M)",
               "GFLOPs", "Training time", "Images/s", "Device")  # fmt: skip
    what = (
        "Test top-1, mean ± 95 % CI (Student's t) over seeds; difference in points, to a claimed range's middle; GFLOPs: forward, per image"
    )
    outside = next((i for i, r in enumerate(rungs) if not r.number.isdigit()), None)
    return Table(_caption(what, [run for r in rungs for run in r.runs]), columns, "lrrrrrrrrl", rows, outside or None)


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
                rung.label, taught[0].title if taught else facts[0].experiment, _pm(rung.mean, rung.half),
                f"{np.mean([f.test_top1 for f in facts]):.2f}",
                _signed(*interval([f.gain for f in facts])), f"{np.mean([f.agreement for f in facts]):.2f}",
                f"{_sig(rung.runs[0].params / 1e6)} / {_sig(taught[0].params / 1e6) if taught else NONE}",
                f"{_duration(rung.seconds)} / {_duration(float(np.mean([r.train_seconds for r in taught]))) if taught else NONE}",
            )
        )  # fmt: skip
    columns = ("Student", "Teacher", "Student top-1 (%)", "Teacher top-1 (%)", "Gain (points)", "Agreement (%)",
               "Parameters (M), student / teacher", "Training time, student / teacher")  # fmt: skip
    what = "Test top-1; gain: student minus teacher; agreement: share of the test images that both give the same class"
    return Table(_caption(what, runs), columns, "llrrrrrr", rows) if rows else None


NAMED_TOP1 = {
    "test_raw_top1": "Raw weights",
    "test_ema_top1": "EMA weights",
    "test_cls_top1": "Class head",
    "test_dist_top1": "Distillation head",
    "best_test_top1": "Best epoch on test (optimistic)",
}


def _heads(rungs: list[Rung]) -> Table | None:
    """The other top-1 readings of the same runs, where there are any."""
    keys = [k for k in NAMED_TOP1 if any(k in r.metrics for rung in rungs for r in rung.runs)]
    found = {k for rung in rungs for r in rung.runs for k in r.metrics if re.fullmatch(r"test_\w+_top1", k)}
    extra = sorted(found - set(NAMED_TOP1))
    if not rungs or not (keys or extra):
        return None
    keys = keys[:-1] + extra + keys[-1:] if keys and keys[-1] == "best_test_top1" else keys + extra
    names = [NAMED_TOP1.get(k) or k.removeprefix("test_").removesuffix("_top1") + " head" for k in keys]
    shown = ("test_top1", *keys, "validation_top1", "test_top5")
    rows = [(rung.label, *(_mean_of(rung.runs, k) for k in shown), _mean_of(rung.runs, "test_loss", 3)) for rung in rungs]
    what = "Top-1 (%) by weights and head, mean over seeds; the headline averages all heads"
    if "best_test_top1" in keys:
        what += ". 'Best epoch on test' selects on the test split, so it is optimistic by construction"
    columns = ("Experiment", "Headline", *names, "Validation", "Top-5", "Test loss")
    return Table(_caption(what, [run for r in rungs for run in r.runs]), columns, "l" + "r" * (len(columns) - 1), rows)


def _variations(variants: list[Rung], by_name: dict[str, Rung]) -> Table | None:
    rows = []
    for rung in variants:
        run, base = rung.runs[0], by_name.get(rung.runs[0].experiment)
        rows.append(
            (
                rung.label, run.variant, _pm(rung.mean, rung.half), _seed_count(rung.runs),
                NONE if base is None else _signed(rung.mean - base.mean),
                _sig(run.params / 1e6), _sig(run.flops / 1e9), _duration(rung.seconds), _devices(rung.runs),
            )
        )  # fmt: skip
    columns = ("Experiment", "Changed", "Measured top-1 (%)", "Seeds", "Difference to it unchanged", "Parameters (M)", "GFLOPs",
               "Training time", "Device")  # fmt: skip
    what = "Experiments with settings changed; test top-1, mean ± 95 % CI over seeds, difference in points. Not part of the ladder"
    return Table(_caption(what, [run for r in variants for run in r.runs]), columns, "llrrrrrrl", rows) if rows else None


def _experiment(rung: Rung, out_dir: Path) -> dict[str, Any]:
    run = rung.runs[0]
    folder = Path("figures") / _picture_folder(run)
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
        "measured": _pm(rung.mean, rung.half),
        "seeds": _seed_count(rung.runs),
        "claimed": "" if claimed_range(run.claim) is None else _claimed(run.claim),
        "claim": run.claim,
        "description": str(run.config.get("description") or ""),
        "numbers": _numbers(rung),
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
        ("Top-1", f"{_pm(rung.mean, rung.half)} %"),
        ("Top-5", _mean_of(rung.runs, "test_top5")),
        ("Difference to claimed", NONE if rung.claimed is None else _signed(rung.mean - sum(rung.claimed) / 2)),
        ("Parameters", f"{run.params:,}"),
        ("Forward cost", f"{_sig(run.flops / 1e9)} GFLOPs per image"),
        ("Training", f"{_duration(rung.seconds)}, {np.mean([r.img_s for r in rung.runs]):,.0f} images/s"),
        ("Device", f"{_devices(rung.runs)}, {', '.join(sorted({r.precision for r in rung.runs}))}"),
    ]
    keys = ("stem", "encoder", "patch_size", "dim", "depth", "heads", "width", "class_attention")
    shape = ", ".join(f"{k.replace('_', ' ')} {model[k]}" for k in keys if model.get(k) not in (None, 0))
    if shape:
        pairs.append(("Model", f"{model.get('name', '')}: {shape}"))
    if train.get("epochs") is not None:
        pairs.append(("Schedule", f"{train['epochs']} epochs, batch {train.get('batch_size')}, {optim.get('name')}, lr {optim.get('lr')}"))
    return [(name, value) for name, value in pairs if value != NONE]


def _per_class(rung: Rung) -> Table:
    rows = []
    for same in zip(*(r.per_class for r in rung.runs), strict=True):
        mean = [f"{np.mean([getattr(c, key) for c in same]):.2f}" for key in ("precision", "recall", "f1", "accuracy")]
        rows.append((same[0].name, *mean, f"{same[0].support:,}"))
    columns = ("Class", "Precision", "Recall", "F1", "Accuracy", "Test images")
    what = "Per class, in percent, mean over seeds; accuracy is of this class's images, hence equal to recall"
    return Table(_caption(what, rung.runs), columns, "lrrrrr", rows)


def _confused(rung: Rung, most: int = 5) -> Table | None:
    total = np.sum([r.confusion for r in rung.runs], axis=0)  # (C, C): [true][predicted]
    names = rung.runs[0].dataset.classes
    pairs = [(int(total[i, j]), i, j) for i in range(len(names)) for j in range(len(names)) if i != j and total[i, j]]
    pairs = sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))[:most]
    rows = [(f"{names[i]} → {names[j]}", f"{n / len(rung.runs):.1f}", f"{100 * n / total[i].sum():.1f}") for n, i, j in pairs]
    what = "Most confused pairs, true → predicted: images per seed, and their share of the true class, all seeds together"
    return Table(_caption(what, rung.runs), ("Pair", "Images", "Share (%)"), "lrr", rows) if rows else None


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
    return Table(_caption("Every run", rung.runs), columns, "lllllrrr", rows)


# -------------------------------------------------------------------------------------------------- numbers into words


def _get(config: dict[str, Any], section: str, key: str) -> Any:
    return (config.get(section) or {}).get(key)


def _pm(mean: float, half: float | None) -> str:
    return f"{mean:.2f}" if half is None else f"{mean:.2f} ± {half:.2f}"


def _signed(value: float, half: float | None = None) -> str:
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


def _devices(runs: Iterable[RunRecord]) -> str:
    return " and ".join(sorted({r.device for r in runs}))


def _commit(run: RunRecord, digits: int) -> str:
    dirty = f" + changes {run.git['dirty'][:8]}" if run.git.get("dirty") else ""
    return (run.git.get("commit") or "unknown")[:digits] + dirty


# ------------------------------------------------------------------------------------------------------------- templates


def md(value: Any) -> str:
    """`value` as Markdown that reads as plain text, on one line, in a table's cell as in a paragraph."""
    text = " ".join(str(value).split())
    text = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;"), ('"', "&quot;"), ("@", "&#64;"), ("://", "&#58;//")):
        text = text.replace(char, entity)
    text = re.sub(r"^([-+=])(?=[\s\-+=]|$)", r"\\\1", text)  # no list, no rule
    return re.sub(r"^(\d+)(?=[.)]\s)", r"\1\\", text)  # no numbered list


def _environment(finalize: Callable[[Any], Any] | None, autoescape: bool) -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=autoescape, finalize=finalize, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def _html() -> Environment:
    env = _environment(None, autoescape=True)
    env.tests["link"] = lambda cell: isinstance(cell, Link)
    return env


def _markdown() -> Environment:
    env = _environment(lambda value: value if isinstance(value, Markup) else md(value), autoescape=False)
    env.tests["link"] = lambda cell: isinstance(cell, Link)
    env.filters["html"] = lambda value: escape(" ".join(str(value).split()))  # within an HTML element Markdown is not read
    return env


def _data_uri(path: Path) -> str:
    kind = "image/svg+xml" if path.suffix == ".svg" else "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _write(path: Path, text: str) -> None:
    tidy = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip() + "\n"
    path.write_text(tidy, encoding="utf-8", newline="\n")
