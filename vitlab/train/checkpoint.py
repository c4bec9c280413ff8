"""Checkpoints: written atomically with a checksum, the last two kept, restored in full or not at all. Also a finished run's weights.

Neither can run code when read: a checkpoint is unpickled with torch's `weights_only`, and weights are safetensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import nn

from vitlab import config, files
from vitlab.errors import UserError
from vitlab.models import cost, registry

MAGIC = b"vitlab-checkpoint-2\n"  # then what torch.save wrote, then its SHA-256
NAMES = ("checkpoint.pt", "checkpoint.previous.pt")


class HashingFile:
    """A file to write to that computes the SHA-256 of what is written, so that no copy of the state is made in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as the newest checkpoint in `folder` and keep the one before.

    Write, fsync, rename, fsync the folder: whatever happens, one of the two is whole on the disk. Raises DiskFull.
    """
    newest, previous = (folder / name for name in NAMES)
    with files.replacing(newest, previous) as f:
        f.write(MAGIC)
        body = HashingFile(f)
        torch.save(state, body)
        f.write(body.sha256.digest())


def load(folder: Path, device: torch.device) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest whole checkpoint in `folder`, or None; and a line for each damaged one that was passed over.

    Raises UserError for a whole one that this program did not write: of another version, or holding more than numbers.
    """
    damaged = []
    for name in NAMES:
        path = folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        if (version := re.match(rb"vitlab-checkpoint-(\d+)\n", data)) and version[0] != MAGIC:
            raise UserError(f"{path}: checkpoint of version {int(version[1])}, this vitlab reads 2; update it, or train anew with --force")
        head, body, checksum = data[: len(MAGIC)], memoryview(data)[len(MAGIC) : -32], data[-32:]
        if head != MAGIC or hashlib.sha256(body).digest() != checksum:
            damaged.append(f"{path}: damaged (checksum differs), passed over")
            continue
        try:
            return torch.load(io.BytesIO(body), map_location=device, weights_only=True), damaged
        except Exception as e:  # the unpickler raises nearly anything on what is not a checkpoint
            raise _foreign(path, e) from None
    return None, damaged


@contextlib.contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Raise UserError, as a context manager, where the parts of a whole checkpoint do not fit the run: it is another model's."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise _foreign(folder / NAMES[0], e) from None


def _foreign(path: Path, e: Exception) -> UserError:
    reason = (str(e).splitlines() or [type(e).__name__])[0]
    return UserError(f"{path}: not a checkpoint of this run ({reason}); delete it and the one before it, or train anew with --force")


def load_model(path: Path, cfg: config.Schema, classes: int) -> nn.Module:
    """Return the model with the weights in `path`, on the CPU, in eval mode.

    Raises UserError where they are missing, damaged or another model's.
    """
    try:
        return parse_model(path.read_bytes(), cfg, classes)  # not mapped: a file that another process cuts would kill this one
    except (OSError, UserError) as e:
        raise UserError(f"{path}: cannot be used as the run's weights ({e}); train it anew with --force") from None


def parse_model(content: bytes, cfg: config.Schema, classes: int) -> nn.Module:
    """Return the model in float32 with the weights in `content`, safetensors of any precision; on the CPU, in eval mode.

    Raises UserError, in one line, where they are damaged or another model's.
    """
    try:
        tensors = parse_safetensors(content)
    except (ValueError, SafetensorError) as e:
        raise UserError(str(e).splitlines()[0]) from None
    numbers = sum(tensor.numel() for tensor in tensors.values())
    if cost.parameters(cfg, classes) > numbers:  # before memory is taken for them
        raise UserError(f"{numbers:,} numbers, the model has {cost.parameters(cfg, classes):,}")
    model = registry.build(cfg, classes)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as e:  # names or shapes that are another model's
        raise UserError(str(e).splitlines()[0]) from None
    return model.eval()


def remove(folder: Path) -> None:
    """Delete the checkpoints in `folder`."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
