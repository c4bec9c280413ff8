"""Every picture: of one run, and of a set of experiments. With forest.py, which draws as it does, all that imports matplotlib.

Figures are drawn through the object API, so no pyplot state is made or left behind. The same values give the same bytes:
no dates, no version of the drawing library, fixed ids in SVG.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

from vitlab.records import RunRecord

matplotlib.use("Agg")  # no display is needed, whatever the machine's settings say

RUN_PICTURES = ("confusion_counts.png", "confusion_normalized.png", "per_class_accuracy.png", "predictions.png", "curves.png")
SET_PICTURES = ("claimed_measured", "learning_curves", "accuracy_cost")  # each as -light.svg and -dark.svg
DPI = 144
GRID_COLUMNS = 9  # of predictions.png: 4 rows of 9


@dataclass(frozen=True)
class Theme:
    name: str
    surface: str
    ink: str
    muted: str
    rule: str
    accent: str
    claim: str
    wrong: str
    series: tuple[str, ...]  # the ladder's rungs, in order: Okabe and Ito's hues, which the colour-blind can tell apart
    neutral: tuple[str, ...]  # experiments outside the ladder (teachers), drawn dashed


LIGHT = Theme(
    name="light", surface="#ffffff", ink="#1b1f24", muted="#5b6570", rule="#e3e6e9", accent="#0b5fa5", claim="#c26a00", wrong="#b3261e",
    series=("#0b5fa5", "#dd8500", "#14936e", "#c43d29", "#bb68ab", "#47a8da"), neutral=("#5b6570", "#939ca6"),
)  # fmt: skip
DARK = Theme(
    name="dark", surface="#161b20", ink="#e6e8ea", muted="#9aa4ae", rule="#2c343c", accent="#6cb2f5", claim="#f0a83a", wrong="#ff8a80",
    series=("#5aa2f0", "#f0a83a", "#3fc79a", "#f0705a", "#dc9fd0", "#a5dcf7"), neutral=("#9aa4ae", "#6d7883"),
)  # fmt: skip
MARKERS = ("o", "D", "s", "^", "v", "P", "X", "<", ">")


@dataclass(frozen=True)
class Rung:
    """One experiment's runs, one per seed, with what is said of them together."""

    runs: tuple[RunRecord, ...]
    mean: float  # test top-1, percent
    half: float | None  # half the width of its confidence interval; None for a single seed
    claimed: tuple[float, float] | None  # lowest and highest claimed top-1, percent; equal where one number is claimed

    @property
    def label(self) -> str:
        """`01 Baseline ViT`, for axes and keys."""
        number = self.number
        title = _short(self.runs[0].title, 44)
        return f"{number} {title}" if number.isdigit() else title

    @property
    def number(self) -> str:
        """`01` of a rung; the whole id of an experiment outside the ladder."""
        head = self.runs[0].experiment.split("_")[0]
        return head if head.isdigit() else _short(self.runs[0].experiment, 16)

    @property
    def seconds(self) -> float:
        return float(np.mean([r.train_seconds for r in self.runs]))


# ---------------------------------------------------------------------------------------------------- pieces in common


def _style(theme: Theme) -> AbstractContextManager[None]:
    return matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
            "font.size": 8.5,
            "text.color": theme.ink,
            "text.parse_math": False,  # a class may be called "$x"
            "axes.facecolor": theme.surface,
            "axes.edgecolor": theme.muted,
            "axes.labelcolor": theme.muted,
            "axes.labelsize": 8.5,
            "axes.linewidth": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "axes.titlecolor": theme.ink,
            "grid.color": theme.rule,
            "grid.linewidth": 0.7,
            "xtick.color": theme.muted,
            "ytick.color": theme.muted,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "lines.linewidth": 1.6,
            "lines.solid_capstyle": "round",
            "figure.facecolor": theme.surface,
            "svg.fonttype": "path",
            "svg.hashsalt": "vitlab",
        }
    )


def _figure(width: float, height: float) -> Figure:
    """Sizes in inches. To be made, drawn on and saved under one `_style`; `_lay_out` places the axes once all is drawn."""
    return Figure(figsize=(width, height))


