"""The shake-out: the trainer's own steps on the whole run's schedule, numbers worked by hand, and failures that stop nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import first_epochs, shakeout
from tests.support.experiments import TINY
from tests.support.measurements import SHAKEOUT_ROW
from vitlab.data import sources
from vitlab.data.dataset import Dataset
from vitlab.errors import UserError
from vitlab.paths import EXPERIMENTS, REPOSITORY
from vitlab.run import plan
from vitlab.train import loop, machine, schedule

pytestmark = pytest.mark.slow

DIGITS = sources.resolve("digits", Path("data"), "quick")
TEACHER = """\
title: Tiny teacher
model: {name: resnet, depth: 18, width: 8}
phases: [{name: all}]
optim: {name: sgd, lr: 0.1}
train: {epochs: 1}
"""


def by_hand(row: dict[str, Any]) -> float:
    """Seconds of the whole run, from the row's own fields."""
    steady = row["schedule_epochs"] * row["images"] / row["img_s"]
    evaluations = row["evaluation_seconds"] * (row["schedule_epochs"] + row["test_images"] / row["validation_images"])
    return steady + evaluations + sum(p["seconds"] - p["steps"] * row["batch"] / row["img_s"] for p in row["first_steps"])


# ------------------------------------------------------------------------------------------------- one experiment


