"""The wheel: installed elsewhere and run from an empty folder, vitlab has its experiments, profiles, claims and published weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from docs import make_demo
from vitlab.code import git_state
from vitlab.paths import EXPERIMENTS, REPOSITORY

pytestmark = pytest.mark.slow
Vitlab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's files, in which building may leave its own."""
    root = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if not name.startswith("tests/") and (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, root / name)
    (root / "results" / "quick-digits" / "weights").mkdir(parents=True)
    (root / "results" / "quick-digits" / "weights" / "a.safetensors").touch()  # nobody's result
    return root


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip(f"wheel --quiet --no-deps --no-build-isolation --wheel-dir {out} {source}")
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    pip(f"install --quiet --no-deps --target {site} {wheel}")
    return site


def pip(words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def vitlab(installed: Path, tmp_path: Path) -> Vitlab:
    """Runs the installed command in an empty folder, or the one named in `cwd`; it must succeed unless `code` says otherwise."""
    env = {k: v for k, v in os.environ.items() if k not in ("VITLAB_ROOT", "VITLAB_DATA_DIR", "MLFLOW_TRACKING_URI")}
    env |= {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def run(*words: object, cwd: Path = tmp_path, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(installed / "bin" / "vitlab"), *map(str, words)]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def test_the_wheel_has_what_is_read_and_no_more(wheel: Path) -> None:
    sizes = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    shipped = {name.removeprefix("vitlab/shipped/") for name in sizes if name.startswith("vitlab/shipped/")}
    ours = {f"experiments/{p.relative_to(EXPERIMENTS).as_posix()}" for p in EXPERIMENTS.rglob("*") if p.suffix in (".yaml", ".json")}
    assert {name for name in shipped if name.startswith("experiments/")} == ours
    for path in (REPOSITORY / "results").glob("*/weights/*.safetensors"):
        if not path.parts[-3].startswith("quick-"):
            assert path.relative_to(REPOSITORY).as_posix() in shipped
    assert not [name for name in shipped if "quick-digits" in name or name.endswith((".png", ".svg", ".html"))]
    assert sum(size for name, size in sizes.items() if name.startswith("vitlab/shipped/results/")) < 60e6
    assert not [name for name in sizes if not name.startswith(("vitlab/", "vitlab-"))]


def test_an_editable_install_reads_the_checkout(source: Path, tmp_path: Path) -> None:
    code = "import sys\nfrom setuptools.build_meta import build_editable\nbuild_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=source, capture_output=True, check=True)
    (built,) = tmp_path.glob("*.whl")
    assert not [name for name in zipfile.ZipFile(built).namelist() if "shipped" in name]
    assert not (source / "vitlab" / "shipped").exists()


def test_help_and_plan(vitlab: Vitlab, tmp_path: Path) -> None:
    assert "doctor" in vitlab("--help").stdout
    out = vitlab("run", "01_baseline_vit", "--profile", "quick", "--data", "digits", "--dry-run").stdout
    assert f"runs/, reports/ and mlflow.db are in {tmp_path}" in out.splitlines()
    assert "01_baseline_vit     0           new" in out
    ladder = vitlab("run", "experiments", "--profile", "quick", "--data", "digits", "--dry-run").stdout
    assert "07_conv_stem_kd" in ladder
    assert list(tmp_path.iterdir()) == []


def test_a_run_and_its_report(vitlab: Vitlab, tmp_path: Path) -> None:
    small = ("--set", "train.epochs=1", "--set", "data.train_limit=100", "--set", "data.test_limit=50")
    out = vitlab("run", "01_baseline_vit", "--profile", "quick", "--data", "digits", *small).stdout
    assert "report: vitlab report, then reports/quick-digits/report.html" in out
    assert f"mlflow server --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in out
    (record,) = (tmp_path / "runs").glob("quick-digits/01_baseline_vit/*/record.json")
    assert json.loads(record.read_text(encoding="utf-8"))["git"]["commit"] == ""  # of the copy that the wheel was built from
    assert vitlab("report").stdout.splitlines()[-1] == "the report is in reports"
    assert {path.name for path in tmp_path.iterdir()} >= {"runs", "reports", "mlflow.db"}
    assert "is for a checkout" in vitlab("report", "--publish", code=2).stderr
    assert "is for a checkout" in vitlab("verify", code=2).stderr


def test_published_weights_classify(vitlab: Vitlab, tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save(tmp_path / "cat.png")
    model, guess = vitlab("predict", "cat.png").stdout.splitlines()
    assert "published weights" in model
    assert guess.startswith("cat.png: ")


def test_published_weights_are_exported(vitlab: Vitlab, tmp_path: Path) -> None:
    weights = REPOSITORY / "results" / "ledger-cifar10" / "weights" / "01_baseline_vit.safetensors"
    vitlab("export", weights, "--to", "safetensors")
    (card,) = tmp_path.rglob("README.md")
    assert "@software{vitlab" in card.read_text(encoding="utf-8")


def test_the_page_shows_the_published_models(installed: Path, tmp_path: Path) -> None:
    with make_demo.serving(env={"PYTHONPATH": str(installed)}, cwd=tmp_path) as (process, address):
        page = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address).read().decode()
        assert "Baseline ViT" in page
        assert ".cards" in page, "the style sheet is in the wheel"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 128 + signal.SIGINT
    assert list(tmp_path.iterdir()) == []


def test_claims_are_those_published(vitlab: Vitlab, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "results", tmp_path / "results", ignore=shutil.ignore_patterns("quick-*"))  # without own runs beside it
    env = os.environ | {"VITLAB_ROOT": str(tmp_path)}
    here = subprocess.run(
        [sys.executable, "-m", "vitlab", "claims", "--json"], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True
    )
    assert len(json.loads(here.stdout)) > 1
    (tmp_path / "elsewhere").mkdir()
    assert vitlab("claims", "--json", cwd=tmp_path / "elsewhere").stdout == here.stdout


def test_a_study(vitlab: Vitlab, tmp_path: Path) -> None:
    vitlab("init", "my-study")
    flags = ("--profile", "quick", "--data", "digits")
    assert "idea" in vitlab("run", "idea.yaml", *flags, "--dry-run", cwd=tmp_path / "my-study").stdout
    assert "10 runs more" in vitlab("plan-claims", "claims.yaml", *flags, cwd=tmp_path / "my-study").stdout


def test_the_doctor_says_that_it_is_installed(vitlab: Vitlab, installed: Path) -> None:
    found = json.loads(vitlab("doctor", "--data", "digits", "--json").stdout)
    assert found["versions"]["installed"] == f"package in {installed}"


def test_the_state_of_the_code_goes_into_the_wheel(tmp_path: Path, source: Path) -> None:
    """In a repository it is the commit's; the wheel above is built from a copy without one."""
    copy = Path(shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns("build", "*.egg-info")))
    assert git_state().keys() == {"commit", "dirty"}
    for words in ("init --quiet", "add .", "-c user.name=a -c user.email=a@b commit --quiet --message=all"):
        subprocess.run(["git", *words.split()], cwd=copy, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=copy, capture_output=True, text=True, check=True).stdout.strip()
    pip(f"wheel --quiet --no-deps --no-build-isolation --wheel-dir {tmp_path} {copy}")
    (built,) = tmp_path.glob("*.whl")
    assert json.loads(zipfile.ZipFile(built).read("vitlab/shipped/code.json")) == {"commit": commit, "dirty": ""}
