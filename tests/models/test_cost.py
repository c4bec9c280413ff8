"""Cost formulas against the models themselves: parameters counted, FLOPs by torch's counter."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitlab import config
from vitlab.models import cost
from vitlab.models.count import count
from vitlab.models.registry import build
from vitlab.paths import EXPERIMENTS


def vit(**changes: object) -> config.ViT:
    return config.ViT(**({"name": "vit", "dim": 32, "depth": 3, "heads": 4, "mlp_ratio": 2.0, "patch_size": 8} | changes))


GRID = [
    *(
        vit(stem=stem, stem_width=8, encoder="explicit", position=position, distill_token=distill, class_attention=last, layer_scale=scale)
        for stem in ("patch", "resnet18")
        for position in ("learned", "relative")
        for distill in (False, True)
        for last in (0, 2)
        for scale in (None, 1e-4)
    ),
    *(
        vit(stem="resnet18", stem_stages=2, stem_width=8, dim=dim, depth=depth, class_attention=depth - 1)
        for dim in (16, 32)
        for depth in (1, 2)
    ),
    *(vit(stem=stem, encoder="torch", stem_width=8, distill_token=distill) for stem in ("patch", "resnet18") for distill in (False, True)),
    *(vit(patch_size=patch, position=position, depth=1) for patch in (1, 2, 4, 16, 32) for position in ("learned", "relative")),
    vit(mlp_ratio=0.7, heads=1, dim=36, dropout=0.1, drop_path=0.1),
    *(config.ResNet(name="resnet", depth=depth, width=width) for depth in (18, 50) for width in (8, 12, 64)),
]


@pytest.mark.parametrize("cfg", GRID, ids=lambda c: "-".join(map(str, c.model_dump().values())))
def test_cost_is_the_models(cfg: config.ViT | config.ResNet) -> None:
    model = build(cfg, 7).eval()
    assert cost.parameters(cfg, 7) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    # The counter knows neither the CPU's fused attention nor the encoder's fast path: the first is switched off, the
    # second is not taken while gradients are on.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    assert cost.forward_flops(cfg, 7) == counter.get_total_flops()


@pytest.mark.parametrize("cfg", GRID[::3], ids=lambda c: "-".join(map(str, c.model_dump().values())))
def test_training_cost_is_the_steps(cfg: config.ViT | config.ResNet) -> None:
    """Forward and backward of the student and forward of a teacher, as the counter sees them."""
    model = build(cfg, 7).train()
    teacher = config.ResNet(name="resnet", depth=18, width=8)
    frozen = build(teacher, 7).eval().requires_grad_(False)
    images = torch.zeros(2, 3, 32, 32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        (model.forward_heads(images).sum() + frozen(images).sum()).backward()
    assert 2 * cost.training_flops(cfg, 7, cost.forward_flops(teacher, 7)) == counter.get_total_flops()


@pytest.mark.parametrize("cfg", GRID[::3], ids=lambda c: "-".join(map(str, c.model_dump().values())))
def test_a_model_without_a_formula_is_counted(cfg: config.ViT | config.ResNet) -> None:
    """What `count` gives the models of which a formula is known."""
    before = torch.get_rng_state()
    expected = cost.parameters(cfg, 7), cost.forward_flops(cfg, 7), cost.training_flops(cfg, 7)
    assert count(cfg, 7) == expected
    assert torch.equal(torch.get_rng_state(), before)


LATE = [
    vit(depth=depth, class_attention=last, stem=stem, stem_width=8, distill_token=True, position=position, patch_size=patch)
    for depth, last in ((6, 0), (6, 1), (6, 2), (6, 3), (4, 1), (2, 1), (1, 0))
    for stem, position, patch in (("patch", "learned", 8), ("patch", "relative", 4), ("resnet18", "learned", 8))
] + [vit(depth=6, class_attention=1, stem="resnet18", stem_stages=2, stem_width=8, distill_token=True)]


@pytest.mark.parametrize("cfg", LATE, ids=lambda c: f"{c.stem}{c.patch_size}-{c.depth}-{c.class_attention}")
def test_late_cost_is_the_last_blocks(cfg: config.ViT) -> None:
    """The last third of the blocks one by one, each on all tokens: the counter's FLOPs, whichever of them have class attention."""
    model = build(cfg, 7).eval()
    grid = (16 if cfg.stem_stages == 2 else 8) if cfg.stem == "resnet18" else 32 // cfg.patch_size
    tokens = torch.zeros(1, 2 + grid**2, cfg.dim)
    blocks = list(model.encoder)[-max(1, cfg.depth // 3) :]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for block in blocks:
            block(tokens)
    assert cost.late_flops(cfg) == counter.get_total_flops()


def test_known_sizes() -> None:
    """torchvision's published counts less the 7x7 stem, plus the 3x3 one, for ten classes; and the field's 1.11 GFLOP (0.56 GMAC)."""
    r18, r50 = (config.ResNet(name="resnet", depth=depth) for depth in (18, 50))
    assert cost.parameters(r18, 10) == 11_689_512 - 3 * 64 * (49 - 9) - 513_000 + 5_130
    assert cost.parameters(r50, 10) == 25_557_032 - 3 * 64 * (49 - 9) - 2_049_000 + 20_490
    assert cost.forward_flops(r18, 10) == pytest.approx(1.11e9, rel=0.01)
    assert cost.forward_flops(r50, 10) == pytest.approx(2.60e9, rel=0.01)


def test_the_distillation_student_has_the_reports_size() -> None:
    """10.6M parameters, in its "Model Comparison"."""
    student = config.load(EXPERIMENTS / "06_kd_r50_class_attention.yaml").config.model
    assert cost.parameters(student, 10) == pytest.approx(10.6e6, rel=0.005)


def test_cost_needs_no_torch() -> None:
    code = "import sys, vitlab.models.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
