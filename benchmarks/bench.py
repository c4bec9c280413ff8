"""The harness: `python -m benchmarks.bench` measures vitlab and its peers in turn and writes what it measured, and README.md.

There is one file of measurements for each kind of processor, bench-bf16.json and bench-float32.json; the page shows both. At most 12 minutes
on two cores. `--page` renders the page again from these files. `--publish` writes all beside this file, and the paragraphs in docs/speed.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks import page, pages
from benchmarks.recipe import PROFILES, Images, experiment_file, load
from vitlab import config
from vitlab.config import ViT
from vitlab.data.sources import Source, resolve
from vitlab.models import cost
from vitlab.paths import REPOSITORY

NUMBERS = ("01", "06")
BATCHES = {"full": 2, "overnight": 6}  # in an epoch: enough for a loader to work ahead, and for an epoch to take a second or two
SECONDS = {"full": 50, "overnight": 20}  # for each peer; a further round starts only if one as long as the longest so far would still fit
# With each peer, at most and at least. Without bf16 in hardware a round takes two to five times as long: 12 minutes have no room for two of each.
ROUNDS = {"bf16": (4, 2), "float32": (4, 1)}
SHORT_RUN, BOOKKEEPING_PROFILE = 4000, "overnight"  # images and profile of the run of 01 whose bookkeeping is measured
CLASSES = 10  # of CIFAR-10, and of the digits
PACKAGES = ("torch", "torchvision", "timm", "lightning", "numpy", "pillow")


class Contender:
    """A running worker of `benchmarks.contenders`, with the line it wrote when it was ready."""

    def __init__(self, name: str, number: str, profile: str, images: Path, sets: tuple[str, ...], log: IO[str]) -> None:
        self.name, self.log = name, log
        command = [sys.executable, "-m", "benchmarks.contenders", name, "--experiment", number, "--profile", profile]
        command += ["--images", str(images)]
        command += [word for assignment in sets for word in ("--set", assignment)]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},  # the peers' code here is for a CPU
        )  # fmt: skip

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # the worker ends at the end of its input
        self.process.wait()

    def read(self) -> dict[str, Any]:
        """Return the worker's next line. Exits with the end of its log where it has ended."""
        line = self.process.stdout.readline()
        if not line:
            self.log.flush()
            raise SystemExit(f"{self.name} has ended:\n{Path(self.log.name).read_text()[-2000:]}")
        return json.loads(line)

    def epoch(self) -> dict[str, float]:
        """Let the worker train an epoch and return the line it writes about that."""
        with suppress(BrokenPipeError):  # it has ended, and read() says why
            print("go", file=self.process.stdin, flush=True)
        return self.read()


def flops(cfg: ViT, name: str) -> int:
    """Return the FLOPs of one image's forward pass through a contender's model of `cfg`.

    In the last block vitlab computes only the tokens that are read; its peers compute all, as PyTorch's encoder does. timm has no class
    attention.
    """
    if name != "vitlab":
        cfg = cfg.model_copy(update={"encoder": "torch"} | ({"class_attention": 0} if name.startswith("timm") else {}))
    return cost.forward_flops(cfg, CLASSES)


def training(number: str, profile: str, images: Images, sets: tuple[str, ...], say) -> dict[str, Any]:
    """Time vitlab and one peer in turn on an experiment in a profile, then the next peer.

    Returns {"batch": images in a step, "images": in an epoch, "ready": {name: facts}, "rounds": [{name: row}, ...]}. Only two processes run at
    a time: all five together need more memory than a laptop has. Exits where a peer's model has another size.
    """
    cfg, (most, least) = load(number, profile, sets), ROUNDS[page.kind(machine())]
    images = images.first(BATCHES[profile] * cfg.train.batch_size)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context((folder / "log").open("w"))
        images.write(folder / "images.npz")
        ready: dict[str, Any] = {}
        rounds: list[dict[str, Any]] = []

        def begin(name: str) -> Contender:
            contender = Contender(name, number, profile, folder / "images.npz", sets, log)
            ready[name] = contender.read() | {"flops": flops(cfg.model, name)}
            if not page.same_size(ready, name, number) or not math.isfinite(ready[name]["loss"]):
                raise SystemExit(
                    f"{number} at {profile}: {name} has {ready[name]['parameters']:,} parameters and a loss of {ready[name]['loss']}: nothing to compare with"
                )
            return contender

        ours = stack.enter_context(begin("vitlab"))
        for name in page.PEERS:
            start, longest, turn = time.perf_counter(), 0.0, 0
            with begin(name) as peer:
                while turn < most and (turn < least or time.perf_counter() - start + longest < SECONDS[profile]):
                    began = time.perf_counter()
                    rounds.append({c.name: c.epoch() for c in ((ours, peer), (peer, ours))[turn % 2]})
                    longest, turn = max(longest, time.perf_counter() - began), turn + 1
                    say(f"{number} at {profile}: " + ", ".join(f"{name} {r['img_s']:.1f}" for name, r in rounds[-1].items()) + " images/s")
    return {"batch": cfg.train.batch_size, "images": len(images.labels), "ready": ready, "rounds": rounds}


