"""Ships a run's journal to MLflow, and reads finished runs back. The only file that imports mlflow, and late: the import takes seconds.

MLflow is fed from the journal alone, with the journal's timestamps. It keeps a metric's row once per (key, value, timestamp, step), so
a line that is shipped twice adds nothing, and whatever a dead server or a killed process left undone is simply shipped again. Only
what a checkpoint covers is shipped: steps that a resume replays were never there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import html
import json
import logging
import math
import os
import re
import sqlite3
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import numpy as np
from filelock import FileLock

from vitlab import records
from vitlab.journal import RunInfo, read_journal, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from torch import nn

EXPERIMENT = "vitlab"
ARTIFACTS = ("config.yaml", "record.json", "predictions.npz", "weights.safetensors", "report.txt")
BATCH = 1000  # metrics in one request; MLflow's limit
LOCK_SECONDS = 300  # making a database takes a busy machine minutes
BACK_OFF_SECONDS = 300  # the longest pause between two attempts to reach a server that is down


# ---------------------------------------------------------------------------------------------------------- the store


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a database in `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri(root)


def shown_uri(root: Path) -> str:
    """The tracking URI for a screen or a log: a password in it left out."""
    return _without_password(tracking_uri(root))


def prepare_store(root: Path) -> None:
    """Make the database and the experiment, once, before any fan-out; nothing to do for a server. Without mlflow where both are there."""
    if tracking_uri(root) == _own_uri(root) and _stored_location(root) != _artifact_location(root):
        _connect(root)


def _own_uri(root: Path) -> str:
    path = str(root.resolve() / "mlflow.db")
    return "sqlite:///" + path.replace("%", "%25").replace("?", "%3F")  # which SQLAlchemy would read as a URL's syntax


def _artifact_location(root: Path) -> str:
    return (root.resolve() / "mlartifacts").as_uri()


def _stored_location(root: Path) -> str | None:
    """Where the database in `root` says that artifacts lie; None where it is not there yet, or has no experiment of ours.

    Raises ValueError for a file that is no database.
    """
    if not (root / "mlflow.db").exists():
        return None
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as db:
        try:
            row = db.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
        except sqlite3.OperationalError:  # no tables yet
            return None
        except sqlite3.DatabaseError as e:
            remedy = "move it away; 'vitlab sync' fills a new one from the runs' folders"
            raise ValueError(f"{root / 'mlflow.db'}: not a readable database ({e}); {remedy}") from None
    return row[0] if row else None


def _relocate(root: Path, old: str, new: str) -> None:
    """MLflow stores absolute paths, so a folder that was moved loses its artifacts (mlflow issue 3144): write the new ones."""
    columns = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as db, db:
        for table, column in columns:
            move = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?"
            db.execute(move, (new, len(old) + 1, len(old) + 1, old + "/"))


def _lock(root: Path) -> FileLock:
    """Across threads and processes; what is looked up and made, or read and written, holds it."""
    return FileLock(root / "mlflow.db.lock", timeout=LOCK_SECONDS)


def _connect(root: Path) -> _Store:
    return _open(tracking_uri(root), root.resolve())


@functools.lru_cache(maxsize=8)
def _open(uri: str, root: Path) -> _Store:
    return _Store(uri, root)


class _Store:
    """A tracking store's experiment `vitlab`. Through MlflowClient alone: the fluent interface has a run of its own to end at exit."""

    def __init__(self, uri: str, root: Path) -> None:
        for key, value in {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # at the end of each run, amid the progress
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; the defaults, 120 and 7, keep one waiting for a quarter of an hour
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        }.items():
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient

        for name, level in (("mlflow", logging.WARNING), ("alembic", logging.WARNING), ("urllib3.connectionpool", logging.ERROR)):
            logging.getLogger(name).setLevel(level)  # else tables made and requests retried are told amid the progress
        self.root = root
        self.key = _without_password(uri)
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root):
            self.client: MlflowClient = MlflowClient(tracking_uri=uri)
            self.experiment_id = self._experiment(uri)

    def _experiment(self, uri: str) -> str:
        from mlflow.exceptions import MlflowException

        location = _artifact_location(self.root) if uri.startswith("sqlite:") else None  # a server has a place of its own
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            try:
                return self.client.create_experiment(EXPERIMENT, artifact_location=location)
            except MlflowException:  # on a server, another machine may have been faster
                found = self.client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            remedy = f"bring it back with 'mlflow experiments restore -x {found.experiment_id}'"
            raise ValueError(f"{self.key}: the experiment '{EXPERIMENT}' was deleted; {remedy}")
        old = found.artifact_location
        if uri == _own_uri(self.root) and old != location and old.startswith("file:") and old.endswith("/mlartifacts"):
            _relocate(self.root, old, location)
        return found.experiment_id

    def find(self, tags: dict[str, str]) -> list[Run]:
        """The runs with all these tags, oldest first."""
        # the filter language has no escapes, so what would need one is compared here alone
        text = " and ".join(f"tags.`{k}` = '{v}'" for k, v in tags.items() if v and "'" not in v)
        runs, token = [], None
        while True:
            page = self.client.search_runs([self.experiment_id], text, max_results=1000, page_token=token)
            runs += [run for run in page if all(run.data.tags.get(k, "") == v for k, v in tags.items())]
            token = page.token
            if not token:
                return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def find_or_create(self, tags: dict[str, str], name: str, start: int, new_tags: dict[str, str]) -> str:
        """The id of the run that these tags identify."""
        with _lock(self.root):
            found = self.find(tags)
            if found:
                return found[0].info.run_id
            made = self.client.create_run(self.experiment_id, start_time=start, tags=tags | new_tags, run_name=name).info.run_id
            first = self.find(tags)[0].info.run_id
            if first != made:  # another machine's, a moment earlier: all keep the first
                self.client.delete_run(made)
            return first

    def exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as e:
            if e.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def log_metrics(self, run_id: str, rows: list[tuple[str, float, int, int]]) -> None:
        """rows: (key, value, time in ms, step)."""
        from mlflow.entities import Metric

        for i in range(0, len(rows), BATCH):
            self.client.log_batch(run_id, metrics=[Metric(*row) for row in rows[i : i + BATCH]])

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        items = [Param(k, v) for k, v in params.items()]
        for i in range(0, len(items), 100):  # MLflow's limit
            self.client.log_batch(run_id, params=items[i : i + 100])

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])


