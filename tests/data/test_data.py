"""Data against scikit-learn, torchvision, NumPy and Pillow; splits and randomness against their definitions."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from tests.support import cifars
from vitlab import config
from vitlab.data import dataset, rng, samples, sources
from vitlab.errors import UserError
from vitlab.paths import REPOSITORY

DATA_DIR = Path(os.environ.get("VITLAB_DATA_DIR") or REPOSITORY / "data")
needs_cifar10 = pytest.mark.skipif(
    not (DATA_DIR / sources.CIFARS["cifar10"].folder / "test_batch").is_file(), reason="no CIFAR-10 under VITLAB_DATA_DIR"
)
FIELDS = ("train", "validation", "test")


def split(loaded: dataset.Dataset, name: str) -> tuple[Tensor, Tensor]:
    return getattr(loaded, f"{name}_images"), getattr(loaded, f"{name}_labels")


def bag(*parts: tuple[Tensor, Tensor]) -> Counter[tuple[bytes, int]]:
    """Images with their labels, as a multiset."""
    return Counter((image.numpy().tobytes(), int(label)) for images, labels in parts for image, label in zip(images, labels, strict=True))


@pytest.fixture(scope="module")
def digits() -> dataset.Dataset:
    return dataset.load(sources.resolve("digits", Path("none"), "quick"), config.Data(), "cpu")


# ------------------------------------------------------------------------------------------------------- randomness


def test_generator_is_a_function_of_seed_purpose_step() -> None:
    def draw(*triple) -> list[int]:
        return torch.randint(0, 2**31, (4,), generator=rng.generator(*triple, "cpu")).tolist()

    assert draw(1, "augment", 7) == draw(1, "augment", 7)
    others = [
        (1, "augment", 7),
        (2, "augment", 7),
        (1, "mix", 7),
        (1, "augment", 8),
        (17, "augment", 1),
        (1, "augment", 17),
        (11, "augment", 7),
    ]
    assert len({tuple(draw(*t)) for t in others}) == len(others)


def test_generator_is_pinned() -> None:
    # `printf '0\0order\0003' | b2sum -l 64`, read as a little-endian number
    assert rng.generator(0, "order", 3, "cpu").initial_seed() == int.from_bytes(bytes.fromhex("bc55dcf4780a29f7"), "little")


def test_epoch_order() -> None:
    order = rng.epoch_order(1000, seed=3, epoch=2)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(1000))
    assert torch.equal(order, rng.epoch_order(1000, seed=3, epoch=2))
    assert not torch.equal(order, rng.epoch_order(1000, seed=3, epoch=1))
    assert not torch.equal(order, rng.epoch_order(1000, seed=2, epoch=2))


# ----------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("counts", "take", "quota"),
    [
        ((50, 30, 20), 10, (5, 3, 2)),
        ((101, 57, 33), 40, (21, 12, 7)),  # 21.15, 11.94, 6.91
        ((6, 3, 1), 3, (2, 1, 0)),  # the only image of a class stays
        ((96, 2, 2), 5, (3, 1, 1)),  # a rare class is on both sides
        ((2, 2), 2, (1, 1)),
        ((10, 10, 10), 2, (1, 1, 0)),
        ((4, 4), 6, (3, 3)),
    ],
)
def test_stratified_quotas(counts: tuple[int, ...], take: int, quota: tuple[int, ...]) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    taken, rest = dataset.stratified_split(labels, take, "test")
    assert tuple(torch.bincount(labels[taken], minlength=len(counts)).tolist()) == quota
    assert sorted(torch.cat([taken, rest]).tolist()) == list(range(len(labels)))
    assert taken.tolist() == sorted(taken.tolist())
    assert rest.tolist() == sorted(rest.tolist())


def test_stratified_quotas_are_scikit_learns() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(5), (311, 207, 120, 77, 41))))
    taken, rest = dataset.stratified_split(labels, 151, "test")
    theirs = train_test_split(labels.numpy(), test_size=151, stratify=labels.numpy(), random_state=0)
    assert torch.bincount(labels[rest]).tolist() == np.bincount(theirs[0]).tolist()
    assert torch.bincount(labels[taken]).tolist() == np.bincount(theirs[1]).tolist()


def test_stratified_split_is_random_and_fixed() -> None:
    labels = torch.arange(400) % 4
    taken = dataset.stratified_split(labels, 100, "test")[0]
    assert torch.equal(taken, dataset.stratified_split(labels, 100, "test")[0])
    assert not torch.equal(taken, dataset.stratified_split(labels, 100, "validation")[0])
    assert 130 < taken.double().mean() < 270  # from everywhere: mean 199.5, standard error 10


def test_limits_and_validation(digits: dataset.Dataset) -> None:
    source = sources.resolve("digits", Path("none"), "quick")
    cfg = config.Data(validation=0.1, train_limit=200, test_limit=100)
    limited, again = dataset.load(source, cfg, "cpu"), dataset.load(source, cfg, "cpu")
    assert [len(split(limited, name)[1]) for name in FIELDS] == [180, 20, 100]
    assert torch.equal(limited.validation_labels.bincount(), torch.full((10,), 2))
    whole = {"train": bag(split(digits, "train"), split(digits, "validation")), "test": bag(split(digits, "test"))}
    assert bag(split(limited, "train"), split(limited, "validation")) <= whole["train"]  # as multisets: disjoint, too
    assert bag(split(limited, "test")) <= whole["test"]
    assert torch.equal(limited.mean, digits.mean)
    assert torch.equal(limited.std, digits.std)
    for name in FIELDS:
        assert torch.equal(split(limited, name)[0], split(again, name)[0])
        shares = split(limited, name)[1].bincount(minlength=10) / len(split(limited, name)[1])
        assert (shares - split(digits, name)[1].bincount(minlength=10) / len(split(digits, name)[1])).abs().max() < 0.02


def test_limit_beyond_the_data_is_none(digits: dataset.Dataset) -> None:
    loaded = dataset.load(sources.resolve("digits", Path("none"), "quick"), config.Data(train_limit=10_000, test_limit=10_000), "cpu")
    assert all(torch.equal(split(loaded, name)[0], split(digits, name)[0]) for name in FIELDS)


# --------------------------------------------------------------------------------------------- digits, mean and std


def test_digits_are_scikit_learns(digits: dataset.Dataset) -> None:
    theirs = load_digits()
    # Bilinear, four times: new pixel centres lie 1/8, 3/8, 5/8, 7/8 into the old pixels; beyond the border, the border. In eighths:
    weights = np.zeros((32, 8), dtype=np.int64)
    for i in range(32):
        place = 2 * i + 1 - 4  # in eighths of an old pixel, from the first centre
        for j, w in ((place // 8, 8 - place % 8), (place // 8 + 1, place % 8)):
            weights[i, min(max(j, 0), 7)] += w
    large = weights @ theirs.images.astype(np.int64) @ weights.T  # 0..16 * 64
    pixels = np.rint(large * 255 / 1024).astype(np.uint8)
    expected = torch.from_numpy(pixels)[:, None].repeat(1, 3, 1, 1), torch.from_numpy(theirs.target)
    assert bag(*(split(digits, name) for name in FIELDS)) == bag(expected)
    assert [len(split(digits, name)[1]) for name in FIELDS] == [1366, 72, 359]
    assert digits.classes == tuple("0123456789")
    assert digits.mirror is False


def test_digits_stay_bit_for_bit(digits: dataset.Dataset) -> None:
    """Pinned: other pixels, labels or splits would be another data set under the same digest."""
    found = hashlib.sha256()
    for name in FIELDS:
        for part in split(digits, name):
            found.update(part.numpy().tobytes())
    assert found.hexdigest() == "fe26d89eead953793594aa824b2555f0d144eb7e4598e2756e79eea12b67abde"


def test_other_digits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = load_digits(return_X_y=True)
    pixels[0, 0] += 1
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda return_X_y: (pixels, labels))
    with pytest.raises(UserError, match=r"digits have the digest [0-9a-f]{32}, expected 0fbe54eb00f1b730f06afc8d66f9aa71; reinstall"):
        dataset.load(sources.resolve("digits", Path("none"), "quick"), config.Data(), "cpu")


def test_digits_split_is_stratified(digits: dataset.Dataset) -> None:
    exact = np.bincount(load_digits().target) * 359 / 1797
    assert np.abs(digits.test_labels.bincount().numpy() - exact).max() < 1
    assert digits.test_labels[:20].tolist() == [
        0,
        8,
        9,
        5,
        5,
        6,
        5,
        1,
        7,
        3,
        0,
        1,
        2,
        8,
        3,
        7,
        4,
        9,
        1,
        0,
    ]  # pinned: another split would be another data set under the same digest


def test_types(digits: dataset.Dataset) -> None:
    for name in FIELDS:
        images, labels = split(digits, name)
        assert images.dtype == torch.uint8
        assert images.shape == (len(labels), 3, 32, 32)
        assert labels.dtype == torch.int64
    assert digits.mean.shape == digits.std.shape == (3,)
    assert digits.mean.dtype == digits.std.dtype == torch.float32


def test_mean_std_are_numpys() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5100, 3, 4, 4)).astype(np.uint8)  # more than one part
    images[:, 1] //= 3
    images[:, 2] = 7
    mean, std = dataset.mean_std(torch.from_numpy(images))
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean.numpy(), scaled.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.numpy()[:2], scaled.std((0, 2, 3))[:2], rtol=1e-6)
    assert std[2] == 1  # constant


# --------------------------------------------------------------------------------------------------------- CIFAR-10


@needs_cifar10
def test_the_samples_are_the_first_ten_test_images_of_each_class() -> None:
    batch = pickle.loads((DATA_DIR / sources.CIFARS["cifar10"].folder / "test_batch").read_bytes(), encoding="latin1")
    pixels, labels = batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(batch["labels"])
    first = np.concatenate([np.flatnonzero(labels == c)[:10] for c in range(10)])
    np.testing.assert_array_equal(samples.images(), pixels[first])
    np.testing.assert_array_equal(samples.labels(), labels[first])


def test_the_samples_are_still_what_they_were_when_compared_with_cifar10() -> None:
    assert hashlib.sha256(samples.images().tobytes()).hexdigest() == "c14f9b22428679cbd86e04a5aee21ab119a56071a13ec94dc8fea2cae268251e"


@needs_cifar10
def test_cifar10_is_what_its_batches_hold() -> None:
    loaded = dataset.load(sources.resolve("cifar10", DATA_DIR, "full", download=False), config.Data(), "cpu")
    folder = DATA_DIR / sources.CIFARS["cifar10"].folder
    batches = [pickle.loads((folder / n).read_bytes(), encoding="bytes") for n in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
    assert np.array_equal(loaded.test_images.flatten(1).numpy(), batches[5][b"data"])
    assert loaded.test_labels.tolist() == batches[5][b"labels"]
    pixels, labels = np.concatenate([b[b"data"] for b in batches[:5]]), [label for b in batches[:5] for label in b[b"labels"]]
    aside, rest = dataset.stratified_split(torch.tensor(labels), 2500, "validation")
    for rows, name in ((rest, "train"), (aside, "validation")):
        images, targets = split(loaded, name)
        assert np.array_equal(images.flatten(1).numpy(), pixels[rows.numpy()])
        assert targets.tolist() == [labels[i] for i in rows.tolist()]
    assert loaded.validation_labels.bincount().tolist() == [250] * 10
    np.testing.assert_allclose(loaded.mean.numpy(), (0.49139968, 0.48215841, 0.44653091), atol=1e-7)  # as commonly quoted
    np.testing.assert_allclose(loaded.std.numpy(), (0.24703223, 0.24348513, 0.26158784), atol=1e-7)


@pytest.mark.parametrize("name", cifars.NAMES)
def test_cifar_layout(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows of pickled batches become images, R, G and B planes of rows, with their labels; CIFAR-100's are the fine ones."""
    images = {"cifar10": 40, "cifar100": 300}[name]
    files = cifars.small(monkeypatch, name, images)
    cifars.place(name, files, tmp_path)
    loaded = dataset.load(sources.resolve(name, tmp_path, "full"), config.Data(), "cpu")
    *train, test = [pickle.loads(content) for file, content in files.items() if "meta" not in file]
    key = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
    assert loaded.test_labels.tolist() == test[key]
    for channel, row, column in ((0, 0, 0), (1, 2, 3), (2, 31, 31)):
        assert np.array_equal(loaded.test_images[:, channel, row, column].numpy(), test["data"][:, 1024 * channel + 32 * row + column])
    expected = torch.from_numpy(np.concatenate([b["data"] for b in train]).reshape(-1, 3, 32, 32)), torch.tensor([b[key] for b in train])
    assert bag(split(loaded, "train"), split(loaded, "validation")) == bag((expected[0], expected[1].flatten()))
    assert loaded.classes == sources.CIFARS[name].classes
    source, classes = sources.resolve(name, tmp_path, "full"), len(loaded.classes)
    too_few = config.Data.model_construct(validation=0.05, train_limit=None, test_limit=classes - 1)
    with pytest.raises(UserError, match=rf"data.test_limit: {classes - 1} is less than the data set's {classes} classes"):
        dataset.load(source, too_few, "cpu")


