"""What a Slurm job does: it trains one run, and tells through a file what becomes of it. See slurm.py.

Nothing heavy is imported before the job heeds signals: until then one would end it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

STOP = signal.SIGINT  # from the command that waits for the run: save the current step and end
SIZE = struct.Struct("<I")


@dataclass
class EventFile:
    """A file to which one process appends events (kind, *values), and from which another reads them."""

    path: Path
    offset: int = 0  # what lies before it was read

    def append(self, *event: Any) -> None:
        """Write one event. It is in the file when this returns."""
        frame = pickle.dumps(event)
        with self.path.open("ab") as f:
            f.write(SIZE.pack(len(frame)) + frame)

    def read(self) -> list[tuple[Any, ...]]:
        """Return the events since the last call; none where the file does not exist."""
        try:
            with self.path.open("rb") as f:  # opened anew each time: so NFS shows what other machines have written
                f.seek(self.offset)
                data = f.read()
        except FileNotFoundError:
            return []
        events, at = [], 0
        while len(data) >= at + SIZE.size and len(data) >= (end := at + SIZE.size + SIZE.unpack_from(data, at)[0]):
            events.append(pickle.loads(data[at + SIZE.size : end]))
            at = end
        self.offset += at
        return events


def event_file(folder: Path, job_id: str) -> EventFile:
    """Return the file of a job's events, by the id that Slurm shows: `12`, or `12_3` for an array's."""
    return EventFile(folder / f"{job_id}.events")


def heed(numbers: tuple[int, ...], call: Callable[[int], None]) -> None:
    """Have each of these signals call `call(number)`."""
    for number in numbers:
        signal.signal(number, lambda number, frame: call(number))


@dataclass
class TrainRun:
    """What submitit calls in a job: train a run, given as its pickled task, with so many threads. `folder` is the run's.

    Slurm's warning before the time limit, and its SIGTERM before another job takes the machine, have the current step saved and the job
    queued again.
    """

    folder: str
    task: bytes
    threads: int

    def __call__(self) -> None:
        """Train the run. The process ends with exit code 1 unless the run is finished, so that no student begins."""
        from submitit import JobEnvironment

        warning = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        queue_again = signal.getsignal(warning)
        assert callable(queue_again), "submitit has set its handler"
        early: list[int] = []
        heed((STOP, signal.SIGTERM, warning), early.append)
        from vitlab.run.task import Task, train_apart  # seconds
        from vitlab.train.loop import Stop

        stop = Stop()

        def ask(number: int) -> None:
            if stop.signal != STOP:  # which none of the others undoes
                stop.signal = number

        heed((STOP, signal.SIGTERM, warning), ask)
        for number in early:
            ask(number)
        task: Task = pickle.loads(self.task)
        if "SLURM_RESTART_COUNT" in os.environ:
            task = replace(task, force=False)  # it goes on with what it has begun
        events, outcome = event_file(Path(os.environ["SUBMITIT_FOLDER"]), JobEnvironment().job_id), ""

        def send(kind: str, *values: Any) -> None:
            nonlocal outcome
            if kind in ("finished", "interrupted", "failed"):
                outcome = kind
            if kind != "interrupted" or stop.signal == STOP:
                with contextlib.suppress(OSError):  # a full disk fails the run where it keeps results, not here
                    events.append(kind, *values)

        train_apart(task, self.threads, send, stop)
        if outcome == "interrupted" and stop.signal != STOP:
            send("said", "is saved, and queued again")
            queue_again(warning, None)  # ends the process
        with contextlib.suppress(OSError):
            events.append("ended")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(
            0 if outcome == "finished" else 1
        )  # as multiprocessing does: no thread that is still at work can fail a finished run's job

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit starts when the job is queued again: the same, since the run goes on from its folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