def _without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://", text)


# ------------------------------------------------------------------------------------------------------------ shipping


@dataclass
class _Shipped:
    """What of a run has reached one store."""

    run_id: str
    offset: int = 0  # bytes of the journal
    digest: str = ""  # of these bytes: a resume from an earlier checkpoint may have written others in their place
    described: str = ""  # digest of the run.json that tags and params were taken from
    status: str = "RUNNING"
    model_id: str = ""


@dataclass
class _State:
    """`<run_dir>/mlflow.json`. Losing it costs time and nothing else, since all that is shipped is shipped idempotently."""

    started: int  # the journal's first timestamp: another one is another attempt at the same seed, and another run in MLflow
    covered: int = 0  # bytes of the journal that a checkpoint covers
    status: str = "RUNNING"  # as it should be in MLflow
    stores: dict[str, _Shipped] = field(default_factory=dict)

    @classmethod
    def read(cls, run_dir: Path, started: int) -> _State:
        try:
            values = json.loads((run_dir / "mlflow.json").read_text(encoding="utf-8"))
            state = cls(**values | {"stores": {k: _Shipped(**v) for k, v in values["stores"].items()}})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls(started)
        return state if state.started == started else cls(started)

    def write(self, run_dir: Path) -> None:
        write_json(run_dir / "mlflow.json", asdict(self))


def ship(
    run_dir: Path,
    root: Path,
    upto: int | None,
    final: bool,
    model: nn.Module | None = None,
    example: np.ndarray | None = None,
) -> None:
    """Bring MLflow up to the journal's first `upto` bytes (None: all of it). Idempotent.

    `final` adds artifacts, the record's numbers, the marks of a finished run and the parent's summary over seeds; then the `model`, if
    one is given, with two images as `example`. Raises what mlflow raises where the store cannot be reached or refuses.
    """
    _note(run_dir, "FINISHED" if final else "RUNNING", upto)
    _ship(run_dir, root, model, example)


def close(run_dir: Path, root: Path, status: str) -> None:
    """Ship what checkpoints cover, and mark the run KILLED (interrupted) or FAILED; a later `ship` has it RUNNING again."""
    _note(run_dir, status)
    _ship(run_dir, root)


_COVERED = -1  # as many bytes as were noted before


