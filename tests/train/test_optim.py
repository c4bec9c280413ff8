"""Parameter groups and EMA against timm."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from vitlab import config
from vitlab.models import registry
from vitlab.train import checkpoint, optim

VIT = config.ViT(name="vit", dim=32, depth=3, heads=2, layer_scale=0.1, position="relative", class_attention=1, distill_token=True)


def test_decay_is_for_matrices_alone() -> None:
    model = registry.build(VIT, 10)
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
    model = registry.build(config.ViT(name="vit", dim=32, depth=2, heads=2), 10)
    _, plain = optim.parameter_groups(model, 0.05)
    assert any(p is model.position for p in plain["params"])


def test_ema_equals_timms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
    ours, theirs = optim.EMA(model), ModelEmaV3(copy.deepcopy(model), decay=0.9, foreach=False)
    for decay in (0.9, 0.99, 0.3, 0.0, 0.999):  # it changes from step to step
        model(torch.randn(4, 3, 8, 8))  # moves the batch-norm statistics
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ours.update(model, torch.tensor(1 - decay))
        theirs.decay = decay
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


def gradients(model: nn.Module, step: int) -> None:
    """From images that are a function of the step, so that a run can be cut anywhere."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
    model.forward_heads(images).square().mean().backward()


MUON = config.Muon(name="muon", lr=0.02, weight_decay=0.1, momentum=0.9, betas=(0.8, 0.99))
HYBRID = config.ViT(name="vit", dim=32, depth=1, heads=2, stem="resnet18", stem_width=8, encoder="torch")


@pytest.mark.parametrize("vit", [VIT, HYBRID], ids=["explicit", "torch"])
def test_muon_is_torchs_muon_and_adamw(vit: config.ViT) -> None:
    """Stepped by hand on the same gradients. Muon has the blocks' linear maps, AdamW the rest."""
    torch.manual_seed(0)
    ours = registry.build(vit, 10)
    theirs = copy.deepcopy(ours)
    optimizer = optim.build(MUON, ours)
    named = dict(theirs.named_parameters())
    hidden = {f"encoder.{n}.weight" for n, m in theirs.encoder.named_modules() if isinstance(m, nn.Linear)}
    hidden |= {n for n in named if n.endswith("in_proj_weight")}  # PyTorch's attention has a bare matrix there
    assert len(hidden) == (2 * 4 + 7 if vit is VIT else 4)
    plain = {n for n, p in named.items() if p.ndim == 1 or n == "tokens" or "position" in n}
    muon = torch.optim.Muon([named[n] for n in hidden], lr=1.0, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [p for n, p in named.items() if n not in hidden | plain], "weight_decay": 0.1},
        {"params": [named[n] for n in plain], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.8, 0.99), foreach=False)
    rate = torch.zeros(())
    for group in optimizer.param_groups:
        group["lr"] = rate  # as Step does
    for i, lr in enumerate((0.001, 0.02, 0.02, 0.005)):
        gradients(ours, i)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = p.grad.clone()
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = lr
        rate.fill_(lr)
        optimizer.step()
        muon.step()
        adamw.step()
        optimizer.zero_grad()
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


def test_muon_resumes_bit_for_bit(tmp_path: Path) -> None:
    """By way of a checkpoint, and into another model's optimizer."""

    def start() -> tuple[nn.Module, optim.Muon]:
        torch.manual_seed(0)
        model = registry.build(VIT, 10)
        return model, optim.build(MUON, model)

    def steps(model: nn.Module, optimizer: optim.Muon, which: range) -> None:
        rate = torch.zeros(())
        for group in optimizer.param_groups:
            group["lr"] = rate
        for i in which:
            gradients(model, i)
            rate.fill_(0.02 / (i + 1))
            optimizer.step()
            optimizer.zero_grad()

    whole, first, second = start(), start(), start()
    steps(*whole, range(5))
    steps(*first, range(2))
    checkpoint.save(tmp_path, {"model": first[0].state_dict(), "optimizer": first[1].state_dict()})
    state, damaged = checkpoint.load(tmp_path, torch.device("cpu"))
    assert not damaged
    second[0].load_state_dict(state["model"])
    second[1].load_state_dict(state["optimizer"])
    steps(*second, range(2, 5))
    for (name, a), b in zip(whole[0].named_parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b), name


def test_muon_clears_every_gradient() -> None:
    model = registry.build(VIT, 10)
    optimizer = optim.build(MUON, model)
    model.forward_heads(torch.zeros(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_averages_are_the_same_together_and_one_by_one() -> None:
    """A GPU's way, of few kernels, against a CPU's; the rate is read where it lies, not kept."""
    torch.manual_seed(0)
    ours, theirs = ([torch.randn(3, 4), torch.randn(5)] for _ in range(2))
    others, rate = [t.clone() for t in ours], torch.zeros(())
    for value in (0.5, 0.005, 0.0005):
        rate.fill_(value)
        optim.lerp_each(ours, theirs, rate)
        optim.lerp_together(others, theirs, rate)
    for a, b in zip(ours, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
