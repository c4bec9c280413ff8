"""Weights in half precision: for archives and for what is published. Loads no torch."""

from __future__ import annotations

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as to_safetensors

from vitlab.errors import UserError

LARGEST = np.finfo(np.float16).max  # 65504


def to_half(content: bytes, where: str, metadata: dict[str, str] | None = None) -> bytes:
    """Return the safetensors `content` with every floating tensor in half precision and the others as they are.

    `where` names the run in errors. The same tensors give the same bytes; `metadata` has one entry at most, since safetensors keeps no
    order of them. Raises UserError, naming run and tensor, for a number that half precision would make infinite, and for damaged weights.
    """
    try:
        tensors = parse_safetensors(content)
    except (SafetensorError, ValueError, KeyError) as e:
        raise UserError(f"{where}: cannot be used as the run's weights ({e}); train it anew with --force") from None
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f":
            with np.errstate(over="ignore"):  # an overflow is found, and named, below
                tensors[name] = tensor.astype(np.float16)
            lost = np.isinf(tensors[name]) & np.isfinite(tensor)
            if lost.any():
                raise UserError(
                    f"{where}: {name} holds {tensor[lost].flat[0]:g}, beyond half precision's largest number, {LARGEST:g}; train the run "
                    "anew with --force, or move its folder away"
                )
    return to_safetensors(tensors, metadata)
