"""The weights that are published with a set: of which runs they are, and how their files are written and found."""

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
FOLDER = "weights"  # beside the records: a file for each experiment, in half precision
SUFFIX = ".safetensors"


def chosen(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the runs whose weights a set publishes: of each experiment the first seed's, whose pictures are shown too. Variations are left out."""
    first: dict[str, RunRecord] = {}
    for run in sorted((run for run in runs if not run.variant), key=lambda run: (run.experiment, run.seed)):
        first.setdefault(run.experiment, run)
    return list(first.values())


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
    """Write the run's weights, the file `weights`, below `out_dir` in half precision, unless they are there already.

    Raises UserError where they are damaged or beyond half precision.
    """
    content = half.to_half(weights.read_bytes(), f"{run.experiment}, seed {run.seed}", {"record": _name(run)})
    path = out_dir / FOLDER / f"{run.experiment}{SUFFIX}"
    if not (path.is_file() and path.read_bytes() == content):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)


def find(out_dir: Path, runs: Iterable[RunRecord]) -> dict[Path, RunRecord]:
    """Return the files of weights published in `out_dir`, by name, each with that of `runs` which it is of. No weights are read.

    Raises UserError, naming the file, where one is damaged or of none of `runs`.
    """
    named = {_name(run): run for run in runs}
    return {path: _run_of(path, named) for path in sorted((out_dir / FOLDER).glob(f"*{SUFFIX}"))}


def _run_of(path: Path, named: dict[str, RunRecord]) -> RunRecord:
    try:
        with safe_open(path, framework="numpy") as f:
            name = (f.metadata() or {}).get("record", "no record")
        if name not in named:
            raise UserError(f"of '{name[:200]}', which is not among the set's records")
    except (OSError, SafetensorError, UserError) as e:
        raise unusable(path, e) from None
    return named[name]


def unusable(path: Path, reason: Exception) -> UserError:
    """Return the UserError for published weights that cannot be used for this reason; it names the file and the remedy."""
    remedy = "restore it, or delete it: 'vitlab report --publish' writes it anew where its run is at hand"
    return UserError(f"{path}: cannot be used as published weights ({reason}); {remedy}")


def keep_current(out_dir: Path, runs: Iterable[RunRecord]) -> dict[Path, RunRecord]:
    """Return what `find` does, after removing the files that are damaged or of a run that is not one of the `chosen`."""
    named = {_name(run): run for run in chosen(runs)}
    kept = {}
    for path in sorted((out_dir / FOLDER).glob(f"*{SUFFIX}")):
        with contextlib.suppress(UserError):
            kept[path] = _run_of(path, named)
            continue
        path.unlink()
    return kept


def sets(results_dir: Path) -> dict[Path, list[RunRecord]]:
    """Return the folder of each set that has published weights, with its runs, by name. Raises UserError for a set without records."""
    folders = sorted({path.parent.parent for path in results_dir.glob(f"*/{FOLDER}/*{SUFFIX}")})
    return {out_dir: read_records(out_dir) for out_dir in folders}


def read_records(out_dir: Path) -> list[RunRecord]:
    """Return the records of a set that has published weights. Raises UserError where there are none."""
    if runs := records.read_all(out_dir):
        return runs
    raise UserError(f"{out_dir / FOLDER}: lies beside no records; restore them, or delete the weights")


def _name(run: RunRecord) -> str:
    """Return the record's file, and what tells its run from others that could have left a record of this name."""
    return f"records/{records.file_name(run)}: {run.fingerprint}, finished {run.finished}"
