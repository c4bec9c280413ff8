"""Weights in half precision, and the one way they are compressed: for archives and for what is published. Loads no torch."""

from __future__ import annotations

import json
import lzma

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as to_safetensors

from vitlab.errors import UserError

# Numbers of two bytes: with the position in each as context, 15 % less than the weights' own size at about 5 MB/s; the better presets
# are ten times as slow for nothing.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 1, "lc": 1, "lp": 1, "pb": 1}]
MEMORY = 64 << 20  # bytes that a file may ask its reader's decoder for; FILTERS take 1 MiB, the format allows 4 GiB
LARGEST = np.finfo(np.float16).max  # 65504


def to_half(content: bytes, where: str, metadata: dict[str, str] | None = None) -> bytes:
    """Safetensors with every floating tensor of `content`, the safetensors of the run `where`, in half precision; others as they are.

    The same tensors give the same bytes; `metadata` has one entry at most, since safetensors keeps no order of them. Raises UserError,
    naming run and tensor, for a number that half precision would make infinite, and for what are no weights.
    """
    try:
        tensors = parse_safetensors(content)
    except (SafetensorError, ValueError, KeyError) as e:
        raise UserError(f"{where}: cannot be used as the run's weights ({e}); train it anew with --force") from None
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f":
            with np.errstate(over="ignore"):  # it is looked for next, and named
                tensors[name] = tensor.astype(np.float16)
            lost = np.isinf(tensors[name]) & np.isfinite(tensor)
            if lost.any():
                raise UserError(
                    f"{where}: {name} holds {tensor[lost].flat[0]:g}, beyond half precision's largest number, {LARGEST:g}; train the run "
                    "anew with --force, or move its folder away"
                )
    return to_safetensors(tensors, metadata)


def metadata(content: bytes, key: str) -> str:
    """What the safetensors `content` say of themselves under `key`. Raises UserError where they do not."""
    try:  # after the header's size in 8 bytes
        return str(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][key])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"no safetensors with a note of their {key}") from None


def compressor() -> lzma.LZMACompressor:
    return lzma.LZMACompressor(filters=FILTERS)


def compress(content: bytes) -> bytes:
    xz = compressor()
    return xz.compress(content) + xz.flush()


def decompress(content: bytes, limit: int) -> bytes:
    """Raises UserError where `content` is not one whole xz stream of at most `limit` bytes; no more than these are ever made."""
    xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
    try:
        unpacked = xz.decompress(content, max_length=limit + 1)
    except lzma.LZMAError as e:
        raise UserError(str(e)) from None
    if len(unpacked) > limit:
        raise UserError(f"more than {limit:,} bytes when unpacked")
    if not xz.eof or xz.unused_data:
        raise UserError("cut off" if not xz.eof else "something follows its end")
    return unpacked