def _note(run_dir: Path, status: str, upto: int | None = _COVERED) -> None:
    """Write down what is to be shipped before trying to, for a later `sync`."""
    assert status in ("RUNNING", "KILLED", "FAILED", "FINISHED"), status
    entries = read_journal(run_dir / "journal.jsonl")
    if entries:
        state = _State.read(run_dir, entries[0][1]["time"])
        if upto != _COVERED:
            state.covered = entries[-1][0] if upto is None else upto
        state.status = status
        state.write(run_dir)


def _ship(run_dir: Path, root: Path, model: nn.Module | None = None, example: np.ndarray | None = None) -> None:
    info, entries = RunInfo.read(run_dir), read_journal(run_dir / "journal.jsonl")
    if not entries:
        return
    state = _State.read(run_dir, entries[0][1]["time"])
    store = _connect(root)
    at = state.stores.get(store.key)
    if at is None or not store.exists(at.run_id):
        identity = _attempts(info) | {"vitlab.started": str(state.started)}
        at = _Shipped(store.find_or_create(identity, info.name, state.started, {"vitlab.finished": "false"}))
        state.stores[store.key] = at
        state.write(run_dir)

    if at.status != "FINISHED":
        described = _digest((run_dir / "run.json").read_bytes())
        if at.described != described:
            _describe(store, at.run_id, info)
            at.described = described
        _ship_metrics(store, at, run_dir, entries, state.covered)
        state.write(run_dir)
        if at.status != state.status:
            if state.status == "FINISHED":
                _ship_results(store, at.run_id, run_dir, entries)
            _settle(store, at.run_id, info, state.status, entries[-1][1]["time"])
            at.status = state.status
            state.write(run_dir)
    if model is not None and not at.model_id:
        at.model_id = log_model(root, at.run_id, model, example)
        state.write(run_dir)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _group(info: RunInfo) -> dict[str, str]:
    """The tags that all seeds of one experiment share."""
    return {
        "vitlab.experiment": info.experiment,
        "vitlab.variant": info.variant,
        "vitlab.profile": info.profile,
        "vitlab.dataset": info.dataset,
        "vitlab.fingerprint": info.fingerprint,
    }


def _attempts(info: RunInfo) -> dict[str, str]:
    """The tags of a seed's run; a run trained anew (--force) has the same ones and another `vitlab.started`."""
    return _group(info) | {"vitlab.kind": "seed", "vitlab.seed": str(info.seed)}


def _parent(store: _Store, info: RunInfo) -> str:
    more = {"vitlab.dataset_digest": info.dataset_digest, "mlflow.note.content": _note_text(info)}
    return store.find_or_create(_group(info) | {"vitlab.kind": "parent"}, info.group, int(time.time() * 1000), more)


def _note_text(info: RunInfo) -> str:
    """MLflow's UI reads a description as Markdown, HTML included; all else it shows as it is."""
    return html.escape(info.description, quote=False)


def _describe(store: _Store, run_id: str, info: RunInfo) -> None:
    """Tags, params and data set. Params cannot be changed, so what may be another on resume is a tag."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = {
        "mlflow.parentRunId": _parent(store, info),
        "mlflow.note.content": _note_text(info),
        "vitlab.title": info.title,
        "vitlab.dataset_digest": info.dataset_digest,
        "vitlab.device": info.device,
        "vitlab.git_commit": info.git_commit,
        "vitlab.git_dirty": info.git_dirty,
    }
    store.set_tags(run_id, tags)
    store.log_params(run_id, info.params)
    sizes = {"train": info.train, "validation": info.validation, "test": info.test}
    source = json.dumps({"name": info.dataset})
    dataset = Dataset(info.dataset, info.dataset_digest[:36], "vitlab", source, profile=json.dumps(sizes))
    with _lock(store.root):  # MLflow looks the data set up and inserts it, and refuses the second of two that do so together
        store.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _ship_metrics(store: _Store, at: _Shipped, run_dir: Path, entries: list[tuple[int, dict[str, Any]]], covered: int) -> None:
    journal = (run_dir / "journal.jsonl").read_bytes()
    if _digest(journal[: at.offset]) != at.digest:
        at.offset = 0
    due = [(end, entry) for end, entry in entries if at.offset < end <= covered]
    rows = [(k, v, entry["time"], entry["step"]) for _, entry in due if entry["kind"] == "metrics" for k, v in entry["values"].items()]
    store.log_metrics(at.run_id, rows)
    if due:
        at.offset, at.digest = due[-1][0], _digest(journal[: due[-1][0]])


def _settle(store: _Store, run_id: str, info: RunInfo, status: str, time_ms: int) -> None:
    """Set the run's status and the mark of a finished one, and with them its parent's and its earlier attempts'."""
    parent_id = _parent(store, info)
    store.set_tags(run_id, {"mlflow.parentRunId": parent_id})  # it may have been deleted and made again
    with _lock(store.root):
        if status == "RUNNING":
            store.client.update_run(run_id, status)
        else:
            store.client.set_terminated(run_id, status, end_time=time_ms)
        if status == "FINISHED":  # only now, so that what is marked has an end
            store.set_tags(run_id, {"vitlab.finished": "true"})
            _supersede(store, info)
        _summarise(store, parent_id)


