"""Units, phases, learning rate and EMA decay against hand-worked numbers and torch's schedulers."""

from __future__ import annotations

import pytest
import torch

from vitlab import config
from vitlab.config import EMA, Length, Phase
from vitlab.paths import EXPERIMENTS
from vitlab.train import schedule


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (None, 0),
        (Length(epochs=1.5), 15),
        (Length(steps=7), 7),
        (Length(steps=700), 100),
        (Length(percent=5), 5),
        (Length(percent=100), 100),
    ],
)
def test_units_become_steps_once(length: Length | None, expected: int) -> None:
    assert schedule.steps(length, total=100, per_epoch=10) == expected


def test_phases_of_the_distillation_report() -> None:
    """300 epochs of 247 steps, the last 15 clean: the clean phase starts with epoch 286."""
    phases = (Phase(name="strong"), Phase(name="clean", percent=5))
    ends = schedule.phase_ends(phases, 300 * 247, 247)
    assert ends == [285 * 247, 300 * 247]
    assert schedule.phase_at(285 * 247 - 1, phases, ends).name == "strong"
    assert schedule.phase_at(285 * 247, phases, ends).name == "clean"


def test_whole_epochs_before_a_phase_ends() -> None:
    cfg = config.load(EXPERIMENTS / "06_kd_r50_class_attention.yaml").config
    assert schedule.whole_epochs(cfg, 47_500) == [285, 300]
    short = config.load(EXPERIMENTS / "06_kd_r50_class_attention.yaml", sets=("train.epochs=6",)).config
    assert schedule.whole_epochs(short, 47_500) == [5, 6]  # a tail of 0.3 epochs begins within the sixth
    one = config.load(EXPERIMENTS / "06_kd_r50_class_attention.yaml", sets=("train.epochs=1",)).config
    assert schedule.whole_epochs(one, 47_500) == [0, 1]


def test_every_step_has_a_phase_whatever_rounds() -> None:
    for total in range(1, 40):
        phases = tuple(Phase(name=str(i), percent=p) for i, p in enumerate((33.0, 33.0, 34.0)))
        ends = schedule.phase_ends(phases, total, per_epoch=1)
        assert ends[-1] == total
        assert ends == sorted(ends)
        assert all(schedule.phase_at(s, phases, ends) in phases for s in range(total))


def test_learning_rate_equals_torchs_schedulers() -> None:
    """Warm-up of 5 steps and a cosine, against torch's CosineAnnealingLR over what is left."""
    total, warmup, lr = 50, 5, 0.1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - warmup)
    expected = [lr * (s + 1) / warmup for s in range(warmup)]
    for _ in range(total - warmup):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    got = [lr * schedule.lr_factor(s, total, warmup) for s in range(total)]
    assert got == pytest.approx(expected, abs=1e-12)


def test_ema_decay_is_linear() -> None:
    ema = EMA(start=0.995, end=0.9995)
    assert schedule.ema_decay(0, 101, ema) == 0.995
    assert schedule.ema_decay(50, 101, ema) == pytest.approx(0.99725)
    assert schedule.ema_decay(100, 101, ema) == pytest.approx(0.9995)


def test_an_ema_decay_without_a_start_is_at_its_end_from_the_first_step() -> None:
    """To the last bit: start + (end - start) * share would round."""
    ema = EMA(end=0.9995)
    assert ema.start is None
    assert {schedule.ema_decay(s, 101, ema) for s in range(101)} == {0.9995}
    assert schedule.ema_decay(0, 1, ema) == 0.9995
