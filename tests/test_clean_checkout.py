"""What a newcomer runs leaves the checkout as it was: git sees nothing, until publishing is asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkouts import changed, fresh
from vitlab.paths import REPOSITORY

pytestmark = pytest.mark.slow

MEASURED = """
import sys
from pathlib import Path
from benchmarks import bench, growth, shakeout
from tests.support import measurements
bench.measure = lambda args: measurements.comparison()
growth.measure = lambda times: measurements.growth()
shakeout.look = lambda run, *_: {"row": measurements.SHAKEOUT_ROW | {"experiment": run.resolved.id}}
for main in (bench.main, growth.main, shakeout.main):
    sys.argv = [sys.argv[0], *(["--data", "digits", "--profile", "quick"] if main is shakeout.main else sys.argv[1:])]
    try:
        main()
    except SystemExit as e:
        assert not e.code, e.code
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return fresh(tmp_path / "vitlab", epochs_percent=0.5, train_limit=150)


def python(root: Path, *words: str) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("VITLAB_ROOT", "MLFLOW_TRACKING_URI")}
    env |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_ladder_and_its_report_leave_the_checkout_clean(checkout: Path) -> None:
    python(checkout, "runner.py", "experiments/05_kd_r18.yaml", "--profile", "quick", "--data", "digits")
    out = python(checkout, "-m", "vitlab", "report")
    assert out.splitlines()[-1] == "the report is in reports; 'vitlab report --publish' adds it to results and README.md"
    page = (checkout / "reports" / "quick-digits" / "README.md").read_text(encoding="utf-8")
    assert "ResNet-18 distillation" in page
    assert "cifar10" not in (checkout / "reports" / "README.md").read_text(encoding="utf-8"), "own runs alone"
    assert changed(checkout) == ""
    out = python(checkout, "-m", "vitlab", "report", "--publish")
    assert "results/quick-digits/README.md" in out.splitlines()
    assert " M results/README.md" in changed(checkout).splitlines(), "what is published lists the set"


def test_measurements_leave_the_checkout_clean(checkout: Path) -> None:
    python(checkout, "-c", MEASURED)
    there = {path.name for path in (checkout / "reports" / "benchmarks").iterdir()}
    assert there >= {"bench-bf16.json", "README.md", "growth.json", "GROWTH.md", "shakeout.json"}
    assert changed(checkout) == ""
    python(checkout, "-c", MEASURED, "--publish")
    published = {line[3:] for line in changed(checkout).splitlines()}
    assert published >= {
        "docs/speed.md",
        "benchmarks/bench-bf16.json",
        "benchmarks/README.md",
        "benchmarks/growth.json",
        "benchmarks/GROWTH.md",
    }


@pytest.mark.parametrize("target", ["reproduce-all", "report", "bench", "bench-growth", "chaos"])
def test_make_publishes_where_it_is_asked_to(target: str) -> None:
    def said(*words: str) -> str:
        return subprocess.run(["make", "-n", target, *words], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    assert not re.search(r"--publish|--record", said())
    assert re.search(r"--publish|--record", said("PUBLISH=1"))
