"""From a source to uint8 tensors on the device, split in a fixed way."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from vitlab import config, files
from vitlab.config import IMAGE_SIZE
from vitlab.data import sources
from vitlab.data.rng import generator
from vitlab.data.sources import Source
from vitlab.errors import UserError

MAX_PIXELS = 50_000_000  # of one image file; more is taken for a decompression bomb
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not EPS, which Pillow hands to Ghostscript
SPLIT_SEED = 0  # splits are the same whatever the run's seed

T = TypeVar("T")
Images = tuple[Tensor, Tensor]  # uint8 (N, 3, 32, 32), int64 (N,)


@dataclass(frozen=True)
class Dataset:
    """A data set on the device: images uint8 (N, 3, 32, 32), labels int64 (N,)."""

    name: str
    digest: str
    classes: tuple[str, ...]
    mirror: bool
    mean: Tensor  # (3,) float32, of the whole training split in [0, 1], before any limit
    std: Tensor  # (3,)
    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


# ---------------------------------------------------------------------------------------------------------- loading


def load(source: Source, cfg: config.Data, device: torch.device | str) -> Dataset:
    """Read, limit and split the data set, and return it on `device`. The validation split is a share of the (limited) training images.

    Raises UserError for damaged or unreadable files, and for limits too small for the number of classes.
    """
    train, test = READERS[source.kind](source)
    mean, std = mean_std(train[0])
    train = _limit(train, cfg.train_limit, "train_limit")
    test = _limit(test, cfg.test_limit, "test_limit")
    share = max(1, round(cfg.validation * len(train[1])))
    if share > len(train[1]) - len(train[1].unique()):
        raise UserError(
            f"{source.name}: {len(train[1])} training images are too few to set {share} aside for validation "
            "and keep one of each class; add images, or raise data.train_limit where it is set"
        )
    aside, rest = stratified_split(train[1], share, "validation")

    def put(images: Images, rows: Tensor | slice) -> Images:
        return images[0][rows].to(device), images[1][rows].to(device)

    return Dataset(
        source.name, source.digest, source.classes, source.mirror, mean.to(device), std.to(device),
        *put(train, rest), *put(train, aside), *put(test, slice(None)),
    )  # fmt: skip


def mean_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and (population) standard deviation per channel of uint8 images (N, 3, H, W) scaled to [0, 1]; both (3,) float32.

    They are computed from counts of the 256 values, hence exact. A constant channel gets std 1, so that normalising makes it 0 and not NaN.
    """
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for part in images.split(5000):
        counts += torch.stack([torch.bincount(part[:, c].flatten(), minlength=256) for c in range(3)])
    value, weight = torch.arange(256, dtype=torch.float64) / 255, counts / counts.sum(1, keepdim=True, dtype=torch.float64)
    mean = (weight * value).sum(1)
    std = (weight * (value - mean[:, None]) ** 2).sum(1).sqrt()
    return mean.float(), torch.where((counts > 0).sum(1) == 1, 1.0, std).float()


