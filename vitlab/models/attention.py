"""Where a model's class attention looks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from vitlab.models.layers import ClassAttention


@torch.no_grad()
def class_attention(model: nn.Module, images: Tensor) -> Tensor | None:
    """Return the attention of each special token to the patches in the last class-attention block: (B, S, heads, grid, grid).

    Each map sums to 1. images: (B, 3, 32, 32), normalised. None for a model without class attention. Leaves the model in eval mode.
    """
    blocks = [module for module in model.modules() if isinstance(module, ClassAttention)]
    if not blocks:
        return None
    seen: list[Tensor] = []
    hook = blocks[-1].register_forward_pre_hook(lambda module, inputs: seen.append(_weights(module, *inputs)))
    try:
        model.eval()(images)
    finally:
        hook.remove()
    return seen[0]


def _weights(attn: ClassAttention, x: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) as ClassAttention computes it from tokens (B, N, D): (B, S, heads, grid, grid)."""
    special, patches = x[:, : attn.special], x[:, attn.special :]
    heads = partial(torch.Tensor.unflatten, sizes=(attn.heads, -1))
    q = torch.stack([heads(q(special[:, i]), -1) for i, q in enumerate(attn.q)], 1)  # (B, S, h, d)
    keys = attn.kv(patches).unflatten(-1, (2, attn.special, attn.heads, -1))[:, :, 0]  # (B, P, S, h, d)
    weights = torch.einsum("bshd,bpshd->bshp", q, keys).mul(q.shape[-1] ** -0.5).softmax(-1)
    grid = round(weights.shape[-1] ** 0.5)
    return weights.unflatten(-1, (grid, grid))
