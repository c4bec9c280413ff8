"""Runs, trained one after the other in this process or by an engine: shown, stopped, and given as each is finished."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Iterator
from pathlib import Path

from vitlab import config
from vitlab.data.dataset import Dataset
from vitlab.run.engines.engine import Engine, Event
from vitlab.run.progress import Display, RunBar
from vitlab.run.signals import on_signals, stop_after_step
from vitlab.run.task import Died, Finished, Stopped, Task, train_task
from vitlab.train import loop
from vitlab.train.loop import Stop

POLL = 0.2  # seconds between two looks at the deadline and at signals


def in_turn(tasks: list[Task], loaded: dict[config.Data, Dataset], display: Display, stop: Stop) -> Iterator[Finished]:
    """Train one after the other in this process, and give each as it is finished. Raises Stopped, and what train_task raises."""
    for task in tasks:
        if asked := stop.asked():
            raise Stopped(asked, [])
        cfg = task.run.resolved.config

        def say(text: str, label: str = task.label) -> None:
            display.console.print(f"{label}  {text}")

        bar = functools.partial(display.bar, task)
        try:
            # MLflow has everything before the next run begins: in a thread beside it torch's exporter would reset the generator of its dropout.
            with on_signals(stop_after_step(stop, aloud=not display.console.is_terminal)), contextlib.ExitStack() as shipping:
                record, here = train_task(task, loaded[cfg.data], bar, say, stop, shipping)
        except loop.Interrupted as e:
            raise Stopped(e.args[0], [task.run.folder]) from None
        yield task, record, here


def by_engine(tasks: list[Task], engine: Engine, display: Display, stop: Stop) -> Iterator[Finished]:
    """Have `engine` train the runs, in this order, each after its teacher, and give each as it is finished.

    Where one fails, or `stop` asks to stop, the others are saved after their current step. Raises Stopped, and what the first run that failed
    has raised.
    """
    left = {task.run.folder: task for task in tasks}
    interrupted: list[Path] = []
    failure: BaseException | None = None
    asked: int | None = None
    with on_signals(stop_after_step(stop, aloud=not display.console.is_terminal)), engine, contextlib.closing(_Bars(display)) as bars:
        if engine.about:
            display.console.print(engine.about)
        for task in tasks:
            engine.submit(task)
        while engine.busy:
            for event in engine.events(POLL):
                bars.show(event)
                task = event.task
                if event.kind == "finished":
                    del left[task.run.folder]
                    yield task, *event.values
                elif event.kind == "interrupted" and asked is None and stop.asked() is None:
                    why = "its process alone was asked to stop, by a signal. The same command goes on from the last checkpoint"
                    failure = failure or Died(f"{task.run.label}: {why}")
                elif event.kind == "interrupted" or (event.kind == "died" and stop.asked() is not None):
                    interrupted.append(task.run.folder)
                elif event.kind in ("failed", "died") and failure is None:
                    failure = event.values[0] if event.kind == "failed" else Died(f"{task.run.label}: {event.values[0]}")
            if asked is None and (asked := signal.SIGTERM if failure else stop.asked()) is not None:
                engine.stop(asked)
    if failure is not None:
        raise failure
    if asked is not None and left:
        raise Stopped(asked, interrupted)


class _Bars:
    """The bars of the runs that train at the moment."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.shown: dict[Path, RunBar] = {}

    def show(self, event: Event) -> None:
        task, folder = event.task, event.task.run.folder
        if event.kind == "said":
            self.display.console.print(f"{task.label}  {event.values[0]}")
        elif event.kind in ("step", "epoch"):
            getattr(self.shown[folder], event.kind)(*event.values)
        else:
            self._remove(folder)
        if event.kind == "bar":
            self.shown[folder] = self.display.bar(task, *event.values)
            self.shown[folder].__enter__()

    def close(self) -> None:
        for folder in list(self.shown):
            self._remove(folder)

    def _remove(self, folder: Path) -> None:
        if folder in self.shown:
            self.shown.pop(folder).__exit__(None, None, None)
