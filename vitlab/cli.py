"""The commands. Heavy modules are imported where they are needed: `--help` and `--dry-run` start at once.

Exit codes: 0; 1 where training failed, the disk is full or a published number is wrong, and for a bug, with its traceback; 2 for a
user's mistake, with one message; 128 + the signal where one stopped it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vitlab import errors
from vitlab.errors import UserError
from vitlab.files import DiskFull, printable, writing
from vitlab.paths import EXPERIMENTS, REPORTS, RESULTS, ROOT, RUNS
from vitlab.run import signals

if TYPE_CHECKING:
    from rich.console import Console

    from vitlab.claims.declarations import Ledger
    from vitlab.claims.verdicts import Result
    from vitlab.data.sources import Source
    from vitlab.records import RunRecord
    from vitlab.report.tables import Table
    from vitlab.run.plan import Run


def _guard(command: Callable[[], int]) -> NoReturn:
    """Run a command; a user's mistake becomes one clear message and exit code 2, anything unexpected a traceback and exit code 1."""
    try:
        with signals.on_signals(signals.stop_at_once):
            code = command()
        gc.freeze()  # or the interpreter's last collection walks all that torch and MLflow have made: 1.5 s
        sys.exit(code)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except DiskFull as e:
        print(f"error: {printable(str(e))}", file=sys.stderr)
        sys.exit(1)
    except Exception as e:
        text = errors.message(e)
        if text is None or os.environ.get("VITLAB_DEBUG"):
            traceback.print_exc()
            if text is None:
                print("This should not have happened. Please report it as an issue, with the traceback above", file=sys.stderr)
            sys.exit(1)
        print(f"error: {printable(text)}", file=sys.stderr)
        sys.exit(2)


# ------------------------------------------------------------------------------------------------------- runner.py


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(s) for s in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': expected whole numbers with commas between, for example 0,1,2") from None
    if any(not 0 <= s < 2**32 for s in seeds):
        raise argparse.ArgumentTypeError(f"'{text}': seeds are between 0 and 2^32 - 1")
    return list(dict.fromkeys(seeds))