def stratified_split(labels: Tensor, take: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Return the rows of `take` images drawn at random, (take,), and those of the others, (N - take,); both ascending.

    Each class gives its share of `take`, rounded by largest remainder. Every class keeps an image among the others; where `take` allows
    it, a class of two images or more also has one among those taken. The result depends on the arguments alone.
    """
    counts = torch.bincount(labels)
    most = (counts - 1).clamp(min=0)
    least = most.clamp(max=1) if take >= len(counts) else torch.zeros_like(counts)
    assert 0 < take <= most.sum(), (take, counts)
    ideal = counts.double() * take / len(labels)
    quota = ideal.long().clamp(least, most)
    while missing := take - int(quota.sum()):
        one = 1 if missing > 0 else -1
        free = quota < most if missing > 0 else quota > least
        quota[torch.where(free, (ideal - quota) * one, -torch.inf).argmax()] += one
    draws = generator(SPLIT_SEED, f"split/{purpose}", 0, "cpu")
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label, n in enumerate(quota.tolist()):
        members = (labels == label).nonzero()[:, 0]
        taken[members[torch.randperm(len(members), generator=draws)[:n]]] = True
    return taken.nonzero()[:, 0], (~taken).nonzero()[:, 0]


def _limit(images: Images, limit: int | None, key: str) -> Images:
    pixels, labels = images
    if limit is None or limit >= len(labels):
        return images
    classes = len(labels.unique())
    if limit < classes:
        raise UserError(f"data.{key}: {limit} is less than the data set's {classes} classes; give at least one image per class")
    _, kept = stratified_split(labels, len(labels) - limit, key)
    return pixels[kept], labels[kept]


def _split_test(images: Images) -> tuple[Images, Images]:
    """Return `(train, test)` for a data set without a test split of its own."""
    pixels, labels = images
    take = sources.test_size(len(labels), len(labels.unique()))
    test, train = stratified_split(labels, take, "test")
    return (pixels[train], labels[train]), (pixels[test], labels[test])


# -------------------------------------------------------------------------------------------- CIFAR-10 and CIFAR-100


def _read_cifar(source: Source) -> tuple[Images, Images]:
    """Return the train and test images, read by torchvision: it checks each batch's md5 before it unpickles it. A pickle can run code."""
    import torchvision.datasets  # late: scipy comes with it

    assert source.path is not None
    theirs = getattr(torchvision.datasets, sources.CIFARS[source.kind].torchvision)
    try:
        halves = [theirs(source.path.parent, train=train) for train in (True, False)]
    except (OSError, RuntimeError):
        sources.verify(source)  # names the file
        raise
    train, test = ((torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(half.targets)) for half in halves)
    return train, test


# ----------------------------------------------------------------------------------------------------------- digits


def _read_digits(source: Source) -> tuple[Images, Images]:
    """Return scikit-learn's digits: 8x8 grey images of values 0..16, enlarged four times and scaled to 0..255.

    Bilinear, because nearest would give each 4x4 patch of a ViT a single value. All weights are multiples of 1/64, so
    float32 is exact here and the bits are the same on every machine.
    """
    from sklearn.datasets import load_digits  # late: it takes a second

    pixels, labels = load_digits(return_X_y=True)  # (1797, 64), (1797,)
    lines = "\n".join(",".join(map(str, row)) for row in np.column_stack([pixels, labels]).astype(int).tolist())
    digest = hashlib.sha256(f"vitlab digits 1\0{lines}\n".encode()).hexdigest()[:32]
    if digest != source.digest:
        raise UserError(f"scikit-learn's digits have the digest {digest}, expected {source.digest}; reinstall it or use --data cifar10")
    grey = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8)
    grey = F.interpolate(grey, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    return _split_test(((grey * 255 / 16).round().to(torch.uint8).repeat(1, 3, 1, 1), torch.from_numpy(labels)))


# ------------------------------------------------------------------------------------------------ a folder of images


def _read_folder(source: Source) -> tuple[Images, Images]:
    assert source.path is not None
    assert source.cache is not None
    found = sources.scan(source.path)
    paths, labels = zip(*found.train, *(found.test or ()), strict=True)
    pixels = _read_cache(source.cache, len(paths))
    if pixels is None:
        pixels = np.stack([decode(path) for path in paths])
        if sources.folder_digest(source.path, found, source.mirror) != source.digest:
            raise UserError(f"{source.path}: its images changed while they were read; run again")
        _write_cache(source.cache, pixels)
    everything = torch.from_numpy(pixels), torch.tensor(labels)
    if found.test is None:
        return _split_test(everything)
    n = len(found.train)
    return (everything[0][:n], everything[1][:n]), (everything[0][n:], everything[1][n:])


def decode(path: Path) -> np.ndarray:
    """Return an image file as uint8 (3, 32, 32) RGB: turned upright as its EXIF says, squeezed to a square (bicubic, antialiased).

    Transparent pixels are laid on black, 16-bit grey is divided by 257, and an animation's first frame is taken. Raises UserError as
    `opened` does, and for an image that is not 8 or 16 bits deep.
    """
    return opened(path, pixels)


def opened(path: Path, use: Callable[[Image.Image], T]) -> T:
    """Return what `use` makes of an image file.

    Raises UserError, naming the file, if it is no image, is cut short, has more than 50 million pixels or `use` cannot use it.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise UserError("not a file" if path.exists() else "no such file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, which are not read, and about size, which is checked here
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"{image.width}x{image.height} pixels, at most {MAX_PIXELS:,} are read; make it smaller")
                return use(image)
    except Exception as e:  # Pillow's decoders raise nearly anything on a damaged file
        reason = "no image in a format that is read here" if isinstance(e, Image.UnidentifiedImageError) else str(e) or type(e).__name__
        raise UserError(f"{path}: cannot be used as an image ({reason}); replace or remove it. Read are: {', '.join(FORMATS)}") from None


def pixels(image: Image.Image) -> np.ndarray:
    """Return an image as uint8 (3, 32, 32), as `decode` has it. Raises UserError for one that is not 8 or 16 bits deep."""
    return squeezed(upright(image))


def upright(image: Image.Image) -> Image.Image:
    """Return an image as RGB, turned as its EXIF says, transparent pixels on black. Raises UserError for one that is not 8 or 16 bits deep."""
    return _to_rgb(ImageOps.exif_transpose(image))


def squeezed(rgb: Image.Image) -> np.ndarray:
    """Return an RGB image as uint8 (3, 32, 32)."""
    values = np.asarray(rgb.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))  # (H, W, C)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise UserError("32-bit values; save it with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError("floating-point values; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def _read_cache(path: Path, n: int) -> np.ndarray | None:
    """Return the decoded images (n, 3, 32, 32), or None where the cache is absent, damaged or of other images.

    The file is the SHA-256 of the pixels, then the pixels.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    checksum, pixels = content[:32], content[32:]
    if pixels.size != n * 3 * IMAGE_SIZE * IMAGE_SIZE or hashlib.sha256(pixels).digest() != checksum.tobytes():
        return None
    return pixels.reshape(n, 3, IMAGE_SIZE, IMAGE_SIZE)


def _write_cache(path: Path, images: np.ndarray) -> None:
    """Write the cache atomically, so that another run sees a whole file or none. Where it cannot be written, go on without it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as f:
            f.write(hashlib.sha256(images).digest())
            f.write(images.tobytes())
    except (OSError, files.DiskFull):
        return


READERS: dict[str, Callable[[Source], tuple[Images, Images]]] = {  # by a source's kind: (images to train on, images to test on)
    "cifar10": _read_cifar,
    "cifar100": _read_cifar,
    "digits": _read_digits,
    "folder": _read_folder,
}
