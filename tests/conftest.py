"""Shared by the tests: small sizes, one thread a process, no network, nothing written outside temporary folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: pytest runs two processes on two cores

import pytest
import torch
from PIL import Image

from vitlab import config
from vitlab.data import ops, rng
from vitlab.data.dataset import Dataset
from vitlab.models import layers
from vitlab.train import optim

if TYPE_CHECKING:
    from bad_input.build import World


@pytest.fixture
def tiny_data() -> Dataset:
    """48 random images of 4 classes to train on, 12 to validate and 20 to test."""
    g = rng.generator(0, "tiny", 0, "cpu")

    def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), torch.arange(n) % 4

    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    return Dataset("tiny", "0" * 32, tuple("abcd"), True, mean, std, *images(48), *images(12), *images(20))


TINY = """\
title: Tiny
model: {name: vit, dim: 16, depth: 3, heads: 2, patch_size: 8, dropout: 0.1, drop_path: 0.2, layer_scale: 0.1, position: relative, class_attention: 1, distill_token: true}
phases:
  - name: strong
    augment: {crop: 4, flip: true, trivial_augment: 1.0, erase: 0.5, color_jitter: {brightness: 0.2, hue: 0.1}}
    mix: {mixup: 0.4, cutmix: 1.0}
    label_smoothing: 0.1
  - {name: clean, percent: 25}
optim: {name: adamw, lr: 1e-2, warmup: {percent: 10}, grad_clip: 1.0}
train: {epochs: 4, batch_size: 16}
ema: {start: 0.5, end: 0.9}
"""


@pytest.fixture
def experiment_file(tmp_path: Path) -> Callable[..., Path]:
    """`experiment_file(text=TINY, name="tiny.yaml")` writes an experiment and returns its path."""

    def write(text: str = TINY, name: str = "tiny.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def tiny(experiment_file: Callable[..., Path]) -> config.Experiment:
    return config.load(experiment_file()).config


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU goes a way of its own, the GPU's instead."""
    monkeypatch.setattr(ops, "_each", ops._each_by_mask)
    monkeypatch.setattr(layers, "dropout", torch.nn.functional.dropout)
    monkeypatch.setattr(optim, "_lerp", optim._lerp_together)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report's pages without the cost of drawing: each picture is a pixel."""
    from vitlab.figures import run  # late: they import matplotlib
    from vitlab.report import charts, forest, publishing

    def draw(out_dir: Path, names: Sequence[str]) -> list[Path]:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name.endswith(".svg"):
                (out_dir / name).write_text("<svg></svg>")
            else:
                Image.new("RGB", (1, 1)).save(out_dir / name)
        return [out_dir / name for name in names]

    drawn = [f"{name}-{theme}.svg" for name in charts.SET_PICTURES for theme in ("light", "dark")]
    drawn_without_images = [name for name in run.RUN_PICTURES if name != "predictions.png"]
    monkeypatch.setattr(charts, "set_figures", lambda rungs, out_dir: draw(out_dir, drawn))
    monkeypatch.setattr(publishing, "run_figures", lambda record, out_dir, images=None, shown=None: draw(out_dir, drawn_without_images))
    monkeypatch.setattr(forest, "draw", lambda book, out_dir: draw(out_dir, [f"{forest.NAME}-light.svg", f"{forest.NAME}-dark.svg"]))


@pytest.fixture(scope="session")
def template_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bad_input.build import template  # late: it imports all of vitlab

    folder = tmp_path_factory.mktemp("template")
    template(folder)
    return folder


@pytest.fixture
def world(template_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A folder to work in, with a finished and an interrupted run; see bad_input.build.World."""
    from bad_input.build import enter

    return enter(tmp_path, template_folder, monkeypatch)


CORPUS = {"cases": 0, "clear": 0, "tracebacks": 0}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the corpus of bad input."""
    if report.when == "call" and "test_bad_input.py::test_case[" in report.nodeid:
        CORPUS["cases"] += 1
        CORPUS["clear"] += report.passed
        CORPUS["tracebacks"] += ("traceback", True) in report.user_properties


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line of all: after pytest's own summary, and not in the processes that pytest-xdist starts."""
    if CORPUS["cases"] and not hasattr(config, "workerinput"):
        print("bad input: {cases} cases, {clear} clear, {tracebacks} tracebacks".format_map(CORPUS))
