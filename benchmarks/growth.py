"""Cost as work grows: `python -m benchmarks.growth` writes growth.json, GROWTH.md and its plots.

Training by tokens, batch and depth; listing, reporting and shipping by the number of runs in MLflow. At most 6 minutes on two idle
cores. `--server` measures thousands of runs instead, in a tracking server and in local files, and writes growth-server.json; it needs
PostgreSQL and 10 GB of disk, and takes at most 10 minutes on two idle cores. `--page` draws and writes again from what was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import growth_page, pages
from benchmarks.growth_page import series
from benchmarks.recipe import experiment_file
from vitlab import config, records
from vitlab.data.dataset import Dataset
from vitlab.data.rng import generator, seed_for
from vitlab.figures.run import run_figures
from vitlab.models import cost
from vitlab.paths import REPOSITORY
from vitlab.records import RunRecord
from vitlab.run import execute
from vitlab.track import read, shipping
from vitlab.track.journal import Journal, RunInfo
from vitlab.track.store import prepare_store
from vitlab.train import machine, optim
from vitlab.train.meter import Meter
from vitlab.train.objective import CrossEntropy
from vitlab.train.step import WARM_UP, Step

CLASSES = 10
ROUNDS = 7
TURN_SECONDS = 0.3  # a point's turn in a round: as many steps as fit, and at least one
PUBLISHED = min((REPOSITORY / "results").glob("*/records")).parent  # the first set: its records are copied
COUNTS = 10, 100, 1000
EPOCHS = 100  # of a synthetic run, as 01 to 05 have at full size; most of a record is its epochs
PACKAGES = ("torch", "numpy", "mlflow", "pydantic", "matplotlib")


def seconds_of(action: Callable[[], object]) -> float:
    """Return the seconds that a call of `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


# ---------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Size:
    """A size of 01, with dim 96 and 3 heads: its patch size, depth and batch."""

    patch: int = 4
    depth: int = 4
    batch: int = 128

    @property
    def tokens(self) -> int:
        """Return the number of patches."""
        return (config.IMAGE_SIZE // self.patch) ** 2

    def load(self) -> config.Experiment:
        """Return the experiment's configuration at this size."""
        sets = (
            "model.dim=96",
            "model.heads=3",
            f"model.patch_size={self.patch}",
            f"model.depth={self.depth}",
            f"train.batch_size={self.batch}",
        )
        return config.load(experiment_file("01"), "full", sets).config


SIZES = {
    "tokens": [Size(patch=p) for p in (8, 4, 2)],
    "batch": [Size(batch=b) for b in (32, 64, 128, 256, 512)],
    "depth": [Size(depth=d) for d in (2, 4, 8, 16)],
}


def random_images(count: int, where: torch.device) -> Dataset:
    """Return a data set of random images: only time is measured, which does not depend on what images show."""
    g = generator(0, "growth", 0, where)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=g, device=where)
    labels = torch.randint(0, CLASSES, (count,), generator=g, device=where)
    half, few = torch.full((3,), 0.5, device=where), (images[:1], labels[:1])
    return Dataset("random", "", tuple(map(str, range(CLASSES))), True, half, half / 2, images, labels, *few, *few)


class Trainee:
    """One size, warmed up; `turn()` takes its steps in a round."""

    def __init__(self, size: Size, where: torch.device, turn_seconds: float) -> None:
        self.cfg, self.batch = size.load(), size.batch
        self.flops = cost.training_flops(self.cfg.model, CLASSES)
        self.data = random_images(self.batch, where)
        model = execute.build_model(self.cfg, CLASSES, 0, where).train()
        self.meter = Meter(where, self.flops, 1.0)
        optimizer = optim.build(self.cfg.optim, model)
        # total=1: a run so short that nothing is compiled, which no size here would gain from on a CPU
        self.step = Step(self.cfg, self.data, model, CrossEntropy(), optimizer, None, self.meter, self.batch, total=1)
        self.taken = 0
        self.steps = 1 if where.type == "cpu" else WARM_UP + 1  # on a GPU the step after these captures its graph
        self.turn()
        self.steps = 1
        self.steps = max(1, int(turn_seconds / (self.turn() * self.batch)))

    def turn(self) -> float:
        """Train this round's steps and return the seconds per image, from augmentation to update, by the trainer's own meter."""
        self.meter.start({})
        for _ in range(self.steps):
            rows = torch.arange(self.batch, device=self.data.train_labels.device)
            self.step(rows, self.cfg.phases[0], seed_for(0, "augment", self.taken), self.cfg.optim.lr, 0.0)
            self.taken += 1
        return sum(self.meter.read().values()) / (self.steps * self.batch)


def training(
    sizes: dict[str, list[Size]], rounds: int, turn_seconds: float, where: torch.device, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return {name: series} of seconds per image against training FLOPs per image. All sizes take their turns in each round."""
    trainees = {size: Trainee(size, where, turn_seconds) for of_one in sizes.values() for size in of_one}
    say(f"{len(trainees)} sizes are warm")
    seconds: dict[Size, list[float]] = {size: [] for size in trainees}
    for i in range(rounds):
        for size, trainee in trainees.items():
            seconds[size].append(trainee.turn())
        say(f"round {i + 1} of {rounds}")
    return {name: series([(getattr(size, name), trainees[size].flops, seconds[size]) for size in of_one]) for name, of_one in sizes.items()}


# -------------------------------------------------------------------------------------------------------- many runs


class Store:
    """A root with finished runs, in MLflow and in folders, that can be given more of them.

    They are the published runs with other seeds and a history of EPOCHS: ten groups of seeds, of the eight experiments and of two
    variations. Run i is seed i // 10 of group i % 10, so that the number of groups is always the same.

    The first of each group is shipped as any run. The others are copied from it inside the database, row by row: shipping a thousand
    runs, or making them through MLflow's client, takes ten minutes and gives the same rows.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        prepare_store(root)
        groups = [record for record in records.read_all(PUBLISHED) if record.seed == 0]
        groups += [r.model_copy(update={"variant": f"optim.lr={lr}", "fingerprint": lr * 12}) for r, lr in zip(groups, "12")]
        self.groups = [stretched(r) for r in groups]

    def folder(self, record: RunRecord) -> Path:
        """Return the run's folder."""
        return self.root / "runs" / PUBLISHED.name / record.experiment / f"{record.fingerprint}-s{record.seed}"

    def write(self) -> Path:
        """Write the next run's folder and return it. It has no predictions or weights, which nobody reads, and pictures only for seed 0."""
        seed, group = divmod(self.count, len(self.groups))
        self.count += 1
        record = self.groups[group].model_copy(update={"seed": seed})
        folder = self.folder(record)
        folder.mkdir(parents=True)
        records.write(record, folder / "record.json")
        if seed == 0:
            (folder / "figures").mkdir()
            for picture in PUBLISHED.glob(f"figures/{record.experiment}-s0-*/predictions.png"):
                shutil.copy(picture, folder / "figures")
            run_figures(record, folder / "figures")
        return folder

    def ship(self, folder: Path) -> None:
        """Ship a run to MLflow as at the end of its training."""
        record = records.read(folder / "record.json")
        about = RunInfo(
            experiment=record.experiment, variant=record.variant, label=f"{record.experiment} {record.variant}".strip(), title=record.title,
            profile=record.profile, dataset=record.dataset.name, dataset_digest=record.dataset.digest, seed=record.seed,
            fingerprint=record.fingerprint, git_commit="", git_dirty="", device=record.device,
            params=config.flatten(config.load(experiment_file("01"), "overnight").config), description="", params_count=record.params,
            flops=record.flops, train=record.dataset.train, validation=record.dataset.validation, test=record.dataset.test,
        )  # fmt: skip
        about.write(folder)
        journal = Journal(folder / "journal.jsonl")
        for row in record.history:
            journal.append("metrics", step=int(row["epoch"]), values=row)
        journal.close()
        shipping.ship(folder, self.root, None, final=True)

    def copy(self, folders: list[Path]) -> None:
        """Put runs into MLflow by copying the rows of their group's first run, with another seed."""
        first = {r.tags["vitlab.fingerprint"]: r for r in read.finished_runs(self.root) if r.tags["vitlab.seed"] == "0"}
        with contextlib.closing(sqlite3.connect(self.root / "mlflow.db")) as db, db:
            for folder in folders:
                fingerprint, _, seed = folder.name.rpartition("-s")
                like, new = first[fingerprint], uuid.uuid4().hex
                for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
                    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
                    values = [f"replace({c}, :old, :new)" if c in ("run_uuid", "artifact_uri") else c for c in columns]
                    copying = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} FROM {table} WHERE run_uuid = :old"
                    db.execute(copying, {"old": like.run_id, "new": new})
                db.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = 'vitlab.seed'", (seed, new))
                artifacts = Path(str(like.folder).replace(like.run_id, new))
                artifacts.mkdir(parents=True)
                shutil.copy(folder / "record.json", artifacts)

    def fill(self, count: int) -> float:
        """Add runs until there are `count`; return the seconds that shipping the last one took."""
        while self.count < min(len(self.groups), count - 1):
            self.ship(self.write())
        self.copy([self.write() for _ in range(self.count, count - 1)])
        last = self.write()
        return seconds_of(lambda: self.ship(last))

    def command(self, name: str) -> float:
        """Return the seconds that `vitlab NAME` takes, as a process of its own."""
        run = [sys.executable, "-m", "vitlab", name]
        return seconds_of(
            lambda: subprocess.run(run, cwd=REPOSITORY, env=os.environ | {"VITLAB_ROOT": str(self.root)}, capture_output=True, check=True)
        )


def stretched(record: RunRecord) -> RunRecord:
    """Return the record with its history stretched to EPOCHS rows."""
    rows = record.history
    history = tuple(rows[i * len(rows) // EPOCHS] | {"epoch": i + 1.0} for i in range(EPOCHS))
    return record.model_copy(update={"history": history})


def many_runs(counts: tuple[int, ...], times: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return {name: series} of the seconds of commands that read all runs, against the number of runs, and of shipping one more run."""
    seconds: dict[str, list[tuple[int, int, list[float]]]] = {name: [] for name in ("finished", "runs", "report", "again", "ship")}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for count in counts:
            shipped = store.fill(count)
            say(f"{count} runs are there")
            rows: dict[str, list[float]] = {name: [] for name in seconds} | {"ship": [shipped]}
            for _ in range(times):
                shutil.rmtree(store.root / "reports", ignore_errors=True)
                rows["report"].append(store.command("report"))
                rows["again"].append(store.command("report"))
                rows["runs"].append(store.command("runs"))
                rows["finished"].append(seconds_of(lambda: read.finished_runs(store.root)))
            assert len(read.finished_runs(store.root)) == count
            assert len(list(store.root.glob("reports/*/records/*.json"))) == count
            for name, values in rows.items():
                seconds[name].append((count, 1 if name == "ship" else count, values))
    return {name: series(points) for name, points in seconds.items()}


def main() -> None:
    """Measure, unless --page is given, then draw the plots and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    pages.add_out_flags(parser)
    parser.add_argument("--times", type=int, default=3, help="how often each command is timed for each number of runs")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--server", action="store_true", help="measure thousands of runs instead, in a tracking server and in local files")
    what.add_argument("--page", action="store_true", help="only draw and write again from growth.json and growth-server.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    latest = args.out / "growth.json"
    if args.server:
        from benchmarks import growth_server  # late: it imports this module

        growth_server.write(args.out / "growth-server.json")
        if not latest.is_file():  # which the page begins with
            shutil.copy(pages.HERE / "growth.json", latest)
    elif not args.page:
        latest.write_text(json.dumps(measure(args.times), indent=1) + "\n", encoding="utf-8")
    results = json.loads(latest.read_text(encoding="utf-8"))
    growth_page.plots(results, args.out)
    (args.out / "GROWTH.md").write_text(pages.growth(args.out), encoding="utf-8")
    if args.out == pages.HERE:
        pages.write_blocks()
    print(f"{args.out / 'GROWTH.md'} is written", *growth_page.faster_than_work(results), sep="\n")


def measure(times: int) -> dict[str, Any]:
    """Measure everything and return what growth.json keeps."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # or a thousand made-up runs would go there
    start, load = time.perf_counter(), os.getloadavg()[0]

    def say(text: str) -> None:
        print(f"{time.perf_counter() - start:5.0f} s  {text}", flush=True)

    where = machine.device()
    measured = training(SIZES, ROUNDS, TURN_SECONDS, where, say) | many_runs(COUNTS, times, say)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": machine.device_name(where),
        "precision": machine.precision("auto", where),
        "threads": torch.get_num_threads(),
        "versions": {"Python": sys.version.split()[0]} | {name: metadata.version(name) for name in PACKAGES},
        "load": load,
        "series": measured,
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    main()