def _ship_results(store: _Store, run_id: str, run_dir: Path, entries: list[tuple[int, dict[str, Any]]]) -> None:
    """Artifacts, and the record's numbers as `final/...`."""
    record = records.read(run_dir / "record.json")
    for name in ARTIFACTS:
        if (run_dir / name).exists():
            store.client.log_artifact(run_id, str(run_dir / name))
    for picture in sorted((run_dir / "figures").glob("*.png")):
        store.client.log_artifact(run_id, str(picture), "figures")
    values = record.metrics | {"params": record.params, "flops": record.flops}
    values |= {"train_seconds": record.train_seconds, "img_s": record.img_s} | {f"perf_{k}": v for k, v in record.perf.items()}
    if record.teacher is not None:
        values |= {"teacher_agreement": record.teacher.agreement, "gain_over_teacher": record.teacher.gain}
    step = max((entry["step"] for _, entry in entries if entry["kind"] == "metrics"), default=0)
    store.log_metrics(run_id, [(f"final/{k}", float(v), entries[-1][1]["time"], step) for k, v in values.items()])


def _supersede(store: _Store, info: RunInfo) -> None:
    """Of several attempts at one seed the last that finished counts; an earlier one that was left running will not finish any more."""
    attempts = store.find(_attempts(info))
    done = [i for i, run in enumerate(attempts) if run.data.tags["vitlab.finished"] == "true"]
    for run in attempts[: done[-1]] if done else ():
        if run.data.tags["vitlab.finished"] == "true":
            store.set_tags(run.info.run_id, {"vitlab.finished": "superseded"})
        elif run.info.status == "RUNNING":
            store.client.set_terminated(run.info.run_id, "KILLED")


def _summarise(store: _Store, parent_id: str) -> None:
    """The parent's metrics and status from its children's, computed anew each time.

    `final/x` is the mean, so that its column compares with the children's; a test's also has `_sd`, `_ci95_low`, `_ci95_high`. The step is
    the number of seeds and the time the last child's end: the run table shows the latest, and computing it again adds nothing.
    """
    children = store.find({"mlflow.parentRunId": parent_id})
    done = [run for run in children if run.data.tags["vitlab.finished"] == "true"]
    seeds = sorted({int(run.data.tags["vitlab.seed"]) for run in done})
    if done:
        end = max(run.info.end_time for run in done)
        values = {"final/seeds": float(len(done))}
        for key in sorted(set.intersection(*({k for k in run.data.metrics if k.startswith("final/")} for run in done))):
            mean, sd, low, high = interval([run.data.metrics[key] for run in done])
            values[key] = mean
            if len(done) > 1 and key.startswith("final/test_"):
                values |= {f"{key}_sd": sd, f"{key}_ci95_low": low, f"{key}_ci95_high": high}
        store.log_metrics(parent_id, [(k, v, end, len(done)) for k, v in values.items()])
        store.set_tags(parent_id, {"vitlab.seeds": ",".join(map(str, seeds)), "vitlab.finished": "true"})
    if any(run.info.status == "RUNNING" for run in children):
        store.client.update_run(parent_id, "RUNNING")
    else:
        status = "FINISHED" if done else children[-1].info.status
        store.client.set_terminated(parent_id, status, end_time=max(run.info.end_time for run in children))


def interval(values: list[float]) -> tuple[float, float, float, float]:
    """Mean, standard deviation (n - 1), and the mean's 95 % confidence interval by Student's t; NaN where there is one value only."""
    from scipy.special import stdtrit  # a fraction of scipy.stats' import

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, math.nan, math.nan, math.nan
    sd = float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return mean, sd, mean - half, mean + half


