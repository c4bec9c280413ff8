"""What a GPU needs of a step, seen without one: nothing in it waits for the device, and its forward compiles whole."""

from __future__ import annotations

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode  # torch has it nowhere else

from vitlab import config
from vitlab.data.dataset import Dataset
from vitlab.models import registry
from vitlab.paths import EXPERIMENTS
from vitlab.train import optim
from vitlab.train.meter import Meter
from vitlab.train.objective import Distillation
from vitlab.train.step import Step

# each of these tells the host a value or a size that only the device knows
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "repeat_interleave", "equal"}


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}  # of each operation, where it was called first

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in self.names:
            self.names[name] = "".join(traceback.format_stack(limit=6)) if name in WAITING else ""
        return func(*args, **(kwargs or {}))


def test_the_check_sees_a_wait() -> None:
    with Operations() as seen:
        assert torch.ones(()).item() == 1
    assert seen.names.keys() & WAITING


def test_no_operation_of_a_step_waits_for_the_device(
    tiny: config.Experiment, tiny_data: Dataset, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Augmentation with all it has, a student with its teacher, clipping, averages. The optimizer's fused kernel reads its
    learning rate on the device; the CPU's version of it reads it on the host, and is left out."""
    model = registry.build(tiny.model, 4).train()
    teacher = registry.build(config.ResNet(name="resnet", depth=18, width=8), 4)
    optimizer = optim.build(tiny.optim, model)
    monkeypatch.setattr(optimizer, "step", lambda: None)
    ema = optim.EMA(model)
    meter = Meter(torch.device("cpu"), 1e9, 1e12)
    step = Step(tiny, tiny_data, model, Distillation(teacher, 2.0, 0.5), optimizer, ema, meter, batch=16, total=10)
    for phase in tiny.phases:
        step(torch.arange(16), phase, 1, 1e-3, 0.9)  # what is made once
        with Operations() as seen:
            step.run(phase)
        assert "convolution" in seen.names
        for name in seen.names.keys() & WAITING:
            pytest.fail(f"{name} waits for the device:\n{seen.names[name]}")
    assert set(step.sums) == {"loss", "ce", "kd", "grad_norm", "top1"}


def test_muon_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW's part is left out, as above."""
    model = registry.build(config.ViT(name="vit", dim=16, depth=2, heads=2, class_attention=1), 4)
    optimizer = optim.build(config.Muon(name="muon", lr=1e-3), model)
    monkeypatch.setattr(optimizer.adamw, "step", lambda: None)
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), 1e-3)
    model.forward_heads(torch.randn(2, 3, 32, 32)).sum().backward()
    with Operations() as seen:
        optimizer.step()
    assert "addmm" in seen.names  # Newton and Schulz's
    for name in seen.names.keys() & WAITING:
        pytest.fail(f"{name} waits for the device:\n{seen.names[name]}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["03_hybrid_r18", "06_kd_r50_class_attention", "teachers/resnet18"])
def test_the_forward_compiles_whole(name: str, as_on_a_gpu: None) -> None:
    """Without a break in the graph, and to the same numbers: PyTorch's encoder, ours with all it has, a ResNet."""
    cfg = config.load(EXPERIMENTS / f"{name}.yaml", "quick").config
    torch.manual_seed(0)
    model = registry.build(cfg.model, 10).train()
    images = torch.randn(4, 3, 32, 32)
    compiled = torch.compile(model.forward_heads, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    a = compiled(images)
    torch.manual_seed(1)
    b = model.forward_heads(images)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
