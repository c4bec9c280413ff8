"""Kills: small real runs are killed at random and at chosen moments, resumed, and compared with runs that nothing happened to.

    python -m tests.robustness.chaos [--kills N] [--minutes M] [--seed S] [--record]        (`make chaos`)

Each victim is a fork of this process, which has imported all that takes seconds and done nothing with it. The last line counts:
`chaos: N kills, M runs, 0 lost, 0 duplicated, 0 different`. Exit code 0 only where it does so with zeros. With --record it writes
benchmarks/chaos.json, and docs/robustness.md tells of it.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a fork inherits no threads
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("MLFLOW_TRACKING_URI", None)

import argparse
import contextlib
import importlib
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow import MlflowClient

from vitlab import cli, files, records
from vitlab.figures import style
from vitlab.run import execute
from vitlab.track import store
from vitlab.track.journal import Journal, read_journal
from vitlab.train import checkpoint, loop, machine

COMMON = """
phases:
  - name: strong
    augment: {crop: 2, flip: true, erase: 0.5, color_jitter: {brightness: 0.2, hue: 0.1}}
    mix: {mixup: 0.4, cutmix: 1.0}
    label_smoothing: 0.1
  - {name: clean, percent: 25}
optim: {name: adamw, lr: 1e-2, grad_clip: 1.0}
train: {epochs: 5, batch_size: 32}
data: {train_limit: 200, test_limit: 60}
"""
VIT = (
    "title: ViT\nmodel: {name: vit, dim: 16, depth: 2, heads: 2, patch_size: 8, dropout: 0.1, drop_path: 0.2}\nema: {start: 0.5, end: 0.9}"
)
HYBRID = "title: Hybrid\nmodel: {name: vit, stem: resnet18, stem_width: 8, encoder: torch, dim: 16, depth: 1, heads: 2, dropout: 0.1}"
TEACHER = "title: Teacher\nmodel: {name: resnet, depth: 18, width: 8}"
STUDENT = VIT.replace("ViT", "Student") + "\ndistill: {teacher: teacher.yaml}"
WORLDS = {
    "vit": {"vit": VIT + COMMON},
    "student": {"teacher": TEACHER + COMMON, "student": STUDENT + COMMON},
    "hybrid": {"hybrid": HYBRID + COMMON},
}


# ---------------------------------------------------------------------------------------------------------- the points


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # in a thread the signal may take a moment


def on_call(owner: object, name: str, nth: int = 1, after: bool = False, only: Callable[..., bool] = lambda *_: True) -> None:
    """The process is killed before, or after, the nth call of `owner.name` for which `only` is true."""
    real, calls = getattr(owner, name), 0

    def dying(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += (hit := only(*args))
        if hit and calls == nth and not after:
            die()
        result = real(*args, **named)
        if hit and calls == nth:
            die()
        return result

    setattr(owner, name, dying)


def half_a_write(owner: type, name: str, nth: int, file_of: Callable[..., Any]) -> None:
    """Of the nth call's last argument, bytes, one half reaches the file."""
    real, calls = getattr(owner, name), 0

    def dying(self: Any, data: bytes) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            file_of(self).write(bytes(data)[: len(data) // 2])
            file_of(self).flush()
            die()
        return real(self, data)

    setattr(owner, name, dying)


def half_a_line(nth: int) -> None:
    real, calls = Journal.append, 0

    def dying(self: Journal, kind: str, **fields: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            with self.path.open("ab") as f:
                f.write(b'{"kind": "metrics", "ti')
            die()
        real(self, kind, **fields)

    Journal.append = dying


def half_a_file(name: str) -> None:
    real = files.write

    def dying(path: Path, content: bytes | str) -> None:
        if path.name == name:
            files.temporary(path).write_bytes((content.encode() if isinstance(content, str) else content)[: len(content) // 2])
            die()
        real(path, content)

    files.write = dying


def amid_the_making_of_the_database(seconds: float) -> None:
    real = store.make_database

    def making(root: Path) -> None:
        threading.Timer(seconds, die).start()
        real(root)

    store.make_database = making


def replaced(name: str) -> Callable[..., bool]:
    return lambda _, target: Path(target).name == name


# In the order in which a run comes to them; r: random.Random.
POINTS: dict[str, Callable[[random.Random], None]] = {
    "database, half made": lambda r: amid_the_making_of_the_database(r.uniform(0, 1.5)),
    "database, before it is renamed": lambda r: on_call(os, "replace", only=replaced("mlflow.db")),
    "database, after it is renamed": lambda r: on_call(os, "replace", after=True, only=replaced("mlflow.db")),
    "journal, half a line": lambda r: half_a_line(r.randint(1, 3)),
    "journal, before it is cut": lambda r: on_call(Journal, "truncate"),
    "checkpoint, half written": lambda r: half_a_write(checkpoint.HashingFile, "write", r.randint(1, 40), lambda self: self.file),
    "checkpoint, before its fsync": lambda r: on_call(Journal, "sync", r.randint(1, 2), after=True),
    "checkpoint, before it is renamed": lambda r: on_call(os, "replace", r.randint(1, 2), only=replaced("checkpoint.pt")),
    "checkpoint, after it is renamed": lambda r: on_call(os, "replace", r.randint(1, 2), after=True, only=replaced("checkpoint.pt")),
    "MLflow, run made and not noted": lambda r: on_call(MlflowClient, "create_run", after=True),
    "MLflow, before metrics": lambda r: on_call(store.Store, "log_metrics"),
    "MLflow, amid params and metrics": lambda r: on_call(MlflowClient, "log_batch", r.randint(1, 4), after=True),
    "MLflow, metrics there and not noted": lambda r: on_call(store.Store, "log_metrics", after=True),
    "weights, half written": lambda r: half_a_file("weights.safetensors"),
    "report.txt, half written": lambda r: half_a_file("report.txt"),
    "pictures, one drawn": lambda r: on_call(style, "save", r.randint(1, 2), after=True),
    "record, before it is renamed": lambda r: on_call(os, "replace", only=replaced("record.json")),
    "record, after it is renamed": lambda r: on_call(os, "replace", after=True, only=replaced("record.json")),
    "checkpoint, before it is removed": lambda r: on_call(checkpoint, "remove"),
    "MLflow, amid artifacts": lambda r: on_call(MlflowClient, "log_artifact", r.randint(1, 5), after=True),
    "MLflow, ended and not marked": lambda r: on_call(MlflowClient, "set_terminated", after=True),
    "MLflow, model begun": lambda r: on_call(MlflowClient, "create_logged_model", after=True),
    "MLflow, model there and not noted": lambda r: on_call(MlflowClient, "finalize_logged_model", after=True),
    "report, half written": lambda r: half_a_file("report.html"),
    "report, its records copied": lambda r: on_call(records, "write", after=True),
}


# ---------------------------------------------------------------------------------------------------------- the victims


@dataclass
class World:
    """A folder with a few experiments, in which lives are lived."""

    root: Path
    kind: str
    seconds: float = 0  # that the last life took

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True)
        for name, text in WORLDS[self.kind].items():
            (self.root / f"{name}.yaml").write_text(text)

    @property
    def last(self) -> Path:
        return self.root / f"{list(WORLDS[self.kind])[-1]}.yaml"

    def folder(self, name: str) -> Path:
        (path,) = (p for p in (self.root / "runs" / "full-digits" / name).iterdir() if p.is_dir())
        return path

    def live(self, arm: Callable[[], None] = lambda: None, seconds: float = 0, reports: bool = False) -> bool:
        """The ladder, and its report where it `reports`, in a fork in which `arm` is called first. True if it was killed.

        seconds: after which it is killed, where nothing else does.
        """
        pid = os.fork()
        if pid == 0:
            self._be_the_victim(arm, reports)
        began, status = time.monotonic(), None
        while status is None:
            time.sleep(0.005)
            if time.monotonic() - began > (seconds or TOO_LONG):
                os.kill(pid, signal.SIGKILL)
                status = os.waitpid(pid, 0)[1]
            else:
                ended, found = os.waitpid(pid, os.WNOHANG)
                status = found if ended else None
        self.seconds = time.monotonic() - began
        if self.seconds > TOO_LONG or status not in (0, signal.SIGKILL):
            raise SystemExit(
                f"chaos: a life ended with status {status} after {self.seconds:.0f} s:\n{(self.root / 'log').read_text()[-4000:]}"
            )
        return status == signal.SIGKILL

    def _be_the_victim(self, arm: Callable[[], None], reports: bool) -> None:
        code = 70
        try:
            log = os.open(self.root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            for name, path in (("ROOT", self.root), ("RUNS", self.root / "runs"), ("RESULTS", self.root / "results")):
                setattr(cli, name, path)
            execute.ROOT = self.root
            machine.measured_peak = lambda *_: 1e11  # a second's worth of multiplying that no kill could spoil
            loop.SAVING_SHARE = 1e9  # a checkpoint each epoch, however short
            style.DPI = 20  # sooner drawn
            self._keep_the_last_checkpoint()
            arm()
            code = _exit_code(cli.run_main, str(self.last), "--profile", "full", "--data", "digits")
            if reports and not code:
                code = _exit_code(cli.main, "report", "--publish")
            (self.root / "modules").write_text("\n".join(sys.modules))
        except BaseException:
            traceback.print_exc()
        os._exit(code)

    def _keep_the_last_checkpoint(self) -> None:
        """For the comparison: a finished run removes it."""
        remove = checkpoint.remove

        def keeping(folder: Path) -> None:
            if (folder / checkpoint.NAMES[0]).exists():
                shutil.copy(folder / checkpoint.NAMES[0], self.root / f"last-{folder.parent.name}")
            remove(folder)

        checkpoint.remove = keeping


def warm_up(modules: Path) -> None:
    """What the first life had to import, this process imports for those to come: else most of a life would be that."""
    for name in modules.read_text().splitlines():
        with contextlib.suppress(Exception):  # made by others as they were used
            importlib.import_module(name)
    assert threading.active_count() == 1, "a fork takes one thread along"


TOO_LONG = 120  # seconds for a life of a few


def _exit_code(command: Callable[[list[str]], None], *argv: str) -> int:
    try:
        command(list(argv))
    except SystemExit as e:
        return e.code or 0
    raise AssertionError("a command ends with SystemExit")


# ------------------------------------------------------------------------------------------------------- the comparison


@dataclass
class Count:
    kills: int = 0
    runs: int = 0
    lost: int = 0
    duplicated: int = 0
    different: int = 0
    where: Counter[str] = field(default_factory=Counter)

    def tell(self, kind: str, what: str) -> None:
        print(f"  {kind.upper()}: {what}", flush=True)
        setattr(self, kind, getattr(self, kind) + 1)


def timeless(values: dict[str, float]) -> dict[str, float]:
    """Without what is a time or a load, which no two runs share."""
    return {k: v for k, v in values.items() if not any(part in k for part in ("perf", "system/", "seconds", "img_s"))}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        a, b = ({k: v for k, v in x.items() if not str(k).startswith("perf/")} for x in (a, b))
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def told(folder: Path) -> list[tuple[int, dict[str, float]]]:
    return [(e["step"], timeless(e["values"])) for _, e in read_journal(folder / "journal.jsonl") if e["kind"] == "metrics"]


def last_state(path: Path) -> dict[str, Any]:
    folder = path.with_name(path.name + "-folder")
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / checkpoint.NAMES[0])
    state, damaged = checkpoint.load(folder, torch.device("cpu"))
    assert state is not None, damaged
    return {k: state[k] for k in ("step", "model", "ema", "optimizer", "rng", "sums", "history")}


def in_mlflow(root: Path, name: str) -> tuple[list[dict[str, list[tuple[int, float]]]], int]:
    """Of each run of the experiment that is marked as finished each metric's (step, value); and how many models are ready."""
    client = MlflowClient(tracking_uri=store.own_uri(root))
    experiment_id = client.get_experiment_by_name(store.EXPERIMENT).experiment_id
    which = (
        f"tags.`vitlab.kind` = 'seed' AND tags.`vitlab.experiment` = '{name}' AND tags.`vitlab.finished` = 'true' AND status = 'FINISHED'"
    )
    runs = client.search_runs([experiment_id], which)
    found = [{k: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, k)] for k in run.data.metrics} for run in runs]
    models = [m for run in runs for m in client.search_logged_models([experiment_id], f"source_run_id = '{run.info.run_id}'")]
    return found, len(models)


def compare(victim: World, reference: World, count: Count) -> None:
    for name in WORLDS[victim.kind]:
        count.runs += 1
        ours, theirs = victim.folder(name), reference.folder(name)
        label = f"{name} in {victim.root.name}"
        for what, differs in (
            ("weights", (ours / "weights.safetensors").read_bytes() != (theirs / "weights.safetensors").read_bytes()),
            ("predictions", not _same_arrays(ours / "predictions.npz", theirs / "predictions.npz")),
            ("journal", told(ours) != told(theirs)),
            ("final state", not same(last_state(victim.root / f"last-{name}"), last_state(reference.root / f"last-{name}"))),
        ):
            if differs:
                count.tell("different", f"{what} of {label}")
        (expected,), _ = in_mlflow(reference.root, name)
        runs, models = in_mlflow(victim.root, name)
        if not runs or models == 0:
            count.tell("lost", f"{label}: {len(runs)} finished runs, {models} models in MLflow")
            continue
        if len(runs) > 1 or models > 1:
            count.tell("duplicated", f"{label}: {len(runs)} finished runs, {models} models in MLflow")
        for key, history in expected.items():
            steps = [step for step, _ in runs[0].get(key, [])]
            if len(steps) > len(set(steps)):
                count.tell("duplicated", f"{label}: {key} has steps {steps}")
            elif timeless({key: 0}) and set(steps) != {step for step, _ in history}:
                count.tell("lost", f"{label}: {key} has steps {steps}")
            elif timeless({key: 0}) and sorted(history) != sorted(runs[0][key]):
                count.tell("different", f"{label}: {key} in MLflow")
        published = [r for r in records.read_all(victim.root / "results" / "full-digits") if r.experiment == name]
        if [r.fingerprint for r in published] != [records.read(ours / "record.json").fingerprint]:
            count.tell("lost", f"{label}: not in the report")


def _same_arrays(a: Path, b: Path) -> bool:
    with np.load(a) as x, np.load(b) as y:
        return x.files == y.files and all(np.array_equal(x[k], y[k]) for k in x.files)


def record(count: Count, load: float, seconds: float) -> None:
    from benchmarks import pages

    told = {
        "date": datetime.now(UTC).date().isoformat(), "device": machine.device_name(torch.device("cpu")), "load": round(load, 1),
        "seconds": round(seconds, 1), "kinds": len(count.where), **{k: v for k, v in asdict(count).items() if k != "where"},
    }  # fmt: skip
    files.write(pages.HERE / "chaos.json", json.dumps(told, indent=1) + "\n")
    pages.write_blocks()


# ------------------------------------------------------------------------------------------------------------- the play


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--record", action="store_true", help="write benchmarks/chaos.json, and the paragraph on it in docs/robustness.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    r, count, began = random.Random(args.seed), Count(), time.monotonic()
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vitlab-chaos-") as tmp:
        references: dict[str, World] = {}
        left: list[str] = []  # points not yet met
        round_ = 0
        while count.kills < args.kills:
            kind = args.worlds[round_ % len(args.worlds)]
            round_ += 1
            if kind not in references:
                references[kind] = World(Path(tmp) / f"{kind}-reference", kind)
                if references[kind].live(reports=True):
                    raise SystemExit("chaos: the reference was killed")
                warm_up(references[kind].root / "modules")
            victim = World(Path(tmp) / f"{kind}-{round_}", kind)
            # Points that were not met yet, in the order in which a run comes to them; between them kills at random, early, since
            # a run that is far has passed its points.
            left = left or list(POINTS)
            chosen = [name for name in POINTS if name in r.sample(left, min(10, len(left)))]
            for name in chosen:
                if r.random() < 0.4 and count.kills < args.kills and victim.live(seconds=r.uniform(0.05, references[kind].seconds / 3)):
                    count.kills += 1
                    count.where["at random"] += 1
                left.remove(name)
                if count.kills == args.kills or not victim.live(lambda name=name: POINTS[name](r), reports=name.startswith("report,")):
                    break  # it came to its end
                count.kills += 1
                count.where[name] += 1
            if victim.live(reports=True):
                raise SystemExit("chaos: the last life was killed")
            compare(victim, references[kind], count)
            print(f"{victim.root.name}: {count.kills} kills after {time.monotonic() - began:.0f} s", flush=True)
            if time.monotonic() - began > 60 * args.minutes:
                print(f"stopped after {args.minutes:g} minutes with {count.kills} of {args.kills} kills")
                break
    for name, n in sorted(count.where.items()):
        print(f"  {n:3} {name}")
    print(f"chaos: {count.kills} kills, {count.runs} runs, {count.lost} lost, {count.duplicated} duplicated, {count.different} different")
    if args.record:
        record(count, load, time.monotonic() - began)
    sys.exit(count.kills < args.kills or count.lost + count.duplicated + count.different > 0)


if __name__ == "__main__":
    main()
