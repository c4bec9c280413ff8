"""Draw docs/terminal.svg: what the ladder and the report print, from published records; `python -m docs.make_terminal`.

vitlab's own functions print it. The records are those of the first published set, the one that results/README.md opens with, and of its
lowest seed. Nothing is trained, and no MLflow store is asked: the addresses that one would give are those of a new one.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from rich._export_format import CONSOLE_SVG_FORMAT  # rich has it nowhere else
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from vitlab import cli, files, records, terminal
from vitlab.data.sources import Source
from vitlab.paths import REPOSITORY
from vitlab.records import RunRecord
from vitlab.report import blocks, publishing, stamp
from vitlab.report.rungs import newest
from vitlab.run import queue
from vitlab.track import store, views

PICTURE = REPOSITORY / "docs" / "terminal.svg"
COLUMNS = 132  # a student's line, with its gain on the teacher, is the longest
# Without Rich's web fonts: the page must look the same without a network.
FORMAT = re.sub(r"\s*@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
THEME = TerminalTheme((27, 31, 36), (205, 211, 218), [(27, 31, 36), (229, 108, 108), (126, 190, 126), (226, 181, 98), (108, 164, 229), (198, 136, 214), (108, 198, 205), (205, 211, 218)])  # fmt: skip


def ladder(results: Path) -> list[RunRecord]:
    """Return the runs of README's set with its lowest seed, in the order they are trained in: a teacher before its students."""
    (name, *_) = blocks.names((REPOSITORY / "README.md").read_text(encoding="utf-8"), "results")
    kept = [run for run in newest(records.read_all(results / name))[0] if not run.variant]
    seed = min(run.seed for run in kept)
    by_name = {run.experiment: run for run in kept if run.seed == seed}
    order: dict[str, RunRecord] = {}
    for name in sorted(name for name in by_name if name[0].isdigit()):
        teacher = by_name[name].teacher
        if teacher is not None and teacher.experiment in by_name:
            order.setdefault(teacher.experiment, by_name[teacher.experiment])
        order[name] = by_name[name]
    return list(order.values())


@contextlib.contextmanager
def new_store(name: str) -> Iterator[None]:
    """Stand in for an MLflow store that holds the set `name` alone, with its database in the repository."""
    runs = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    with (
        contextlib.chdir(REPOSITORY),
        patch.object(cli, "REPORTS", REPOSITORY / "reports"),
        patch.object(cli, "RESULTS", REPOSITORY / "results"),
        patch.object(store, "server", lambda root: ""),
        patch.object(views, "addresses", lambda root: {"": runs, name: f"{runs}&viewStateShareKey={views.RUNS}{name}"}),
        patch.object(stamp, "holds", lambda *_: False),  # a report of the checkout's own runs may be up to date
        patch.object(
            publishing,
            "own",
            lambda *_: [REPOSITORY / "reports" / page for page in (f"{name}/README.md", f"{name}/report.html", "README.md")],
        ),
    ):
        yield


def render(runs: list[RunRecord]) -> str:
    """Return the SVG of a terminal in which `runs` are trained and reported on."""
    first = runs[0]
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), markup=False, highlight=False, force_terminal=True, color_system="truecolor", _environ={}
    )  # fmt: skip
    source = Source(
        "cifar10", first.dataset.name, None, first.dataset.digest, first.dataset.classes, mirror=True, train=first.dataset.train
    )
    with new_store(views.set_name(first.profile, first.dataset.name)):
        console.print(f"$ python runner.py experiments --profile {first.profile} --data {first.dataset.name}", style="bold green")
        terminal.announce(console, first.profile, source, [first.seed], runs, math.inf)
        queue.print_device(console, first.device, "sqlite:////home/you/vitlab/mlflow.db")
        for i, run in enumerate(runs, 1):
            terminal.print_result(console, f"{i}/{len(runs)} {run.experiment} · seed {run.seed}", run)
        terminal.print_summary(console, runs, REPOSITORY, REPOSITORY / "reports")
        console.print("\n$ vitlab report", style="bold green")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                cli.main(["report"])
            except SystemExit as e:
                if e.code:
                    raise
        console.print(printed.getvalue().rstrip())
    svg = console.export_svg(title="vitlab", theme=THEME, code_format=FORMAT, unique_id="vitlab")
    return re.sub(r"[ \t]+\n", "\n", svg)


def main() -> None:
    """Write the picture."""
    files.write(PICTURE, render(ladder(REPOSITORY / "results")))


if __name__ == "__main__":
    main()
