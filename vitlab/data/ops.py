"""Colour jitter, TrivialAugment and the operations both are made of: uint8 batches in, uint8 batches out.

An operation is a function of images (n, 3, H, W) and one parameter per image. A transform is two functions: `draw_x` draws the
parameters of every image, `x` applies given ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from vitlab import config

Op = Callable[[Tensor, Tensor], Tensor]  # (uint8 images (n, 3, H, W), a parameter for each, (n,) or (n, ...)) -> images


def apply_each(images: Tensor, which: Tensor, steps: Sequence[tuple[Op, Tensor]]) -> Tensor:
    """Return `images` (B, 3, H, W), each with the step applied that `which` (B,) names: an operation and its values, (B,) or (B, ...)."""
    return (apply_by_mask if images.is_cuda else apply_by_group)(images, which, steps)


def apply_by_group(images: Tensor, which: Tensor, steps: Sequence[tuple[Op, Tensor]]) -> Tensor:
    """Do apply_each() with one call for the images of each operation. The sizes of these groups must be known to the host."""
    order = which.argsort()
    groups = order.split(which.bincount(minlength=len(steps)).tolist())
    # index_select copies whole images; images[group] goes byte by byte
    done = [op(images.index_select(0, g), value[g]) for (op, value), g in zip(steps, groups, strict=True) if len(g)]
    return torch.cat(done).index_select(0, order.argsort())


def apply_by_mask(images: Tensor, which: Tensor, steps: Sequence[tuple[Op, Tensor]]) -> Tensor:
    """Do apply_each() with every operation on all images: a GPU computes faster than it tells the host how many images each one has."""
    result = images
    for k, (op, value) in enumerate(steps):
        result = torch.where((which == k)[:, None, None, None], op(images, value), result)
    return result


# ----------------------------------------------------------- operations on uint8 (n, 3, H, W), one parameter per image


def _column(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `values` (n,) as (n, 1, 1, 1)."""
    return values.to(dtype)[:, None, None, None]


def _to_uint8(images: Tensor) -> Tensor:
    return images.clamp_(0, 255).to(torch.uint8)


def _add(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """Return float32 a + alpha * b, rounded once like `torch.add(a, b, alpha=...)`, which takes only one alpha for all images."""
    return (a + b.double() * _column(alpha).double()).float()


def _gray(images: Tensor) -> Tensor:
    """Return the grey levels in whole numbers, (n, 1, H, W) float32."""
    r, g, b = images.split(1, dim=1)
    return r.mul(0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114).floor_()


def _same(images: Tensor, _: Tensor) -> Tensor:
    return images


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each value by `factor`."""
    return _to_uint8(images * _column(factor))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend `factor` of the image with 1 - `factor` of its mean grey level."""
    mean = _gray(images).mean((1, 2, 3), keepdim=True)
    return _to_uint8(_add(images * _column(factor), mean, 1 - factor))


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend `factor` of the image with 1 - `factor` of its grey levels."""
    return _to_uint8(_add(images * _column(factor), _gray(images), 1 - factor))


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift`, a part of the full circle in [-0.5, 0.5], by way of HSV."""
    rgb = images.float().mul_(1 / 255)
    r, g, _ = rgb.unbind(1)
    low, high = rgb.aminmax(dim=1)  # (n, H, W)
    gray, spread = high == low, high - low
    s = spread / torch.where(gray, 1.0, high)
    rc, gc, bc = ((high[:, None] - rgb) / torch.where(gray, 1.0, spread)[:, None]).unbind(1)
    h = torch.where(high == r, bc - gc, torch.where(high == g, rc + 2 - bc, gc + 4 - rc))
    h = h.mul_(1 / 6).add_(1).fmod_(1).add_(shift.float()[:, None, None]).remainder_(1).mul_(6)
    sector = h.floor()
    f = (h - sector) * s
    p, q, t = ((x * high).clamp_(0, 1) for x in (1 - s, 1 - f, 1 - s + f))
    wheel = torch.stack([high, q, p, p, t, high], 1)  # red's value in each of the six sectors; green and blue lag by two and four
    lag = torch.arange(0, 6, 2, device=images.device).view(3, 1, 1)
    rgb = wheel.gather(1, (sector.long()[:, None] - lag).remainder_(6))
    return rgb.mul_(255.999).to(torch.uint8)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend `factor` of the image with 1 - `factor` of a 3x3 blur (weights 1, at the centre 5, divided by 13). Pixels at the edge stay."""
    x = images.float()
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    center = x[..., 1:-1, 1:-1]
    # sums of whole numbers, hence exact: a convolution in TF32 would not be
    blurred = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * center).div_(13).round_()
    center.copy_(_add(center, blurred - center, 1 - factor))
    return _to_uint8(x)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper `bits` of each value."""
    return images & _column(255 << (8 - bits.long()), torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values that are at least 255 * `threshold`, which is in [0, 1]."""
    return images ^ (images >= _column((255 * threshold).float().ceil(), torch.uint8)).to(torch.uint8).neg_()


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to 0 ... 255."""
    x = images.float()
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high == low
    return _to_uint8((x - torch.where(flat, 0.0, low)).div_(torch.where(flat, 1.0, (high - low) * (1 / 255))))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Flatten each channel's histogram, in whole numbers as PIL does."""
    pixels = images.flatten(2).long()  # (n, 3, HW)
    histogram = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, pixels, torch.ones_like(pixels, dtype=torch.int32))
    below = histogram.cumsum(2, dtype=torch.int32) - histogram
    brightest = histogram.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255).to(torch.uint8)
    return torch.where(step[..., None] > 0, table.gather(2, pixels).view_as(images), images)


