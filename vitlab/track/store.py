"""The MLflow store: where it is, how it is made, moved with its folder, and queried. Imports mlflow late, since that takes seconds."""

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
from urllib.parse import quote

from filelock import FileLock

from vitlab.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "vitlab"
PROXIED = "mlflow-artifacts:/"  # what a server says of artifacts that it hands out itself
IMPLIED = ("vitlab.experiment", "vitlab.variant", "vitlab.profile", "vitlab.dataset")  # tags that a fingerprint nearly always tells
BATCH = 1000  # metrics in one request; MLflow's limit
LOCK_SECONDS = 300  # making a database takes a busy machine minutes


def tracking_uri(root: Path) -> str:
    """Return MLFLOW_TRACKING_URI where it is set, else the URI of the database in `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_uri(root)


def shown_uri(root: Path) -> str:
    """Return the tracking URI for a screen or a log, without a password."""
    return without_password(tracking_uri(root))


def server(root: Path) -> str:
    """Return the tracking server's address without a password; "" where the store is a database."""
    uri = shown_uri(root).rstrip("/")
    return uri if uri.startswith(("http://", "https://")) else ""


def prepare_store(root: Path) -> str:
    """Make the database and the experiment where they are missing, before any run needs them.

    Does nothing for a server, and imports no mlflow where both are there.

    Returns why that failed, in one line, else "": training goes on without. Raises UserError for a file that is no database.
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
    """Return the URI of the database in `root`."""
    return _sqlite_uri(root.resolve() / "mlflow.db")


def _sqlite_uri(path: Path) -> str:
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")  # which SQLAlchemy would read as a URL's syntax


def _artifact_location(root: Path) -> str:
    return (root.resolve() / "mlartifacts").as_uri()


def _stored_location(root: Path) -> str | None:
    """Return where the database in `root` says that artifacts are; None where it does not exist yet or has no experiment of ours.

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
    """Write the artifacts' new place into the database.

    MLflow stores absolute paths, so a moved folder would lose them (mlflow issue 3144).
    """
    columns = (
        ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
        ("model_versions", "storage_location"),
    )  # fmt: skip
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as db, db:
        for table, column in columns:
            move = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?"
            db.execute(move, (new, len(old) + 1, len(old) + 1, old + "/"))


def locked(root: Path) -> FileLock:
    """Return the store's lock, across threads and processes. Hold it while looking something up in order to make or change it."""
    return FileLock(root / "mlflow.db.lock", timeout=LOCK_SECONDS)


def make_database(root: Path) -> None:
    """Make `root`/mlflow.db: beside its place, then move it there.

    MLflow makes its tables in dozens of transactions, and refuses a database in which a kill left only some.
    """
    from mlflow import MlflowClient

    aside = root / "mlflow.db.new"
    for path in (aside, root / "mlflow.db.new-journal"):
        path.unlink(missing_ok=True)
    MlflowClient(tracking_uri=_sqlite_uri(aside)).create_experiment(EXPERIMENT, artifact_location=_artifact_location(root))
    os.replace(aside, root / "mlflow.db")


def connect(root: Path) -> Store:
    """Return the store of `root`, opened once per process. Raises what mlflow raises where it cannot be reached."""
    return _open(tracking_uri(root), root.resolve())


@functools.lru_cache(maxsize=8)
def _open(uri: str, root: Path) -> Store:
    return Store(uri, root)


def import_mlflow() -> None:
    """Import MLflow, with no telemetry, no progress bars, and requests that give up soon, unless the environment says otherwise.

    Its loggers, which would print about new tables and retried requests amid the progress, are made quiet.
    """
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # at the end of each run, amid the progress
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; the defaults, 120 and 7, keep one waiting for a quarter of an hour
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }.items():
        os.environ.setdefault(key, value)
    import mlflow  # noqa: F401 late: it takes seconds

    for name, level in (("mlflow", logging.WARNING), ("alembic", logging.WARNING), ("urllib3.connectionpool", logging.ERROR)):
        logging.getLogger(name).setLevel(level)


def reach(root: Path) -> bool:
    """Return whether the store has our experiment. Unlike `connect` it makes none. Raises what mlflow raises where it cannot be reached."""
    import_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri(root)).get_experiment_by_name(EXPERIMENT) is not None