def _budget(text: str) -> float:
    """Seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"'{text}': expected a time with its unit, for example 3600s, 90m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def _add_data_flags(parser: argparse.ArgumentParser, data: str = "auto") -> None:
    parser.add_argument("--data", default=data, metavar="auto|cifar10|cifar100|digits|PATH", help="data set (default: %(default)s)")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("VITLAB_DATA_DIR", "data")),
        metavar="DIR",
        help="where CIFAR-10 lies or goes (default: $VITLAB_DATA_DIR or data)",
    )


def _add_profile_flag(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--profile", default="auto", choices=["auto", "quick", "ledger", "overnight", "full"], help=f"default: {default}")


def _add_run_flags(parser: argparse.ArgumentParser, seeds: list[int] | None, default: str) -> None:
    parser.add_argument("--seeds", type=_seeds, default=seeds, metavar="0,1,2", help=f"default: {default}")
    parser.add_argument(
        "--budget", type=_budget, default=math.inf, metavar="90m", help="stop after so much time (s, m, h), saved to go on from there"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, train nothing")


def run_main(argv: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(
        prog="runner.py", description="Run experiments: a teacher before its students, finished runs skipped, unfinished ones resumed."
    )
    parser.add_argument("experiments", nargs="+", type=Path, metavar="EXPERIMENT.yaml|DIR")
    _add_profile_flag(parser, "full with CUDA, else quick")
    _add_data_flags(parser)
    _add_run_flags(parser, [0], "0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value, for example optim.lr=1e-3")
    parser.add_argument("--force", action="store_true", help="run the named experiments anew, finished or not")
    args = parser.parse_args(argv)
    _guard(lambda: _run(args))


def _console() -> Console:
    from rich.console import Console

    # No markup: what is printed names titles, variations and folders, which may hold brackets. A log file has no edge to wrap at.
    return Console(markup=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def _run(args: argparse.Namespace) -> int:
    from vitlab.data import sources
    from vitlab.run import plan

    deadline = time.monotonic() + args.budget
    console = _console()
    profile = _profile(args.profile)
    source = sources.resolve(args.data, args.data_dir, profile, download=not args.dry_run)
    runs = plan.make(args.experiments, profile, source, args.seeds, tuple(args.set), RUNS)
    if math.isfinite(args.budget):
        runs = plan.students_first(runs)
    named = {p.resolve() for p in plan.expand(args.experiments)}
    _announce(console, profile, source, args.seeds, runs, args.budget)
    if args.dry_run:
        return _print_plan(console, runs)
    return _train(console, runs, named if args.force else set(), source, deadline)


def _train(console: Console, runs: list[Run], forced: set[Path], source: Source, deadline: float) -> int:
    from vitlab.run import queue

    code, done = queue.train(console, runs, forced, source, deadline, ROOT, lambda label, record: _print_result(console, label, record))
    if code == 0 and all(run.finished for run in runs):
        _print_summary(console, done)
    return code


def _announce(console: Console, profile: str, source: Source, seeds: list[int], runs: list[Run], budget: float) -> None:
    from rich.panel import Panel

    from vitlab.run.progress import clock

    if source.note:
        console.print(Panel(source.note, border_style="yellow", title="data", title_align="left"), soft_wrap=False)
    limit = f" · budget {clock(budget)}" if math.isfinite(budget) else ""
    console.print(f"profile {profile} · data {source.name} · seeds {', '.join(map(str, seeds))} · {len(runs)} runs{limit}")


def _profile(asked: str) -> str:
    """auto: full with CUDA, else quick. torch, seconds to load, is asked only where NVIDIA's driver knows of a GPU."""
    if asked != "auto":
        return asked
    from vitlab.run import plan

    if plan.gpus():
        import torch

        return "full" if torch.cuda.is_available() else "quick"
    return "quick"


def _print_plan(console: Console, runs: list[Run], settles: Mapping[Path, list[str]] | None = None) -> int:
    """`settles`: the claims that have all their runs with the run in this folder."""
    from rich.table import Table

    from vitlab.run import plan
    from vitlab.run.progress import clock

    speed = plan.measured_speed(RUNS)
    basis = "the speed of the last finished run here" if speed else "an assumed 45 GFLOP/s per CPU core"
    speed = speed or 45e9 * (os.cpu_count() or 1)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, justify in (
        ("", "right"), ("experiment", "left"), ("seed", "right"), ("teacher", "left"), ("state", "left"), ("epochs", "right"),
        ("params", "right"), ("FLOPs/img", "right"), ("time", "right"), *([] if settles is None else [("settles", "left")]),
    ):  # fmt: skip
        table.add_column(title, justify=justify)
    flops = plan.flops_left(runs, stores=not plan.gpus())
    for i, run in enumerate(runs, 1):
        cfg = run.resolved.config
        state = "finished" if run.finished else "resumes" if (run.folder / "checkpoint.pt").exists() else "new"
        table.add_row(
            str(i), run.resolved.label, str(run.seed), run.teacher.resolved.id if run.teacher else "", state, str(cfg.train.epochs),
            f"{run.params / 1e6:.2f} M", f"{run.flops / 1e6:,.0f} M", "-" if run.finished else clock(flops[run.folder] / speed),
            *([] if settles is None else [", ".join(settles.get(run.folder, []))]),
        )  # fmt: skip
    console.print(table)
    console.print(f"about {clock(sum(flops.values()) / speed)} to go, by {basis}")
    return 0


def _short(path: Path) -> str:
    return os.path.relpath(path)


def _print_result(console: Console, label: str, record: RunRecord) -> None:
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


