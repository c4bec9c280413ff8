"""Faults beyond one process: plans on a Ray cluster of two nodes, logged to a server on PostgreSQL, of which everything fails in turn.

    python -m tests.robustness.chaos_engines [--faults N] [--minutes M] [--seed S] [--record]        (`make chaos-engines`)

Lost or broken while runs train: a worker, a node, the command, the server, the database; a second command on the same plan, a folder that
is read-only for a while, a clock that jumps by up to a day. The same command goes on until the plan is finished; then each run is compared
with one that nothing happened to. The last line counts as that of chaos.py does. Exit code 0 only where it does so with zeros, and every
kind of fault has taken place. With --record it writes benchmarks/chaos-engines.json, and docs/robustness.md tells of it.

A folder is made read-only by a mount, which takes root's rights.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import argparse
import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from ray.cluster_utils import Cluster

from benchmarks.servers import Stack
from tests.support import disk
from tests.support.processes import FILES, finish, results, start, write_experiments
from vitlab import files, records
from vitlab.paths import REPOSITORY
from vitlab.train import machine

FAULTS_OF_A_PLAN = 10
STORE = 80 * 2**20  # bytes of a node's object store
DAY = 86400  # seconds
NOBODY = "http://127.0.0.1:9"  # the references go to no server
TOO_LONG = 240  # seconds for a command
CLOCK = """\
import pathlib, time  # every Python process that has this folder in its path runs this before all else
real, ahead = time.time, pathlib.Path(__file__).with_name("ahead")
time.time = lambda: real() + float(ahead.read_text())
"""


@dataclass
class Count:
    """What was done, and what came of it."""

    runs: int = 0
    lost: int = 0
    duplicated: int = 0
    different: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # faults, by kind

    def tell(self, kind: str, what: str) -> None:
        print(f"  {kind.upper()}: {what}", flush=True)
        setattr(self, kind, getattr(self, kind) + 1)


class Place:
    """A cluster of a head and two nodes, a server with its database, and a clock. A context manager: it starts and ends them."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder, self.epochs = folder, epochs
        self.experiments = write_experiments(folder / "experiments", f"train: {{epochs: {epochs}, batch_size: 32}}\n")
        self.stack = Stack()  # its database runs already
        self.env = self.stack.credentials | {"MLFLOW_TRACKING_URI": self.stack.uri}
        (folder / "clock").mkdir()
        (folder / "clock" / "sitecustomize.py").write_text(CLOCK, encoding="utf-8")
        self.set_clock(0)

    def set_clock(self, seconds: float) -> None:
        """Have the clock of the commands and their workers be so many seconds ahead from now on."""
        files.write(self.folder / "clock" / "ahead", str(seconds))

    def add_node(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=STORE)

    def __enter__(self) -> Place:
        with contextlib.ExitStack() as started:
            started.callback(self.stack.close)
            self.cluster = Cluster(
                initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
            )
            started.callback(self.cluster.shutdown)
            self.nodes = [self.add_node(), self.add_node()]
            self.stack.__enter__()
            self.started = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.started.close()


@dataclass
class Plan:
    """One seed's runs, in a folder of their own, and the commands that train them at the moment."""

    place: Place
    seed: int
    commands: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.place.folder / f"plan-{self.seed}"

    def begin(self) -> None:
        path = f"{self.place.folder / 'clock'}:{REPOSITORY}"
        flags = ("--seeds", str(self.seed), "--engine", "ray", "--address", self.place.cluster.address)
        with self.root.with_suffix(".log").open("a") as log:
            self.commands.append(start(self.root, self.place.experiments, *flags, env=self.place.env | {"PYTHONPATH": path}, out=log))

    def end(self) -> None:
        """Wait for all commands. Each must end by itself, but any exit code will do: the next one goes on."""
        for command in self.commands:
            try:
                command.wait(TOO_LONG)
            except subprocess.TimeoutExpired:
                raise SystemExit(f"chaos: a command of seed {self.seed} is still there after {TOO_LONG} s") from None
        self.commands.clear()

    @property
    def running(self) -> bool:
        return any(command.poll() is None for command in self.commands)

    @property
    def finished(self) -> bool:
        return len(list(self.root.glob("runs/*/*/*/record.json"))) == len(FILES)

    def workers(self) -> list[int]:
        """The processes that train, as their locks say."""
        found = []
        for lock in self.root.glob("runs/*/*.lock"):
            with contextlib.suppress(FileNotFoundError):  # its run has ended meanwhile
                words = lock.read_text(encoding="utf-8").split()
                found += [int(word) for word in words[1:2] if psutil.pid_exists(int(word))]
        return found