def log_model(root: Path, run_id: str, model: nn.Module, example: np.ndarray) -> str:
    """Log `model` under the run, loadable as `models:/<the id returned>` without this package: a graph exported by torch, not a pickle.

    example: (2, 3, H, W), uint8 or float; two images, since a batch of one would be exported as a constant. The graph takes what the model
    takes: normalised float32 images, any number of them.
    """
    import copy

    import mlflow.pytorch
    import torch
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    store = _connect(root)
    model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()  # torch.export warns of channels_last weights
    images = np.ascontiguousarray(example / 255 if example.dtype == np.uint8 else example, dtype=np.float32)
    float32 = np.dtype(np.float32)
    logged = store.client.create_logged_model(store.experiment_id, name="model", source_run_id=run_id)
    status = "FAILED"
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory() as tmp:
            classes = model(torch.from_numpy(images)).shape[1]
            inputs, outputs = TensorSpec(float32, (-1, *images.shape[1:])), TensorSpec(float32, (-1, classes))
            mlflow.pytorch.save_model(
                model,
                f"{tmp}/model",
                mlflow_model=Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id),
                signature=ModelSignature(Schema([inputs]), Schema([outputs])),
                input_example=images,
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],  # or they are inferred, slowly
                serialization_format="pt2",
            )
            store.client.log_model_artifacts(logged.model_id, f"{tmp}/model")
        store.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        status = "READY"
    finally:
        store.client.finalize_logged_model(logged.model_id, status)
    return logged.model_id


class Shipper:
    """Ships one run in a thread of its own, so that training never waits and never fails because of MLflow."""

    def __init__(self, root: Path, run_dir: Path) -> None:
        self.outstanding = ""  # why not everything has arrived, in one line; "" where it has
        self._root, self._run_dir = root, run_dir
        self._wake = threading.Condition()
        self._upto: int | None = None  # what is to be shipped next; None: nothing
        self._last: tuple[str, nn.Module | None, np.ndarray | None] | None = None  # status, model, example: then the thread ends
        self._thread = threading.Thread(target=self._work, name="mlflow-shipper", daemon=True)
        self._thread.start()

    def notify(self, upto: int) -> None:
        """The journal's first `upto` bytes are covered by a checkpoint. Returns at once."""
        with self._wake:
            self._upto = upto
            self._wake.notify()

    def finish(self, timeout_s: float, model: nn.Module | None = None, example: np.ndarray | None = None) -> bool:
        """Ship the finished run, and its model. True if everything has arrived within `timeout_s`; else `outstanding` says why not."""
        return self._end("FINISHED", timeout_s, model, example)

    def close(self, status: str, timeout_s: float) -> bool:
        """As `finish`, for a run that was interrupted (KILLED) or has FAILED: ships what checkpoints cover."""
        return self._end(status, timeout_s)

    def _end(self, status: str, timeout_s: float, model: nn.Module | None = None, example: np.ndarray | None = None) -> bool:
        with self._wake:
            self._last = (status, model, example)
            self._wake.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.outstanding = self.outstanding or f"still on its way after {timeout_s:g} s"
            return False
        return not self.outstanding

    def _work(self) -> None:
        pause, not_before = 1.0, 0.0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._upto is not None or self._last is not None)
                upto, last, self._upto = self._upto, self._last, None
            try:
                if upto is not None:
                    _note(self._run_dir, "RUNNING", upto)
                if last is not None:
                    status, model, example = last
                    _note(self._run_dir, status, None if status == "FINISHED" else _COVERED)
                    _ship(self._run_dir, self._root, model, example)
                elif time.monotonic() >= not_before:
                    _ship(self._run_dir, self._root)
                else:
                    continue  # backing off; the next notice covers this one
                self.outstanding, pause = "", 1.0
            except Exception as e:
                self.outstanding = _reason(e)
                pause = min(2 * pause, BACK_OFF_SECONDS)
                not_before = time.monotonic() + pause
            if last is not None:
                return


def _reason(e: BaseException) -> str:
    """One line. Where a connection or a file is what failed, MLflow's text is a page of retries, and the system's own says it."""
    inner = e
    while (cause := inner.__cause__ or (None if inner.__suppress_context__ else inner.__context__)) is not None:
        inner = cause
    lines = str(inner if isinstance(inner, OSError) else e).strip().splitlines() or [type(e).__name__]
    return _without_password(lines[0])[:300]


