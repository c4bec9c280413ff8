"""Metrics against scikit-learn and torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sk

from vitlab import config
from vitlab.data.augment import normalize
from vitlab.models import registry
from vitlab.ranking import ranked
from vitlab.train import evaluate

NAMES = tuple("ABCDE")


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (200,))
    scores = torch.randn(200, 5) + 1.5 * F.one_hot(labels, 5)
    scores[:, 4] = -9  # a class that is never predicted
    return scores, labels


def test_accuracy_equals_scikit_learns(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(1)
    scores, labels = torch.randn(300, 10), torch.randint(0, 10, (300,))
    got = evaluate.accuracy(scores, labels)
    right = sk.accuracy_score(labels, scores.argmax(-1), normalize=False), sk.top_k_accuracy_score(labels, scores, k=5, normalize=False)
    assert (got["top1"], got["top5"]) == tuple(100 * count / 300 for count in right)  # to the last digit, as a person would write them
    assert got["loss"] == pytest.approx(sk.log_loss(labels, scores.double().softmax(-1)), rel=1e-5)
    assert evaluate.accuracy(*scored)["top5"] == 100.0  # of five classes


# Six classes, images whose scores tie; beside each its classes by hand: the likeliest first, of equal scores the lowest index first.
TIED = [
    ([0, 2, 2, 1, 2, 0], [1, 2, 4, 3, 0, 5]),
    ([3, 3, 3, 3, 3, 3], [0, 1, 2, 3, 4, 5]),
    ([-1, -2, -1, -2, -1, -2], [0, 2, 4, 1, 3, 5]),
    ([0, 0, 0, 0, 0, 9], [5, 0, 1, 2, 3, 4]),
]


def test_of_equal_scores_the_lowest_class_comes_first_in_every_number() -> None:
    scores, order = torch.tensor([s for s, _ in TIED], dtype=torch.float32), [o for _, o in TIED]
    assert ranked(scores.numpy()).tolist() == evaluate.ranking(scores).tolist() == order
    labels = torch.tensor([4, 5, 2, 5])  # of these images the third, sixth, second and first class
    got = evaluate.accuracy(scores, labels)
    assert (got["top1"], got["top5"]) == (25.0, 75.0)  # the second image's label is the last of six
    predicted = evaluate.ranking(scores)[:, 0]
    counts = evaluate.confusion(predicted, labels, 6)
    assert {(int(t), int(p)): int(counts[t, p]) for t, p in np.argwhere(counts)} == {(4, 1): 1, (5, 0): 1, (2, 0): 1, (5, 5): 1}
    assert [f.accuracy for f in evaluate.per_class(predicted, labels, tuple("abcdef"))] == [0, 0, 0, 0, 0, 50.0]
    confidences = [np.exp(2) / (2 + np.exp(1) + 3 * np.exp(2)), 1 / 6, 1 / (3 + 3 * np.exp(-1)), np.exp(9) / (5 + np.exp(9))]
    shown = evaluate.guesses(scores, labels, evaluate.first(36, len(scores)))
    assert [(t, p) for t, p, _ in shown] == [(4, 1), (5, 0), (2, 0), (5, 5)]
    assert [c for *_, c in shown] == pytest.approx(confidences)


def test_confidence_by_hand() -> None:
    """Probabilities of the predicted class: 0.95 and right, 0.92 and wrong, 0.6 and right; 0.95 again for another class, and right."""
    scores = torch.tensor([[0.95, 0.05], [0.92, 0.08], [0.6, 0.4], [0.05, 0.95]]).log()
    labels = torch.tensor([0, 1, 0, 1])
    got = evaluate.confidence(scores, labels)
    assert got == {
        "confidence": pytest.approx(85.5),
        "confidence_above_90": pytest.approx(75.0),
        "confidence_above_90_accuracy": pytest.approx(200 / 3),
    }
    assert evaluate.confidence(scores[2:3], labels[2:3]) == {"confidence": pytest.approx(60.0), "confidence_above_90": 0.0}


def test_calibration_by_hand() -> None:
    """In bins of a fifteenth: 0.95 and 0.99 right and wrong in the last; 0.6 right, in the ninth, of (8/15, 9/15], to which its edge belongs."""
    scores = torch.tensor([[0.95, 0.05], [0.01, 0.99], [0.6, 0.4]], dtype=torch.float64).log()
    labels = torch.tensor([0, 0, 0])
    bins = evaluate.calibration(scores, labels)
    assert [(b.confidence, b.accuracy, b.count) for b in bins] == [
        (pytest.approx(60.0), pytest.approx(100.0), 1),
        (pytest.approx(97.0), pytest.approx(50.0), 2),
    ]
    assert evaluate.calibration_error(scores, labels) == {"calibration_error": pytest.approx((1 * 40 + 2 * 47) / 3)}
    sure = torch.tensor([[1000.0, 0.0]])
    assert evaluate.calibration(sure, torch.tensor([0]))[0].count == 1, "a probability of exactly 1 is in the last bin"


def test_the_surest_mistakes_come_first() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]).log()
    labels = torch.tensor([0, 0, 0, 1, 0])
    assert evaluate.surest_mistakes(scores, labels, 36) == [1, 4, 2]
    assert evaluate.surest_mistakes(scores, labels, 2) == [1, 4]
    assert evaluate.guesses(scores, labels, [4]) == [(0, 1, pytest.approx(0.8))]
    assert evaluate.guesses(scores, labels, []) == []


def test_confusion_and_per_class_by_hand() -> None:
    """Of A's four images three are taken for A and one for B, of B's two one each, C's one for A; none is taken for C, or of or for D."""
    labels, predicted = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 0, 0, 1, 0])
    assert evaluate.confusion(predicted, labels, 4).tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    names = ("A", "B", "C", "D")
    facts = evaluate.per_class(predicted, labels, names)
    assert tuple(f.name for f in facts) == names
    assert [f.precision for f in facts] == pytest.approx([60, 50, 0, 0])
    assert [f.recall for f in facts] == pytest.approx([75, 50, 0, 0])
    assert [f.f1 for f in facts] == pytest.approx([200 / 3, 50, 0, 0])
    assert [f.support for f in facts] == [4, 2, 1, 0]
    assert [f.accuracy for f in facts] == [f.recall for f in facts]
    rows = [line.split() for line in evaluate.classification_report(predicted, labels, names).splitlines()]
    assert ["A", "0.6000", "0.7500", "0.6667", "4"] in rows
    assert ["accuracy", "0.5714", "7"] in rows


