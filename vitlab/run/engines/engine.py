"""What every engine can do: take runs in, tell what becomes of them, and have them stop. drive.py does the rest, for all engines alike."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple, Protocol

from vitlab.run.task import Task


class Event(NamedTuple):
    """What has become of a run: its kind, and what belongs to it.

    While it trains:
      said(text)                        a line for the user
      bar(images_per_epoch)             it begins to train, or begins again where its machine was lost
      step(done, total, loss, top1)     as RunBar.step
      epoch(row)                        as RunBar.epoch
    Then one of these, once:
      finished(record, here)            here: trained by this engine, not by another process meanwhile
      interrupted()                     it was asked to stop, and its last step is saved
      failed(exception)                 it raised this
      died(why)                         it ended without a word; why says how, and what to do
    """

    task: Task
    kind: str
    values: tuple[Any, ...] = ()


class Engine(Protocol):
    """Trains runs, each once its teacher is finished, with results that do not depend on the engine.

    It is a context manager: it starts what it needs, and leaves nothing running. Where an exception ends it, the runs in hand are saved.
    """

    def __enter__(self) -> Engine: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    @property
    def about(self) -> str:
        """Return in one line what the runs are trained by, "" where the device says enough. Asked within the context."""
        ...

    @property
    def busy(self) -> bool:
        """Return whether a run is in hand or still to begin. One that waits for its teacher is, until that has ended otherwise than finished."""
        ...

    def submit(self, task: Task) -> None:
        """Take a run in. Its teacher was taken in before it, or is finished. Those taken in first are begun first."""
        ...

    def events(self, seconds: float) -> list[Event]:
        """Return what has become of the runs since the last call, in its order; wait up to so many seconds for something."""
        ...

    def stop(self, number: int) -> None:
        """Begin no more runs, and let each in hand save its current step. `number` is the signal, as from loop.Stop.asked()."""
        ...
