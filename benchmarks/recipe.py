"""What all contenders train: the experiment's configuration and the same images, handed over in a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitlab import config
from vitlab.paths import EXPERIMENTS

PROFILES = ("full", "overnight")  # whose sizes are compared: the reports', and those that a CPU trains in a night
# A run so long that its schedules do not move while it is measured: every step has the full learning rate, the first EMA decay and the
# first phase's augmentation. Without a teacher both heads of 06 learn the labels.
LONG = ("train.epochs=1000", "optim.warmup=null", "distill=null")
RECIPES = {  # the experiments whose augmentation is measured by itself
    "01": "crop, flip",
    "02": "crop, flip, colour jitter, erasing",
    "06": "crop, flip, TrivialAugment, erasing",
}


def experiment_file(number: str) -> Path:
    """Return the experiment's file, for "01" experiments/01_baseline_vit.yaml."""
    (path,) = EXPERIMENTS.glob(f"{number}_*.yaml")
    return path


def load(number: str, profile: str, sets: tuple[str, ...] = ()) -> config.Experiment:
    """Return the experiment's configuration in the profile, with the changes of LONG and `sets`."""
    return config.load(experiment_file(number), profile, (*LONG, *sets)).config


@dataclass(frozen=True)
class Images:
    """The first N training images, pixels uint8 (N, 3, 32, 32) and labels int64 (N,), and what is known of their data set."""

    pixels: np.ndarray
    labels: np.ndarray
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    classes: int
    mirror: bool  # whether flips are allowed

    def first(self, count: int) -> Images:
        """Return the first `count` of these images."""
        return replace(self, pixels=self.pixels[:count], labels=self.labels[:count])

    def write(self, path: Path) -> None:
        """Write the images to an .npz file."""
        np.savez(path, pixels=self.pixels, labels=self.labels, mean=self.mean, std=self.std, classes=self.classes, mirror=self.mirror)

    @classmethod
    def read(cls, path: Path) -> Images:
        """Return the images in a file of `write`."""
        f = np.load(path)
        return cls(f["pixels"], f["labels"], tuple(f["mean"].tolist()), tuple(f["std"].tolist()), int(f["classes"]), bool(f["mirror"]))
