"""Finished runs as an archive small enough to carry away from a machine: `vitlab pack`.

It is one tar, cut into parts while it is written. Its paths are those below runs/, so that `tar` alone unpacks it, and the same runs
give the same bytes. It is not compressed: nearly all of it is weights and pictures, which hardly shrink.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from vitlab import files, records
from vitlab.errors import UserError
from vitlab.run import half, published
from vitlab.train import checkpoint, logits_store

PART_BYTES = 15_000_000
PARTS = 1_000  # at most: numbers have three digits, so that the shell lists the parts in their order
RECORD = "record.json"


def pack(folder: Path, runs_dir: Path, to: Path, tell: Callable[[str], None]) -> list[Path]:
    """Write the finished runs in `folder`, which is `runs_dir` or lies in it, to the parts `to`/<its name>.tar.000 and so on.

    A run's whole folder is packed, its weights in half precision, except for checkpoints, locks, a teacher's stored logits and files that
    a kill left half written. `tell` is called with a line for each run that is left out because it is not finished. Parts of an earlier
    archive of that name are removed once the new one is whole. Raises UserError for a folder elsewhere or without a finished run, damaged
    records, and weights that are damaged or beyond half precision.
    """
    folder, runs_dir = folder.resolve(), runs_dir.resolve()
    if not folder.is_dir() or not folder.is_relative_to(runs_dir):
        what = "not a folder of runs" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; expected {runs_dir}, a set in it, or a folder below")
    found = sorted(p for p in runs_dir.glob("*/*/*") if p.is_dir() and (p == folder or folder in p.parents))
    finished = {run: _finished(run / RECORD) for run in found if (run / RECORD).is_file()}
    for run in found:
        if run not in finished:
            tell(f"{run.relative_to(runs_dir)}: not finished, left out")
    if not finished:
        raise UserError(f"{folder}: no finished run to pack; expected one with a {RECORD}: train it to its end first")
    to.mkdir(parents=True, exist_ok=True)
    beginning = f".{folder.name}.tar-"
    for left in to.glob(f"{beginning}*"):  # by a kill
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=beginning, dir=to) as tmp:
        parts = _Parts(Path(tmp) / f"{folder.name}.tar")
        with tarfile.open(fileobj=parts, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for run, seconds in finished.items():
                for path in _contents(run):
                    _add(tar, path, path.relative_to(runs_dir), seconds)
        if parts.rest:
            parts.cut()
        for path in to.iterdir():  # those of a longer archive would be taken for the end of this one
            if re.fullmatch(re.escape(folder.name) + r"\.tar\.\d+", path.name):
                path.unlink()
        for path in parts.paths:
            os.replace(path, to / path.name)
    return [to / path.name for path in parts.paths]


def _finished(record: Path) -> int:
    """Return when the run finished, in seconds since the epoch: the date of all its files in the archive."""
    finished = records.read(record).finished
    try:
        return int(datetime.fromisoformat(finished).timestamp())
    except (ValueError, OverflowError) as e:
        raise UserError(f"{record}: finished: {e}; restore the record or train the run anew with --force") from None


def _contents(run: Path) -> list[Path]:
    """Return the run's files to pack. The record is last, as in training, so that no run seems finished if unpacking is cut short."""
    present = [p for p in run.rglob("*") if p.is_file() and not p.is_symlink()]
    kept = [p for p in present if p.name not in checkpoint.NAMES and p.suffix not in (".tmp", ".lock", logits_store.SUFFIX)]
    return sorted(kept, key=lambda p: (p == run / RECORD, p))


def _add(tar: tarfile.TarFile, path: Path, name: Path, seconds: int) -> None:
    info = tarfile.TarInfo(name.as_posix())  # with no owner, and readable by all
    info.mtime = seconds
    with path.open("rb") as file:
        content: BinaryIO = file
        if path.name == published.WEIGHTS:
            content = io.BytesIO(half.to_half(file.read(), str(path)))
        info.size = content.seek(0, io.SEEK_END)  # of the open file, even if another one takes its place meanwhile
        content.seek(0)
        tar.addfile(info, content)


class _Parts:
    """A file to write to; what is written lies in `paths`, each of PART_BYTES but the last."""

    def __init__(self, stem: Path) -> None:
        self.paths: list[Path] = []
        self._stem, self.rest = stem, bytearray()

    def write(self, data: bytes) -> None:
        self.rest += data
        while len(self.rest) >= PART_BYTES:
            self.cut()

    def cut(self) -> None:
        """Write one part of what is not written yet."""
        number = len(self.paths)
        if number == PARTS:
            raise UserError(f"{self._stem}: more than {PARTS * PART_BYTES / 1e9:.0f} GB; pack the folders in it one by one")
        path = self._stem.with_name(f"{self._stem.name}.{number:03}")
        files.write(path, bytes(self.rest[:PART_BYTES]))
        self.paths.append(path)
        del self.rest[:PART_BYTES]
