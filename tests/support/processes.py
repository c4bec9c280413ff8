"""runner.py in processes of its own, on tiny experiments, and what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from tests.support import database
from tests.support.world import TAUGHT, TINY
from vitlab.paths import REPOSITORY

SHORT = "train: {epochs: 1, batch_size: 32}\n"
LONG = "train: {epochs: 400, batch_size: 32}\n"
FILES = ("tiny.yaml", "taught.yaml", "other.yaml")


def write_experiments(folder: Path, train: str = "") -> Path:
    """A teacher, its student, and a run of their own: all tiny. `train`: the line that says how long."""
    folder.mkdir()
    for name, text in zip(FILES, (TINY, TAUGHT, TINY.replace("dim: 8", "dim: 16").replace("Tiny", "Other")), strict=True):
        (folder / name).write_text(text.replace(SHORT, train or SHORT), encoding="utf-8")
    return folder


def start(
    root: Path, experiments: Path, *flags: str, patch: str = "", env: dict[str, str] | None = None, out: IO[str] | int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """runner.py in a process of its own with one thread; `patch` is done first in each process that trains, `env` goes into its environment."""
    root.mkdir(exist_ok=True)
    if not (root / "mlflow.db").exists() and "MLFLOW_TRACKING_URI" not in (env or {}):
        database.copy(root)
    (root / "patched.py").write_text(patch, encoding="utf-8")
    preload = "import multiprocessing.context as c; c.ForkServerContext.set_forkserver_preload = lambda self, names: (c.BaseContext.set_forkserver_preload(self, [*names, 'patched']))"
    own = {"VITLAB_ROOT": str(root), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": f"{root}:{REPOSITORY}"}
    command = [
        sys.executable,
        "-c",
        f"{preload}\nfrom vitlab import cli\ncli.run_main()",
        str(experiments),
        "--profile",
        "full",
        "--data",
        "digits",
    ]
    return subprocess.Popen(
        [*command, *flags],
        cwd=REPOSITORY,
        env=os.environ | own | (env or {}),
        stdout=out,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=240)
    return process.returncode, out


def until(true: Callable[[], object]) -> None:
    """Wait for what another process does."""
    for _ in range(4_000):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("nothing came of it in 200 s")


def results(root: Path) -> dict[str, bytes]:
    """What each run leaves that is a function of its configuration and seed: predictions and weights."""
    return {
        f"{path.parts[-3]}/{path.name}": path.read_bytes()
        for name in ("predictions.npz", "weights.safetensors")
        for path in root.glob(f"runs/*/*/*/{name}")
    }


def training(root: Path, name: str) -> bool:
    """Whether the run of this experiment has begun to train."""
    return any("started" in path.read_text(encoding="utf-8") for path in root.glob(f"runs/*/{name}/*/journal.jsonl"))
