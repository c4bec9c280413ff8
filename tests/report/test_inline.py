"""inline.py: what report.html holds looks like the pictures beside it, and the ladder's page stays below two megabytes."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.support.records import fake_record, fake_set
from vitlab.data import samples
from vitlab.figures import grids
from vitlab.figures.run import run_figures
from vitlab.figures.style import DARK, LIGHT
from vitlab.paths import RESULTS
from vitlab.records import Bin
from vitlab.report import charts, inline, rungs

LIMIT = 2_000_000  # bytes


@pytest.fixture(scope="module")
def drawn_charts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("charts")
    charts.set_figures(rungs.ladder(fake_set(2)), folder)
    return folder


def words(svg: str) -> list[str]:
    """Return an SVG without its spaces, its ids numbered: matplotlib makes some of them from colours."""
    number = {name: f"{i}" for i, name in enumerate(re.findall(r"id='([^']+)'", svg))}
    return re.sub(r"(id='|#)([^')]+)", lambda found: found[1] + number.get(found[2], found[2]), svg).split()


@pytest.mark.parametrize("name", charts.SET_PICTURES)
def test_a_chart_is_the_svg_of_either_theme(name: str, drawn_charts: Path) -> None:
    """To the letter, but for spaces, ids and the kind of quotes; and held once."""
    light, dark = (drawn_charts / f"{name}-{theme.name}.svg" for theme in (LIGHT, DARK))
    held = unquote(inline.chart(light, dark).removeprefix("data:image/svg+xml,"))
    drawing, style = re.fullmatch(r"(.*)<style>(.*)</style></svg>", held).groups()
    in_light, in_dark = (dict(re.findall(r"(--c\d+):(#\w+)", part)) for part in style.split("@media(prefers-color-scheme:dark)"))
    for path, colors in ((light, in_light), (dark, in_dark)):
        seen = re.sub(r"var\((--c\d+)\)", lambda found, colors=colors: colors[found[1]], drawing) + "</svg>"
        drawn = path.read_text(encoding="utf-8")
        assert words(seen) == words(drawn.replace('"', "'"))
        ET.fromstring(seen)
        assert len(held) < 1.02 * path.stat().st_size


def decoded(address: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(address.removeprefix("data:image/webp;base64,")))).convert("RGB"), int)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pictures that a student's run can leave, of CIFAR-10's own images."""
    folder = tmp_path_factory.mktemp("pictures")
    bins = tuple(Bin(confidence=5 + 10 * i, accuracy=3 + 10 * i, count=100 * i) for i in range(10))
    record = fake_record("06_kd_r50_class_attention", calibration=bins)
    record.metrics["test_calibration_error"] = 2.0
    images = samples.images()[:36]
    shown = grids.Shown(images, [(int(label), int(label + i % 2) % 10, 0.5) for i, label in enumerate(samples.labels()[:36])])
    maps = np.random.default_rng(0).dirichlet(np.ones(64), (36, 2)).reshape(36, 2, 8, 8)
    grids.image_figures(record, folder, shown, shown, (maps, ("class", "distillation")))
    run_figures(record, folder)
    return folder


def test_a_chart_of_a_run_looks_as_its_png_does(pictures: Path) -> None:
    for name in ("curves.png", "per_class_accuracy.png"):
        ours, png = decoded(inline.picture(pictures / name)), np.asarray(Image.open(pictures / name).convert("RGB"), int)
        assert np.abs(ours - png).max() < 24  # of 255
        assert np.abs(ours - png).mean() < 0.5


def test_test_images_are_a_thumbnail(pictures: Path) -> None:
    png = Image.open(pictures / "predictions.png").convert("RGB")
    ours = decoded(inline.picture(pictures / "predictions.png"))
    small = np.asarray(png.resize((inline.WIDTH, round(png.height * inline.WIDTH / png.width)), Image.Resampling.LANCZOS), int)
    assert ours.shape == small.shape
    assert np.abs(ours - small).mean() < 6


def test_what_is_no_png_or_too_large_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "predictions.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    assert inline.picture(tmp_path / "predictions.png") is None
    Image.new("RGB", (1, 1)).save(tmp_path / "predictions.png", "GIF")
    assert inline.picture(tmp_path / "predictions.png") is None
    Image.new("1", (4097, 4097)).save(tmp_path / "predictions.png")
    assert inline.picture(tmp_path / "predictions.png") is None


def test_the_ladders_page_fits(pictures: Path) -> None:
    """Nine experiments with every picture that there can be, class attention in two of them, and 500 kB for texts and charts."""
    size = {path.stem: len(inline.picture(path)) for path in pictures.iterdir() if "confusion" not in path.name}
    assert set(size) == {"predictions", "mistakes", "attention", "curves", "per_class_accuracy", "reliability"}
    assert 9 * sum(size.values()) - 7 * size["attention"] < LIMIT - 500_000, size


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*/report.html")), ids=lambda path: path.parent.name)
def test_published_pages_fit(page: Path) -> None:
    assert page.stat().st_size <= LIMIT
