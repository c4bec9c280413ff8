"""MLflow's database, made once and then copied: making one takes seconds, and most tests are about something else."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from vitlab.track import store

make = store.make_database


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    store.import_mlflow()
    folder = tempfile.TemporaryDirectory()
    make(Path(folder.name))
    return folder


def copy(root: Path) -> None:
    """Put the database into `root`. Whoever opens it there writes its new place into it, as of any that was moved."""
    shutil.copyfile(Path(_made().name) / "mlflow.db", root / "mlflow.db.new")
    (root / "mlflow.db.new").replace(root / "mlflow.db")