def test_the_grid_shows_the_first_images_whatever_their_result(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, labels = scored
    rows = evaluate.first(36, len(scores))
    shown = evaluate.guesses(scores, labels, rows)
    assert rows == list(range(36))
    assert [t for t, _, _ in shown] == labels[:36].tolist()
    assert [p for _, p, _ in shown] == scores[:36].argmax(-1).tolist()
    assert shown[3][2] == pytest.approx(scores[3].softmax(-1).max().item())


def test_logits_do_not_depend_on_the_batch_size_and_are_stored_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = registry.build(config.ViT(name="vit", dim=16, depth=2, heads=2, distill_token=True, drop_path=0.5, dropout=0.5), 10)
    images = torch.randint(0, 256, (11, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    whole = evaluate.logits(model, images, mean, std, 11)
    assert whole.shape == (2, 11, 10)
    torch.testing.assert_close(evaluate.logits(model, images, mean, std, 4), whole)
    with torch.no_grad():
        torch.testing.assert_close(whole.mean(0), model.eval()(normalize(images, mean, std)))
    evaluate.write_predictions(tmp_path / "p.npz", {"raw": whole}, torch.arange(11) % 10, model.head_names, NAMES * 2)
    with np.load(tmp_path / "p.npz") as stored:
        assert (stored["logits_raw"] == whole.numpy()).all()
        assert list(stored["heads"]) == ["cls", "dist"]
