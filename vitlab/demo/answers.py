"""From a picture to what the models say of it, and to where their class attention looks. No page is known here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from vitlab.data import ops, samples
from vitlab.data.augment import crop_flip, normalize
from vitlab.data.dataset import opened, squeezed, upright
from vitlab.data.sources import CIFAR10_CLASSES
from vitlab.models.attention import class_attention
from vitlab.records import RunRecord
from vitlab.run.predict import Candidate

REACH = 8  # pixels: the farthest shift
UNSURE = 0.5  # below this confidence a model holds it for likelier that its first answer is wrong than that it is right
SHOWN = 640  # pixels: the longer side of the picture that is shown


@dataclass(frozen=True)
class Picture:
    """A picture, and what is said of it."""

    name: str
    pixels: np.ndarray  # uint8 (3, 32, 32), as `vitlab predict` makes them
    shown: bytes  # the picture itself, as a PNG or a JPEG no larger than SHOWN


def read(path: Path) -> Picture:
    """Return the picture in an image file, of any size. Raises UserError, naming the file, where it cannot be used as an image."""

    def use(image: Image.Image) -> Picture:
        rgb = upright(image)
        small, out = rgb.copy() if max(rgb.size) <= SHOWN else rgb.resize(_within(rgb.size), reducing_gap=2.0), io.BytesIO()
        small.save(out, "JPEG", quality=88)
        return Picture(path.name, squeezed(rgb), out.getvalue())

    return opened(path, use)


def _within(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size scaled down to SHOWN, each side at least 1 pixel."""
    scale = SHOWN / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def sample(index: int) -> Picture:
    """Return one of the hundred test images that travel with the code, by its index in `samples.images()`."""
    pixels = samples.images()[index]
    name = CIFAR10_CLASSES[samples.labels()[index]]
    return Picture(f"{name}, test image", np.ascontiguousarray(pixels.transpose(2, 0, 1)), png(pixels))


def png(pixels: np.ndarray) -> bytes:
    """Return uint8 (H, W, 3) as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def moved(pixels: np.ndarray, right: int, down: int, brightness: float) -> np.ndarray:
    """Return an image, uint8 (3, 32, 32), shifted by so many pixels, black coming in, and its values multiplied by `brightness`.

    The same operations as in training: a crop of the padded image, and the colour jitter's brightness. A shift is at most REACH.
    """
    images = torch.from_numpy(pixels).unsqueeze(0)
    corner = torch.tensor([[REACH - down, REACH - right]])
    images = crop_flip(images, corner, REACH, torch.tensor([False]))
    return ops.brightness(images, torch.tensor([brightness]))[0].numpy()


@dataclass(frozen=True)
class Model:
    """A trained model, ready to answer: on the CPU, in eval mode."""

    record: RunRecord
    net: nn.Module


@dataclass(frozen=True)
class Answer:
    """What a model says of an image."""

    shares: np.ndarray  # (C,) float32: the probability of each class; its logits are the mean of the heads'
    heads: dict[str, np.ndarray]  # (C,) float32 of each head by name, where there is more than one
    maps: np.ndarray | None  # (S, heads, grid, grid): where each special token looks, each map of sum 1; None without class attention

    @property
    def first(self) -> int:
        """Return the class with the largest probability."""
        return int(self.shares.argmax())

    @property
    def unsure(self) -> bool:
        """Return whether the largest probability is below UNSURE."""
        return bool(self.shares.max() < UNSURE)


def load(candidates: Sequence[Candidate]) -> list[Model]:
    """Return the models, loaded. Raises UserError, naming the file, where weights are missing or damaged."""
    return [Model(candidate.record, candidate.load().float().eval()) for candidate in candidates]


@torch.inference_mode()
def answer(model: Model, images: Sequence[np.ndarray]) -> list[Answer]:
    """Return what the model says of each image, uint8 (3, 32, 32)."""
    data = model.record.dataset
    inputs = normalize(torch.from_numpy(np.stack(images)), torch.tensor(data.mean), torch.tensor(data.std))
    heads = model.net.forward_heads(inputs)  # (H, B, C)
    each, whole = heads.softmax(-1).numpy(), heads.mean(0).softmax(-1).numpy()
    maps = class_attention(model.net, inputs)
    names = model.net.head_names
    return [
        Answer(
            whole[i],
            {name: each[h, i] for h, name in enumerate(names)} if len(names) > 1 else {},
            None if maps is None else maps[i].numpy(),
        )
        for i in range(len(images))
    ]


def pairs(models: Sequence[Model]) -> list[tuple[Model, Model | None]]:
    """Return each model with the one that taught it, None where it had no teacher or this is not there.

    The order is kept. A teacher whose student is there stands beside it alone, not also by itself.
    """
    by_run = {(m.record.experiment, m.record.fingerprint, m.record.seed): m for m in models if not m.record.variant}
    taught = {id(m): by_run.get((t.experiment, t.fingerprint, t.seed)) if (t := m.record.teacher) else None for m in models}
    beside = {id(teacher) for teacher in taught.values() if teacher is not None}
    return [(m, taught[id(m)]) for m in models if id(m) not in beside]
