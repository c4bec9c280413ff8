"""`vitlab runs`: what has been trained here, finished or not."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from vitlab import terminal
from vitlab.paths import RUNS

Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add(command: Command) -> None:
    """Add `vitlab runs` to the commands."""
    runs = command("runs", _runs, "list the runs of this checkout, finished or not, with the size of the logits stored beside teachers")
    runs.add_argument(
        "--clear-logits", action="store_true", help="delete these logits instead; the next student has its teacher compute them anew"
    )


def _runs(args: argparse.Namespace) -> int:
    from vitlab import records
    from vitlab.report.tables import Column, table
    from vitlab.train import logits_store

    if args.clear_logits:
        print(f"deleted {logits_store.clear(RUNS) / 1e6:.1f} MB of teachers' logits")
        return 0
    folders = sorted(p for p in RUNS.glob("*/*/*") if p.is_dir())
    if not folders:
        print("no runs yet: start with 'vitlab run experiments', all of them, or 'vitlab run 01_baseline_vit'")
        return 0
    found = [(f, records.outcome(f / "record.json") if (f / "record.json").exists() else None) for f in folders]
    columns = (
        Column("Set", {"set": lambda run: run[0].parent.parent.name}, left=True),
        Column("Experiment", {"experiment": lambda run: run[0].parent.name}, left=True),
        Column("Run", {"run": lambda run: run[0].name}, left=True),
        Column("State", {"state": lambda run: "finished" if run[1] else "unfinished"}, left=True),
        Column("Test top-1 (%)", {"test_top1": lambda run: run[1] and run[1].metrics["test_top1"]}, "{:.2f}".format),
        Column("Finished (UTC)", {"finished": lambda run: run[1] and run[1].finished}, left=True),
        Column("Logits (MB)", {"logits_mb": lambda run: logits_store.megabytes(run[0]) or None}, "{:.1f}".format),
    )
    terminal.print_table(terminal.console(), table("", columns, found))
    return 0
