"""MLflow's model registry: the models of a data set, each a version, of which an alias such as `champion` names one."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.errors import UserError
from vitlab.track import read
from vitlab.track.store import connect, import_mlflow, own_uri, reason, shown_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
IDENTITY = ("vitlab.experiment", "vitlab.variant", "vitlab.fingerprint", "vitlab.seed")  # tags of a version that tell whose it is


@dataclass(frozen=True)
class Version:
    """A registered model's version."""

    name: str
    version: str
    run_id: str  # "" where the model is of no run in this store
    model_id: str
    tags: Mapping[str, str]


@contextlib.contextmanager
def reaching(root: Path) -> Iterator[None]:
    """Raise UserError, as a context manager, where MLflow's store cannot be reached or refuses. Within, MLflow's default is this store.

    Its registry asks for that: some of its functions know no other.
    """
    import_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri(root))  # which also sets the variable
    try:
        yield
    # OSError: requests' errors too; ImportError: a database's driver is missing; ValueError: the address is none
    except (MlflowException, SQLAlchemyError, OSError, ImportError, ValueError) as e:
        raise UserError(f"{shown_uri(root)}: MLflow cannot be reached, or refuses ({reason(e)})") from None
    finally:
        mlflow.set_tracking_uri(None)  # which takes the variable away
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def name_of(dataset: str) -> str:
    """Return the registered model's name for a data set."""
    return f"vitlab-{dataset}"


def find(root: Path, name: str, alias: str = "", version: str = "") -> Version | None:
    """Return the version that has the alias, or this number; None where there is none. Raises what mlflow raises."""
    from mlflow.exceptions import MlflowException

    client = connect(root).client
    try:
        return _version(client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version))
    except MlflowException as e:
        if e.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model of this name; no such alias
            return None
        raise


def register(root: Path, name: str, model_id: str, run_id: str, tags: dict[str, str], description: str) -> Version:
    """Make the logged model a version of the registered model `name`, unless it is one already, and return it."""
    from mlflow.exceptions import MlflowException

    client = connect(root).client
    try:
        client.create_registered_model(name)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.source == f"models:/{model_id}":
            return _version(found)
    made = client.create_model_version(name, f"models:/{model_id}", run_id or None, tags, description=description, model_id=model_id)
    return _version(made)


def set_alias(root: Path, version: Version, alias: str) -> None:
    """Give the alias to this version; whichever had it loses it."""
    connect(root).client.set_registered_model_alias(version.name, alias, version.version)


def fetch(root: Path, version: Version, artifact: str, dst: Path) -> Path:
    """Return the path of a file of the version's run, or of its logged model where it is of no run; copied into `dst` if need be.

    Raises UserError where there is none.
    """
    if version.run_id:
        return read.download(root, version.run_id, artifact, dst)
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    try:
        location = connect(root).client.get_logged_model(version.model_id).artifact_location
        return Path(mlflow.artifacts.download_artifacts(f"{location}/{artifact}", dst_path=str(dst), tracking_uri=tracking_uri(root)))
    except (MlflowException, OSError) as e:
        raise UserError(
            f"{version.name} version {version.version} has no {artifact} ({reason(e)}); 'vitlab promote' makes one that has"
        ) from None


def champions(root: Path) -> set[tuple[str, ...]]:
    """Return (experiment, variant, fingerprint, seed) of each data set's champion; empty where the store cannot be reached.

    Imports no mlflow where the store is the database in `root`.
    """
    with contextlib.suppress(Exception):  # a mark in a report is worth no failure
        found = _own_champions(root) if tracking_uri(root) == own_uri(root) else _champions(root)
        return {tuple(tags.get(key, "") for key in IDENTITY) for tags in found if tags.get(IDENTITY[0])}
    return set()


def _own_champions(root: Path) -> list[Mapping[str, str]]:
    if not (root / "mlflow.db").exists():
        return []
    sql = """SELECT name, key, value FROM registered_model_aliases AS a JOIN model_version_tags AS t USING (workspace, name, version)
             WHERE a.alias = ? AND name LIKE 'vitlab-%'"""
    found: dict[str, dict[str, str]] = {}
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as db:
        for name, key, value in db.execute(sql, (CHAMPION,)):
            found.setdefault(name, {})[key] = value
    return list(found.values())


def _champions(root: Path) -> list[Mapping[str, str]]:
    client = connect(root).client
    models = client.search_registered_models("name LIKE 'vitlab-%'")
    return [client.get_model_version(m.name, str(m.aliases[CHAMPION])).tags for m in models if CHAMPION in m.aliases]


def check_alias(alias: str) -> None:
    """Raise UserError for an alias that MLflow refuses."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,99}", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        raise UserError(f"--as {alias}: expected letters, digits, - and _, and not latest, v1, v2, ...; for example champion")


def _version(found: ModelVersion) -> Version:
    return Version(found.name, str(found.version), found.run_id or "", found.source.removeprefix("models:/"), dict(found.tags))
