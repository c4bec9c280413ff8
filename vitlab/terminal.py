"""What the commands print: the plan, results, tables. Heavy modules are imported where they are needed, as in cli.py."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.errors import UserError
from vitlab.files import printable
from vitlab.paths import CHECKOUT, ROOT

if TYPE_CHECKING:
    from rich.console import Console

    from vitlab.claims.declarations import Ledger
    from vitlab.claims.ledger import Book
    from vitlab.claims.power import Power
    from vitlab.data.sources import Source
    from vitlab.records import RunRecord
    from vitlab.report.tables import Table
    from vitlab.run.engines.flags import Options
    from vitlab.run.plan import Run


LONG = 200  # rows
ASSUMED = 45e9  # FLOP/s of a CPU's core, before any run has shown what it is


def console() -> Console:
    """Return the console that all commands print to."""
    from rich.console import Console

    # No markup, because titles, variations and folders may contain brackets. A log file has no edge to wrap at.
    return Console(markup=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def short(path: Path) -> str:
    """Return the path as seen from the current directory."""
    return os.path.relpath(path)


def announce(console: Console, profile: str, source: Source, seeds: list[int], runs: list[Run], budget: float) -> None:
    """Print what is about to be trained, and on what data. `budget` is in seconds, infinite for none."""
    from rich.panel import Panel

    from vitlab.run.progress import clock

    if source.note:
        console.print(Panel(source.note, border_style="yellow", title="data", title_align="left"), soft_wrap=False)
    limit = f" · budget {clock(budget)}" if math.isfinite(budget) else ""
    if not CHECKOUT:
        console.print(f"runs/, reports/ and mlflow.db are in {ROOT}")
    console.print(
        f"profile {profile} · data {source.name} · seeds {', '.join(map(str, seeds))} · {len(runs)} run{'s' * (len(runs) != 1)}{limit}"
    )


def print_plan(
    console: Console, runs: list[Run], options: Options, speed: float | None, settles: Mapping[Path, list[str]] | None = None
) -> None:
    """Print the runs in their order, and how long they will take by the engine of `options` at `speed`, in FLOP/s; None: not known.

    `settles` maps a run's folder to the claims that have all their runs once this one is finished.
    """
    from rich.table import Table

    from vitlab.run import plan
    from vitlab.run.progress import clock

    rate = speed or ASSUMED * (os.cpu_count() or 1)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, justify in (
        ("", "right"), ("experiment", "left"), ("seed", "right"), ("teacher", "left"), ("state", "left"), ("epochs", "right"),
        ("params", "right"), ("FLOPs/img", "right"), ("time", "right"), *([] if settles is None else [("settles", "left")]),
    ):  # fmt: skip
        table.add_column(title, justify=justify)
    flops = plan.flops_left(runs, stores=not plan.gpus())
    for i, run in enumerate(runs, 1):
        cfg = run.resolved.config
        state = "finished" if run.finished else "resumes" if not run.anew and (run.folder / "checkpoint.pt").exists() else "new"
        table.add_row(
            str(i), run.resolved.label, str(run.seed), run.teacher.resolved.id if run.teacher else "", state, str(cfg.train.epochs),
            f"{run.params / 1e6:.2f} M", f"{run.flops / 1e6:,.0f} M", "-" if run.finished else clock(flops[run.folder] / rate),
            *([] if settles is None else [", ".join(settles.get(run.folder, []))]),
        )  # fmt: skip
    console.print(table)
    if options.engine == "local":
        console.print("{} to go, by {}".format(*hours(runs, options.jobs, speed)))
    else:
        print_schedule(console, runs, options.gpus, speed)


def print_schedule(console: Console, runs: list[Run], gpus: int | None, speed: float | None) -> None:
    """Print when the unfinished runs are done on so many GPUs, one run on each, and the path and the hours that this takes.

    gpus: None for one for each run. speed: of one GPU, in FLOP/s; None: not known.
    """
    from vitlab.run import jobs, plan
    from vitlab.run.progress import clock

    flops, rate = plan.flops_left(runs, stores=False), speed or ASSUMED * (os.cpu_count() or 1)
    unfinished = [run for run in runs if not run.finished]
    if not unfinished:
        console.print("all runs are finished: nothing to train")
        return

    def seconds(run: Run) -> float:
        return flops[run.folder] / rate

    gpus = gpus or len(unfinished)
    end = max(planned.end for planned in jobs.schedule(unfinished, gpus, seconds))
    used = sum(map(seconds, unfinished))
    path = jobs.critical_path(unfinished, seconds)
    console.print(
        f"{gpus} GPUs, one run on each: finished after about {clock(end)}, by {basis(speed)}; {used / 3600:.1f} GPU hours, {used / end / gpus:.0%} of "
        f"the {gpus * end / 3600:.1f} until then"
    )
    console.print(
        f"critical path: {', then '.join(f'{run.label} ({clock(seconds(run))})' for run in path)}: {clock(sum(map(seconds, path)))}, "
        "however many GPUs there are"
    )


def basis(speed: float | None) -> str:
    """Return what an estimate of time is based on."""
    return "the speed of the last finished run here" if speed else f"an assumed {ASSUMED / 1e9:.0f} GFLOP/s per CPU core"


def hours(runs: list[Run], jobs: int | None, speed: float | None) -> tuple[str, str]:
    """Return how long the unfinished runs take with so many `jobs`, as text, and by what speed; `speed` in FLOP/s, None: not known."""
    from vitlab.run import jobs as order
    from vitlab.run import plan
    from vitlab.run.progress import clock

    threads = os.cpu_count() or 1
    left = sum(plan.flops_left(runs, stores=not plan.gpus()).values()) / (speed or ASSUMED * threads)
    unfinished = [run for run in runs if not run.finished]
    jobs = jobs or (1 if plan.gpus() else order.best(unfinished, threads))
    beside = f" with --jobs {jobs}" if jobs > 1 and unfinished else ""
    if beside:
        left *= order.makespan(unfinished, jobs, threads) / order.makespan(unfinished, 1, threads)
    return f"about {clock(left)}{beside}", basis(speed)


def print_result(console: Console, label: str, record: RunRecord) -> None:
    """Print a finished run's line: accuracy, time and speed."""
    from rich.text import Text

    from vitlab.run.progress import clock

    student = f"  {record.teacher.gain:+.2f} on its teacher" if record.teacher else ""
    share = f", {record.perf['mfu']:.0f} % of peak" if record.perf else ""
    speed = f"{clock(record.train_seconds)}  {record.img_s:,.0f} img/s{share}{student}"
    console.print(
        Text.assemble(
            f"{label}  ",
            (f"test top-1 {record.metrics['test_top1']:.2f} %", "bold"),
            f"  top-5 {record.metrics['test_top5']:.2f} %  {speed}",
        )
    )


