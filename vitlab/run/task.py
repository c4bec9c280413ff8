"""A task: one run to be trained, wherever that happens. This is what a queue hands to an engine, and gets back from it."""

from __future__ import annotations

import contextlib
import functools
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import torch

from vitlab import files
from vitlab.data import dataset
from vitlab.data.dataset import Dataset
from vitlab.errors import UserError
from vitlab.files import printable
from vitlab.records import RunRecord
from vitlab.run import execute
from vitlab.run.plan import Run
from vitlab.train import loop, machine
from vitlab.train.loop import Stop


@dataclass(frozen=True)
class Task:
    """A run to be trained, under the label that its lines have; anew if `force`."""

    run: Run
    label: str
    force: bool


Finished = tuple[Task, RunRecord, bool]  # whether it was trained here, not by another process meanwhile


class Died(Exception):
    """The process of a run ended before its run did. The message says how, and what to do."""


class Stopped(Exception):
    """The runs were asked to stop. args are the signal, as from Stop.asked(), and the folders of the runs that were in hand."""


def train_task(
    task: Task,
    data: Dataset,
    make_bar: Callable[[int], loop.Bar],
    say: Callable[[str], None],
    stop: Stop,
    shipping: contextlib.ExitStack,
) -> tuple[RunRecord, bool]:
    """Train one run in this process, unless another process finishes it meanwhile; return its record, and whether it was trained here.

    `make_bar(images_per_epoch)`, `say(text)` and `shipping` as for execute.execute. Raises loop.Interrupted where `stop` asks to stop, loop.Diverged
    with the run's label, DiskFull, and UserError, also where the GPU's memory does not suffice.
    """
    run = task.run
    with files.held(run.lock, waiting(say, stop)):
        if run.finished and not task.force:
            return run.record(), False
        if task.force:
            shutil.rmtree(run.folder, ignore_errors=True)
        try:
            return execute.execute(run, data, make_bar, stop, say, shipping), True
        except loop.Diverged as e:
            raise loop.Diverged(f"{run.label}: {e}") from None
        except torch.OutOfMemoryError as e:
            raise UserError(f"{run.label}: {str(e).splitlines()[0]} Try fewer --jobs or a smaller train.batch_size") from e


def waiting(say: Callable[[str], None], stop: Stop) -> Callable[[str], None]:
    """Return a function that says once who trains the run, and gives up when the runs are asked to stop."""
    tell = functools.cache(lambda holder: say(f"is being trained by {printable(holder)}; waiting"))

    def busy(holder: str) -> None:
        tell(holder)
        if asked := stop.asked():
            raise loop.Interrupted(asked)

    return busy


class SentBar:
    """The bar of a run that another process shows: an engine's events `bar`, `step` and `epoch`, passed to `send(kind, *values)`."""

    def __init__(self, send: Callable[..., None], images_per_epoch: int) -> None:
        self.send, self.images_per_epoch = send, images_per_epoch

    def __enter__(self) -> SentBar:
        self.send("bar", self.images_per_epoch)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass  # it goes with the run's end

    def step(self, done: int, total: int, loss: float, top1: float) -> None:
        self.send("step", done, total, loss, top1)

    def epoch(self, row: dict[str, float]) -> None:
        self.send("epoch", row)


def train_apart(task: Task, threads: int, send: Callable[..., None], stop: Stop) -> None:
    """Train one run in a process of an engine's, with so many threads, and `send(kind, *values)` an engine's events about it.

    `finished` is sent before all has reached MLflow, which this waits for.
    """
    torch.set_num_threads(threads)
    try:
        data = dataset.load(task.run.source, task.run.resolved.config.data, machine.device())
        with contextlib.ExitStack() as shipping:
            record, here = train_task(task, data, functools.partial(SentBar, send), functools.partial(send, "said"), stop, shipping)
            send("finished", record, here)
    except loop.Interrupted:
        send("interrupted")
    except Exception as e:
        e.add_note(f"In the process of {task.label}:\n{traceback.format_exc()}")
        send("failed", e)
