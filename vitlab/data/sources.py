"""Which data set a run uses, where it lies, its digest, its classes and its symmetry. No pixels are read here, but in `dataset.load`."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import os
import re
import socket
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from vitlab.config.places import read_yaml
from vitlab.errors import UserError
from vitlab.files import held, printable

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = (  # of the fine labels, in torchvision's order
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy", "bridge", "bus",
    "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch",
    "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo",
    "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse",
    "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television",
    "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
DIGITS_DIGEST = "0fbe54eb00f1b730f06afc8d66f9aa71"  # of scikit-learn's digits; dataset.py compares
REACH_SECONDS = 10  # for the first answer of the data set's site, name look-up included
TEST_SHARE = 0.2  # of the images, where a data set has no test split of its own
STALL_SECONDS = 60  # a download in which nothing arrives for so long has failed


class Unavailable(UserError):
    """A data set is not here and cannot be fetched."""


@dataclass(frozen=True)
class Source:
    """One data set, before any pixel is read."""

    kind: str  # a name in SOURCES, or folder
    name: str  # the same, or the folder's name in [A-Za-z0-9._-]
    path: Path | None  # the folder with the files; None for the digits, which scikit-learn brings
    digest: str  # hex digits that change with the images or their labels: part of every run's fingerprint
    classes: tuple[str, ...]
    mirror: bool  # whether an image flipped left-right is still of its class
    train: int  # images to train on, the validation split among them
    note: str = ""  # a banner for the user
    cache: Path | None = None  # where decoded images of a folder are kept


def resolve(data: str, data_dir: Path, profile: str, download: bool = True) -> Source:
    """Return the data set that `data` names: auto, a name in SOURCES, or a folder's path.

    `auto` is CIFAR-10. In the profile `quick` it is the digits where CIFAR-10 cannot be had, and `note` says so. `download=False` uses
    no network and writes nothing: the result is good for a plan, and `note` says what is not here yet. Raises UserError, with the
    remedy, for what is missing or damaged.
    """
    if data in SOURCES:
        return SOURCES[data](data_dir, download)
    if data != "auto":
        return _folder(Path(os.path.expanduser(data)), data_dir)
    try:
        source = SOURCES["cifar10"](data_dir, download)
    except Unavailable as e:
        if profile != "quick":
            raise
        note = f"scikit-learn's digits stand in for CIFAR-10: these numbers say nothing about CIFAR-10.\n{e}"
        return replace(SOURCES["digits"](data_dir, download), note=note)
    if source.note and profile == "quick":
        note = f"{source.note} Where it cannot be downloaded, scikit-learn's digits stand in for it, as in this plan."
        return replace(SOURCES["digits"](data_dir, download), note=note)
    return source


def name_of(data: str | Path) -> str:
    """Return the data set's name in records: as in SOURCES, or made from the folder's name. The folder is not read and need not exist."""
    if data in SOURCES:
        return str(data)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(os.path.expanduser(data)).resolve().name).strip("-.")[:80] or "folder"
    return f"{name}-folder" if name in SOURCES else name  # those names are taken, and reports tell data sets apart by name


def prepare(data_dir: Path) -> tuple[str, ...]:
    """Make CIFAR-10 available and verify every checksum; return a line for the user on each data set that `auto` may stand for.

    Raises UserError as `resolve` and `verify` do.
    """
    cifar10, digits = SOURCES["cifar10"](data_dir, True), SOURCES["digits"](data_dir, True)
    verify(cifar10)
    return (
        f"cifar10: {cifar10.path}, {len(CIFARS['cifar10'].files)} files, all checksums right, digest {cifar10.digest}",
        f"digits: bundled with scikit-learn, digest {digits.digest}",
    )


# -------------------------------------------------------------------------------------------- CIFAR-10 and CIFAR-100


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100: its names in torchvision, its files' sizes and checksums, and its classes, known before anything is read."""

    title: str
    torchvision: str  # the class in torchvision.datasets that fetches and reads it
    folder: str
    archive: tuple[str, int, str]  # name, bytes, md5
    files: dict[str, tuple[int | None, str]]  # every file that is read: (bytes where they are known, md5)
    classes: tuple[str, ...]


