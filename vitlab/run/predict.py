"""Classify image files with a finished run or published weights: `vitlab predict IMAGE...`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from vitlab import config, records
from vitlab.data import sources
from vitlab.data.augment import normalize
from vitlab.data.dataset import decode
from vitlab.errors import UserError
from vitlab.run import published
from vitlab.train import checkpoint, evaluate


class Candidate(NamedTuple):
    """A model that could classify images."""

    record: records.RunRecord
    origin: str  # whether it is an own run or published, and where it lies
    load: Callable[[], nn.Module]  # on the CPU
    weights: Callable[[], bytes]  # safetensors, as they lie there


def own(folder: Path) -> Candidate:
    """Return the finished run in `folder`. Raises UserError where its record is missing or damaged; `load` raises it for the weights."""
    record = records.read(folder / "record.json")

    def load() -> nn.Module:
        cfg = _model_config(record, folder / "record.json")
        return checkpoint.load_model(folder / published.WEIGHTS, cfg, len(record.dataset.classes))

    return Candidate(record, f"own run {folder}", load, (folder / published.WEIGHTS).read_bytes)


def at(path: Path) -> Candidate:
    """Return the finished run in the folder `path`, the best model of the published set there, or the one in this file of published weights.

    Raises UserError where there is none of these, and as `own` does.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder; expected a finished run's, as below runs/, or a published set's, as below results/")
    if path.is_file() and path.parent.name == published.FOLDER and path.suffix == published.SUFFIX:
        return _published(path, published.find(path.parent.parent, published.read_records(path.parent.parent))[path])
    if models := published_in(path):
        best = published.best(model.record for model in models)
        return next(model for model in models if model.record is best)
    if (path / "journal.jsonl").is_file() and not (path / "record.json").exists():
        raise UserError(f"{path}: this run is not finished; the command that started it goes on from its last checkpoint")
    if not (path / "record.json").exists():
        raise UserError(
            f"{path}: neither a finished run (it has no record.json) nor a published set with weights (no {published.FOLDER}/); "
            "'vitlab runs' lists the runs of this checkout, and results/ has the published sets"
        )
    return own(path)


def published_in(out_dir: Path) -> list[Candidate]:
    """Return the models whose weights are published in `out_dir`, by experiment, teachers last; none where it is no such set.

    Raises UserError, naming the file, where one is damaged or of none of the set's runs.
    """
    if not (out_dir / published.FOLDER).is_dir():
        return []
    found = published.find(out_dir, published.read_records(out_dir))
    return [_published(path, run) for path, run in found.items()]


def of(record: records.RunRecord, content: bytes, origin: str) -> Candidate:
    """Return the model of this record with the weights in `content`, safetensors; `load` raises UserError where they are no such thing."""

    def load() -> nn.Module:
        try:
            return checkpoint.parse_model(content, _model_config(record, Path(origin)), len(record.dataset.classes))
        except UserError as e:
            raise UserError(f"{origin}: cannot be used as the run's weights ({e})") from None

    return Candidate(record, origin, load, lambda: content)


def _published(path: Path, record: records.RunRecord) -> Candidate:
    """Return the model of this record with the published weights in the file `path`."""

    def load() -> nn.Module:
        cfg = _model_config(record, path.parent.parent / "records" / records.file_name(record))
        try:
            return checkpoint.parse_model(path.read_bytes(), cfg, len(record.dataset.classes))
        except UserError as e:
            raise published.unusable(path, e) from None

    return Candidate(record, f"published weights {path}", load, path.read_bytes)


def _model_config(record: records.RunRecord, path: Path) -> config.Schema:
    """Return the configuration of the record's model. Raises UserError, naming the record's file `path`, for one unknown to this vitlab."""
    try:
        return TypeAdapter(config.Model).validate_json(json.dumps(record.config.get("model")), strict=True)
    except ValidationError as e:
        reason = e.errors()[0]["msg"]
        raise UserError(f"{path}: config.model: {reason}; restore the record or train the run anew with --force") from None


def model_to_log(folder: Path) -> tuple[nn.Module, np.ndarray]:
    """Return a finished run's model, and two images of the size it takes, as shipping.sync needs them."""
    return own(folder).load(), np.zeros((2, 3, 32, 32), np.float32)


def best(data: str, runs_dir: Path, results_dir: Path) -> Candidate:
    """Return the best model for the data set `data`, which is named as --data names it, of the own finished runs and the published weights.

    `published.best` decides: by validation top-1, teachers aside. Raises UserError where there is none, and for a damaged file.
    """
    name = sources.name_of(data)
    mine, sets = [own(path.parent) for path in sorted(runs_dir.glob("*/*/*/record.json"))], published.sets(results_dir)
    found = [
        c for c in mine if c.record.dataset.name == name
    ]  # own runs first: where one is also published, its own weights are the exact ones
    for out_dir, runs in sets.items():
        if runs[0].dataset.name == name:
            found += published_in(out_dir)
    chosen = published.best(c.record for c in found)
    if chosen is not None:
        return next(c for c in found if c.record is chosen)
    others = {c.record.dataset.name for c in mine}.union(runs[0].dataset.name for runs in sets.values()) - {name}
    at_hand = f", or choose another data set's model with {' or '.join(f'--data {n}' for n in sorted(others))}" if others else ""
    raise UserError(
        f"no model for the data set {name}: no finished run of it below {runs_dir} (variations by --set aside), and no weights published "
        f"below {results_dir}; train one, for example with 'vitlab run 05_kd_r18 --data {shlex.quote(data)}', "
        f"name a finished run with --run FOLDER{at_hand}"
    )


def classify(images: list[Path], chosen: Candidate) -> list[str]:
    """Return lines for the user: one about the model, then one per image with its three likeliest classes in percent.

    Raises UserError, naming the file, for an image or weights that cannot be read.
    """
    pixels = torch.stack([torch.from_numpy(decode(path).copy()) for path in images])  # (N, 3, 32, 32)
    model, record = chosen.load(), chosen.record
    with torch.inference_mode():
        inputs = normalize(pixels, torch.tensor(record.dataset.mean), torch.tensor(record.dataset.std))
        scores = model(inputs)  # (N, C)
    top = evaluate.ranking(scores)[:, :3]
    shares = scores.softmax(-1).gather(-1, top)
    which = " ".join(filter(None, (record.experiment, record.variant)))
    lines = [
        f"{record.title} ({which}, profile {record.profile}, seed {record.seed}), trained on {record.dataset.name}, "
        f"validation top-1 {record.metrics['validation_top1']:.2f} %, test top-1 {record.metrics['test_top1']:.2f} %: {chosen.origin}"
    ]
    for path, values, indices in zip(images, shares, top, strict=True):
        guesses = ", ".join(f"{record.dataset.classes[i]} {v:.1%}" for v, i in zip(values.tolist(), indices.tolist(), strict=True))
        lines.append(f"{path}: {guesses}")
    return lines