@pytest.fixture
def student(experiment_file: Callable[..., Path]) -> plan.Run:
    """Two phases, two heads, EMA, and a teacher: 4 epochs of 3 steps on `tiny_data`, the last of them the clean phase."""
    experiment_file(TEACHER, "teacher.yaml")
    path = experiment_file(TINY + "distill: {teacher: teacher.yaml}\n")
    return plan.make([path], "full", dataclasses.replace(DIGITS, classes=tuple("abcd")), [0], (), Path("runs"))[-1]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the trainer hands to Step, which still does it."""
    monkeypatch.setattr(machine, "measured_peak", lambda where, dtype: 1e11)
    seen: dict[str, list[Any]] = {"total": [], "steps": []}

    class Seen(loop.Step):
        def __init__(self, *args: Any) -> None:
            seen["total"].append(args[-1])
            super().__init__(*args)

        def __call__(self, rows: torch.Tensor, phase: Any, seed: int, lr: float, decay: float) -> None:
            seen["steps"].append((phase.name, lr, decay))
            super().__call__(rows, phase, seed, lr, decay)

    monkeypatch.setattr(loop, "Step", Seen)
    return seen


@pytest.mark.parametrize("epochs", [1, 2])
def test_steps_are_those_of_the_whole_schedule(
    student: plan.Run, tiny_data: Dataset, steps: dict[str, list[Any]], tmp_path: Path, epochs: int
) -> None:
    cfg = student.resolved.config
    row = first_epochs.look(student, tiny_data, epochs, tmp_path)
    assert steps["total"] == [12]  # 4 epochs of 48 / 16 steps
    names = [name for name, _, _ in steps["steps"]]
    later = min(first_epochs.LATER, 12 - 3 * epochs)  # no more than there are
    assert names == ["strong"] * 3 * epochs + ["clean"] * later
    assert [lr for _, lr, _ in steps["steps"]] == [cfg.optim.lr * schedule.lr_factor(i, 12, 1) for i in range(len(names))]
    assert [decay for _, _, decay in steps["steps"]] == [schedule.ema_decay(i, 12, cfg.ema) for i in range(len(names))]
    assert [(p["phase"], p["steps"]) for p in row["first_steps"]] == [("strong", 4), ("clean", 4)]
    assert (row["epochs"], row["schedule_epochs"], row["images"], row["batch"]) == (epochs, 4, 48, 16)
    assert row["projected_seconds"] == pytest.approx(by_hand(row))


def test_all_epochs_are_the_experiment_as_it_stands(
    student: plan.Run, tiny_data: Dataset, steps: dict[str, list[Any]], tmp_path: Path
) -> None:
    row = first_epochs.look(student, tiny_data, 9, tmp_path)
    assert row["epochs"] == 4
    assert [name for name, _, _ in steps["steps"]] == ["strong"] * 9 + ["clean"] * 3


def test_phases_in_between_are_short() -> None:
    """Three phases at 100 steps an epoch: 2 epochs, LATER steps, the rest."""
    cfg = plan.make([EXPERIMENTS / "06_kd_r50_class_attention.yaml"], "full", DIGITS, [0], (), Path("runs"))[-1].resolved.config
    strong, clean = cfg.phases
    three = cfg.model_copy(update={"phases": (strong, clean, clean.model_copy(update={"name": "cleaner"}))})
    assert schedule.phase_ends(first_epochs.brought_forward(three, 2, 100).phases, 30_000, 100) == [200, 208, 30_000]
    assert schedule.phase_ends(first_epochs.brought_forward(cfg, 2, 100).phases, 30_000, 100) == [200, 30_000]
    assert first_epochs.brought_forward(three, 300, 100) is three


def test_projection() -> None:
    """10 epochs of 1,000 images at 100 a second, each with 2 s of evaluation; 4 times as many test images; two starts of 4 steps of 50
    images, 2 s of work: 100 + 20 + 8 + (12 - 2) + (5 - 2)."""
    starts = [{"phase": "a", "steps": 4, "seconds": 12.0}, {"phase": "b", "steps": 4, "seconds": 5.0}]
    row = {"schedule_epochs": 10, "images": 1000, "img_s": 100.0, "evaluation_seconds": 2.0, "batch": 50, "first_steps": starts}
    assert first_epochs.projected(row | {"test_images": 400, "validation_images": 100}) == pytest.approx(141.0)


def test_rate_without_the_start() -> None:
    """The median of 80, 100, 110; and where one epoch of 10 s is all there is, 120 images in the 4 s after the first 6."""
    epochs = [{"perf/img_s": rate} for rate in (10.0, 110.0, 80.0, 100.0)]
    assert first_epochs.steady_rate(epochs, 0.0, 0) == 100.0
    only = {"perf/img_s": 20.0, "perf/seconds_step": 7.0, "perf/seconds_data": 3.0, "perf/seconds_evaluation": 5.0}
    assert first_epochs.steady_rate([only], 6.0, 120) == pytest.approx(30.0)


# ------------------------------------------------------------------------------------------------------ the ladder


def test_two_experiments_for_real(tmp_path: Path) -> None:
    """Without MLflow, and nothing written but the file asked for."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "mlflow.py").write_text("raise ImportError('not installed')")
    environment = os.environ | {"VITLAB_ROOT": str(tmp_path / "root"), "PYTHONPATH": f"{tmp_path / 'without'}{os.pathsep}{REPOSITORY}"}
    out = tmp_path / "shakeout.json"
    words = ["--profile", "quick", "--data", "digits", "--only", "01,06", "--epochs", "1", "--out", str(out)]
    run = [sys.executable, "-m", "benchmarks.shakeout", *words]
    done = subprocess.run(run, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert {"date", "machine", "profile", "data", "epochs"} <= results.keys()
    assert results["machine"]["torch"] == torch.__version__
    rows = results["experiments"]
    assert [row["experiment"] for row in rows] == ["01_baseline_vit", "06_kd_r50_class_attention"]
    assert [[p["phase"] for p in row["first_steps"]] for row in rows] == [["all"], ["strong", "clean"]]
    for row in rows:
        assert row["projected_seconds"] == pytest.approx(by_hand(row))
        assert min(row["img_s"], row["mfu"], row["evaluation_seconds"], *row["memory_mb"].values()) > 0
        assert 0 < row["loss"][1] < 5
        assert row["experiment"] in done.stdout
    assert results["projected_seconds"] == pytest.approx(sum(row["projected_seconds"] for row in rows))
    assert not (tmp_path / "root").exists()


FACTS = {"device": "A Processor, 2 cores", "precision": "fp32", "threads": 2, "torch": "2.11", "cuda": None}
CODES = {  # what a process does instead
    "01": "import json, sys; print(json.dumps({'machine': " + repr(FACTS) + "})); print(json.dumps({'error': 'OutOfMemoryError: too large'})); sys.exit(1)",
    "02": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "03": "import not_installed",
    "04": "import json; print(json.dumps({'machine': " + repr(FACTS) + ", 'row': " + repr(SHAKEOUT_ROW) + "}))",
}  # fmt: skip


def test_a_failure_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shakeout, "command", lambda run, data_dir, epochs: [sys.executable, "-c", CODES[run.resolved.id[:2]]])
    runs = shakeout.chosen(plan.make([EXPERIMENTS], "quick", DIGITS, [0], (), tmp_path), ",".join(CODES))
    assert not shakeout.shake_out(runs, DIGITS, tmp_path, "quick", 2, tmp_path / "out.json")
    results = json.loads((tmp_path / "out.json").read_text())
    errors = ["OutOfMemoryError: too large", "killed by SIGKILL", "ModuleNotFoundError: No module named 'not_installed'", None]
    assert [row.get("error") for row in results["experiments"]] == errors
    assert (results["machine"], results["projected_seconds"]) == (FACTS, 3725.0)
    said = re.sub(" +", " ", capsys.readouterr().out)  # whatever the columns' widths
    assert "01_baseline_vit FAILED: OutOfMemoryError: too large\n" in said
    assert "2.5 s 1,234 41 % 0.50 s 1,500/2,500 2.300 → 2.400 1:02:05 step 90 %, evaluation 10 % LOSS NOT FALLING" in said
    assert "1:02:05 for 1 of 4 whole runs, one after the other; failed: 01_baseline_vit, 02_regularized_vit, 03_hybrid_r18" in said


def test_an_exception_is_told(tmp_path: Path) -> None:
    words = [str(tmp_path / "gone.yaml"), "--profile", "quick", "--data", "digits", "--data-dir", "data", "--epochs", "1"]
    run = [sys.executable, "-m", "benchmarks.first_epochs", *words]
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    machine_line, error = map(json.loads, done.stdout.splitlines())
    assert machine_line["machine"]["device"]
    assert error["error"].startswith("UserError: ")
    assert "gone.yaml: no such file" in error["error"]
    assert "Traceback" in done.stderr


def test_only_those_named() -> None:
    runs = plan.make([EXPERIMENTS], "quick", DIGITS, [0], (), Path("runs"))
    assert shakeout.chosen(runs, "") == runs
    assert [run.resolved.id for run in shakeout.chosen(runs, "06,resnet50")] == ["resnet50", "06_kd_r50_class_attention"]
    with pytest.raises(UserError, match="begins with 'nothing'; there are 01_baseline_vit"):
        shakeout.chosen(runs, "01,nothing")
