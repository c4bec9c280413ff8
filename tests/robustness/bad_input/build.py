"""What is too large, too binary or too damaged to be committed, made in a temporary folder."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vitlab.train import checkpoint

EXPERIMENTS = Path(__file__).parent / "experiments"
GOOD = (EXPERIMENTS / "good.yaml").read_text(encoding="utf-8")


def flip(path: Path, at: int) -> Path:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and is a hundred bytes."""
    small = io.BytesIO()
    Image.new("L", (1, 1)).save(small, "PNG")
    whole = small.getvalue()
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


class Payload:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-ran",)  # in the working folder, where the corpus sees it


def checkpoint_of(body: bytes, version: int = 2) -> bytes:
    """A checkpoint with a checksum that is right, whatever its body is."""
    magic = checkpoint.MAGIC.replace(b"2", str(version).encode())
    return magic + body + hashlib.sha256(body).digest()


def hostile_pickle() -> bytes:
    body = io.BytesIO()
    torch.save({"step": Payload()}, body)
    return body.getvalue()
