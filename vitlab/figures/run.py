"""The pictures of one run that are drawn from its record: confusion matrices, per-class accuracy, calibration, curves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vitlab import records
from vitlab.figures import style
from vitlab.figures.style import LIGHT
from vitlab.records import RunRecord

DRAWN = (  # of these a run has those that its record has the numbers for
    "confusion_counts.png", "confusion_normalized.png", "per_class_accuracy.png", "reliability.png", "teacher_confusion.png", "curves.png"
)  # fmt: skip


def run_figures(record: RunRecord, out_dir: Path) -> list[Path]:
    """Draw one run's pictures into `out_dir` and return their paths.

    A picture that is there already, drawn from this record by this code, is left: drawing takes a third of a second.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    counts = np.asarray(record.confusion, int)  # (C, C): [true][predicted]
    assert counts.shape == (len(record.dataset.classes),) * 2, f"confusion {counts.shape}, {len(record.dataset.classes)} classes"
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    draw: dict[str, Callable[[], Figure]] = {
        "confusion_counts.png": lambda: _confusion(record, counts, "Confusion matrix, images", "{:d}"),
        "confusion_normalized.png": lambda: _confusion(record, share, "Confusion matrix, % of each true class", "{:.1f}"),
        "per_class_accuracy.png": lambda: _per_class(record),
        "curves.png": lambda: _curves(record),
    }
    if record.calibration:
        draw["reliability.png"] = lambda: _reliability(record)
    if record.teacher is not None and record.teacher.confusion is not None:
        both, title = np.asarray(record.teacher.confusion, int), "Student against teacher, images"
        draw["teacher_confusion.png"] = lambda: _confusion(record, both, title, "{:d}", ("student's class", "teacher's class"))
    drawn_from = hashlib.sha256(records.to_json(record).encode() + _code()).hexdigest()
    with style.style(LIGHT):
        for name, picture in draw.items():
            if style.note(out_dir / name) != drawn_from:
                style.save(picture(), out_dir / name, drawn_from)
    return [out_dir / name for name in DRAWN if name in draw]


def _code() -> bytes:
    """Return what pictures depend on besides their record: the sources of this folder, and the libraries."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return sources + " ".join(version(name) for name in ("matplotlib", "seaborn", "numpy", "pillow")).encode()


def about(record: RunRecord) -> str:
    """Return the line below a picture's title: which run it shows."""
    name = style.short(f"{record.experiment} {record.variant}", 60)
    top1 = record.metrics.get("test_top1")
    measured = "" if top1 is None else f"  ·  test top-1 {top1:.2f} %"
    return f"{name}  ·  {style.short(record.dataset.name, 30)}  ·  profile {record.profile}  ·  seed {record.seed}{measured}"


def _confusion(
    record: RunRecord, values: np.ndarray, title: str, form: str, axes: tuple[str, str] = ("predicted class", "true class")
) -> Figure:
    classes = len(values)
    names = [style.short(c, 18) for c in record.dataset.classes]
    side = float(np.clip(0.5 * classes, 3.4, 14))
    fig = style.figure(side + 1.9, side + 1.3)
    ax = fig.add_subplot()
    annotated = classes <= 20
    texts = np.array([["" if v < 0.05 else form.format(v) for v in row] for row in values])
    sns.heatmap(
        values, ax=ax, annot=texts if annotated else False, fmt="", cbar=False, square=True,
        cmap=style.sequential(LIGHT), norm=PowerNorm(0.4, vmin=0, vmax=max(float(values.max()), 1)),  # errors are few: lift them
        linewidths=0.6 if annotated else 0, linecolor=LIGHT.rule, annot_kws={"fontsize": 7.5, "in_layout": False},
        xticklabels=False, yticklabels=False,
    )  # fmt: skip
    if classes <= 60:
        ax.set_xticks(np.arange(classes) + 0.5, names, rotation=45 if max(map(len, names)) > 3 else 0, ha="right", rotation_mode="anchor")
        ax.set_yticks(np.arange(classes) + 0.5, names, rotation=0)
        if max(map(len, names)) <= 3:
            ax.set_xticks(np.arange(classes) + 0.5, names, rotation=0, ha="center", rotation_mode="default")
    ax.set_xlabel(axes[0])
    ax.set_ylabel(axes[1])
    style.lay_out(fig, title, about(record))
    return fig


