"""Runs as tasks of a Ray cluster (https://docs.ray.io), or of one that is started on this machine for them.

A run is a task, and depends on its teacher's task; Ray decides when and where it begins. What runs tell, and that they are to stop, goes
through one small actor on this machine, the desk. A run whose worker or node is lost begins again on another, up to three times, and goes
on from its last checkpoint.

Every node has this checkout with its virtual environment, and the data set, at the same paths. Where the folder of runs is on storage that
all nodes share, that is all. A node that does not see it is sent what it needs through the desk, before it trains: the run's checkpoint and
journal, its teacher's record, predictions and weights. It sends back its checkpoints while it trains, and in the end all that the run has
left. So whatever becomes of a node, this machine's folder of runs is what any engine goes on from. MLflow's artifacts have no part in this.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vitlab import files
from vitlab.errors import UserError
from vitlab.paths import REPOSITORY, ROOT, RUNS
from vitlab.run.engines.engine import Event
from vitlab.run.engines.flags import Options
from vitlab.run.task import Task, train_apart
from vitlab.track import store
from vitlab.train import checkpoint
from vitlab.train.loop import Stop

RETRIES = 3  # of a run whose worker or node is lost
TELL_SECONDS = 0.5  # between two times that a run tells what it has done and asks whether to stop
SENDING_SHARE = 0.1  # of the time, at most, a node without shared storage sends checkpoints, beside its training
REACH_SECONDS = 5
OBJECT_STORE = 256 * 2**20  # bytes, of a cluster of our own
NO_TEACHER = ("finished",)  # stands for the outcome of a teacher's task where there is none

# What travels where storage is not shared, in the order in which it is read and written: a checkpoint refers to the journal's size, and a
# record says that a run is finished.
LESSON = ("weights.safetensors", "predictions.npz", "record.json")
STATE = (checkpoint.NAMES[0], "journal.jsonl", "config.yaml", "run.json")
RESULTS = ("*.txt", "figures/*.png", *LESSON)


class Ray:
    """The engine that hands the runs to the Ray cluster at `options.address`, or to one of its own on this machine."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.threads, self.gpus = options.cpus_per_run or 1, 0.0
        self.about = ""
        self.tasks: dict[str, Task] = {}  # by the run's folder, as all of these
        self.refs: dict[str, ray.ObjectRef] = {}  # of those that are in hand or still to begin
        self.outcomes: dict[str, ray.ObjectRef] = {}  # of all
        self.begun: set[str] | None = None  # when they were asked to stop; None before
        self.marker = files.temporary(RUNS / "ray")  # seen by the nodes that share this folder

    def __enter__(self) -> Ray:
        before = signal.getsignal(signal.SIGTERM)
        _connect(self.options.address)
        signal.signal(signal.SIGTERM, before)  # Ray has put its own there
        try:
            self._look_at_nodes()
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self.desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()
            self.work = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=RETRIES)(work)
            self.marker.parent.mkdir(parents=True, exist_ok=True)
            self.marker.touch()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.refs:  # only where an exception has ended it
            self.stop(signal.SIGTERM)
            ray.wait(list(self.refs.values()), num_returns=len(self.refs))
        with contextlib.suppress(OSError):  # on a disk that is read-only now
            self.marker.unlink()
        ray.shutdown()

    @property
    def busy(self) -> bool:
        """Return whether a run is in hand or still to begin."""
        return bool(self.refs)

    def submit(self, task: Task) -> None:
        """Take a run in."""
        key, teacher, source = str(task.run.folder), task.run.teacher, task.run.source
        self.tasks[key] = task
        source = replace(source, **{name: path.absolute() for name in ("path", "cache") if (path := getattr(source, name))})
        sent = replace(task, run=replace(task.run, source=source))  # a worker's current directory is another one
        taught = NO_TEACHER if teacher is None else self.outcomes.get(str(teacher.folder), NO_TEACHER)
        environment = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}
        ref = self.work.options(name=task.label).remote(self.desk, sent, self.threads, self.marker, environment, taught)
        self.refs[key] = self.outcomes[key] = ref

    def events(self, seconds: float) -> list[Event]:
        """Return what has become of the runs."""
        keys = {ref: key for key, ref in self.refs.items()}
        done, _ = ray.wait(list(keys), timeout=seconds)
        told = [Event(self.tasks[key], kind, values) for key, kind, *values in ray.get(self.desk.take.remote())]
        for ref in done:  # what its run told before is among what was told
            del self.refs[keys[ref]]
            told += self._outcome(keys[ref], ref)
        return told

    def stop(self, number: int) -> None:
        """Ask the runs to stop, and take back those that have not begun."""
        if self.begun is None:
            self.begun = ray.get(self.desk.stop.remote(number))
            for key in self.refs.keys() - self.begun:
                ray.cancel(self.refs[key])

    def _outcome(self, key: str, ref: ray.ObjectRef) -> list[Event]:
        task = self.tasks[key]
        try:
            kind, *values = ray.get(ref)
        except RayError as e:
            if self.begun is not None and key not in self.begun:
                return []  # taken back
            if isinstance(e, RayTaskError):
                return [Event(task, "failed", (e,))]
            why = f"its worker or node was lost {RETRIES + 1} times; if memory ran out, try more --cpus-per-run, so that fewer runs share a node"
            return [Event(task, "died", (f"{why} ({str(e).splitlines()[0]}). The same command goes on from the last checkpoint",))]
        if kind == "finished":
            values = [task.run.record(), *values]
        return [] if kind == "left" else [Event(task, kind, tuple(values))]

    def _look_at_nodes(self) -> None:
        """Find out what the cluster has, and whether runs have GPUs."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
        self.gpus = self.options.gpus_per_run or (1 if gpus else 0)
        share = f"{self.threads} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        self.about = f"Ray: nodes {len(nodes)}, CPUs {cpus:g}, GPUs {gpus:g}; each run has {share}"
        if not any(node.get("CPU", 0) >= self.threads and node.get("GPU", 0) >= self.gpus for node in nodes):
            self.about += "; no node has that yet, and the runs wait for one"


def _connect(address: str | None) -> None:
    """Connect to a cluster, or start one on this machine, without a word from Ray. Raises UserError where that fails."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    options = {
        "runtime_env": {"env_vars": {"VITLAB_ROOT": str(ROOT), "PYTHONPATH": path}},
        "log_to_driver": False,
        "logging_level": "error",
    }
    if address is None:
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE, **options)
        return
    remedy = (
        "give the HOST:PORT that 'ray start --head' has printed, on a node of that cluster; if it was started with RAY_AUTH_MODE=token, set that "
        "here too, and have its token in ~/.ray/auth_token"
    )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(f"--address {address}: not HOST:PORT; {remedy}")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()  # at once, where Ray tries for half a minute
        ray.init(address=address, **options)
    except (OSError, OverflowError, RuntimeError, ValueError) as e:
        raise UserError(f"--address {address}: no Ray cluster of ours there ({(str(e).splitlines() or [repr(e)])[0]}); {remedy}") from None