def _print_table(console: Console, table: Table) -> None:
    from rich import table as grids

    grid = grids.Table(title=printable(table.caption), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in table.columns:
        grid.add_column(column.heading, justify="left" if column.left else "right")
    for row in table.rows:
        grid.add_row(*(printable(cell) for _, cell in row))
    console.print(grid)


def _print_summary(console: Console, done: list[RunRecord]) -> None:
    from vitlab.report import set_page
    from vitlab.track import store, views

    first = done[0]
    _print_table(console, set_page.closing(done))
    where = REPORTS / f"{first.profile}-{first.dataset.name}"
    console.print(f"report: make report, then {_short(where)}/report.html")
    with contextlib.suppress(UserError):  # a server that is down: said before
        tables = views.addresses(ROOT)
        table = tables.get(views.set_name(first.profile, first.dataset.name), tables[""])
        console.print(f"compare runs: {'' if store.server(ROOT) else 'make ui, then '}{table}")


# ---------------------------------------------------------------------------------------------------------- vitlab


def main(argv: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="vitlab", description="What surrounds the runs; the runs themselves are started with runner.py.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    report = command("report", _report, "compile reports/ (tables, pictures, HTML) from the finished runs in MLflow")
    report.add_argument("--publish", action="store_true", help="add them to what is published: results/ and the blocks of README.md")
    runs = command(
        "runs", _list_runs, "list the runs of this checkout, finished or not, with the size of the logits stored beside teachers"
    )
    runs.add_argument(
        "--clear-logits", action="store_true", help="delete these logits instead; the next student has its teacher compute them anew"
    )
    predict = command("predict", _predict, "classify images with the best CIFAR-10 model, trained here or published")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    model = predict.add_mutually_exclusive_group()
    model.add_argument(
        "--data", default="cifar10", metavar="cifar10|cifar100|digits|PATH",
        help="the data set whose best model answers: students first, then by validation top-1 (default: %(default)s)",
    )  # fmt: skip
    model.add_argument("--run", type=Path, metavar="FOLDER", dest="folder", help="this finished run answers")
    pack = command("pack", _pack, "archive finished runs, weights in half precision, in parts small enough to carry")
    pack.add_argument("folder", nargs="?", type=Path, default=RUNS, metavar="FOLDER", help="all runs, or a folder of them (default: all)")
    pack.add_argument("--to", type=Path, default=Path("packed"), metavar="DIR", help="where the archive goes (default: %(default)s)")
    data = command("data", _data, "make CIFAR-10 available under --data-dir and check it")
    _add_data_flags(data)
    sync = command("sync", _sync, "ship to MLflow what has not reached it yet")
    sync.add_argument("folder", nargs="?", type=Path, default=RUNS, metavar="RUNS")
    ui = command("ui", _ui, "print where MLflow's UI shows the runs of each set; 'make ui' starts it")
    ui.add_argument("--port", type=int, default=5000, help="the port that it listens on (default: %(default)s)")
    schema = command("schema", _schema, "write the JSON Schema that lets editors complete and check experiment files")
    schema.add_argument("file", nargs="?", type=Path, default=EXPERIMENTS / "schema.json", metavar="FILE")
    claims = command("claims", _claims, "print what was measured of each declared claim; with --run, train what that takes")
    either = claims.add_mutually_exclusive_group()
    either.add_argument("--json", action="store_true", help="print it as JSON")
    either.add_argument(
        "--run", action="store_true", dest="train", help="train the runs of the claims first, so ordered that most are settled soonest"
    )
    _add_profile_flag(claims, "the largest one with measured claims; with --run, ledger")
    _add_data_flags(claims, "cifar10")
    _add_run_flags(claims, None, "as many as the ledger plans")
    claims.add_argument("--only", type=lambda ids: ids.split(","), default=[], metavar="ID,ID", help="train for these claims only")
    command("verify", _verify, "check that the published pages follow from the published records")
    args = parser.parse_args(argv)
    _guard(lambda: args.run(args))


def _report(args: argparse.Namespace) -> int:
    from vitlab.report import publishing

    compiled, folder = (publishing.publish, RESULTS) if args.publish else (publishing.own, REPORTS)
    with writing(folder):
        for path in compiled(ROOT, folder, lambda text: print(printable(text), file=sys.stderr)):
            print(_short(path))
    if not args.publish:
        print(f"the report is in {_short(folder)}; 'vitlab report --publish' adds it to {_short(RESULTS)} and README.md")
    return 0


def _list_runs(args: argparse.Namespace) -> int:
    from vitlab import records
    from vitlab.report.tables import Column, table
    from vitlab.train import logits_store

    if args.clear_logits:
        print(f"deleted {logits_store.clear(RUNS) / 1e6:.1f} MB of teachers' logits")
        return 0
    folders = sorted(p for p in RUNS.glob("*/*/*") if p.is_dir())
    if not folders:
        print("no runs yet: start with 'make reproduce-all' or 'python runner.py experiments/01_baseline_vit.yaml'")
        return 0
    found = [(f, records.read(f / "record.json") if (f / "record.json").exists() else None) for f in folders]
    columns = (
        Column("Set", {"set": lambda run: run[0].parent.parent.name}, left=True),
        Column("Experiment", {"experiment": lambda run: run[0].parent.name}, left=True),
        Column("Run", {"run": lambda run: run[0].name}, left=True),
        Column("State", {"state": lambda run: "finished" if run[1] else "unfinished"}, left=True),
        Column("Test top-1 (%)", {"test_top1": lambda run: run[1] and run[1].metrics["test_top1"]}, "{:.2f}".format),
        Column("Finished (UTC)", {"finished": lambda run: run[1] and run[1].finished}, left=True),
        Column("Logits (MB)", {"logits_mb": lambda run: logits_store.megabytes(run[0]) or None}, "{:.1f}".format),
    )
    _print_table(_console(), table("", columns, found))
    return 0


def _claims(args: argparse.Namespace) -> int:
    from vitlab.claims import declarations
    from vitlab.config import PROFILES

    ledger = declarations.load()
    if args.train:
        return _run_claims(args, ledger)
    idle = {"--seeds": args.seeds, "--budget": math.isfinite(args.budget), "--only": args.only, "--dry-run": args.dry_run}
    if given := [flag for flag, value in idle.items() if value]:
        raise UserError(f"{', '.join(given)}: about training; add --run")
    with_runs = [p for p in reversed(PROFILES) if any((top / f"{p}-{args.data}").is_dir() for top in (RUNS, RESULTS))]
    for profile in (with_runs or ["ledger"]) if args.profile == "auto" else [args.profile]:
        results = _results(ledger, profile, args.data)
        if any(result.seeds for result in results):
            break
    if args.json:
        print(json.dumps([result.model_dump(mode="json") for result in results], indent=1))
    else:
        _print_ledger(_console(), ledger, f"{profile} · {args.data}", results)
    return 0


def _run_claims(args: argparse.Namespace, ledger: Ledger) -> int:
    from vitlab.claims import needed
    from vitlab.data import sources

    deadline = time.monotonic() + args.budget
    console = _console()
    profile = "ledger" if args.profile == "auto" else args.profile
    source = sources.resolve(args.data, args.data_dir, profile, download=not args.dry_run)
    seeds = args.seeds or list(range(ledger.seeds))
    planned = needed.make(ledger, args.only, profile, source, seeds, RUNS, RESULTS)
    _announce(console, profile, source, seeds, planned.runs, args.budget)
    if args.dry_run:
        return _print_plan(console, planned.runs, planned.settles)
    code = _train(console, planned.runs, set(), source, deadline) if planned.runs else 0  # all of them may be published
    if code == 0:
        results = _results(ledger, profile, source.name)
        _print_ledger(console, ledger, f"{profile} · {source.name}", results)
    return code


def _results(declared: Ledger, profile: str, data: str) -> list[Result]:
    from vitlab.claims import ledger, needed

    return needed.results(declared, profile, data, RUNS, RESULTS, ledger.judged_before(RESULTS / f"{profile}-{data}"))


def _print_ledger(console: Console, ledger: Ledger, name: str, results: list[Result]) -> None:
    from collections import Counter

    from rich.table import Table

    from vitlab.claims import declarations, verdicts

    table = Table(title=printable(name), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for title in ("claim", "statement", "wanted", "effect", "seeds", "p (Holm)", "verdict"):
        table.add_column(title, justify="right" if title in ("wanted", "effect", "seeds", "p (Holm)") else "left", no_wrap=title == "claim")
    for r in results:
        interval = "" if r.low is None or r.high is None else f" [{r.low:.3g}, {r.high:.3g}]"
        more = f", {r.more_seeds} more seeds" if r.more_seeds else ""
        more += f"; of these two runs: p {r.pair.p:.2g}" if r.pair else ""
        table.add_row(
            r.id, printable(r.statement), verdicts.rule(r), "" if r.effect is None else f"{r.effect:.3g}{interval}",
            str(len(r.seeds) or ""), "" if r.p_holm is None else f"{r.p_holm:.2g}", f"{r.verdict}{more}{', declared anew' if r.changed else ''}",
        )  # fmt: skip
    console.print(table, soft_wrap=False)  # statements wrap within their column
    counts = Counter(r.verdict for r in results)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    console.print(f"{told}; intervals over seeds, {ledger.confidence:.0%}; declared in {_short(declarations.FILE)}")


def _verify(args: argparse.Namespace) -> int:
    from vitlab.report import verify

    checked, wrong = verify.verify(ROOT, RESULTS)
    for line in wrong:
        print(printable(line))
    if wrong:
        print(
            "'vitlab report --publish', and 'python -m benchmarks.bench --page --publish' or '... benchmarks.growth --page --publish', write "
            "these pages anew from what was measured"
        )
        return 1
    for path in checked:
        print(f"{_short(path)}: as measured")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from vitlab.run import predict

    chosen = predict.own(args.folder) if args.folder else predict.best(args.data, RUNS, RESULTS)
    for line in predict.classify(args.images, chosen):
        print(printable(line))
    return 0


def _pack(args: argparse.Namespace) -> int:
    from vitlab.run import pack

    parts = pack.pack(args.folder, RUNS, args.to, lambda text: print(printable(text)))
    for path in parts:
        print(printable(f"{path}: {path.stat().st_size / 1e6:.1f} MB"))
    every = shlex.quote(str(parts[0].with_suffix(""))) + ".*"
    print(printable(f"to unpack, in another checkout: mkdir -p runs && cat {every} | tar xf - -C runs"))
    return 0


def _data(args: argparse.Namespace) -> int:
    from vitlab.data import sources

    for line in sources.prepare(args.data_dir):
        print(line)
    return 0


def _sync(args: argparse.Namespace) -> int:
    from vitlab.run import predict
    from vitlab.track import shipping

    if not args.folder.is_dir():
        raise UserError(f"{args.folder}: no such folder; expected a folder of runs, by default {_short(RUNS)}")
    outcome = shipping.sync(args.folder, ROOT, predict.model_to_log)
    for label, ok, reason in outcome:
        print(printable(f"{label}: {'shipped' if ok else f'not shipped: {reason}'}"))
    if not outcome:
        print(f"nothing outstanding below {_short(args.folder)}")
    return 0 if all(ok for _, ok, _ in outcome) else 1


def _ui(args: argparse.Namespace) -> int:
    from vitlab.track import views

    for name, address in views.addresses(ROOT, args.port).items():
        print(printable(f"{name or 'all runs'}: {address}"))
    return 0


def _schema(args: argparse.Namespace) -> int:
    from vitlab import config

    try:
        args.file.write_text(json.dumps(config.json_schema(), indent=1) + "\n", encoding="utf-8")
    except FileNotFoundError as e:  # its folder
        raise errors.refused(e) from None
    print(_short(args.file))
    return 0
