"""Image augmentation on whole batches: every image has its own draws, every draw comes from an explicit generator.

A transform is two functions: `draw_x` draws the parameters of every image, `x` applies given ones. The transforms are those of
torchvision's `transforms.v2` on tensors, bit for bit on the CPU; their papers are named there.

On a GPU nothing here waits for the device: no `.item()`, no shape that depends on data, no constant copied from the host each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitlab import config
from vitlab.data.ops import TRANSFORMS


def augment(images: Tensor, cfg: config.Augment, mean: Tensor, std: Tensor, generator: torch.Generator, mirror: bool) -> Tensor:
    """Crop, flip, the TRANSFORMS (colour jitter, TrivialAugment), normalise, erase: what `cfg` asks for, in this order.

    images (B, 3, H, W) uint8; mean and std (3,), of pixels in [0, 1]; images, mean, std and generator on one device. `mirror`: the data
    set has a left-right symmetry; without it `cfg.flip` does nothing. Returns float32 (B, 3, H, W).
    """
    return apply(images, draw(images.shape, cfg, generator, mirror), mean, std)


def draw(shape: Sequence[int], cfg: config.Augment, generator: torch.Generator, mirror: bool) -> dict[str, tuple]:
    """Return what each transform that `cfg` asks for takes besides the images, which are of `shape` (B, 3, H, W)."""
    batch, _, height, width = shape
    drawn: dict[str, tuple] = {}
    flip = cfg.flip and mirror
    if cfg.crop or flip:
        drawn["crop_flip"] = draw_crop(batch, cfg.crop, generator), cfg.crop, draw_flip(batch, 0.5 if flip else 0, generator)
    for key, (draw_one, _) in TRANSFORMS.items():
        if setting := getattr(cfg, key):  # None, 0 and false are off
            drawn[key] = draw_one(batch, setting, generator)
    if cfg.erase:
        drawn["erase"] = (draw_erase(batch, height, width, cfg.erase, generator),)
    return drawn


def choose(drawn: Any, rows: Tensor) -> Any:
    """Return what `draw` drew for the images `rows` alone: each tensor in it has a row for every image."""
    if isinstance(drawn, dict):
        return {key: choose(value, rows) for key, value in drawn.items()}
    if isinstance(drawn, tuple):
        return tuple(choose(value, rows) for value in drawn)
    return drawn[rows] if isinstance(drawn, Tensor) else drawn


def apply(images: Tensor, drawn: dict[str, tuple], mean: Tensor, std: Tensor) -> Tensor:
    """Apply what `draw` drew. No generator and no configuration: a GPU's kernels for it are compiled as one graph."""
    if "crop_flip" in drawn:
        images = crop_flip(images, *drawn["crop_flip"])
    for key, (_, apply_one) in TRANSFORMS.items():
        if key in drawn:
            images = apply_one(images, *drawn[key])
    images = normalize(images, mean, std)
    return erase(images, *drawn["erase"]) if "erase" in drawn else images


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return uint8 images (B, 3, H, W) as float32: scaled to [0, 1], less `mean`, divided by `std`, both (3,)."""
    assert images.dtype == torch.uint8, images.dtype
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(3, 1, 1) for v in (mean, std))
    return images.float().mul_(1 / 255).sub_(mean).div_(std)


# -------------------------------------------------------------------------------------------------- crop, flip, erase


def draw_crop(batch: int, padding: int, generator: torch.Generator) -> Tensor:
    """Draw the top and left of each image's window in the padded image: (B, 2) int64, uniform over 0 ... 2 * padding."""
    return torch.randint(2 * padding + 1, (batch, 2), generator=generator, device=generator.device)


def draw_flip(batch: int, prob: float, generator: torch.Generator) -> Tensor:
    """Draw which images to mirror, each with probability `prob`: (B,) bool."""
    return torch.rand(batch, generator=generator, device=generator.device) < prob


def crop_flip(images: Tensor, corner: Tensor, padding: int, mirrored: Tensor) -> Tensor:
    """Pad with zeros on all sides, cut windows of the old size at `corner` (B, 2), mirror those `mirrored` (B,) left to right.

    images (B, 3, H, W) uint8; returns the same shape. Both are done at once, because moving the pixels is nearly all of the cost.
    """
    height, width = images.shape[-2:]
    y, x = (torch.arange(size, device=images.device) for size in (height, width))
    row = corner[:, :1] + y  # (B, H)
    column = corner[:, 1:] + torch.where(mirrored[:, None], x.flip(0), x)  # (B, W)
    source = (row * (width + 2 * padding))[:, :, None] + column[:, None, :]
    padded = torch.nn.functional.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, source.flatten(1)[:, None].expand(-1, 3, -1)).view_as(images)


