"""What claims compare: the value of a metric for a run's record, or for a configuration alone. Nothing is trained here, and no torch is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from vitlab import config
from vitlab.errors import UserError
from vitlab.models import cost
from vitlab.records import RunRecord

EXACT = ("params", "gflops", "gflops_last_third")  # functions of the configuration: nothing to train, nothing to estimate
UNITS = {
    "params": "M parameters",
    "gflops": "GFLOPs",
    "gflops_last_third": "GFLOPs",
    "teacher_gain": "points",
    "confusion_lead": "images",
    "confusion_either": "images",
    "class_lead": "points",
    "class_lag": "points",
}


class NotRecorded(UserError):
    """A record has no such metric: its name is misspelt, or the metric is newer than the record."""


def measure(record: RunRecord, metric: str) -> float:
    """Return one run's value of a metric that is not in EXACT.

    Raises UserError for an impossible metric, NotRecorded where the record lacks it.
    """
    name, *classes = metric.split(".")
    if metric == "teacher_gain" and record.teacher is not None:
        return record.teacher.gain
    if metric == "train_loss" and record.history and "train/loss" in record.history[-1]:
        return record.history[-1]["train/loss"]
    count, compute = OF_CLASSES.get(name, (0, None))
    if compute is not None and len(classes) == count:
        if unknown := set(classes) - set(record.dataset.classes):
            names = ", ".join(record.dataset.classes)
            wanted = ("one", "two")[count - 1]
            raise UserError(f"{metric}: {record.dataset.name} has no class {', '.join(sorted(unknown))}; expected {wanted} of {names}")
        if name.startswith("confusion_") and classes[0] == classes[1]:
            raise UserError(f"{metric}: expected two different classes")
        return compute(record, *classes)
    if metric in record.metrics:
        return record.metrics[metric]
    known = ", ".join(sorted(record.metrics))
    raise NotRecorded(
        f"{metric}: not in the record of {record.experiment}; expected {known}, train_loss, teacher_gain, "
        "confusion[_lead|_either].A.B or class_[lead|lag].A"
    )


def _confusion(record: RunRecord, true: str, predicted: str) -> float:
    names = record.dataset.classes
    row = record.confusion[names.index(true)]
    if not sum(row):
        raise UserError(f"confusion.{true}.{predicted}: {record.dataset.name} has no test image of {true}")
    return 100 * row[names.index(predicted)] / sum(row)


def _confusion_either(record: RunRecord, a: str, b: str) -> float:
    i, j = record.dataset.classes.index(a), record.dataset.classes.index(b)
    return float(record.confusion[i][j] + record.confusion[j][i])


def _confusion_lead(record: RunRecord, a: str, b: str) -> float:
    pairs = itertools.combinations(record.dataset.classes, 2)
    return _confusion_either(record, a, b) - max(_confusion_either(record, *pair) for pair in pairs if {*pair} != {a, b})


def _class_lead(record: RunRecord, name: str) -> float:
    own, others = _accuracies(record, name)
    return own - max(others)


def _class_lag(record: RunRecord, name: str) -> float:
    own, others = _accuracies(record, name)
    return min(others) - own


def _accuracies(record: RunRecord, name: str) -> tuple[float, list[float]]:
    """Return the class's accuracy, and those of all other classes, in percent."""
    by_class = {other: _confusion(record, other, other) for other in record.dataset.classes}
    return by_class.pop(name), list(by_class.values())


# Metrics of named classes: of how many, and how they are computed.
OF_CLASSES: dict[str, tuple[int, Callable[..., float]]] = {
    "confusion": (2, _confusion),
    "confusion_either": (2, _confusion_either),
    "confusion_lead": (2, _confusion_lead),
    "class_lead": (1, _class_lead),
    "class_lag": (1, _class_lag),
}


def exact(resolved: config.Resolved, metric: str, classes: int) -> float:
    """Return the value of a metric in EXACT: parameters in millions, or GFLOPs of an image's forward pass.

    Raises UserError where the model has no such metric.
    """
    model = resolved.config.model
    if metric == "params":
        return cost.parameters(model, classes) / 1e6
    if metric == "gflops":
        return cost.forward_flops(model, classes) / 1e9
    if not isinstance(model, config.ViT):
        raise UserError(f"{metric}: {resolved.label} is no ViT, so it has no blocks")
    return cost.late_flops(model) / 1e9
