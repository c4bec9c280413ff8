"""CIFAR-10 and CIFAR-100 in small: pickles in torchvision's format, whose sizes and md5s stand in for the real ones."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from vitlab.data import sources

NAMES = ("cifar10", "cifar100")


def small(monkeypatch: pytest.MonkeyPatch, name: str, images: int = 40) -> dict[str, bytes]:
    """Each file's content, by name. Batches have `images` of noise, numbered through all of them in their first pixel; labels in turn."""
    cifar = sources.CIFARS[name]
    theirs = getattr(torchvision.datasets, cifar.torchvision)
    labels = "labels" if name == "cifar10" else "fine_labels"
    batches, files = [n for n, _ in theirs.train_list + theirs.test_list], {}
    for b, batch in enumerate(batches):
        pixels = np.random.default_rng(b).integers(0, 256, (images, 3072), dtype=np.uint8)
        pixels[:, 0] = np.arange(b * images, (b + 1) * images) % 256
        files[batch] = pickle.dumps({"data": pixels, labels: [i % len(cifar.classes) for i in range(images)]}, protocol=2)
    files[theirs.meta["filename"]] = pickle.dumps({theirs.meta["key"]: list(cifar.classes)}, protocol=2)
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    sums = {file: (None if cifar.files[file][0] is None else len(content), md5[file]) for file, content in files.items()}
    monkeypatch.setitem(sources.CIFARS, name, dataclasses.replace(cifar, files=sums))
    monkeypatch.setattr(theirs, "train_list", [[n, md5[n]] for n, _ in theirs.train_list])
    monkeypatch.setattr(theirs, "test_list", [[n, md5[n]] for n, _ in theirs.test_list])
    monkeypatch.setattr(theirs, "meta", theirs.meta | {"md5": md5[theirs.meta["filename"]]})
    return files


def place(name: str, files: dict[str, bytes], data_dir: Path) -> Path:
    """Write the files where a data folder has them; returns their folder."""
    folder = data_dir / sources.CIFARS[name].folder
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def archive(monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes], folder: Path) -> Path:
    """The files as the data set's archive in `folder`."""
    cifar = sources.CIFARS[name]
    path = folder / cifar.archive[0]
    folder.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for file, content in files.items():
            info = tarfile.TarInfo(f"{cifar.folder}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(sources.CIFARS, name, dataclasses.replace(cifar, archive=(path.name, path.stat().st_size, md5)))
    monkeypatch.setattr(getattr(torchvision.datasets, cifar.torchvision), "tgz_md5", md5)
    return path
