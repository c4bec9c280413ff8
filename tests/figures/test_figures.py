"""figures.py: every picture is there, fits a page, is not blank, and shows what the record holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from tests.support.records import LADDER, fake_record, fake_set
from vitlab import records
from vitlab.figures import grids, run, style
from vitlab.records import Bin, RunRecord, TeacherFacts
from vitlab.report import charts, rungs

BINS = (Bin(confidence=55.0, accuracy=40.0, count=10), Bin(confidence=95.0, accuracy=90.0, count=30))
TAUGHT = TeacherFacts(
    experiment="resnet18", fingerprint="f" * 12, seed=0, weights_sha256="", validation_top1=80.0, test_top1=80.0, agreement=90.0, gain=1.0,
    confusion=[[10 * (i == j) + i for j in range(10)] for i in range(10)],
)  # fmt: skip


def whole_record(**changes: Any) -> RunRecord:
    """With all that pictures are drawn from."""
    record = fake_record("06_kd_r50_class_attention", **changes)
    metrics = record.metrics | {"test_calibration_error": 7.5}
    return record.model_copy(update={"calibration": BINS, "teacher": TAUGHT, "metrics": metrics})


def shown(wrong: int = 4, classes: int = 10) -> grids.Shown:
    images = np.random.default_rng(0).integers(0, 256, (36, 32, 32, 3), dtype=np.uint8)
    return grids.Shown(images, [(i % classes, (i + (i < wrong)) % classes, 0.5 + i / 100) for i in range(36)])


def looks(tokens: int = 2) -> tuple[np.ndarray, tuple[str, ...]]:
    maps = np.random.default_rng(0).random((36, tokens, 8, 8))
    return maps / maps.sum((2, 3), keepdims=True), ("cls", "dist")[:tokens]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), int)  # (H, W, 3)


def count(image: np.ndarray, color: str) -> int:
    """Pixels of exactly this colour."""
    return int((image == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum())


def test_run_figures(tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    record = whole_record()
    paths = run.run_figures(record, tmp_path / "a") + grids.image_figures(record, tmp_path / "a", shown(), shown(36), looks())
    assert [p.name for p in paths] == [*run.DRAWN, *grids.PICTURES]
    for path in paths:
        image = pixels(path)
        height, width = (size / style.DPI for size in image.shape[:2])  # inches
        assert 3 < height < width < 11, f"{path.name}: {width:.1f} x {height:.1f} inches do not fit a page's width"
        assert 0.01 < (image != 255).any(-1).mean() < 0.9
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (edge == 255).all(), f"{path.name} is cut off"
    assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == []
    assert b"matplotlib" not in b"".join(p.read_bytes() for p in paths).lower()


def test_a_picture_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = whole_record()
    path = tmp_path / "curves.png"

    def drawn_again(record: RunRecord) -> set[str]:
        before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
        return {p.name for p in run.run_figures(record, tmp_path) if p.stat().st_mtime_ns != before.get(p.name)}

    every = set(run.DRAWN)
    assert drawn_again(record) == every
    content = path.read_bytes()
    records.write(record, tmp_path / "record.json")
    assert drawn_again(records.read(tmp_path / "record.json")) == set()
    for damaged in (content[:-20], content[:200] + bytes(4) + content[204:], b"", b"GIF89a"):
        path.write_bytes(damaged)
        assert drawn_again(record) == {"curves.png"}
        assert path.read_bytes() == content
    path.unlink()
    assert drawn_again(record) == {"curves.png"}
    assert drawn_again(record.model_copy(update={"history": record.history[:-1]})) == every
    monkeypatch.setattr(run, "version", lambda name: "another")
    assert drawn_again(record) == every


def test_256_colours_show_what_was_drawn(tmp_path: Path) -> None:
    fig, ax = pyplot.subplots()
    ax.imshow(np.linspace(0, 1, 100).reshape(10, 10), cmap="viridis")
    ax.set_title("text, with its grey edges")
    style.save(fig, tmp_path / "ours.png")
    fig.savefig(tmp_path / "drawn.png", dpi=style.DPI)
    pyplot.close(fig)
    ours, drawn = pixels(tmp_path / "ours.png"), pixels(tmp_path / "drawn.png")
    assert Image.open(tmp_path / "ours.png").mode == "P"
    assert np.abs(ours - drawn).max(-1).mean() < 0.5  # of 255
    assert ((ours == 255).all(-1) == (drawn == 255).all(-1)).mean() > 0.999
    assert (tmp_path / "ours.png").stat().st_size < 0.7 * (tmp_path / "drawn.png").stat().st_size


def test_bars_are_as_long_as_the_accuracy(tmp_path: Path) -> None:
    record = fake_record(classes=("a", "b"), top1=50.0)
    facts = [f.model_copy(update={"accuracy": a}) for f, a in zip(record.per_class, (100.0, 25.0))]
    run.run_figures(record.model_copy(update={"per_class": tuple(facts)}), tmp_path)
    image = pixels(tmp_path / "per_class_accuracy.png")
    blue = (image == [int(style.LIGHT.accent[i : i + 2], 16) for i in (1, 3, 5)]).all(-1)
    longest = np.array([np.ptp(np.nonzero(row)[0]) + 1 for row in blue if row.any()])
    assert longest.min() / longest.max() == pytest.approx(0.25, abs=0.01)


def test_wrong_predictions_are_framed(tmp_path: Path) -> None:
    red = []
    for wrong in (0, 2, 4):
        some = shown(wrong)
        some.images[:] = 128
        grids.image_figures(fake_record(), tmp_path, some, shown(36), None)
        red.append(count(pixels(tmp_path / "predictions.png"), style.LIGHT.wrong))
    assert red[0] == 0
    assert red[2] == pytest.approx(2 * red[1], rel=0.1)


def test_without_mistakes_or_class_attention_there_are_no_such_pictures(tmp_path: Path) -> None:
    none = grids.Shown(np.empty((0, 32, 32, 3), np.uint8), [])
    assert [p.name for p in grids.image_figures(fake_record(), tmp_path, shown(), none, None)] == ["predictions.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.png"]


def test_images_that_do_not_fit_are_refused() -> None:
    some = shown()
    for bad in (some.images[:5], some.images.astype(float), some.images[..., :1]):
        with pytest.raises(AssertionError, match="expected \\(N, H, W, 3\\) uint8"):
            grids.Shown(bad, some.guesses)


def test_overlay_by_hand() -> None:
    """A map of 2 x 2 on an image of 4 x 4: grey where nobody looks, three quarters orange where most do, half of that for half."""
    images = np.full((1, 4, 4, 3), (100, 200, 60), np.uint8)  # grey 120
    laid = grids.overlay(images, np.array([[[0.0, 0.2], [0.4, 0.0]]]))
    assert laid.shape == images.shape
    assert (laid[0, :2, :2] == 120).all()
    assert (laid[0, 2:, :2] == np.round(0.25 * 120 + 0.75 * np.array([255, 90, 0]))).all()
    assert (laid[0, :2, 2:] == np.round(0.625 * 120 + 0.375 * np.array([255, 90, 0]))).all()


def test_hostile_names(tmp_path: Path) -> None:
    evil = ("$\\frac{", "<script>alert(1)</script>", "a\nb", "_hidden", "|" * 80)
    record = fake_record(classes=evil, title="$x")
    run.run_figures(record, tmp_path)
    grids.image_figures(record, tmp_path, shown(classes=5), shown(36, classes=5), looks(1))
    for path in tmp_path.iterdir():
        image = pixels(path)
        assert (np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]) == 255).all(), f"{path.name} is cut off"


def test_many_classes_fit_and_old_records_have_fewer_pictures(tmp_path: Path) -> None:
    paths = run.run_figures(fake_record(classes=tuple(f"class {i}" for i in range(32)), history=()), tmp_path)
    expected = sorted(set(run.DRAWN) - {"reliability.png", "teacher_confusion.png"})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths) == expected
    assert pixels(tmp_path / "confusion_counts.png").shape[0] < 2400


def test_set_figures(tmp_path: Path) -> None:
    runs = fake_set(2, ["01_baseline_vit", "06_kd_r50_class_attention", "resnet18"])
    paths = charts.set_figures(rungs.ladder(runs), tmp_path)
    assert [p.name for p in paths] == [f"{n}-{t}.svg" for t in ("light", "dark") for n in charts.SET_PICTURES]
    for path in paths:
        svg = path.read_text(encoding="utf-8")
        assert "<text" not in svg  # drawn as paths, so no font is needed
        assert "date" not in svg.lower()
        theme = style.LIGHT if "light" in path.name else style.DARK
        assert theme.surface in svg
        assert (style.LIGHT if theme is style.DARK else style.DARK).ink not in svg
    assert style.LIGHT.claim in (tmp_path / "claimed_measured-light.svg").read_text(encoding="utf-8")


def test_no_claims_no_mark(tmp_path: Path) -> None:
    charts.set_figures(rungs.ladder([fake_record("resnet18")]), tmp_path)
    assert style.LIGHT.claim not in (tmp_path / "claimed_measured-light.svg").read_text(encoding="utf-8")


def test_pareto_by_hand() -> None:
    """The second costs more than the first and is worse; the fourth costs as much as the third and is worse; the last is the best."""
    assert charts.pareto([1, 2, 3, 3, 9], [70, 60, 80, 75, 90]) == [0, 2, 4]
    assert charts.pareto([5, 1], [50, 60]) == [1]
    assert charts.pareto([2, 2], [60, 60]) == [0]


def test_a_student_stands_beside_its_teacher() -> None:
    taught = fake_record("05_kd_r18").model_copy(update={"teacher": TAUGHT})
    (rung,) = rungs.ladder([taught])
    assert charts.teacher_top1(rung) == 80.0
    (alone,) = rungs.ladder([fake_record("01_baseline_vit")])
    assert charts.teacher_top1(alone) is None


def test_points_stand_where_the_numbers_are() -> None:
    ladder = rungs.ladder(fake_set(3))
    with style.style(style.LIGHT):
        axes = charts.accuracy_cost(ladder, style.LIGHT).axes
    for ax, cost in zip(axes, ([r.runs[0].params / 1e6 for r in ladder], [r.timed.train_seconds / 60 for r in ladder])):
        drawn = [(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in ax.containers]
        assert np.allclose(drawn, [(x, r.mean) for x, r in zip(cost, ladder)])
        assert [t.get_text() for t in ax.texts] == ["01", "02", "03", "04", "05", "06", "resnet18", "resnet50"]


def test_colours_of_the_ladder_differ() -> None:
    for theme in (style.LIGHT, style.DARK):
        looks = charts.looks_of(rungs.ladder(fake_set(1)), theme)
        assert len(set(looks)) == len({color for color, _, _ in looks}) == len(LADDER)
        assert all(re.fullmatch("#[0-9a-f]{6}", color) for color, _, _ in looks)


def test_spread() -> None:
    assert style.spread([0.5, 0.1, 0.52], 0.1, 1.0) == pytest.approx([0.5, 0.1, 0.6])
    assert style.spread([0.99, 1.0], 0.1, 1.0) == pytest.approx([0.9, 1.0])
