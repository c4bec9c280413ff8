"""The training loop: batch, loss, step, log, evaluate, checkpoint. It does not know what is trained or why."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitlab.config import Experiment
from vitlab.data.dataset import Dataset
from vitlab.data.rng import epoch_order, seed_for
from vitlab.errors import UserError
from vitlab.train import checkpoint, distributed, evaluate, machine, optim, schedule
from vitlab.train.meter import Meter
from vitlab.train.step import Step

SAVING_SHARE = 0.01  # of the time, at most, goes into checkpoints
WINDOW = {"cpu": 10, "cuda": 50}  # steps between two readings of the loss: each makes a GPU wait


class Interrupted(Exception):
    """A signal or the deadline stopped the training after the current step, with everything checkpointed. args[0] is the signal, as from
    Stop.asked().
    """


class Diverged(Exception):
    """The loss, the gradients or the weights are no longer finite. The message says where and what to try."""


class Journal(Protocol):
    """What the loop needs of a run's journal (track.journal.Journal). What is measured goes there before anything else."""

    def append(self, kind: str, **fields: Any) -> None: ...
    def truncate(self, size: int) -> None: ...
    def sync(self) -> None: ...
    def size(self) -> int: ...


class Bar(Protocol):
    """What the loop needs of a progress display (run.progress.RunBar)."""

    def step(self, done: int, total: int, loss: float, top1: float) -> None: ...
    def epoch(self, row: dict[str, float]) -> None: ...


@dataclass
class Stop:
    """Reasons to stop between two steps: a signal, set by its handler, or a deadline."""

    signal: int | None = None
    deadline: float = math.inf  # on the clock of time.monotonic()

    def asked(self) -> int | None:
        """Return the signal that asks to stop, SIGALRM for the deadline; None to go on."""
        if self.signal is None and time.monotonic() >= self.deadline:
            return signal.SIGALRM
        return self.signal


@dataclass
class Trained:
    """What a training leaves besides the model: the averaged weights, a row per epoch, and its time in seconds."""

    ema: optim.EMA | None
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    parts: list[dict[str, Any]] = field(default_factory=list)  # where and with what code it was trained, one after the other
    after: dict[str, float] = field(default_factory=dict)  # seconds by phase since the last epoch's row