class Desk:
    """The actor through which runs tell and are told. It is on the machine of the command, and sees its folder of runs."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.number: int | None = None
        self.begun: dict[str, int] = {}

    def begin(self, key: str) -> tuple[int | None, int]:
        """Return the signal that asks to stop, or None; and how often the run has begun before."""
        before = self.begun.get(key, 0)
        if self.number is None:
            self.begun[key] = before + 1
        return self.number, before

    def exchange(self, key: str, told: list[tuple[Any, ...]]) -> int | None:
        """Take in what a run tells; return the signal that asks to stop, or None."""
        self.told += [(key, *each) for each in told]
        return self.number

    def take(self) -> list[tuple[Any, ...]]:
        """Return what was told since the last call: (folder, kind, *values)."""
        told, self.told = self.told, []
        return told

    def stop(self, number: int) -> set[str]:
        """Ask all runs to stop, and return those that have begun; no other will."""
        self.number = number
        return set(self.begun)

    def fetch(self, folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
        """Return the content of these files of a run."""
        return _content(folder, names)

    def keep(self, folder: Path, content: dict[str, bytes]) -> None:
        """Put what a node has sent into the run's folder. Raises DiskFull."""
        _write(folder, content)
        if (folder / "record.json").exists():
            checkpoint.remove(folder)

    def clear(self, folder: Path) -> None:
        """Delete the run's folder: it is trained anew."""
        shutil.rmtree(folder, ignore_errors=True)


