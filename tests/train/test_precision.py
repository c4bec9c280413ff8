"""Trained in bf16 or in float32, a run's numbers are of one and the same predictions, which are float32's."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.world import NoShipper, Silent
from vitlab.claims.declarations import Arm, Claim
from vitlab.claims.images import compare
from vitlab.data import dataset, sources
from vitlab.run import execute, plan
from vitlab.train import evaluate, loop, machine

pytestmark = pytest.mark.slow

TEACHER = """\
title: Teacher
model: {name: resnet, depth: 18, width: 8}
phases: [{name: all}]
optim: {name: sgd, lr: 0.05}
train: {epochs: 1, batch_size: 32}
data: {train_limit: 150}
"""
STUDENT = """\
title: Student
model: {name: vit, dim: 16, depth: 2, heads: 2, patch_size: 8, distill_token: true}
phases: [{name: all}]
optim: {name: adamw, lr: 3e-3}
train: {epochs: 2, batch_size: 32}
data: {train_limit: 150}
ema: {start: 0.5, end: 0.9}
distill: {teacher: teacher.yaml}
"""


def right(logits: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """(N,): is the label among the k likeliest? In plain Python; logits (N, C)."""
    ordered = [sorted(range(len(row)), key=lambda c: (-row[c], c))[:k] for row in logits.tolist()]
    return np.array([label in classes for label, classes in zip(labels.tolist(), ordered, strict=True)])


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_every_number_follows_from_the_stored_predictions(bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "hardware_bf16", lambda where: bf16)
    monkeypatch.setattr(machine, "RUNS", tmp_path)
    monkeypatch.setattr(execute, "Shipper", NoShipper)
    for name, text in (("teacher", TEACHER), ("student", STUDENT)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    source = sources.resolve("digits", tmp_path, "full")
    teacher, student = plan.make([tmp_path / "student.yaml"], "full", source, [0], (), tmp_path / "runs")
    loaded = dataset.load(source, student.resolved.config.data, "cpu")
    first, second = (
        execute.execute(run, loaded, lambda n: Silent(), loop.Stop(), print, contextlib.ExitStack()) for run in (teacher, student)
    )
    assert first.precision == second.precision == ("bf16" if bf16 else "fp32")

    rightly = {}
    for run, record in ((teacher, first), (student, second)):
        with np.load(run.folder / "predictions.npz") as stored:
            labels, kinds = stored["labels"], {key.removeprefix("logits_"): stored[key] for key in stored if key.startswith("logits_")}
            heads = stored["heads"].tolist()
        headline = kinds.get("ema", kinds["raw"])  # (H, N, C)
        scores = {"": headline.mean(0)} | {f"{kind}_": z.mean(0) for kind, z in kinds.items()}
        scores |= {f"{head}_": z for head, z in zip(heads, headline, strict=True)} if len(heads) > 1 else {}
        names = {name for name in record.metrics if name.startswith("test_") and name.endswith("_top1")} | {"test_top1"}
        assert names == {f"test_{name}top1" for name in scores}
        for name, z in scores.items():
            assert record.metrics[f"test_{name}top1"] == pytest.approx(100 * right(z, labels).mean()), name
        assert record.metrics["test_top5"] == pytest.approx(100 * right(headline.mean(0), labels, 5).mean())
        rightly[run] = right(headline.mean(0), labels)
        assert [record.confusion[c][c] for c in range(10)] == [rightly[run][labels == c].sum() for c in range(10)]
        assert [f.accuracy for f in record.per_class] == pytest.approx([100 * rightly[run][labels == c].mean() for c in range(10)])

        # and these predictions are float32's: those of the stored weights, and too fine for bf16
        images = (loaded.test_images, loaded.mean, loaded.std, run.resolved.config.train.eval_batch_size)
        again = evaluate.logits(execute.load_weights(run, torch.device("cpu")), *images)
        np.testing.assert_allclose(again.numpy(), headline, rtol=1e-4, atol=1e-5)
        assert not torch.equal(again.bfloat16().float(), again)

    validation = (loaded.validation_images, loaded.mean, loaded.std, 256)
    for run, said in ((teacher, second.teacher.validation_top1), (student, second.metrics["validation_top1"])):
        z = evaluate.logits(execute.load_weights(run, torch.device("cpu")), *validation).mean(0)
        assert said == pytest.approx(100 * right(z.numpy(), loaded.validation_labels.numpy()).mean())
    chosen = [execute.predicted(run) for run in (teacher, student)]
    assert second.teacher.agreement == pytest.approx(100 * (chosen[0] == chosen[1]).float().mean().item())
    for run, classes in zip((teacher, student), chosen, strict=True):
        assert (classes == loaded.test_labels).tolist() == rightly[run].tolist()

    arms = tuple(Arm(experiment=name) for name in ("resnet18", "05_kd_r18"))
    claim = Claim(id="c", statement="s", source="r", arms=arms, metric="test_top1", at_least=0.0)
    pair = compare(claim, [run.folder / "predictions.npz" for run in (teacher, student)], 0.95)
    a, b = rightly[teacher], rightly[student]
    assert (pair.only_first, pair.only_second) == ((a & ~b).sum(), (b & ~a).sum())
