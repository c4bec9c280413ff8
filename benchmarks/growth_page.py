"""From the measured times (`growth.json`) to growth beside work, the page (`GROWTH.md`) and its plots. Nothing is measured here."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.page import Spread, Target, _table
from vitlab.figures import style
from vitlab.figures.style import LIGHT

FASTER = 1.25  # growth of time over growth of work above which the page reports it: less is noise
IDLE = 0.5  # load average up to which a machine counts as idle
REPORT_RUNS = 1000
REPORT_SECONDS = {"report": 10, "again": 3}  # wanted with so many runs; again: when nothing has changed
TRAINING = {"tokens": "tokens", "batch": "batch", "depth": "depth"}
RUNS = {
    "finished": "listing: `tracking.finished_runs`",
    "runs": "listing: the command `vitlab runs`",
    "report": "report: `vitlab report`, first time",
    "again": "report: `vitlab report`, again",
    "ship": "shipping one more run to MLflow",
}


def series(points: list[tuple[int, int, list[float]]]) -> list[dict[str, Any]]:
    """Return a row for each point `(at, work, seconds of each round)`, with its "excess".

    That is the growth of the median time since the point before over the growth of the work; None for the first point.
    """
    out: list[dict[str, Any]] = []
    for at, work, seconds in points:
        before = out[-1] if out else None
        excess = before and (median(seconds) / median(before["seconds"])) / (work / before["work"])
        out.append({"at": at, "work": work, "seconds": seconds, "excess": excess})
    return out


def faster_than_work(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each step between points in which time grows faster than the work."""
    names = TRAINING | RUNS
    return [
        f"{names[name]}, {before['at']:,} to {point['at']:,}: time grows {point['excess']:.2f} times as fast as the work"
        for name, points in results["series"].items()
        for before, point in pairwise(points)
        if point["excess"] > FASTER
    ]


def targets(results: dict[str, Any]) -> list[Target]:
    """Return the targets beside what was measured."""
    found = []
    for name, most in REPORT_SECONDS.items():
        for point in results["series"][name]:
            if point["at"] == REPORT_RUNS:
                spread = Spread.of(point["seconds"])
                found.append(Target(f"{RUNS[name]}, {REPORT_RUNS:,} runs", f"≤ {most} s", spread.text(1, " s"), spread.median <= most))
    fast = faster_than_work(results)
    found.append(
        Target(
            f"steps whose time grows more than {FASTER} times as fast as their work", "none", str(len(fast)) if fast else "none", not fast
        )
    )
    return found


def page(results: dict[str, Any]) -> str:
    """Return GROWTH.md, a function of `growth.json` alone."""
    measured = results["series"]
    lines = [
        "# Cost as work grows",
        "",
        f"Measured on {results['date']} with `make bench-growth`, in {results['seconds'] / 60:.1f} minutes, on {results['device']}; "
        f"{results['threads']} {'thread' if results['threads'] == 1 else 'threads'}, {results['precision']}. Medians, with the least and the "
        "largest in brackets; raw numbers in [growth.json](growth.json).",
        "",
        *(
            (f"**Not on an idle machine:** other work had a load of {results['load']:.1f} when it began.", "")
            if results["load"] > IDLE
            else ()
        ),
        *_table(("target", "wanted", "measured", ""), [(t.what, t.wanted, t.measured, t.verdict) for t in targets(results)]),
        *(line for text in faster_than_work(results) for line in ("", f"**Faster than its work:** {text}.")),
        "",
        "*Against work* is the growth of time over the growth of work since the row above: 1.00 grows with its work, less grows slower.",
        "",
        "## Training",
        "",
        "![Time per image against tokens, batch and depth](growth-training.png)",
    ]
    for name, title in TRAINING.items():
        rows = [
            (f"{p['at']}", f"{p['work'] / 1e9:.3f}", Spread.of([1e3 * s for s in p["seconds"]]).text(3), f"{p['work'] / median(p['seconds']) / 1e9:.1f}", excess(p))
            for p in measured[name]
        ]  # fmt: skip
        lines += ["", *_table((title, "training GFLOPs per image", "ms per image", "GFLOP/s", "against work"), rows)]
    lines += ["", "## Runs in MLflow", "", "![Seconds of listing, report and shipping against the number of runs](growth-runs.png)"]
    for name, title in RUNS.items():
        rows = [(f"{p['at']:,}", Spread.of(p["seconds"]).text(3), excess(p)) for p in measured[name]]
        lines += ["", *_table((f"{title}; runs", "seconds", "against work"), rows)]
    lines += ["", "## How it is measured", "", *_how(results)]
    return "\n".join(lines) + "\n"