def _headline(fig: Figure, title: str, about: str) -> None:
    """Title and quieter lines below it, flush left, in the topmost 0.57 inches (0.17 more for each further line)."""
    width, height = fig.get_size_inches()
    muted = matplotlib.rcParams["axes.labelcolor"]
    fig.text(0.12 / width, 1 - 0.1 / height, title, fontsize=10.5, fontweight="bold", va="top", in_layout=False)
    fig.text(0.12 / width, 1 - 0.34 / height, about, fontsize=8, color=muted, va="top", linespacing=1.4, in_layout=False)


def _lay_out(fig: Figure, title: str, about: str, margins: tuple[float, float, float] | None = None) -> None:
    """The headline, then the axes in the room that is left.

    `margins` are the axes' own, left, bottom and between, in inches, where their labels' sizes are known; else they are measured.

    The layout is made once, by an engine that the figure never has: a figure with one, even with one that was switched off, makes
    its layout or draws itself once more in each save.
    """
    width, height = fig.get_size_inches()
    _headline(fig, title, about)
    room = 1 - 0.57 / height
    if margins is not None:
        left, bottom, between = margins
        axes = width / len(fig.axes) - between
        fig.subplots_adjust(left / width, bottom / height, 1 - 0.12 / width, room - 0.3 / height, wspace=between / axes)
        return
    ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, rect=(0, 0, 1, room)).execute(fig)


def _save(fig: Figure, path: Path) -> None:
    if path.suffix == ".svg":
        fig.savefig(path, metadata={"Date": None, "Creator": None})
        return
    buffer = BytesIO()
    fig.savefig(buffer, dpi=DPI, format="png", pil_kwargs={"compress_level": 0})
    # 256 colours are enough for a chart: a third of the bytes, in every run's artifacts and in each committed report
    Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path)


def _short(text: str, length: int) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _spread(values: Sequence[float], gap: float, top: float) -> list[float]:
    """`values` moved apart so that neighbours are at least `gap` from each other and none is above `top`."""
    order = np.argsort(values, kind="stable")
    out = np.asarray(values, float)[order]
    for i in range(1, len(out)):
        out[i] = max(out[i], out[i - 1] + gap)
    for i in reversed(range(len(out))):
        out[i] = min(out[i], top if i + 1 == len(out) else out[i + 1] - gap)
    back = np.empty_like(out)
    back[order] = out
    return back.tolist()


@cache
def _sequential(theme: Theme) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("vitlab", [theme.surface, "#cfe1f1", "#7fb1da", theme.accent, "#06345c"])


# ------------------------------------------------------------------------------------------------- pictures of one run


def run_figures(
    record: RunRecord,
    out_dir: Path,
    images: np.ndarray | None = None,
    shown: Sequence[tuple[int, int, float]] | None = None,
) -> list[Path]:
    """Draw one run's pictures (`RUN_PICTURES`) into `out_dir` and return their paths.

    `images` are `(N, H, W, 3)` uint8, `shown` their `(true class, predicted class, confidence in 0..1)`; without them
    predictions.png is left out, since a record holds no images.
    """
    if images is not None and shown is not None:
        fits = images.ndim == 4 and images.shape[-1] == 3 and images.dtype == np.uint8 and len(images) == len(shown) > 0
        assert fits, f"predictions: expected (N, H, W, 3) uint8 images and N triples, got {images.shape} {images.dtype}, {len(shown)}"
    out_dir.mkdir(parents=True, exist_ok=True)
    counts = np.asarray(record.confusion, int)  # (C, C): [true][predicted]
    assert counts.shape == (len(record.dataset.classes),) * 2, f"confusion {counts.shape}, {len(record.dataset.classes)} classes"
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    paths = {name: out_dir / name for name in RUN_PICTURES}
    with _style(LIGHT):
        _confusion(record, counts, "Confusion matrix, images", "{:d}", paths["confusion_counts.png"])
        _confusion(record, share, "Confusion matrix, % of each true class", "{:.1f}", paths["confusion_normalized.png"])
        _per_class(record, paths["per_class_accuracy.png"])
        _curves(record, paths["curves.png"])
        if images is not None and shown is not None:
            _predictions(record, images, shown, paths["predictions.png"])
        else:
            del paths["predictions.png"]
    return list(paths.values())


