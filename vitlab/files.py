"""Atomic writing, locks, the message for a full disk, and text that is safe to print."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota, a limit on the file's size
UNWRITABLE = (*FULL, errno.EROFS)

PAUSE = 0.5  # seconds between two attempts at a lock
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class DiskFull(Exception):
    """A file could not be written for want of space, or since the disk is read-only now. The message says which, why, and what to do."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise DiskFull, as a context manager, where the work within fails for want of a disk to write to, whatever torch or NumPy wrapped that in."""
    try:
        yield
    except Exception as e:
        inner: BaseException | None = e
        while inner is not None and not isinstance(e, DiskFull):
            if isinstance(inner, OSError) and inner.errno in UNWRITABLE:
                raise DiskFull(_full(path, inner)) from e
            inner = inner.__cause__ or inner.__context__
        raise


def _full(path: Path, reason: OSError) -> str:
    folder = next(p for p in path.absolute().parents if p.is_dir())
    free = shutil.disk_usage(folder).free / 1e6
    remedy = "Make room" if reason.errno in FULL else "Have it made writable again"
    return (
        f"{path}: cannot be written ({os.strerror(reason.errno)}; {free:,.0f} MB free in {folder}); what was there before is kept. "
        f"{remedy}, then the same command goes on from the last checkpoint"
    )


@contextlib.contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Give a file to write to, as a context manager, that replaces `path` once all of it is on the disk.

    If anything fails before that, nothing changes. If `previous` is given, what was at `path` is kept there. Raises DiskFull.
    """
    tmp = temporary(path)
    try:
        with writing(path):
            with tmp.open("wb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(tmp, path)
            _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # on a disk that is read-only now
            tmp.unlink()
        raise


def temporary(path: Path) -> Path:
    """Return a path beside `path` to write it to first. No other process or thread gets the same. A kill may leave that file behind."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Delete, in `folder` and below, what kills have left half written. Nobody else may be writing there."""
    for path in folder.rglob("*.tmp"):
        path.unlink(missing_ok=True)


def write(path: Path, content: bytes | str) -> None:
    """Write the file atomically. Raises DiskFull."""
    with replacing(path) as f:
        f.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically. Raises DiskFull, and ValueError for NaN and infinities."""
    write(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


@contextlib.contextmanager
def held(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock at `path`, as a context manager: one process at a time. The system frees it when its holder ends, however that happens.

    While another process holds it, `busy` is called every half second with the holder's name; it may raise to give up. On NFS the lock
    reaches other machines only where the server's lock service runs.
    """
    from filelock import FileLock, Timeout  # late: --help needs none

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            with contextlib.suppress(FileNotFoundError):  # its holder has ended meanwhile
                busy(path.read_text(encoding="utf-8", errors="replace").strip() or "another process")
            time.sleep(PAUSE)
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):  # on a disk that is read-only now, where it stays, held by nobody
            path.unlink()  # while it is still held
        lock.release()


def _sync_folder(folder: Path) -> None:
    """Wait until a folder is on the disk. Before that, a power cut may undo a renaming in it."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def printable(text: str) -> str:
    """Return `text` for a screen: characters that could move its cursor, or cannot be encoded, are spelt out as \\x1b."""
    return UNPRINTABLE.sub(lambda m: m[0].encode("unicode_escape").decode(), text)
