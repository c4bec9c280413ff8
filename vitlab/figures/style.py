"""What all pictures share: the two themes, and how a figure is made, laid out and saved.

Figures are drawn through the object API, so no pyplot state is made or left behind. The same values give the same bytes: no dates, no
version of the drawing library, fixed ids in SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from PIL.PngImagePlugin import PngInfo

matplotlib.use("Agg")  # no display is needed, whatever the machine's settings say

DPI = 144
NOTE = "vitlab"  # the name of a PNG's note


@dataclass(frozen=True)
class Theme:
    """The colours of all pictures, on a light or on a dark page."""

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


# ---------------------------------------------------------------------------------------------------- pieces in common


def style(theme: Theme) -> AbstractContextManager[None]:
    """Return the context in which figures of this theme are made, drawn and saved."""
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


def figure(width: float, height: float) -> Figure:
    """Return a new figure, sizes in inches. It is made, drawn and saved under one `style`; `lay_out` places the axes once all is drawn."""
    return Figure(figsize=(width, height))


def headline(fig: Figure, title: str, about: str) -> None:
    """Write the title and quieter lines below it, flush left, into the topmost 0.57 inches (0.17 more for each further line)."""
    width, height = fig.get_size_inches()
    muted = matplotlib.rcParams["axes.labelcolor"]
    fig.text(0.12 / width, 1 - 0.1 / height, title, fontsize=10.5, fontweight="bold", va="top", in_layout=False)
    fig.text(0.12 / width, 1 - 0.34 / height, about, fontsize=8, color=muted, va="top", linespacing=1.4, in_layout=False)


def lay_out(fig: Figure, title: str, about: str, margins: tuple[float, float, float] | None = None) -> None:
    """Write the headline, then place the axes in the room that is left.

    `margins` are the axes' own, in inches: left, bottom and between, where their labels' sizes are known; else they are measured.

    The layout is made once, by an engine that the figure never gets: a figure with an engine, even one that is switched off, makes its
    layout or draws itself once more in each save.
    """
    width, height = fig.get_size_inches()
    headline(fig, title, about)
    room = 1 - 0.57 / height
    if margins is not None:
        left, bottom, between = margins
        axes = width / len(fig.axes) - between
        fig.subplots_adjust(left / width, bottom / height, 1 - 0.12 / width, room - 0.3 / height, wspace=between / axes)
        return
    ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, rect=(0, 0, 1, room)).execute(fig)


def save(fig: Figure, path: Path, note: str = "") -> None:
    """Save as SVG, or else as a PNG of 256 colours, by the path's suffix. A PNG keeps `note`, which is not seen."""
    if path.suffix == ".svg":
        fig.savefig(path, metadata={"Date": None, "Creator": None})
        return
    buffer = BytesIO()
    fig.savefig(buffer, dpi=DPI, format="png", pil_kwargs={"compress_level": 0})
    kept = PngInfo()
    if note:
        kept.add_text(NOTE, note)
    # 256 colours are enough for a chart: a third of the bytes, in every run's artifacts and in each committed report
    image = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(path, pnginfo=kept)


def note(path: Path) -> str:
    """Return the note that the PNG at `path` was saved with; "" where it has none, is damaged or is not there."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = image.info.get(NOTE, "")
            image.verify()  # it may have been cut off by a kill
            return found
    except (OSError, SyntaxError, ValueError):
        return ""


def short(text: str, length: int) -> str:
    """Return `text` on one line, cut to `length` characters, unprintable ones as spaces."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def spread(values: Sequence[float], gap: float, top: float) -> list[float]:
    """Return `values` moved apart, so that neighbours are at least `gap` from each other and none is above `top`."""
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
def sequential(theme: Theme) -> LinearSegmentedColormap:
    """Return the colour map from the theme's surface to a dark blue."""
    return LinearSegmentedColormap.from_list("vitlab", [theme.surface, "#cfe1f1", "#7fb1da", theme.accent, "#06345c"])
