"""Training on this machine: one run after the other in this process, or several side by side, each in a process of its own.

Processes are forked from one that has imported all they need (multiprocessing's forkserver), so each begins at once and ends with its run.
They are told to stop by signals, and tell through a pipe what they do. If this process dies, they save what they have done and end too.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import torch

from vitlab import config
from vitlab.data import dataset
from vitlab.data.dataset import Dataset
from vitlab.run import jobs as order
from vitlab.run.plan import Run
from vitlab.run.progress import Display, RunBar
from vitlab.run.signals import on_signals, stop_after_step
from vitlab.run.task import Died, Finished, Stopped, Task, train_task
from vitlab.train import loop, machine
from vitlab.train.loop import Stop

POLL = 0.2  # seconds between two looks at the deadline and at signals


@dataclass
class Job:
    """A run in training: its process, and its bar while it has one."""

    task: Task
    process: BaseProcess
    finished: bool = False
    bar: RunBar | None = None
    shown: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


def in_turn(tasks: list[Task], loaded: dict[config.Data, Dataset], display: Display, stop: Stop) -> Iterator[Finished]:
    """Train one after the other in this process, and give each as it is finished. Raises Stopped, and what train_task raises."""
    for task in tasks:
        if asked := stop.asked():
            raise Stopped(asked, [])
        cfg = task.run.resolved.config

        def say(text: str, label: str = task.label) -> None:
            display.console.print(f"{label}  {text}")

        bar = functools.partial(display.bar, task.label, cfg.train.epochs)
        try:
            # MLflow has everything before the next run begins: in a thread beside it torch's exporter would reset the generator of its dropout.
            with on_signals(stop_after_step(stop)), contextlib.ExitStack() as shipping:
                record, here = train_task(task, loaded[cfg.data], bar, say, stop, shipping)
        except loop.Interrupted as e:
            raise Stopped(e.args[0], [task.run.folder]) from None
        yield task, record, here


def side_by_side(tasks: list[Task], jobs: int, display: Display, stop: Stop) -> Iterator[Finished]:
    """Train up to `jobs` runs at a time, a teacher before its students, and give each as it is finished.

    Where one fails, or `stop` asks to stop, the others are saved after their current step. Raises Stopped, and what the first run that failed
    has raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitlab.run.preload"])
    threads = share(jobs)
    left = order.by_path([task.run for task in tasks])
    by_folder = {task.run.folder: task for task in tasks}
    running: dict[Connection, Job] = {}
    interrupted: list[Job] = []
    failure: BaseException | None = None
    asked: int | None = None

    def begin(run: Run) -> None:
        task = by_folder[run.folder]
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, task, threads, stop.deadline), name=task.label)
        process.start()
        theirs.close()  # so that its end is seen here
        running[ours] = Job(task, process)

    with on_signals(stop_after_step(stop)), contextlib.ExitStack() as last:
        last.callback(_stop_all, running)
        while running or (left and asked is None):
            training = [job.task.run for job in running.values() if not job.finished]
            while asked is None and len(training) < jobs and (run := order.ready(left, training)):
                left.remove(run)
                training.append(run)
                begin(run)
            for pipe in wait(list(running), POLL):
                job = running[pipe]
                try:
                    kind, *values = pipe.recv()
                except EOFError:
                    kind, values = "died", []
                if kind in ("said", "bar", "step", "epoch"):
                    _display(display, job, kind, values)
                    continue
                job.shown.close()
                if kind == "finished":  # its process goes on until MLflow has everything
                    job.finished = True
                    yield job.task, *values
                    continue
                job.process.join()
                del running[pipe]
                if job.finished:
                    continue
                if kind in ("interrupted", "died") and stop.asked() is not None:
                    interrupted.append(job)
                elif failure is None:
                    failure = values[0] if kind == "failed" else Died(_cause(job))
            if asked is None and (asked := signal.SIGTERM if failure else stop.asked()) is not None:
                for job in running.values():
                    _tell_to_stop(job.process, asked)
    if failure is not None:
        raise failure
    if asked is not None and (interrupted or left):
        raise Stopped(asked, [job.task.run.folder for job in interrupted])


def share(jobs: int) -> int:
    """Return how many threads each of `jobs` runs has."""
    return max(1, torch.get_num_threads() // jobs)


def _display(display: Display, job: Job, kind: str, values: list[Any]) -> None:
    if kind == "said":
        display.console.print(f"{job.task.label}  {values[0]}")
    elif kind == "bar":
        job.bar = job.shown.enter_context(display.bar(job.task.label, job.task.run.resolved.config.train.epochs, *values))
    elif job.bar is not None:
        getattr(job.bar, kind)(*values)


def _stop_all(running: dict[Connection, Job]) -> None:
    """Let each finish and save its current step. There are some only where an exception has ended the loop."""
    for job in running.values():
        _tell_to_stop(job.process, signal.SIGTERM)
        job.process.join()


def _tell_to_stop(process: BaseProcess, number: int) -> None:
    """Pass the signal on to the process; not a deadline, which it has itself. What a terminal has sent as well counts as once."""
    if number != signal.SIGALRM and process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _cause(job: Job) -> str:
    code = job.process.exitcode
    end = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended before it, with exit code {code}"
    return (
        f"{job.task.run.label}: its process {end}; if memory ran out, try fewer --jobs. The same command goes on from the last checkpoint"
    )


# ------------------------------------------------------------------------------------------------- in a run's own process


class _Bar:
    """The bar of a run that is shown by another process."""

    def __init__(self, send: Callable[..., None], images_per_epoch: int) -> None:
        self.send, self.images_per_epoch = send, images_per_epoch

    def __enter__(self) -> _Bar:
        self.send("bar", self.images_per_epoch)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass  # it goes with the process

    def step(self, done: int, total: int, loss: float, top1: float) -> None:
        self.send("step", done, total, loss, top1)

    def epoch(self, row: dict[str, float]) -> None:
        self.send("epoch", row)


def _work(pipe: Connection, task: Task, threads: int, deadline: float) -> None:
    """Train one run and send what comes of it: ("finished", record, here), ("interrupted",) or ("failed", exception)."""
    stop = Stop(deadline=deadline)

    def send(*values: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # who listened has died: what is done is saved all the same
            pipe.send(values)

    with on_signals(stop_after_step(stop, aloud=False)):
        threading.Thread(target=_end_with_parent, args=(stop,), daemon=True).start()
        torch.set_num_threads(threads)
        try:
            data = dataset.load(task.run.source, task.run.resolved.config.data, machine.device())
            with contextlib.ExitStack() as shipping:
                record, here = train_task(task, data, functools.partial(_Bar, send), functools.partial(send, "said"), stop, shipping)
                send("finished", record, here)
        except loop.Interrupted:
            send("interrupted")
        except Exception as e:
            e.add_note(f"In the process of {task.label}:\n{traceback.format_exc()}")
            send("failed", e)


def _end_with_parent(stop: Stop) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    stop.signal = signal.SIGTERM
