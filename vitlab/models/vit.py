"""Vision Transformer (Dosovitskiy et al. 2021): stem (patch | resnet18) x encoder (torch | explicit) x one or two heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from vitlab import config
from vitlab.config import IMAGE_SIZE
from vitlab.models.layers import (
    Attention,
    Block,
    ClassAttention,
    ClassBlock,
    Dropout,
    Encoder,
    PatchEmbed,
    RelativePositionBias,
    TorchAttention,
    init_linear,
)
from vitlab.models.resnet import features


class ViT(nn.Module):
    """A vision transformer: (B, 3, 32, 32) -> (B, classes).

    Tokens are [cls, (dist), patches]; each special token has a linear head of its own (DeiT).
    """

    def __init__(self, cfg: config.ViT, classes: int) -> None:
        super().__init__()
        self.head_names = ("cls", "dist") if cfg.distill_token else ("cls",)
        self.special = len(self.head_names)
        self.stem, grid = _stem(cfg)
        self.tokens = nn.Parameter(torch.empty(1, self.special, cfg.dim))
        if cfg.position == "learned":
            self.position = nn.Parameter(torch.empty(1, self.special + grid * grid, cfg.dim))
        else:  # each block's attention has a bias instead
            self.register_parameter("position", None)
        self.dropout = Dropout(cfg.dropout)
        self.encoder = _torch_encoder(cfg) if cfg.encoder == "torch" else _explicit_encoder(cfg, grid, self.special)
        # A post-norm layer ends in a norm; a second one would only rescale it, and nn.TransformerEncoder has none by default.
        self.norm = nn.Identity() if cfg.encoder == "torch" else nn.LayerNorm(cfg.dim)
        self.heads = nn.ModuleList(nn.Linear(cfg.dim, classes) for _ in self.head_names)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise everything but the stem, which has initialised itself, and in the same way for both encoders.

        PyTorch's own start differs by parameter (Xavier for q, k, v, LeCun for the others), and its encoder copies one layer, so that all
        start equal. With a common start, two experiments that differ in the encoder differ in its blocks and not in luck or scale.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module.weight, module.bias)
            elif isinstance(module, nn.MultiheadAttention):
                init_linear(module.in_proj_weight, module.in_proj_bias)
        nn.init.trunc_normal_(self.tokens, std=0.02)
        if self.position is not None:
            nn.init.trunc_normal_(self.position, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Return the names of tokens, position embeddings and bias tables.

        They are looked up, not multiplied, so weight decay leaves them out.
        """
        return {name for name, _ in self.named_parameters() if name == "tokens" or "position" in name.split(".")}

    def forward_heads(self, x: Tensor) -> Tensor:
        """Return the logits of each head, in the order of `head_names`: (B, 3, 32, 32) -> (H, B, classes)."""
        x = self.stem(x).flatten(2).transpose(1, 2)  # (B, D, grid, grid) -> (B, P, D)
        x = torch.cat((self.tokens.expand(x.shape[0], -1, -1), x), dim=1)  # (B, N, D)
        if self.position is not None:
            x = x + self.position
        x = self.encoder(self.dropout(x))
        x = self.norm(x[:, : self.special])  # (B, S, D); the explicit encoder gives no more
        return torch.stack([head(x[:, i]) for i, head in enumerate(self.heads)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the heads' logits: (B, 3, 32, 32) -> (B, classes)."""
        return self.forward_heads(x).mean(0)


def _stem(cfg: config.ViT) -> tuple[nn.Module, int]:
    """Return the stem, a module (B, 3, 32, 32) -> (B, D, grid, grid), and its grid."""
    if cfg.stem == "patch":
        return PatchEmbed(3, cfg.dim, cfg.patch_size), IMAGE_SIZE // cfg.patch_size
    layers = features(BasicBlock, (2,) * cfg.stem_stages, cfg.stem_width)
    reduced = 2 ** (cfg.stem_stages - 1)  # each stage but the first halves the resolution and doubles the channels
    # Projected even where the channels are `dim` already: so every width has the same design, and features of about 1 from a ReLU
    # do not drown position embeddings of 0.02.
    layers["proj"] = PatchEmbed(reduced * cfg.stem_width, cfg.dim, 1)
    return nn.Sequential(layers), IMAGE_SIZE // reduced


def _torch_encoder(cfg: config.ViT) -> nn.Module:
    """Return PyTorch's encoder with its defaults, post-norm and ReLU. config.ViT refuses what it lacks.

    Attention and dropout are computed our way, which is faster on a CPU and the same mathematics.
    """
    layer = nn.TransformerEncoderLayer(cfg.dim, cfg.heads, int(cfg.dim * cfg.mlp_ratio), cfg.dropout, batch_first=True)
    layer.self_attn = TorchAttention(cfg.dim, cfg.heads, cfg.dropout, batch_first=True)
    layer.dropout, layer.dropout1, layer.dropout2 = Dropout(cfg.dropout), Dropout(cfg.dropout), Dropout(cfg.dropout)
    return nn.TransformerEncoder(layer, cfg.depth, enable_nested_tensor=False)  # nested tensors are for padding, and warn about odd heads


def _explicit_encoder(cfg: config.ViT, grid: int, special: int) -> nn.Module:
    """Return `depth` blocks, the last `class_attention` of them class blocks. DropPath's rate rises linearly from 0 over all of them."""
    hidden = int(cfg.dim * cfg.mlp_ratio)
    blocks: list[nn.Module] = []
    for i in range(cfg.depth):
        drop_path = cfg.drop_path * i / max(cfg.depth - 1, 1)
        if i < cfg.depth - cfg.class_attention:
            attn = Attention(cfg.dim, cfg.heads, cfg.dropout)
            position = RelativePositionBias(cfg.heads, grid, special) if cfg.position == "relative" else None
            blocks.append(Block(cfg.dim, attn, hidden, cfg.dropout, drop_path, cfg.layer_scale, position))
        else:
            attn = ClassAttention(cfg.dim, cfg.heads, special, cfg.dropout)
            blocks.append(ClassBlock(cfg.dim, attn, hidden, cfg.dropout, drop_path, cfg.layer_scale, None))
    return Encoder(blocks, special)
