"""Shared by the tests: small sizes, one thread a process, no network, nothing written outside temporary folders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: pytest runs two processes on two cores

import pytest
import torch
from PIL import Image

from tests.support import database
from tests.support.experiments import TINY
from vitlab import config
from vitlab.data import ops, rng
from vitlab.data.dataset import Dataset
from vitlab.models import layers
from vitlab.paths import EXPERIMENTS
from vitlab.track import store
from vitlab.train import optim

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.support.world import World


@pytest.fixture(autouse=True, scope="session")
def one_database() -> Iterator[None]:
    """Copies of one new MLflow database in place of many that are made; see tests.support.database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "make_database", database.copy)
        yield


@pytest.fixture
def tiny_data() -> Dataset:
    """48 random images of 4 classes to train on, 12 to validate and 20 to test."""
    g = rng.generator(0, "tiny", 0, "cpu")

    def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), torch.arange(n) % 4

    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    return Dataset("tiny", "0" * 32, tuple("abcd"), True, mean, std, *images(48), *images(12), *images(20))


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
    monkeypatch.setattr(ops, "apply_each", ops.apply_by_mask)
    monkeypatch.setattr(layers, "dropout", torch.nn.functional.dropout)
    monkeypatch.setattr(optim, "lerp", optim.lerp_together)


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
    always = [name for name in run.DRAWN if name not in ("reliability.png", "teacher_confusion.png")]  # whatever the record has
    monkeypatch.setattr(charts, "set_figures", lambda rungs, out_dir: draw(out_dir, drawn))
    monkeypatch.setattr(publishing, "run_figures", lambda record, out_dir: draw(out_dir, always))
    monkeypatch.setattr(forest, "draw", lambda book, out_dir: draw(out_dir, [f"{forest.NAME}-light.svg", f"{forest.NAME}-dark.svg"]))


@pytest.fixture(scope="session")
def template_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.world import template  # late: it imports all of vitlab

    folder = tmp_path_factory.mktemp("template")
    template(folder)
    return folder


@pytest.fixture
def world(template_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A folder to work in, with a finished and an interrupted run; see tests.support.world."""
    from tests.support.world import enter

    return enter(tmp_path, template_folder, monkeypatch)


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs, results and the MLflow store below a temporary folder; the quick profile on a hundred images for an epoch or two."""
    from vitlab import claiming, cli, exporting, listing  # late, as above
    from vitlab.claims import declarations
    from vitlab.run import execute

    for name in ("ROOT", "RUNS", "REPORTS", "RESULTS"):
        value = tmp_path if name == "ROOT" else tmp_path / name.lower()
        monkeypatch.setattr(cli, name, value)
        if name != "ROOT":
            monkeypatch.setattr(claiming, name, value)
    monkeypatch.setattr(listing, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(exporting, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    quick = (EXPERIMENTS / "profiles" / "quick.yaml").read_text(encoding="utf-8")
    quick = re.sub(r"epochs_percent: \d+", "epochs_percent: 0.5", quick)
    quick = re.sub(r"train_limit: \d+", "train_limit: 150", quick)
    (profiles / "quick.yaml").write_text(quick, encoding="utf-8")
    monkeypatch.setattr("vitlab.config.resolve.PROFILE_DIR", profiles)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    declarations.load_arm.cache_clear()  # of the real profile, read for an earlier test
    yield tmp_path
    declarations.load_arm.cache_clear()


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; a machine that has none skips what is tested in it."""
    from playwright.sync_api import sync_playwright

    from docs import make_demo

    with sync_playwright() as p:
        if make_demo.chromium() is None and not Path(p.chromium.executable_path).exists():
            pytest.skip("no browser here: install Chromium (apt-get install chromium) or run 'playwright install chromium'")
        with make_demo.browsing(p) as found:
            yield found
