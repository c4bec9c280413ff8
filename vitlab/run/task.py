"""A task: one run to be trained, wherever that happens. This is what a queue hands to an engine, and gets back from it."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from vitlab import files
from vitlab.data.dataset import Dataset
from vitlab.files import printable
from vitlab.records import RunRecord
from vitlab.run import execute
from vitlab.run.plan import Run
from vitlab.train import loop
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
    with the run's label, DiskFull and UserError.
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


def waiting(say: Callable[[str], None], stop: Stop) -> Callable[[str], None]:
    """Return a function that says once who trains the run, and gives up when the runs are asked to stop."""
    tell = functools.cache(lambda holder: say(f"is being trained by {printable(holder)}; waiting"))

    def busy(holder: str) -> None:
        tell(holder)
        if asked := stop.asked():
            raise loop.Interrupted(asked)

    return busy