def train(
    cfg: Experiment,
    data: Dataset,
    model: nn.Module,
    objective: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]],
    *,
    seed: int,
    folder: Path,
    journal: Journal,
    meter: Meter,
    bar: Bar,
    stop: Stop,
    part: dict[str, Any],
    covered: Callable[[int], None],
) -> Trained:
    """Train `model` in place, resuming from `folder` where it holds a checkpoint, and return what else the training left.

    `objective(images, heads, targets)` gives named loss terms, see objective.py. `seed` decides the order of images and their augmentation.
    `part` says where and with what code this is done; where a resumed training began otherwise, the result has both.

    A checkpoint is written at the end of an epoch, unless the last one is so recent that saving would take more than SAVING_SHARE of the
    time. One is always written at the end and before stopping. After each, `covered(size)` is called with the journal's size in bytes that
    the checkpoint refers to.

    Of several processes all call this, with the same checkpoints at hand, and the first one writes.

    Raises Interrupted where `stop` asks to stop, Diverged, and UserError for a checkpoint of another run, and for processes that find
    different checkpoints.
    """
    device = data.train_images.device
    batch = min(cfg.train.batch_size, len(data.train_labels))
    per_epoch = schedule.epoch_steps(cfg, len(data.train_labels))
    total = cfg.train.epochs * per_epoch
    warmup = schedule.steps(cfg.optim.warmup, total, per_epoch)
    phase_ends = schedule.phase_ends(cfg.phases, total, per_epoch)
    window = min(per_epoch, WINDOW[device.type])

    optimizer = optim.build(cfg.optim, model)
    out = Trained(ema=optim.EMA(model) if cfg.ema else None)
    first, sums, counted = 0, {}, {}

    # Resume order: weights, their average, optimizer, dropout's generators, the epoch's sums; then the journal is cut to
    # what the checkpoint covers, so that no step is in it twice. Data order and augmentation are functions of the step.
    state, damaged = checkpoint.load(folder, device)
    if state is None:
        journal.truncate(0)  # of an attempt that was killed before its first checkpoint
        journal.append("event", text=f"started on {device}")
    else:
        with checkpoint.restoring(folder):
            model.load_state_dict(state["model"])
            if out.ema:
                out.ema.model.load_state_dict(state["ema"])
            optimizer.load_state_dict(state["optimizer"])
            first, sums, counted = state["step"], state["sums"], state["counted"]
            out.history, out.seconds, journal_size = state["history"], state["seconds"], state["journal"]
            out.parts = state.get("parts", [])  # earlier versions did not keep them
        journal.truncate(journal_size)
        journal.append("event", text=f"resumed at step {first} of {total}")
    for line in damaged:
        journal.append("event", text=line)
    if part not in out.parts[-1:]:
        out.parts.append(part)
    if len(set(distributed.every(first))) > 1:
        raise UserError(f"{folder}: not every process finds the same checkpoint; runs must be in a folder that all machines share")
    states = [] if state is None else [state["rng"], *state.get("rng_of_others", [])]
    if distributed.rank() < len(states):
        _set_rng(states[distributed.rank()], device)
    elif distributed.rank() > 0:  # or all processes would drop the same activations
        torch.manual_seed(seed_for(seed, f"rank {distributed.rank()}", first))

    one_step = Step(cfg, data, model, objective, optimizer, out.ema, meter, batch, total)
    one_step.sums |= sums
    clock = saved = time.perf_counter()
    saving = 0.0  # seconds that the last checkpoint took
    meter.start(counted)
    for step in range(first, total):
        epoch, at = divmod(step, per_epoch)
        if at == 0 or step == first:
            order = epoch_order(len(data.train_labels), seed, epoch).to(device)
            model.train()
        phase = schedule.phase_at(step, cfg.phases, phase_ends)
        lr = cfg.optim.lr * schedule.lr_factor(step, total, warmup)
        decay = schedule.ema_decay(step, total, cfg.ema) if cfg.ema else 0.0
        one_step(order[at * batch : (at + 1) * batch], phase, seed_for(seed, "augment", step), lr, decay)

        stopping = distributed.asked(stop.asked())  # asked once a step, so that no step is saved whose loss was not looked at
        if (at + 1) % window == 0 or at + 1 == per_epoch or stopping is not None:
            means = {name: value / (at + 1) for name, value in distributed.mean(one_step.sums).items()}
            if not all(map(math.isfinite, means.values())):
                raise Diverged(_divergence(means, step, at % window, lr))
            bar.step(step + 1, total, means["loss"], means["top1"])
            meter.lap("tracking")

        if at + 1 == per_epoch:
            row = {"epoch": epoch + 1, "lr": lr}
            row |= {f"train/{name}": value for name, value in means.items()}
            row |= _validate(model, data, cfg, "validation/")
            if out.ema:
                row |= _validate(out.ema.model, data, cfg, "validation/ema_")
                row["ema_decay"] = decay
            meter.lap("evaluation")
            row |= meter.epoch(per_epoch * batch)
            out.history.append(row)
            journal.append("metrics", step=epoch + 1, values=row | machine.system_metrics())
            bar.epoch(row)
            for value in one_step.sums.values():
                value.zero_()
            meter.lap("tracking")

        now = time.perf_counter()
        due = at + 1 == per_epoch and distributed.told(step + 1 == total or (now - saved) * SAVING_SHARE >= saving)
        if due or stopping is not None:
            out.seconds, clock = out.seconds + now - clock, now
            if not _finite(model):
                raise Diverged(_divergence(means, step, at % window, lr))
            journal.sync()  # the checkpoint refers to its size
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "ema": out.ema.model.state_dict() if out.ema else None,
                "optimizer": optimizer.state_dict(),
                "rng": _get_rng(device),
                "rng_of_others": distributed.every(_get_rng(device))[1:],  # of the other processes
                "sums": {name: torch.tensor(value) for name, value in distributed.mean(one_step.sums).items()},
                "counted": meter.read(),
                "history": out.history,
                "seconds": out.seconds,
                "parts": out.parts,
                "journal": journal.size(),
            }
            if distributed.rank() == 0:
                checkpoint.save(folder, state)
            saved = time.perf_counter()
            saving = saved - now
            meter.lap("checkpoint")
            covered(journal.size())
        if stopping is not None:
            raise Interrupted(stopping)
    out.after = meter.read()
    return out


def _validate(model: nn.Module, data: Dataset, cfg: Experiment, prefix: str) -> dict[str, float]:
    heads = evaluate.logits(model, data.validation_images, data.mean, data.std, cfg.train.eval_batch_size)
    scores = evaluate.accuracy(heads.mean(0), data.validation_labels)
    return {f"{prefix}top1": scores["top1"], f"{prefix}loss": scores["loss"]}


def _finite(model: nn.Module) -> bool:
    """Return whether all weights are finite. A step that is too large leaves infinite weights behind a finite loss and finite gradients."""
    return all(value.isfinite().all() for value in model.state_dict().values())


def _get_rng(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_rng(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)


def _divergence(means: dict[str, Any], step: int, back: int, lr: float) -> str:
    terms = ", ".join(f"{name} {value:g}" for name, value in means.items())
    return (
        f"the loss, its gradient or the weights are no longer finite: first seen between steps {step - back} and {step} (epoch's means: {terms}; lr {lr:g}). "
        "The last good checkpoint is kept. Try a lower optim.lr, a longer optim.warmup, optim.grad_clip=1.0 or train.precision=fp32"
    )
