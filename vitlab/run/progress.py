"""What is shown while runs train: on a terminal one live display with a bar for each, elsewhere a line per epoch."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


def clock(seconds: float) -> str:
    """Return seconds as minutes or hours: 75 -> '1:15', 4000 -> '1:06:40'."""
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


class Display:
    """The live display of all runs that train at the moment, used as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]}  train {task.fields[top1]} %{task.fields[validation]}"),
            TextColumn("[dim]{task.fields[rate]} img/s  {task.fields[left]} left"),
        )
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True, expand=True)

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def bar(self, label: str, epochs: int, images_per_epoch: int) -> RunBar:
        """Return the bar of one run, to be used as a context manager: it is shown meanwhile."""
        return RunBar(self, label, epochs, images_per_epoch)


class RunBar:
    """The bar of one run, used as a context manager; step() and epoch() bring it up to date."""

    def __init__(self, display: Display, label: str, epochs: int, images_per_epoch: int) -> None:
        self.console, self.progress = display.console, display.progress
        self.label = label
        self.epochs = epochs
        self.images_per_epoch = images_per_epoch
        self.validation = ""
        self.started: tuple[float, int] | None = None  # time and steps done at the first call, for the time left

    def __enter__(self) -> RunBar:
        self.task = self.progress.add_task(self.label, total=1, epoch="-", loss="-", top1="-", validation="", rate="-", left="?")
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.remove_task(self.task)

    def step(self, done: int, total: int, loss: float, top1: float) -> None:
        """Show that `done` of `total` steps are done, with the epoch's mean loss and top-1 (percent)."""
        now = time.perf_counter()
        if self.started is None:
            self.started = (now, done)
            return
        per_step = (now - self.started[0]) / max(1, done - self.started[1])
        epoch = min(self.epochs, (done - 1) * self.epochs // total + 1)
        rate = self.images_per_epoch * self.epochs / total / per_step if per_step else 0.0
        self.progress.update(
            self.task, completed=done, total=total, epoch=f"{epoch}/{self.epochs}", loss=f"{loss:.3f}", top1=f"{top1:.1f}",
            validation=self.validation, rate=f"{rate:,.0f}", left=clock(per_step * (total - done)),
        )  # fmt: skip

    def epoch(self, row: dict[str, float]) -> None:
        """Show an epoch's row of metrics, as the journal has it."""
        best = row.get("validation/ema_top1", row["validation/top1"])
        self.validation = f"  validation {best:.1f} %"
        if not self.console.is_terminal:
            self.console.print(
                f"{self.label}  epoch {row['epoch']:.0f}/{self.epochs}  loss {row['train/loss']:.3f}  train {row['train/top1']:.1f} %"
                f"{self.validation}  {row['perf/img_s']:,.0f} img/s, {row['perf/mfu']:.0f} % of peak",
                highlight=False,
                soft_wrap=True,
            )