def affine(images: Tensor, theta: Tensor) -> Tensor:
    """Replace pixel (x, y), counted from the centre, by the one nearest to (a x + b y + c, d x + e y + f), or by 0 if that lies outside.

    theta (n, 6): a ... f.
    """
    height, width = images.shape[-2:]
    x = torch.arange((1 - width) / 2, width / 2, device=images.device)
    y = torch.arange((1 - height) / 2, height / 2, device=images.device)[:, None]

    def nearest(theta: Tensor, size: int) -> Tensor:
        # torchvision's roundings: to grid_sample's [-1, 1], then back to pixels; one beyond each edge stands for all outside
        along_x, along_y, shift = (theta.float() / (0.5 * size))[:, :, None, None].unbind(1)
        return (x * along_x + y * along_y).add_(shift).add_(1).mul_(size / 2).sub_(0.5).round_().clamp_(-1, size)

    column, row = nearest(theta[:, :3], width), nearest(theta[:, 3:], height)  # (n, H, W)
    source = row.mul_(width + 2).add_(column).add_(width + 3).long()
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1)).flatten(2)
    return padded.gather(2, source.flatten(1)[:, None].expand(-1, 3, -1)).view_as(images)


# ------------------------------------------------------------------------------------------------------- colour jitter

_JITTERS = (brightness, contrast, saturation, hue)


def draw_color_jitter(batch: int, cfg: config.ColorJitter, generator: torch.Generator) -> tuple[tuple[Tensor | None, ...], Tensor]:
    """Draw four parameters (B,) in the order of `_JITTERS`, None for one that is off, and the order to apply them in, (B, 4).

    Factors are uniform in [max(0, 1 - x), 1 + x], the hue's shift in [-x, x].
    """
    ranges = [(max(0.0, 1 - x), 1 + x) for x in (cfg.brightness, cfg.contrast, cfg.saturation)] + [(-cfg.hue, cfg.hue)]
    uniform = torch.rand(4, batch, generator=generator, device=generator.device, dtype=torch.float64)
    values = tuple(low + (high - low) * u if high > low else None for (low, high), u in zip(ranges, uniform, strict=True))
    return values, torch.rand(batch, 4, generator=generator, device=generator.device).argsort(1)