# ------------------------------------------------------------------------------------------------------------ the faults


def worker(plan: Plan, r: random.Random) -> None:
    os.kill(r.choice(plan.workers()), signal.SIGKILL)


def node(plan: Plan, r: random.Random) -> None:
    """Lose a node on which a run trains, and get another one."""
    raylet = psutil.Process(r.choice(plan.workers())).ppid()
    i = next(i for i, each in enumerate(plan.place.nodes) if each.all_processes["raylet"][0].process.pid == raylet)
    plan.place.cluster.remove_node(plan.place.nodes[i], allow_graceful=False)
    plan.place.nodes[i] = plan.place.add_node()


def command(plan: Plan, r: random.Random) -> None:
    r.choice([each for each in plan.commands if each.poll() is None]).kill()


def two_commands(plan: Plan, r: random.Random) -> None:
    plan.begin()


def server(plan: Plan, r: random.Random) -> None:
    plan.place.stack.server.stop(signal.SIGKILL)
    time.sleep(r.uniform(0, 3))
    plan.place.stack.server.start()


def database(plan: Plan, r: random.Random) -> None:
    plan.place.stack.db.stop(signal.SIGQUIT)  # PostgreSQL's immediate shutdown: as a crash
    time.sleep(r.uniform(0, 3))
    plan.place.stack.db.start()


def read_only(plan: Plan, r: random.Random) -> None:
    """Until the commands have ended over it, or for long enough that a checkpoint is due."""
    with disk.read_only(plan.root):
        until = time.monotonic() + 15
        while plan.running and time.monotonic() < until:
            time.sleep(0.1)


def clock(plan: Plan, r: random.Random) -> None:
    plan.place.set_clock(r.uniform(-DAY, DAY))


FAULTS: dict[str, Callable[[Plan, random.Random], None]] = {
    "a worker": worker, "a node": node, "the command": command, "two commands": two_commands, "the server": server, "the database": database,
    "a read-only folder": read_only, "the clock": clock,
}  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the comparison


def compare(plan: Plan, reference: Path, count: Count) -> None:
    ours, theirs, ask = results(plan.root), results(reference), plan.place.stack.psql
    for path in sorted(reference.glob("runs/*/*/*/record.json")):
        count.runs += 1
        name, label = path.parts[-3], f"{path.parts[-3]}, seed {plan.seed}"
        one, other = records.read(path), records.read(plan.root / path.relative_to(reference))
        for key in (f"{name}/predictions.npz", f"{name}/weights.safetensors"):
            if ours.get(key) != theirs[key]:
                count.tell("different", f"{key} of {label}")
        if (one.metrics, timeless(one.history)) != (other.metrics, timeless(other.history)):
            count.tell("different", f"the record of {label}")
        tags = {"vitlab.experiment": name, "vitlab.seed": str(plan.seed), "vitlab.kind": "seed", "vitlab.finished": "true"}
        tagged = (f"run_uuid IN (SELECT run_uuid FROM tags WHERE key = '{k}' AND value = '{v}')" for k, v in tags.items())
        run_ids = ask(f"SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active' AND {' AND '.join(tagged)}").splitlines()
        models = ask(f"SELECT count(*) FROM logged_models WHERE source_run_id = ANY (string_to_array('{' '.join(run_ids)}', ' '))")
        if (len(run_ids), models) != (1, "1"):
            short = len(run_ids) == 0 or models == "0"
            count.tell("lost" if short else "duplicated", f"{label}: {len(run_ids)} finished runs, {models} models in MLflow")
            continue
        rows = ask(f"SELECT step, value FROM metrics WHERE run_uuid = '{run_ids[0]}' AND key = 'train/loss' ORDER BY step")
        losses = [(int(step), float(value)) for step, value in (row.split("|") for row in rows.splitlines())]
        steps, epochs = [step for step, _ in losses], {int(row["epoch"]) for row in one.history}
        if set(steps) != epochs:
            count.tell("lost", f"{label}: losses of {len(set(steps))} of {len(epochs)} epochs in MLflow")
        elif len(steps) > len(epochs):
            count.tell("duplicated", f"{label}: {len(steps)} losses of {len(epochs)} epochs in MLflow")
        elif losses != [(int(row["epoch"]), row["train/loss"]) for row in one.history]:
            count.tell("different", f"{label}: losses in MLflow")


