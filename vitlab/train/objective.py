"""Losses as objects that return named terms: `{"loss": what is minimised, "ce": ..., "kd": ...}`.

Each is called as `objective(images, heads, targets)`: images (B, 3, H, W) as the student saw them, heads (H, B, C) its logits, targets (B,
C) probabilities.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.models.resnet import fold_batch_norms
from vitlab.train import logits_store, machine
from vitlab.train.logits_store import LogitsStore


def smooth_one_hot(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return (B, C) targets for labels (B,): 1 - s on the label plus s / C everywhere (Szegedy et al. 2016), as torch's label_smoothing."""
    hot = labels[:, None] == torch.arange(classes, device=labels.device)  # F.one_hot asks the device whether the labels are in range
    return hot.float().mul_(1 - smoothing).add_(smoothing / classes)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the batch of -sum(targets * log_softmax(logits)), both (B, C); computed in float32 whatever the logits' type."""
    return -(targets * F.log_softmax(logits.float(), dim=-1)).sum(-1).mean()


def distillation_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of the softened distributions, mean over the batch (Hinton et al. 2015). Logits are (B, C)."""
    log_p = F.log_softmax(student.float() / temperature, dim=-1)
    log_q = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def prepare_teacher(teacher: nn.Module, precision: str, where: torch.device, steps: int) -> nn.Module:
    """Return `teacher` as it answers fastest on the device `where`, for a training of `steps` steps; it is compiled where the student is.

    Its batch norms are folded into its convolutions. In bf16 mixed precision (`precision` as in the configuration) the weights that autocast
    would cast anew in each step are cast once, to the same bits, so call it under that autocast alone, and without gradients. On a CPU
    where nothing is compiled it is returned as it is.
    """
    compiles = machine.compiles(where, steps)
    if where.type == "cpu" and not compiles:
        return teacher
    teacher = fold_batch_norms(teacher).requires_grad_(False)
    if where.type == "cuda":
        teacher = teacher.to(memory_format=torch.channels_last)
    if machine.precision(precision, where) == "bf16":
        for module in teacher.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
    # Frozen weights let a CPU's convolutions do the ReLU or the addition behind them too: two to four times the rate.
    frozen = {"freezing": True} if where.type == "cpu" else {}
    return machine.compiled(teacher, **frozen) if compiles else teacher


class CrossEntropy:
    """Cross-entropy to the targets, mean over the heads."""

    def __call__(self, images: Tensor, heads: Tensor, targets: Tensor) -> dict[str, Tensor]:
        ce = torch.stack([soft_cross_entropy(logits, targets) for logits in heads]).mean()
        return {"loss": ce, "ce": ce}


class Distillation:
    """(1 - weight) * CE of the first head + weight * KL of the last head to the teacher. With one head it is both.

    The teacher sees the same view as the student, mixing included ("A good teacher is patient and consistent", Beyer et al. 2022). Its
    logits are rounded to float16, as a store keeps them, so that a student is the same with one and without.
    """

    def __init__(self, teacher: nn.Module, temperature: float, weight: float) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature = temperature
        self.weight = weight

    def __call__(self, images: Tensor, heads: Tensor, targets: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher = self.teacher(images).half()
        ce = soft_cross_entropy(heads[0], targets)
        kd = distillation_kl(heads[-1], teacher, self.temperature)
        return {"loss": (1 - self.weight) * ce + self.weight * kd, "ce": ce, "kd": kd}


class RememberingTeacher(nn.Module):
    """A teacher that asks its store first: it computes the logits of the same images once, whoever learns from it.

    On a CPU only: on a GPU a step is a replayed graph, which cannot ask, and the teacher's forward is cheap. `answered(stored)` is called for
    each batch, with whether its logits were stored.
    """

    def __init__(self, teacher: nn.Module, store: LogitsStore, answered: Callable[[bool], None]) -> None:
        super().__init__()
        self.teacher, self.store, self.answered = teacher, store, answered

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> float16 (B, C)."""
        view = logits_store.digest(images.contiguous().numpy())
        found = self.store.get(view)
        self.answered(found is not None)
        if found is not None:
            return torch.frombuffer(bytearray(found), dtype=torch.float16).view(len(images), -1)
        logits = self.teacher(images).half()
        self.store.put(view, logits.numpy().tobytes())
        return logits
