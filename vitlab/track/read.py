"""Finished runs read back from MLflow, by tag, with their artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from vitlab.errors import UserError
from vitlab.track.store import connect, own_runs, own_uri, reason, shown_uri, tracking_uri


@dataclass(frozen=True)
class FinishedRun:
    """A finished run as MLflow has it."""

    run_id: str
    parent_id: str
    tags: dict[str, str]
    root: Path
    folder: Path | None  # its artifacts, where they lie on this machine

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


def finished_runs(root: Path, experiment: str | None = None, profile: str | None = None, dataset: str | None = None) -> list[FinishedRun]:
    """Return the finished runs, oldest first; of a seed that was trained several times the last one only.

    `experiment`, `profile` and `dataset` select by tag where they are given. Raises UserError where MLflow's server cannot be reached.
    """
    wanted = {"vitlab.experiment": experiment, "vitlab.profile": profile, "vitlab.dataset": dataset}
    tags = {"vitlab.kind": "seed", "vitlab.finished": "true"} | {k: v for k, v in wanted.items() if v is not None}
    if tracking_uri(root) == own_uri(root):
        found = [(run_id, uri, found_tags) for run_id, uri, found_tags in own_runs(root) if found_tags.items() >= tags.items()]
    else:
        from mlflow.exceptions import MlflowException

        try:
            found = [(run.info.run_id, run.info.artifact_uri, run.data.tags) for run in connect(root).find(tags)]
        except MlflowException as e:
            raise UserError(
                f"{shown_uri(root)}: MLflow cannot be reached ({reason(e)}); start its server, or mend MLFLOW_TRACKING_URI"
            ) from None
    return [FinishedRun(run_id, found_tags["mlflow.parentRunId"], found_tags, root, _local(uri)) for run_id, uri, found_tags in found]


def _local(uri: str) -> Path | None:
    parts = urlparse(uri)
    path = Path(unquote(parts.path))
    return path if parts.scheme in ("file", "") and path.is_dir() else None
