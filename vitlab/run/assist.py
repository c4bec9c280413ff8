"""What a run's other processes do, where torchrun has started several: their part of each run that the first process names, no writing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from vitlab.data import dataset
from vitlab.errors import Lost
from vitlab.run import execute
from vitlab.run.plan import Run
from vitlab.run.signals import on_signals, stop_after_step
from vitlab.train import distributed, loop, machine
from vitlab.train.loop import Stop
from vitlab.train.meter import Meter
from vitlab.train.objective import CrossEntropy, Distillation


class _Nothing:
    """A journal and a progress bar of which nothing is kept."""

    def append(self, kind: str, **fields: Any) -> None: ...
    def truncate(self, size: int) -> None: ...
    def sync(self) -> None: ...
    def size(self) -> int:
        return 0

    def step(self, done: int, total: int, loss: float, top1: float) -> None: ...
    def epoch(self, row: dict[str, float]) -> None: ...


def together(command: Callable[[], int]) -> int:
    """Carry out `command` in the first of torchrun's processes, and in the others their part of its runs; return the exit code.

    Where `command` raises, the others are not told: they notice when this process ends.
    """
    distributed.start()
    if distributed.rank() > 0:
        return _assist()
    code = command()
    distributed.told(None)
    distributed.end()
    return code


def _assist() -> int:
    try:
        with distributed.noticing_loss():
            while (run := distributed.told()) is not None:
                stop = Stop()  # the first process has the deadline
                # It is interrupted, or diverges, together with the first process, which says so
                with on_signals(stop_after_step(stop, aloud=False)), contextlib.suppress(loop.Interrupted, loop.Diverged):
                    _train(run, stop)
    except Lost:  # the first process tells, or torchrun
        return 1
    distributed.end()
    return 0


def _train(run: Run, stop: Stop) -> None:
    """Do this process's part of execute.execute, in the same order."""
    cfg, where = run.resolved.config, machine.device()
    data = dataset.load(run.source, cfg.data, where)
    objective: CrossEntropy | Distillation = CrossEntropy()
    model = execute.build_model(cfg, len(data.classes), run.seed, where)
    if run.teacher is not None:
        teacher = execute.load_weights(run.teacher, where)
        execute.validation_logits(teacher, data, cfg)
        objective = execute.distillation(cfg, teacher, data)
    nothing = _Nothing()
    trained = loop.train(
        cfg, data, model, objective,
        seed=run.seed, folder=run.folder, journal=nothing, meter=Meter(where, run.step_flops, 1.0), bar=nothing, stop=stop,
        part={}, covered=lambda size: None,
    )  # fmt: skip
    execute.test_logits(model, trained.ema, data, cfg)
