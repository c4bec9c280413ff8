"""The forest plot of a ledger: each measured claim's effect and interval, and the region in which the claim holds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from vitlab.claims import ledger
from vitlab.claims.ledger import Book
from vitlab.claims.verdicts import Result
from vitlab.figures import style
from vitlab.figures.style import DARK, LIGHT, Theme

NAME = "claims"  # -light.svg and -dark.svg
MARKERS = {"supported": "o", "refuted": "X", "undecided": "D", "interim": "s"}
OPEN = ("undecided", "interim")  # marks that are not filled
# Inches: the figure's width, its margins for statements, for verdicts, for headline and key; a claim's row; an axis below its rows.
WIDTH, LEFT, RIGHT, TOP, BOTTOM, ROW, AXIS = 9.4, 3.6, 1.5, 0.68, 0.34, 0.34, 0.52


def draw(book: Book, out_dir: Path) -> list[Path]:
    """Draw the plot into `out_dir`, in both themes, and return the paths."""
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = []
    for theme in (LIGHT, DARK):
        with style.style(theme):
            drawn.append(out_dir / f"{NAME}-{theme.name}.svg")
            style.save(forest(book, theme), drawn[-1])
    return drawn


def group_by_axis(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results in groups that share an axis: those in points by their families; then, by metric, what has another unit."""
    panels: dict[tuple[str | int, ...], list[Result]] = {}
    for result in results:
        key = ("", result.family) if result.unit == "points" else (result.unit, result.metric, len(result.arms))
        panels.setdefault(key, []).append(result)
    return [panels[key] for key in sorted(panels, key=lambda key: (key[0] != "", key[0] == "" and key[1] == ""))]


def forest(book: Book, theme: Theme) -> Figure:
    """Return the plot of the book's measured claims. Expects to be called within style.style(theme)."""
    panels = group_by_axis(book.measured)
    height = TOP + sum(ROW * len(panel) + AXIS for panel in panels) + BOTTOM
    fig = style.figure(WIDTH, height)
    below = height - TOP
    for panel in panels:
        below -= ROW * len(panel)
        ax = fig.add_axes((LEFT / WIDTH, below / height, 1 - (LEFT + RIGHT) / WIDTH, ROW * len(panel) / height))
        _panel(ax, panel, theme)
        below -= AXIS
    fig.legend(handles=_key(book, fig.axes[0], theme), loc="lower center", ncols=6, columnspacing=1.6, handletextpad=0.5)
    where = f"{style.short(book.dataset, 30)}  ·  profile {book.profile}"
    about = f"effect, mean over seeds, and its {100 * book.confidence:g} % interval; without one: a single seed, or by formula"
    style.headline(fig, "Claims, as measured", f"{where}  ·  {about}")
    return fig


def verdict_color(verdict: str, theme: Theme) -> str:
    """Return the colour of a verdict's marker in `theme`."""
    return {"supported": theme.series[0], "refuted": theme.series[3], "undecided": theme.neutral[0], "interim": theme.muted}[verdict]


def _panel(ax: Axes, results: Sequence[Result], theme: Theme) -> None:
    shown = [v for r in results for v in (r.effect, r.low, r.high, r.low_bound, r.high_bound, r.claimed) if v is not None]
    room = 0.08 * (max(shown) - min(shown)) or 1.0
    left, right = min(shown) - room, max(shown) + room
    for i, r in enumerate(results):
        low, high = left if r.low_bound is None else r.low_bound, right if r.high_bound is None else r.high_bound
        ax.add_patch(Rectangle((low, i - 0.42), high - low, 0.84, facecolor=theme.muted, alpha=0.16, linewidth=0))
        for bound in (r.low_bound, r.high_bound):
            if bound is not None:
                ax.plot([bound, bound], [i - 0.42, i + 0.42], color=theme.muted, linewidth=1.1, solid_capstyle="butt")
        if r.claimed is not None:
            ax.plot([r.claimed], [i], "|", color=theme.claim, markersize=14, markeredgewidth=2.2)
        color = verdict_color(r.verdict, theme)
        ax.errorbar(
            r.effect, i, xerr=None if r.low is None else [[r.effect - r.low], [r.high - r.effect]], fmt=MARKERS[r.verdict], color=color,
            markerfacecolor=theme.surface if r.verdict in OPEN else color, markersize=6, capsize=3, elinewidth=1.6, capthick=1.4,
        )  # fmt: skip
    ax.set_xlim(left, right)
    ax.set_ylim(len(results) - 0.5, -0.5)
    statements = [textwrap.fill(style.short(r.statement, 120), 60) for r in results]
    ax.set_yticks(range(len(results)), statements, color=theme.ink, fontsize=7.5, linespacing=1.05)
    beside = ax.secondary_yaxis("right")
    beside.set_yticks(range(len(results)), [_beside(r) for r in results], color=theme.ink, fontsize=7.5)
    beside.spines["right"].set_visible(False)
    ax.spines["left"].set_visible(False)
    unit = results[0].unit
    of = f", {results[0].family}" if results[0].family else ", each with its own spread"
    ax.set_xlabel(f"difference ({unit}){of}" if unit == "points" else f"{style.short(results[0].metric, 60)} ({unit})", fontsize=7.5)
    ax.xaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 2.5, 5, 10)))
    ax.grid(axis="x")


def _beside(result: Result) -> str:
    """Return number and verdict in words, so that nothing is said by colour alone."""
    return f"{ledger.number(result.effect, result)}  {result.verdict}" + (", changed" if result.changed else "")


def _key(book: Book, ax: Axes, theme: Theme) -> list[object]:
    measured = book.measured
    key: list[object] = [
        ax.plot(
            [], [], MARKERS[verdict], color=verdict_color(verdict, theme), label=verdict, markersize=6,
            markerfacecolor=theme.surface if verdict in OPEN else verdict_color(verdict, theme),
        )[0]
        for verdict in MARKERS
        if any(r.verdict == verdict for r in measured)
    ]  # fmt: skip
    key.append(Patch(facecolor=theme.muted, alpha=0.3, linewidth=0, label="where the claim holds"))
    if any(r.claimed is not None for r in measured):
        key.append(ax.plot([], [], "|", color=theme.claim, markersize=11, markeredgewidth=2.2, label="claimed effect")[0])
    return key
