"""Finished runs read back from MLflow, by tag, with their artifacts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from vitlab.errors import UserError
from vitlab.track import index
from vitlab.track.store import Store, connect, own_runs, own_uri, reason, tracking_uri, unusable

AT_ONCE = 8  # downloads side by side: a server answers one while the next is on its way


@dataclass(frozen=True)
class FinishedRun:
    """A finished run as MLflow has it."""

    run_id: str
    parent_id: str
    tags: dict[str, str]
    root: Path
    folder: Path | None  # its artifacts, where they lie on this machine
    uri: str = ""  # its artifacts, as MLflow names them
    digest: str = ""  # the SHA-256 of its record.json; "" where that is not known without reading it

    def fetch(self, artifact: str, dst: Path) -> Path:
        """Return the artifact's path: in the store where that is on this machine, else downloaded into `dst`.

        Raises UserError where there is none.
        """
        if self.folder is not None and (self.folder / artifact).exists():
            return self.folder / artifact
        return download(self.root, self.run_id, artifact, dst)


def download(root: Path, run_id: str, artifact: str, dst: Path) -> Path:
    """Copy a run's artifact into `dst` and return its path there. Raises UserError where there is none."""
    from mlflow.exceptions import MlflowException

    dst.mkdir(parents=True, exist_ok=True)
    try:
        return Path(connect(root).client.download_artifacts(run_id, artifact, str(dst)))
    except (MlflowException, OSError) as e:
        raise _missing(run_id, artifact, e) from None


def fetch_records(runs: Sequence[FinishedRun], copies: Iterable[Path], dst: Path) -> list[Path]:
    """Return the path of each run's record.json: in the store, or among `copies` that earlier reports made, else downloaded into `dst`.

    Raises UserError where a run has none, or the server cannot be reached.
    """
    remote = [run for run in runs if run.folder is None]
    known = {run.digest for run in remote if run.digest}
    copied = {digest: path for path in copies if (digest := index.digest(path.read_bytes())) in known} if known else {}
    paths = {run.run_id: copied[run.digest] for run in remote if run.digest in copied}
    packs: dict[str, list[FinishedRun]] = {}
    for run in remote:
        if run.run_id not in paths and index.PACK in run.tags:
            packs.setdefault(run.tags[index.PACK], []).append(run)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for unpacked in pool.map(lambda uri: _unpack(uri, packs[uri], dst), packs):
            paths |= unpacked
        loose = [run for run in runs if run.run_id not in paths]
        paths |= zip((run.run_id for run in loose), pool.map(lambda run: _fetch_record(run, dst / run.run_id), loose), strict=True)
    return [paths[run.run_id] for run in runs]


def _unpack(uri: str, runs: list[FinishedRun], dst: Path) -> dict[str, Path]:
    """Return the paths of the records that the pack has, by run; of none where it cannot be had."""
    with contextlib.suppress(Exception):
        found = index.unpack(connect(runs[0].root).read_artifact(uri), [(run.run_id, run.digest) for run in runs])
        return {run_id: _keep(content, dst / run_id) for run_id, content in found.items()}
    return {}


def _fetch_record(run: FinishedRun, dst: Path) -> Path:
    store = connect(run.root) if run.folder is None else None
    if store is None or not store.proxied(run.uri):
        return run.fetch("record.json", dst)
    try:
        return _keep(store.read_artifact(f"{run.uri}/record.json"), dst)
    except Exception as e:
        raise _missing(run.run_id, "record.json", e) from None


def _keep(content: bytes, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_bytes(content)
    return folder / "record.json"


def _missing(run_id: str, artifact: str, e: Exception) -> UserError:
    return UserError(f"MLflow run {run_id} has no {artifact} ({reason(e)}); delete the run in MLflow, then 'vitlab sync'")


def finished_runs(root: Path, experiment: str | None = None, profile: str | None = None, dataset: str | None = None) -> list[FinishedRun]:
    """Return the finished runs, oldest first; of a seed that was trained several times the last one only.

    `experiment`, `profile` and `dataset` select by tag where they are given. Their tags are all that the run has in the database of `root`,
    in another store those that it is known by. Raises UserError where MLflow's server cannot be reached.
    """
    wanted = {"vitlab.experiment": experiment, "vitlab.profile": profile, "vitlab.dataset": dataset}
    tags = {"vitlab.kind": "seed", "vitlab.finished": "true"} | {k: v for k, v in wanted.items() if v is not None}
    try:
        if tracking_uri(root) == own_uri(root):
            return [_finished(root, run_id, uri, found) for run_id, uri, found in own_runs(root) if found.items() >= tags.items()]
        return _indexed(root, connect(root), tags)
    except UserError:
        raise
    except Exception as e:
        raise unusable(root, e) from None


def _indexed(root: Path, store: Store, tags: dict[str, str]) -> list[FinishedRun]:
    """Return the finished runs with these tags from the store's index; and those that are not in it, by search."""
    gone = {run.info.run_id for run in store.find(tags, deleted=True)}
    entries = {run_id: entry for run_id, entry in index.read(store).items() if run_id not in gone and entry.items() >= tags.items()}
    entries |= {
        run.info.run_id: run.data.tags | {"vitlab.started": str(run.info.start_time), index.URI: run.info.artifact_uri}
        for run in store.find(tags, f"tags.`{index.INDEXED}` IS NULL")
    }
    found = [(int(entry["vitlab.started"]), run_id) for run_id, entry in entries.items()]
    return [_finished(root, run_id, entries[run_id].get(index.URI, ""), entries[run_id]) for _, run_id in sorted(found)]


def _finished(root: Path, run_id: str, uri: str, tags: dict[str, str]) -> FinishedRun:
    return FinishedRun(run_id, tags["mlflow.parentRunId"], tags, root, _local(uri), uri, tags.get(index.RECORD, ""))


def _local(uri: str) -> Path | None:
    parts = urlparse(uri)
    path = Path(unquote(parts.path))
    return path if uri and parts.scheme in ("file", "") and path.is_dir() else None
