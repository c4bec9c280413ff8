"""The first epochs of one experiment in a process of its own: `python -m benchmarks.first_epochs EXPERIMENT.yaml --profile full ...`.

The trainer itself trains, on the schedule of the whole run, until it is stopped. One line of JSON says what the machine is, another what
was measured: {"machine": {...}}, then {"row": {...}}, or {"error": text} and exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import peak_rss_mb
from vitlab import config
from vitlab.data import dataset, sources
from vitlab.run import execute, plan
from vitlab.track.journal import Journal
from vitlab.train import loop, machine, schedule
from vitlab.train.meter import TRAINING, Meter
from vitlab.train.objective import CrossEntropy, Distillation
from vitlab.train.step import WARM_UP

SETTLED = WARM_UP + 1  # steps of a phase until, on a GPU, its graph is captured and has run once
LATER = 2 * SETTLED  # steps that are taken of each later phase


class Watch(loop.Stop):
    """Measures in the calls that the trainer makes anyway, after each step, window, epoch and checkpoint; stops it after `steps` steps.

    starts: the steps at which phases begin. half: the number of steps after which `half_seconds` keeps the training seconds so far.
    """

    def __init__(self, meter: Meter, starts: set[int], half: int, steps: int) -> None:
        super().__init__()
        self.meter, self.starts, self.half, self.steps = meter, starts, half, steps
        self.done = 0
        self.first: dict[int, float] = {}  # seconds of a phase's first SETTLED steps, by the step at which it begins
        self.first_loss: float | None = None  # mean over the first window
        self.history: list[dict[str, float]] = []
        self.half_seconds = 0.0
        self._mark()

    def _mark(self) -> None:
        """Note the time where a phase begins, so that the evaluation and checkpoint before it are not counted."""
        if self.done in self.starts:
            machine.wait(self.meter.where)
            self.began = time.perf_counter()

    def asked(self) -> int | None:
        """Count a step; return the signal that stops the trainer after the last one."""
        self.done += 1
        start = self.done - SETTLED
        if start in self.starts:
            machine.wait(self.meter.where)
            self.first[start] = time.perf_counter() - self.began
        if self.done == self.half:
            seconds = self.meter.read()
            self.half_seconds = sum(seconds.get(phase, 0.0) for phase in TRAINING)
        self._mark()
        return signal.SIGALRM if self.done >= self.steps else None

    def step(self, done: int, total: int, loss: float, top1: float) -> None:
        """Keep the first window's mean loss."""
        if self.first_loss is None:
            self.first_loss = loss

    def epoch(self, row: dict[str, float]) -> None:
        """Keep an epoch's row of metrics."""
        self.history.append(row)
        self._mark()

    def covered(self, _size: int) -> None:
        """Mark the end of a checkpoint."""
        self._mark()


def brought_forward(cfg: config.Experiment, epochs: int, per_epoch: int) -> config.Experiment:
    """Return `cfg` with its first phase cut to `epochs` epochs, so that a few steps of each later phase follow in the same run.

    It must be the same run because what one phase leaves behind takes memory in the next. The schedule stays as long as it was, and with it
    the learning rate, the EMA decay and the choice to compile.
    """
    if len(cfg.phases) == 1 or epochs == cfg.train.epochs:
        return cfg
    lengths = [epochs, *[LATER / per_epoch] * (len(cfg.phases) - 2), None]
    phases = tuple(phase.model_copy(update={"epochs": n, "percent": None}) for phase, n in zip(cfg.phases, lengths, strict=True))
    return cfg.model_copy(update={"phases": phases})


