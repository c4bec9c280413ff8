"""The pieces of a Vision Transformer. Shapes: B images, N tokens (S special ones first, then P patches), D channels, h heads."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def init_linear(weight: Tensor, bias: Tensor | None) -> None:
    """Initialise a linear map in place, as ViT does: truncated normal of standard deviation 0.02, zero bias."""
    nn.init.trunc_normal_(weight, std=0.02)
    if bias is not None:
        nn.init.zeros_(bias)


class OneHead(nn.Sequential):
    """Layers in a row that give (B, classes): a model with one head."""

    head_names = ("cls",)

    def forward_heads(self, x: Tensor) -> Tensor:
        """Return the logits of the one head: (B, 3, 32, 32) -> (1, B, classes)."""
        return self(x).unsqueeze(0)


class PatchEmbed(nn.Conv2d):
    """Cut into patches of `patch_size` x `patch_size` and project each: (B, C, H, W) -> (B, D, H / patch_size, W / patch_size)."""

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        super().__init__(channels, dim, patch_size, stride=patch_size)

    def reset_parameters(self) -> None:
        # It is a linear map, and initialised as every other one. With LeCun's unit-variance tokens the position embeddings
        # (0.02) would start 50 times smaller than the content; so they count from the first step.
        init_linear(self.weight, self.bias)


def _kept(numel: int, dropped: int, bits: int) -> Tensor:
    """Return (numel,) integers with `bits` (8 or 16) bits: 0 with a probability of `dropped` / 2^bits, else 1."""
    seed = int(torch.empty((), dtype=torch.int64).random_())
    draws = np.random.Generator(np.random.SFC64(seed)).integers(1 << 64, size=-(-numel * bits // 64), dtype=np.uint64)
    return torch.from_numpy(draws.view(f"int{bits}"))[:numel].ge_(dropped - 2 ** (bits - 1))


@torch.library.custom_op("vitlab::kept", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def kept(numel: int, dropped: int, bits: int) -> Tensor:
    """Return `_kept` as int8, as an operator of its own: a compiler cannot look into NumPy, and must not take two draws for one."""
    return _kept(numel, dropped, bits).to(torch.int8)


@kept.register_fake
def _(numel: int, dropped: int, bits: int) -> Tensor:
    return torch.empty(numel, dtype=torch.int8)


class _Masked(torch.autograd.Function):
    """`x` * `scale` where `keep` is 1, else 0, by a product with the numbers' bits: torch has vector instructions for integers, not for selecting."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return _masked(x, keep, scale)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _masked(grad, ctx.saved_tensors[0], ctx.scale), None, None


def _masked(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    y = x * scale
    y.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]).mul_(keep)
    return y


def cpu_dropout(x: Tensor, p: float) -> Tensor:
    """Return dropout of `x` whose mask comes from NumPy's SFC64, which takes a seventh of the time of torch's on a CPU.

    SFC64 is seeded from torch's generator, whose state is in the checkpoint. An element has 8 random bits where a multiple of 2^-8 is
    within 2 % of `p` (0.05 becomes 13 / 256, 0.0508), else 16. What is kept is scaled by the rounded rate, so that the mean stays.
    """
    bits = 8 if abs(round(p * 256) / 256 - p) <= 0.02 * min(p, 1 - p) else 16
    dropped = round(p * 2**bits)
    scale = 2**bits / (2**bits - dropped)
    if torch.compiler.is_compiling():  # into one kernel with what stands before and after
        return x * (kept(x.numel(), dropped, bits).view(x.shape).to(x.dtype) * scale)
    return _Masked.apply(x, _kept(x.numel(), dropped, bits).view(x.shape), scale)


def dropout(x: Tensor, p: float) -> Tensor:
    """Return `x` with each element zeroed with probability `p` and the others divided by 1 - p."""
    if p == 0.0:
        return x
    return cpu_dropout(x, p) if x.device.type == "cpu" else F.dropout(x, p)


