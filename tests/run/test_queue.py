"""queue.py: which engine trains the runs; what becomes of them is tested where each engine is."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from typing import Any

import pytest

from tests.support.cli import run
from tests.support.world import World
from vitlab import records
from vitlab.train import loop


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_is_one_line(
    engine: str, package: str, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "none")):
        monkeypatch.setenv(name, value)  # a command sets them for Ray in this process
    monkeypatch.delitem(sys.modules, f"vitlab.run.engines.{engine}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(capsys, *world.train("other"), "--engine", engine)
    how = f"pip install -c constraints.txt -e '.[{engine}]'"
    assert (code, err) == (2, f"error: --engine {engine}: {package} is not installed; install it with: {how}\n")


def test_a_plan_with_force_begins_anew(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for name, state in (("tiny", "finished"), ("other", "resumes")):
        assert state in run(capsys, *world.train(name), "--dry-run")[1]
        out = run(capsys, *world.train(name), "--dry-run", "--force")[1]
        assert " new " in out
        assert state not in out
    assert world.folder("tiny").joinpath("record.json").is_file()


def test_images_of_other_classes_in_a_folder_of_the_same_name_are_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    there, folder = world.images("cat", "boat"), world.folder("tiny")
    world.change("tiny", dataset=json.loads((folder / "record.json").read_text())["dataset"] | {"classes": ["cat", "dog"]})
    shutil.copytree(folder, world.root / "runs" / f"full-{there.name}" / "tiny" / folder.name)
    code, _, err = run(capsys, world.root / "tiny.yaml", "--profile", "full", "--data", there, "--dry-run")
    assert (code, "its classes (boat, cat) are not those that the runs in" in err, "rename the folder" in err) == (2, True, True)


def test_a_students_record_is_of_the_teacher_that_taught_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The teacher is trained anew while the student learns."""
    teacher = world.folder("tiny")
    before, weights = records.read(teacher / "record.json"), (teacher / "weights.safetensors").read_bytes()
    real = loop.train

    def train(*args: Any, **kwargs: Any) -> loop.Trained:
        world.change("tiny", metrics=before.metrics | {"test_top1": 99.0})
        (teacher / "weights.safetensors").write_bytes(b"others")
        (teacher / "predictions.npz").unlink()
        return real(*args, **kwargs)

    world.patch.setattr(loop, "train", train)
    code, out, err = run(capsys, *world.train("taught"))
    assert code == 0, out + err
    facts = records.read(world.folder("taught") / "record.json").teacher
    assert (facts.test_top1, facts.weights_sha256) == (before.metrics["test_top1"], hashlib.sha256(weights).hexdigest())