def sync(runs_dir: Path, root: Path) -> list[tuple[str, bool, str]]:
    """Ship what is outstanding of every run below `runs_dir`: (label, arrived, reason) of each that had anything outstanding."""
    outcome = []
    store, unreachable = None, ""
    try:
        store = _connect(root)
    except Exception as e:
        unreachable = _reason(e)
    for path in sorted(runs_dir.rglob("run.json")):
        run_dir, name, reason = path.parent, str(path.parent), unreachable
        try:
            name = RunInfo.read(run_dir).name
            if (run_dir / "record.json").exists():
                _note(run_dir, "FINISHED", None)
            at = _all_shipped(run_dir, _without_password(tracking_uri(root)))
            if at == "" or (at and (store is None or store.exists(at))):
                continue
            if store is not None:
                _ship(run_dir, root)
        except Exception as e:  # one run's trouble is not the next one's
            reason = _reason(e)
        outcome.append((name, not reason, reason))
    return outcome


def _all_shipped(run_dir: Path, key: str) -> str | None:
    """The run's id in that store where nothing is outstanding, "" where there is nothing to be shipped yet, else None."""
    entries = read_journal(run_dir / "journal.jsonl")
    if not entries or not (run_dir / "mlflow.json").exists():
        return ""
    state = _State.read(run_dir, entries[0][1]["time"])
    at = state.stores.get(key)
    return at.run_id if at is not None and (at.status == "FINISHED" or (at.offset, at.status) == (state.covered, state.status)) else None


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class FinishedRun:
    run_id: str
    parent_id: str
    tags: dict[str, str]
    root: Path
    folder: Path | None  # its artifacts, where they lie on this machine

    def fetch(self, artifact: str, dst: Path) -> Path:
        """The artifact's path: its own where it lies on this machine, else downloaded into `dst`. Raises ValueError where there is none."""
        if self.folder is not None and (self.folder / artifact).exists():
            return self.folder / artifact
        return download(self.root, self.run_id, artifact, dst)


def download(root: Path, run_id: str, artifact: str, dst: Path) -> Path:
    """Copy a run's artifact into `dst` and return its path there. Raises ValueError where there is none."""
    from mlflow.exceptions import MlflowException

    dst.mkdir(parents=True, exist_ok=True)
    try:
        return Path(_connect(root).client.download_artifacts(run_id, artifact, str(dst)))
    except (MlflowException, OSError) as e:
        raise ValueError(f"MLflow run {run_id} has no {artifact} ({_reason(e)}); delete the run in MLflow, then 'vitlab sync'") from None


def finished_runs(root: Path, experiment: str | None = None, profile: str | None = None, dataset: str | None = None) -> list[FinishedRun]:
    """Every finished seed's run, oldest first: one a seed, the last one where it was trained anew."""
    wanted = {"vitlab.experiment": experiment, "vitlab.profile": profile, "vitlab.dataset": dataset}
    tags = {"vitlab.kind": "seed", "vitlab.finished": "true"} | {k: v for k, v in wanted.items() if v is not None}
    if tracking_uri(root) == _own_uri(root):
        found = [(run_id, uri, said) for run_id, uri, said in _own_runs(root) if said.items() >= tags.items()]
    else:
        found = [(run.info.run_id, run.info.artifact_uri, run.data.tags) for run in _connect(root).find(tags)]
    return [FinishedRun(run_id, said["mlflow.parentRunId"], said, root, _local(uri)) for run_id, uri, said in found]


def _own_runs(root: Path) -> list[tuple[str, str, dict[str, str]]]:
    """(run id, where its artifacts are, tags) of each run in the database in `root`, oldest first.

    Read with SQL: through mlflow, which makes an object of every param, a thousand runs take ten seconds, and its import three more.
    """
    old, new = _stored_location(root), _artifact_location(root)
    if old is None:
        return []
    sql = """SELECT run_uuid, artifact_uri, key, value FROM runs JOIN experiments USING (experiment_id) JOIN tags USING (run_uuid)
             WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active' AND runs.lifecycle_stage = 'active'
             ORDER BY start_time, run_uuid"""
    runs: dict[str, tuple[str, str, dict[str, str]]] = {}
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as db:
        for run_id, uri, key, value in db.execute(sql, (EXPERIMENT,)):
            moved = new + uri.removeprefix(old) if uri.startswith(old) else uri  # nothing, where the folder is where it was
            runs.setdefault(run_id, (run_id, moved, {}))[2][key] = value
    return list(runs.values())


def _local(uri: str) -> Path | None:
    parts = urlparse(uri)
    path = Path(unquote(parts.path))
    return path if parts.scheme in ("file", "") and path.is_dir() else None
