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
from vitlab.records import Bin, ClassFacts
from vitlab.train import distributed

BINS = 15  # of confidence, for calibration


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor, mean: Tensor, std: Tensor, batch_size: int) -> Tensor:
    """Return the logits of uint8 images (N, 3, H, W): float32 (heads, N, C), on the images' device. Leaves the model in eval mode.

    Computed in float32 whatever the precision of training: bf16 has 8 significant bits, so many logits would tie. On a GPU its products
    round their factors to TF32, 11 significant bits, and add in float32. Of several processes that call this together each computes a part,
    and all return the whole.
    """
    model.eval()
    out = []
    for batch in distributed.my_rows(images).split(batch_size):
        out.append(model.forward_heads(normalize(batch, mean, std)))
    return distributed.all_rows(torch.cat(out, dim=1), dim=1)


def ranking(scores: Tensor) -> Tensor:
    """Return the classes (N, C) of scores (N, C), in the order of `ranked`; on the CPU, wherever the scores are."""
    return torch.from_numpy(ranked(scores.numpy(force=True)))


def percent(true: Tensor) -> float:
    """Return how many percent of a boolean tensor (N,) are true, N > 0: a ratio of counts, where a mean in float32 would give 85.5899989 for 85.59."""
    return 100 * int(true.sum()) / len(true)


def accuracy(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return top1 and top5 in percent, and loss in nats, of logits `scores` (N, C) and labels (N,). With C < 5 classes top5 is top-C."""
    right = ranking(scores)[:, :5] == labels.cpu()[:, None]
    return {
        "top1": percent(right[:, 0]),
        "top5": percent(right.any(-1)),
        "loss": F.cross_entropy(scores, labels).item(),
    }


def confidence(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the confidence in percent, of logits `scores` (N, C) and labels (N,).

    It is the mean probability of the predicted class, the share of images in which that is above 0.9, and, if there are such images, the
    share of them that are right.
    """
    probability, predicted = scores.softmax(-1).max(-1)
    sure = probability > 0.9
    values = {"confidence": probability.mean().item() * 100, "confidence_above_90": percent(sure)}
    if sure.any():
        values["confidence_above_90_accuracy"] = percent((predicted == labels)[sure])
    return values


def calibration(scores: Tensor, labels: Tensor) -> tuple[Bin, ...]:
    """Return the images of logits `scores` (N, C) in BINS ranges of equal width of their confidence, empty ones left out (Guo et al. 2017)."""
    probability, predicted = scores.softmax(-1).max(-1)
    right, which = predicted == labels, (probability * BINS).ceil().clamp(1, BINS)
    bins = [which == i for i in range(1, BINS + 1)]
    return tuple(
        Bin(confidence=probability[b].mean().item() * 100, accuracy=percent(right[b]), count=int(b.sum())) for b in bins if b.any()
    )


def calibration_error(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the expected calibration error of logits `scores` (N, C) and labels (N,), in points: the mean over images of the distance
    between their bin's confidence and accuracy.
    """
    bins = calibration(scores, labels)
    return {"calibration_error": sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / len(labels)}


METRICS = (  # of the test split, in the record as test_<key>: each takes scores (N, C) and labels (N,), and returns {key: number}
    accuracy,
    confidence,
    calibration_error,
)


def measure(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return all of METRICS for logits `scores` (N, C) and labels (N,)."""
    return {key: value for metric in METRICS for key, value in metric(scores, labels).items()}


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """Return the counts (C, C), [true][predicted], for predicted classes and labels, both (N,)."""
    from sklearn.metrics import confusion_matrix  # late, as below: it takes a second, and training does without

    return confusion_matrix(labels.cpu(), predicted.cpu(), labels=range(classes))


def per_class(predicted: Tensor, labels: Tensor, names: tuple[str, ...]) -> tuple[ClassFacts, ...]:
    """Return each class's precision, recall, F1 and accuracy in percent, for predicted classes and labels, both (N,).

    Precision and F1 are 0 for a class that was never predicted.
    """
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(labels.cpu(), predicted.cpu(), labels=range(len(names)), zero_division=0)
    return tuple(
        ClassFacts(name=name, precision=100 * precision, recall=100 * recall, f1=100 * f1, accuracy=100 * recall, support=support)
        for name, precision, recall, f1, support in zip(names, *(values.tolist() for values in scores), strict=True)
    )


def classification_report(predicted: Tensor, labels: Tensor, names: tuple[str, ...]) -> str:
    """Return scikit-learn's table as text, in fractions, for predicted classes and labels, both (N,)."""
    from sklearn import metrics

    return metrics.classification_report(
        labels.cpu(), predicted.cpu(), labels=range(len(names)), target_names=names, digits=4, zero_division=0
    )


def first(count: int, total: int) -> list[int]:
    """Return the indices of the first `count` of `total` test images: not picked by result."""
    return list(range(min(count, total)))


def surest_mistakes(scores: Tensor, labels: Tensor, count: int) -> list[int]:
    """Return the indices of the wrongly classified images with the most confidence, at most `count`, the surest first.

    scores: logits (N, C), labels: (N,). Of equal confidence the earlier image comes first.
    """
    wrong = (ranking(scores)[:, 0] != labels.cpu()).nonzero()[:, 0]
    sure = scores.softmax(-1).amax(-1).cpu()[wrong]
    return wrong[sure.argsort(descending=True, stable=True)][:count].tolist()


def guesses(scores: Tensor, labels: Tensor, rows: list[int]) -> list[tuple[int, int, float]]:
    """Return (true class, predicted class, confidence in 0..1) of the images `rows`, for logits `scores` (N, C) and labels (N,)."""
    of = scores[rows]
    predicted, sure = ranking(of)[:, 0], of.softmax(-1).amax(-1)
    return [(int(t), int(p), float(c)) for t, p, c in zip(labels[rows], predicted, sure, strict=True)]


def write_predictions(path: Path, weights: dict[str, Tensor], labels: Tensor, heads: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """Write logits, labels (N,), and the names of heads and classes to the .npz file `path`. Raises DiskFull.

    `weights` maps "raw" and, where there is one, "ema" to logits (heads, N, C), which are stored in float32 as logits_raw and logits_ema.
    """
    arrays = {f"logits_{name}": z.cpu().numpy() for name, z in weights.items()}
    with files.replacing(path) as f:
        np.savez_compressed(f, labels=labels.cpu().numpy(), heads=np.array(heads), classes=np.array(classes), **arrays)
