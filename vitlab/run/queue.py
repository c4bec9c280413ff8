"""Many runs: finished ones are skipped, those of other processes waited for, signals and the budget heeded."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from vitlab.data import dataset
from vitlab.data.sources import Source
from vitlab.errors import UserError
from vitlab.records import RunRecord
from vitlab.run import drive, plan, predict
from vitlab.run import jobs as order
from vitlab.run.engines.engine import Engine
from vitlab.run.engines.flags import Options
from vitlab.run.engines.local import Local
from vitlab.run.plan import Run
from vitlab.run.progress import Display
from vitlab.run.task import Died, Stopped, Task
from vitlab.track import shipping, store
from vitlab.train import checkpoint, distributed, loop, machine
from vitlab.train.loop import Stop

AGAIN = "the same command goes on from there"


def train(
    console: Console,
    runs: list[Run],
    forced: set[Path],
    source: Source,
    deadline: float,
    root: Path,
    show: Callable[[str, RunRecord], None],
    options: Options,
    in_order: bool,
) -> tuple[int, list[RunRecord]]:
    """Train those of `runs` that are not finished, or whose experiment's file is in `forced`, by the engine of `options`.

    Where several train side by side they begin `in_order`, as time may not suffice for all, or else so that the last is finished soonest.

    Stops at a signal, and at `deadline`, on the clock of time.monotonic(). `show(label, record)` is called for each finished run. Returns
    the exit code and the finished runs' records. Raises UserError for damaged records and data, and for an engine that cannot be had, before
    anything is trained.
    """
    if distributed.size() > 1:
        if options.engine != "local" or options.jobs not in (None, 1):
            raise UserError("--engine, --jobs: torchrun's processes train one run together; leave these flags, or torchrun, away")
        console.print(f"{distributed.size()} processes train each run together")
        options = replace(options, jobs=1)
    engine = _elsewhere(options, root)
    where = torch.device("cpu") if engine else machine.device()
    print_device(console, "" if engine else machine.device_name(where), store.shown_uri(root))
    # Damaged records and data are found now, before anything is written or removed and before hours are spent on earlier runs.
    before = {run.folder: run.record() for run in runs if run.finished and run.resolved.path not in forced}
    wanted = dict.fromkeys(run.resolved.config.data for run in runs if run.folder not in before)
    loaded = {cfg: dataset.load(source, cfg, where) for cfg in wanted}
    if reason := store.prepare_store(root):
        console.print(f"MLflow cannot be reached ({reason}); training goes on, and its journals keep everything", style="yellow")
    done: list[RunRecord] = []
    tasks: list[Task] = []
    for i, run in enumerate(runs, 1):
        label = f"{i}/{len(runs)} {run.label}"
        if run.folder not in before:
            tasks.append(Task(run, label, force=run.resolved.path in forced))
            continue
        checkpoint.remove(run.folder)  # of a process that was killed between the record and this
        done.append(before[run.folder])
        show(f"{label}  finished before, skipped:", done[-1])
    ended: set[Path] = set()
    stop = Stop(deadline=deadline)
    engine = engine or _side_by_side(tasks, options.jobs, deadline, where)
    unfinished = [task.run for task in tasks]
    left = plan.flops_left(unfinished, stores=where.type == "cpu") | {task.run.folder: task.run.train_flops for task in tasks if task.force}
    try:
        with Display(console, left, len(done), stop) as display:
            if engine is None or not tasks:
                finished = drive.in_turn(tasks, loaded, display, stop)
            else:
                loaded.clear()  # each process loads its own
                finished = drive.by_engine(tasks if in_order else _by_path(tasks), engine, display, stop)
            for task, record, here in finished:
                done.append(record)
                ended.add(task.run.folder)
                display.end(task.run.folder)
                show(task.label if here else f"{task.label}  finished meanwhile, skipped:", record)
                if not console.is_terminal and len(done) < len(runs):
                    console.print(display.outlook)
    except Stopped as e:
        number, folders = e.args
        state = f"{len(done)} of {len(runs)} runs are finished"
        if folders:
            state = f"all that is done is saved, the last of it in {', '.join(map(os.path.relpath, folders))}"
        return _stopped(console, number, f"{state}; {_again(forced, tasks, ended)}"), done
    except (loop.Diverged, Died) as e:
        console.print(f"failed {e}", style="red")
        if forced:
            console.print(_again(forced, tasks, ended))
        return 1, done
    if stop.signal is not None:
        return _stopped(console, stop.signal, f"all runs are finished; {AGAIN}"), done
    _ship_outstanding(console, runs, root)
    return 0, done


def _elsewhere(options: Options, root: Path) -> Engine | None:
    """Return the engine that trains otherwise than by this machine's processes, None for "local". Raises UserError where it is not installed."""
    if options.engine == "local":
        return None
    package = {"ray": "ray", "slurm": "submitit"}[options.engine]
    try:  # late, as what is installed only where it is wanted
        if options.engine == "ray":
            _set_ray_up(options.address)
            from vitlab.run.engines.ray import Ray

            return Ray(options)
        from vitlab.run.engines.slurm import Slurm

        return Slurm(options, root)
    except ModuleNotFoundError as e:
        if e.name != package:
            raise
        how = f"pip install -c constraints.txt -e '.[{options.engine}]'"
        raise UserError(f"--engine {options.engine}: {package} is not installed; install it with: {how}") from None


