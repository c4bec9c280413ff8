"""A trained model as a library has it: a module, and the transform that turns a picture into what it takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vitlab.config import IMAGE_SIZE
from vitlab.data.augment import normalize
from vitlab.data.dataset import pixels
from vitlab.run import predict


@dataclass(frozen=True)
class Transform:
    """What a model was trained on: a Pillow image, upright, squeezed to 32x32 and normalised."""

    mean: tuple[float, float, float]  # per channel in [0, 1]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the image as float32 (3, 32, 32). Raises UserError for one that is not 8 or 16 bits deep."""
        batch = torch.from_numpy(pixels(image)).unsqueeze(0)
        return normalize(batch, torch.tensor(self.mean), torch.tensor(self.std))[0]


def preprocessing(transform: Transform) -> dict[str, Any]:
    """Return what `transform` does in timm's words, from which timm.data.create_transform makes the same."""
    return {
        "input_size": [3, IMAGE_SIZE, IMAGE_SIZE], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash",
        "mean": list(transform.mean), "std": list(transform.std),
    }  # fmt: skip


def describe(model: nn.Module, classes: tuple[str, ...], transform: Transform) -> None:
    """Give the model what a user of timm looks for: `num_classes` and `pretrained_cfg`; and `classes`, their names in the logits' order."""
    model.num_classes, model.classes = len(classes), classes
    model.pretrained_cfg = preprocessing(transform) | {"num_classes": len(classes), "label_names": list(classes)}


def load(folder: str | os.PathLike[str]) -> tuple[nn.Module, Transform]:
    """Return the model in `folder`, as `vitlab.load` does."""
    chosen = predict.at(Path(folder))
    model, facts = chosen.load(), chosen.record.dataset
    transform = Transform(facts.mean, facts.std)
    describe(model, facts.classes, transform)
    return model, transform