def _about(record: RunRecord) -> str:
    name = _short(f"{record.experiment} {record.variant}", 60)
    top1 = record.metrics.get("test_top1")
    measured = "" if top1 is None else f"  ·  test top-1 {top1:.2f} %"
    return f"{name}  ·  {_short(record.dataset.name, 30)}  ·  profile {record.profile}  ·  seed {record.seed}{measured}"


def _confusion(record: RunRecord, values: np.ndarray, title: str, form: str, path: Path) -> None:
    classes = len(values)
    names = [_short(c, 18) for c in record.dataset.classes]
    side = float(np.clip(0.5 * classes, 3.4, 14))
    fig = _figure(side + 1.9, side + 1.3)
    ax = fig.add_subplot()
    annotated = classes <= 20
    texts = np.array([["" if v < 0.05 else form.format(v) for v in row] for row in values])
    sns.heatmap(
        values, ax=ax, annot=texts if annotated else False, fmt="", cbar=False, square=True,
        cmap=_sequential(LIGHT), norm=PowerNorm(0.4, vmin=0, vmax=max(float(values.max()), 1)),  # errors are few: lift them
        linewidths=0.6 if annotated else 0, linecolor=LIGHT.rule, annot_kws={"fontsize": 7.5, "in_layout": False},
        xticklabels=False, yticklabels=False,
    )  # fmt: skip
    if classes <= 60:
        ax.set_xticks(np.arange(classes) + 0.5, names, rotation=45 if max(map(len, names)) > 3 else 0, ha="right", rotation_mode="anchor")
        ax.set_yticks(np.arange(classes) + 0.5, names, rotation=0)
        if max(map(len, names)) <= 3:
            ax.set_xticks(np.arange(classes) + 0.5, names, rotation=0, ha="center", rotation_mode="default")
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    _lay_out(fig, title, _about(record))
    _save(fig, path)


def _per_class(record: RunRecord, path: Path) -> None:
    facts = record.per_class
    fig = _figure(7.0, 1.35 + 0.29 * len(facts))
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
    ax.set_yticks(y, [_short(f.name, 28) for f in facts], color=LIGHT.ink)
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlabel("accuracy on the class's test images (%)")
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.spines["bottom"].set_visible(False)
    _lay_out(fig, "Accuracy per class", _about(record))
    _save(fig, path)


