"""What the pages of a set, and of all sets, say. How it looks, and escaping, are left to the templates and figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from vitlab.records import RunRecord, TeacherFacts
from vitlab.report import rung_page, words
from vitlab.report.rungs import Rung, claimed_text, ladder, mean_of, median_run, variants
from vitlab.report.tables import RULE, Column, Link, Table, caption, table
from vitlab.run import published
from vitlab.stats import mean_and_half

# A rung's columns: a line added here is a column of every page's summary and of summary.csv.
SUMMARY = (
    Column("Experiment", {"profile": lambda r: r.runs[0].profile, "dataset": lambda r: r.runs[0].dataset.name,
                          "experiment": lambda r: r.runs[0].experiment, "label": lambda r: f"{r.label} ★" if r.champion else r.label},
           lambda profile, dataset, experiment, label: Link(label, f"#{experiment}"), left=True),
    Column("Claimed top-1 (%)", {"claimed": lambda r: r.runs[0].claim.text if r.runs[0].claim and not r.runs[0].variant else None,
                                 "claimed_low": lambda r: r.claimed and r.claimed[0], "claimed_high": lambda r: r.claimed and r.claimed[1]},
           lambda text, low, high: text),
    Column("Measured top-1 (%)", {"top1": lambda r: r.mean, "ci95_half": lambda r: r.half}, words.pm),
    Column("Seeds", {"seeds": lambda r: len(r.runs)}, words.seed_count),
    Column("Difference to claimed", {"difference": lambda r: r.difference}, words.signed),
    Column("Parameters (M)", {"params": lambda r: r.runs[0].params}, words.millions),
    Column("GFLOPs", {"gflops": lambda r: r.runs[0].flops / 1e9}, words.sig),
    Column("Training time", {"train_seconds": lambda r: r.timed.train_seconds}, words.duration),
    Column("Images/s", {"images_per_second": lambda r: r.timed.img_s}, lambda rate: f"{rate:,.0f}"),
    Column("Device", {"device": lambda r: words.devices(r.runs)}, left=True),
)  # fmt: skip


def _of_summary(*headings: str) -> list[Column]:
    by_heading = {column.heading: column for column in SUMMARY}
    return [by_heading[heading] for heading in headings]


def page(rungs: list[Rung], varied: list[Rung], left_out: list[dict[str, Any]], out_dir: Path) -> dict[str, Any]:
    """Return all that the templates show of a set, as texts and tables."""
    every = [run for rung in (*rungs, *varied) for run in rung.runs]
    first = every[0]
    best = {rung.runs[0].experiment: rung for rung in rungs}
    return {
        "set": f"{first.profile}-{first.dataset.name}",
        "profile": first.profile,
        "dataset": first.dataset.name,
        "facts": _facts(every),
        "minute": (_minute(rungs, every) if rungs else []) + _champion([*rungs, *varied]),
        "scale": _scale(every),
        "left_out": _left_out(left_out),
        "has_ladder": bool(rungs),
        "summary": summary(rungs),
        "teachers": _teachers(rungs, best),
        "heads": _heads(rungs),
        "variants": _variations(varied, best),
        "experiments": [rung_page.section(rung, out_dir) for rung in rungs],
        "commits": sorted({words.commit(run, 12) for run in every}),
        "finished": max(run.finished for run in every)[:10],
    }


def weights(found: Mapping[Path, RunRecord], out_dir: Path) -> dict[str, Any] | None:
    """Return what is said of the weights published in `out_dir`, which are those in `found`; None where there are none."""
    best = published.best(found.values())
    if best is None:
        return None
    return {
        "said": "Weights in half precision, of each experiment's first seed",
        "files": [Link(run.experiment, quote(path.relative_to(out_dir).as_posix())) for path, run in found.items()],
        "best": "'vitlab predict' takes the best of them by validation top-1, teachers aside: "
        f"“{best.title}”, seed {best.seed}, {best.metrics['validation_top1']:.2f} %",
    }


def _facts(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    first = runs[0]
    sizes = sorted({(r.dataset.train, r.dataset.validation, r.dataset.test) for r in runs})
    train, validation, test = (words.span([s[i] for s in sizes]) for i in range(3))
    return [
        ("Data set", f"{first.dataset.name}, {len(first.dataset.classes)} classes"),
        ("Images", f"{train} to train, {validation} to validate, {test} to test"),
        ("Profile", first.profile),
        ("Epochs", words.span(_epochs(runs)) or words.NONE),
        ("Runs", f"{len(runs)}, {words.seeds(runs)}"),
        ("Training time", words.duration(sum(r.train_seconds for r in runs)) + " in all"),
        ("Device", words.devices(runs)),
    ]


def _champion(rungs: Sequence[Rung]) -> list[str]:
    return [
        f"★ Champion of {run.dataset.name} in MLflow's registry: “{run.title}”{f' ({run.variant})' if run.variant else ''}, seed {run.seed}."
        for run in (rung.champion for rung in rungs)
        if run is not None
    ]


def _epochs(runs: Sequence[RunRecord]) -> list[float]:
    epochs = [(r.config.get("train") or {}).get("epochs") for r in runs]
    return [e for e in epochs if e is not None]


def _mixed(runs: Sequence[RunRecord]) -> list[float]:
    """Return the share of batches that are mixed, of each phase that mixes any."""
    mixes = [phase.get("mix") or {} for r in runs for phase in r.config.get("phases") or ()]
    return [mix["prob"] for mix in mixes if mix.get("mixup") or mix.get("cutmix")]


def _minute(rungs: list[Rung], runs: Sequence[RunRecord]) -> list[str]:
    """Return what a reader must know, one sentence each."""
    top = max(rungs, key=lambda r: r.mean)
    sentences = [f"Best: “{top.runs[0].title}”, {words.pm(top.mean, top.half)} % of the test images right{_against(top)}."]
    compared = [r for r in rungs if r.claimed is not None]
    if compared and runs[0].profile == "full":
        reached = [r for r in compared if r.mean >= sum(r.claimed) / 2]
        surely = sum(r.half is not None and r.mean - r.half >= sum(r.claimed) / 2 for r in reached)
        sentences.append(
            f"{len(reached)} of {len(compared)} claimed accuracies are reached by the mean over seeds (of a claimed range: its middle), "
            f"{surely} with the whole confidence interval."
        )
    taught = [r for r in rungs if r.runs[0].teacher is not None]
    for rung in taught:
        gain, half = mean_and_half([r.teacher.gain for r in rung.runs])
        agreement = np.mean([r.teacher.agreement for r in rung.runs])
        verb = "equals" if abs(gain) < 0.005 else "is ahead of" if gain > 0 else "is behind"
        points = "" if verb == "equals" and half is None else f" by {words.pm(abs(gain), half)} points"
        unsure = "; the interval includes no difference" if half is not None and abs(gain) <= half else ""
        sentences.append(
            f"Student “{rung.runs[0].title}” {verb} its teacher ({rung.runs[0].teacher.experiment}){points}{unsure}, "
            f"and predicts the same class on {agreement:.1f} % of the test images."
        )
    seeds = Counter(len(r.runs) for r in rungs)
    if seeds[1]:
        has = "has" if seeds[1] == 1 else "have"
        some = "Every experiment has" if seeds[1] == len(rungs) else f"{seeds[1]} of {len(rungs)} experiments {has}"
        sentences.append(f"{some} one seed only: no interval can be given, and small differences mean nothing.")
    return sentences


def _against(rung: Rung) -> str:
    if rung.difference is None or rung.runs[0].profile != "full":
        return ""
    return f" (claimed {claimed_text(rung.runs[0].claim)}, difference {words.signed(rung.difference)})"


def _scale(runs: Sequence[RunRecord]) -> list[str]:
    first = runs[0]
    notes = []
    if first.profile != "full":
        train = words.span([r.dataset.train for r in runs])
        epochs = words.span(_epochs(runs))
        sizes = [r.params / 1e6 for r in runs]
        mixed = words.span([round(100 * share, 2) for share in _mixed(runs)])
        sizes = words.sig(min(sizes)) if len(set(sizes)) == 1 else f"{words.sig(min(sizes))} to {words.sig(max(sizes))}"
        notes.append(
            f"This is not the original reports' scale. Profile {first.profile}: {train} training images, {epochs or 'few'} epoch{'s' * (epochs != '1')}, "
            + (f"weakened regularisation (Mixup or CutMix in {mixed} % of the batches), " if mixed else "")
            + f"models of {sizes} million parameters; the reports: 50,000 images, up to 300 epochs, 10.6 million parameters (the best student). The "
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


# ------------------------------------------------------------------------------------------------------------- tables


def _runs(rungs: Sequence[Rung]) -> list[RunRecord]:
    return [run for rung in rungs for run in rung.runs]


def summary(rungs: Sequence[Rung]) -> Table | None:
    """Return the ladder's table, whose frame is summary.csv; None for a set without a ladder."""
    if not rungs:
        return None
    what = (
        "Test top-1, mean ± 95 % CI (Student's t) over seeds; difference in points, to a claimed range's middle; GFLOPs: forward, per image; "
        "training time and speed: the run of median time"
    )
    outside = next((i for i, r in enumerate(rungs) if not r.number.isdigit()), None)
    return table(caption(what, _runs(rungs)), SUMMARY, rungs, outside or None)