class Store:
    """The experiment `vitlab` in a tracking store. Uses MlflowClient alone, since the fluent interface would end a run of its own at exit."""

    def __init__(self, uri: str, root: Path) -> None:
        import_mlflow()
        from mlflow import MlflowClient

        self.root = root
        self.key = without_password(uri)
        self.own = uri == own_uri(root)  # a database that is read with SQL
        self._experiments: dict[str, str] = {}
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            if self.own and not (root / "mlflow.db").exists():
                make_database(root)
            self.client: MlflowClient = MlflowClient(tracking_uri=uri)
            self.experiment_id = self.experiment(EXPERIMENT)

    def experiment(self, name: str) -> str:
        """Return the id of the experiment, which is made where it is missing. Raises UserError for a deleted one."""
        if name not in self._experiments:
            self._experiments[name] = self._experiment(name)
        return self._experiments[name]

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        location = _artifact_location(self.root) if self.key.startswith("sqlite:") else None  # a server has a place of its own
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name, artifact_location=location)
            except MlflowException:  # on a server, another machine may have been faster
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            remedy = f"bring it back with 'mlflow experiments restore -x {found.experiment_id}'"
            raise UserError(f"{self.key}: the experiment '{name}' was deleted; {remedy}")
        old = found.artifact_location
        if self.own and old != location and old.startswith("file:") and old.endswith("/mlartifacts"):
            _relocate(self.root, old, location)
        return found.experiment_id

    def find(self, tags: dict[str, str], more: str = "", experiment_id: str | None = None, deleted: bool = False) -> list[Run]:
        """Return the runs with all these tags, oldest first; `more` is another condition in MLflow's language.

        They are searched in the experiment `vitlab`, or in the one named, among its deleted runs where `deleted` says so.
        """
        from mlflow.entities import ViewType

        # The filter language has no escapes, so what would need one is compared here alone. So is what few runs of one fingerprint differ in:
        # for each condition a server looks at that tag of all runs.
        asked = {k: v for k, v in tags.items() if v and "'" not in v and not ("vitlab.fingerprint" in tags and k in IMPLIED)}
        text = " and ".join([*(f"tags.`{k}` = '{v}'" for k, v in asked.items()), *([more] if more else [])])
        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        runs, token = [], None
        while True:
            page = self.client.search_runs([experiment_id or self.experiment_id], text, view, max_results=1000, page_token=token)
            runs += [run for run in page if all(run.data.tags.get(k, "") == v for k, v in tags.items())]
            token = page.token
            if not token:
                return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def find_or_create(
        self, tags: dict[str, str], name: str, start: int, new_tags: dict[str, str], experiment_id: str | None = None
    ) -> str:
        """Return the id of the run with these tags; made, with `new_tags` besides, where there is none. start: ms since the epoch."""
        where = experiment_id or self.experiment_id
        with locked(self.root):
            found = self.find(tags, experiment_id=where)
            if found:
                return found[0].info.run_id
            made = self.client.create_run(where, start_time=start, tags=tags | new_tags, run_name=name).info.run_id
            first = self.find(tags, experiment_id=where)[0].info.run_id
            if first != made:  # another machine's, a moment earlier: all keep the first
                self.client.delete_run(made)
            return first

    def share_views(self, views: Callable[[int], dict[str, str]]) -> None:
        """Set those of the experiment's tags `views(created)` that are missing; created: ms since the epoch.

        One that exists stays: the view may have been changed in the UI.
        """
        with locked(self.root):
            experiment = self.client.get_experiment(self.experiment_id)
            for key, value in views(experiment.creation_time).items():
                if key not in experiment.tags:
                    self.client.set_experiment_tag(self.experiment_id, key, value)

    def proxied(self, uri: str) -> bool:
        """Return whether this server hands out what is at `uri` itself."""
        return uri.startswith(PROXIED) and not uri.startswith(f"{PROXIED}/")  # with two slashes another server's name follows

    def read_artifact(self, uri: str) -> bytes:
        """Return a proxied file's content, in one request: MLflow's client asks for the run and lists its artifacts first.

        Raises what mlflow and requests raise.
        """
        from mlflow.tracking._tracking_service.utils import get_default_host_creds  # what MLflow's own clients of artifacts take
        from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

        where = f"/api/2.0/mlflow-artifacts/artifacts/{quote(uri.removeprefix(PROXIED))}"
        answer = http_request(get_default_host_creds(self.client.tracking_uri), where, "GET")
        augmented_raise_for_status(answer)
        return answer.content

    def exists(self, run_id: str) -> bool:
        """Return whether the run exists and is not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as e:
            if e.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def steps(self, run_id: str) -> set[tuple[str, int]]:
        """Return (key, step) of every metric that the run has."""
        keys = self.client.get_run(run_id).data.metrics
        return {(key, metric.step) for key in keys for metric in self.client.get_metric_history(run_id, key)}

    def log_metrics(self, run_id: str, rows: list[tuple[str, float, int, int]]) -> None:
        """Log rows of (key, value, time in ms, step)."""
        from mlflow.entities import Metric

        for i in range(0, len(rows), BATCH):
            self.client.log_batch(run_id, metrics=[Metric(*row) for row in rows[i : i + BATCH]])

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        """Log the run's parameters. MLflow refuses to change one that is there."""
        from mlflow.entities import Param

        items = [Param(k, v) for k, v in params.items()]
        for i in range(0, len(items), 100):  # MLflow's limit
            self.client.log_batch(run_id, params=items[i : i + 100])

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of the run."""
        from mlflow.entities import RunTag

        items = [RunTag(k, v) for k, v in tags.items()]
        for i in range(0, len(items), 100):  # MLflow's limit
            self.client.log_batch(run_id, tags=items[i : i + 100])


def without_password(text: str) -> str:
    """Return `text` without the user and password of a URL in it, whatever characters these have."""
    return re.sub(r"://([^/\s]*:\S*|[^/\s]+)@", "://", text)


def own_runs(root: Path) -> list[tuple[str, str, dict[str, str]]]:
    """Return (run id, its artifacts' URI, its tags) of each run in the database in `root`, oldest first.

    Reads with SQL: mlflow makes an object of every parameter, which takes ten seconds for a thousand runs, and its import takes three more.
    Raises UserError for a file that is no database.
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
            moved = new + uri.removeprefix(old) if uri.startswith(old) else uri  # the same, unless the folder was moved
            runs.setdefault(run_id, (run_id, moved, {}))[2][key] = value
    return list(runs.values())


def ledgers(root: Path) -> list[tuple[str, str | None]]:
    """Return (run id, digest of the ledger) of each ledger in MLflow. Raises what mlflow raises."""
    kind = {"vitlab.kind": "ledger"}
    if tracking_uri(root) == own_uri(root):
        found = [(run_id, tags) for run_id, _, tags in own_runs(root) if tags.items() >= kind.items()]
    else:
        found = [(run.info.run_id, run.data.tags) for run in connect(root).find(kind)]
    return [(run_id, tags.get("vitlab.ledger")) for run_id, tags in found]


def experiment(root: Path) -> tuple[str, dict[str, str]]:
    """Return the experiment's id and tags. Imports no mlflow where the database in `root` has them. Raises what mlflow raises."""
    if tracking_uri(root) != own_uri(root) or _stored_location(root) is None:
        store = connect(root)
        return store.experiment_id, dict(store.client.get_experiment(store.experiment_id).tags)
    sql = "SELECT experiment_id, key, value FROM experiments LEFT JOIN experiment_tags USING (experiment_id) WHERE name = ?"
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as db:
        rows = db.execute(sql, (EXPERIMENT,)).fetchall()
    return str(rows[0][0]), {key: value for _, key, value in rows if key is not None}


def reason(e: BaseException) -> str:
    """Return in one line why `e` happened, without passwords.

    Where a connection or a file failed, that is the system's own text, since MLflow's is a page of retries; where a server refuses a user, it
    is what to set.
    """
    if refusal := _refusal(e):
        return refusal
    inner = e
    while (cause := inner.__cause__ or (None if inner.__suppress_context__ else inner.__context__)) is not None:
        inner = cause
    lines = str(inner if isinstance(inner, OSError) else e).strip().splitlines() or [type(e).__name__]
    return without_password(lines[0])[:300]


def _refusal(e: BaseException) -> str:
    """Return what to set where a server refuses the user or what they ask for; "" where `e` is something else."""
    response = getattr(e, "response", None)  # of requests' errors, which artifacts end in
    status = response.status_code if response is not None else getattr(e, "get_http_status_code", lambda: None)()
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if status == 401:
        given = f"the password of '{user}'" if user else "a request without a user"
        return f"the server refuses {given} (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if status == 403 and "Host header" in f"{e} {response.text if response is not None else ''}":
        return "the server does not answer to this name (403): add it, with its port, to MLFLOW_HOSTS in the server's deploy/.env"
    if status == 403:
        return (
            f"the server does not let '{user}' do that (403): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of a user who may"
        )
    return ""


def unusable(root: Path, e: BaseException) -> UserError:
    """Return the error that tells the user why MLflow cannot be used, and what to do."""
    if refusal := _refusal(e):
        return UserError(f"{shown_uri(root)}: {refusal}")
    return UserError(f"{shown_uri(root)}: MLflow cannot be reached ({reason(e)}); start its server, or mend MLFLOW_TRACKING_URI")
