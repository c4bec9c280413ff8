"""The MLflow store: where it is, made whole or not at all, moved with its folder, and asked. Loads mlflow late: the import takes seconds."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from vitlab.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "vitlab"
BATCH = 1000  # metrics in one request; MLflow's limit
LOCK_SECONDS = 300  # making a database takes a busy machine minutes


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a database in `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_uri(root)


def shown_uri(root: Path) -> str:
    """The tracking URI for a screen or a log: a password in it left out."""
    return without_password(tracking_uri(root))


def server(root: Path) -> str:
    """The tracking server's address, a password in it left out; "" where the store is a database."""
    uri = shown_uri(root).rstrip("/")
    return uri if uri.startswith(("http://", "https://")) else ""


def prepare_store(root: Path) -> str:
    """Make the database and the experiment, once, before any fan-out; nothing to do for a server. Without mlflow where both are there.

    Returns why that could not be, else "": nothing waits for it. Raises UserError for a file that is no database.
    """
    try:
        if tracking_uri(root) == own_uri(root) and _stored_location(root) != _artifact_location(root):
            connect(root)
    except UserError:
        raise
    except Exception as e:
        return reason(e)
    return ""


def own_uri(root: Path) -> str:
    return _sqlite_uri(root.resolve() / "mlflow.db")


def _sqlite_uri(path: Path) -> str:
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")  # which SQLAlchemy would read as a URL's syntax


def _artifact_location(root: Path) -> str:
    return (root.resolve() / "mlartifacts").as_uri()


def _stored_location(root: Path) -> str | None:
    """Where the database in `root` says that artifacts lie; None where it is not there yet, or has no experiment of ours.

    Raises UserError for a file that is no database.
    """
    if not (root / "mlflow.db").exists():
        return None
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as db:
        try:
            row = db.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
        except sqlite3.OperationalError as e:
            if "no such table" in str(e):
                return None
            raise  # it is locked, or cannot be read
        except sqlite3.DatabaseError as e:
            remedy = "move it away; 'vitlab sync' fills a new one from the runs' folders"
            raise UserError(f"{root / 'mlflow.db'}: not a readable database ({e}); {remedy}") from None
    return row[0] if row else None


def _relocate(root: Path, old: str, new: str) -> None:
    """MLflow stores absolute paths, so a folder that was moved loses its artifacts (mlflow issue 3144): write the new ones."""
    columns = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as db, db:
        for table, column in columns:
            move = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?"
            db.execute(move, (new, len(old) + 1, len(old) + 1, old + "/"))


def locked(root: Path) -> FileLock:
    """Across threads and processes; what is looked up and made, or read and written, holds it."""
    return FileLock(root / "mlflow.db.lock", timeout=LOCK_SECONDS)


def _make(root: Path) -> None:
    """MLflow makes its tables in dozens of transactions, and refuses a database in which a kill has left some: so it is made aside."""
    from mlflow import MlflowClient

    aside = root / "mlflow.db.new"
    for path in (aside, root / "mlflow.db.new-journal"):
        path.unlink(missing_ok=True)
    MlflowClient(tracking_uri=_sqlite_uri(aside)).create_experiment(EXPERIMENT, artifact_location=_artifact_location(root))
    os.replace(aside, root / "mlflow.db")


def connect(root: Path) -> Store:
    return _open(tracking_uri(root), root.resolve())


@functools.lru_cache(maxsize=8)
def _open(uri: str, root: Path) -> Store:
    return Store(uri, root)


class Store:
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
        self.key = without_password(uri)
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            if uri == own_uri(root) and not (root / "mlflow.db").exists():
                _make(root)
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
            raise UserError(f"{self.key}: the experiment '{EXPERIMENT}' was deleted; {remedy}")
        old = found.artifact_location
        if uri == own_uri(self.root) and old != location and old.startswith("file:") and old.endswith("/mlartifacts"):
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
        with locked(self.root):
            found = self.find(tags)
            if found:
                return found[0].info.run_id
            made = self.client.create_run(self.experiment_id, start_time=start, tags=tags | new_tags, run_name=name).info.run_id
            first = self.find(tags)[0].info.run_id
            if first != made:  # another machine's, a moment earlier: all keep the first
                self.client.delete_run(made)
            return first

    def share_views(self, views: Callable[[int], dict[str, str]]) -> None:
        """Set those of the experiment's tags that are not there: a view may have been changed in the UI since.

        `views` gives them from the experiment's time of creation, in ms.
        """
        with locked(self.root):
            there = self.client.get_experiment(self.experiment_id)
            for key, value in views(there.creation_time).items():
                if key not in there.tags:
                    self.client.set_experiment_tag(self.experiment_id, key, value)

    def exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as e:
            if e.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def steps(self, run_id: str) -> set[tuple[str, int]]:
        """(key, step) of every metric that the run has."""
        keys = self.client.get_run(run_id).data.metrics
        return {(key, metric.step) for key in keys for metric in self.client.get_metric_history(run_id, key)}

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

        items = [RunTag(k, v) for k, v in tags.items()]
        for i in range(0, len(items), 100):  # MLflow's limit
            self.client.log_batch(run_id, tags=items[i : i + 100])


def without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://", text)


def own_runs(root: Path) -> list[tuple[str, str, dict[str, str]]]:
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


def experiment(root: Path) -> tuple[str, dict[str, str]]:
    """The experiment's id and tags. Without mlflow where the database in `root` has them."""
    if tracking_uri(root) != own_uri(root) or _stored_location(root) is None:
        there = connect(root)
        return there.experiment_id, dict(there.client.get_experiment(there.experiment_id).tags)
    sql = "SELECT experiment_id, key, value FROM experiments LEFT JOIN experiment_tags USING (experiment_id) WHERE name = ?"
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as db:
        rows = db.execute(sql, (EXPERIMENT,)).fetchall()
    return str(rows[0][0]), {key: value for _, key, value in rows if key is not None}


def reason(e: BaseException) -> str:
    """One line. Where a connection or a file is what failed, MLflow's text is a page of retries, and the system's own says it."""
    inner = e
    while (cause := inner.__cause__ or (None if inner.__suppress_context__ else inner.__context__)) is not None:
        inner = cause
    lines = str(inner if isinstance(inner, OSError) else e).strip().splitlines() or [type(e).__name__]
    return without_password(lines[0])[:300]
