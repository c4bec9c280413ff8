"""Sources against torchvision, scikit-learn, and folders, archives and a web site made here."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torchvision
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from tests.support import cifars
from vitlab import config
from vitlab.data import dataset, sources
from vitlab.errors import UserError
from vitlab.paths import REPOSITORY

DATA_DIR = Path(os.environ.get("VITLAB_DATA_DIR") or REPOSITORY / "data")
needs_cifar10 = pytest.mark.skipif(
    not (DATA_DIR / sources.CIFARS["cifar10"].folder / "test_batch").is_file(), reason="no CIFAR-10 under VITLAB_DATA_DIR"
)


@pytest.fixture(params=cifars.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tiny(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    return cifars.small(monkeypatch, name)


@pytest.fixture
def archive(name: str, tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny CIFAR as an archive, alone in a folder."""
    return cifars.archive(monkeypatch, name, tiny, tmp_path / "site")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that refuses connections, and no proxy on the way to it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        for theirs in (CIFAR10, CIFAR100):
            monkeypatch.setattr(theirs, "url", f"http://127.0.0.1:{s.getsockname()[1]}/{theirs.filename}")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def image(path: Path, color: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (color, 0, 0)).save(path)


def folder_of(root: Path, n: int = 2, halves: tuple[str, ...] = ("train", "test")) -> Path:
    for h, half in enumerate(halves):
        for c, name in enumerate(("cat", "ant")):
            for i in range(n):
                image(root / half / name / f"{i}.png", 100 * h + 10 * c + i)
    return root


# --------------------------------------------------------------------------------------------------------- CIFAR-10


