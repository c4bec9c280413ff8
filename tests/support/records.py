"""Records of a made-up ladder, and sets of them: what reports, figures and published sets are tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitlab.config import Claim
from vitlab.records import ClassFacts, DatasetFacts, RunRecord, TeacherFacts

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LADDER = {  # experiment: title, claim (text, top1, top5), measured top-1, params, FLOPs, seconds
    "01_baseline_vit": ("Baseline ViT", ("~80", 80, None), 80.4, 9_568_266, 1_294e6, 1502),
    "02_regularized_vit": ("Regularised ViT", ("82–83", (82, 83), None), 86.1, 9_568_266, 1_294e6, 1544),
    "03_hybrid_r18": ("ResNet-18 hybrid", ("~82 (87 in §5)", 82, None), 91.7, 12_345_994, 1_890e6, 1931),
    "04_explicit_transformer": ("Explicit transformer", ("83-84", (83, 84), None), 91.5, 12_351_114, 1_891e6, 1988),
    "05_kd_r18": ("ResNet-18 distillation", ("~86", 86, None), 90.2, 9_700_116, 1_301e6, 2406),
    "06_kd_r50_class_attention": ("ResNet-50 distillation, class attention", ("95.69", 95.69, 99.88), 95.9, 10_612_884, 951e6, 3480),
    "resnet18": ("ResNet-18 teacher", None, 95.2, 11_173_962, 1_113e6, 1210),
    "resnet50": ("ResNet-50 teacher", ("88.71", 88.71, None), 95.6, 23_520_842, 2_597e6, 3012),
}
THREE = ("01_baseline_vit", "06_kd_r50_class_attention", "resnet50")


def fake_record(
    experiment: str = "01_baseline_vit", seed: int = 0, *, classes: tuple[str, ...] = CIFAR10, top1: float | None = None, **changes: Any
) -> RunRecord:
    """A record as a run leaves it: counts, per-class facts and metrics agree. Its numbers depend on (experiment, seed) alone."""
    usual_of = ("Something else", None, 70.0, 1_000_000, 5e7, 60)
    title, claimed, usual, params, flops, seconds = LADDER.get(experiment, usual_of)
    claim = None if claimed is None else make_claim(*claimed, source="the reports, <section> 1")
    rng = np.random.default_rng([seed, *experiment.encode()])
    n, per_class, epochs = len(classes), 1000, 30
    goal = (usual if top1 is None else top1) + rng.normal(0, 0.15)
    kinship = rng.dirichlet(np.full(n - 1, 0.4), n)
    confusion = np.zeros((n, n), int)
    for i in range(n):
        right = round(float(per_class * np.clip(goal + rng.normal(0, 2), 1, 99.9) / 100))
        confusion[i, [j for j in range(n) if j != i]] = rng.multinomial(per_class - right, kinship[i])
        confusion[i, i] = right
    recall = 100 * confusion.diagonal() / confusion.sum(1)
    precision = 100 * confusion.diagonal() / np.maximum(confusion.sum(0), 1)
    measured = 100 * float(confusion.trace() / confusion.sum())
    student, ema = "kd" in experiment, experiment.startswith("06")
    history = []
    for e in range(1, epochs + 1):
        t = e / epochs
        seen = measured * (1 - np.exp(-4 * t)) / (1 - np.exp(-4)) + float(rng.normal(0, 1.2 * (1 - t) + 0.1))
        entry = {
            "epoch": e, "train/loss": 2.2 - 1.2 * t, "train/ce": 2.1 - 1.1 * t, "train/top1": 0.8 * seen, "validation/top1": seen,
            "validation/loss": 2.0 - 1.3 * t, "lr": 6e-4 * 0.5 * (1 + np.cos(np.pi * t)), "perf/img_s": 9000.0,
        }  # fmt: skip
        if student:
            entry["train/kd"] = 1.8 - 1.0 * t
        if ema:
            entry |= {"validation/ema_top1": seen + 0.4, "ema_decay": 0.995 + 0.0045 * t}
        history.append({k: float(v) for k, v in entry.items()})
    metrics = {
        "test_top1": measured, "test_top5": min(measured + 4, 99.9), "test_loss": 0.9 - measured / 120,
        "test_raw_top1": measured - 0.3 * ema,
        "validation_top1": measured + 0.2,
    }  # fmt: skip
    if ema:
        metrics |= {"test_ema_top1": measured, "test_cls_top1": measured - 0.1, "test_dist_top1": measured - 0.2}
    teacher = None
    if student:
        name = "resnet18" if experiment.startswith("05") else "resnet50"
        own = 95.2 if name == "resnet18" else 95.6
        teacher = TeacherFacts(
            experiment=name, fingerprint=fake_print(name), seed=0, weights_sha256="ab" * 32, validation_top1=own + 0.1,
            test_top1=own, agreement=93.5, gain=measured - own,
        )  # fmt: skip
    facts = zip(classes, precision.tolist(), recall.tolist())
    values: dict[str, Any] = {
        "experiment": experiment, "title": title, "claim": claim, "profile": "full", "seed": seed, "fingerprint": fake_print(experiment),
        "dataset": DatasetFacts(
            name="cifar10", digest="c10" * 8, classes=classes, train=47_500, validation=2_500, test=per_class * n,
            mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262),
        ),
        "config": {
            "title": title, "description": "A plain vision transformer from scratch with crops and flips.",
            "model": {"name": "vit", "stem": "patch", "patch_size": 4, "dim": 256, "depth": 12, "heads": 8},
            "optim": {"name": "adamw", "lr": 6e-4}, "train": {"epochs": epochs, "batch_size": 192},
        },
        "metrics": metrics,
        "per_class": tuple(
            ClassFacts(name=c, precision=p, recall=r, f1=2 * p * r / max(p + r, 1e-9), accuracy=r, support=per_class) for c, p, r in facts
        ),
        "confusion": tuple(map(tuple, confusion.tolist())), "history": tuple(history), "params": params, "flops": int(flops),
        "train_seconds": seconds + 7.0 * seed, "img_s": 9000.0 + seed, "device": "NVIDIA H100 80GB HBM3", "precision": "bf16", "threads": 16,
        "versions": {"python": "3.11.7", "torch": "2.14.0", "vitlab": "0.1.0"}, "git": {"commit": "0123456789abcdef", "dirty": ""},
        "started": "2025-01-01T10:00:00+00:00", "finished": f"2025-01-01T1{seed % 10}:30:00+00:00", "teacher": teacher,
    }  # fmt: skip
    return RunRecord(**(values | changes))


def make_claim(text: str, top1: float | tuple[float, float] | None, top5: float | None = None, source: str = "a report") -> Claim:
    """`top1` may be a range."""
    said = {"low": top1[0], "high": top1[1]} if isinstance(top1, tuple) else {"top1": top1}
    return Claim(text=text, top5=top5, source=source, **said)


def fake_print(experiment: str) -> str:
    return hashlib.sha256(experiment.encode()).hexdigest()[:12]


def fake_set(seeds: int = 3, names: Sequence[str] = tuple(LADDER), **changes: Any) -> list[RunRecord]:
    return [fake_record(name, seed, **changes) for name in names for seed in range(seeds)]


def digits(run: RunRecord) -> RunRecord:
    return run.model_copy(update={"dataset": run.dataset.model_copy(update={"name": "digits"})})