# ----------------------------------------------------------------------------------------------------------- folder


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_folder(root: Path, halves: tuple[str, ...] = ("",), n: int = 10) -> dict[tuple[str, str], list[np.ndarray]]:
    pixels = {}
    for h, half in enumerate(halves):
        for c, name in enumerate(("ant", "bee")):
            pixels[half, name] = [noise((32, 32, 3), 100 * h + 50 * c + i) for i in range(n)]
            (root / half / name).mkdir(parents=True)
            for i, p in enumerate(pixels[half, name]):
                Image.fromarray(p).save(root / half / name / f"{i}.png")
    return pixels


def tensors(pixels: dict[tuple[str, str], list[np.ndarray]], half: str) -> tuple[Tensor, Tensor]:
    images = [(p, label) for label, name in enumerate(("ant", "bee")) for p in pixels[half, name]]
    return torch.from_numpy(np.stack([p for p, _ in images])).permute(0, 3, 1, 2), torch.tensor([label for _, label in images])


def test_folder_with_halves(tmp_path: Path) -> None:
    pixels = make_folder(tmp_path / "set", ("train", "test"))
    loaded = dataset.load(sources.resolve(str(tmp_path / "set"), tmp_path / "data", "full"), config.Data(validation=0.2), "cpu")
    assert bag(split(loaded, "train"), split(loaded, "validation")) == bag(tensors(pixels, "train"))
    assert bag(split(loaded, "test")) == bag(tensors(pixels, "test"))
    assert loaded.validation_labels.tolist() == [0, 0, 1, 1]
    assert loaded.classes == ("ant", "bee")
    assert loaded.name == "set"