def excess(point: dict[str, Any]) -> str:
    """Return a point's excess for a table, bold where time has grown faster than the work."""
    if point["excess"] is None:
        return ""
    return f"**{point['excess']:.2f}**" if point["excess"] > FASTER else f"{point['excess']:.2f}"


def _how(results: dict[str, Any]) -> list[str]:
    return [
        "- Training is 01 with dim 96 and 3 heads (patch 4, depth 4, batch 128 where nothing else is said): whole optimisation",
        "  steps of the trainer's own `Step`, augmentation included, on random images. All sizes live in one process and take turns of 0.3",
        f"  seconds in each of {len(results['series']['depth'][0]['seconds'])} rounds, so that noise falls on all alike. Work is `cost.training_flops`.",
        "- Runs are the published ones with other seeds and 100 epochs of history: 10 groups of seeds (the eight experiments, two variations)",
        "  in a new SQLite store. The first of each group and the last of each number are shipped, the others are copied in its tables.",
        "- `finished_runs` is timed within a process, the commands are processes of their own, start-up included. The first report is into an",
        f"  empty `reports/`, the second finds that nothing has changed. Timed for each number of runs: {len(results['series']['report'][0]['seconds'])}x.",
        "- However many runs there are, a report draws the same 38 pictures: four of each experiment, six of them all.",
        "- Shipping one run is timed once for each number of runs. Its own work is the same however many there are; but its parent's summary is",
        "  computed anew from all seeds of its group, of which there are 1, 10 and 100.",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in results['versions'].items())}.",
    ]


# -------------------------------------------------------------------------------------------------------------- plots


def plots(results: dict[str, Any], out_dir: Path) -> None:
    """Draw growth-training.png and growth-runs.png into `out_dir`."""
    measured = results["series"]
    with style.style(LIGHT):
        fig = style.figure(9.4, 3.4)
        labels = ("tokens (patch 8, 4, 2)", "batch", "depth (blocks)")
        for ax, name, label in zip(fig.subplots(1, 3, sharey=True), TRAINING, labels):
            _draw(ax, measured[name], LIGHT.accent, "measured", 1e3)
            _log_axes(ax, measured[name], label)
        fig.axes[0].set_ylabel("ms per image")
        _log_y(fig.axes[0])
        about = f"{results['device']}, {results['threads']} threads  ·  dim 96, base point: patch 4, depth 4, batch 128  ·  dashed: growth with the FLOPs"
        style.lay_out(fig, "Training time per image", about.replace("1 threads", "1 thread"))
        style.save(fig, out_dir / "growth-training.png")

        fig = style.figure(9.4, 3.4)
        panels = (("listing", ("finished", "runs")), ("report", ("report", "again")), ("shipping one more run", ("ship",)))
        line_names = {"finished": "finished_runs", "runs": "vitlab runs", "report": "first", "again": "again", "ship": "measured"}
        for ax, (title, names) in zip(fig.subplots(1, 3), panels):
            for name, color in zip(names, LIGHT.series):
                _draw(ax, measured[name], color, line_names[name])
            ax.set_title(title)
            _log_axes(ax, measured[names[0]], "runs in MLflow")
            if title == "report":
                for name, most in REPORT_SECONDS.items():
                    ax.axhline(most, color=LIGHT.claim, linewidth=1.1)
                    text = f"target, {line_names[name]}: {most} s"
                    ax.text(REPORT_RUNS, 0.94 * most, text, color=LIGHT.claim, fontsize=8, ha="right", va="top")
            ax.legend(loc="upper left")
            _log_y(ax)
        fig.axes[0].set_ylabel("seconds")
        style.lay_out(fig, "Listing, report and shipping", "SQLite store; dashed: growth with the work, from the first point on")
        style.save(fig, out_dir / "growth-runs.png")


def _draw(ax: Axes, points: list[dict[str, Any]], color: str, label: str, scale: float = 1.0) -> None:
    """Draw the medians with whiskers from least to largest, and as a dashed line growth with the work alone."""
    at = [p["at"] for p in points]
    spreads = [Spread.of([scale * s for s in p["seconds"]]) for p in points]
    middle = [s.median for s in spreads]
    ax.plot(at, [middle[0] * p["work"] / points[0]["work"] for p in points], "--", color=color, linewidth=1.0, alpha=0.6)
    whiskers = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    ax.errorbar(at, middle, yerr=whiskers, fmt="o-", color=color, markersize=5, elinewidth=1.2, capsize=3, label=label)


def _log_axes(ax: Axes, points: list[dict[str, Any]], label: str) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator([p["at"] for p in points]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}"))
    ax.set_xlabel(label)
    ax.grid()


def _log_y(ax: Axes) -> None:
    """Set limits and ticks after drawing, so that a flat line looks flat and the key has room."""
    low, high = ax.get_ylim()
    ax.set_ylim(low / 1.5, high * 1.5)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}"))
