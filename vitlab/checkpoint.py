"""Checkpoints: written atomically with a checksum, the last two kept, restored in full or not at all."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

MAGIC = b"vitlab-checkpoint-1\n"
NAMES = ("checkpoint.pt", "checkpoint.previous.pt")


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write, fsync, rename, fsync the folder: whatever happens, the previous checkpoint or this one is there whole."""
    payload = io.BytesIO()
    torch.save(state, payload)
    body = payload.getbuffer()
    newest, previous = (folder / name for name in NAMES)
    tmp = newest.with_suffix(".tmp")
    with tmp.open("wb") as f:
        f.write(MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n")
        f.write(body)
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
        head = len(MAGIC) + 65
        if data[: len(MAGIC)] != MAGIC or data[len(MAGIC) : head - 1].decode("ascii", "replace") != hashlib.sha256(data[head:]).hexdigest():
            damaged.append(f"{path}: damaged (checksum differs), passed over")
            continue
        return torch.load(io.BytesIO(data[head:]), map_location=device, weights_only=True), damaged
    return None, damaged


def remove(folder: Path) -> None:
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
