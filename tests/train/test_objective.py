"""Losses against torch's own, hand-worked numbers, and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitlab.train.objective import CrossEntropy, Distillation, distillation_kl, smooth_one_hot, soft_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.3])
def test_soft_cross_entropy_equals_torchs_with_label_smoothing(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(16, 10, dtype=torch.float32), torch.randint(0, 10, (16,))
    ours = soft_cross_entropy(logits, smooth_one_hot(labels, 10, smoothing))
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=smoothing))


def test_distillation_kl_by_hand() -> None:
    """Two classes, T = 2: teacher (0, 2 ln 3) softens to (1/4, 3/4), student (0, 0) to (1/2, 1/2)."""
    teacher, student = torch.tensor([[0.0, 2 * math.log(3)]]), torch.zeros(1, 2)
    expected = 4 * (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))
    assert distillation_kl(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)


def test_distillation_gradient_is_hintons() -> None:
    """d/dz of T^2 KL is T (softmax(z/T) - softmax(v/T)) / B (Hinton et al. 2015, equation 2, times T^2)."""
    torch.manual_seed(0)
    z, v, t = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10), 3.0
    distillation_kl(z, v, t).backward()
    torch.testing.assert_close(z.grad, t * ((z / t).softmax(-1) - (v / t).softmax(-1)).detach() / 4)


class Fixed(nn.Module):
    def __init__(self, out: torch.Tensor) -> None:
        super().__init__()
        self.out = nn.Parameter(out)
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return self.out


def test_distillation_terms_and_heads() -> None:
    """CE on the first head, KL on the last, weighted; the teacher sees the student's view and learns nothing."""
    torch.manual_seed(0)
    heads = torch.randn(2, 8, 10, requires_grad=True)
    targets, images = smooth_one_hot(torch.randint(0, 10, (8,)), 10, 0.1), torch.randn(8, 3, 32, 32)
    teacher = Fixed(torch.randn(8, 10))
    terms = Distillation(teacher, temperature=2.0, weight=0.3)(images, heads, targets)
    assert teacher.seen is images
    assert not teacher.training
    torch.testing.assert_close(terms["ce"], soft_cross_entropy(heads[0], targets))
    assert torch.equal(terms["kd"], distillation_kl(heads[1], teacher.out.half(), 2.0))
    torch.testing.assert_close(terms["loss"], 0.7 * terms["ce"] + 0.3 * terms["kd"])
    terms["loss"].backward()
    assert teacher.out.grad is None
    assert heads.grad.abs().sum((1, 2)).min() > 0


def test_a_perfect_student_has_no_distillation_loss() -> None:
    logits = torch.randn(5, 10)
    assert distillation_kl(logits, logits.clone(), 4.0).item() == pytest.approx(0.0, abs=1e-6)


def test_cross_entropy_teaches_every_head() -> None:
    heads = torch.randn(2, 4, 10, requires_grad=True)
    CrossEntropy()(torch.empty(0), heads, smooth_one_hot(torch.arange(4), 10, 0.0))["loss"].backward()
    assert heads.grad.abs().sum((1, 2)).min() > 0
