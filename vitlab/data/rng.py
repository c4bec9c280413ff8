"""Randomness as a function of (seed, purpose, step): what is drawn needs no state to resume."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_for(seed: int, purpose: str, step: int) -> int:
    """Return a 64-bit seed, a function of (seed, purpose, step), so that a resumed run needs no generator's state.

    PyTorch's CPU generator keeps only the low 32 bits, so among some 1e5 steps a few share their draws. That does no harm.
    """
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def generator(seed: int, purpose: str, step: int, device: torch.device | str) -> torch.Generator:
    """Return a generator on `device`, seeded with `seed_for`."""
    return torch.Generator(device).manual_seed(seed_for(seed, purpose, step))


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which `epoch` visits the training images: a permutation (n,), int64 on the CPU, the same for every device."""
    return torch.randperm(n, generator=generator(seed, "order", epoch, "cpu"))
