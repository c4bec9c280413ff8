"""One process at a time on a run: a lock that the system takes back when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

PAUSE = 0.5  # seconds between two attempts


@contextlib.contextmanager
def held(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock at `path`. While another process has it, `busy` is told every half second who; it may raise to give up.

    On NFS the lock reaches other machines only where the server's lock service runs; without it each machine locks for itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = _locked(path, busy)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held
        os.close(fd)


def _locked(path: Path, busy: Callable[[str], None]) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
            os.close(fd)  # its holder has removed it meanwhile: what is locked is no longer the file of that name
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(fd)
            busy(holder)
            time.sleep(PAUSE)
