"""The charts of a set of experiments: claimed and measured, learning curves, accuracy against cost."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from vitlab.figures import style
from vitlab.figures.style import DARK, LIGHT, MARKERS, Theme
from vitlab.report import words
from vitlab.report.rungs import Rung

SET_PICTURES = ("claimed_measured", "learning_curves", "accuracy_cost")  # each as -light.svg and -dark.svg


def set_figures(rungs: Sequence[Rung], out_dir: Path) -> list[Path]:
    """Draw a set's charts (`SET_PICTURES`) into `out_dir`, each as `-light.svg` and `-dark.svg`; return their paths."""
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = []
    for theme in (LIGHT, DARK):
        with style.style(theme):
            for name, draw in zip(SET_PICTURES, (_claimed_measured, _learning_curves, accuracy_cost), strict=True):
                drawn.append(out_dir / f"{name}-{theme.name}.svg")
                style.save(draw(rungs, theme), drawn[-1])
    return drawn


def looks_of(rungs: Sequence[Rung], theme: Theme) -> list[tuple[str, str, str]]:
    """Return colour, line style and marker of each rung, the same in every chart."""
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
    return f"{style.short(run.dataset.name, 30)}  ·  profile {run.profile}"


def _claimed_measured(rungs: Sequence[Rung], theme: Theme) -> Figure:
    fig = style.figure(9.4, 1.5 + 0.46 * len(rungs))
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
        if (taught := teacher_top1(rung)) is not None:
            ax.plot([rung.mean, taught], [i, i], color=theme.muted, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
            ax.plot([taught], [i], "D", color=theme.muted, markerfacecolor=theme.surface, markersize=5.5)
            step = words.signed(rung.mean - taught)  # above the height of a claim's mark, which may be anywhere
            ax.text((rung.mean + taught) / 2, i - 0.22, step, color=theme.muted, fontsize=7.5, ha="center", va="bottom")
        ax.errorbar(rung.mean, i, xerr=rung.half, fmt="o", color=theme.accent, markersize=6.5, capsize=4, elinewidth=1.6, capthick=1.6)
    teachers = [taught for r in rungs if (taught := teacher_top1(r)) is not None]
    values = [v for r in rungs for v in (r.mean - (r.half or 0), r.mean + (r.half or 0), *(r.claimed or ()))] + teachers
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
        ax.plot([], [], "D", color=theme.muted, markerfacecolor=theme.surface, markersize=5.5, label="its teacher, and the step from it")[
            0
        ],
    ]
    there = (True, any(len(r.runs) > 1 for r in rungs), any(r.claimed for r in rungs), bool(teachers))
    fig.legend(
        handles=[k for k, wanted in zip(key, there, strict=True) if wanted],
        loc="outside lower center",
        ncols=4,
        columnspacing=2.4,
        handletextpad=0.5,
    )
    style.lay_out(fig, "Claimed and measured test accuracy", _where(rungs))
    return fig


def teacher_top1(rung: Rung) -> float | None:
    """Return the test top-1 of the rung's teachers in percent, mean over its runs; None where nobody teaches it."""
    taught = [run.teacher.test_top1 for run in rung.runs if run.teacher is not None]
    return float(np.mean(taught)) if len(taught) == len(rung.runs) else None


def _measured(rung: Rung) -> str:
    return f"{rung.mean:.2f}" + (f" ± {rung.half:.2f}" if rung.half is not None else "  (1 seed)")


def _learning_curves(rungs: Sequence[Rung], theme: Theme) -> Figure:
    fig = style.figure(9.4, 4.2)
    by_epoch, by_share = fig.subplots(1, 2, sharey=True)
    ends: list[tuple[float, str, str]] = []
    for rung, (color, line, _) in zip(rungs, looks_of(rungs, theme), strict=True):
        key = "validation/ema_top1" if all("validation/ema_top1" in e for r in rung.runs for e in r.history) else "validation/top1"
        curves = [[(e["epoch"], e[key]) for e in r.history if key in e] for r in rung.runs]
        length = min(map(len, curves))
        if not length:
            continue
        epoch = np.array([e for e, _ in curves[0][:length]])
        values = np.array([[v for _, v in c[:length]] for c in curves])  # (seeds, epochs)
        for ax, x in ((by_epoch, epoch), (by_share, 100 * epoch / epoch[-1])):
            ax.plot(x, values.mean(0), line, color=color, marker="o" if length <= 12 else "", markersize=3)
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
        places = style.spread([(e[0] - low) / (high - low) for e in ends], 0.055, 0.985)
        for (end, color, label), place in zip(ends, places, strict=True):
            by_share.plot(
                [1, 1.035], [(end - low) / (high - low), place], color=color, linewidth=0.8, transform=by_share.transAxes, clip_on=False
            )
            by_share.text(1.06, place, style.short(label, 40), color=theme.ink, fontsize=8, va="center", transform=by_share.transAxes)
            by_share.plot([1.035], [place], "s", color=color, markersize=3.5, transform=by_share.transAxes, clip_on=False)
        by_share.set_ylim(low, high)
    about = "mean over seeds, band from the lowest to the highest seed; EMA weights where the experiment has them"
    style.lay_out(fig, "Learning curves", f"{_where(rungs)}  ·  {about}")
    return fig


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Return the indices of the points that no other one beats at their cost or less, by rising cost."""
    best: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        if not best or values[i] > values[best[-1]]:
            best.append(i)
    return best


def accuracy_cost(rungs: Sequence[Rung], theme: Theme) -> Figure:
    """Return the chart of accuracy against parameters and training time, the best at each cost joined. Expects to be called within style.style(theme)."""
    fig = style.figure(9.4, 3.9)
    axes = fig.subplots(1, 2, sharey=True)
    longest = max(r.timed.train_seconds for r in rungs)
    unit, per = ("h", 3600) if longest > 7200 else ("min", 60) if longest > 120 else ("s", 1)
    costs = ([r.runs[0].params / 1e6 for r in rungs], [r.timed.train_seconds / per for r in rungs])
    for ax, cost, label in zip(axes, costs, ("parameters (millions)", f"training time ({unit})"), strict=True):
        for rung, x, (color, _, marker) in zip(rungs, cost, looks_of(rungs, theme), strict=True):
            ax.errorbar(x, rung.mean, yerr=rung.half, fmt=marker, color=color, markersize=7, elinewidth=1.2, capsize=3)
        front = pareto(cost, [r.mean for r in rungs])
        ax.plot([cost[i] for i in front], [rungs[i].mean for i in front], color=theme.muted, linewidth=1, drawstyle="steps-post", zorder=0)
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
    style.lay_out(
        fig,
        "Accuracy against cost",
        f"{_where(rungs)}  ·  mean over seeds, whiskers: 95 % CI; number: rung; line: the best at its cost or less",
    )
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
        note.set_bbox({"facecolor": theme.surface, "edgecolor": "none", "pad": 0.6})  # no line runs through it
        note.set_in_layout(False)
