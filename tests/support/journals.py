"""Run folders as a training leaves them, for whatever ships them to MLflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitlab import records
from vitlab.records import ClassFacts, DatasetFacts, RunRecord, TeacherFacts
from vitlab.track.journal import Journal, RunInfo


def info(experiment: str, seed: int = 0, **changes: object) -> RunInfo:
    values = {
        "experiment": experiment, "variant": "", "label": experiment, "title": "A title", "profile": "overnight", "dataset": "cifar10",
        "dataset_digest": "d" * 64, "seed": seed, "fingerprint": "0123456789ab", "git_commit": "c0ffee", "git_dirty": "", "device": "a CPU",
        "params": {f"group.{i}": str(i) for i in range(130)}, "description": "What it is.", "params_count": 10, "flops": 20,
        "train": 30, "validation": 4, "test": 5,
    }  # fmt: skip
    return RunInfo(**values | changes)


def start(run_dir: Path, about: RunInfo, epochs: int = 2) -> Journal:
    run_dir.mkdir(parents=True, exist_ok=True)
    about.write(run_dir)
    journal = Journal(run_dir / "journal.jsonl")
    journal.append("event", text="started")
    for epoch in range(1, epochs + 1):
        journal.append("metrics", step=epoch, values={"train/loss": 1 / epoch, "lr": 0.1})
    return journal


def finish(run_dir: Path, top1: float = 72.0, teacher: bool = False) -> None:
    """Leave what a finished run leaves in its folder."""
    about = RunInfo.read(run_dir)
    taught = TeacherFacts(
        experiment="t", fingerprint="f", seed=0, weights_sha256="w", validation_top1=80, test_top1=81, agreement=90.5, gain=-2.25
    )
    data = DatasetFacts(
        name="cifar10", digest=about.dataset_digest, classes=("a", "b"), mean=(0.5,) * 3, std=(0.25,) * 3, train=30, validation=4, test=5
    )
    record = RunRecord(
        experiment=about.experiment, title=about.title, profile=about.profile, seed=about.seed, fingerprint=about.fingerprint,
        dataset=data,
        config={}, metrics={"test_top1": top1, "test_top5": 99.0, "validation_top1": 71.5},
        per_class=(ClassFacts(name="a", precision=1, recall=1, f1=1, accuracy=1, support=5),), confusion=((5, 0), (0, 0)),
        history=({"epoch": 1.0},), params=10, flops=20, train_seconds=12.54, img_s=345.0, device="a CPU", precision="fp32", threads=1,
        versions={}, git={}, started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:01:00+00:00",
        teacher=taught if teacher else None,
    )  # fmt: skip
    records.write(record, run_dir / "record.json")
    np.savez(run_dir / "predictions.npz", labels=np.arange(5))
    for name in ("config.yaml", "report.txt", "weights.safetensors", "figures/confusion.png"):
        (run_dir / name).parent.mkdir(exist_ok=True)
        (run_dir / name).write_text(f"{name} of {about.name}")