def timeless(history: tuple[dict[str, float], ...]) -> list[dict[str, float]]:
    """Without what is a time, which no two runs share."""
    return [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in history]


def record(count: Count, load: float, seconds: float) -> None:
    from benchmarks import pages

    told = {
        "date": datetime.now(UTC).date().isoformat(), "device": machine.device_name(torch.device("cpu")), "load": round(load, 1),
        "seconds": round(seconds, 1), "kinds": dict(count.kinds), "faults": count.kinds.total(), "runs": count.runs, "lost": count.lost,
        "duplicated": count.duplicated, "different": count.different,
    }  # fmt: skip
    files.write(pages.HERE / "chaos-engines.json", json.dumps(told, indent=1) + "\n")
    pages.write_blocks()


# ------------------------------------------------------------------------------------------------------------- the play


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--epochs", type=int, default=300, help="of each run")
    parser.add_argument("--kinds", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument(
        "--record", action="store_true", help="write benchmarks/chaos-engines.json, and the paragraph on it in docs/robustness.md"
    )
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("a folder is made read-only by a mount: run this as root")
    load, r, count, began = os.getloadavg()[0], random.Random(args.seed), Count(), time.monotonic()
    print(f"seed {args.seed}", flush=True)
    kinds = itertools.cycle(r.sample(args.kinds, len(args.kinds)))
    with tempfile.TemporaryDirectory(prefix="vitlab-chaos-") as tmp, Place(Path(tmp), args.epochs) as place:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and leave nothing running; Ray's own would
        for seed in itertools.count():
            play(Plan(place, seed), kinds, r, count, min(args.faults, count.kinds.total() + FAULTS_OF_A_PLAN))
            print(f"seed {seed}: {count.runs} runs, {count.kinds.total()} faults after {time.monotonic() - began:.0f} s", flush=True)
            if count.kinds.total() == args.faults:
                break
            if time.monotonic() - began > 60 * args.minutes:
                print(f"stopped after {args.minutes:g} minutes with {count.kinds.total()} of {args.faults} faults")
                break
    for kind in args.kinds:
        print(f"  {count.kinds[kind]:3} {kind}")
    told = f"{count.runs} runs, {count.lost} lost, {count.duplicated} duplicated, {count.different} different"
    print(f"chaos of engines: {count.kinds.total()} faults, {told}", flush=True)
    if args.record:
        record(count, load, time.monotonic() - began)
    sys.exit(
        count.kinds.total() < args.faults
        or not all(count.kinds[kind] for kind in args.kinds)
        or count.lost + count.duplicated + count.different > 0
    )


def play(plan: Plan, kinds: Iterator[str], r: random.Random, count: Count, until: int) -> None:
    """Train one plan to its end, with faults until so many are counted, and compare it."""
    reference = plan.root.with_name(f"{plan.root.name}-reference")
    code, out = finish(
        start(reference, plan.place.experiments, "--seeds", str(plan.seed), "--jobs", "2", env={"MLFLOW_TRACKING_URI": NOBODY})
    )
    assert code == 0, out
    try:
        while not plan.finished:
            if not plan.running:
                plan.end()
                plan.begin()
            elif count.kinds.total() == until:
                plan.end()
            elif plan.workers():
                time.sleep(r.uniform(0, 3))
                if plan.workers() and plan.running:
                    kind = next(kinds)
                    print(f"{count.kinds.total() + 1:3} seed {plan.seed}: {kind} ({datetime.now():%H:%M:%S})", flush=True)
                    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess, IndexError):  # all runs have ended meanwhile
                        FAULTS[kind](plan, r)
                        count.kinds[kind] += 1
            else:
                time.sleep(0.1)
        plan.end()
    finally:
        for each in plan.commands:
            each.kill()
    env = os.environ | plan.place.env | {"VITLAB_ROOT": str(plan.root)}
    subprocess.run([sys.executable, "-m", "vitlab", "sync"], cwd=REPOSITORY, env=env, check=True, stdout=subprocess.DEVNULL)
    compare(plan, reference, count)


if __name__ == "__main__":
    main()
