"""Where a run's time goes, and its share of what the machine can do."""

from __future__ import annotations

import time
from typing import Any

import torch

from vitlab.train.machine import wait

TRAINING = ("data", "forward_backward", "optimizer", "ema", "step")  # "step": all of these at once, replayed as one CUDA graph


class Meter:
    """`lap(phase)` gives the time since the last lap to `phase`.

    On a GPU the laps are marks in its own queue, read where the host waits anyway, so that no step waits for the clock.

    flops_per_image: of one image's training step, the teacher's forward included. peak: FLOP/s, of `machine.measured_peak`.
    """

    def __init__(self, where: torch.device, flops_per_image: float, peak: float) -> None:
        self.where, self.flops_per_image, self.peak = where, flops_per_image, peak
        self.start({})

    def start(self, seconds: dict[str, float]) -> None:
        """Begin to measure, with what was counted of this epoch before."""
        self.seconds = dict(seconds)
        self.marks: list[tuple[str, Any]] = []
        self.last = self._mark()

    def _mark(self) -> Any:
        if self.where.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, phase: str) -> None:
        self.marks.append((phase, self._mark()))

    def read(self) -> dict[str, float]:
        """Seconds by phase since the epoch began; a GPU is waited for."""
        wait(self.where)
        for phase, mark in self.marks:
            passed = self.last.elapsed_time(mark) / 1000 if self.where.type == "cuda" else mark - self.last
            self.seconds[phase] = self.seconds.get(phase, 0.0) + passed
            self.last = mark
        self.marks.clear()
        return self.seconds

    def epoch(self, images: int) -> dict[str, float]:
        """What is logged of an epoch that trained on `images`. Its seconds are since the last such row: they hold the checkpoint after that one."""
        seconds = self.read()
        img_s = images / sum(seconds.get(phase, 0.0) for phase in TRAINING)
        flops = img_s * self.flops_per_image  # per second
        self.seconds = {}
        values = {"perf/img_s": img_s, "perf/tflops": flops / 1e12, "perf/mfu": 100 * flops / self.peak}  # mfu in percent
        return values | {f"perf/seconds_{phase}": value for phase, value in seconds.items()}


def total(history: list[dict[str, float]], rest: dict[str, float]) -> dict[str, float]:
    """Seconds by phase over a run: those of its epochs' rows, and of what came after the last."""
    seconds = dict(rest)
    for row in history:
        for key, value in row.items():
            if key.startswith("perf/seconds_"):
                phase = key.removeprefix("perf/seconds_")
                seconds[phase] = seconds.get(phase, 0.0) + value
    return seconds
