"""Parameters and FLOPs of any model, counted by torch on a model without weights."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitlab import config
from vitlab.models import registry


def count(cfg: config.Schema, classes: int) -> tuple[int, int, int]:
    """Return trainable parameters, and one image's FLOPs: forward, and forward with backward.

    The model is built on the meta device, which has shapes and no numbers: it takes no memory and draws nothing.
    """
    with torch.device("meta"):
        model = registry.build(cfg, classes)
        images = torch.zeros(2, 3, config.IMAGE_SIZE, config.IMAGE_SIZE)  # two, as batch norm cannot train on one
    # the counter does not know every fused attention
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model.eval().forward_heads(images)
        with FlopCounterMode(display=False) as training:
            model.train().forward_heads(images).sum().backward()
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return parameters, forward.get_total_flops() // 2, training.get_total_flops() // 2
