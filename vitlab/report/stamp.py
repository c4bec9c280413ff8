"""The stamp in reports/: from what its pages were compiled, and which files came of it. While both are the same, compiling is left out.

It is read before anything that validates or draws is imported, which takes longer than all that is done here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

from vitlab import files
from vitlab.paths import EXPERIMENTS
from vitlab.track import read, registry, store

FILE = ".compiled.json"
CODE = Path(__file__).resolve().parent.parent
LIBRARIES = ("jinja2", "markupsafe", "matplotlib", "numpy", "pandas", "pillow", "pydantic", "pyyaml", "scipy", "seaborn")  # of the pages
READ = ("record.json", "predictions.npz", "figures/predictions.png")  # of a run


def sources(root: Path) -> str | None:
    """Return a digest of all that the report on `root`'s own runs is compiled from.

    That is the code, the libraries, the experiments and claims, and which finished runs MLflow has, with their files and its champions. None where these files
    are not all on this machine, or the runs are in another store than `root`'s database: then only compiling finds out what has changed.
    """
    if store.tracking_uri(root) != store.own_uri(root):
        return None
    runs = read.finished_runs(root)
    if any(run.folder is None for run in runs):
        return None
    libraries = [sys.version, *map(version, LIBRARIES)]
    files_read = [(run.run_id, [_state(run.folder / name) for name in READ]) for run in runs]
    return _digest([libraries, _code(CODE), _content(EXPERIMENTS), files_read, sorted(registry.champions(root))])


def products(root: Path, reports_dir: Path) -> str:
    """Return a digest of what compiling leaves behind: the files in `reports_dir`, and the ledgers in the database of `root`."""
    ours = {reports_dir / FILE, reports_dir / ".lock"}
    found = [(str(path.relative_to(reports_dir)), _state(path)) for path in sorted(reports_dir.rglob("*")) if path not in ours]
    return _digest(
        [found, [(run_id, tags.get("vitlab.ledger")) for run_id, _, tags in store.own_runs(root) if tags.get("vitlab.kind") == "ledger"]]
    )


def holds(root: Path, reports_dir: Path) -> bool:
    """Return whether compiling again would change nothing."""
    now = sources(root)
    try:
        stamp = json.loads((reports_dir / FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return now is not None and stamp == {"sources": now, "products": products(root, reports_dir)}


def write(root: Path, reports_dir: Path, compiled_from: str | None) -> None:
    """Write the stamp, unless `compiled_from`, what `sources` returned before the runs were read, is None."""
    if compiled_from is not None:
        files.write_json(reports_dir / FILE, {"sources": compiled_from, "products": products(root, reports_dir)})


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