def _predictions(record: RunRecord, images: np.ndarray, shown: Sequence[tuple[int, int, float]], path: Path) -> None:
    names = record.dataset.classes
    columns = min(GRID_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    # One mosaic in one axes, for speed. A cell is 1 x 1.36: the picture its upper left 0.92 x 0.92, two lines of text below.
    h, w = images.shape[1:3]
    cell_h, cell_w = round(h * 1.36 / 0.92), round(w / 0.92)
    mosaic = np.full((rows * cell_h, columns * cell_w, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * cell_h, i % columns * cell_w
        mosaic[top : top + h, left : left + w] = image
    width, height = 1.08 * columns + 0.24, 1.08 * 1.36 * rows
    fig = _figure(max(width, 6.0), height + 0.85)
    ax = fig.add_axes((0.12 / max(width, 6.0), 0.02, (width - 0.24) / max(width, 6.0), height / (height + 0.85) - 0.02))
    ax.imshow(mosaic, interpolation="nearest", aspect="auto")
    for i, (true, predicted, confidence) in enumerate(shown):
        x, y = i % columns * cell_w - 0.5, i // columns * cell_h - 0.5  # a pixel's centre has whole coordinates
        wrong = true != predicted
        ax.text(x, y + 1.05 * h, _short(names[true], 15), va="top", fontsize=6.5, color=LIGHT.muted, in_layout=False)
        ax.text(
            x, y + 1.2 * h, f"{'✗' if wrong else '✓'} {_short(names[predicted], 11)} {100 * confidence:.0f} %", va="top", fontsize=6.5,
            color=LIGHT.wrong if wrong else LIGHT.ink, fontweight="bold" if wrong else "normal", in_layout=False,
        )  # fmt: skip
        if wrong:
            ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=LIGHT.wrong, linewidth=2.2))
    ax.set_xlim(-1, columns * cell_w)
    ax.set_ylim(rows * cell_h, -1)
    ax.set_axis_off()
    right = sum(t == p for t, p, _ in shown)
    _headline(
        fig,
        f"Predictions: {right} of {len(shown)} right",
        f"{_about(record)}\nbelow each image its true class, then ✓ or ✗, the predicted class and the confidence in it",
    )
    _save(fig, path)


LOSS_NAMES = {
    "train/loss": "train, total",
    "train/ce": "train, cross-entropy",
    "train/kd": "train, distillation",
    "validation/loss": "validation",
}


def _curves(record: RunRecord, path: Path) -> None:
    fig = _figure(9.4, 3.7)
    loss, top1, lr = fig.subplots(1, 3, width_ratios=(1.15, 1.15, 0.8))
    keys = sorted({k for entry in record.history for k in entry})
    losses = [k for k in LOSS_NAMES if k in keys and not (k == "train/ce" and "train/kd" not in keys)]  # alone it is the total
    losses += [k for k in keys if k.startswith("train/") and k not in (*LOSS_NAMES, "train/top1", "train/grad_norm")]
    for i, key in enumerate(losses):
        style = "--" if key.startswith("validation/") else "-"
        _history(loss, record, key, LOSS_NAMES.get(key, _short(key, 24)), LIGHT.series[i % len(LIGHT.series)], style)
    top1_names = {"train/top1": "train", "validation/top1": "validation, raw weights", "validation/ema_top1": "validation, EMA weights"}
    for color, (key, name) in zip((LIGHT.neutral[1], LIGHT.series[0], LIGHT.series[3]), top1_names.items(), strict=True):
        _history(top1, record, key, name, color, "-" if key.startswith("train") else "--" if "ema" in key else "-.")
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
    _lay_out(fig, "Training", _about(record), margins=(0.5, 1.05, 0.5))
    _save(fig, path)


def _history(ax: Axes, record: RunRecord, key: str, label: str, color: str, style: str) -> None:
    points = [(entry["epoch"], entry[key]) for entry in record.history if key in entry]
    if points:
        x, y = zip(*points, strict=True)
        ax.plot(x, y, style, color=color, label=label, marker="o" if len(points) <= 12 else "", markersize=3.2)


# ----------------------------------------------------------------------------------------------------- pictures of a set


def set_figures(rungs: Sequence[Rung], out_dir: Path) -> list[Path]:
    """Draw a set's charts (`SET_PICTURES`) into `out_dir`, each as `-light.svg` and `-dark.svg`; return their paths."""
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = []
    for theme in (LIGHT, DARK):
        with _style(theme):
            for name, draw in zip(SET_PICTURES, (_claimed_measured, _learning_curves, _accuracy_cost), strict=True):
                drawn.append(out_dir / f"{name}-{theme.name}.svg")
                _save(draw(rungs, theme), drawn[-1])
    return drawn


def _looks(rungs: Sequence[Rung], theme: Theme) -> list[tuple[str, str, str]]:
    """Colour, line style and marker of each rung, the same in every chart."""
    ladder = [r.number.isdigit() for r in rungs]
    looks = []
    for i, inside in enumerate(ladder):
        nth = ladder[:i].count(inside)
        if inside:
            again = "-" if nth < len(theme.series) else "-."
            looks.append((theme.series[nth % len(theme.series)], again, MARKERS[nth % len(MARKERS)]))
        else:
            looks.append((theme.neutral[nth % 2], ("--", ":")[nth % 2], "ph*"[nth % 3]))
    return looks


def _where(rungs: Sequence[Rung]) -> str:
    run = rungs[0].runs[0]
    return f"{_short(run.dataset.name, 30)}  ·  profile {run.profile}"


def _claimed_measured(rungs: Sequence[Rung], theme: Theme) -> Figure:
    fig = _figure(9.4, 1.5 + 0.46 * len(rungs))
    ax = fig.add_subplot()
    for i, rung in enumerate(rungs):
        if rung.claimed is not None:
            low, high = rung.claimed
            if high > low:
                ax.plot([low, high], [i, i], color=theme.claim, linewidth=8, alpha=0.3, solid_capstyle="butt")
            ax.plot([(low + high) / 2], [i], "|", color=theme.claim, markersize=15, markeredgewidth=2.2)
        if len(rung.runs) > 1:
            seeds = [r.metrics["test_top1"] for r in rung.runs]
            ax.plot(seeds, np.full(len(seeds), i + 0.24), ".", color=theme.muted, markersize=3.5, alpha=0.9)
        ax.errorbar(rung.mean, i, xerr=rung.half, fmt="o", color=theme.accent, markersize=6.5, capsize=4, elinewidth=1.6, capthick=1.6)
    values = [v for r in rungs for v in (r.mean - (r.half or 0), r.mean + (r.half or 0), *(r.claimed or ()))]
    room = 0.06 * max(max(values) - min(values), 4)
    ax.set_xlim(max(min(values) - room, -1), min(max(values) + room, 101))
    ax.set_ylim(len(rungs) - 0.45, -0.55)
    ax.set_yticks(range(len(rungs)), [textwrap.fill(r.label, 40) for r in rungs], color=theme.ink, fontsize=8.5)
    right = ax.secondary_yaxis("right")  # the numbers themselves, in a column
    right.set_yticks(range(len(rungs)), [_measured(r) for r in rungs], color=theme.ink, fontsize=8.5)
    right.spines["right"].set_visible(False)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("test top-1 (%)")
    ax.grid(axis="x")
    for i in range(len(rungs) - 1):
        ax.axhline(i + 0.5, color=theme.rule, linewidth=0.6)
    key = [
        ax.plot([], [], "o", color=theme.accent, markersize=6.5, label="measured: mean, 95 % CI over seeds")[0],
        ax.plot([], [], ".", color=theme.muted, markersize=4, label="one seed")[0],
        ax.plot([], [], "|", color=theme.claim, markersize=11, markeredgewidth=2.2, label="claimed (a range: shaded)")[0],
    ]
    shown = [key[0], *([key[1]] if any(len(r.runs) > 1 for r in rungs) else []), *([key[2]] if any(r.claimed for r in rungs) else [])]
    fig.legend(handles=shown, loc="outside lower center", ncols=3, columnspacing=2.4, handletextpad=0.5)
    _lay_out(fig, "Claimed and measured test accuracy", _where(rungs))
    return fig


def _measured(rung: Rung) -> str:
    return f"{rung.mean:.2f}" + (f" ± {rung.half:.2f}" if rung.half is not None else "  (1 seed)")


def _learning_curves(rungs: Sequence[Rung], theme: Theme) -> Figure:
    fig = _figure(9.4, 4.2)
    by_epoch, by_share = fig.subplots(1, 2, sharey=True)
    ends: list[tuple[float, str, str]] = []
    for rung, (color, style, _) in zip(rungs, _looks(rungs, theme), strict=True):
        key = "validation/ema_top1" if all("validation/ema_top1" in e for r in rung.runs for e in r.history) else "validation/top1"
        curves = [[(e["epoch"], e[key]) for e in r.history if key in e] for r in rung.runs]
        length = min(map(len, curves))
        if not length:
            continue
        epoch = np.array([e for e, _ in curves[0][:length]])
        values = np.array([[v for _, v in c[:length]] for c in curves])  # (seeds, epochs)
        for ax, x in ((by_epoch, epoch), (by_share, 100 * epoch / epoch[-1])):
            ax.plot(x, values.mean(0), style, color=color, marker="o" if length <= 12 else "", markersize=3)
            if len(values) > 1:
                ax.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.14, linewidth=0)
        ends.append((float(values.mean(0)[-1]), color, rung.label))
    for ax, label in ((by_epoch, "epoch"), (by_share, "share of training (%)")):
        ax.set_xlabel(label)
        ax.grid()
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=(1, 2, 5, 10), min_n_ticks=1))
    by_epoch.set_ylabel("validation top-1 (%)")
    by_share.set_xlim(right=100)
    if ends:
        low, high = by_share.get_ylim()
        places = _spread([(e[0] - low) / (high - low) for e in ends], 0.055, 0.985)
        for (end, color, label), place in zip(ends, places, strict=True):
            by_share.plot(
                [1, 1.035], [(end - low) / (high - low), place], color=color, linewidth=0.8, transform=by_share.transAxes, clip_on=False
            )
            by_share.text(1.06, place, _short(label, 40), color=theme.ink, fontsize=8, va="center", transform=by_share.transAxes)
            by_share.plot([1.035], [place], "s", color=color, markersize=3.5, transform=by_share.transAxes, clip_on=False)
        by_share.set_ylim(low, high)
    about = "mean over seeds, band from the lowest to the highest seed; EMA weights where the experiment has them"
    _lay_out(fig, "Learning curves", f"{_where(rungs)}  ·  {about}")
    return fig