def test_folder_without_halves(tmp_path: Path) -> None:
    pixels = make_folder(tmp_path / "set")
    loaded = dataset.load(sources.resolve(str(tmp_path / "set"), tmp_path / "data", "full"), config.Data(), "cpu")
    assert bag(*(split(loaded, name) for name in FIELDS)) == bag(tensors(pixels, ""))
    assert loaded.test_labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("n", [3, 4, 5, 7])
def test_a_plan_knows_how_many_images_a_small_folder_trains_on(n: int, tmp_path: Path) -> None:
    """At least one image of each class is for testing, however few there are."""
    for label in range(10):
        for i in range(n):
            path = tmp_path / "set" / f"class {label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (label, i, 0)).save(path)
    source = sources.resolve(str(tmp_path / "set"), tmp_path / "data", "full")
    loaded = dataset.load(source, config.Data(), "cpu")
    assert source.train == len(loaded.train_labels) + len(loaded.validation_labels) == 10 * n - len(loaded.test_labels)
    assert set(loaded.test_labels.tolist()) == set(range(10))


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "set")
    source = sources.resolve(str(tmp_path / "set"), tmp_path / "data", "full")
    first = dataset.load(source, config.Data(), "cpu")
    assert source.cache is not None
    assert [p.name for p in source.cache.parent.iterdir()] == [f"{source.digest}.pixels"]
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "decode", None)  # not called
        assert torch.equal(dataset.load(source, config.Data(), "cpu").train_images, first.train_images)
    whole = source.cache.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    for damaged in (b"", b"no pixels", whole[:-1], bytes(flipped)):
        source.cache.write_bytes(damaged)
        assert torch.equal(dataset.load(source, config.Data(), "cpu").train_images, first.train_images)
        assert source.cache.stat().st_size == len(whole)  # and made anew


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    make_folder(tmp_path / "set")
    (tmp_path / "data").touch()  # a file where the folder should be
    assert len(dataset.load(sources.resolve(str(tmp_path / "set"), tmp_path / "data", "full"), config.Data(), "cpu").test_labels) == 4


