"""The input path alone: vitlab's batched augmentation and torchvision's image by image, in one process and one thread."""

from __future__ import annotations

import time

import torch

from benchmarks import recipe
from benchmarks.contenders import Pictures, torchvision_transform
from benchmarks.recipe import RECIPES, Images
from vitlab.data.augment import augment
from vitlab.data.rng import generator

BATCH = 192


def measure(data: Images, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return, by recipe and contender, the images augmented per second of processor time, a number for each round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {number: _measure(number, data, rounds) for number in RECIPES}
    finally:
        torch.set_num_threads(threads)


def _measure(number: str, data: Images, rounds: int) -> dict[str, list[float]]:
    cfg = recipe.load(number, "full").phases[0].augment
    images, mean, std = torch.from_numpy(data.pixels[:BATCH]), torch.tensor(data.mean), torch.tensor(data.std)
    pictures = Pictures(data, torchvision_transform(cfg, data))

    def ours(step: int) -> torch.Tensor:
        return augment(images, cfg, mean, std, generator(0, "augment", step, "cpu"), data.mirror)

    def theirs(step: int) -> torch.Tensor:
        return torch.stack([pictures[i][0] for i in range(len(images))])

    speeds: dict[str, list[float]] = {"vitlab": [], "torchvision": []}
    ours(0), theirs(0)  # the first call pays for what is set up once
    for step in range(rounds):
        for name, batches, run in (("vitlab", 10, ours), ("torchvision", 1, theirs)):
            start = time.process_time()
            for i in range(batches):
                run(step * batches + i)
            speeds[name].append(batches * len(images) / (time.process_time() - start))
    return speeds