def _content(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in sorted(folder.glob(name))}


def _write(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        files.write(folder / name, data)


# ------------------------------------------------------------------------------------------------------------ on a node


def work(desk: Any, task: Task, threads: int, marker: Path, environment: dict[str, str], taught: tuple[Any, ...]) -> tuple[Any, ...]:
    """Train one run with so many threads; return ("finished", here), ("interrupted",), ("failed", exception), or ("left",) untouched.

    `marker` is a file that only those see who share the storage; `taught` is what this returned for its teacher, which has ended.
    """
    os.environ.update(environment)
    line = _Line(desk, task)
    number, before = line.ask("begin", line.key)
    if number is not None or taught[0] != "finished":
        return ("left",)
    if before:
        line.send("said", "its worker or node was lost; it goes on from the last checkpoint")
        task = replace(task, force=False)
    with line, _travelling(line, task, marker.exists()):
        train_apart(task, threads, line.send, line.stop)
    return line.outcome


class _Line:
    """A run's connection to the desk, used as a context manager: every half second it tells what there is to tell, and asks whether to stop."""

    def __init__(self, desk: Any, task: Task) -> None:
        self.desk, self.key = desk, str(task.run.folder)
        self.stop = Stop()
        self.outcome: tuple[Any, ...] = ()
        self.told: list[tuple[Any, ...]] = []
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._keep_telling, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self._tell()

    def ask(self, what: str, *args: Any) -> Any:
        """Return what the desk answers. ray.get would lend this run's CPUs to another one meanwhile."""
        return getattr(self.desk, what).remote(*args).future().result()

    def send(self, kind: str, *values: Any) -> None:
        """Tell an event. Its outcome is what the task returns."""
        if kind in ("finished", "interrupted", "failed"):
            self.outcome = self.outcome or ((kind, values[1]) if kind == "finished" else (kind, *values))
            return
        with self.lock:
            if kind == "step" and self.told and self.told[-1][0] == "step":
                self.told.pop()
            self.told.append((kind, *values))

    def _tell(self) -> None:
        with self.lock:
            told, self.told = self.told, []
        number = self.ask("exchange", self.key, told)
        if self.stop.signal is None:
            self.stop.signal = number

    def _keep_telling(self) -> None:
        while not self.ended.wait(TELL_SECONDS):
            try:
                self._tell()
            except RayError:  # the command has ended, or its machine: what is done is saved
                self.stop.signal = signal.SIGTERM
                return


@contextlib.contextmanager
def _travelling(line: _Line, task: Task, shared: bool) -> Iterator[None]:
    """Where storage is not shared, bring what the run needs to this node, and send back what it leaves, as a context manager."""
    if shared:
        yield
        return
    folder, teacher = task.run.folder, task.run.teacher
    if teacher is not None and not teacher.finished:
        _write(teacher.folder, line.ask("fetch", teacher.folder, LESSON))
    state = (*STATE, *(["mlflow.json"] if store.server(ROOT) else []))  # else it speaks of this node's own database
    if task.force:
        line.ask("clear", folder)
    shutil.rmtree(folder, ignore_errors=True)  # what is here may be of an earlier attempt
    _write(folder, line.ask("fetch", folder, (*state, *RESULTS)))
    ended = threading.Event()

    def keep_sending() -> None:
        sent = took = 0.0
        while not ended.wait(max(TELL_SECONDS, took / SENDING_SHARE)):
            with contextlib.suppress(FileNotFoundError, RayError):  # it is being replaced; the desk is gone, which the line sees to
                if (newest := (folder / checkpoint.NAMES[0]).stat().st_mtime) > sent:
                    began = time.monotonic()
                    line.ask("keep", folder, _content(folder, state))
                    sent, took = newest, time.monotonic() - began

    sender = threading.Thread(target=keep_sending, daemon=True)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()
    line.ask("keep", folder, _content(folder, (*state, *RESULTS)))
