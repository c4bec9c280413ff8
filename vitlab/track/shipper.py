"""One run's shipping in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.track.shipping import COVERED, Model, note, ship_noted
from vitlab.track.store import reason

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

BACK_OFF_SECONDS = 300  # the longest pause between two attempts to reach a server that is down


class Shipper:
    """Ships one run in a thread of its own, so that training never waits for MLflow and never fails because of it."""

    def __init__(self, root: Path, run_dir: Path) -> None:
        self.outstanding = ""  # why not everything has arrived, in one line; "" where it has
        self._root, self._run_dir = root, run_dir
        self._wake = threading.Condition()
        self._upto: int | None = None  # what is to be shipped next; None: nothing
        self._last: tuple[str, Model | None] | None = None  # status and model: then the thread ends
        self._given_up = False  # nobody waits any more
        self._thread = threading.Thread(target=self._work, name="mlflow-shipper", daemon=True)
        self._thread.start()

    def notify(self, upto: int) -> None:
        """Ask for the journal's first `upto` bytes to be shipped: a checkpoint refers to them. Returns at once."""
        with self._wake:
            self._upto = upto
            self._wake.notify()

    def finish(self, model: nn.Module | None = None, example: np.ndarray | None = None) -> None:
        """Ask for the finished run and its model to be shipped. Returns at once; then `arrived` tells what came of it.

        A server that is so slow that nobody waits any more gets no model: by then another run may train in this process, and exporting a
        model resets the generator of that run's dropout.
        """
        if model is None or example is None:
            self._end("FINISHED", None)
            return

        def in_time() -> tuple[nn.Module, np.ndarray]:
            if self._given_up:
                raise TimeoutError("its model came too late")
            return model, example

        self._end("FINISHED", in_time)

    def arrived(self, patience: Callable[[], float]) -> bool:
        """Wait at most `patience()` seconds and return whether all has arrived; if not, `outstanding` says why.

        `patience` is called again and again: a signal makes it return less.
        """
        began = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - began < patience():
            self._thread.join(0.1)
        if self._thread.is_alive():
            self._given_up = True
            self.outstanding = self.outstanding or f"still on its way after {patience():g} s"
            return False
        return not self.outstanding

    def close(self, status: str, timeout_s: float) -> bool:
        """Ship what checkpoints refer to, for a run that is KILLED (interrupted) or has FAILED; returns as `arrived` does."""
        self._end(status, None)
        return self.arrived(lambda: timeout_s)

    def _end(self, status: str, final_model: Model | None) -> None:
        with self._wake:
            self._last = (status, final_model)
            self._wake.notify()

    def _work(self) -> None:
        pause, not_before = 1.0, 0.0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._upto is not None or self._last is not None)
                upto, last, self._upto = self._upto, self._last, None
            try:
                if upto is not None:
                    note(self._run_dir, "RUNNING", upto)
                if last is not None:
                    status, final_model = last
                    note(self._run_dir, status, None if status == "FINISHED" else COVERED)
                    ship_noted(self._run_dir, self._root, final_model)
                elif time.monotonic() >= not_before:
                    ship_noted(self._run_dir, self._root)
                else:
                    continue  # backing off; the next notice covers this one
                self.outstanding, pause = "", 1.0
            except Exception as e:
                self.outstanding = reason(e)
                pause = min(2 * pause, BACK_OFF_SECONDS)
                not_before = time.monotonic() + pause
            if last is not None:
                return
