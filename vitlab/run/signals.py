"""What SIGINT and SIGTERM do: end a command at once, or let a run finish the current step and save it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitlab.train.loop import Stop

SAME_SIGNAL = 1.0  # seconds: a scheduler or `make` may pass on what the terminal has sent already


@contextlib.contextmanager
def on_signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM with `handler`, as a context manager."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def stop_at_once(number: int, _frame: object) -> None:
    """End the process as a kill would, which loses nothing: no exception that a library could turn into another, and no traceback."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    show_cursor = b"\x1b[?25h" if sys.stdout.isatty() else b""
    os.write(2, show_cursor + b"stopped at once\n")
    os._exit(128 + number)


def stop_after_step(stop: Stop, aloud: bool = True) -> Callable[[int, object], None]:
    """Return a handler: the first signal lets the current step finish and be saved; a second one, or one after the deadline, stops at once.

    It says so, if `aloud`.
    """
    first = 0.0

    def handle(number: int, frame: object) -> None:
        nonlocal first
        if stop.asked() is None:
            stop.signal, first = number, time.monotonic()
            if aloud:  # not through the console: the signal may have come amid its own printing
                os.write(2, b"stopping: the step in hand is finished and saved; once more stops at once\n")
        elif time.monotonic() - first > SAME_SIGNAL:
            stop_at_once(number, frame)

    return handle
