"""A disk without room, and one that is read-only."""

from __future__ import annotations

import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As a full disk, but for errno. Python ignores SIGXFSZ, so that a write beyond fails."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder is read-only, for all processes and for root too; what is open already can still be written. Takes the right to mount.

    The folder itself is busy where a file in it is open. So the same folder, made read-only in another place, is laid over it.
    """
    with tempfile.TemporaryDirectory() as aside, _mounted("--bind", folder, aside):
        subprocess.run(["mount", "-o", "remount,bind,ro", aside], check=True)
        with _mounted("--bind", aside, folder):
            yield


@contextmanager
def _mounted(*arguments: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *arguments], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", arguments[-1]], check=True)
