"""restoring.py: a published teacher teaches in a checkout that has never trained it, and what cannot be restored is refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.support.cli import run
from tests.support.world import NoShipper
from vitlab import cli, files, records
from vitlab.run import execute, published

pytestmark = pytest.mark.slow

QUICK = ("--profile", "quick", "--data", "digits")


@pytest.fixture
def weights(small_world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """Published weights of a ResNet-18 that was trained for an epoch; its run lies in the folder `trained`."""
    monkeypatch.setattr(execute, "Shipper", NoShipper)
    monkeypatch.setattr("vitlab.track.store.prepare_store", lambda root: "")
    monkeypatch.setattr("vitlab.figures.run.run_figures", lambda *_: None)
    monkeypatch.setattr(execute, "draw_images", lambda *_: None)
    assert command(capsys, "run", "teachers/resnet18", *QUICK)[0] == 0
    (folder,) = (small_world / "runs" / "quick-digits" / "resnet18").iterdir()
    record, out_dir = records.read(folder / "record.json"), small_world / "results" / "quick-digits"
    (out_dir / "records").mkdir(parents=True)
    records.write(record, out_dir / "records" / records.file_name(record))
    published.write(out_dir, record, folder / "weights.safetensors")
    shutil.move(folder, small_world / "trained")
    shutil.rmtree(small_world / "runs")
    return out_dir / "weights" / "resnet18.safetensors"


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    return run(capsys, *words, main=cli.main)


def test_a_restored_teacher_teaches(weights: Path, small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, "restore", weights)
    assert (code, err) == (0, "")
    trained, (restored,) = small_world / "trained", (small_world / "runs" / "quick-digits" / "resnet18").iterdir()
    assert restored.name in out
    assert records.read(restored / "record.json") == records.read(trained / "record.json")
    assert (restored / "config.yaml").read_bytes() == (trained / "config.yaml").read_bytes()
    in_half = load_file(restored / "weights.safetensors")
    for name, tensor in load_file(trained / "weights.safetensors").items():
        assert in_half[name].equal(tensor.half() if tensor.is_floating_point() else tensor)
    with np.load(trained / "predictions.npz") as theirs, np.load(restored / "predictions.npz") as ours:
        assert ours["classes"].tolist() == theirs["classes"].tolist()
        assert np.array_equal(ours["labels"], theirs["labels"])
        np.testing.assert_allclose(ours["logits_raw"], theirs["logits_raw"], atol=0.02)
        top1 = 100 * np.mean(ours["logits_raw"].mean(0).argmax(-1) == ours["labels"])
    assert f"test top-1 of {top1:.2f} % in half precision" in out

    code, out, _ = command(capsys, "run", "05_kd_r18", *QUICK)
    assert code == 0
    assert "resnet18 · seed 0  finished before, skipped" in out
    (student,) = (small_world / "runs" / "quick-digits" / "05_kd_r18").iterdir()
    taught_by = records.read(student / "record.json").teacher
    assert taught_by.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_what_cannot_be_restored_is_refused(
    weights: Path, small_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> str:
        code, out, err = command(capsys, "restore", path)
        assert (code, out) == (2, "")
        return err

    runs = small_world / "runs"
    assert "no published weights; expected a file of them, such as results/" in refused(weights.parent)
    assert "no published weights" in refused(small_world / "trained" / "weights.safetensors")
    profile = small_world / "profiles" / "quick.yaml"
    recipe = profile.read_text(encoding="utf-8")
    profile.write_text(recipe.replace("train_limit: 150", "train_limit: 140"), encoding="utf-8")
    assert "of another recipe than experiments/teachers/resnet18.yaml has now" in refused(weights).replace("\n", "")
    profile.write_text(recipe, encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr("vitlab.config.own_names", lambda: {"01_baseline_vit": "01_baseline_vit"})
        assert "'resnet18', which is not among vitlab's own experiments" in refused(weights)
    assert not list(runs.rglob("*.*"))

    assert command(capsys, "restore", weights)[0] == 0
    assert "this run is finished here already" in refused(weights)
    (folder,) = (runs / "quick-digits" / "resnet18").iterdir()
    (folder / "record.json").unlink()
    assert "this run has begun here: its command goes on from there, or delete the folder" in refused(weights)
    with files.held(folder.parents[1] / f"resnet18-{folder.name}.lock", print):
        assert "this run is being trained by process" in refused(weights)