def _accuracy_cost(rungs: Sequence[Rung], theme: Theme) -> Figure:
    fig = _figure(9.4, 3.9)
    axes = fig.subplots(1, 2, sharey=True)
    longest = max(r.seconds for r in rungs)
    unit, per = ("h", 3600) if longest > 7200 else ("min", 60) if longest > 120 else ("s", 1)
    costs = ([r.runs[0].params / 1e6 for r in rungs], [r.seconds / per for r in rungs])
    for ax, cost, label in zip(axes, costs, ("parameters (millions)", f"training time ({unit})"), strict=True):
        for rung, x, (color, _, marker) in zip(rungs, cost, _looks(rungs, theme), strict=True):
            ax.errorbar(x, rung.mean, yerr=rung.half, fmt=marker, color=color, markersize=7, elinewidth=1.2, capsize=3)
        middle, ratio = np.sqrt(max(cost) * min(cost)), max(np.sqrt(max(cost) / min(cost)) * 1.35, 2.2)
        ax.set_xscale("log")
        ax.set_xlim(middle / ratio, middle * ratio)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if ratio < 4 else (1, 2, 5) if ratio < 30 else (1,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(f"{label}, log scale")
        ax.grid()
    axes[0].set_ylabel("test top-1 (%)")
    axes[0].margins(y=0.14)
    _lay_out(fig, "Accuracy against cost", f"{_where(rungs)}  ·  mean over seeds, whiskers: 95 % CI; number: rung of the ladder")
    for ax, cost in zip(axes, costs, strict=True):
        _label_points(ax, cost, [r.mean for r in rungs], [r.number for r in rungs], theme)
    return fig


def _label_points(ax: Axes, x: Sequence[float], y: Sequence[float], labels: Sequence[str], theme: Theme) -> None:
    """Write each label beside its point, at the first of eight places that is free; the layout must be settled."""
    spots = ax.transData.transform(np.column_stack([x, y])) * 72 / ax.figure.dpi  # points
    frame = ax.get_window_extent()
    x0, y0, x1, y1 = (v * 72 / ax.figure.dpi for v in frame.extents)
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in spots]
    for (px, py), label, xy in zip(spots, labels, zip(x, y, strict=True), strict=True):
        wide, high = 5.3 * len(label), 8.5

        def cost(place: tuple[float, float], wide: float = wide, high: float = high, px: float = px, py: float = py) -> float:
            left, low = px + place[0], py + place[1]
            box = (left, low, left + wide, low + high)
            over = sum(max(0, min(box[2], t[2]) - max(box[0], t[0])) * max(0, min(box[3], t[3]) - max(box[1], t[1])) for t in taken)
            outside = max(0, x0 - box[0]) + max(0, box[2] - x1) + max(0, y0 - box[1]) + max(0, box[3] - y1)
            return over + 20 * outside

        near = [(7, -3.5), (-7 - wide, -3.5), (-wide / 2, 8), (-wide / 2, -16), (6, 5), (-6 - wide, 5), (6, -13), (-6 - wide, -13)]
        dx, dy = min(near, key=cost)
        taken.append((px + dx, py + dy, px + dx + wide, py + dy + high))
        note = ax.annotate(label, xy, (dx, dy), textcoords="offset points", fontsize=8, color=theme.ink)
        note.set_in_layout(False)
