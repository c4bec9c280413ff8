"""Finished runs read back from MLflow, by tag, with their artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

from vitlab.errors import UserError
from vitlab.track import index
from vitlab.track.store import Store, connect, own_runs, own_uri, reason, shown_uri, tracking_uri

AT_ONCE = 8  # downloads side by side: a server answers one while the next is on its way
PROXIED = "mlflow-artifacts:/"  # what a server says of artifacts that it hands out itself


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
        raise UserError(f"MLflow run {run_id} has no {artifact} ({reason(e)}); delete the run in MLflow, then 'vitlab sync'") from None


def fetch_records(runs: Sequence[FinishedRun], copies: Iterable[Path], dst: Path) -> list[Path]:
    """Return the path of each run's record.json: in the store, or among `copies` that earlier reports made, else downloaded into `dst`.

    Raises UserError where a run has none, or the server cannot be reached.
    """
    wanted = {run.digest for run in runs if run.folder is None and run.digest}
    copied = {index.digest(path): path for path in copies} if wanted else {}

    def path_of(run: FinishedRun) -> Path:
        if run.folder is None and run.digest in copied:
            return copied[run.digest]
        if run.folder is None and run.uri.startswith(PROXIED) and not run.uri.startswith(f"{PROXIED}/"):
            return _download_proxied(run, "record.json", dst / run.run_id)
        return run.fetch("record.json", dst / run.run_id)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(path_of, runs))


def _download_proxied(run: FinishedRun, artifact: str, dst: Path) -> Path:
    """As `download`, in one request: MLflow's client asks for the run, lists its artifacts, and then gets this one."""
    from mlflow.tracking._tracking_service.utils import get_default_host_creds  # what MLflow's own clients of artifacts take
    from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

    where = f"/api/2.0/mlflow-artifacts/artifacts/{quote(run.uri.removeprefix(PROXIED))}/{artifact}"
    try:
        answer = http_request(get_default_host_creds(tracking_uri(run.root)), where, "GET")
        augmented_raise_for_status(answer)
    except Exception as e:
        raise UserError(f"MLflow run {run.run_id} has no {artifact} ({reason(e)}); delete the run in MLflow, then 'vitlab sync'") from None
    dst.mkdir(parents=True, exist_ok=True)
    (dst / artifact).write_bytes(answer.content)
    return dst / artifact


def finished_runs(root: Path, experiment: str | None = None, profile: str | None = None, dataset: str | None = None) -> list[FinishedRun]:
    """Return the finished runs, oldest first; of a seed that was trained several times the last one only.

    `experiment`, `profile` and `dataset` select by tag where they are given. Their tags are all that the run has in the database of `root`,
    in another store those that it is known by. Raises UserError where MLflow's server cannot be reached.
    """
    wanted = {"vitlab.experiment": experiment, "vitlab.profile": profile, "vitlab.dataset": dataset}
    tags = {"vitlab.kind": "seed", "vitlab.finished": "true"} | {k: v for k, v in wanted.items() if v is not None}
    if tracking_uri(root) == own_uri(root):
        return [_finished(root, run_id, uri, found) for run_id, uri, found in own_runs(root) if found.items() >= tags.items()]
    try:
        return _indexed(root, connect(root), tags)
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f"{shown_uri(root)}: MLflow cannot be reached ({reason(e)}); start its server, or mend MLFLOW_TRACKING_URI"
        ) from None


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
