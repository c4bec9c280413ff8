"""A hundred test images of CIFAR-10 that travel with the code, to try a model on without a download."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from vitlab.data.sources import CIFAR10_CLASSES

FILE = Path(__file__).with_name("samples.png")  # ten rows, a class each, of ten images: the first of that class in the test split


@cache
def images() -> np.ndarray:
    """Return the images, uint8 [100, 32, 32, 3], sorted by class: image i shows `CIFAR10_CLASSES[labels()[i]]`.

    They are the first ten of each class in CIFAR-10's test split (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009).
    """
    with Image.open(FILE) as picture:
        rows = np.asarray(picture.convert("RGB")).reshape(10, 32, 10, 32, 3)
    return rows.transpose(0, 2, 1, 3, 4).reshape(100, 32, 32, 3)


def labels() -> np.ndarray:
    """Return the images' classes, int64 [100]."""
    return np.repeat(np.arange(len(CIFAR10_CLASSES)), 10)