def _per_class(record: RunRecord) -> Figure:
    facts = record.per_class
    fig = style.figure(7.0, 1.35 + 0.29 * len(facts))
    ax = fig.add_subplot()
    y = np.arange(len(facts))
    accuracy = [f.accuracy for f in facts]
    ax.barh(y, accuracy, height=0.68, color=LIGHT.accent)
    for i, value in enumerate(accuracy):
        inside = value > 12
        place = (
            {"x": value - 0.8, "ha": "right", "color": LIGHT.surface} if inside else {"x": value + 0.8, "ha": "left", "color": LIGHT.ink}
        )
        ax.text(y=i, s=f"{value:.2f}", va="center", fontsize=8, in_layout=False, **place)
    mean = float(np.average(accuracy, weights=[max(f.support, 1) for f in facts]))
    ax.axvline(mean, color=LIGHT.claim, linewidth=1.1, linestyle=(0, (4, 3)), zorder=0)
    ax.text(mean, -0.75, f"all classes {mean:.2f}", color=LIGHT.claim, fontsize=8, ha="center", va="bottom")
    ax.set_xlim(0, 103)
    ax.set_ylim(len(facts) - 0.4, -0.75)
    ax.set_yticks(y, [style.short(f.name, 28) for f in facts], color=LIGHT.ink)
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlabel("accuracy on the class's test images (%)")
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.spines["bottom"].set_visible(False)
    style.lay_out(fig, "Accuracy per class", about(record))
    return fig


def _reliability(record: RunRecord) -> Figure:
    fig = style.figure(7.0, 4.2)
    accuracy, count = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    confidence, right, images = (np.array([getattr(b, key) for b in record.calibration]) for key in ("confidence", "accuracy", "count"))
    accuracy.plot([0, 100], [0, 100], color=LIGHT.muted, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
    accuracy.vlines(confidence, confidence, right, color=LIGHT.wrong, linewidth=1.2)
    accuracy.plot(confidence, right, "o-", color=LIGHT.accent, markersize=5, label="measured")
    accuracy.set_ylabel("right (%)")
    accuracy.legend(loc="upper left")
    accuracy.grid()
    count.bar(confidence, images, width=3.5, color=LIGHT.accent)
    count.set_ylabel("images")
    count.set_xlabel("confidence in the predicted class (%), mean of each bin")
    count.set_xlim(0, 101)
    error = record.metrics["test_calibration_error"]
    style.lay_out(fig, f"Calibration: expected error {error:.2f} points, {len(record.calibration)} bins", about(record))
    return fig


LOSSES = {  # name, colour and line of each curve: training is solid, and the same weights have the same colour in both charts
    "train/loss": ("train, total", LIGHT.series[0], "-"),
    "train/ce": ("train, cross-entropy", LIGHT.series[1], "-"),
    "train/kd": ("train, distillation", LIGHT.series[2], "-"),
    "validation/loss": ("validation, raw weights", LIGHT.series[3], "--"),
}
TOP1 = {
    "train/top1": ("train", LIGHT.series[0], "-"),
    "validation/top1": ("validation, raw weights", LIGHT.series[3], "--"),
    "validation/ema_top1": ("validation, EMA weights", LIGHT.series[4], "-."),
}


def _curves(record: RunRecord) -> Figure:
    fig = style.figure(9.4, 3.7)
    loss, top1, lr = fig.subplots(1, 3, width_ratios=(1.15, 1.15, 0.8))
    keys = sorted({k for entry in record.history for k in entry})
    named = {k: curve for k, curve in LOSSES.items() if k != "train/ce" or "train/kd" in keys}  # without distillation it is the total
    others = [k for k in keys if k.startswith("train/") and k not in (*LOSSES, *TOP1, "train/grad_norm")]
    for i, key in enumerate(others):
        named[key] = style.short(key, 24), LIGHT.series[(len(LOSSES) + i) % len(LIGHT.series)], "-"
    for ax, curves in ((loss, named), (top1, TOP1)):
        for key, (name, color, line) in curves.items():
            _history(ax, record, key, name, color, line)
    _history(lr, record, "lr", "lr", LIGHT.accent, "-")
    for ax, title in ((loss, "loss"), (top1, "top-1 (%)"), (lr, "learning rate")):
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 5, 10), min_n_ticks=1))
        ax.grid(axis="y")
    lr.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    for ax in (loss, top1):
        if ax.lines:
            ax.legend(loc="upper left", bbox_to_anchor=(-0.06, -0.2), ncols=2, handlelength=1.8, columnspacing=1.2)
    style.lay_out(fig, "Training", about(record), margins=(0.5, 1.05, 0.5))
    return fig


def _history(ax: Axes, record: RunRecord, key: str, label: str, color: str, line: str) -> None:
    points = [(entry["epoch"], entry[key]) for entry in record.history if key in entry]
    if points:
        x, y = zip(*points, strict=True)
        ax.plot(x, y, line, color=color, label=label, marker="o" if len(points) <= 12 else "", markersize=3.2)
