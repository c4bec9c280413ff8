"""Where class attention looks: the weights with which the model itself adds up its patches."""

from __future__ import annotations

import torch

from vitlab import config
from vitlab.models import registry
from vitlab.models.attention import class_attention
from vitlab.models.layers import ClassAttention


def test_the_weights_are_those_of_the_forward_pass() -> None:
    """With identity as the last projection, a token is the sum of the values by these weights."""
    torch.manual_seed(0)
    cfg = config.ViT(name="vit", dim=12, depth=3, heads=3, patch_size=8, class_attention=2, distill_token=True)
    model = registry.build(cfg, 4).eval()
    block = [module for module in model.modules() if isinstance(module, ClassAttention)][-1]
    for linear in (*block.q, block.kv):
        torch.nn.init.normal_(linear.weight)
    for proj in block.proj:
        torch.nn.init.eye_(proj.weight)
    kept = {}
    hook = block.register_forward_hook(lambda module, inputs, output: kept.update(tokens=inputs[0], out=output))
    images = torch.randn(5, 3, 32, 32)
    maps = class_attention(model.train(), images)
    hook.remove()
    assert maps.shape == (5, 2, 3, 4, 4)  # images, special tokens, heads, grid
    torch.testing.assert_close(maps.sum((3, 4)), torch.ones(5, 2, 3))
    values = block.kv(kept["tokens"][:, 2:]).unflatten(-1, (2, 2, 3, 4))[:, :, 1]  # (B, P, S, h, d)
    torch.testing.assert_close(torch.einsum("bshp,bpshd->bshd", maps.flatten(3), values).flatten(2), kept["out"])
    assert not model.training


def test_a_model_without_class_attention_has_none() -> None:
    model = registry.build(config.ViT(name="vit", dim=8, depth=1, heads=1, patch_size=16), 4)
    assert class_attention(model, torch.randn(1, 3, 32, 32)) is None
    assert class_attention(registry.build(config.ResNet(name="resnet", depth=18, width=8), 4), torch.randn(1, 3, 32, 32)) is None