CIFARS = {
    "cifar10": Cifar(
        "CIFAR-10",
        "CIFAR10",
        "cifar-10-batches-py",
        ("cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a"),
        {
            "data_batch_1": (31_035_704, "c99cafc152244af753f735de768cd75f"),
            "data_batch_2": (31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
            "data_batch_3": (31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
            "data_batch_4": (31_035_696, "634d18415352ddfa80567beed471001a"),
            "data_batch_5": (31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
            "test_batch": (31_035_526, "40351d587109b95175f43aff81a1287e"),
            "batches.meta": (158, "5ff9c542aee3614f3951f8cda6e48888"),
        },
        CIFAR10_CLASSES,
    ),
    "cifar100": Cifar(
        "CIFAR-100",
        "CIFAR100",
        "cifar-100-python",
        ("cifar-100-python.tar.gz", 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"),
        {
            "train": (None, "16019d7e3df5f24257cddd939b257f8d"),
            "test": (None, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            "meta": (None, "7973b15100ade9c7d40fb424638fde48"),
        },
        CIFAR100_CLASSES,
    ),
}


def _cifar(name: str, data_dir: Path, download: bool) -> Source:
    cifar = CIFARS[name]
    archive, size, digest = cifar.archive
    folder = data_dir / cifar.folder
    note = ""
    if not download:
        if not _complete(cifar, folder) and not _has_size(data_dir / archive, size):
            note = f"{cifar.title} is not in {data_dir}: a run would first download it."
    elif not _whole(cifar, folder):
        say = cache(lambda holder: print(f"{cifar.title} is being fetched by {printable(holder)}; waiting", file=sys.stderr))
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # where nothing can be written nobody else fetches it, and _fetch says so
                stack.enter_context(held(data_dir / f".{cifar.folder}.lock", say))
            if not _complete(cifar, folder):
                _fetch(cifar, data_dir)
    return Source(name, name, folder, digest, cifar.classes, mirror=True, train=50_000, note=note)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _whole(cifar: Cifar, folder: Path) -> bool:
    """Return whether every file is present with its right size. It need not be: another command may be unpacking them."""
    return all((folder / name).is_file() if size is None else _has_size(folder / name, size) for name, (size, _) in cifar.files.items())


def _complete(cifar: Cifar, folder: Path) -> bool:
    """Return whether every file is present with its right size; opens none. Raises UserError for a file of another size."""
    complete = True
    for name, (size, _) in cifar.files.items():
        path = folder / name
        if not path.is_file():
            complete = False
        elif size is not None and path.stat().st_size != size:
            raise UserError(f"{path}: damaged: {path.stat().st_size:,} bytes, expected {size:,}. {_replace(folder)}")
    return complete


def verify(source: Source) -> None:
    """Raise UserError for a file of CIFAR-10 or CIFAR-100 that is missing, unreadable or whose md5 is not torchvision's."""
    assert source.path is not None
    for name, (_, md5) in CIFARS[source.kind].files.items():
        path = source.path / name
        try:
            found = _md5(path)
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror}). {_replace(source.path)}") from None
        if found != md5:
            raise UserError(f"{path}: damaged: md5 {found}, expected {md5}. {_replace(source.path)}")


def _md5(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _replace(folder: Path) -> str:
    return f"Delete {folder}: the same command, or 'vitlab data' for CIFAR-10, fetches it anew."


def _remedy(cifar: Cifar, data_dir: Path) -> str:
    return (
        f"Place {cifar.archive[0]} or the folder {cifar.folder} in {data_dir}, "
        "or name the folder that holds it with VITLAB_DATA_DIR (make: DATA_DIR=...), or use --data digits."
    )


def _fetch(cifar: Cifar, data_dir: Path) -> None:
    """Extract the archive in `data_dir`, downloading it first where it is not there whole; torchvision checks its md5 before opening it."""
    import torchvision.datasets  # late: it imports torch

    theirs = getattr(torchvision.datasets, cifar.torchvision)
    archive, _, md5 = cifar.archive
    damaged = ""
    try:
        found = _md5(data_dir / archive)
        here = found == md5
        if not here:  # most likely an interrupted download; torchvision overwrites it
            damaged = f" {data_dir / archive} is damaged: md5 {found}, expected {md5}."
    except FileNotFoundError:
        here = False
    except OSError as e:
        raise UserError(f"{data_dir / archive}: cannot be read ({e.strerror}); check the path and its permissions") from None
    reason = "" if here else unreachable(theirs.url)
    if reason:
        host = urllib.parse.urlsplit(theirs.url).hostname
        raise Unavailable(
            f"{cifar.title} is not in {data_dir} and cannot be downloaded: {host}: {reason}.{damaged} {_remedy(cifar, data_dir)}"
        )
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # torchvision sets none: a stalled download would hang for ever
    try:
        theirs(data_dir, train=False, download=True)
    except (OSError, EOFError, RuntimeError) as e:
        raise Unavailable(f"{cifar.title} could not be fetched into {data_dir}: {e}. {_remedy(cifar, data_dir)}") from e
    finally:
        socket.setdefaulttimeout(timeout)


def unreachable(url: str) -> str:
    """Return why `url` gives no answer within REACH_SECONDS, or ""; it is asked as torchvision would, by way of the proxies.

    In a thread of its own, since a name look-up has no time-out.
    """
    outcome = [f"no answer within {REACH_SECONDS} s"]

    def attempt() -> None:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "vitlab"})
        try:
            urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
            outcome[0] = ""
        except (OSError, http.client.HTTPException, ValueError) as e:  # URLError, time-outs and TLS failures are OSErrors
            outcome[0] = str(e) or type(e).__name__

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return outcome[0]


# ----------------------------------------------------------------------------------------------------------- digits


def _digits(data_dir: Path, download: bool) -> Source:
    if importlib.util.find_spec("sklearn") is None:  # not imported, which is slow
        raise UserError("digits: scikit-learn, which brings them, is not installed; install it or use --data cifar10")
    return Source("digits", "digits", None, DIGITS_DIGEST, tuple("0123456789"), mirror=False, train=1_438)


# ------------------------------------------------------------------------------------------------ a folder of images


@dataclass(frozen=True)
class Scan:
    """The images of a folder: `train` and `test` hold (file, class index); `test` is None where the folder is not so divided."""

    classes: tuple[str, ...]
    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...] | None


def scan(folder: Path) -> Scan:
    """List `train/<class>/*` and `test/<class>/*`, or `<class>/*`, in the order of names; opens no image.

    Hidden entries and whatever lies beside the class folders (a README) are passed over. Links may lead anywhere; nothing
    below a class folder is descended into, so loops end. Raises UserError: the path, what is wrong with it, the remedy.
    """
    train, test = folder / "train", folder / "test"
    if train.is_dir() and test.is_dir():
        train_classes, test_classes = _class_folders(train), _class_folders(test)
        if differ := sorted(set(train_classes) ^ set(test_classes)):
            only = "; ".join(f"'{c}' only in {'train' if c in train_classes else 'test'}" for c in differ[:5])
            raise UserError(f"{folder}: train and test must have the same class folders: {only}")
        return Scan(tuple(train_classes), _labelled(train_classes), _labelled(test_classes))
    for half, other in ((train, "test"), (test, "train")):
        if half.is_dir() and any(p.is_dir() for p in _entries(half)):
            raise UserError(f"{folder}: has {half.name}/ but no {other}/; add it, or put the class folders directly into {folder}")
    by_class = _class_folders(folder)
    for name, images in by_class.items():
        if len(images) < 2:
            raise UserError(f"{folder / name}: has one image; add some: train and test each need one of every class")
    return Scan(tuple(by_class), _labelled(by_class), None)


def _entries(folder: Path) -> list[Path]:
    try:
        entries = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
        for path in entries:
            if not path.exists():
                raise UserError(f"{path}: a link that leads nowhere; mend it or remove it")
    except OSError as e:
        raise UserError(f"{folder}: cannot be listed ({e.strerror}); check the path and its permissions") from None
    return entries


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """Return class name -> its images' paths, both sorted. Raises UserError for fewer than two classes, and for an empty one."""
    by_class = {}
    for class_folder in (p for p in _entries(folder) if p.is_dir()):
        files = [p for p in _entries(class_folder) if p.name != "dataset.yaml"]
        for path in files:
            if not path.is_file():
                raise UserError(f"{path}: not a file; a class folder holds images alone, so move or remove it")
        if printable(class_folder.name) != class_folder.name:
            raise UserError(f"{class_folder}: rename the folder: a class's name is readable text")
        if not files:
            raise UserError(f"{class_folder}: no images; add some or remove the folder")
        by_class[class_folder.name] = files
    if len(by_class) < 2:
        found = f"only one, '{next(iter(by_class))}'" if by_class else "none"
        raise UserError(f"{folder}: expected at least two class folders with images in them, found {found}")
    return by_class


def _labelled(by_class: dict[str, list[Path]]) -> tuple[tuple[Path, int], ...]:
    return tuple((path, label) for label, files in enumerate(by_class.values()) for path in files)


def folder_digest(folder: Path, found: Scan, mirror: bool) -> str:
    """Return 32 hex digits of SHA-256 over the images' relative names, their contents and the symmetry, which changes what is trained.

    Raises UserError for a file that cannot be read.
    """
    digest = hashlib.sha256(f"vitlab folder 1 mirror={mirror}\0".encode())
    for path, _ in (*found.train, *(found.test or ())):
        try:
            with path.open("rb") as f:
                content = hashlib.file_digest(f, "sha256").digest()
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror}); check its permissions") from None
        digest.update(path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape") + b"\0" + content)
    return digest.hexdigest()[:32]


def _folder(folder: Path, data_dir: Path) -> Source:
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder; expected auto, {', '.join(SOURCES)}, or a folder of images")
    folder = folder.resolve()
    found, mirror = scan(folder), _mirror(folder / "dataset.yaml")
    digest = folder_digest(folder, found, mirror)
    train = len(found.train) if found.test is not None else len(found.train) - test_size(len(found.train), len(found.classes))
    return Source("folder", name_of(folder), folder, digest, found.classes, mirror, train, cache=data_dir / ".cache" / f"{digest}.pixels")


def test_size(images: int, classes: int) -> int:
    """Return how many of a data set's images become its test split where it has none: a fifth, and at least one of each class to test and to train."""
    return min(max(classes, round(TEST_SHARE * images)), images - classes)


def _mirror(path: Path) -> bool:
    if not path.exists():
        return True
    values, places = read_yaml(path)
    for key in values:
        if key != "mirror":
            raise UserError(f"{places[(key,)]}: {key}: unknown key; dataset.yaml has 'mirror' alone")
    mirror = values.get("mirror", True)
    if mirror is not True and mirror is not False:
        raise UserError(f"{places[('mirror',)]}: mirror: expected true or false")
    return mirror


SOURCES: dict[str, Callable[[Path, bool], Source]] = {  # by name: (data_dir, download) -> Source, for dataset.READERS to read
    "cifar10": partial(_cifar, "cifar10"),
    "cifar100": partial(_cifar, "cifar100"),
    "digits": _digits,
}
