"""Parameter groups, the optimizers, and the exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitlab.config import SGD, AdamW


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and kernels only: not on biases, norms and LayerScale (1-D), nor on tokens, positions and bias tables.

    As timm and big_vision do; a model names its tables in `no_weight_decay() -> set[str]`.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    decayed, plain = [], []
    for name, p in model.named_parameters():
        (plain if p.ndim <= 1 or name in exempt else decayed).append(p)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build(cfg: AdamW | SGD, model: nn.Module) -> torch.optim.Optimizer:
    groups = parameter_groups(model, cfg.weight_decay)
    if isinstance(cfg, AdamW):
        on_gpu = next(model.parameters()).is_cuda  # its step count too, for a CUDA graph
        return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True, capturable=on_gpu)
    return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.momentum > 0, fused=True)


class EMA:
    """A shadow of the model, `shadow = decay * shadow + (1 - decay) * model` after each step; batch-norm statistics too."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, rate: Tensor) -> None:
        """rate (): 1 - decay, on the model's device."""
        ours, theirs = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        for b, a in zip(self.model.buffers(), model.buffers(), strict=True):
            if b.is_floating_point():
                ours.append(b)
                theirs.append(a)
            else:
                b.copy_(a)  # batch norm's counter
        change = torch._foreach_sub(theirs, ours)
        torch._foreach_mul_(change, rate)
        torch._foreach_add_(ours, change)
