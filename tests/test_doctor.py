"""`vitlab doctor`: what it finds, what it calls wrong, and that it prints no password."""

from __future__ import annotations

import collections
import json
import os
import shutil
import sqlite3
from pathlib import Path

import psutil
import pytest
import torch

from tests.support.cli import run
from tests.support.journals import finish, info, start
from vitlab import cli, doctor
from vitlab.code import git_state

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement of the peak takes a second: one test looks at it."""
    monkeypatch.setattr("vitlab.train.machine.matrix_product_rate", lambda where, dtype: 12.3e9)


def found(root: Path, data: str = "digits") -> doctor.Findings:
    return doctor.examine(data, root / "data", root, root / "runs")


def blamed(root: Path, data: str = "digits") -> str:
    return "\n".join(f"{one['what']} -> {one['do']}" for one in found(root, data).wrong)


def test_a_sound_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("ROOT", tmp_path), ("RUNS", tmp_path / "runs")):
        monkeypatch.setattr(doctor, name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    argv = ("doctor", "--data-dir", str(tmp_path / "data"))
    code, out, err = run(capsys, *argv, main=cli.main)
    assert (code, err, out.splitlines()[-1]) == (0, "", "nothing is wrong")
    assert f"torch        {torch.__version__.partition('+')[0]}" in out
    assert f"commit       {git_state()['commit']}" in out
    assert "12 GFLOP/s" in out
    assert "CIFAR-10 is not in" in out
    assert list(tmp_path.iterdir()) == [], "a look changes nothing"
    code, out, _ = run(capsys, *argv, "--json", main=cli.main)
    assert code == 0
    assert {*json.loads(out)} == {"versions", "device", "data", "MLflow", "runs", "disk", "wrong"}


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"http://me:{SECRET}@host:5000/x", "http://host:5000/x"),
        (f"http://me:{SECRET}@ss@host", "http://host"),
        (f"postgresql://me:{SECRET}/x@host/db?sslmode=require", "postgresql://host/db"),
        (f"postgresql://host/db?user=me&password={SECRET}", "postgresql://host/db"),
        (f"http://me:what?{SECRET}@host", "http://…"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("/mnt/mlruns", "/mnt/mlruns"),
    ],
)
def test_a_uri_is_shown_without_what_is_secret(uri: str, shown: str) -> None:
    assert doctor.shown(uri) == shown


def test_a_server_that_is_down_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("ROOT", tmp_path), ("RUNS", tmp_path / "runs")):
        monkeypatch.setattr(doctor, name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, out, err = run(capsys, "doctor", "--data", "digits", main=cli.main)
    assert code == 1
    assert "MLflow cannot be reached at http://127.0.0.1:9: " in out
    assert "vitlab sync" in out
    assert SECRET not in out + err


def test_runs_that_have_not_reached_mlflow_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folders = [tmp_path / "runs" / "overnight-cifar10" / name / "0123456789ab-s0" for name in ("done", "going")]
    for folder in folders:
        start(folder, info(folder.parent.name)).close()
    finish(folders[0])
    assert found(tmp_path).facts["runs"] == {"folder": tmp_path / "runs", "here": 2, "finished": 1, "outstanding": 1}
    assert f"finished runs of which MLflow lacks something: 1; the first is {folders[0]} -> 'vitlab sync' ships it" in blamed(tmp_path)
    (folders[0] / "journal.jsonl").write_text("{}\n{cut\n{}\n", encoding="utf-8")
    assert "journal.jsonl" in blamed(tmp_path)


def test_a_damaged_store_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    assert "not a readable database" in blamed(tmp_path)
    (tmp_path / "mlflow.db").unlink()
    sqlite3.connect(tmp_path / "mlflow.db").close()
    assert blamed(tmp_path) == ""


def test_a_damaged_data_set_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"cut")
    assert f"{folder / 'data_batch_1'}: damaged: 3 bytes" in blamed(tmp_path, "auto")


def test_a_full_disk_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100e9, 99e9, 1e9))
    assert "only 1.00 GB of disk are free" in blamed(tmp_path)
    assert found(tmp_path).facts["disk"]["free"] == "1.0 of 100.0 GB"


def test_a_folder_that_cannot_be_written_to_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # who runs the tests may be allowed everything
    assert f"{tmp_path}: cannot be written to" in blamed(tmp_path)


def test_data_may_have_any_name(tmp_path: Path) -> None:
    assert "part" in found(tmp_path, "part").facts["data"]


def test_a_gpu_that_torch_cannot_use_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.run.plan.gpus", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "NVIDIA's driver sees 2 GPUs, and torch none" in blamed(tmp_path)


def test_a_gpu_that_torch_cannot_compile_for_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.train.machine.device", lambda: torch.device("cuda:0"))
    monkeypatch.setattr("vitlab.train.machine.device_name", lambda where: "a card")
    monkeypatch.setattr("vitlab.train.machine.compiler_trouble", lambda where: "")
    assert "Triton" not in blamed(tmp_path)
    monkeypatch.setattr("vitlab.train.machine.compiler_trouble", lambda where: "RuntimeError: no compiler")
    assert "since Triton cannot be used: RuntimeError: no compiler -> install a C compiler and Python's headers" in blamed(tmp_path)


def test_a_package_that_is_too_old_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["psutil>=7", "psutil>=999", "surely-not-installed>=1", "extra-only>=1; extra == 'dev'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needs)
    assert blamed(tmp_path).splitlines() == [
        f"psutil>=999 is needed, and {psutil.__version__} is installed -> python -m pip install 'psutil>=999'",
        "surely-not-installed>=1 is needed, and no version is installed -> python -m pip install 'surely-not-installed>=1'",
    ]