@pytest.mark.parametrize(("name", "theirs"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_constants_are_torchvisions(name: str, theirs: type[CIFAR10]) -> None:
    cifar = sources.CIFARS[name]
    meta = theirs.meta["filename"], theirs.meta["md5"]
    assert {file: md5 for file, (_, md5) in cifar.files.items()} == dict([*theirs.train_list, *theirs.test_list, meta])
    assert (cifar.archive[0], cifar.archive[2]) == (theirs.filename, theirs.tgz_md5)
    assert (cifar.folder, cifar.torchvision) == (theirs.base_folder, theirs.__name__)
    assert list(cifar.classes) == sorted(set(cifar.classes)), "in the order of their names, as the authors numbered them"
    assert len(cifar.classes) == {"cifar10": 10, "cifar100": 100}[name]


@needs_cifar10
def test_real_cifar10() -> None:
    source = sources.resolve("cifar10", DATA_DIR, "full", download=False)
    meta = pickle.loads((DATA_DIR / sources.CIFARS["cifar10"].folder / "batches.meta").read_bytes(), encoding="latin1")
    assert source.classes == tuple(meta["label_names"])
    assert sources.resolve("auto", DATA_DIR, "quick", download=False) == source
    assert "all checksums right" in sources.prepare(DATA_DIR)[0]


def test_import_is_light() -> None:
    code = "import sys, vitlab.data.sources; print([m for m in ('torch', 'torchvision', 'sklearn', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


def test_two_commands_fetch_it_once(name: str, tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one finds files that are not whole yet: it waits, and does not call them damaged."""
    begun, fetched = threading.Event(), []

    def fetch(data_dir: Path, train: bool, download: bool) -> None:
        fetched.append(data_dir)
        folder = cifars.place(name, {file: content[:-1] for file, content in tiny.items()}, data_dir)
        begun.set()
        time.sleep(0.7)
        for file, content in tiny.items():
            (folder / file).write_bytes(content)

    monkeypatch.setattr(torchvision.datasets, sources.CIFARS[name].torchvision, fetch)
    monkeypatch.setattr(fetch, "url", "", raising=False)
    monkeypatch.setattr(sources, "unreachable", lambda url: "")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(sources.resolve, name, tmp_path, "full")
        begun.wait()
        assert sources.resolve(name, tmp_path, "full") == first.result()
    assert fetched == [tmp_path]
    assert [path.name for path in tmp_path.iterdir()] == [sources.CIFARS[name].folder], "and no lock is left"


def test_in_place(name: str, tiny: dict[str, bytes], tmp_path: Path) -> None:
    folder = cifars.place(name, tiny, tmp_path)
    source = sources.resolve(name, tmp_path, "full")
    assert (source.kind, source.name, source.path, source.mirror, source.train, source.note) == (name, name, folder, True, 50_000, "")
    assert source.digest == {"cifar10": "c58f30108f718f92721af3b95e74349a", "cifar100": "eb9058c3a382ffc7106e4002c42a8d85"}[name]
    sources.verify(source)


def test_cut_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = cifars.small(monkeypatch, "cifar10")
    path = cifars.place("cifar10", tiny, tmp_path) / "data_batch_3"
    path.write_bytes(tiny["data_batch_3"][:1000])
    for data in ("cifar10", "auto"):  # auto does not hide it behind the digits
        with pytest.raises(UserError, match=r"data_batch_3: damaged: 1,000 bytes, expected 1\d\d,\d+.*Delete .*fetches it anew"):
            sources.resolve(data, tmp_path, "quick")


class Payload:
    """Unpickled, it leaves a mark."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(Payload.mark),))

    mark = Path("ran")


def test_a_file_of_another_md5_is_found_before_any_unpickling(name: str, tiny: dict[str, bytes], tmp_path: Path) -> None:
    folder = cifars.place(name, tiny, tmp_path)
    last = {"cifar10": "test_batch", "cifar100": "test"}[name]  # so that the others could have been unpickled before it
    first = next(iter(tiny))
    Payload.mark = tmp_path / "ran"
    code = pickle.dumps(Payload())
    for file in (last, first):
        content = code.ljust(len(tiny[file]))
        (folder / file).write_bytes(content)
        source = sources.resolve(name, tmp_path, "full")
        md5 = hashlib.md5(content).hexdigest()
        with pytest.raises(UserError, match=rf"{file}: damaged: md5 {md5}, expected {sources.CIFARS[name].files[file][1]}. Delete"):
            dataset.load(source, config.Data(), "cpu")
        assert not Payload.mark.exists()
    pickle.loads(code)
    assert Payload.mark.exists(), "the test can fail"


def test_archive_in_place_is_extracted(name: str, archive: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "unreachable", None)  # no network is asked
    planned = sources.resolve(name, archive.parent, "full", download=False)
    assert [p.name for p in archive.parent.iterdir()] == [archive.name]  # a dry run writes nothing
    assert sources.resolve(name, archive.parent, "full") == planned
    assert contents(archive.parent / sources.CIFARS[name].folder) == tiny
    if name == "cifar10":
        assert sources.resolve("auto", archive.parent, "full") == planned


@pytest.mark.parametrize("left_over", [b"", b"half a download"])
def test_download(
    name: str, archive: Path, tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_over: bytes
) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    data_dir = tmp_path / "data"
    if left_over:
        data_dir.mkdir()
        (data_dir / archive.name).write_bytes(left_over)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=archive.parent)) as server:
        theirs = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
        monkeypatch.setattr(theirs, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = sources.resolve(name, data_dir, "full")
        server.shutdown()
    assert source.path is not None
    assert contents(source.path) == tiny
    if name == "cifar10":
        assert [line.split(":")[0] for line in sources.prepare(data_dir)] == ["cifar10", "digits"]
    assert socket.getdefaulttimeout() is None


def test_unreachable_site(tmp_path: Path) -> None:
    for data, profile in (("cifar10", "quick"), ("auto", "overnight"), ("auto", "full"), ("cifar100", "quick")):
        archive = "cifar-100" if data == "cifar100" else "cifar-10"
        with pytest.raises(
            UserError, match=rf"cannot be downloaded: 127\.0\.0\.1: .*refused.*{archive}-python\.tar\.gz.*VITLAB_DATA_DIR.*--data digits"
        ):
            sources.resolve(data, tmp_path, profile)
    with pytest.raises(UserError, match="cannot be downloaded"):
        sources.prepare(tmp_path)


def test_damaged_archive_without_a_network(name: str, archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{archive.name} is damaged: md5 .*, expected {sources.CIFARS[name].archive[2]}"):
        sources.resolve(name, archive.parent, "full")


def test_name_lookup_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> None:
        release.wait()
        raise socket.gaierror("released")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(sources, "REACH_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"no answer within 0\.1 s"):
        sources.resolve("cifar10", tmp_path, "full")
    release.set()


def test_auto_falls_back_to_digits_in_quick_alone(tmp_path: Path) -> None:
    source = sources.resolve("auto", tmp_path, "quick")
    assert source.kind == "digits"
    assert "say nothing about CIFAR-10" in source.note
    assert "VITLAB_DATA_DIR" in source.note


def test_without_download_no_network_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "unreachable", None)
    source = sources.resolve("auto", tmp_path, "quick", download=False)
    assert source.kind == "digits"
    assert "a run would first download it" in source.note
    for data, kind in (("auto", "cifar10"), ("cifar10", "cifar10"), ("cifar100", "cifar100")):  # the digest is known without the data
        planned = sources.resolve(data, tmp_path, "full", download=False)
        assert (planned.kind, planned.digest) == (kind, sources.CIFARS[kind].archive[2])
        assert "a run would first download it" in planned.note
    assert not list(tmp_path.iterdir())


def test_data_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory"):
        sources.resolve("cifar10", tmp_path / "file", "full")


# ----------------------------------------------------------------------------------------------------------- digits


def test_digits(tmp_path: Path) -> None:
    source = sources.resolve("digits", tmp_path, "full")
    assert (source.kind, source.name, source.path, source.mirror, source.note) == ("digits", "digits", None, False, "")
    assert source.classes == tuple("0123456789")
    assert source.digest == "0fbe54eb00f1b730f06afc8d66f9aa71"  # pinned: it is part of every digits run's fingerprint


def test_digits_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"scikit-learn.*not installed"):
        sources.resolve("digits", tmp_path, "full")


# ----------------------------------------------------------------------------------------------------------- folder


def test_halves(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "my set!")
    (root / "README.md").write_text("not an image, and not in a class folder")
    (root / "train" / "cat" / ".hidden").touch()
    (root / "train" / "cat" / "dataset.yaml").touch()
    source = sources.resolve(str(root), tmp_path, "full")
    assert (source.kind, source.name, source.classes, source.mirror) == ("folder", "my-set", ("ant", "cat"), True)
    assert source.path == root
    assert len(source.digest) == 32
    found = sources.scan(root)
    assert [(str(p.relative_to(root)), label) for p, label in found.train] == [
        ("train/ant/0.png", 0), ("train/ant/1.png", 0), ("train/cat/0.png", 1), ("train/cat/1.png", 1),
    ]  # fmt: skip
    assert found.test is not None
    assert len(found.test) == 4


def test_one_folder_of_classes(tmp_path: Path) -> None:
    for name in ("bus", "train"):  # 'train' as a vehicle
        for i in range(2):
            image(tmp_path / name / f"{i}.png")
    found = sources.scan(tmp_path)
    assert found.classes == ("bus", "train")
    assert found.test is None
    assert len(found.train) == 4


@pytest.mark.parametrize(
    ("folder", "name"),
    [("cifar10", "cifar10-folder"), ("digits", "digits-folder"), ("cifar100", "cifar100-folder"), ("é", "folder"), ("a b/", "a-b")],
)
def test_name(tmp_path: Path, folder: str, name: str) -> None:
    assert sources.resolve(str(folder_of(tmp_path / folder)), tmp_path, "full").name == name


def test_digest_is_of_names_contents_and_symmetry_alone(tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        return sources.resolve(str(root), tmp_path, "full").digest

    a, b = folder_of(tmp_path / "a"), folder_of(tmp_path / "b")
    seen = [digest(a)]
    assert digest(b) == seen[0]  # wherever it lies
    (b / "train" / "ant" / "0.png").rename(b / "train" / "ant" / "9.png")
    seen.append(digest(b))
    image(b / "train" / "ant" / "9.png", 255)
    seen.append(digest(b))
    (a / "dataset.yaml").write_text("mirror: false\n")
    seen.append(digest(a))
    assert len(set(seen)) == 4


def test_dataset_yaml(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set")
    for text, mirror in (("mirror: false", False), ("mirror: true", True)):
        (root / "dataset.yaml").write_text(text)
        assert sources.resolve(str(root), tmp_path, "full").mirror is mirror
    for text, message in (
        ("mirror: 0", "dataset.yaml:1: mirror: expected true or false"),
        ("\nflip: true", "dataset.yaml:2: flip: unknown key"),
    ):
        (root / "dataset.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            sources.resolve(str(root), tmp_path, "full")


def test_links(tmp_path: Path) -> None:
    outside = folder_of(tmp_path / "outside", halves=("train",)) / "train"
    root = tmp_path / "set"
    root.mkdir()
    for name in ("ant", "cat"):
        (root / name).symlink_to(outside / name)
    assert len(sources.scan(root).train) == 4
    (outside / "ant" / "loop").symlink_to(outside / "ant")
    with pytest.raises(UserError, match=r"ant.loop: not a file"):
        sources.scan(root)
    (outside / "ant" / "loop").unlink()
    (root / "loop").symlink_to(root)
    with pytest.raises(UserError, match=r"loop.ant: not a file"):
        sources.scan(root)
    (root / "loop").unlink()
    for target in ("self", "nowhere"):
        (root / "self").symlink_to(target)
        with pytest.raises(UserError, match="self: a link that leads nowhere"):
            sources.scan(root)
        (root / "self").unlink()


def break_empty(root: Path) -> None:
    (root / "train" / "bee").mkdir()


def break_one_class(root: Path) -> None:
    (root / "train" / "cat").rename(root / "cats")


def break_no_class(root: Path) -> None:
    (root / "test" / "cat").rename(root / "cats")
    (root / "test" / "ant").rename(root / "ants")


def break_differ(root: Path) -> None:
    (root / "test" / "cat").rename(root / "test" / "bee")


def break_half(root: Path) -> None:
    (root / "test").rename(root / "val")


def break_nested(root: Path) -> None:
    image(root / "train" / "ant" / "more" / "0.png")


def break_fifo(root: Path) -> None:
    os.mkfifo(root / "train" / "ant" / "pipe")  # reading it would hang


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_empty, r"train.bee: no images; add some or remove"),
        (break_one_class, r"train: expected at least two class folders with images in them, found only one, 'ant'"),
        (break_no_class, r"test: expected at least two class folders with images in them, found none"),
        (break_differ, r"'bee' only in test; 'cat' only in train"),
        (break_half, r"has train/ but no test/; add it"),
        (break_nested, r"ant.more: not a file"),
        (break_fifo, r"ant.pipe: not a file"),
    ],
)
def test_bad_folders(tmp_path: Path, spoil, message: str) -> None:
    root = folder_of(tmp_path / "set")
    spoil(root)
    with pytest.raises(UserError, match=message):
        sources.resolve(str(root), tmp_path, "full")


def test_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    image(tmp_path / "ant" / "0.png")
    image(tmp_path / "cat" / "0.png")
    with pytest.raises(UserError, match=r"ant: has one image; add some"):
        sources.scan(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar1O: no such folder; expected auto, cifar10, cifar100, digits, or a folder"):
        sources.resolve(str(tmp_path / "cifar1O"), tmp_path, "full")
