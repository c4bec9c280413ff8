"""vitlab: a CIFAR-10 ablation suite, from a plain ViT to distillation into class attention, that says how sure it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from vitlab.export.library import Transform

__version__ = "0.1.0"


def load(folder: str | os.PathLike[str]) -> tuple[nn.Module, Transform]:
    """Return a trained model and its transform: `model, transform = vitlab.load("results/overnight-cifar10")`.

    `folder` is a finished run's, a published set's, or what `vitlab export --to safetensors` wrote. The model is on the CPU, in eval mode,
    and takes float32 images (B, 3, 32, 32) as `transform` makes them of Pillow images; it returns logits (B, model.num_classes), which
    `model.classes` names. Raises UserError for a folder without a usable model.
    """
    from vitlab.export import library  # late: torch takes seconds

    return library.load(folder)
