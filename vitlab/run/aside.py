"""The end of a finished run's shipping, in a process beside the training of the next run.

MLflow wants the model as torch's exporter writes it, which takes seconds, and which in a thread would reset the generator of the next run's
dropout. Processes are forked from one that has imported all they need, as in engines/local.py.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from vitlab.run import predict
from vitlab.track import shipping


class Aside:
    """Ships finished runs of the store of `root`, each in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes: list[BaseProcess] = []
        self.context = multiprocessing.get_context("forkserver")

    def prepare(self) -> None:
        """Begin the imports now, so that they are done when the first run is finished. Returns at once."""
        self.context.set_forkserver_preload(["vitlab.run.preload"])
        multiprocessing.forkserver.ensure_running()

    def ship(self, run_dir: Path) -> None:
        """Ship what MLflow lacks of the finished run. Returns at once; what does not arrive remains outstanding."""
        process = self.context.Process(target=_ship, args=(run_dir, self.root), name=f"ships {run_dir}", daemon=True)
        process.start()
        self.processes.append(process)

    def wait(self, patience: Callable[[], float]) -> None:
        """Wait at most `patience()` seconds for what is on its way, then end it. `patience` is called again and again."""
        began = time.monotonic()
        for process in self.processes:
            while process.is_alive() and time.monotonic() - began < patience():
                process.join(0.1)
            process.terminate()
            process.join()
        self.processes.clear()


def _ship(run_dir: Path, root: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a terminal sends to all; the command's process decides
    torch.set_num_threads(1)
    shipping.sync(run_dir, root, predict.model_to_log)
