"""What is compiled for a CPU computes what is not compiled: a student's step, dropout included, and a teacher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vitlab import config
from vitlab.data.dataset import Dataset
from vitlab.models import registry
from vitlab.train import machine, optim
from vitlab.train.meter import Meter
from vitlab.train.objective import CrossEntropy, prepare_teacher
from vitlab.train.step import Step

CPU = torch.device("cpu")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    if trouble := machine.compiler_trouble(CPU):
        pytest.skip(trouble)
    monkeypatch.setattr(machine, "COMPILE_FROM", {"cpu": 100})


def gradients(cfg: config.Experiment, data: Dataset, dropout: float, steps: int) -> dict[str, Tensor]:
    """Of the second of two steps of a training with `steps` steps, and the losses' sum. DropPath draws otherwise when compiled, so it is off."""
    model = cfg.model.model_copy(update={"dropout": dropout, "drop_path": 0.0})
    cfg = cfg.model_copy(update={"model": model, "train": cfg.train.model_copy(update={"precision": "fp32"})})
    torch.manual_seed(1)
    model = registry.build(cfg.model, len(data.classes)).train()
    optimizer = optim.build(cfg.optim, model)
    optimizer.step = optimizer.zero_grad = lambda: None
    step = Step(cfg, data, model, CrossEntropy(), optimizer, None, Meter(CPU, 1.0, 1.0), batch=16, total=steps)
    for seed in range(2):
        model.zero_grad()
        step(torch.arange(16 * seed, 16 * seed + 16), cfg.phases[0], seed, 0.0, 0.0)
    return {name: p.grad for name, p in model.named_parameters()} | {"loss": step.sums["loss"]}


@pytest.mark.parametrize("dropout", [0.05, 0.016])  # with 8 and with 16 random bits an element
def test_a_compiled_step_drops_what_an_eager_one_drops(dropout: float, tiny: config.Experiment, tiny_data: Dataset) -> None:
    eager, compiled, without = (gradients(tiny, tiny_data, *case) for case in ((dropout, 99), (dropout, 100), (0.0, 99)))
    for name, expected in eager.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    hidden = "encoder.0.mlp.fc2.weight"
    assert (without[hidden] - eager[hidden]).abs().max() > 0.01 * eager[hidden].abs().max(), "dropout makes no difference"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("depth", [18, 50])
def test_a_compiled_teacher_answers_as_it_did(depth: int, precision: str) -> None:
    torch.manual_seed(1)
    teacher = registry.build(config.ResNet(name="resnet", depth=depth, width=8), 10).eval()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    images = torch.randn(16, 3, 32, 32)
    prepared = prepare_teacher(teacher, precision, CPU, 100)
    assert prepared is not teacher
    assert prepare_teacher(teacher, precision, CPU, 99) is teacher
    with torch.no_grad():
        exact = teacher(images)
        with machine.autocast_for(precision, CPU):
            before, after = teacher(images), prepared(images)
    error = (before - exact).std()  # bf16's own
    assert (after - exact).std() <= (1.5 * error if precision == "bf16" else 1e-5 * exact.std())