def startup(source: Source, data_dir: Path) -> dict[str, list[float]]:
    """Return the seconds that `runner.py --help` ("help") and the whole ladder's plan ("plan") take, five times each."""
    plan = ["experiments", "--dry-run", "--profile", "full", "--data", source.kind, "--data-dir", str(data_dir)]
    seconds: dict[str, list[float]] = {"help": [], "plan": []}
    for _ in range(5):
        for name, words in (("help", ["--help"]), ("plan", plan)):
            start = time.perf_counter()
            subprocess.run([sys.executable, "runner.py", *words], cwd=REPOSITORY, capture_output=True, check=True)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def bookkeeping(source: Source, data_dir: Path) -> dict[str, float]:
    """Return the seconds that a short real run of 01 spends on training and on bookkeeping, MLflow included.

    In its loop these are `training`, `checkpoint` and `tracking`. `closing` is the time from its last epoch to the end of the process,
    without the test split's forward pass: pictures, record, the model into MLflow. Beside them stand the `images` that it trained on, its
    `profile`, and the `epochs` of a whole run in that profile.
    """
    from vitlab import records
    from vitlab.track.journal import read_journal
    from vitlab.train.meter import TRAINING

    with tempfile.TemporaryDirectory() as root:
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"VITLAB_ROOT": root}
        command = [sys.executable, "runner.py", "experiments/01_baseline_vit.yaml", "--profile", BOOKKEEPING_PROFILE, "--data", source.kind]
        command += ["--data-dir", str(data_dir), "--set", f"data.train_limit={SHORT_RUN}", "--set", "train.epochs=2"]
        subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=True)
        ended = time.time()
        (folder,) = Path(root).glob("runs/*/*/*/")
        record = records.read(folder / "record.json")
        last = max(entry["time"] for _, entry in read_journal(folder / "journal.jsonl") if entry["kind"] == "metrics") / 1000
    seconds = {key.removeprefix("seconds_"): value for key, value in record.perf.items() if key.startswith("seconds_")}
    training = sum(seconds.get(phase, 0.0) for phase in TRAINING)
    return {
        "training": training,
        "checkpoint": seconds["checkpoint"],
        "tracking": seconds["tracking"],
        "closing": ended - last - seconds["test"],
        "images": record.img_s * training,
        "profile": BOOKKEEPING_PROFILE,
        "epochs": config.load(experiment_file("01"), BOOKKEEPING_PROFILE).config.train.epochs,
    }


def first_images(source: Source, count: int) -> Images:
    """Return the first `count` training images of the data set."""
    from vitlab import config
    from vitlab.data import dataset

    loaded = dataset.load(source, config.Data(), "cpu")
    pixels, labels = loaded.train_images[:count].numpy(), loaded.train_labels[:count].numpy()
    return Images(pixels, labels, tuple(loaded.mean.tolist()), tuple(loaded.std.tolist()), len(loaded.classes), loaded.mirror)


@functools.cache
def machine() -> dict[str, Any]:
    """Return the processor's name and cores, its GFLOP/s in a large matrix product, the memory in GB, and whether bf16 is in hardware."""
    import torch

    from vitlab.train.machine import device_name, hardware_bf16, matrix_product_rate

    cpu = torch.device("cpu")
    name, _, cores = device_name(cpu).rpartition(", ")
    gflops = {dtype: matrix_product_rate(cpu, getattr(torch, dtype)) / 1e9 for dtype in ("float32", "bfloat16")}
    memory = psutil.virtual_memory().total / 1e9
    return {"cpu": name, "cores": int(cores.split()[0]), "gflops": gflops, "memory_gb": memory, "bf16": hardware_bf16(cpu)}


def main() -> None:
    """Measure, unless --page is given, and write the page; exit with 1 where a contender does not learn, 2 where nothing is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="auto", help="auto, cifar10 or digits")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("VITLAB_DATA_DIR", "data")))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of both experiments")
    pages.add_out_flags(parser)
    parser.add_argument("--page", action="store_true", help="only render the page from what was measured")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.page:
        results = measure(args)
        (args.out / page.FILES[page.kind(results["machine"])]).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    measured = pages.compared(args.out)
    if not measured:
        parser.error(f"{args.out}: nothing measured there; expected {' or '.join(page.FILES.values())}")
    (args.out / "README.md").write_text(page.page(measured), encoding="utf-8")
    if args.out == pages.HERE:
        pages.write_blocks()
    faults = [f"{kind}: {fault}" for kind, results in measured.items() for fault in page.faults(results)]
    print(f"{args.out / 'README.md'} is written", *faults, sep="\n")
    sys.exit(bool(faults))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return what the file of this kind of processor keeps."""
    from benchmarks import inputs
    from vitlab.code import git_state

    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - start:5.0f} s  {text}", flush=True)

    sets, data_dir = tuple(args.set), args.data_dir.resolve()
    source = resolve(args.data, data_dir, "quick")
    most = max(BATCHES[profile] * load(number, profile, sets).train.batch_size for profile in PROFILES for number in NUMBERS)
    images = first_images(source, most)
    results: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        **git_state(),
        "machine": machine(),
        "versions": {"Python": sys.version.split()[0]} | {name: metadata.version(name) for name in PACKAGES},
        "dataset": source.name,
        "sets": args.set,
    }
    results["training"] = {profile: {number: training(number, profile, images, sets, say) for number in NUMBERS} for profile in PROFILES}
    say("input path")
    results["input"] = inputs.measure(images, rounds=5)
    say("start-up")
    results["startup"] = startup(source, data_dir)
    say("bookkeeping")
    results["bookkeeping"] = bookkeeping(source, data_dir)
    results["seconds"] = time.perf_counter() - start
    return results


if __name__ == "__main__":
    main()
