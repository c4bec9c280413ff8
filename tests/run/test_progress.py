"""progress.py: the live display and the plain lines, with a clock that is turned by hand."""

from __future__ import annotations

import json
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from vitlab.run import progress
from vitlab.run.progress import ASCII, Display, sparkline
from vitlab.train.loop import Stop


@pytest.mark.parametrize(
    ("values", "width", "shown"),
    [
        ([], 8, ""),
        ([61.0], 8, "▁"),
        ([61.0, 61.0], 8, "▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([50, 64, 57], 8, "▁█▅"),  # steps of 2: 0, 7, and 3.5, which is rounded to 4
        ([0, 2, 4, 8, 9, 13], 3, "▁▅█"),  # means 1, 6, 11; steps of 10/7: 0, 3.5 -> 4, 7
        ([1, 1, 7, 9, 14, 15, 16], 3, "▁▅█"),  # 2, 2 and 3 of them: means 1, 8, 15; 3.5 -> 4
    ],
)
def test_a_sparkline_by_hand(values: list[float], width: int, shown: str) -> None:
    assert sparkline(values, width) == shown


def test_a_sparkline_in_ascii() -> None:
    assert sparkline(range(8), 8, ASCII) == ASCII
    assert ASCII.isascii()


class Watched:
    """A display of a plan whose terminal is read, and whose clock is turned by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.now, self.stop = folder, 0.0, Stop()
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)

    def display(self, work: list[float], before: int = 0, width: int = 100, terminal: bool = True, encoding: str = "utf-8") -> Display:
        self.output = BytesIO()
        console = Console(file=TextIOWrapper(self.output, encoding, write_through=True), width=width, force_terminal=terminal, markup=False)
        return Display(console, {self.folder / str(i): flops for i, flops in enumerate(work)}, before, self.stop)

    def task(self, i: int, name: str = "01 Baseline ViT", epochs: int = 4) -> SimpleNamespace:
        cfg = SimpleNamespace(train=SimpleNamespace(epochs=epochs))
        return SimpleNamespace(
            label=f"{i + 1}/9 {name} · seed 0", run=SimpleNamespace(folder=self.folder / str(i), resolved=SimpleNamespace(config=cfg))
        )

    def lines(self, display: Display) -> list[str]:
        with display.console.capture() as captured:
            display.console.print(display.progress.get_renderable())
        return Text.from_ansi(captured.get()).plain.splitlines()


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


def row(epoch: int, top1: float) -> dict[str, float]:
    return {"epoch": epoch, "train/loss": 1.5, "train/top1": 40.0, "validation/top1": top1, "perf/img_s": 1234.0, "perf/mfu": 30.0}


def test_the_plans_time_left_by_hand(watched: Watched) -> None:
    display = watched.display([100.0, 300.0], before=2)
    assert display.outlook == "2/4 runs"
    with display.bar(watched.task(0), 1000) as bar:
        bar.step(1, 11, 2.0, 20.0)  # the clock begins here: what came before was loading
        watched.now = 10.0
        bar.step(6, 11, 1.9, 25.0)  # 5/11 of 100 in 10 s; 5/11 of 100 and 300 are left
        assert display.outlook == "2/4 runs · about 1:16 left"  # 345.5 / 45.5 * 10 = 76
        watched.now = 20.0
        bar.step(11, 11, 1.8, 30.0)
    display.end(watched.folder / "0")
    assert display.outlook == "3/4 runs · about 1:06 left"  # 300 / 90.9 * 20


def test_a_plan_takes_no_less_than_its_slowest_run(watched: Watched) -> None:
    display = watched.display([1000.0, 100.0])
    with display.bar(watched.task(0), 1000) as fast, display.bar(watched.task(1), 1000) as slow:
        fast.step(0, 10, 2.0, 20.0)
        slow.step(0, 10, 2.0, 20.0)
        watched.now = 9.0
        slow.step(1, 10, 2.0, 20.0)  # 81 s to go
        fast.step(9, 10, 2.0, 20.0)  # 910 in 9 s, 190 are left: 2 s
    assert display.outlook == "0/2 runs · about 1:21 left"


def test_what_another_process_finishes_counts(watched: Watched) -> None:
    display = watched.display([100.0, 100.0, 100.0])
    with display.bar(watched.task(0), 1000) as bar:
        bar.step(0, 2, 2.0, 20.0)
        watched.now = 10.0
        bar.step(1, 2, 2.0, 20.0)
        display.end(watched.folder / "1")
    assert display.outlook == "1/3 runs · about 0:30 left"  # 150 at 50 in 10 s


@pytest.mark.parametrize(
    ("width", "there", "missing"),
    [(80, "3/4  validation 57.0 % ▁█▅ 0:10 left", "loss"), (120, "epoch 3/4  train 40.0 %  validation 57.0 % ▁█▅ 0:10 left", "loss"),
     (160, "epoch 3/4  loss 1.500  train 40.0 %  validation 57.0 % ▁█▅ 100 img/s  0:10 left", "…")],
)  # fmt: skip
def test_a_run_has_one_line_at_any_width(watched: Watched, width: int, there: str, missing: str) -> None:
    display = watched.display([100.0], width=width)
    with display.bar(watched.task(0, "06 ResNet-50 distillation, class attention"), 1000) as bar:
        bar.step(0, 40, 2.0, 20.0)
        for epoch, top1 in ((1, 50.0), (2, 64.0), (3, 57.0)):
            bar.epoch(row(epoch, top1))
        watched.now = 30.0
        bar.step(30, 40, 1.5, 40.0)
        line, foot = watched.lines(display)
    assert line.startswith("1/9 06 ResNet-50 dist")
    assert there in line
    assert missing not in line
    assert len(line.rstrip()) <= width
    assert foot.rstrip() == "0/1 runs · about 0:10 left"


def test_a_resumed_runs_curve_begins_with_its_journal(watched: Watched) -> None:
    display = watched.display([100.0])
    (watched.folder / "0").mkdir()
    entries = [
        {"kind": "event", "time": 0, "text": "resumed"},
        *({"kind": "metrics", "time": 0, "values": row(*e)} for e in ((1, 50.0), (2, 64.0))),
    ]
    (watched.folder / "0" / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with display.bar(watched.task(0), 1000) as bar:
        bar.step(21, 40, 2.0, 20.0)
        bar.epoch(row(3, 57.0))
        watched.now = 1.0
        bar.step(31, 40, 2.0, 20.0)
        assert "validation 57.0 % ▁█▅" in watched.lines(display)[0]


def test_a_terminal_without_unicode(watched: Watched) -> None:
    display = watched.display([100.0], width=80, encoding="latin-1")
    with display, display.bar(watched.task(0, "06 ResNet-50 distillation, class attention"), 1000) as bar:
        bar.step(0, 40, 2.0, 20.0)
        for epoch in (1, 2, 3):
            bar.epoch(row(epoch, 50.0 + epoch))
        watched.now = 30.0
        bar.step(30, 40, 1.5, 40.0)
        display.progress.refresh()
    assert "validation 53.0 % _=#" in watched.output.getvalue().decode("latin-1")


def test_a_stop_is_announced_below_the_bars(watched: Watched) -> None:
    display = watched.display([100.0])
    watched.stop.signal = 2
    assert [line.rstrip() for line in watched.lines(display)] == [progress.STOPPING]


def test_a_log_has_a_line_an_epoch_and_no_curve(watched: Watched) -> None:
    display = watched.display([100.0], terminal=False)
    with display, display.bar(watched.task(0), 1000) as bar:
        bar.step(10, 40, 2.0, 20.0)
        bar.epoch(row(1, 50.0))
        bar.epoch(row(2, 64.0) | {"validation/ema_top1": 65.25})
    assert watched.output.getvalue().decode() == (
        "1/9 01 Baseline ViT · seed 0  epoch 1/4  loss 1.500  train 40.0 %  validation 50.0 %  1,234 img/s, 30 % of peak\n"
        "1/9 01 Baseline ViT · seed 0  epoch 2/4  loss 1.500  train 40.0 %  validation 65.2 %  1,234 img/s, 30 % of peak\n"
    )
