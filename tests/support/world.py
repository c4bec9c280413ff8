"""A folder that the commands take for the repository's own, with a finished and an interrupted run; no network, no MLflow."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import signal
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.datasets import CIFAR10

from vitlab import claiming, cli, config, exporting, listing, records
from vitlab.data import dataset, sources
from vitlab.models import registry
from vitlab.records import ClassFacts, DatasetFacts, RunRecord
from vitlab.run import execute, plan
from vitlab.train import loop

TINY = """\
title: Tiny
model: {name: vit, dim: 8, depth: 1, heads: 1, patch_size: 16}
phases: [{name: all}]
optim: {name: adamw, lr: 1e-3}
train: {epochs: 1, batch_size: 32}
data: {train_limit: 100, test_limit: 20}
"""
TAUGHT = TINY.replace("Tiny", "Taught") + "distill: {teacher: tiny.yaml}\n"
CLASSES = tuple("0123456789")


class NoShipper:
    """MLflow has no part in what is tested here, and takes seconds to start."""

    outstanding = ""

    def __init__(self, *_: object) -> None: ...
    def notify(self, *_: object) -> None: ...
    def close(self, *_: object, **__: object) -> None: ...

    def finish(self, *_: object, **__: object) -> None: ...
    def arrived(self, *_: object) -> bool:
        return True


class Silent:
    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None: ...
    def step(self, *_: object) -> None: ...
    def epoch(self, *_: object) -> None: ...


@dataclass(frozen=True)
class World:
    """A folder to work in: `tiny.yaml` was trained to the end, `other.yaml` was interrupted, `taught.yaml` has tiny as its teacher."""

    root: Path
    patch: pytest.MonkeyPatch

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def folder(self, name: str) -> Path:
        """Of the run of `name`.yaml, finished or interrupted."""
        (path,) = (self.root / "runs" / "full-digits" / name).iterdir()
        return path

    def train(self, name: str) -> list[object]:
        return [self.root / f"{name}.yaml", "--profile", "full", "--data", "digits"]

    def predict(self, *images: object) -> list[object]:
        return ["predict", *(images or [self.image()]), "--run", self.folder("tiny")]

    def image(self, name: str = "image.png", size: tuple[int, int] = (40, 40), **options: Any) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path, **options)
        return path

    def images(self, *class_folders: str, n: int = 10) -> Path:
        """A data set in the folder `set`."""
        for folder in class_folders:
            for i in range(n):
                self.image(f"set/{folder}/{i}.png", (8, 8))
        return self.root / "set"

    def change(self, name: str, **changes: Any) -> None:
        """Change the record of the run of `name`.yaml; None takes a key away."""
        path = self.folder(name) / "record.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    def cifar10(self) -> Path:
        """A data folder with CIFAR-10 in files of a few bytes, whose sizes and md5s stand in for the real ones."""
        cifar = sources.CIFARS["cifar10"]
        folder = self.root / "data" / cifar.folder
        files = {name: f"{name} of ten images".encode() for name in cifar.files}
        sums = {name: (len(content), hashlib.md5(content).hexdigest()) for name, content in files.items()}
        self.patch.setitem(sources.CIFARS, "cifar10", replace(cifar, files=sums))
        for name, content in files.items():
            self.write(folder / name, content)
        return folder.parent

    def archive(self) -> Path:
        """A data folder with CIFAR-10's archive, for which a few bytes stand in."""
        cifar = sources.CIFARS["cifar10"]
        path = self.root / "data" / cifar.archive[0]
        path.parent.mkdir()
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("batches.meta"), io.BytesIO())
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        self.patch.setitem(sources.CIFARS, "cifar10", replace(cifar, archive=(path.name, path.stat().st_size, md5)))
        return path.parent


def template(root: Path) -> None:
    """Fill `root` with what World speaks of. Digits, a model of a thousand parameters, and one step of training."""
    for name, text in (("tiny", TINY), ("other", TINY.replace("dim: 8", "dim: 12")), ("taught", TAUGHT)):
        (root / f"{name}.yaml").write_text(text)
    source = sources.resolve("digits", root, "full")
    tiny, other = plan.make([root / "tiny.yaml", root / "other.yaml"], "full", source, [0], (), root / "runs")
    tiny.folder.mkdir(parents=True)
    finished(tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "Shipper", NoShipper)
        loaded = dataset.load(source, other.resolved.config.data, "cpu")
        stop = loop.Stop(signal.SIGINT)
        with pytest.raises(loop.Interrupted):
            execute.execute(other, loaded, lambda n: Silent(), stop, lambda text: None, contextlib.ExitStack())


def finished(run: plan.Run) -> None:
    """Leave a record, weights and predictions in the run's folder; none of them measured."""
    cfg = run.resolved.config
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in registry.build(cfg.model, 10).state_dict().items()}, run.folder / "weights.safetensors")
    np.savez(run.folder / "predictions.npz", logits_raw=np.zeros((1, 20, 10), np.float32))
    record = RunRecord(
        experiment=run.resolved.id, title=cfg.title, profile="full", seed=run.seed, fingerprint=run.fingerprint, config=config.plain(cfg),
        dataset=DatasetFacts(name="digits", digest="0" * 32, classes=CLASSES, train=95, validation=5, test=20, mean=(0.5,) * 3, std=(0.2,) * 3),
        metrics={"test_top1": 10.0, "test_top5": 50.0, "validation_top1": 10.0},
        per_class=tuple(ClassFacts(name=c, precision=10, recall=10, f1=10, accuracy=10, support=2) for c in CLASSES),
        confusion=((2,) * 10,) * 10, history=({"epoch": 1.0},), params=run.params, flops=run.flops, train_seconds=1.0, img_s=95.0,
        device="a CPU", precision="fp32", threads=1, versions={}, git={}, started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
    )  # fmt: skip
    records.write(record, run.folder / "record.json")


def enter(root: Path, template_folder: Path, patch: pytest.MonkeyPatch) -> World:
    """A copy of the template that the commands take for the repository's own folder, on a machine without a network or MLflow."""
    shutil.copytree(template_folder, root, dirs_exist_ok=True, symlinks=True)
    for name, value in (("ROOT", root), ("RUNS", root / "runs"), ("REPORTS", root / "reports"), ("RESULTS", root / "results")):
        patch.setattr(cli, name, value)
        if name != "ROOT":
            patch.setattr(claiming, name, value)
    patch.setattr(exporting, "ROOT", root)
    patch.setattr(exporting, "RUNS", root / "runs")
    patch.setattr(listing, "RUNS", root / "runs")
    patch.setattr(execute, "ROOT", root)
    patch.setattr(execute, "Shipper", NoShipper)
    patch.setattr("vitlab.track.store.prepare_store", lambda root: "")
    patch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nobody listens there
    for name in ("http_proxy", "https_proxy", "all_proxy", "MLFLOW_TRACKING_URI"):
        patch.delenv(name, raising=False)
        patch.delenv(name.upper(), raising=False)
    patch.chdir(root)
    return World(root, patch)