def draw_erase(batch: int, height: int, width: int, prob: float, generator: torch.Generator) -> Tensor:
    """Draw a box per image, (B, 4) int64: top, left, height, width. Height and width are 0 where nothing is erased.

    An image is erased with probability `prob`. The box's area is uniform in 2 to 33 % of the image, its aspect ratio log-uniform in 0.3 to
    3.3.
    """
    device = generator.device
    # torchvision tries up to ten times for a box smaller than the image: draw all ten, take the first that is
    area = height * width * (0.02 + (0.33 - 0.02) * torch.rand(batch, 10, generator=generator, device=device))
    ratio = torch.exp(math.log(0.3) + math.log(3.3 / 0.3) * torch.rand(batch, 10, generator=generator, device=device))
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 2).round().long()  # (B, 10, 2)
    fits = (size[..., 0] < height) & (size[..., 1] < width)
    first = fits.byte().argmax(1, keepdim=True)
    erased = fits.gather(1, first) & (torch.rand(batch, 1, generator=generator, device=device) < prob)
    size = size.gather(1, first[:, :, None].expand(-1, 1, 2)).squeeze(1) * erased
    # the number of possible places differs from image to image; the remainder favours some of them by less than one in 10^6
    anywhere = torch.randint(1 << 31, (batch, 2), generator=generator, device=device)
    top, left = anywhere[:, 0] % (height - size[:, 0] + 1), anywhere[:, 1] % (width - size[:, 1] + 1)
    return torch.stack([top, left, size[:, 0], size[:, 1]], 1)


def erase(images: Tensor, box: Tensor) -> Tensor:
    """Set each image's box (B, 4: top, left, height, width) to 0, which in normalised images is the mean colour."""
    top, left, h, w = (v[:, None] for v in box.unbind(1))
    y, x = (torch.arange(size, device=images.device) for size in images.shape[-2:])
    rows, columns = (y >= top) & (y < top + h), (x >= left) & (x < left + w)  # (B, H), (B, W)
    kept = 1 - rows.float()[:, :, None] * columns.float()[:, None, :]  # (B, H, W)
    return images * kept[:, None]  # on a CPU a third of the time that masked_fill takes


# -------------------------------------------------------------------------------------------------------- mixup, cutmix


def draw_shares(cfg: config.Mix, seed: int) -> tuple[float, float]:
    """Draw the shares that an image keeps of itself under Mixup and under CutMix: Beta(alpha, alpha), 1 for a method that is off.

    Drawn on the host, by NumPy: PyTorch has no public draw of a Beta from a generator.
    """
    rng = np.random.default_rng(seed)
    mixup, cutmix = (float(rng.beta(alpha, alpha)) if alpha else 1.0 for alpha in (cfg.mixup, cfg.cutmix))
    return mixup, cutmix


def cutmix_box(lam: Tensor, center: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels CutMix replaces, (H, W) bool: a box of 1 - `lam` of the area around `center` (2,), (y, x), cut at the edges."""
    half = 0.5 * (1 - lam).sqrt()
    inside = []
    for at, size in zip(center, (height, width), strict=True):
        reach, along = (half * size).long(), torch.arange(size, device=lam.device)
        inside.append((along >= at - reach) & (along < at + reach))
    return inside[0][:, None] & inside[1]


def blend(images: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image mixed with the one before it in the batch: `weight` (H, W) of its own pixels, the rest of the other's.

    Targets are mixed by the mean weight. A constant weight is Mixup (Zhang et al. 2018), one of zeros and ones is CutMix (Yun et al. 2019).
    images (B, 3, H, W) float, targets (B, C) float.
    """
    share = weight.mean()
    return (
        images.roll(1, 0).mul_((1 - weight).to(images.dtype)).add_(images * weight.to(images.dtype)),
        targets.roll(1, 0).mul_(1 - share).add_(targets * share),
    )


def mix(
    images: Tensor, targets: Tensor, cfg: config.Mix, shares: tuple[Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix the whole batch with probability `cfg.prob`: by CutMix or Mixup; where both are on, by CutMix with probability `cfg.switch_prob`.

    images (B, 3, H, W) float, targets (B, C) float, `shares` as `draw_shares` draws them, () float64; all on the generator's device.
    Returns images and targets in the same shapes.
    """
    if not (cfg.mixup or cfg.cutmix):
        return images, targets
    height, width = images.shape[-2:]
    device = generator.device
    happens, switches = torch.rand(2, generator=generator, device=device).unbind()
    mixup, cutmix = shares
    weight = mixup.expand(height, width)
    if cfg.cutmix:
        center = torch.stack([torch.randint(size, (), generator=generator, device=device) for size in (height, width)])
        outside = (~cutmix_box(cutmix, center, height, width)).double()
        weight = torch.where(switches < cfg.switch_prob, outside, weight) if cfg.mixup else outside
    return blend(images, targets, torch.where(happens < cfg.prob, weight, 1))
