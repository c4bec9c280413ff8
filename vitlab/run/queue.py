"""Many runs, one after the other: finished ones are skipped, those of other processes waited for, signals and the budget heeded."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from vitlab import files
from vitlab.data import dataset
from vitlab.data.dataset import Dataset
from vitlab.data.sources import Source
from vitlab.files import printable
from vitlab.records import RunRecord
from vitlab.run import execute, predict
from vitlab.run.plan import Run
from vitlab.run.progress import RunBar
from vitlab.run.signals import on_signals, stop_after_step
from vitlab.track import shipping, store
from vitlab.train import checkpoint, loop, machine
from vitlab.train.loop import Stop


def train(
    console: Console,
    runs: list[Run],
    forced: set[Path],
    source: Source,
    deadline: float,
    root: Path,
    show: Callable[[str, RunRecord], None],
) -> tuple[int, list[RunRecord]]:
    """Train those of `runs` that are not finished, or whose experiment's file is in `forced`, in their order.

    Stops at a signal, and at `deadline`, on the clock of time.monotonic(). `show(label, record)` is called for each finished run. Returns
    the exit code and the finished runs' records. Raises UserError for damaged records and data, before anything is trained.
    """
    where = machine.device()
    print_device(console, machine.device_name(where), store.shown_uri(root))
    # Damaged records and data are found now, before anything is written or removed and before hours are spent on earlier runs.
    before = {run.folder: run.record() for run in runs if run.finished and run.resolved.path not in forced}
    wanted = dict.fromkeys(run.resolved.config.data for run in runs if run.folder not in before)
    loaded = {cfg: dataset.load(source, cfg, where) for cfg in wanted}
    if reason := store.prepare_store(root):
        console.print(f"MLflow cannot be reached ({reason}); training goes on, and its journals keep everything", style="yellow")
    done: list[RunRecord] = []
    stop = loop.Stop(deadline=deadline)
    for i, run in enumerate(runs, 1):
        if asked := stop.asked():
            return _stopped(console, asked, f"{sum(run.finished for run in runs)} of {len(runs)} runs are finished"), done
        label = f"{i}/{len(runs)} {run.label}"
        if run.folder in before:
            checkpoint.remove(run.folder)  # of a process that was killed between the record and this
            done.append(before[run.folder])
            show(f"{label}  finished before, skipped:", done[-1])
            continue
        try:
            with files.held(run.lock, _waiting(console, label, stop)):
                if run.finished and run.resolved.path not in forced:
                    done.append(run.record())
                    show(f"{label}  finished meanwhile, skipped:", done[-1])
                    continue
                if run.resolved.path in forced:
                    shutil.rmtree(run.folder, ignore_errors=True)
                with on_signals(stop_after_step(stop)):
                    done.append(_execute(console, label, run, loaded[run.resolved.config.data], stop))
        except loop.Interrupted as e:
            return _stopped(console, e.args[0], f"all that is done is saved, the last of it in {os.path.relpath(run.folder)}"), done
        except loop.Diverged as e:
            console.print(f"failed {run.label}: {e}", style="red")
            return 1, done
        show(label, done[-1])
    if stop.signal is not None:
        return _stopped(console, stop.signal, "all runs are finished"), done
    _ship_outstanding(console, runs, root)
    return 0, done


def print_device(console: Console, device: str, uri: str) -> None:
    """Print what the runs are trained on and the MLflow store that they are logged to."""
    console.print(f"device {device} · MLflow {uri}")


def _stopped(console: Console, number: int, state: str) -> int:
    """Say why the runs stopped, and return the exit code: 0 for a spent budget, which is no failure, else 128 + the signal."""
    spent = number == signal.SIGALRM
    console.print(f"{'the budget is spent' if spent else 'stopped'}: {state}; the same command goes on from there")
    return 0 if spent else 128 + number


def _execute(console: Console, label: str, run: Run, loaded: Dataset, stop: Stop) -> RunRecord:
    def bar(images: int) -> RunBar:
        return RunBar(console, label, run.resolved.config.train.epochs, images)

    return execute.execute(run, loaded, bar, stop, lambda text: console.print(f"{label}  {text}"))


def _waiting(console: Console, label: str, stop: Stop) -> Callable[[str], None]:
    """Return a function that says once who trains the run, and gives up when the runs are asked to stop."""
    named: set[str] = set()

    def busy(holder: str) -> None:
        if holder not in named:
            console.print(f"{label}  is being trained by {printable(holder)}; waiting")
        named.add(holder)
        if asked := stop.asked():
            raise loop.Interrupted(asked)

    return busy


def _ship_outstanding(console: Console, runs: list[Run], root: Path) -> None:
    """Ship what a kill after the last checkpoint, or a server that was down, has kept from MLflow."""
    for run in runs:
        if shipping.outstanding(run.folder, root):
            for label, ok, reason in shipping.sync(run.folder, root, predict.model_to_log):
                if not ok:
                    console.print(f"not all has reached MLflow ({label}: {reason}); everything is kept: run 'vitlab sync' later")
                    return
