"""Ships a run's journal to MLflow. Only this package imports mlflow, and it does so late.

MLflow is fed from the journal alone, with its timestamps, and keeps a metric once per (key, value, timestamp, step): so shipping a line
twice adds nothing, and whatever a dead server or a killed process left undone is shipped again. Only what a checkpoint refers to is
shipped: a resumed run may repeat the steps after it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import html
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from vitlab import files, records
from vitlab.stats import interval
from vitlab.track import index, model, views
from vitlab.track.journal import RunInfo, begun, read_journal
from vitlab.track.store import Store, connect, locked, reason, tracking_uri, without_password

if TYPE_CHECKING:
    from torch import nn

Model = Callable[[], "tuple[nn.Module, np.ndarray]"]  # makes a finished run's model, and two images for it, when wanted
ARTIFACTS = ("config.yaml", "record.json", "predictions.npz", "weights.safetensors", "report.txt")
SHIPPING_SECONDS = 30  # how long a process waits for another one that ships the same run


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
    """What of a run has reached which store: `<run_dir>/mlflow.json`. Losing it costs time only, since shipping again adds nothing."""

    started: int  # the journal's first timestamp: a different one means another attempt at the seed, and another run in MLflow
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
        files.write_json(run_dir / "mlflow.json", asdict(self))


def ship(
    run_dir: Path,
    root: Path,
    upto: int | None,
    final: bool,
    model: nn.Module | None = None,
    example: np.ndarray | None = None,
) -> None:
    """Ship the journal's first `upto` bytes (None: all of it) to MLflow. Doing it again changes nothing.

    `final` adds the artifacts, the record's numbers, the marks of a finished run and the parent's summary over seeds; then the `model`, if
    one is given, with two images as `example`. Raises what mlflow raises where the store cannot be reached or refuses.
    """
    note(run_dir, "FINISHED" if final else "RUNNING", upto)
    ship_noted(run_dir, root, None if model is None or example is None else lambda: (model, example))


def close(run_dir: Path, root: Path, status: str) -> None:
    """Ship what checkpoints refer to, and mark the run as `status`: KILLED (interrupted) or FAILED. A later `ship` makes it RUNNING again."""
    note(run_dir, status)
    ship_noted(run_dir, root)


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Hold the run's shipping lock, since `vitlab sync` may ship a run that is being trained. Raises TimeoutError."""
    try:
        lock = FileLock(run_dir / "mlflow.lock", timeout=SHIPPING_SECONDS).acquire()
    except Timeout:
        raise TimeoutError("another process is shipping it") from None
    with lock:
        yield


COVERED = -1  # stands for: as many bytes as were noted before


def note(run_dir: Path, status: str, upto: int | None = COVERED) -> None:
    """Write down in `mlflow.json` what is to be shipped, before trying to, so that a later `sync` can do it."""
    assert status in ("RUNNING", "KILLED", "FAILED", "FINISHED"), status
    entries = read_journal(run_dir / "journal.jsonl")
    if entries:
        with _alone(run_dir):
            state = _State.read(run_dir, entries[0][1]["time"])
            if upto != COVERED:
                state.covered = entries[-1][0] if upto is None else upto
            state.status = status
            state.write(run_dir)


def ship_noted(run_dir: Path, root: Path, final_model: Model | None = None) -> None:
    """Ship what `note` has written down, and the run's model. Raises what mlflow raises where the store cannot be reached or refuses."""
    info, entries = RunInfo.read(run_dir), read_journal(run_dir / "journal.jsonl")
    if entries:
        with _alone(run_dir):
            _ship_entries(run_dir, root, info, entries, final_model)


def _ship_entries(run_dir: Path, root: Path, info: RunInfo, entries: list[tuple[int, dict[str, Any]]], final_model: Model | None) -> None:
    state = _State.read(run_dir, entries[0][1]["time"])
    store = connect(root)
    at = state.stores.get(store.key)
    if at is None or not store.exists(at.run_id):
        identity = _attempts(info) | {"vitlab.started": str(state.started)}
        at = _Shipped(store.find_or_create(identity, info.name, state.started, {"vitlab.finished": "false"}))
        state.stores[store.key] = at
        state.write(run_dir)

    if at.status != "FINISHED":
        described = digest((run_dir / "run.json").read_bytes())
        if at.described != described:
            _describe(store, at.run_id, info)
            at.described = described
        _ship_metrics(store, at, run_dir, entries, state.covered)
        state.write(run_dir)
        if at.status != state.status:
            if state.status == "FINISHED":
                _ship_results(store, at.run_id, run_dir, entries)
            _settle(store, at.run_id, info, state, run_dir, entries[-1][1]["time"])
            at.status = state.status
            state.write(run_dir)
    if final_model is not None and not at.model_id:
        at.model_id = model.log_model(root, at.run_id, *final_model())
        state.write(run_dir)