def test_folder_that_changes_meanwhile(tmp_path: Path) -> None:
    make_folder(tmp_path / "set")
    source = sources.resolve(str(tmp_path / "set"), tmp_path / "data", "full")
    Image.fromarray(noise((32, 32, 3), 999)).save(tmp_path / "set" / "ant" / "0.png")
    with pytest.raises(UserError, match="changed while they were read"):
        dataset.load(source, config.Data(), "cpu")
    assert source.cache is not None
    assert not source.cache.exists()


def test_too_few_for_validation(tmp_path: Path) -> None:
    make_folder(tmp_path / "set", n=2)
    with pytest.raises(UserError, match="set: 2 training images are too few to set 1 aside"):
        dataset.load(sources.resolve(str(tmp_path / "set"), tmp_path / "data", "full"), config.Data(), "cpu")


# ----------------------------------------------------------------------------------------------------------- images


def test_resize_is_pillows_bicubic(tmp_path: Path) -> None:
    large = Image.fromarray(noise((70, 50, 3)))
    large.save(tmp_path / "large.png")
    expected = np.asarray(large.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(dataset.decode(tmp_path / "large.png"), expected)


def test_modes(tmp_path: Path) -> None:
    grey, rgb, alpha = noise((32, 32)), noise((32, 32, 3), 1), noise((32, 32, 1), 2)

    def decoded(image: Image.Image, name: str, **options) -> np.ndarray:
        image.save(tmp_path / name, **options)
        return dataset.decode(tmp_path / name).transpose(1, 2, 0)

    grey3 = np.repeat(grey[..., None], 3, 2)
    assert np.array_equal(decoded(Image.fromarray(grey), "grey.png"), grey3)
    assert np.array_equal(decoded(Image.fromarray(grey > 127), "one_bit.png"), (grey3 > 127) * 255)
    assert np.array_equal(decoded(Image.fromarray(rgb), "rgb.webp", lossless=True), rgb)
    wide = grey.astype(np.uint16) * 257
    assert np.array_equal(decoded(Image.fromarray(wide), "wide.png"), grey3)
    assert np.array_equal(decoded(Image.fromarray(wide + (grey < 255) * np.uint16(128)), "wide.tif"), grey3)  # rounded, not cut
    on_black = np.rint(rgb * (alpha / 255.0))
    assert np.abs(decoded(Image.fromarray(np.concatenate([rgb, alpha], 2)), "rgba.png").astype(int) - on_black).max() <= 1
    on_black = np.rint(grey3 * (alpha / 255.0))
    assert np.abs(decoded(Image.fromarray(np.concatenate([grey[..., None], alpha], 2)), "la.png").astype(int) - on_black).max() <= 1
    palette = Image.fromarray(grey % 3).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    assert np.array_equal(decoded(palette, "palette.png"), colours[grey % 3])
    colours[1] = 0
    assert np.array_equal(decoded(palette, "transparent.png", transparency=1), colours[grey % 3])
    cmyk = decoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "cmyk.jpg", quality=100)  # no cyan: red
    assert np.abs(cmyk.astype(int) - (255, 0, 0)).max() <= 3