def opening(rungs: Sequence[Rung]) -> Table:
    """Return the summary's most telling columns, for the README to open with."""
    columns = _of_summary(
        "Experiment", "Claimed top-1 (%)", "Measured top-1 (%)", "Seeds", "Parameters (M)", "GFLOPs", "Training time"
    )  # fmt: skip
    what = "Test top-1, mean ± 95 % CI (Student's t) over seeds; GFLOPs: forward, per image; training time: the median run's"
    return table(caption(what, _runs(rungs)), columns, rungs)


def closing(runs: Sequence[RunRecord]) -> Table:
    """Return what the terminal shows of the runs just finished, variations of an experiment below the ladder."""
    first = runs[0]
    experiment = Column("Experiment", {"id": lambda r: f"{r.runs[0].experiment} {r.runs[0].variant}".strip()}, left=True)
    columns = (experiment, *_of_summary("Claimed top-1 (%)", "Measured top-1 (%)", "Seeds", "Parameters (M)", "Training time"))
    return table(f"{first.profile} · {first.dataset.name} · {first.device}", columns, [*ladder(runs), *variants(runs)])


class _Lesson(NamedTuple):
    student: Rung
    facts: list[TeacherFacts]  # of each of the student's runs
    gain: tuple[float, float | None]  # mean and half the width of its interval, points
    teacher: list[RunRecord]  # the runs of the configuration that taught; none where the set lacks them