def digest(data: bytes) -> str:
    """Return 16 hex digits that tell contents apart."""
    return hashlib.sha256(data).hexdigest()[:16]


def _group(info: RunInfo) -> dict[str, str]:
    """Return the tags that all seeds of one experiment share."""
    return {
        "vitlab.experiment": info.experiment,
        "vitlab.variant": info.variant,
        "vitlab.profile": info.profile,
        "vitlab.dataset": info.dataset,
        "vitlab.fingerprint": info.fingerprint,
    }


def _attempts(info: RunInfo) -> dict[str, str]:
    """Return the tags of a seed's run. One that is trained anew (--force) has the same ones and another `vitlab.started`."""
    return _group(info) | {"vitlab.kind": "seed", "vitlab.seed": str(info.seed)}


def _parent(store: Store, info: RunInfo) -> str:
    more = {"vitlab.dataset_digest": info.dataset_digest, "mlflow.note.content": _note_text(info)}
    return store.find_or_create(_group(info) | {"vitlab.kind": "parent"}, info.group, int(time.time() * 1000), more)


def _note_text(info: RunInfo) -> str:
    """Return the description as MLflow's UI needs it: it reads it as Markdown, HTML included."""
    return html.escape(info.description, quote=False)


def _describe(store: Store, run_id: str, info: RunInfo) -> None:
    """Set the run's tags, params and data set, and the view that shows it.

    MLflow's params cannot be changed, so what may differ in a resumed run is a tag.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    parent_id = _parent(store, info)
    source = {"mlflow.source.name": "runner.py", "mlflow.source.type": "LOCAL"}
    tags = {
        "mlflow.parentRunId": parent_id,
        "mlflow.note.content": _note_text(info),
        "vitlab.title": info.title,
        "vitlab.dataset_digest": info.dataset_digest,
        "vitlab.device": info.device,
        "vitlab.git_commit": info.git_commit,
        "vitlab.git_dirty": info.git_dirty,
    }
    if info.git_commit:
        tags["mlflow.source.git.commit"] = info.git_commit  # where the UI's column "Version" looks for it
    store.set_tags(run_id, tags | source)
    store.set_tags(parent_id, source)  # without a commit: its seeds may be of several
    store.log_params(run_id, info.params)
    sizes = {"train": info.train, "validation": info.validation, "test": info.test}
    dataset = Dataset(info.dataset, info.dataset_digest[:36], "vitlab", json.dumps({"name": info.dataset}), profile=json.dumps(sizes))
    with locked(store.root):  # MLflow looks the data set up and inserts it, and refuses the second of two that do so together
        for each in (run_id, parent_id):
            store.client.log_inputs(each, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    store.share_views(functools.partial(views.tags, info.profile, info.dataset))


def _ship_metrics(store: Store, at: _Shipped, run_dir: Path, entries: list[tuple[int, dict[str, Any]]], covered: int) -> None:
    journal = (run_dir / "journal.jsonl").read_bytes()
    logged: set[tuple[str, int]] = set()
    if digest(journal[: at.offset]) != at.digest:  # at the first time, or where a resume replaced lines that were shipped
        at.offset, logged = 0, store.steps(at.run_id)
    due = [(end, entry) for end, entry in entries if at.offset < end <= covered]
    rows = [(k, v, entry["time"], entry["step"]) for _, entry in due if entry["kind"] == "metrics" for k, v in entry["values"].items()]
    store.log_metrics(at.run_id, [row for row in rows if (row[0], row[3]) not in logged])
    if due:
        at.offset, at.digest = due[-1][0], digest(journal[: due[-1][0]])


def _settle(store: Store, run_id: str, info: RunInfo, state: _State, run_dir: Path, time_ms: int) -> None:
    """Set the run's status and the mark of a finished one; then its parent's summary and the marks of its earlier attempts."""
    parent_id = _parent(store, info)
    store.set_tags(run_id, {"mlflow.parentRunId": parent_id})  # it may have been deleted and made again
    if state.status == "FINISHED" and not store.own:
        about = {
            index.RECORD: index.digest((run_dir / "record.json").read_bytes()),
            index.URI: store.client.get_run(run_id).info.artifact_uri,
        }
        index.add(store, run_id, _entry(info, state.started, parent_id) | about)
    with locked(store.root):
        if state.status == "RUNNING":
            store.client.update_run(run_id, state.status)
        else:
            store.client.set_terminated(run_id, state.status, end_time=time_ms)
        if state.status == "FINISHED":  # only now, so that what is marked has an end
            store.set_tags(run_id, {"vitlab.finished": "true"} | ({} if store.own else {index.INDEXED: "true"}))
            _supersede(store, info)
        _summarise(store, parent_id)


def _entry(info: RunInfo, started: int, parent_id: str) -> dict[str, str]:
    """Return what the index says of a finished run: the tags that it is known by. The variant is not among them: it may be long."""
    tags = _attempts(info) | {"vitlab.finished": "true", "vitlab.started": str(started), "mlflow.parentRunId": parent_id}
    return {key: value for key, value in tags.items() if key != "vitlab.variant"}


def _ship_results(store: Store, run_id: str, run_dir: Path, entries: list[tuple[int, dict[str, Any]]]) -> None:
    """Ship the artifacts, and the record's numbers as `final/...`."""
    record = records.read(run_dir / "record.json")
    for name in ARTIFACTS:
        if (run_dir / name).exists():
            store.client.log_artifact(run_id, str(run_dir / name))
    for picture in sorted((run_dir / "figures").glob("*.png")):
        store.client.log_artifact(run_id, str(picture), "figures")
    values = record.metrics | {"params": record.params, "flops": record.flops}
    seconds = round(record.train_seconds, 1)  # MLflow's table shows every digit
    values |= {"train_seconds": seconds, "img_s": record.img_s} | {f"perf_{k}": v for k, v in record.perf.items()}
    if record.teacher is not None:
        values |= {"teacher_agreement": record.teacher.agreement, "gain_over_teacher": record.teacher.gain}
    # At step 0: MLflow then draws bars, which compare runs, and at another step a line of one point.
    store.log_metrics(run_id, [(f"final/{k}", float(v), entries[-1][1]["time"], 0) for k, v in values.items()])


