"""Predictions are computed once, as logits in float32; every metric and picture is derived from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab import files
from vitlab.data.augment import normalize
from vitlab.ranking import ranked
from vitlab.records import ClassFacts


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor, mean: Tensor, std: Tensor, batch_size: int) -> Tensor:
    """images uint8 (N, 3, H, W) -> float32 (heads, N, C), on the images' device. Leaves the model in eval mode.

    Computed in float32 whatever training's precision: bf16 has 8 significant bits, so that many logits would tie.
    """
    model.eval()
    out = []
    for batch in images.split(batch_size):
        out.append(model.forward_heads(normalize(batch, mean, std)))
    return torch.cat(out, dim=1)


def ranking(scores: Tensor) -> Tensor:
    """scores (N, C) on any device -> (N, C) classes on the CPU, ordered by `ranked`."""
    return torch.from_numpy(ranked(scores.numpy(force=True)))


def accuracy(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """scores (N, C) logits, labels (N,) -> top1 and top5 in percent, loss in nats. Top-5 of fewer classes is top-C."""
    right = ranking(scores)[:, :5] == labels.cpu()[:, None]
    return {
        "top1": right[:, 0].float().mean().item() * 100,
        "top5": right.any(-1).float().mean().item() * 100,
        "loss": F.cross_entropy(scores, labels).item(),
    }


def confidence(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """scores (N, C) logits, labels (N,) -> in percent: the mean probability of the predicted class, how many images have it above
    0.9, and, where any has, how many of these are right."""
    probability, predicted = scores.softmax(-1).max(-1)
    sure = probability > 0.9
    told = {"confidence": probability.mean().item() * 100, "confidence_above_90": sure.float().mean().item() * 100}
    if sure.any():
        told["confidence_above_90_accuracy"] = (predicted == labels)[sure].float().mean().item() * 100
    return told


METRICS = (  # of the test split, in the record as test_<key>: each takes scores (N, C) and labels (N,), and returns {key: number}
    accuracy,
    confidence,
)


def measure(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """All of METRICS on scores (N, C) logits and labels (N,)."""
    return {key: value for metric in METRICS for key, value in metric(scores, labels).items()}


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """predicted and labels (N,) -> (C, C) counts, [true][predicted]."""
    from sklearn.metrics import confusion_matrix  # a second, which nothing needs while training; so below

    return confusion_matrix(labels.cpu(), predicted.cpu(), labels=range(classes))


def per_class(predicted: Tensor, labels: Tensor, names: tuple[str, ...]) -> tuple[ClassFacts, ...]:
    """predicted and labels (N,) -> precision, recall, F1 and accuracy of each class in percent; 0 where a class was never predicted."""
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(labels.cpu(), predicted.cpu(), labels=range(len(names)), zero_division=0)
    return tuple(
        ClassFacts(name=name, precision=100 * precision, recall=100 * recall, f1=100 * f1, accuracy=100 * recall, support=support)
        for name, precision, recall, f1, support in zip(names, *(values.tolist() for values in scores), strict=True)
    )


def classification_report(predicted: Tensor, labels: Tensor, names: tuple[str, ...]) -> str:
    """predicted and labels (N,) -> scikit-learn's table, in fractions."""
    from sklearn import metrics

    return metrics.classification_report(
        labels.cpu(), predicted.cpu(), labels=range(len(names)), target_names=names, digits=4, zero_division=0
    )


def sample_grid(scores: Tensor, labels: Tensor, count: int = 36) -> tuple[list[int], list[tuple[int, int, float]]]:
    """The first `count` test images, not picked by result: their indices, and (true, predicted, confidence in [0, 1]) of each."""
    predicted, confidence = ranking(scores[:count])[:, 0], scores[:count].softmax(-1).amax(-1)
    shown = [(int(t), int(p), float(c)) for t, p, c in zip(labels[:count], predicted, confidence, strict=True)]
    return list(range(len(shown))), shown


def write_predictions(path: Path, weights: dict[str, Tensor], labels: Tensor, heads: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """`weights` maps "raw" and, where there is one, "ema" to logits (heads, N, C); stored as logits_raw, logits_ema in float32."""
    arrays = {f"logits_{name}": z.cpu().numpy() for name, z in weights.items()}
    with files.replacing(path) as f:
        np.savez_compressed(f, labels=labels.cpu().numpy(), heads=np.array(heads), classes=np.array(classes), **arrays)