def color_jitter(images: Tensor, values: tuple[Tensor | None, ...], order: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of uint8 images, each image in its own order."""
    steps = [(_same, order[:, 0]) if value is None else (op, value) for op, value in zip(_JITTERS, values, strict=True)]
    for which in order.unbind(1):
        images = apply_each(images, which, steps)
    return images


# ------------------------------------------------------------------------------------------------- TrivialAugment, Wide

_UNIT = torch.linspace(0, 0.99, 31)
TRIVIAL_AUGMENT = {  # operation: its 31 magnitudes, and whether they take a sign
    "identity": (torch.zeros(31), False),
    "shear_x": (_UNIT, True),
    "shear_y": (_UNIT, True),
    "translate_x": (torch.linspace(0, 32, 31), True),  # pixels, the fraction cut off
    "translate_y": (torch.linspace(0, 32, 31), True),
    "rotate": (torch.linspace(0, 135, 31), True),  # degrees, counter-clockwise
    "brightness": (_UNIT, True),  # this and the next three are factors, less 1
    "saturation": (_UNIT, True),
    "contrast": (_UNIT, True),
    "sharpness": (_UNIT, True),
    "posterize": ((8 - torch.arange(31) / 5).round(), False),  # bits kept
    "solarize": (torch.linspace(1, 0, 31), False),
    "autocontrast": (torch.zeros(31), False),
    "equalize": (torch.zeros(31), False),
}


@cache
def signed_magnitudes(device: torch.device) -> Tensor:
    """Return what TRIVIAL_AUGMENT can draw, (14, 31, 2) float64: by operation, magnitude and sign."""
    return torch.stack([torch.stack([m, -m if signed else m], 1) for m, signed in TRIVIAL_AUGMENT.values()]).double().to(device)


def draw_trivial_augment(batch: int, prob: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw for each image one operation, (B,) indices into TRIVIAL_AUGMENT, and its signed magnitude, (B,) float64; all equally likely.

    With probability 1 - `prob` an image gets operation 0, which leaves it as it is.
    """
    sizes = signed_magnitudes(generator.device).shape
    op, magnitude, sign = (torch.randint(n, (batch,), generator=generator, device=generator.device) for n in sizes)
    if prob < 1:
        op = torch.where(torch.rand(batch, generator=generator, device=generator.device) < prob, op, 0)
    return op, signed_magnitudes(generator.device)[op, magnitude, sign]


def trivial_augment(images: Tensor, op: Tensor, magnitude: Tensor) -> Tensor:
    """Apply to each uint8 image its operation and magnitude, as drawn (Mueller and Hutter 2021, as torchvision's `TrivialAugmentWide`)."""
    height, width = images.shape[-2:]
    shear_x, shear_y, right, down, degrees = (torch.where(op == k, magnitude, 0) for k in range(1, 6))
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    # these map a pixel's new place to its old one, hence the signs; sheared images keep their top or left edge in place
    across = [cos, shear_x - sin, shear_x * (height / 2) - right.trunc()]
    along = [shear_y + sin, cos, shear_y * (width / 2) - down.trunc()]
    factor = 1 + magnitude
    steps = (
        (_same, op),
        (affine, torch.stack(across + along, 1)),
        (brightness, factor),
        (saturation, factor),
        (contrast, factor),
        (sharpness, factor),
        (posterize, magnitude),
        (solarize, magnitude),
        (autocontrast, op),
        (equalize, op),
    )
    return apply_each(images, torch.where(op > 5, op - 4, op.clamp(max=1)), steps)  # 1 to 5 are one


TRANSFORMS = {  # applied between flipping and normalising, in this order; key of `augment` in a YAML: (draw, apply)
    "color_jitter": (draw_color_jitter, color_jitter),
    "trivial_augment": (draw_trivial_augment, trivial_augment),
}
