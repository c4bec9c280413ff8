"""What is shown while runs train: on a terminal one live display with a bar for each, elsewhere a line per epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console, OverflowMethod, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from vitlab.errors import UserError
from vitlab.track.journal import read_journal

if TYPE_CHECKING:
    from vitlab.run import task
    from vitlab.train.loop import Stop

T = TypeVar("T")
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.:-=+*#"  # where the terminal cannot show blocks
STOPPING = "stopping: the step in hand is finished and saved; once more stops at once"
# From how many columns on: what is shown of a run beside its label and its bar.
LAYOUTS = {
    140: (
        "epoch {task.fields[epoch]}  loss {task.fields[loss]}  train {task.fields[top1]} %{task.fields[validation]}",
        "[dim]{task.fields[rate]} img/s  {task.fields[left]} left",
    ),
    100: ("epoch {task.fields[epoch]}  train {task.fields[top1]} %{task.fields[validation]}", "[dim]{task.fields[left]} left"),
    0: ("{task.fields[epoch]}{task.fields[validation]}", "[dim]{task.fields[left]} left"),
}
CURVE = {100: 12, 0: 8}  # from how many columns on: how many bars a curve has


def clock(seconds: float) -> str:
    """Return seconds as minutes or hours: 75 -> '1:15', 4000 -> '1:06:40'."""
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def sparkline(values: Sequence[float], width: int, marks: str = BLOCKS) -> str:
    """Return `values` as a row of bars, the lowest of them as the first of `marks` and the highest as the last.

    Of more than `width` values each bar is the mean of an equal share. Equal values are all the lowest bar; no values are "".
    """
    n, bars = len(values), min(width, len(values))
    means = [fmean(values[i * n // bars : (i + 1) * n // bars]) for i in range(bars)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    step = (high - low) / (len(marks) - 1) or 1.0
    return "".join(marks[round((mean - low) / step)] for mean in means)


def fitting(choices: Mapping[int, T], console: Console) -> T:
    """Return the first of `choices` whose key, a number of columns, is no more than the console has."""
    return next(choice for width, choice in choices.items() if console.width >= width)


class Display:
    """The live display of all runs that train at the moment, and of how far the whole plan is; used as a context manager.

    `work` has the FLOPs of each run that is to be trained, by its folder; `before` runs were finished already. Where `stop` asks to stop, it
    says so.
    """

    def __init__(self, console: Console, work: Mapping[Path, float], before: int, stop: Stop) -> None:
        self.console, self.stop = console, stop
        self.work = work
        self.left = dict(work)  # FLOPs of the unfinished runs
        self.finished, self.runs = before, before + len(work)
        self.bars: dict[Path, RunBar] = {}
        self.trained = 0.0  # FLOPs since `began`
        self.began: float | None = None
        self.about: float | None = None  # seconds left of the whole plan
        self.progress = _Lines(self)

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def bar(self, task: task.Task, images_per_epoch: int) -> RunBar:
        """Return the bar of one run, to be used as a context manager: it is shown meanwhile."""
        return RunBar(self, task, images_per_epoch)

    def end(self, folder: Path) -> None:
        """Count the run in `folder` as finished, here or by another process."""
        self.left.pop(folder)
        self.finished += 1
        self.estimate(time.perf_counter())

    def trains(self, folder: Path, done: float, now: float, share: float) -> None:
        """Take in that at the time `now` the share `done` of a run is done, `share` of it since the last call."""
        if self.began is None:
            self.began = now
        self.trained += self.work[folder] * share
        self.left[folder] = self.work[folder] * (1 - done)
        self.estimate(now)

    def estimate(self, now: float) -> None:
        """Say how long the plan takes at the speed of all that was trained so far, and no less than the run that takes longest."""
        if self.began is not None and self.trained > 0:
            all_left = sum(self.left.values()) / self.trained * (now - self.began)
            self.about = max([all_left, *(bar.left for bar in self.bars.values())])

    @property
    def outlook(self) -> str:
        """Return how many of the plan's runs are finished, and about how long the others take, once that is known."""
        return f"{self.finished}/{self.runs} runs" + (f" · about {clock(self.about)} left" if self.about is not None else "")


