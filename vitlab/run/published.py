"""The weights that are published with a set: which run they come from, the best of the ladder, and how their file is written and read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vitlab import files, records
from vitlab.errors import UserError
from vitlab.records import RunRecord
from vitlab.run import half

WEIGHTS = "weights.safetensors"  # as a run leaves them
FILE = "best.safetensors"  # beside the records; half precision


def best(runs: Iterable[RunRecord]) -> RunRecord | None:
    """Return the run with the best validation top-1 of those that teach no other of `runs`; None for no runs.

    Variations are left out. The test split selects nothing.
    """
    ladder = [run for run in runs if not run.variant]
    teachers = {run.teacher.experiment for run in ladder if run.teacher is not None}
    return max(
        [run for run in ladder if run.experiment not in teachers] or ladder,
        key=lambda run: (run.metrics["validation_top1"], records.file_name(run)),
        default=None,
    )


def write(out_dir: Path, run: RunRecord, weights: Path) -> None:
    """Write the run's weights, the file `weights`, to `out_dir` in half precision, unless they are there already.

    Raises UserError where they are damaged or beyond half precision.
    """
    content, path = half.to_half(weights.read_bytes(), f"{run.experiment}, seed {run.seed}", {"record": _name(run)}), out_dir / FILE
    if not (path.is_file() and path.read_bytes() == content):
        out_dir.mkdir(parents=True, exist_ok=True)
        files.write(path, content)


def read(out_dir: Path, runs: Iterable[RunRecord]) -> tuple[RunRecord, bytes]:
    """Return the one of `runs` whose weights are published in `out_dir`, and these weights as safetensors.

    Raises UserError, naming the file, where it is missing, damaged or of none of `runs`.
    """
    path, named = out_dir / FILE, {_name(run): run for run in runs}
    try:
        content = path.read_bytes()
        with safe_open(path, framework="numpy") as f:
            name = (f.metadata() or {}).get("record", "no record")
        if name not in named:
            raise UserError(f"of '{name[:200]}', which is not among the set's records")
    except (OSError, SafetensorError, UserError) as e:
        raise unusable(out_dir, e) from None
    return named[name], content


def unusable(out_dir: Path, reason: Exception) -> UserError:
    """Return the UserError for published weights that cannot be used for this reason; it names the file and the remedy."""
    remedy = "restore it, or delete it: 'vitlab report --publish' writes it anew where its run is at hand"
    return UserError(f"{out_dir / FILE}: cannot be used as published weights ({reason}); {remedy}")


def keep_current(out_dir: Path, runs: Iterable[RunRecord]) -> RunRecord | None:
    """Return the best of `runs` if its weights are the published ones; otherwise remove the published ones and return None."""
    runs = list(runs)
    with contextlib.suppress(UserError):
        run, _ = read(out_dir, runs)
        if run == best(runs):
            return run
    (out_dir / FILE).unlink(missing_ok=True)
    return None


def sets(results_dir: Path) -> dict[Path, list[RunRecord]]:
    """Return the folder of each set that has published weights, with its runs, by name. Raises UserError for a set without records."""
    found = {path.parent: records.read_all(path.parent) for path in sorted(results_dir.glob(f"*/{FILE}"))}
    for out_dir, runs in found.items():
        if not runs:
            raise UserError(f"{out_dir / FILE}: lies beside no records; restore them, or delete it")
    return found


def _name(run: RunRecord) -> str:
    """Return the record's file, and what tells its run from others that could have left a record of this name."""
    return f"records/{records.file_name(run)}: {run.fingerprint}, finished {run.finished}"
