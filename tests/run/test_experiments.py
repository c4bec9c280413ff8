"""Every YAML of the ladder trains: two small steps, on the model, augmentation and objective that it describes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.support.experiments import LADDER
from vitlab import config
from vitlab.claims import declarations
from vitlab.data import dataset
from vitlab.data.dataset import Dataset
from vitlab.data.sources import CIFAR10_CLASSES, Source, resolve
from vitlab.errors import UserError
from vitlab.models import registry
from vitlab.run import plan
from vitlab.track.journal import Journal
from vitlab.train import loop
from vitlab.train.meter import Meter
from vitlab.train.objective import CrossEntropy, Distillation

pytestmark = pytest.mark.slow


class Silent:
    def step(self, done: int, total: int, loss: float, top1: float) -> None: ...

    def epoch(self, row: dict[str, float]) -> None: ...


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return dataset.load(resolve("digits", Path("data"), "quick"), config.Data(train_limit=34, test_limit=20), "cpu")


@pytest.mark.parametrize("path", LADDER, ids=lambda p: p.stem)
def test_two_steps(path: Path, digits: Dataset, tmp_path: Path) -> None:
    cfg = config.load(path, "quick", ("train.epochs=1", "train.batch_size=16")).config
    torch.manual_seed(0)
    model = registry.build(cfg.model, 10)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    objective: CrossEntropy | Distillation = CrossEntropy()
    if cfg.distill:
        teacher = registry.build(config.load(cfg.distill.teacher, "quick").config.model, 10)
        objective = Distillation(teacher, cfg.distill.temperature, cfg.distill.weight)
    journal = Journal(tmp_path / "journal.jsonl")
    trained = loop.train(
        cfg,
        digits,
        model,
        objective,
        seed=0,
        folder=tmp_path,
        journal=journal,
        meter=Meter(torch.device("cpu"), 1e9, 1e12),
        bar=Silent(),
        stop=loop.Stop(),
        part={},
        covered=lambda size: None,
    )
    assert len(digits.train_labels) // 16 == 2
    (row,) = trained.history
    assert all(math.isfinite(v) for v in row.values())
    assert ("train/kd" in row) == (cfg.distill is not None)
    assert ("validation/ema_top1" in row) == (cfg.ema is not None)
    moved = {k for k, v in model.state_dict().items() if v.is_floating_point() and not torch.equal(v, before[k])}
    frozen = {n for n, _ in model.named_parameters()} - moved
    assert not frozen, f"never updated: {sorted(frozen)}"


def test_the_plan_puts_teachers_first_and_runs_nothing_twice(tmp_path: Path) -> None:
    source = resolve("digits", tmp_path, "quick")
    folder = LADDER[0].parent
    runs = plan.make([folder, folder / "teachers", folder / "05_kd_r18.yaml"], "quick", source, [0, 1], (), tmp_path)
    names = [(r.seed, r.resolved.id) for r in runs]
    assert len(names) == len(set(names)) == 2 * len(LADDER)
    for seed in (0, 1):
        assert names.index((seed, "resnet18")) < names.index((seed, "05_kd_r18"))
        assert names.index((seed, "resnet50")) < names.index((seed, "06_kd_r50_class_attention"))
    assert [s for s, _ in names] == [0] * len(LADDER) + [1] * len(LADDER)
    five = next(r for r in runs if r.resolved.id == "05_kd_r18")
    assert five.teacher.seed == five.seed
    assert not any(r.finished for r in runs)


@pytest.mark.parametrize("path", LADDER, ids=lambda p: p.stem)
def test_profiles_are_named_the_smaller_one_first(path: Path, tmp_path: Path) -> None:
    """By the training's FLOPs on CIFAR-10, of every experiment and of its teacher."""
    source = Source("cifar10", "cifar10", None, "", CIFAR10_CLASSES, mirror=True, train=50_000)
    plans = [plan.make([path], profile, source, [0], (), tmp_path) for profile in config.PROFILES]
    for runs in zip(*plans, strict=True):
        quick, ledger, overnight, full = (run.train_flops for run in runs)
        assert quick < ledger < overnight < full


def test_another_teacher_makes_another_student(tmp_path: Path) -> None:
    """The teacher's fingerprint is in the student's: a changed recipe cannot pass for the old one."""
    source = resolve("digits", tmp_path, "quick")
    for name in ("resnet18.yaml", "strong.yaml"):
        text = (LADDER[0].parent / "teachers" / "resnet18.yaml").read_text(encoding="utf-8")
        (tmp_path / name).write_text(text if name == "resnet18.yaml" else text.replace("lr: 0.1", "lr: 0.2"), encoding="utf-8")
    student = "title: S\nmodel: {name: vit}\nphases: [{name: all}]\noptim: {name: adamw, lr: 1e-3}\ntrain: {epochs: 1}\ndistill: {teacher: TEACHER}\n"
    prints = []
    for name in ("resnet18.yaml", "strong.yaml"):
        (tmp_path / "s.yaml").write_text(student.replace("TEACHER", name), encoding="utf-8")
        prints.append(plan.make([tmp_path / "s.yaml"], "quick", source, [0], (), tmp_path)[-1].fingerprint)
    assert prints[0] != prints[1]


def test_a_teacher_has_its_students_images(tmp_path: Path) -> None:
    """Or it has learned what validates the student, and is compared with it on other images."""
    source, sets = resolve("digits", tmp_path, "quick"), ("optim.lr=1e-4", "data={validation: 0.1}", "data.test_limit=50")
    teacher, student = plan.make([Path("05_kd_r18")], "full", source, [0], sets, tmp_path)
    assert (teacher.resolved.id, student.resolved.id) == ("resnet18", "05_kd_r18")
    assert teacher.resolved.config.data == student.resolved.config.data == config.Data(validation=0.1, test_limit=50)
    assert teacher.resolved.variant == "data.test_limit=50 data={validation:0.1}"
    assert declarations.fingerprint(student.resolved, source.digest) == student.fingerprint
    (tmp_path / "few.yaml").write_text("title: S\nextends: 05_kd_r18\ndata: {test_limit: 50}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"few\.yaml: data\.test_limit: expected null, as in its teacher's file .*resnet18\.yaml, got 50;"):
        plan.make([tmp_path / "few.yaml"], "full", source, [0], (), tmp_path)


@pytest.mark.parametrize(("kind", "limit", "expected"), [("cifar10", None, 47_500), ("digits", None, 1_366), ("digits", 100, 95)])
def test_the_plan_counts_an_epochs_images(kind: str, limit: int | None, expected: int, tmp_path: Path) -> None:
    source = resolve(kind, tmp_path, "quick", download=False)
    cfg = config.Data(train_limit=limit)
    assert plan.train_images(source, cfg) == expected
    if kind == "digits":
        assert len(dataset.load(source, cfg, "cpu").train_labels) == expected