class Dropout(nn.Module):
    """Apply `dropout` in training and nothing in evaluation."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p if self.training else 0.0)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, drop: float) -> Tensor:
    """Return dropout(softmax(q k^T / sqrt(d) + bias)) v: q (B, h, Q, d), k and v (B, h, N, d), bias (h, Q, N) or None -> (B, h, Q, d)."""
    # On the CPU, forward and backward of (128, 3 or 8, 65, 32): the built-in attention takes a fifth to a third less time in
    # float32 (the same with a learned bias), but four times as long in bfloat16, and with dropout it is slow; plain matrix
    # products serve there instead.
    if q.device.type == "cpu" and (q.dtype == torch.bfloat16 or drop > 0):
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, h, Q, N)
        if bias is not None:
            logits += bias.to(q.dtype)
        return dropout(logits.softmax(-1), drop) @ v
    mask = None if bias is None else bias.unsqueeze(0)  # (1, h, Q, N)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017): (B, N, D) -> (B, Q, D), for the first `queries` tokens or, by default, for all N."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None, queries: int | None = None) -> Tensor:
        if queries is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 x (B, h, N, d)
        else:
            weight, bias_kv, dim = self.qkv.weight, self.qkv.bias, x.shape[-1]
            q = F.linear(x[:, :queries], weight[:dim], bias_kv[:dim]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = F.linear(x, weight[dim:], bias_kv[dim:]).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = attend(q, k, v, bias, self.dropout if self.training else 0.0)
        return self.proj(x.transpose(1, 2).flatten(2))


class TorchAttention(nn.MultiheadAttention):
    """PyTorch's multi-head self-attention, its parameters and all, computed by `attend`: (B, N, D) -> (B, N, D) and None for the weights.

    On a CPU its own way takes several times as long with dropout or in bfloat16.
    """

    def forward(self, query: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = attend(q, k, v, None, self.dropout if self.training else 0.0)
        return self.out_proj(x.transpose(1, 2).flatten(2)), None


class ClassAttention(nn.Module):
    """Class attention in which special tokens attend to patches only (distillation report, "Architecture"): (B, N, D) -> (B, S, D).

    It is CaiT's (Touvron et al. 2021, section 3) with two changes: keys and values come from the patches alone, and each special token has
    an attention of its own. They are computed as one attention with S * h heads, h for each special token, and a single query.
    """

    def __init__(self, dim: int, heads: int, special: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.special, self.dropout = heads, special, dropout
        self.q = nn.ModuleList(nn.Linear(dim, dim) for _ in range(special))
        self.kv = nn.Linear(dim, 2 * special * dim)  # one product for all special tokens: their keys, then their values
        self.proj = nn.ModuleList(nn.Linear(dim, dim) for _ in range(special))

    def forward(self, x: Tensor) -> Tensor:
        special, patches = x[:, : self.special], x[:, self.special :]
        q = torch.stack([q(special[:, i]) for i, q in enumerate(self.q)], dim=1)  # (B, S, D)
        q = q.reshape(x.shape[0], self.special * self.heads, 1, -1)  # (B, S * h, 1, d)
        k, v = self.kv(patches).unflatten(-1, (2, self.special * self.heads, -1)).permute(2, 0, 3, 1, 4)  # 2 x (B, S * h, P, d)
        x = attend(q, k, v, None, self.dropout if self.training else 0.0).reshape(special.shape)  # (B, S, D)
        return torch.stack([proj(x[:, i]) for i, proj in enumerate(self.proj)], dim=1)


class MLP(nn.Module):
    """Two linear maps with an exact GELU between them: (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dropout = Dropout(dropout)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(F.gelu(self.fc1(x))))


class LayerScale(nn.Module):
    """One learned factor per channel, initially `gamma` (CaiT, section 2): (..., D) -> (..., D)."""

    def __init__(self, dim: int, gamma: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), gamma))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training each sample's branch is dropped with probability `p`, else divided by 1 - p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)  # (B, 1, ...)
        return x * keep.div_(1 - self.p)


