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


def confusion(scores: Tensor, labels: Tensor) -> np.ndarray:
    """(C, C) counts, [true][predicted]."""
    classes = scores.shape[-1]
    predicted = ranking(scores)[:, 0]
    return torch.bincount(labels.cpu() * classes + predicted, minlength=classes * classes).view(classes, classes).numpy()


def per_class(counts: np.ndarray, names: tuple[str, ...]) -> tuple[ClassFacts, ...]:
    """Precision, recall, F1 and accuracy of each class in percent, from a confusion matrix; 0 where a class was never predicted."""
    hit, support, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    facts = []
    for i, name in enumerate(names):
        precision = 100 * hit[i] / max(1, predicted[i])
        recall = 100 * hit[i] / max(1, support[i])
        f1 = 2 * precision * recall / (precision + recall) if hit[i] else 0.0
        facts.append(ClassFacts(name=name, precision=precision, recall=recall, f1=f1, accuracy=recall, support=int(support[i])))
    return tuple(facts)


def classification_report(facts: tuple[ClassFacts, ...], top1: float) -> str:
    """The table that scikit-learn's classification_report prints, in percent, with each class's accuracy."""
    width = max(12, *(len(f.name) for f in facts))
    lines = [f"{'':{width}} precision  recall      f1  accuracy  support"]
    lines += [f"{f.name:{width}} {f.precision:9.2f} {f.recall:7.2f} {f.f1:7.2f} {f.accuracy:9.2f} {f.support:8d}" for f in facts]
    mean = [np.mean([getattr(f, k) for f in facts]) for k in ("precision", "recall", "f1")]
    total = sum(f.support for f in facts)
    lines += ["", f"{'macro average':{width}} {mean[0]:9.2f} {mean[1]:7.2f} {mean[2]:7.2f} {'':9} {total:8d}"]
    lines += [f"{'all':{width}} {'':9} {'':7} {'':7} {top1:9.2f} {total:8d}", ""]
    return "\n".join(lines)


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