def _teachers(rungs: Sequence[Rung], by_name: Mapping[str, Rung]) -> Table | None:
    lessons = []
    for rung in rungs:
        if facts := [r.teacher for r in rung.runs if r.teacher is not None]:
            teacher = by_name.get(facts[0].experiment)
            taught = [r for r in teacher.runs if r.fingerprint == facts[0].fingerprint] if teacher else []
            lessons.append(_Lesson(rung, facts, mean_and_half([f.gain for f in facts]), taught))

    def both(show: Callable[[float], str]) -> Callable[[float, float | None], str]:
        return lambda student, teacher: f"{show(student)} / {words.NONE if teacher is None else show(teacher)}"

    columns = (
        Column("Student", {"student": lambda x: x.student.label}, left=True),
        Column("Teacher", {"teacher": lambda x: x.teacher[0].title if x.teacher else x.facts[0].experiment}, left=True),
        Column("Student top-1 (%)", {"top1": lambda x: x.student.mean, "ci95_half": lambda x: x.student.half}, words.pm),
        Column("Teacher top-1 (%)", {"teacher_top1": lambda x: np.mean([f.test_top1 for f in x.facts])}, words.two),
        Column("Gain (points)", {"gain": lambda x: x.gain[0], "gain_ci95_half": lambda x: x.gain[1]}, words.signed),
        Column("Agreement (%)", {"agreement": lambda x: np.mean([f.agreement for f in x.facts])}, words.two),
        Column("Parameters (M), student / teacher",
               {"params": lambda x: x.student.runs[0].params, "teacher_params": lambda x: x.teacher[0].params if x.teacher else None},
               both(words.millions)),
        Column("Training time, student / teacher",
               {"train_seconds": lambda x: x.student.timed.train_seconds,
                "teacher_train_seconds": lambda x: median_run(x.teacher).train_seconds if x.teacher else None},
               both(words.duration)),
    )  # fmt: skip
    what = "Test top-1; gain: student minus teacher; agreement: share of the test images that both give the same class"
    return table(caption(what, _runs([x.student for x in lessons])), columns, lessons) if lessons else None


