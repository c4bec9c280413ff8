"""Parameter groups, the optimizers, and the exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitlab import config


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return two parameter groups: matrices and kernels with weight decay; biases, norms, LayerScale, tokens, positions, tables without.

    As in timm and big_vision. What has one dimension is exempt, and what the model names in `no_weight_decay() -> set[str]`.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    decayed, plain = [], []
    for name, p in model.named_parameters():
        (plain if p.ndim <= 1 or name in exempt else decayed).append(p)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class Muon:
    """torch.optim.Muon for the matrices of a ViT's blocks and torch.optim.AdamW for everything else, used as one optimizer.

    Muon's updates are scaled to AdamW's size, so that one learning rate and one weight decay serve both.
    """

    def __init__(self, cfg: config.Muon, model: nn.Module) -> None:
        decayed, plain = parameter_groups(model, cfg.weight_decay)
        blocks = {id(p) for p in model.encoder.parameters()}
        self.matrices = [p for p in decayed["params"] if id(p) in blocks]
        decayed["params"] = [p for p in decayed["params"] if id(p) not in blocks]
        self.muon = torch.optim.Muon(
            self.matrices, lr=1.0, weight_decay=cfg.weight_decay, momentum=cfg.momentum, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = AdamW([decayed, plain], cfg)

    @property
    def param_groups(self) -> list[dict]:
        """Return AdamW's groups. Muon takes its learning rate from the first of them."""
        return self.adamw.param_groups

    @torch.no_grad()
    def step(self) -> None:
        # torch's Muon wants its learning rate as a number on the host, and would make a GPU wait for it. Its step, decay
        # included, is proportional to the rate: so take it at a rate of 1, then move the weights by `lr` of it.
        before = [p.clone() for p in self.matrices]
        self.muon.step()
        for p, start in zip(self.matrices, before, strict=True):
            p.copy_(start.lerp(p, self.param_groups[0]["lr"]))
        self.adamw.step()

    def zero_grad(self) -> None:
        self.muon.zero_grad()
        self.adamw.zero_grad()

    def state_dict(self) -> dict[str, dict]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


class AdamW(torch.optim.AdamW):
    """torch's AdamW, fused, on a GPU as a CUDA graph can hold it; what was saved on another kind of device is taken up as on this one."""

    def __init__(self, groups: list[dict], cfg: config.AdamW | config.Muon) -> None:
        self.on_gpu = groups[0]["params"][0].is_cuda  # capturable: its step count is on the GPU too, for a CUDA graph
        super().__init__(groups, lr=cfg.lr, betas=cfg.betas, fused=True, capturable=self.on_gpu)

    def load_state_dict(self, state: dict) -> None:
        """Restore a state. Its groups say whether it was saved on a GPU, and torch would keep that."""
        groups = [group | {"capturable": self.on_gpu} for group in state["param_groups"]]
        super().load_state_dict(state | {"param_groups": groups})


def adamw(cfg: config.AdamW, model: nn.Module) -> AdamW:
    """Return AdamW over `parameter_groups`."""
    return AdamW(parameter_groups(model, cfg.weight_decay), cfg)


def sgd(cfg: config.SGD, model: nn.Module) -> torch.optim.SGD:
    """Return torch's SGD over `parameter_groups`, with Nesterov momentum."""
    groups = parameter_groups(model, cfg.weight_decay)
    return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.momentum > 0, fused=True)


BUILDERS = {  # by the name of its section, which stands in OPTIMS of vitlab/config/schema.py: (section, model) -> optimizer
    "adamw": adamw,
    "sgd": sgd,
    "muon": Muon,
}


def build(cfg: config.Schema, model: nn.Module) -> torch.optim.Optimizer | Muon:
    """Return the optimizer that an experiment's section `optim` describes."""
    return BUILDERS[cfg.name](cfg, model)


def lerp(ours: list[Tensor], theirs: list[Tensor], rate: Tensor) -> None:
    """Move each of `ours` towards its like in `theirs` by the share `rate` (), in place."""
    (lerp_together if rate.is_cuda else lerp_each)(ours, theirs, rate)


def lerp_each(ours: list[Tensor], theirs: list[Tensor], rate: Tensor) -> None:
    """Do lerp() one tensor after the other."""
    for a, b in zip(ours, theirs, strict=True):
        a.lerp_(b, rate)


def lerp_together(ours: list[Tensor], theirs: list[Tensor], rate: Tensor) -> None:
    """Three kernels over all tensors: a GPU takes longer to start a kernel for each than to add them up."""
    # torch's own lerp over many takes one number from the host, which a CUDA graph would keep for ever, or a rate per element
    difference = torch._foreach_sub(theirs, ours)
    torch._foreach_mul_(difference, rate)
    torch._foreach_add_(ours, difference)


class EMA:
    """A shadow of the model, `shadow = decay * shadow + (1 - decay) * model` after each step; batch-norm statistics too.

    Not torch.optim.swa_utils.AveragedModel: at each update it asks the host how many there were, so no CUDA graph can hold it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, rate: Tensor) -> None:
        """Move the average towards `model` by `rate`, () on the model's device: 1 - decay."""
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        lerp([ours for ours, _ in averaged], [theirs for _, theirs in averaged], rate)
        for ours, theirs in pairs:
            if not ours.is_floating_point():
                ours.copy_(theirs)  # batch norm's counter