def test_exif_orientation(tmp_path: Path) -> None:
    upright = noise((32, 32, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise for viewing
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(dataset.decode(tmp_path / "turned.png").transpose(1, 2, 0), upright)


def test_bad_images(tmp_path: Path) -> None:
    path = tmp_path / "bad.png"

    def reason(content: bytes | None = None) -> str:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.png: cannot be used as an image \(.*\); replace or remove it") as e:
            dataset.decode(path)
        return str(e.value)

    Image.fromarray(noise((64, 64, 3))).save(path)
    whole = path.read_bytes()
    assert "truncated" in reason(whole[: len(whole) // 2])
    assert "no image in a format" in reason(b"")
    assert "no image in a format" in reason(b"GIF? No, a text.")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
    assert "no image in a format" in reason(eps)  # which Pillow would run through Ghostscript
    Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(path, format="TIFF")
    assert "32-bit values" in reason()
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(path, format="TIFF")
    assert "floating-point" in reason()
    for side, message in (
        (7100, "7100x7100 pixels, at most 50,000,000"),
        (20_000, "decompression bomb"),
    ):  # the latter is Pillow's own bound
        header = b"IHDR" + struct.pack(">II", side, side) + whole[24:29]
        bomb = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
        assert message in reason(bomb)


def test_bad_image_in_a_folder_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "set")
    (tmp_path / "set" / "bee" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"bee.notes\.txt: cannot be used as an image"):
        dataset.load(sources.resolve(str(tmp_path / "set"), tmp_path / "data", "full"), config.Data(), "cpu")
