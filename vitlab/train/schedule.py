"""Everything that depends on the training step, as pure functions of it: units, phases, learning rate, EMA decay."""

from __future__ import annotations

import math

from vitlab.config import EMA, Experiment, Length, Phase


def steps(length: Length | Phase | None, total: int, per_epoch: int) -> int:
    """Return `length` in optimizer steps, rounded, given `total` steps in all and `per_epoch` in an epoch; 0 for None."""
    if length is None:
        return 0
    if length.epochs is not None:
        return min(total, round(length.epochs * per_epoch))
    if length.percent is not None:
        return round(length.percent / 100 * total)
    assert isinstance(length, Length)
    assert length.steps is not None
    return min(total, length.steps)


def phase_ends(phases: tuple[Phase, ...], total: int, per_epoch: int) -> list[int]:
    """Return the step at which each phase ends (exclusive). The one phase without a length takes what the others leave."""
    given = [steps(p, total, per_epoch) if p.epochs is not None or p.percent is not None else None for p in phases]
    rest = total - sum(n for n in given if n is not None)
    ends, end = [], 0
    for n in given:
        end = min(total, end + (max(0, rest) if n is None else n))
        ends.append(end)
    ends[-1] = total  # percentages that round down leave a step or two over
    return ends


def epoch_steps(cfg: Experiment, images: int) -> int:
    """Return the optimizer steps of an epoch on `images` images. What is left of the last batch is dropped; the next epoch's order is another."""
    return images // min(cfg.train.batch_size, images)


def whole_epochs(cfg: Experiment, images: int) -> list[int]:
    """Return, for each phase, how many whole epochs are over when it ends, in a training on `images` images."""
    per_epoch = epoch_steps(cfg, images)
    return [end // per_epoch for end in phase_ends(cfg.phases, cfg.train.epochs * per_epoch, per_epoch)]


def phase_at(step: int, phases: tuple[Phase, ...], ends: list[int]) -> Phase:
    """Return the phase that `step` is in; `ends` as from `phase_ends`."""
    return next(p for p, end in zip(phases, ends, strict=True) if step < end)


def lr_factor(step: int, total: int, warmup: int) -> float:
    """Return the learning rate's factor: linear warm-up over `warmup` steps, then a cosine to 0 at `total` (Loshchilov & Hutter 2017)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def ema_decay(step: int, total: int, ema: EMA) -> float:
    """Return the EMA decay: linear from `start` at the first step to `end` at the last (distillation report, section 6)."""
    start = ema.end if ema.start is None else ema.start
    return start + (ema.end - start) * step / max(1, total - 1)
