"""Classify image files with a finished run: `vitlab predict IMAGE...`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from vitlab import checkpoint, config, evaluate, published, records
from vitlab.augment import normalize
from vitlab.data import decode
from vitlab.errors import UserError


def best_run(runs_dir: Path) -> Path | None:
    """The finished run with the best validation top-1, data sets with CIFAR-10's classes first; None where there is none."""
    found = []
    for path in runs_dir.glob("*/*/*/record.json"):
        record = records.read(path)
        found.append((record.dataset.name == "cifar10", record.metrics["validation_top1"], str(path.parent)))
    return Path(max(found)[2]) if found else None


def finished_model(folder: Path) -> tuple[nn.Module, records.RunRecord]:
    """The finished run's model, on the CPU, and its record. Raises UserError, naming the file at fault."""
    record = records.read(folder / "record.json")
    cfg = _model_config(record, folder / "record.json")
    return checkpoint.load_model(folder / published.WEIGHTS, cfg, len(record.dataset.classes)), record


def published_model(out_dir: Path) -> tuple[nn.Module, records.RunRecord]:
    """The model published with a set, on the CPU, and its record. Raises UserError, naming the file at fault."""
    record, content = published.read(out_dir, records.read_all(out_dir))
    cfg = _model_config(record, out_dir / "records" / records.file_name(record))
    try:
        return checkpoint.parse_model(content, cfg, len(record.dataset.classes)), record
    except UserError as e:
        raise published.unusable(out_dir, e) from None


def _model_config(record: records.RunRecord, path: Path) -> config.ViT | config.ResNet:
    """Raises UserError where the record, which was read from `path`, has none that this vitlab knows."""
    try:
        return TypeAdapter(config.Model).validate_json(json.dumps(record.config.get("model")), strict=True)
    except ValidationError as e:
        reason = e.errors()[0]["msg"]
        raise UserError(f"{path}: config.model: {reason}; restore the record or train the run anew with --force") from None


def model_to_log(folder: Path) -> tuple[nn.Module, np.ndarray]:
    """For tracking.sync: the model, and two images of the size it takes."""
    return finished_model(folder)[0], np.zeros((2, 3, 32, 32), np.float32)


def classify(images: list[Path], folder: Path | None, runs_dir: Path, results_dir: Path) -> list[str]:
    """One line of whose model it is: the run's in `folder`, else the best run's, else the published one's. Then one an image: its three
    likeliest classes with the probability in percent. Raises UserError, naming the file at fault, and where there is no model."""
    folder = folder or best_run(runs_dir)
    out_dir = None if folder else published.first(results_dir)
    pixels = torch.stack([torch.from_numpy(decode(path).copy()) for path in images])  # (N, 3, 32, 32)
    if folder is not None:
        (model, record), origin = finished_model(folder), ""
    elif out_dir is not None:
        (model, record), origin = published_model(out_dir), f"no finished run here, so the published one, {out_dir / published.FILE}: "
    else:
        train = "train one first, for example python runner.py experiments/01_baseline_vit.yaml"
        raise UserError(f"no finished run below {runs_dir}, and none published below {results_dir}; {train}")
    with torch.inference_mode():
        inputs = normalize(pixels, torch.tensor(record.dataset.mean), torch.tensor(record.dataset.std))
        scores = model(inputs)  # (N, C)
    top = evaluate.ranking(scores)[:, :3]
    shares = scores.softmax(-1).gather(-1, top)
    lines = [
        f"{origin}{record.title} ({record.experiment}, {record.profile}, {record.dataset.name}, test top-1 {record.metrics['test_top1']:.2f} %)"
    ]
    for path, values, indices in zip(images, shares, top, strict=True):
        guesses = ", ".join(f"{record.dataset.classes[i]} {v:.1%}" for v, i in zip(values.tolist(), indices.tolist(), strict=True))
        lines.append(f"{path}: {guesses}")
    return lines