class _Lines(Progress):
    """A line for each run that trains, and one for the plan."""

    def __init__(self, display: Display) -> None:
        self.display, console = display, display.console
        self.overflow: OverflowMethod = "crop" if console.options.ascii_only else "ellipsis"  # which is a character of its own
        bar = BarColumn(bar_width=None, table_column=Column(ratio=1, width=4))  # as wide as the others leave room
        self.layouts = {width: (_Label(self.overflow), bar, *map(TextColumn, texts)) for width, texts in LAYOUTS.items()}
        super().__init__(*self.layouts[0], console=console, disable=not console.is_terminal, transient=True, expand=True)

    def get_renderables(self) -> Iterator[RenderableType]:
        self.columns = fitting(self.layouts, self.display.console)
        if self.tasks:
            yield self.make_tasks_table(self.tasks)
        foot = self.display.outlook if self.display.stop.asked() is None else STOPPING
        yield Text(foot, style="dim", no_wrap=True, overflow=self.overflow)


class _Label(ProgressColumn):
    """A run's label, cut where the other columns need the room."""

    def __init__(self, overflow: OverflowMethod) -> None:
        self.overflow: OverflowMethod = overflow
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(task.description, style="bold", no_wrap=True, overflow=self.overflow)


class RunBar:
    """The bar of one run, used as a context manager; step() and epoch() bring it up to date."""

    def __init__(self, display: Display, task: task.Task, images_per_epoch: int) -> None:
        self.display, self.console, self.progress = display, display.console, display.progress
        self.label, self.folder = task.label, task.run.folder
        self.epochs = task.run.resolved.config.train.epochs
        self.images_per_epoch = images_per_epoch
        self.curve: dict[float, float] = {}  # epoch -> validation top-1, percent
        self.started: tuple[float, int] | None = None  # time and steps done at the first call, for the time left
        self.done = 0
        self.left = 0.0  # seconds

    def __enter__(self) -> RunBar:
        self.task = self.progress.add_task(self.label, total=1, epoch="-", loss="-", top1="-", validation="", rate="-", left="?")
        self.display.bars[self.folder] = self
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.remove_task(self.task)
        self.display.bars.pop(self.folder, None)

    def step(self, done: int, total: int, loss: float, top1: float) -> None:
        """Show that `done` of `total` steps are done, with the epoch's mean loss and top-1 (percent)."""
        now = time.perf_counter()
        if self.started is None:
            self.started, self.done = (now, done), done
            self._read_journal()
        else:
            per_step = (now - self.started[0]) / max(1, done - self.started[1])
            self.left = per_step * (total - done)
            epoch = min(self.epochs, (done - 1) * self.epochs // total + 1)
            rate = self.images_per_epoch * self.epochs / total / per_step if per_step else 0.0
            self.progress.update(
                self.task, completed=done, total=total, epoch=f"{epoch}/{self.epochs}", loss=f"{loss:.3f}", top1=f"{top1:.1f}",
                validation=self._shown(), rate=f"{rate:,.0f}", left=clock(self.left),
            )  # fmt: skip
        self.display.trains(self.folder, done / total, now, (done - self.done) / total)
        self.done = done

    def epoch(self, row: Mapping[str, float]) -> None:
        """Show an epoch's row of metrics, as the journal has it."""
        self.curve[row["epoch"]] = _top1(row)
        if not self.console.is_terminal:
            self.console.print(
                f"{self.label}  epoch {row['epoch']:.0f}/{self.epochs}  loss {row['train/loss']:.3f}  train {row['train/top1']:.1f} %"
                f"{_validation(_top1(row))}  {row['perf/img_s']:,.0f} img/s, {row['perf/mfu']:.0f} % of peak",
                highlight=False,
                soft_wrap=True,
            )

    def _read_journal(self) -> None:
        """Take the epochs before, where the run was resumed: by its first step its journal has those and no more."""
        with contextlib.suppress(UserError):
            for _, entry in read_journal(self.folder / "journal.jsonl"):
                if entry["kind"] == "metrics" and "validation/top1" in entry["values"]:
                    self.curve[entry["values"]["epoch"]] = _top1(entry["values"])

    def _shown(self) -> str:
        """Return the last validation top-1 and, from two epochs on, the curve up to it."""
        if not self.curve:
            return ""
        rows = sorted(self.curve.items())
        marks = ASCII if self.console.options.ascii_only else BLOCKS
        curve = sparkline([top1 for _, top1 in rows], fitting(CURVE, self.console), marks) if len(rows) > 1 else ""
        return f"{_validation(rows[-1][1])} {curve}".rstrip()


def _top1(row: Mapping[str, float]) -> float:
    return row.get("validation/ema_top1", row["validation/top1"])


def _validation(top1: float) -> str:
    return f"  validation {top1:.1f} %"
