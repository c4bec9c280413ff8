"""The stamp in reports/: from what its pages were compiled, and which files came of it. While both are the same, compiling is left out.

It is read before anything that validates or draws is imported, which takes longer than all that is done here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from vitlab import files
from vitlab.paths import EXPERIMENTS
from vitlab.track import read, registry, store

FILE = ".compiled.json"
CODE = Path(__file__).resolve().parent.parent
LIBRARIES = ("jinja2", "markupsafe", "matplotlib", "numpy", "pandas", "pillow", "pydantic", "pyyaml", "scipy", "seaborn")  # of the pages
READ = ("record.json", "predictions.npz", *(f"figures/{name}.png" for name in ("predictions", "mistakes", "attention")))  # of a run


def sources(root: Path, runs: Sequence[read.FinishedRun]) -> str | None:
    """Return a digest of all that the report on `runs`, the finished ones in the store of `root`, is compiled from.

    That is the code, the libraries, the experiments and claims, which finished runs MLflow has, with their files, and its champions. What a server has of a
    finished run does not change, and its index has the record's digest. None where a run's files are neither on this machine nor in that
    index: then only compiling finds out what has changed.
    """
    if any(run.folder is None and not run.digest for run in runs):
        return None
    states = [(run.run_id, run.digest if run.folder is None else [_state(run.folder / name) for name in READ]) for run in runs]
    libraries = [sys.version, *map(version, LIBRARIES)]
    return _digest([libraries, _code(CODE), _content(EXPERIMENTS), store.tracking_uri(root), states, sorted(registry.champions(root))])


def products(root: Path, reports_dir: Path) -> str | None:
    """Return a digest of what compiling leaves behind: the files in `reports_dir`, and the ledgers in MLflow; None where MLflow does not answer."""
    ours = {reports_dir / FILE, reports_dir / ".lock"}
    found = [(str(path.relative_to(reports_dir)), _state(path)) for path in sorted(reports_dir.rglob("*")) if path not in ours]
    try:
        return _digest([found, store.ledgers(root)])
    except Exception:  # whatever a server does, the report stands; it is compiled again next time
        return None


def holds(root: Path, reports_dir: Path) -> bool:
    """Return whether compiling again would change nothing."""
    now = sources(root, read.finished_runs(root))
    try:
        stamp = json.loads((reports_dir / FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return now is not None and stamp["sources"] == now and stamp["products"] == products(root, reports_dir)


def write(root: Path, reports_dir: Path, compiled_from: str | None) -> None:
    """Write the stamp, unless MLflow does not answer, or `compiled_from`, what `sources` returned before the runs were read, is None."""
    if compiled_from is not None and (made := products(root, reports_dir)) is not None:
        files.write_json(reports_dir / FILE, {"sources": compiled_from, "products": made})


def remove(reports_dir: Path) -> None:
    """Remove the stamp, if there is one."""
    (reports_dir / FILE).unlink(missing_ok=True)


def _state(path: Path) -> tuple[int, ...] | None:
    """Return what changes whenever the file or folder does; None where it is missing. Nobody can set the last of the times."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _content(folder: Path) -> list[tuple[str, str]]:
    """Return the name and the hash of each file in the folder and below."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    return [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in found]


_code = functools.cache(
    _content
)  # as it was when this process first asked: it compiles with what it has imported, whatever is edited since
