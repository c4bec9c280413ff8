"""The pictures of a run that show test images: predictions, mistakes, attention. They are drawn when it ends, since its record holds no images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vitlab.figures import style
from vitlab.figures.run import about
from vitlab.figures.style import LIGHT
from vitlab.records import RunRecord

PICTURES = ("predictions.png", "mistakes.png", "attention.png")
COLUMNS = 9  # of predictions.png and mistakes.png: 4 rows of 9
ATTENDING = 16  # images of attention.png, 4 rows of 4
HEAT = np.array([255, 90, 0])


@dataclass(frozen=True)
class Shown:
    """Test images, (N, H, W, 3) uint8, and of each its true class, the predicted one and the confidence in it, in 0..1."""

    images: np.ndarray
    guesses: Sequence[tuple[int, int, float]]

    def __post_init__(self) -> None:
        images = self.images
        fits = images.ndim == 4 and images.shape[-1] == 3 and images.dtype == np.uint8 and len(images) == len(self.guesses)
        assert fits, f"expected (N, H, W, 3) uint8 images and N triples, got {images.shape} {images.dtype}, {len(self.guesses)}"


def image_figures(
    record: RunRecord, out_dir: Path, first: Shown, mistakes: Shown, attention: tuple[np.ndarray, Sequence[str]] | None
) -> list[Path]:
    """Draw those of PICTURES that there is something for into `out_dir`, and return their paths.

    `first`: test images as they come; `mistakes`: those that were predicted wrong with most confidence; `attention`: of the first images,
    (N, S, grid, grid), where each special token looks, each map of sum 1, and the names of the tokens; None without class attention.
    """
    right = sum(t == p for t, p, _ in first.guesses)
    below = "below each image its true class, then ✓ or ✗, the predicted class and the confidence in it"
    out_dir.mkdir(parents=True, exist_ok=True)
    with style.style(LIGHT):
        drawn = {"predictions.png": _grid(record, first, f"Predictions: {right} of {len(first.guesses)} right", below)}
        if len(mistakes.images):
            title = f"The {len(mistakes.images)} mistakes made with most confidence"
            drawn["mistakes.png"] = _grid(record, mistakes, title, f"chosen for that, so not typical; {below}")
        if attention is not None:
            drawn["attention.png"] = _attention(record, first, *attention)
        for name, fig in drawn.items():
            style.save(fig, out_dir / name)
    return [out_dir / name for name in drawn]


def overlay(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Return images (N, H, W, 3) uint8 in grey, with orange where the maps (N, grid, grid) are large; each map's largest value is full orange."""
    height, width = images.shape[1:3]
    grid = maps.shape[-1]
    heat = (maps / maps.max((1, 2), keepdims=True)).repeat(height // grid, 1).repeat(width // grid, 2)[..., None]  # (N, H, W, 1)
    grey = images.mean(-1, keepdims=True)
    return (grey * (1 - 0.75 * heat) + HEAT * 0.75 * heat).round().astype(np.uint8)


def _attention(record: RunRecord, shown: Shown, maps: np.ndarray, tokens: Sequence[str]) -> Figure:
    images = shown.images[:ATTENDING]
    tiles = np.stack([images, *(overlay(images, maps[: len(images), i]) for i in range(len(tokens)))], 1)  # (N, 1 + S, H, W, 3)
    n, each, h, w, _ = tiles.shape
    columns = 4
    rows, gap = -(-n // columns), 4
    mosaic = np.full((rows * (h + gap), columns * (each * (w + 1) + gap), 3), 255, np.uint8)
    for i, group in enumerate(tiles):
        for j, tile in enumerate(group):
            top, left = i // columns * (h + gap), i % columns * (each * (w + 1) + gap) + j * (w + 1)
            mosaic[top : top + h, left : left + w] = tile
    width = 9.4
    height = (width - 0.24) * mosaic.shape[0] / mosaic.shape[1]
    fig = style.figure(width, height + 0.85)
    ax = fig.add_axes((0.12 / width, 0.01, 1 - 0.24 / width, height / (height + 0.85)))
    ax.imshow(mosaic, interpolation="nearest", aspect="auto")
    ax.set_axis_off()
    which = " and ".join(f"the {name} token" for name in tokens)
    text = f"{about(record)}\nthe first {n} test images; beside each, where {which} look in the last block, mean over heads"
    style.headline(fig, "Where class attention looks", text)
    return fig


def _grid(record: RunRecord, shown: Shown, title: str, below: str) -> Figure:
    images = shown.images
    names = record.dataset.classes
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    # One mosaic in one axes, for speed. A cell is 1 x 1.36: the picture its upper left 0.92 x 0.92, two lines of text below.
    h, w = images.shape[1:3]
    cell_h, cell_w = round(h * 1.36 / 0.92), round(w / 0.92)
    mosaic = np.full((rows * cell_h, columns * cell_w, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * cell_h, i % columns * cell_w
        mosaic[top : top + h, left : left + w] = image
    width, height = 1.08 * columns + 0.24, 1.08 * 1.36 * rows
    fig = style.figure(max(width, 6.0), height + 0.85)
    ax = fig.add_axes((0.12 / max(width, 6.0), 0.02, (width - 0.24) / max(width, 6.0), height / (height + 0.85) - 0.02))
    ax.imshow(mosaic, interpolation="nearest", aspect="auto")
    for i, (true, predicted, confidence) in enumerate(shown.guesses):
        x, y = i % columns * cell_w - 0.5, i // columns * cell_h - 0.5  # a pixel's centre has whole coordinates
        wrong = true != predicted
        ax.text(x, y + 1.05 * h, style.short(names[true], 15), va="top", fontsize=6.5, color=LIGHT.muted, in_layout=False)
        ax.text(
            x, y + 1.2 * h, f"{'✗' if wrong else '✓'} {style.short(names[predicted], 11)} {100 * confidence:.0f} %", va="top", fontsize=6.1,
            color=LIGHT.wrong if wrong else LIGHT.ink, fontweight="bold" if wrong else "normal", in_layout=False,
        )  # fmt: skip
        if wrong:
            ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=LIGHT.wrong, linewidth=2.2))
    ax.set_xlim(-1, columns * cell_w)
    ax.set_ylim(rows * cell_h, -1)
    ax.set_axis_off()
    style.headline(fig, title, f"{about(record)}\n{below}")
    return fig
