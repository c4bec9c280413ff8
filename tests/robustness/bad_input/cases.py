"""Every case of the corpus: what is arranged, which command is given, and words that its one message must contain."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load, save, save_file

from tests.robustness.bad_input.build import EXPERIMENTS, GOOD, Payload, checkpoint_of, cut, flip, hostile_pickle, png_of
from tests.support.world import World
from vitlab import records
from vitlab.run import published as weights

Arrange = Callable[[World], list[object]]  # makes the input, returns the command's arguments


@dataclass(frozen=True)
class Case:
    name: str
    arrange: Arrange
    words: str
    command: str = "runner"  # or "vitlab"
    real: bool = False  # also run as a process of its own


def plan_of(path: Path, *more: object) -> list[object]:
    return [path, "--profile", "full", "--data", "digits", "--dry-run", *more]


# ------------------------------------------------------------------------------------------------------ experiments


def committed() -> list[Case]:
    lines = (EXPERIMENTS.parent / "expected.txt").read_text(encoding="utf-8").splitlines()[1:]
    found = [line.split(" | ", 1) for line in lines]
    return [Case(f"experiment {name}", lambda w, name=name: plan_of(EXPERIMENTS / f"{name}.yaml"), words) for name, words in found]


def chain(w: World) -> Path:
    for i in range(40):
        w.write(f"c{i}.yaml", f"extends: c{i + 1}.yaml\n")
    return w.root / "c0.yaml"


def hole(w: World) -> Path:
    """100 MB that take no room on the disk."""
    path = w.write("hole.yaml", "")
    os.truncate(path, 100_000_000)
    return path


def link(w: World, name: str, target: str) -> Path:
    path = w.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def pipe(w: World, name: str) -> Path:
    path = w.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


FILES: dict[str, tuple[Callable[[World], Path], str]] = {
    "of 100 MB": (hole, "hole.yaml: larger than 64 KiB"),
    "a byte too large": (lambda w: w.write("x.yaml", GOOD + "#" * (1 << 16)), "x.yaml: larger than 64 KiB"),
    "of brackets": (lambda w: w.write("x.yaml", "a: " + "[" * 60_000), "x.yaml:1: more than 20 levels deep"),
    "of braces": (lambda w: w.write("x.yaml", "{a: " * 15_000), "x.yaml:1: more than 20 levels deep"),
    "of dashes": (lambda w: w.write("x.yaml", "a:\n" + "- " * 30_000), "x.yaml:2: more than 20 levels deep"),
    "of keys": (lambda w: w.write("x.yaml", GOOD + "".join(f"k{i}:\n" for i in range(5000))), "x.yaml:8: k0: unknown key"),
    "extended 40 times": (chain, "c0.yaml: extends more than 20 files"),
    "that is a link to itself": (lambda w: link(w, "loop.yaml", "loop.yaml"), "loop.yaml: no such file"),
    "that is a link to nothing": (lambda w: link(w, "gone.yaml", "nowhere"), "gone.yaml: no such file"),
    "that is a pipe": (lambda w: pipe(w, "pipe.yaml"), "pipe.yaml: no such file"),
    "that is not there": (lambda w: w.root / "nothing.yaml", "nothing.yaml: no such file; experiments are in experiments/"),
    "of which a part is named": (lambda w: Path("05"), "05: no such file; did you mean 05_kd_r18?"),
    "with another ending": (lambda w: w.root / "05_kd_r18.yml", "05_kd_r18.yml: no such file; did you mean 05_kd_r18?"),
    "with two letters changed": (lambda w: Path("resnte18"), "resnte18: no such file; did you mean teachers/resnet18?"),
    "in an empty folder": (lambda w: w.write("empty/README", "").parent, "empty: no experiments (*.yaml) in this folder"),
    "in a folder beside a bad one": (
        lambda w: w.write("many/b.yaml", "title: x\nmodel: 5\n").parent,
        "many/b.yaml:2: model: expected a section",
    ),
    "whose parent is a pipe": (
        lambda w: (pipe(w, "pipe"), w.write("x.yaml", "extends: pipe\n"))[1],
        "x.yaml:1: extends: pipe: no such file",
    ),
    "whose parent is a device": (lambda w: w.write("x.yaml", "extends: /dev/zero\n"), "x.yaml:1: extends: /dev/zero: no such file"),
    "whose teacher is a link to itself": (
        lambda w: (link(w, "t.yaml", "t.yaml"), w.write("x.yaml", GOOD + "distill: {teacher: t.yaml}\n"))[1],
        "x.yaml:8: distill.teacher: t.yaml: no such file",
    ),
    "with teachers without end": (
        lambda w: [w.write(f"t{i}.yaml", GOOD + f"distill: {{teacher: t{i - 1}.yaml}}\n" * (i > 0)) for i in range(300)][-1],
        "t299.yaml: more than 20 teachers, one of the other; let one of them learn from no teacher",
    ),
    "named with a space": (lambda w: w.write("a b.yaml", GOOD), "a b.yaml: rename the file"),
    "named with a script": (lambda w: w.write("<script>alert(1)<script>.yaml", GOOD), ".yaml: rename the file"),
    "named with a pipe": (lambda w: w.write("a|b.yaml", GOOD), "a|b.yaml: rename the file"),
    "named with dots alone": (lambda w: w.write("...yaml", GOOD), "...yaml: rename the file"),
    "named with a newline": (lambda w: w.write("a\nb.yaml", GOOD), "b.yaml: rename the file"),
    "named with an escape": (lambda w: w.write("\x1b[2J.yaml", GOOD), "\\x1b[2J.yaml: rename the file"),
    "named in no encoding": (lambda w: w.write(os.fsdecode(b"\xff.yaml"), GOOD), "\\udcff.yaml: rename the file"),
}

SETS = {  # --set string: words
    "optim.lr": "--set optim.lr: expected KEY=VALUE",
    "": "--set : expected KEY=VALUE",
    "=3": "--set =3: expected KEY=VALUE",
    "optim..lr=1": "expected KEY=VALUE, for example --set optim.lr=1e-3",
    ".".join("a" * 30) + "=1": "expected KEY=VALUE",
    "optim\x00.lr=1": "--set optim\\x00.lr=1: expected KEY=VALUE",
    "extends=other.yaml": "--set extends=other.yaml: only a file can extend another",
    "optimizer.lr=1": "optimizer: unknown key, did you mean 'optim'?",
    "optim.lrr=1": "--set optim.lrr=1: optim.lrr: unknown key, did you mean 'lr'?",
    "optim.lr=fast": '--set optim.lr=fast: optim.lr: expected a valid number, got "fast"',
    "optim.lr=": "--set optim.lr=: optim.lr: expected a valid number, got null",
    "model.stem_width=4": "--set model.stem_width=4: model.stem_width: expected greater than or equal to 8, got 4",
    "optim.lr=-1": "--set optim.lr=-1: optim.lr: expected greater than 0, got -1",
    "optim.lr=.nan": "--set optim.lr=.nan: optim.lr: expected a finite number",
    "train.epochs=1e400": "--set train.epochs=1e400: train.epochs: expected a valid integer, got Infinity",
    "train.epochs=" + "9" * 100_000: "train.epochs: expected a valid integer",
    "train=5": "--set train=5: train: expected a section",
    "phases=[]": "--set phases=[]: phases: expected a length of at least 1, got 0",
    "phases.5.name=x": "--set phases.5.name=x: phases has 1 entries, counted from 0; '5' is not one",
    "phases.one.name=x": "phases has 1 entries, counted from 0; 'one' is not one",
    "phases.²=x": "'²' is not one",
    "phases." + "1" * 90 + "=x": "is not one",
    "a" * 5000 + "=x": "expected KEY=VALUE",
    "optim.lr.x=1": "--set optim.lr.x=1: optim.lr is not a section, so it has no 'x'",
    "title=A variation": "--set title=A variation: title only describes the experiment; change its file",
    "claim.top1=99": "claim only describes the experiment",
    "model={name: resnet, depth: 34}": "model.depth: expected 18 or 50, got 34",
    "model.heads=5": "dim 32 must be a multiple of heads 5",
    "ema={start: 0.1, start: 0.2}": "start: given twice; keep one",
    "ema=[": "--set ema=[: not valid YAML",
    "ema={start: 0.1": "--set ema={start: 0.1: not valid YAML",
    "ema=*e": "aliases (*e) are not allowed",
    "ema=[&a [x, x], &b [*a, *a], &c [*b, *b]]": "aliases (*a) are not allowed",
    "ema=&e [*e]": "aliases (*e) are not allowed",
    "ema=!!python/object/apply:os.system [ls]": "tags (!!python/object/apply:os.system) are not allowed",
    "ema=" + "[" * 50_000: "more than 20 levels deep",
    "ema={1: 2}": "keys must be plain words",
    "title='\x1b[2J'": "not valid YAML: a character that cannot be shown (\\x1b)",
    'title="\\udfff"': "a character that cannot be shown (\\udfff)",
    "title=" + os.fsdecode(b"\xff"): "a character that cannot be shown (\\xdcff)",
    "distill.teacher=nobody.yaml": "experiments/nobody.yaml: no such file; name it relative to the experiment",
    "title=a\n--- \nb": "but found another document",
}

FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "seeds that are words": (("--seeds", "one"), "'one': expected whole numbers with commas between"),
    "seeds with a gap": (("--seeds", "1,,2"), "'1,,2': expected whole numbers"),
    "a negative seed": (("--seeds=-1",), "'-1': seeds are between 0 and 2^32 - 1"),
    "a seed too large": (("--seeds", "4294967296"), "seeds are between 0 and 2^32 - 1"),
    "an unknown profile": (("--profile", "huge"), "invalid choice: 'huge' (choose from 'auto', 'quick', 'ledger', 'overnight', 'full')"),
    "an unknown flag": (("--device", "cuda"), "unrecognized arguments: --device cuda\n"),
    "a setting as a flag": (("--batch-size=3",), "settings are changed by --set, for example --set train.batch_size=...\n"),
    "no such data": (
        ("--data", "/nowhere"),
        "--data /nowhere: no such folder; expected auto, cifar10, cifar100, digits, or a folder of images",
    ),
    "data of an unknown user": (("--data", "~nobody-of-this-name/x"), "~nobody-of-this-name/x: no such folder"),
    "data that is a file": (("--data", "tiny.yaml"), "--data tiny.yaml: no such folder"),
}

# ----------------------------------------------------------------------------------------------------------- images


def image(name: str, content: bytes | str) -> Callable[[World, str], Path]:
    return lambda w, folder: w.write(f"{folder}/{name}", content)


def saved(name: str, change: Callable[[Path], Path] = lambda path: path, array: np.ndarray | None = None, **options: object):
    def make(w: World, folder: str) -> Path:
        path = w.image(f"{folder}/{name}", (64, 64), **options)
        if array is not None:
            Image.fromarray(array).save(path)
        return change(path)

    return make


IMAGES: dict[str, tuple[Callable[[World, str], Path], str]] = {  # each is predicted, and is one of a data set's
    "a text named .png": (image("notes.png", "hello"), "notes.png: cannot be used as an image (no image in a format that is read here)"),
    "an empty file": (image("empty.png", ""), "empty.png: cannot be used as an image (no image in a format"),
    "a PDF": (image("x.pdf", "%PDF-1.7\n"), "x.pdf: cannot be used as an image"),
    "an SVG": (image("x.svg", "<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"), "x.svg: cannot be used as an image"),
    "PostScript, a program": (image("x.eps", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"), "x.eps: cannot be used"),
    "a pickle": (image("x.png", pickle.dumps(["not", "an", "image"])), "x.png: cannot be used as an image"),
    "half a PNG": (saved("half.png", cut), "half.png: cannot be used as an image (image file is truncated"),
    "a tenth of a JPEG": (saved("tenth.jpg", lambda p: cut(p, 0.1)), "tenth.jpg: cannot be used as an image"),
    "half a WebP": (saved("half.webp", cut), "half.webp: cannot be used as an image"),
    "half a TIFF": (saved("half.tif", lambda p: cut(p, 0.9)), "half.tif: cannot be used as an image"),
    "half a BMP": (saved("half.bmp", cut), "half.bmp: cannot be used as an image"),
    "a flipped PNG": (saved("flipped.png", lambda p: flip(p, 5000)), "flipped.png: cannot be used as an image"),
    "a flipped header": (saved("header.png", lambda p: flip(p, 18)), "header.png: cannot be used as an image"),
    "32-bit values": (
        saved("deep.tif", array=np.full((4, 4), 70_000, np.int32)),
        "deep.tif: cannot be used as an image (32-bit values; save it",
    ),
    "fractions": (
        saved("float.tif", array=np.full((4, 4), 0.5, np.float32)),
        "float.tif: cannot be used as an image (floating-point values",
    ),
    "50 million pixels": (
        image("large.png", png_of(7100, 7100)),
        "large.png: cannot be used as an image (7100x7100 pixels, at most 50,000,000",
    ),
    "30,000 pixels wide and high": (image("bomb.png", png_of(30_000, 30_000)), "bomb.png: cannot be used as an image (Image size"),
    "where Pillow only warns": (image("warned.png", png_of(10_000, 10_000)), "warned.png: cannot be used as an image (10000x10000 pixels"),
    "nothing inside": (image("hollow.png", png_of(30_000, 1)), "hollow.png: cannot be used as an image"),
    "unreadable": (lambda w, folder: link(w, f"{folder}/eio.png", "/proc/self/mem"), "eio.png: can"),
}


def in_a_set(make: Callable[[World, str], Path]) -> Arrange:
    def arrange(w: World) -> list[object]:
        folder = w.images("ant", "bee")
        make(w, "set/ant")
        return [w.root / "tiny.yaml", "--profile", "full", "--data", folder]

    return arrange


PATHS: dict[str, tuple[Callable[[World], Path], str]] = {  # of images to predict
    "that is not there": (lambda w: w.root / "none.png", "none.png: cannot be used as an image (no such file)"),
    "that is a folder": (lambda w: w.images("ant"), "set: cannot be used as an image (not a file)"),
    "that is a pipe": (lambda w: pipe(w, "pipe.png"), "pipe.png: cannot be used as an image (not a file)"),
    "that is a device": (lambda w: Path("/dev/zero"), "/dev/zero: cannot be used as an image (not a file)"),
    "that is a link to itself": (lambda w: link(w, "loop.png", "loop.png"), "loop.png: cannot be used as an image (no such file)"),
    "named with an escape": (lambda w: w.write("\x1b[2J.png", "x"), "\\x1b[2J.png: cannot be used"),
}

# -------------------------------------------------------------------------------------------------------- data sets


def emptied(w: World) -> Path:
    folder = w.images("ant", "bee")
    (folder / "wasp").mkdir()
    return folder


def with_(make: Callable[[World], object], *folders: str, n: int = 10) -> Callable[[World], Path]:
    def arrange(w: World) -> Path:
        folder = w.images(*(folders or ("ant", "bee")), n=n)
        make(w)
        return folder

    return arrange


DATA_SETS: dict[str, tuple[Callable[[World], Path], str]] = {
    "with an empty class": (emptied, "wasp: no images; add some or remove the folder"),
    "of one class": (lambda w: w.images("ant"), "set: expected at least two class folders with images in them, found only one, 'ant'"),
    "of no class": (lambda w: w.write("set/README", "").parent, "set: expected at least two class folders with images in them, found none"),
    "of images without classes": (lambda w: w.image("set/a.png").parent, "set: expected at least two class folders"),
    "without a test half": (lambda w: w.images("train/ant", "train/bee"), "set: has train/ but no test/; add it"),
    "without a train half": (lambda w: w.images("test/ant", "test/bee"), "set: has test/ but no train/; add it"),
    "whose halves differ": (
        lambda w: w.images("train/ant", "train/bee", "test/ant", "test/wasp"),
        "'bee' only in train; 'wasp' only in test",
    ),
    "of one image a class": (lambda w: w.images("ant", "bee", n=1), "ant: has one image; add some"),
    "of too few images": (lambda w: w.images("ant", "bee", n=2), "set: 2 training images are too few to set 1 aside for validation"),
    "with a folder in a class": (with_(lambda w: w.image("set/ant/more/a.png")), "ant/more: not a file; a class folder holds images alone"),
    "with a pipe in a class": (with_(lambda w: pipe(w, "set/ant/pipe.png")), "ant/pipe.png: not a file"),
    "with a link to nothing": (
        with_(lambda w: link(w, "set/ant/gone.png", "nowhere")),
        "gone.png: a link that leads nowhere; mend it or remove",
    ),
    "with a link to itself": (with_(lambda w: link(w, "set/ant/loop.png", "loop.png")), "loop.png: a link that leads nowhere"),
    "with a loop of folders": (with_(lambda w: link(w, "set/ant/up", "..")), "ant/up: not a file"),
    "with a newline in a class": (lambda w: w.images("ant", "bee\rerror: b"), "rename the folder: a class's name is readable text"),
    "with a class in no encoding": (lambda w: w.images("ant", os.fsdecode(b"b\xff")), "b\\udcff: rename the folder"),
    "with an unknown setting": (with_(lambda w: w.write("set/dataset.yaml", "\nflip: true\n")), "dataset.yaml:2: flip: unknown key"),
    "with a wrong setting": (with_(lambda w: w.write("set/dataset.yaml", "mirror: 0\n")), "dataset.yaml:1: mirror: expected true or false"),
    "with settings cut off": (with_(lambda w: w.write("set/dataset.yaml", "{mirror: f")), "dataset.yaml:1: not valid YAML"),
    "with settings that are a pipe": (with_(lambda w: pipe(w, "set/dataset.yaml")), "dataset.yaml: not a file"),
    "with settings that are a folder": (with_(lambda w: (w.root / "set" / "dataset.yaml").mkdir()), "dataset.yaml: "),
    "with settings of 100 MB": (with_(lambda w: os.truncate(w.write("set/dataset.yaml", ""), 10**8)), "dataset.yaml: larger than 64 KiB"),
}


def damaged_cifar10(change: Callable[[Path], object], name: str = "data_batch_3") -> Arrange:
    def arrange(w: World) -> list[object]:
        folder = w.cifar10()
        change(folder / "cifar-10-batches-py" / name)
        return ["data", "--data-dir", folder]

    return arrange


def damaged_archive(w: World) -> list[object]:
    folder = w.archive()
    cut(next(folder.glob("*.tar.gz")))
    return ["data", "--data-dir", folder]


def archive_folder(w: World) -> list[object]:
    (w.root / "data" / "cifar-10-python.tar.gz").mkdir(parents=True)
    return ["data", "--data-dir", w.root / "data"]


CIFAR10: dict[str, tuple[Arrange, str]] = {
    "a batch cut off": (damaged_cifar10(cut), "data_batch_3: damaged: 13 bytes, expected 26. Delete"),
    "a batch with a wrong checksum": (damaged_cifar10(lambda p: flip(p, 9), "test_batch"), "test_batch: damaged: md5"),
    "a batch that is a pickle of code": (
        damaged_cifar10(lambda p: p.write_bytes(b"cos\nsystem\n(S'ls'\ntR.".ljust(26))),
        "data_batch_3: damaged: md5",
    ),
    "a batch missing": (damaged_cifar10(Path.unlink), "cannot be downloaded: 127.0.0.1"),
    "a batch unreadable": (damaged_cifar10(lambda p: (p.unlink(), p.symlink_to("/proc/self/mem"))), "data_batch_3: damaged: 0 bytes"),
    "an archive cut off": (damaged_archive, "cifar-10-python.tar.gz is damaged: md5"),
    "an archive that is a folder": (archive_folder, "cifar-10-python.tar.gz: cannot be read (Is a directory); check the path"),
    "no archive": (lambda w: ["data", "--data-dir", w.root], "VITLAB_DATA_DIR (make: DATA_DIR=...), or use --data digits"),
    "a file for a folder": (lambda w: ["data", "--data-dir", w.root / "tiny.yaml"], "tiny.yaml/cifar-10-python.tar.gz: cannot be read"),
}

# --------------------------------------------------------------------------------------------- records and weights

RECORD = "record.json"
REMEDY = "train the run anew with --force"


def rewritten(content: bytes | str | Callable[[Path], object], name: str = RECORD) -> Arrange:
    """Predict with a run one of whose files is changed."""

    def arrange(w: World) -> list[object]:
        path = w.folder("tiny") / name
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return w.predict()

    return arrange


def changed(**changes: object) -> Arrange:
    def arrange(w: World) -> list[object]:
        w.change("tiny", **changes)
        return w.predict()

    return arrange


def in_dataset(**changes: object) -> Arrange:
    def arrange(w: World) -> list[object]:
        facts = json.loads((w.folder("tiny") / RECORD).read_text())["dataset"]
        w.change("tiny", dataset=facts | changes)
        return w.predict()

    return arrange


def model(**changes: object) -> Arrange:
    return changed(config={"model": {"name": "vit", "dim": 8, "depth": 1, "heads": 1, "patch_size": 16} | changes})


def other_weights(path: Path) -> None:
    save_file({name: torch.zeros(3) for name in load(path.read_bytes())}, path)


def repickled(path: Path) -> None:
    """As weights were saved for years: with whatever code their author put in."""
    torch.save({"payload": Payload()} | load(path.read_bytes()), path)


RECORDS: dict[str, tuple[Arrange, str]] = {
    "cut off": (rewritten(cut), "record.json: not a readable run record (Unterminated string"),
    "empty": (rewritten(""), "record.json: not a readable run record (Expecting value: line 1 column 1"),
    "missing": (rewritten(Path.unlink), "neither a finished run (it has no record.json) nor a published set"),
    "a flipped brace": (rewritten(lambda p: flip(p, 0)), "record.json: not a readable run record"),
    "binary": (rewritten(b"\xff\xfe\x00" * 50), "record.json: not a readable run record ('utf-8' codec can't decode"),
    "a pickle": (rewritten(pickle.dumps({"version": 1})), "record.json: not a readable run record"),
    "a list": (rewritten("[]"), "record.json: record: Input should be a valid dictionary"),
    "of brackets": (rewritten("[" * 100_000), "record.json: not a readable run record"),
    "with a number of 5,000 digits": (rewritten('{"version": 1, "seed": ' + "9" * 5000 + "}"), "record.json: not a readable run record"),
    "of a newer version": (changed(version=2), "record.json: run record of version 2, this vitlab reads 1; update one of the two"),
    "of no version": (changed(version=None), "record.json: run record of version None, this vitlab reads 1"),
    "of another program": (rewritten('{"version": 1, "runs": []}'), "record.json: experiment: Field required; restore the record or train"),
    "with an unknown key": (changed(loss=1.0), "record.json: loss: Extra inputs are not permitted"),
    "without a title": (changed(title=None), "record.json: title: Field required"),
    "with a text for a number": (changed(params="many"), "record.json: params: Input should be a valid integer"),
    "with a negative seed": (changed(seed=-1), "record.json: seed: Input should be greater than or equal to 0"),
    "without its metrics": (changed(metrics={"test_top1": 1.0}), "record.json: record: metrics have no test_top5, validation_top1"),
    "with NaN": (changed(metrics={"test_top1": float("nan")}), "record.json: metrics.test_top1: Input should be a finite number"),
    "named to lead out": (changed(experiment="../../x"), "record.json: experiment: String should match pattern"),
    "profiled to lead out": (changed(profile=".."), "record.json: profile: String should match pattern"),
    "printed to lead out": (changed(fingerprint="/tmp/x"), "record.json: fingerprint: String should match pattern"),
    "of a data set that leads out": (in_dataset(name="../x"), "record.json: dataset.name: String should match pattern"),
    "of one class": (in_dataset(classes=["a"]), "record.json: dataset.classes: Tuple should have at least 2 items"),
    "of two channels": (in_dataset(mean=[0.5, 0.5]), "record.json: dataset.mean.2: Field required"),
    "without a model": (changed(config={}), "record.json: config.model: "),
    "of an unknown model": (model(name="swin"), "record.json: config.model: Input tag 'swin'"),
    "of a model out of range": (model(heads=0), "record.json: config.model: Input should be greater than or equal to 1"),
    "of an enormous model": (model(dim=4096, depth=64, heads=64), "weights.safetensors: cannot be used as the run's weights ("),
    "of another model": (model(dim=4), "weights.safetensors: cannot be used as the run's weights (Error(s) in loading state_dict"),
    "of more classes": (in_dataset(classes=list("abcdefghijklmn")), "weights.safetensors: cannot be used as the run's weights ("),
}

WEIGHTS: dict[str, tuple[Arrange, str]] = {
    "missing": (rewritten(Path.unlink, "weights.safetensors"), "weights.safetensors: cannot be used as the run's weights ([Errno 2]"),
    "empty": (rewritten(b"", "weights.safetensors"), "weights.safetensors: cannot be used as the run's weights"),
    "cut off": (rewritten(lambda p: cut(p, 0.99), "weights.safetensors"), "train it anew with --force"),
    "with a flipped header": (
        rewritten(lambda p: flip(p, 9), "weights.safetensors"),
        "weights.safetensors: cannot be used as the run's weights",
    ),
    "with a header of a terabyte": (rewritten(lambda p: flip(p, 5), "weights.safetensors"), "weights.safetensors: cannot be used"),
    "that are a pickle": (rewritten(repickled, "weights.safetensors"), "weights.safetensors: cannot be used as the run's weights"),
    "that are a text": (rewritten("not weights" * 9999, "weights.safetensors"), "weights.safetensors: cannot be used as the run's weights"),
    "of another model": (rewritten(other_weights, "weights.safetensors"), "weights.safetensors: cannot be used as the run's weights"),
}


def published(w: World) -> list[object]:
    w.write("results/full-digits/records/tiny-s0.json", (w.folder("tiny") / RECORD).read_bytes()[:500])
    return ["report", "--publish"]


def listed(w: World) -> list[object]:
    cut(w.folder("tiny") / RECORD)
    return ["runs"]


def best(w: World) -> list[object]:
    (w.folder("tiny") / RECORD).unlink()
    return ["predict", w.image()]


def from_set(change: Callable[[Path], object]) -> Arrange:
    """Predict with the weights that were published with a set, changed."""

    def arrange(w: World) -> list[object]:
        run, out_dir = w.folder("tiny"), w.root / "results" / "full-digits"
        w.write(out_dir / "records" / "tiny-s0.json", (run / RECORD).read_bytes())
        weights.write(out_dir, records.read(run / RECORD), run / weights.WEIGHTS)
        (run / RECORD).unlink()
        change(out_dir / "weights" / "tiny.safetensors")
        return ["predict", w.image(), "--data", "digits"]

    return arrange


def of_another_run(path: Path) -> None:
    path.write_bytes(save({"w": torch.zeros(3)}, {"record": "records/tiny-s1.json"}))


def of_three_numbers(path: Path) -> None:
    with safe_open(path, "pt") as f:
        note = f.metadata()
    path.write_bytes(save({"w": torch.zeros(3)}, note))


UNUSABLE = "results/full-digits/weights/tiny.safetensors: cannot be used as published weights ("
PUBLISHED: dict[str, tuple[Arrange, str]] = {
    "cut off": (from_set(lambda p: cut(p, 0.9)), UNUSABLE + "Error while deserializing header: incomplete metadata"),
    "with a flipped bit": (from_set(lambda p: flip(p, 8)), UNUSABLE + "Error while deserializing header"),
    "of no run": (from_set(lambda p: p.write_bytes(save({"w": torch.zeros(3)}))), UNUSABLE + "of 'no record', which is not among"),
    "that are a pickle": (from_set(lambda p: p.write_bytes(pickle.dumps(Payload()))), "); restore it, or delete it: 'vitlab report"),
    "of another run": (from_set(of_another_run), UNUSABLE + "of 'records/tiny-s1.json', which is not among the set's records"),
    "of another model": (from_set(of_three_numbers), UNUSABLE + "3 numbers, the model has"),
    "without records": (
        from_set(lambda p: (p.parents[1] / "records" / "tiny-s0.json").unlink()),
        "results/full-digits/weights: lies beside no records; restore them",
    ),
}


def packed(w: World) -> list[object]:
    cut(w.folder("tiny") / RECORD)
    return ["pack"]


OTHERS: dict[str, tuple[Arrange, str]] = {
    "report of a damaged record": (published, "records/tiny-s0.json: not a readable run record"),
    "report of nothing": (lambda w: ["report"], "no finished runs to report; train some first"),
    "report from a database that is none": (
        lambda w: (w.write("mlflow.db", "x" * 999), ["report"])[1],
        "mlflow.db: not a readable database",
    ),
    "runs, one of them damaged": (listed, "record.json: not a readable run record"),
    "predict with the best of no runs": (best, "no model for the data set cifar10: no finished run of it below"),
    "predict with a run that is not there": (
        lambda w: ["predict", w.image(), "--run", w.root / "no"],
        "no: no such folder; expected a finished run's",
    ),
    "pack of no folder": (lambda w: ["pack", w.root / "no"], "no: no such folder; expected"),
    "pack of a folder elsewhere": (lambda w: ["pack", w.root], "not a folder of runs; expected"),
    "pack of nothing finished": (lambda w: ["pack", w.folder("other")], "no finished run to pack; expected one with a record.json"),
    "pack of a damaged record": (packed, "record.json: not a readable run record"),
    "sync of no folder": (lambda w: ["sync", w.root / "no"], "no: no such folder; expected a folder of runs"),
    "schema into no folder": (lambda w: ["schema", w.root / "no" / "s.json"], "no/s.json: No such file or directory; check the path"),
    "an unknown command": (lambda w: ["train"], "invalid choice: 'train'"),
    "no command": (lambda w: [], "the following arguments are required: COMMAND"),
}

# ------------------------------------------------------------------------------------------- runs that are gone on with


def going_on(name: str, change: Callable[[World, Path], object]) -> Arrange:
    def arrange(w: World) -> list[object]:
        change(w, w.folder("other" if name == "other" else "tiny"))
        return w.train(name)

    return arrange


def checkpoint(content: bytes) -> Arrange:
    return going_on("other", lambda w, folder: (folder / "checkpoint.pt").write_bytes(content))


def pt(value: object) -> bytes:
    body = io.BytesIO()
    torch.save(value, body)
    return body.getvalue()


RUNS: dict[str, tuple[Arrange, str]] = {
    "a record cut off": (going_on("tiny", lambda w, folder: cut(folder / RECORD)), "record.json: not a readable run record"),
    "a record of another run": (
        going_on("tiny", lambda w, folder: w.change("tiny", fingerprint="abc")),
        "record.json: of another run (abc, seed 0)",
    ),
    "a record of another seed": (going_on("tiny", lambda w, folder: w.change("tiny", seed=7)), "seed 7), not of this folder's; restore it"),
    "a newer record": (going_on("tiny", lambda w, folder: w.change("tiny", version=2)), "record.json: run record of version 2"),
    "a newer checkpoint": (checkpoint(checkpoint_of(b"", 3)), "checkpoint.pt: checkpoint of version 3, this vitlab reads 2; update it"),
    "a checkpoint of code": (
        checkpoint(checkpoint_of(hostile_pickle())),
        "checkpoint.pt: not a checkpoint of this run (Weights only load failed",
    ),
    "a checkpoint of nothing": (checkpoint(checkpoint_of(b"")), "checkpoint.pt: not a checkpoint of this run"),
    "a checkpoint that is a text": (checkpoint(checkpoint_of(b"hello" * 99)), "checkpoint.pt: not a checkpoint of this run"),
    "a checkpoint that is a list": (checkpoint(checkpoint_of(pt([1]))), "checkpoint.pt: not a checkpoint of this run"),
    "a checkpoint without a model": (checkpoint(checkpoint_of(pt({"step": 1}))), "checkpoint.pt: not a checkpoint of this run ('model')"),
    "another model's checkpoint": (
        checkpoint(checkpoint_of(pt({"model": {"w": torch.zeros(1)}}))),
        "checkpoint.pt: not a checkpoint of this run (Error(s) in loading state_dict",
    ),
    "a journal shorter than its checkpoint": (
        going_on("other", lambda w, folder: (folder / "journal.jsonl").write_bytes(b"")),
        "journal.jsonl: 0 bytes, the checkpoint speaks of",
    ),
    "a teacher's weights cut off": (
        going_on("taught", lambda w, folder: cut(folder / "weights.safetensors")),
        "weights.safetensors: cannot be used as the run's weights",
    ),
    "a teacher's predictions cut off": (
        going_on("taught", lambda w, folder: cut(folder / "predictions.npz")),
        "predictions.npz: cannot be read",
    ),
    "a teacher's predictions pickled": (
        going_on("taught", lambda w, folder: np.savez(folder / "predictions.npz", logits_raw=np.array([Payload()], dtype=object))),
        "predictions.npz: cannot be read (Object arrays cannot be loaded when allow_pickle=False)",
    ),
    "a teacher's record cut off": (going_on("taught", lambda w, folder: cut(folder / RECORD)), "record.json: not a readable run record"),
}


def all_cases() -> list[Case]:
    cases = committed()
    cases += [Case(f"experiment {n}", lambda w, make=make: plan_of(make(w)), words) for n, (make, words) in FILES.items()]
    cases += [
        Case(f"--set {i} {s[:30]!a}", lambda w, s=s: plan_of(EXPERIMENTS / "good.yaml", "--set", s), words)
        for i, (s, words) in enumerate(SETS.items())
    ]
    cases += [Case(n, lambda w, more=more: plan_of(EXPERIMENTS / "good.yaml", *more), words) for n, (more, words) in FLAGS.items()]
    cases += [
        Case(f"predict {n}", lambda w, make=make: w.predict(make(w, "images")), words, "vitlab") for n, (make, words) in IMAGES.items()
    ]
    cases += [Case(f"data set with {n}", in_a_set(make), words) for n, (make, words) in IMAGES.items()]
    cases += [Case(f"predict an image {n}", lambda w, make=make: w.predict(make(w)), words, "vitlab") for n, (make, words) in PATHS.items()]
    cases += [
        Case(f"data set {n}", lambda w, make=make: [w.root / "tiny.yaml", "--profile", "full", "--data", make(w)], words)
        for n, (make, words) in DATA_SETS.items()
    ]
    cases += [Case(f"CIFAR-10: {n}", arrange, words, "vitlab") for n, (arrange, words) in CIFAR10.items()]
    cases += [Case(f"predict with a record {n}", arrange, words, "vitlab") for n, (arrange, words) in RECORDS.items()]
    cases += [Case(f"predict with weights {n}", arrange, words, "vitlab") for n, (arrange, words) in WEIGHTS.items()]
    cases += [Case(f"predict with published weights {n}", arrange, words, "vitlab") for n, (arrange, words) in PUBLISHED.items()]
    cases += [Case(n, arrange, words, "vitlab") for n, (arrange, words) in OTHERS.items()]
    cases += [Case(f"train with {n}", arrange, words) for n, (arrange, words) in RUNS.items()]
    return [replace(case, real=case.name in REAL) for case in cases]


REAL = {
    "experiment misspelt_key", "experiment alias_bomb", "experiment utf16", "experiment escape_sequence", "experiment of 100 MB",
    "experiment of brackets", "experiment named in no encoding", "an unknown flag", "data set of one class", "predict half a PNG",
    "predict with a record cut off", "predict with weights that are a pickle", "predict where Pillow only warns",
}  # fmt: skip