class RelativePositionBias(nn.Module):
    """2D decomposed relative position bias, (h, N, N), added to the attention logits (distillation report, section 5).

    Between patches i and j, bias[h, i, j] = row[h, |y_i - y_j|] + col[h, |x_i - x_j|], the two parts of their Manhattan distance: 2 * grid
    numbers per head instead of Swin's (2 * grid - 1)^2. Special tokens have no place in the grid, so pairs with a special token have terms
    of their own.
    """

    def __init__(self, heads: int, grid: int, special: int) -> None:
        super().__init__()
        self.special = special
        self.special_to_special = nn.Parameter(torch.empty(heads, 1, 1))
        self.special_to_patch = nn.Parameter(torch.empty(heads, 1, 1))
        self.patch_to_special = nn.Parameter(torch.empty(heads, 1, 1))
        self.row = nn.Parameter(torch.empty(heads, grid))
        self.col = nn.Parameter(torch.empty(heads, grid))
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)
        at = torch.arange(grid)
        self.register_buffer("distance", (at[:, None] - at[None, :]).abs(), persistent=False)  # (grid, grid)

    def forward(self) -> Tensor:
        row = self.row[:, self.distance][:, :, None, :, None]  # (h, y_i, 1, y_j, 1)
        col = self.col[:, self.distance][:, None, :, None, :]  # (h, 1, x_i, 1, x_j)
        patches = (row + col).flatten(3, 4).flatten(1, 2)  # (h, P, P)
        s, p = self.special, patches.shape[1]
        from_special = torch.cat((self.special_to_special.expand(-1, s, s), self.special_to_patch.expand(-1, s, p)), dim=2)  # (h, S, N)
        from_patch = torch.cat((self.patch_to_special.expand(-1, p, s), patches), dim=2)  # (h, P, N)
        return torch.cat((from_special, from_patch), dim=1)


class Block(nn.Module):
    """Pre-norm transformer encoder block: (B, N, D) -> (B, Q, D), for the first `queries` tokens or, by default, for all N.

    `position` is a module that returns the attention bias, or None. Dropout is where nn.TransformerEncoderLayer has it: on the attention
    weights, after the attention, inside the MLP and after it.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        hidden: int,
        dropout: float,
        drop_path: float,
        layer_scale: float | None,
        position: nn.Module | None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.position = position
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden, dropout)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.dropout = Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def attention_branch(self, x: Tensor, queries: int | None) -> Tensor:
        """Return what attention adds to the first `queries` tokens of `x`: (B, N, D) -> (B, Q, D)."""
        bias = None if self.position is None else self.position()[:, :queries]
        return self.drop_path(self.scale1(self.dropout(self.attn(self.norm1(x), bias, queries))))

    def mlp_branch(self, x: Tensor) -> Tensor:
        """Return what the MLP adds to each token of `x`: (B, N, D) -> (B, N, D)."""
        return self.drop_path(self.scale2(self.dropout(self.mlp(self.norm2(x)))))

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        x = x[:, :queries] + self.attention_branch(x, queries)
        return x + self.mlp_branch(x)


class ClassBlock(Block):
    """CaiT's block with ClassAttention: (B, N, D) -> (B, N, D). The special tokens change, the patch tokens pass unchanged.

    The special tokens share norms and MLP. There is no position bias: all keys are patches, and one term for every patch changes nothing
    under softmax.
    """

    def attention_branch(self, x: Tensor, queries: int | None) -> Tensor:
        """Return what class attention adds to the special tokens: (B, N, D) -> (B, S, D)."""
        return self.drop_path(self.scale1(self.dropout(self.attn(self.norm1(x)))))

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        special = super().forward(x, self.attn.special)
        return special if queries == self.attn.special else torch.cat((special, x[:, self.attn.special :]), dim=1)


class Encoder(nn.Sequential):
    """Blocks in a row: (B, N, D) -> (B, S, D). Only the special tokens are read, so the last block computes no others."""

    def __init__(self, blocks: list[nn.Module], special: int) -> None:
        super().__init__(*blocks)
        self.special = special

    def forward(self, x: Tensor) -> Tensor:
        *blocks, last = self
        for block in blocks:
            x = block(x)
        return last(x, self.special)