def _set_ray_up(address: str | None) -> None:
    """Set what Ray reads from the environment when it is imported, unless it is set: no statistics, and the token of a cluster of our own.

    Its ports are open to the network, so it answers to nobody without that token. Whether another cluster asks for one is for the user to say:
    a command and its cluster have to agree.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _by_path(tasks: list[Task]) -> list[Task]:
    task_of = {task.run.folder: task for task in tasks}
    return [task_of[run.folder] for run in order.by_path([task.run for task in tasks])]


def _side_by_side(tasks: list[Task], jobs: int | None, deadline: float, where: torch.device) -> Engine | None:
    """Return the engine for `jobs` runs at a time, for None as many as are soonest done; None where one is trained after the other."""
    if jobs is None:
        jobs = order.best([task.run for task in tasks], torch.get_num_threads()) if where.type == "cpu" else 1
    return Local(jobs, deadline) if jobs > 1 else None


def print_device(console: Console, device: str, uri: str) -> None:
    """Print what the runs are trained on, where that is known yet, and the MLflow store that they are logged to."""
    console.print(" · ".join([*([f"device {device}"] if device else []), f"MLflow {uri}"]))


def _stopped(console: Console, number: int, state: str) -> int:
    """Say why the runs stopped, and return the exit code: 0 for a spent budget, which is no failure, else 128 + the signal."""
    spent = number == signal.SIGALRM
    console.print(f"{'the budget is spent' if spent else 'stopped'}: {state}")
    return 0 if spent else 128 + number


def _again(forced: set[Path], tasks: list[Task], ended: set[Path]) -> str:
    """Return what the same command does next. Of `tasks` those in the folders `ended` are finished."""
    if not forced:
        return AGAIN
    kept = sum(task.force and task.run.finished and task.run.folder not in ended for task in tasks)  # not begun yet
    without = f", and keeps the earlier results of {kept} that were to be trained anew" if kept else ""
    return f"the same command without --force goes on from there{without}; with it, it begins anew"


def _ship_outstanding(console: Console, runs: list[Run], root: Path) -> None:
    """Ship what a kill after the last checkpoint, or a server that was down, has kept from MLflow."""
    for run in runs:
        if shipping.outstanding(run.folder, root):
            for label, ok, reason in shipping.sync(run.folder, root, predict.model_to_log):
                if not ok:
                    console.print(f"not all has reached MLflow ({label}: {reason}); everything is kept: run 'vitlab sync' later")
                    return
