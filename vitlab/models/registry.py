"""The models, by the name an experiment gives: `build(cfg, classes)`.

Each takes (B, 3, 32, 32) float images and has `head_names`, `forward_heads(x) -> (H, B, classes)` and `forward(x) -> (B, classes)`,
the mean over the heads.
"""

from __future__ import annotations

import torch
from torch import nn

from vitlab import config
from vitlab.models.resnet import ResNet
from vitlab.models.vit import ViT

BUILDERS = {  # by the name of its section, which stands in MODELS of vitlab/config/schema.py: (section, classes) -> model
    "vit": ViT,
    "resnet": ResNet,
}


def build(cfg: config.Schema, classes: int) -> nn.Module:
    """Return the model, initialised from the global generator, with convolutions in channels_last (faster with bf16 on GPUs)."""
    return BUILDERS[cfg.name](cfg, classes).to(memory_format=torch.channels_last)