def look(run: plan.Run, loaded: dataset.Dataset, epochs: int, folder: Path) -> dict[str, Any]:
    """Train the first `epochs` epochs in `folder` and return what they cost. A teacher is left untrained, which costs the same.

    Raises loop.Diverged.
    """
    where, classes = loaded.train_images.device, len(loaded.classes)
    cfg = run.resolved.config
    epochs = min(epochs, cfg.train.epochs)
    batch = min(cfg.train.batch_size, len(loaded.train_labels))
    per_epoch = len(loaded.train_labels) // batch
    total = cfg.train.epochs * per_epoch
    shortened = brought_forward(cfg, epochs, per_epoch)
    ends = schedule.phase_ends(shortened.phases, total, per_epoch)

    peak = machine.measured_peak(where, machine.precision(cfg.train.precision, where))
    if where.type == "cuda":  # the memory that this took is not the experiment's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = execute.build_model(cfg, classes, run.seed, where)
    objective: CrossEntropy | Distillation = CrossEntropy()
    if run.teacher is not None and cfg.distill is not None:
        teacher = execute.build_model(run.teacher.resolved.config, classes, run.seed, where)
        objective = execute.distillation(cfg, teacher, loaded)
    meter = Meter(where, run.step_flops, peak)
    watch = Watch(meter, {0, *ends[:-1]}, half=per_epoch // 2, steps=epochs * per_epoch + LATER * (len(cfg.phases) - 1))
    with contextlib.closing(Journal(folder / "journal.jsonl")) as journal, contextlib.suppress(loop.Interrupted):
        loop.train(
            shortened, loaded, model, objective,
            seed=run.seed, folder=folder, journal=journal, meter=meter, bar=watch, stop=watch, part={}, covered=watch.covered,
        )  # fmt: skip

    whole = watch.history[:epochs]
    steady = whole[1:] or whole
    keys = dict.fromkeys(key for row in steady for key in row if key.startswith("perf/seconds_"))
    seconds = {key.removeprefix("perf/seconds_"): statistics.median(row.get(key, 0.0) for row in steady) for key in keys}
    img_s = steady_rate(whole, watch.half_seconds, (per_epoch - watch.half) * batch)
    last_loss = whole[-1]["train/loss"]
    row = {
        "experiment": run.resolved.id,
        "parameters": run.params,
        "batch": batch,
        "schedule_epochs": cfg.train.epochs,
        "epochs": epochs,  # that were trained
        "images": per_epoch * batch,  # of an epoch
        "validation_images": len(loaded.validation_labels),
        "test_images": len(loaded.test_labels),
        "first_steps": [
            {"phase": schedule.phase_at(start, shortened.phases, ends).name, "steps": SETTLED, "seconds": s}
            for start, s in watch.first.items()
        ],
        "img_s": img_s,
        "mfu": 100 * img_s * run.step_flops / peak,  # percent
        "seconds": seconds,  # of an epoch, by phase; its checkpoint is the one before it
        "evaluation_seconds": seconds["evaluation"],  # of the validation split: the model, and its average where it has one
        "memory_mb": memory_mb(where),
        "loss": [watch.first_loss, last_loss],  # means over the first window of steps and over the last epoch; finite, or training stops
        "falling": watch.first_loss is not None and last_loss < watch.first_loss,
    }
    return row | {"projected_seconds": projected(row)}


def steady_rate(history: list[dict[str, float]], half_seconds: float, rest: int) -> float:
    """Return images per second: the median of the epochs after the first, or of a single epoch its second half.

    `rest` is the number of images in that half, which begins after `half_seconds` of training.
    """
    first, *others = history
    if others:
        return statistics.median(row["perf/img_s"] for row in others)
    return rest / (sum(first.get(f"perf/seconds_{phase}", 0.0) for phase in TRAINING) - half_seconds)


def projected(row: dict[str, Any]) -> float:
    """Return the seconds that the whole run would take.

    They are those of its epochs at the first phase's rate, each with its evaluation, of the test split, and of each phase's first steps as
    far as these are slower. Starting and ending the process is not included, nor are checkpoints, which take a hundredth at most.
    """
    epoch = row["images"] / row["img_s"] + row["evaluation_seconds"]
    test = row["evaluation_seconds"] * row["test_images"] / row["validation_images"]
    overhead = sum(phase["seconds"] - phase["steps"] * row["batch"] / row["img_s"] for phase in row["first_steps"])
    return row["schedule_epochs"] * epoch + test + overhead


def memory_mb(where: torch.device) -> dict[str, float]:
    """Return this process's peak memory in MB: allocated and reserved on a GPU, else resident."""
    if where.type == "cuda":
        return {"allocated": torch.cuda.max_memory_allocated() / 1e6, "reserved": torch.cuda.max_memory_reserved() / 1e6}
    return {"resident": peak_rss_mb()}


def about(where: torch.device) -> dict[str, Any]:
    """Return what the machine is: device, precision, threads, versions."""
    return {
        "device": machine.device_name(where),
        "precision": machine.precision("auto", where),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if where.type == "cuda" else None,
    }


def main() -> None:
    """Measure one experiment and write what was found to stdout, as JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_epochs", description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    args = parser.parse_args()

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # anything else that is printed, for example by a compiler, goes to stderr

    def tell(**values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        try:
            where = machine.device()
            tell(machine=about(where))
            source = sources.resolve(args.data, args.data_dir, args.profile)
            run = plan.make([args.experiment], args.profile, source, [0], (), Path(folder))[-1]  # behind its teachers
            tell(row=look(run, dataset.load(source, run.resolved.config.data, where), args.epochs, Path(folder)))
        except Exception as e:
            traceback.print_exc()
            tell(error=f"{type(e).__name__}: {' '.join(str(e).split())}")
            sys.exit(1)


if __name__ == "__main__":
    main()
