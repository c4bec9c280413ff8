"""Register a trained model in MLflow under an alias, and classify with one that is registered."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np

from vitlab import records
from vitlab.errors import UserError
from vitlab.records import RunRecord
from vitlab.run import predict, published
from vitlab.run.predict import Candidate
from vitlab.track import model, registry, shipping
from vitlab.track.store import shown_uri

SCORE = "vitlab.validation_top1"


def promote(folder: Path, root: Path, alias: str, force: bool) -> str:
    """Register the finished run, or the published weights, in `folder` and give it the alias; return a line for the user.

    Raises UserError where it is not finished, where it is worse on validation than the one that has the alias (unless `force`), and where
    MLflow's store cannot be reached.
    """
    registry.check_alias(alias)
    chosen = predict.at(folder)
    record, name = chosen.record, registry.name_of(chosen.record.dataset.name)
    with registry.reaching(root):
        present = registry.find(root, name, alias)
        before = f"; before: version {present.version}, {_said(present.tags)}" if present else ""
        if present and not force and record.metrics["validation_top1"] < float(present.tags.get(SCORE, "-inf")):
            raise UserError(
                f"{folder}: validation top-1 {record.metrics['validation_top1']:.2f} % is worse than that of {name}@{alias}, version "
                f"{present.version}, {_said(present.tags)}; --force promotes it all the same"
            )
        run_id, model_id = _logged(folder, chosen, root)
        tags = _tags(record)
        version = registry.register(root, name, model_id, run_id, tags, f"{record.title}: {_said(tags)}")
        registry.set_alias(root, version, alias)
    moved = before if present and present.version != version.version else ""
    return f"models:/{name}@{alias} is version {version.version}: {record.title}, {_said(tags)}{moved}"


def registered(uri: str, root: Path) -> Candidate:
    """Return the model that `uri` names: models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises UserError for another form, for a model that is not registered, and where MLflow's store cannot be reached.
    """
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not parts:
        raise UserError(f"--model {uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION, for example models:/vitlab-cifar10@champion")
    with registry.reaching(root), tempfile.TemporaryDirectory() as tmp:
        version = registry.find(root, parts[1], parts[2] or "", parts[3] or "")
        if version is None:
            raise UserError(f"{uri}: not in the registry of {shown_uri(root)}; 'vitlab promote RUN --as champion' registers a model")
        record = records.read(registry.fetch(root, version, "record.json", Path(tmp)))
        content = registry.fetch(root, version, published.WEIGHTS, Path(tmp)).read_bytes()
        return predict.of(record, content, f"{uri}, version {version.version}")


def _logged(folder: Path, chosen: Candidate, root: Path) -> tuple[str, str]:
    """Return the ids of the run, "" for none, and of its model in MLflow; shipped now where they are not there yet."""
    if not (folder / "run.json").is_file():  # published, or exported: of a run elsewhere
        return "", model.log_alone(root, chosen.record, chosen.weights(), chosen.load(), np.zeros((2, 3, 32, 32), np.float32))
    shipping.note(folder, "FINISHED", None)
    shipping.ship_noted(folder, root, lambda: predict.model_to_log(folder))
    at = shipping.arrived(folder, root)
    assert at is not None, folder  # a finished run has a journal
    return at.run_id, at.model_id


def _tags(record: RunRecord) -> dict[str, str]:
    values = (record.experiment, record.variant, record.fingerprint, str(record.seed))
    return dict(zip(registry.IDENTITY, values, strict=True)) | {
        "vitlab.profile": record.profile,
        "vitlab.finished": record.finished,
        "vitlab.test_top1": repr(record.metrics["test_top1"]),
        SCORE: repr(record.metrics["validation_top1"]),
    }


def _said(tags: dict[str, str]) -> str:
    """Return whose version it is, in words."""
    if SCORE not in tags:
        return "not registered by vitlab"
    whose = " ".join(filter(None, (tags["vitlab.experiment"], tags["vitlab.variant"])))
    return (
        f"{whose}, profile {tags['vitlab.profile']}, seed {tags['vitlab.seed']}, validation top-1 {float(tags[SCORE]):.2f} %, "
        f"test top-1 {float(tags['vitlab.test_top1']):.2f} %"
    )
