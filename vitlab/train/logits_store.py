"""A teacher's logits, kept beside its run, so that a further student that sees the same images costs no forward pass of the teacher.

A file is a log of rows: a digest of a batch of images as the teacher sees it, its logits in float16, a CRC-32 of both. The digest is of the
pixels themselves, so a row answers for these images alone, whatever made them: data, seed, batch, augmentation, or the code of any. A row
that a kill cut short or whose checksum is wrong is not used. Files are read and written, not mapped into memory: a mapping would kill the
process where the disk is full or another process cuts the file. Loads no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".logits"
DIGEST, CHECKSUM = 16, 4  # bytes
RESERVE = 1_000_000_000  # bytes of the disk that are left to others, checkpoints above all


def digest(images: np.ndarray) -> bytes:
    """Return what a batch of images is known by: 16 bytes of BLAKE2b of its pixels."""
    return hashlib.blake2b(images, digest_size=DIGEST).digest()


def megabytes(folder: Path) -> float:
    """Return the size of the logits in a teacher's folder, in MB."""
    return sum(path.stat().st_size for path in folder.glob(f"*{SUFFIX}")) / 1e6


def clear(runs_dir: Path) -> int:
    """Delete all logits below `runs_dir`, and return how many bytes they had. A training that uses them goes on undisturbed."""
    deleted = 0
    for path in runs_dir.glob(f"*/*/*/*{SUFFIX}"):
        deleted += path.stat().st_size
        path.unlink()
    return deleted


def steps(folder: Path, views: str, size: int) -> int:
    """Return how many batches of `views`, each with `size` bytes of logits, the fullest file in a teacher's folder holds."""
    return max((path.stat().st_size // (DIGEST + size + CHECKSUM) for path in folder.glob(f"{views}-*{SUFFIX}")), default=0)


class LogitsStore:
    """The logits in the files `<views>-<answers>.logits` of `folder`; used as a context manager, which closes them.

    `answers` names all that decides the logits of given images. `views` names the images of a whole training, step by step: all files with
    the same `answers` are read, and new rows go to that of `views`. `size`: bytes of a batch's logits. `say` is told what goes wrong, which
    never stops a training. Files are opened at the first question. Several processes may use one store: rows are only appended.
    """

    def __init__(self, folder: Path, views: str, answers: str, size: int, say: Callable[[str], None]) -> None:
        self.path, self.answers, self.say = folder / f"{views}-{answers}{SUFFIX}", answers, say
        self.length = DIGEST + size + CHECKSUM  # of a row
        self.rows: dict[bytes, tuple[FileIO, int]] = {}  # by digest: file and offset
        self.own: FileIO | None = None  # the file that is appended to
        self.seen = 0  # bytes of it whose rows are in `rows`
        self.files = contextlib.ExitStack()
        self.opened = False

    def __enter__(self) -> LogitsStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()

    def get(self, view: bytes) -> bytes | None:
        """Return the logits for the images with the digest `view`; None where they are not stored."""
        if not self.opened:
            self.opened = True
            self._open()
        with contextlib.suppress(OSError):
            if view not in self.rows and self.own is not None:
                self.seen = self._index(self.own, self.seen)  # what has been appended meanwhile, by this process or another
            if view in self.rows:
                file, at = self.rows[view]
                row = os.pread(file.fileno(), self.length, at)
                if self._whole(row) and row.startswith(view):  # it may have been damaged or cut off since
                    return row[DIGEST:-CHECKSUM]
        return None

    def put(self, view: bytes, logits: bytes) -> None:
        """Store the logits for the images with the digest `view`, where that can be done."""
        if self.own is None:
            return
        row = view + logits
        row += zlib.crc32(row).to_bytes(CHECKSUM, "little")
        assert len(row) == self.length
        try:
            if shutil.disk_usage(self.path.parent).free < RESERVE:
                self._stop(f"less than {RESERVE / 1e9:g} GB of the disk is free")
            elif self.own.write(row) < len(row):
                self._stop("the disk is full")
        except OSError as e:
            self._stop(os.strerror(e.errno))

    def _open(self) -> None:
        try:
            for path in sorted({self.path, *self.path.parent.glob(f"*-{self.answers}{SUFFIX}")}):
                file = self.files.enter_context(path.open("a+b", buffering=0))
                size = os.fstat(file.fileno()).st_size  # before: another process may append a row at any time
                end = self._index(file, 0)
                if end < size:
                    os.ftruncate(file.fileno(), end)
                    self.say(f"{path}: damaged, cut to its first {end // self.length:,} rows; the teacher computes the others anew")
                if path == self.path:
                    self.own, self.seen = file, end
        except OSError as e:
            self._stop(os.strerror(e.errno))

    def _index(self, file: FileIO, at: int) -> int:
        """Note the rows of `file` from the offset `at` on. Returns where the first one begins that is not whole."""
        while self._whole(row := os.pread(file.fileno(), self.length, at)):
            self.rows[row[:DIGEST]] = file, at
            at += self.length
        return at

    def _whole(self, row: bytes) -> bool:
        return len(row) == self.length and zlib.crc32(row[:-CHECKSUM]) == int.from_bytes(row[-CHECKSUM:], "little")

    def _stop(self, reason: str) -> None:
        self.own = None
        self.say(f"{self.path}: the teacher's logits are stored no further ({reason}); training goes on without")
