"""Checkpoints: written atomically with a checksum, the last two kept, restored in full or not at all."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

MAGIC = b"vitlab-checkpoint-2\n"  # then what torch.save wrote, then its SHA-256
NAMES = ("checkpoint.pt", "checkpoint.previous.pt")


class _Hashing:
    """A file to write to that knows the SHA-256 of what was written: no copy of the state is made in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write, fsync, rename, fsync the folder: whatever happens, the previous checkpoint or this one is there whole."""
    newest, previous = (folder / name for name in NAMES)
    tmp = newest.with_suffix(".tmp")
    with tmp.open("wb") as f:
        f.write(MAGIC)
        body = _Hashing(f)
        torch.save(state, body)
        f.write(body.sha256.digest())
        f.flush()
        os.fsync(f.fileno())
    if newest.exists():
        os.replace(newest, previous)
    os.replace(tmp, newest)
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def load(folder: Path, device: torch.device) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that is whole, or None; and a line for each damaged one passed over."""
    damaged = []
    for name in NAMES:
        path = folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        head, body, checksum = data[: len(MAGIC)], memoryview(data)[len(MAGIC) : -32], data[-32:]
        if head != MAGIC or hashlib.sha256(body).digest() != checksum:
            damaged.append(f"{path}: damaged (checksum differs), passed over")
            continue
        return torch.load(io.BytesIO(body), map_location=device, weights_only=True), damaged
    return None, damaged


def remove(folder: Path) -> None:
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
