"""Classify image files with a finished run: `vitlab predict IMAGE...`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from vitlab import checkpoint, config, records
from vitlab.augment import normalize
from vitlab.data import decode


def best_run(runs_dir: Path) -> Path:
    """The finished run with the best validation top-1, data sets with CIFAR-10's classes first. Raises ValueError where there is none."""
    found = []
    for path in runs_dir.glob("*/*/*/record.json"):
        record = records.read(path)
        found.append((record.dataset.name == "cifar10", record.metrics["validation_top1"], str(path.parent)))
    if not found:
        raise ValueError(
            f"no finished run below {runs_dir}; train one first, for example python runner.py experiments/01_baseline_vit.yaml"
        )
    return Path(max(found)[2])


def finished_model(folder: Path) -> tuple[nn.Module, records.RunRecord]:
    """The finished run's model, on the CPU, and its record. Raises ValueError, naming the file at fault."""
    record = records.read(folder / "record.json")
    try:
        cfg = TypeAdapter(config.Model).validate_json(json.dumps(record.config.get("model")), strict=True)
    except ValidationError as e:
        reason = e.errors()[0]["msg"]
        raise ValueError(
            f"{folder / 'record.json'}: config.model: {reason}; restore the record or train the run anew with --force"
        ) from None
    return checkpoint.load_model(folder / "weights.safetensors", cfg, len(record.dataset.classes)), record


def model_to_log(folder: Path) -> tuple[nn.Module, np.ndarray]:
    """For tracking.sync: the model, and two images of the size it takes."""
    return finished_model(folder)[0], np.zeros((2, 3, 32, 32), np.float32)


def classify(images: list[Path], folder: Path | None, runs_dir: Path) -> list[str]:
    """One line an image: its three likeliest classes with the probability in percent. Raises ValueError, naming the file at fault."""
    folder = folder or best_run(runs_dir)
    pixels = torch.stack([torch.from_numpy(decode(path).copy()) for path in images])  # (N, 3, 32, 32)
    model, record = finished_model(folder)
    with torch.inference_mode():
        inputs = normalize(pixels, torch.tensor(record.dataset.mean), torch.tensor(record.dataset.std))
        top = model(inputs).softmax(-1).topk(min(3, len(record.dataset.classes)))
    lines = [
        f"{record.title} ({record.experiment}, {record.profile}, {record.dataset.name}, test top-1 {record.metrics['test_top1']:.2f} %)"
    ]
    for path, values, indices in zip(images, top.values, top.indices, strict=True):
        guesses = ", ".join(f"{record.dataset.classes[i]} {v:.1%}" for v, i in zip(values.tolist(), indices.tolist(), strict=True))
        lines.append(f"{path}: {guesses}")
    return lines