NAMED_TOP1 = {
    "test_raw_top1": "Raw weights",
    "test_ema_top1": "EMA weights",
    "test_cls_top1": "Class head",
    "test_dist_top1": "Distillation head",
}


def _heads(rungs: Sequence[Rung]) -> Table | None:
    """Return the other top-1 readings of the same runs; None where there are none."""
    keys = [k for k in NAMED_TOP1 if any(k in r.metrics for r in _runs(rungs))]
    found = {k for r in _runs(rungs) for k in r.metrics if re.fullmatch(r"test_\w+_top1", k)}
    extra = sorted(found - set(NAMED_TOP1))
    if not rungs or not (keys or extra):
        return None
    keys += extra

    def metric(heading: str, key: str, show: Callable[[float], str] = words.two) -> Column:
        return Column(heading, {key: lambda rung: mean_of(rung.runs, key)}, show)

    columns = (
        Column("Experiment", {"experiment": lambda r: r.label}, left=True),
        metric("Headline", "test_top1"),
        *(metric(NAMED_TOP1.get(k) or k.removeprefix("test_").removesuffix("_top1") + " head", k) for k in keys),
        metric("Validation", "validation_top1"),
        metric("Top-5", "test_top5"),
        metric("Test loss", "test_loss", lambda loss: f"{loss:.3f}"),
    )
    what = "Top-1 (%) by weights and head, mean over seeds; the headline averages all heads"
    return table(caption(what, _runs(rungs)), columns, rungs)


def _variations(varied: Sequence[Rung], by_name: Mapping[str, Rung]) -> Table | None:
    def difference(rung: Rung) -> float | None:
        base = by_name.get(rung.runs[0].experiment)
        of_base, changed = ({r.seed: r.metrics["test_top1"] for r in runs} for runs in (base.runs if base else (), rung.runs))
        common = of_base.keys() & changed.keys()
        return float(np.mean([changed[seed] - of_base[seed] for seed in common])) if common else None

    columns = (
        Column("Experiment", {"experiment": lambda r: r.label}, left=True),
        Column("Changed", {"variant": lambda r: r.runs[0].variant}, left=True),
        *_of_summary("Measured top-1 (%)", "Seeds"),
        Column("Difference to it unchanged", {"difference": difference}, words.signed),
        *_of_summary("Parameters (M)", "GFLOPs", "Training time", "Device"),
    )
    what = "Experiments with settings changed; test top-1, mean ± 95 % CI over seeds; difference in points, over the seeds that both have. Not part of the ladder"
    return table(caption(what, _runs(varied)), columns, varied) if varied else None


class _Set(NamedTuple):
    name: str
    runs: Sequence[RunRecord]
    rungs: list[Rung]
    best: Rung | None  # None for a set without a ladder


def every_set(sets: Mapping[str, Sequence[RunRecord]]) -> Table:
    """Return the table of all sets, `name -> runs`, in their order, with a link to each."""
    ladders = {name: ladder(runs) for name, runs in sets.items()}
    items = [_Set(name, runs, ladders[name], max(ladders[name], key=lambda r: r.mean, default=None)) for name, runs in sets.items()]
    columns = (
        Column("Set", {"set": lambda s: s.name}, lambda name: Link(name, f"{quote(name)}/README.md"), left=True),
        Column("Data set", {"dataset": lambda s: s.runs[0].dataset.name}, left=True),
        Column("Profile", {"profile": lambda s: s.runs[0].profile}, left=True),
        Column("Device", {"device": lambda s: words.devices(s.runs)}, left=True),
        Column("Experiments", {"experiments": lambda s: len(s.rungs)}),
        Column("Runs", {"runs": lambda s: len(s.runs)}),
        Column("Best top-1 (%)", {"top1": lambda s: s.best and s.best.mean, "ci95_half": lambda s: s.best and s.best.half}, words.pm),
        Column("Last finished", {"finished": lambda s: max(r.finished for r in s.runs)[:10]}, left=True),
    )
    return table("Every set. Best top-1: mean ± 95 % CI over seeds; " + RULE + ".", columns, items)
