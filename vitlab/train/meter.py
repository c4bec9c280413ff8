"""Where a run's time goes, and which share of the machine's peak rate it reaches."""

from __future__ import annotations

import time
from typing import Any

import torch

from vitlab.train.machine import wait

# "step": the four before it at once, replayed as one CUDA graph; "compile": on a GPU the first steps of each phase, which compile, choose
# convolutions by timing and capture the graph
TRAINING = ("data", "forward_backward", "optimizer", "ema", "step", "compile")


class Meter:
    """Measure seconds by phase. `lap(phase)` books the time since the last lap under `phase`.

    On a GPU laps are events in its own queue, read where the host waits anyway, so that no step waits for the clock.

    flops_per_image: of one image's training step, the teacher's forward pass included. peak: FLOP/s, from `machine.measured_peak`.
    teacher_flops: of the teacher's forward pass of one image, which is not computed where its logits are stored.
    """

    def __init__(self, where: torch.device, flops_per_image: float, peak: float, teacher_flops: float = 0.0) -> None:
        self.where, self.flops_per_image, self.peak, self.teacher_flops = where, flops_per_image, peak, teacher_flops
        self.start({})

    def start(self, seconds: dict[str, float]) -> None:
        """Begin to measure, from the `seconds` by phase that this epoch had before it was interrupted."""
        self.seconds = dict(seconds)
        self.marks: list[tuple[str, Any]] = []
        self.answers: list[bool] = []
        self.last = self._mark()

    def _mark(self) -> Any:
        if self.where.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, phase: str) -> None:
        """Book the time since the last lap under `phase`."""
        self.marks.append((phase, self._mark()))

    def answered(self, stored: bool) -> None:
        """Note that the teacher was asked for a batch's logits, and whether they were stored."""
        self.answers.append(stored)

    def read(self) -> dict[str, float]:
        """Return the seconds by phase since the last row of `epoch`. Waits for a GPU."""
        wait(self.where)
        for phase, mark in self.marks:
            passed = self.last.elapsed_time(mark) / 1000 if self.where.type == "cuda" else mark - self.last
            self.seconds[phase] = self.seconds.get(phase, 0.0) + passed
            self.last = mark
        self.marks.clear()
        return self.seconds

    def epoch(self, images: int) -> dict[str, float]:
        """Return the values to log for an epoch that trained on `images` images, and begin the next one.

        They are perf/img_s, perf/tflops, perf/mfu (percent of the peak) and perf/seconds_<phase>. The seconds count from the previous call,
        so they include the checkpoint that was written after it. Of a student whose teacher has a store also perf/teacher_logits_read: the
        percentage of steps, since the epoch began or was resumed, that read the teacher's logits. What they spared is not in perf/tflops.
        """
        seconds = self.read()
        img_s = images / sum(seconds.get(phase, 0.0) for phase in TRAINING)
        read = sum(self.answers) / len(self.answers) if self.answers else 0.0
        flops = img_s * (self.flops_per_image - read * self.teacher_flops)  # per second
        values = {"perf/img_s": img_s, "perf/tflops": flops / 1e12, "perf/mfu": 100 * flops / self.peak}  # mfu in percent
        if self.answers:
            values["perf/teacher_logits_read"] = 100 * read
        self.seconds, self.answers = {}, []
        return values | {f"perf/seconds_{phase}": value for phase, value in seconds.items()}


def total(history: list[dict[str, float]], rest: dict[str, float]) -> dict[str, float]:
    """Return a run's seconds by phase: the sum over the rows of `history`, and `rest`, what came after the last row."""
    seconds = dict(rest)
    for row in history:
        for key, value in row.items():
            if key.startswith("perf/seconds_"):
                phase = key.removeprefix("perf/seconds_")
                seconds[phase] = seconds.get(phase, 0.0) + value
    return seconds
