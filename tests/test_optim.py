"""Parameter groups and EMA against timm."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from vitlab import config, models, optim

VIT = config.ViT(name="vit", dim=32, depth=3, heads=2, layer_scale=0.1, position="relative", class_attention=1, distill_token=True)


def test_decay_is_for_matrices_alone() -> None:
    model = models.build(VIT, 10)
    decayed, plain = optim.parameter_groups(model, 0.05)
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    for p in decayed["params"]:
        assert names[id(p)].endswith("weight")
        assert p.ndim >= 2
    exempt = {names[id(p)] for p in plain["params"]}
    assert "tokens" in exempt
    assert any("position" in n for n in exempt)
    assert all(n in exempt for n in names.values() if n.endswith(("bias", "gamma")) or "norm" in n)


def test_learned_positions_are_not_decayed() -> None:
    model = models.build(config.ViT(name="vit", dim=32, depth=2, heads=2), 10)
    _, plain = optim.parameter_groups(model, 0.05)
    assert any(p is model.position for p in plain["params"])


def test_ema_equals_timms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
    ours, theirs = optim.EMA(model), ModelEmaV3(copy.deepcopy(model), decay=0.9, foreach=False)
    for _ in range(5):
        model(torch.randn(4, 3, 8, 8))  # moves the batch-norm statistics
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ours.update(model, torch.tensor(1 - 0.9))
        theirs.update(model)
    for (name, a), b in zip(ours.model.state_dict().items(), theirs.module.state_dict().values(), strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, msg=name)
        else:
            assert torch.equal(a, model.state_dict()[name])


@pytest.mark.parametrize("cfg", [config.AdamW(name="adamw", lr=1e-3), config.SGD(name="sgd", lr=0.1)], ids=lambda c: c.name)
def test_optimizers_equal_torchs_plain_ones(cfg: config.AdamW | config.SGD) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    reference = copy.deepcopy(model)
    ours = optim.build(cfg, model)
    groups = [{"params": [reference.weight], "weight_decay": cfg.weight_decay}, {"params": [reference.bias], "weight_decay": 0.0}]
    if cfg.name == "adamw":
        theirs = torch.optim.AdamW(groups, lr=1e-3, foreach=False)
    else:
        theirs = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, foreach=False)
    for _ in range(4):
        x = torch.randn(8, 4)
        for m, o in ((model, ours), (reference, theirs)):
            m(x).square().sum().backward()
            o.step()
            o.zero_grad()
    torch.testing.assert_close(model.weight, reference.weight)
    torch.testing.assert_close(model.bias, reference.bias)
