"""Several runs side by side on this machine, each in a process of its own.

Processes are forked from one that has imported all they need (multiprocessing's forkserver), so each begins at once and ends with its run.
They are told to stop by signals, and tell through a pipe what they do. If this process dies, they save what they have done and end too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import torch

from vitlab.run.engines.engine import Event
from vitlab.run.jobs import ready
from vitlab.run.signals import on_signals, stop_after_step
from vitlab.run.task import Task, train_apart
from vitlab.train.loop import Stop


@dataclass
class Job:
    """A run in training, and its process. That goes on after the run is finished, until MLflow has everything."""

    task: Task
    process: BaseProcess
    ended: bool = False  # finished, interrupted or failed


class Local:
    """The engine that trains up to `jobs` runs at a time on this machine, until `deadline` on the clock of time.monotonic()."""

    def __init__(self, jobs: int, deadline: float) -> None:
        self.jobs, self.deadline = jobs, deadline
        self.context = multiprocessing.get_context("forkserver")
        self.left: list[Task] = []
        self.running: dict[Connection, Job] = {}
        self.about = f"{jobs} runs side by side, each with {share(jobs)} of {torch.get_num_threads()} threads"

    def __enter__(self) -> Local:
        self.context.set_forkserver_preload(["vitlab.run.preload"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop(signal.SIGTERM)  # there are some only where an exception has ended it
        for job in self.running.values():
            job.process.join()

    @property
    def busy(self) -> bool:
        """Return whether a run is in hand or still to begin."""
        return bool(self.running or self.left)

    def submit(self, task: Task) -> None:
        """Take a run in."""
        self.left.append(task)

    def events(self, seconds: float) -> list[Event]:
        """Begin what can begin; return what has become of the runs."""
        training = [job.task.run for job in self.running.values() if not job.ended]
        while len(training) < self.jobs and (run := ready([task.run for task in self.left], training)):
            task = next(task for task in self.left if task.run is run)
            self.left.remove(task)
            training.append(run)
            self._begin(task)
        return [event for pipe in wait(list(self.running), seconds) if (event := self._receive(pipe))]

    def stop(self, number: int) -> None:
        """Pass the signal on to the processes; not a deadline, which they have themselves. What a terminal has sent as well counts as once."""
        self.left.clear()
        for job in self.running.values():
            if number != signal.SIGALRM and job.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(job.process.pid, number)

    def _begin(self, task: Task) -> None:
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_work, args=(theirs, task, share(self.jobs), self.deadline), name=task.label)
        process.start()
        theirs.close()  # so that its end is seen here
        self.running[ours] = Job(task, process)

    def _receive(self, pipe: Connection) -> Event | None:
        """Return what a process tells; None for what comes after its run's end."""
        job = self.running[pipe]
        try:
            kind, *values = pipe.recv()
        except EOFError:
            job.process.join()
            del self.running[pipe]
            return None if job.ended else Event(job.task, "died", (_cause(job),))
        if kind in ("finished", "interrupted", "failed"):
            if job.ended:
                return None
            job.ended = True
        return Event(job.task, kind, tuple(values))


def share(jobs: int) -> int:
    """Return how many threads each of `jobs` runs has."""
    return max(1, torch.get_num_threads() // jobs)


def _cause(job: Job) -> str:
    code = job.process.exitcode
    end = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended before it, with exit code {code}"
    return f"its process {end}; if memory ran out, try fewer --jobs. The same command goes on from the last checkpoint"


# ------------------------------------------------------------------------------------------------- in a run's own process


def _work(pipe: Connection, task: Task, threads: int, deadline: float) -> None:
    stop = Stop(deadline=deadline)

    def send(*values: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # who listened has died: what is done is saved all the same
            pipe.send(values)

    with on_signals(stop_after_step(stop, aloud=False)):
        threading.Thread(target=_end_with_parent, args=(stop,), daemon=True).start()
        train_apart(task, threads, send, stop)


def _end_with_parent(stop: Stop) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    stop.signal = signal.SIGTERM