def print_table(console: Console, table: Table) -> None:
    """Print one of the report's tables; a long one as lines of text, since rich lays out each cell, which takes a millisecond a row."""
    from rich import cells
    from rich import table as grids

    rows = [[printable(cell) for _, cell in row] for row in table.rows]
    if len(rows) > LONG:
        lines = [[column.heading for column in table.columns], *rows]
        widths = [max(map(cells.cell_len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            padded = [
                text + pad if column.left else pad + text
                for column, text, width in zip(table.columns, line, widths, strict=True)
                for pad in [" " * (width - cells.cell_len(text))]
            ]
            print("  ".join(padded).rstrip(), file=console.file)
        return
    grid = grids.Table(title=printable(table.caption), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in table.columns:
        grid.add_column(column.heading, justify="left" if column.left else "right")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)


def print_summary(console: Console, done: list[RunRecord], root: Path, reports_dir: Path) -> None:
    """Print the finished runs' table, and where their report and the table of them in the MLflow store of `root` are."""
    from vitlab.report import set_page
    from vitlab.track import store, views

    first = done[0]
    print_table(console, set_page.closing(done))
    where = reports_dir / f"{first.profile}-{first.dataset.name}"
    console.print(f"report: {'make' if CHECKOUT else 'vitlab'} report, then {short(where)}/report.html")
    with contextlib.suppress(UserError):  # a server that is down has been reported before
        tables = views.addresses(root)
        ui = "make ui" if CHECKOUT else f"mlflow server --backend-store-uri {store.shown_uri(root)}"
        table = tables.get(views.set_name(first.profile, first.dataset.name), tables[""])
        console.print(f"compare runs: {'' if store.server(root) else f'{ui}, then '}{table}")


def print_ledger(console: Console, declared: Ledger, path: Path, name: str, book: Book | None) -> None:
    """Print each primary claim of the set `name`, declared in the file `path`, with its effect, interval and verdict; then what else was measured."""
    from rich.table import Table

    from vitlab.claims import ledger, verdicts
    from vitlab.report import claims_page, words

    table = Table(title=printable(name), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for title in ("claim", "statement", "wanted", "effect", "seeds", "p (Holm)", "verdict"):
        table.add_column(title, justify="right" if title in ("wanted", "effect", "seeds", "p (Holm)") else "left", no_wrap=title == "claim")
    if book is None:
        console.print(f"{printable(name)}: no claim is measured; '--run' trains what they need")
        return
    results = [*(r for r in book.results if r.primary), *(r for r in book.exploratory if r.effect is not None)]
    for i, r in enumerate(results):
        interval = "" if r.low is None or r.high is None else f" [{r.low:.3g}, {r.high:.3g}]"
        verdict = claims_page.verdict(r, book) + (f"; of these two runs: p {r.pair.p:.2g}" if r.pair else "")
        verdict += f": {r.note}" if r.note and (r.verdict == "not measured" or (r.verdict == "interim" and len(r.seeds) > 1)) else ""
        table.add_row(
            r.id, printable(r.statement), verdicts.rule(r) if r.primary else "", "" if r.effect is None else f"{r.effect:.3g}{interval}",
            str(len(r.seeds) or ""), "" if r.p_holm is None else f"{r.p_holm:.2g}", f"{verdict}{', declared anew' if r.changed else ''}",
            end_section=i + 1 < len(results) and r.primary and not results[i + 1].primary,
        )  # fmt: skip
    console.print(table, soft_wrap=False)  # statements wrap within their column
    seeds = " or ".join(f"{stage.seeds}" for stage in declared.stages)
    console.print("\n".join(filter(None, (ledger.opening(book), ledger.so_far(book), ledger.said(book)))))
    holm = f"Holm over {words.claims(book.tested)}; " if book.tested else ""
    console.print(
        f"intervals over seeds, {declared.confidence:.0%}; planned: {seeds} seeds from {declared.first_seed} on; {holm}"
        f"declared in {short(path.resolve())}"
    )


def print_left_out(console: Console, data: str, lacked: Mapping[str, Sequence[str]]) -> None:
    """Print which claims are left out because the data set `data` lacks classes, and these where they are known; nothing where there are none."""
    if lacked:
        named = "; ".join(f"{claim} ({', '.join(classes)})" if classes else claim for claim, classes in lacked.items())
        console.print(printable(f"left out, about classes that {data} does not have: {named}"))


def print_power(console: Console, declared: Ledger, profile: str, power: Mapping[str, Power]) -> None:
    """Print what the planned seeds can find out about each primary claim."""
    from rich.table import Table

    from vitlab.claims import declarations
    from vitlab.claims.power import WANTED
    from vitlab.report import words

    tested = declared.tested(profile)
    table = Table(box=None, header_style="bold", pad_edge=False)
    totals = [f"{stage.seeds} seeds" for stage in declared.stages]
    for title in ("claim", "wanted", "expected", *totals, "sees"):
        table.add_column(title, justify="left" if title == "claim" else "right")
    for claim in tested:
        of = power.get(claim.id)
        expected = claim.planned_for
        chances = [f"{100 * chance:.0f} %" for chance in of.chances] if of and of.chances else ["–"] * len(totals)
        table.add_row(
            claim.id,
            declarations.rule(*claim.region),
            "–" if expected is None else f"{expected:+g}",
            *chances,
            "–" if of is None else f"{of.distance:.2g} {claim.unit}",
        )
    console.print(table)
    formula = sum(claim.primary and claim.exact for claim in declared.claims)
    console.print(
        f"chance of a verdict by so many seeds if the effect is the expected one, at the declared spread, Holm over {words.claims(len(tested))}; sees: the "
        f"distance from the bound that is found in {WANTED:.0%} of all cases"
        + (f"; {formula} more by formula, without a run" if formula else "")
    )


def print_cost(console: Console, stage: int, seeds: Sequence[int], runs: list[Run], jobs: int | None, speed: float | None) -> None:
    """Print how many runs a stage of claims adds to the one before, and how long they take at `speed`, in FLOP/s; None: not known."""
    left, by = hours(runs, jobs, speed)
    finished = sum(run.finished for run in runs)
    most = "at most " if stage > 1 else ""
    console.print(f"stage {stage}, seeds {seeds[0]} to {seeds[-1]}: {most}{len(runs)} runs more, {finished} finished; {left}, by {by}")
