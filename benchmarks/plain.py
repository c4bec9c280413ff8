"""The models of 01 and 06 as a tutorial would write them: eager PyTorch, one module an idea, nothing made fast.

Parameters have vitlab's names, so that its weights load here and both give the same logits. Nothing of `vitlab.models` is imported, since
what was made fast there would be fast here too. Shapes: B images, N tokens (S special ones first, then P patches), D channels,
h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab import config
from vitlab.config import IMAGE_SIZE


class LayerScale(nn.Module):
    """One learned factor per channel: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, gamma: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), gamma))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: in training, a sample's branch is zeroed with probability `p`, and divided by 1 - p otherwise."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.p
        return x * keep / (1 - self.p)


class MLP(nn.Module):
    """Two linear maps with a GELU between them: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.act(self.fc1(x))))


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, D), bias (h, N, N) or None -> (B, N, D)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # 3 x (B, h, N, d)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class ClassAttention(nn.Module):
    """Attention of each special token to the patches, with weights of its own: (B, N, D) -> (B, S, D)."""

    def __init__(self, dim: int, heads: int, special: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.special, self.dropout = heads, special, dropout
        self.q = nn.ModuleList(nn.Linear(dim, dim) for _ in range(special))
        self.kv = nn.Linear(dim, 2 * special * dim)
        self.proj = nn.ModuleList(nn.Linear(dim, dim) for _ in range(special))

    def forward(self, x: Tensor, bias: None) -> Tensor:
        B, N, D = x.shape
        S, d = self.special, D // self.heads
        kv = self.kv(x[:, S:]).reshape(B, N - S, 2, S, self.heads, d).permute(2, 3, 0, 4, 1, 5)  # (2, S, B, h, P, d)
        out = []
        for i in range(S):
            q = self.q[i](x[:, i]).reshape(B, self.heads, 1, d)
            y = F.scaled_dot_product_attention(q, kv[0, i], kv[1, i], dropout_p=self.dropout if self.training else 0.0)  # (B, h, 1, d)
            out.append(self.proj[i](y.reshape(B, D)))
        return torch.stack(out, dim=1)


class RelativeBias(nn.Module):
    """Attention bias of all queries -> (h, N, N): between patches, a term by the rows apart and one by the columns apart."""

    def __init__(self, heads: int, grid: int, special: int) -> None:
        super().__init__()
        self.special_to_special = nn.Parameter(torch.zeros(heads, 1, 1))
        self.special_to_patch = nn.Parameter(torch.zeros(heads, 1, 1))
        self.patch_to_special = nn.Parameter(torch.zeros(heads, 1, 1))
        self.row = nn.Parameter(torch.zeros(heads, grid))
        self.col = nn.Parameter(torch.zeros(heads, grid))
        y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
        y, x = y.flatten(), x.flatten()  # (P,)
        self.register_buffer("rows_apart", (y[:, None] - y[None, :]).abs(), persistent=False)  # (P, P)
        self.register_buffer("cols_apart", (x[:, None] - x[None, :]).abs(), persistent=False)
        self.special = special

    def forward(self) -> Tensor:
        patches = self.row[:, self.rows_apart] + self.col[:, self.cols_apart]  # (h, P, P)
        S, P = self.special, patches.shape[1]
        from_special = torch.cat([self.special_to_special.expand(-1, S, S), self.special_to_patch.expand(-1, S, P)], dim=2)  # (h, S, N)
        from_patch = torch.cat([self.patch_to_special.expand(-1, P, S), patches], dim=2)  # (h, P, N)
        return torch.cat([from_special, from_patch], dim=1)


class Block(nn.Module):
    """Pre-norm block (B, N, D) -> (B, N, D); with ClassAttention only the special tokens change."""

    def __init__(self, cfg: config.ViT, attn: nn.Module, position: nn.Module | None, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.dim)
        self.attn = attn
        self.position = position
        self.scale1 = LayerScale(cfg.dim, cfg.layer_scale) if cfg.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(cfg.dim)
        self.mlp = MLP(cfg.dim, int(cfg.dim * cfg.mlp_ratio), cfg.dropout)
        self.scale2 = LayerScale(cfg.dim, cfg.layer_scale) if cfg.layer_scale else nn.Identity()
        self.dropout = nn.Dropout(cfg.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.position() if self.position is not None else None
        attended = self.drop_path(self.scale1(self.dropout(self.attn(self.norm1(x), bias))))
        changing, rest = x[:, : attended.shape[1]], x[:, attended.shape[1] :]
        changing = changing + attended
        changing = changing + self.drop_path(self.scale2(self.dropout(self.mlp(self.norm2(changing)))))
        return torch.cat([changing, rest], dim=1) if rest.shape[1] else changing


class PlainViT(nn.Module):
    """The vision transformer: (B, 3, 32, 32) -> a list of logits (B, classes), one for each head."""

    def __init__(self, cfg: config.ViT, classes: int) -> None:
        super().__init__()
        assert (cfg.stem, cfg.encoder) == ("patch", "explicit"), "01 and 06 have no other"
        grid = IMAGE_SIZE // cfg.patch_size
        self.special = 2 if cfg.distill_token else 1
        self.stem = nn.Conv2d(3, cfg.dim, cfg.patch_size, stride=cfg.patch_size)
        self.tokens = nn.Parameter(torch.zeros(1, self.special, cfg.dim))
        learned = cfg.position == "learned"
        self.position = nn.Parameter(torch.zeros(1, self.special + grid * grid, cfg.dim)) if learned else None
        self.dropout = nn.Dropout(cfg.dropout)
        blocks = []
        for i in range(cfg.depth):
            if i < cfg.depth - cfg.class_attention:
                attn = Attention(cfg.dim, cfg.heads, cfg.dropout)
                bias = None if learned else RelativeBias(cfg.heads, grid, self.special)
            else:
                attn = ClassAttention(cfg.dim, cfg.heads, self.special, cfg.dropout)
                bias = None
            blocks.append(Block(cfg, attn, bias, cfg.drop_path * i / max(cfg.depth - 1, 1)))
        self.encoder = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(cfg.dim)
        self.heads = nn.ModuleList(nn.Linear(cfg.dim, classes) for _ in range(self.special))
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.trunc_normal_(p, std=0.02)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x).flatten(2).transpose(1, 2)  # (B, P, D)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], dim=1)  # (B, N, D)
        if self.position is not None:
            x = x + self.position
        x = self.norm(self.encoder(self.dropout(x)))
        return [head(x[:, i]) for i, head in enumerate(self.heads)]