def _supersede(store: Store, info: RunInfo) -> None:
    """Mark the earlier attempts at a seed: of several the last finished one counts, and one that was left running will not finish."""
    attempts = store.find(_attempts(info))
    done = [i for i, run in enumerate(attempts) if run.data.tags["vitlab.finished"] == "true"]
    for run in attempts[: done[-1]] if done else ():
        if run.data.tags["vitlab.finished"] == "true":
            store.set_tags(run.info.run_id, {"vitlab.finished": "superseded"})
            if not store.own:
                index.remove(store, run.info.run_id)
        elif run.info.status == "RUNNING":
            store.client.set_terminated(run.info.run_id, "KILLED")


def _summarise(store: Store, parent_id: str) -> None:
    """Compute the parent's metrics and status from those of its children.

    `final/x` is the mean; a test metric also has `_sd`, `_ci95_low`, `_ci95_high`. The step is the number of seeds, since the run table
    shows the latest step, and the time the last child's end, so that computing it again adds nothing.
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


def outstanding(run_dir: Path, root: Path) -> bool:
    """Return whether MLflow lacks something of a finished run, as far as its folder tells. Raises UserError where the journal's first line is damaged."""
    if not ((run_dir / "record.json").exists() and (run_dir / "run.json").exists()):
        return False
    at = arrived(run_dir, root)
    return at is None or at.status != "FINISHED" or not at.model_id


def arrived(run_dir: Path, root: Path) -> _Shipped | None:
    """Return what of the run has reached the store, its ids there among it; None for nothing. Raises UserError where the journal's first line is damaged."""
    started = begun(run_dir / "journal.jsonl")
    return None if started is None else _State.read(run_dir, started).stores.get(without_password(tracking_uri(root)))


def sync(runs_dir: Path, root: Path, model_of: Callable[[Path], tuple[nn.Module, np.ndarray]] | None = None) -> list[tuple[str, bool, str]]:
    """Ship what is outstanding of every run below `runs_dir`.

    Returns (label, whether it arrived, why not) of each that had something outstanding. `model_of` gives a finished run's model, and two
    images for it, from the run's folder; without it no models are shipped.
    """
    outcome = []
    store, unreachable = None, ""
    try:
        store = connect(root)
    except Exception as e:
        unreachable = reason(e)
    for path in sorted(runs_dir.rglob("run.json")):
        run_dir, name, trouble, final_model = path.parent, str(path.parent), unreachable, None
        try:
            name = RunInfo.read(run_dir).name
            if (run_dir / "record.json").exists():
                note(run_dir, "FINISHED", None)
                final_model = functools.partial(model_of, run_dir) if model_of is not None else None
            at = _all_shipped(run_dir, without_password(tracking_uri(root)), final_model is not None)
            if at == "" or (at and (store is None or store.exists(at))):
                continue
            if store is not None:
                ship_noted(run_dir, root, final_model)
        except Exception as e:  # one run's trouble is not the next one's
            trouble = reason(e)
        outcome.append((name, not trouble, trouble))
    return outcome


def _all_shipped(run_dir: Path, key: str, with_model: bool) -> str | None:
    """Return the run's id in that store where nothing is outstanding, "" where there is nothing to ship yet, else None."""
    entries = read_journal(run_dir / "journal.jsonl")
    if not entries or not (run_dir / "mlflow.json").exists():
        return ""
    state = _State.read(run_dir, entries[0][1]["time"])
    at = state.stores.get(key)
    if at is None or (with_model and not at.model_id):
        return None
    return at.run_id if at.status == "FINISHED" or (at.offset, at.status) == (state.covered, state.status) else None
