"""The files in a run's folder that MLflow is fed from: its append-only journal, and a description of the run.

Whatever is measured is appended to `<run_dir>/journal.jsonl` before anything else; shipping.py ships it from there.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitlab import errors, files
from vitlab.errors import UserError


class Journal:
    """Append-only JSON lines `{"kind", "time" (ms since the epoch), ...}`. Opening drops a last line that a kill left half-written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole < self.size():
            os.ftruncate(self._file.fileno(), whole)

    def append(self, kind: str, **fields: Any) -> None:
        """Append one line. Raises DiskFull, and then no half line is left.

        The kinds in use are "metrics" (step: int, values: dict[str, float]) and "event" (text: str). NaN and infinities are kept, as text.
        """
        if "values" in fields:
            fields["values"] = {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in fields["values"].items()}
        line = json.dumps({"kind": kind, "time": int(time.time() * 1000), **fields}, allow_nan=False).encode() + b"\n"
        size = self.size()
        with files.writing(self.path):
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:  # a full disk: no half line for the next one to be glued to
                os.ftruncate(self._file.fileno(), size)
                raise

    def sync(self) -> None:
        """Wait until the whole journal is on the disk. Needed before a checkpoint that refers to the journal's size."""
        with files.writing(self.path):
            os.fsync(self._file.fileno())

    def size(self) -> int:
        """Return the journal's size in bytes."""
        return os.fstat(self._file.fileno()).st_size  # bytes

    def truncate(self, size: int) -> None:
        """Cut the journal to `size` bytes. Raises UserError where it is shorter than that."""
        if size > self.size():
            raise UserError(f"{self.path}: {self.size()} bytes, the checkpoint speaks of {size}; train the run anew with --force")
        os.ftruncate(self._file.fileno(), size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return each whole line, as `(offset of its end in bytes, entry)`, metrics as floats.

    Raises UserError where there is no journal, and, with the line's number, where a line is damaged.
    """
    entries, end = [], 0
    try:
        content = path.read_bytes()
    except FileNotFoundError as e:
        raise errors.refused(e) from None
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # being written at this moment
        end += len(line)
        entries.append((end, _entry(line, f"{path}:{number}")))
    return entries


def begun(path: Path) -> int | None:
    """Return the time of a journal's first line, in ms since the epoch; None where it has none. The others are not read.

    Raises UserError as read_journal does.
    """
    try:
        with path.open("rb") as file:
            line = file.readline()
    except FileNotFoundError as e:
        raise errors.refused(e) from None
    return _entry(line, f"{path}:1")["time"] if line.endswith(b"\n") else None


def _entry(line: bytes, place: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if entry["kind"] == "metrics":
            entry["values"] = {k: float(v) for k, v in entry["values"].items()}
        int(entry["time"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{place}: not a journal's line; delete it, or train the run anew with --force") from None
    return entry


@dataclass(frozen=True)
class RunInfo:
    """What MLflow needs to know of a run besides its journal. It is kept as `<run_dir>/run.json`, so that any process can ship the folder."""

    experiment: str
    variant: str
    label: str
    title: str
    profile: str
    dataset: str
    dataset_digest: str
    seed: int
    fingerprint: str
    git_commit: str
    git_dirty: str
    device: str
    params: dict[str, str]
    description: str
    params_count: int
    flops: int  # forward, per image
    train: int  # images
    validation: int
    test: int

    @property
    def group(self) -> str:
        """Return the name of the parent run, which all seeds of one experiment share."""
        return f"{self.label} · {self.profile} · {self.dataset}"

    @property
    def name(self) -> str:
        """Return the run's name."""
        return f"{self.group} · s{self.seed}"

    def write(self, run_dir: Path) -> None:
        """Write `run_dir`/run.json."""
        files.write_json(run_dir / "run.json", asdict(self))

    @classmethod
    def read(cls, run_dir: Path) -> RunInfo:
        """Return what `run_dir`/run.json says. Raises UserError naming the file where it is missing, damaged or of another version."""
        path = run_dir / "run.json"
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as e:
            raise UserError(f"{path}: not a readable description of a run ({e}); the command that trained the run writes it anew") from None
