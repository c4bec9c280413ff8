"""The commands about claims: what was measured of them, what they need trained, and what a declaration can find out."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab import terminal
from vitlab.errors import UserError
from vitlab.paths import REPORTS, RESULTS, RUNS
from vitlab.run.engines import flags
from vitlab.run.engines.flags import Options

if TYPE_CHECKING:
    from rich.console import Console

    from vitlab.claims.declarations import Ledger
    from vitlab.claims.ledger import Book
    from vitlab.data.sources import Source
    from vitlab.run.plan import Run

Train = Callable[["Console", "list[Run]", "set[Path]", "Source", float, Options], int]


def claims(args: argparse.Namespace, train: Train) -> int:
    """Carry out `vitlab claims` and return its exit code. `train` trains runs and returns another."""
    from vitlab.claims import declarations
    from vitlab.config import PROFILES
    from vitlab.data import sources

    declared = declarations.load(args.declarations)
    if args.train:
        return _train(args, declared, train)
    idle = {
        "--seeds": args.seeds,
        "--budget": math.isfinite(args.budget),
        "--only": args.only,
        "--dry-run": args.dry_run,
    }
    if given := [*(flag for flag, value in idle.items() if value), *flags.given(args)]:
        raise UserError(f"{', '.join(given)}: about training; add --run")
    data = (
        sources.resolve(args.data, args.data_dir, args.profile, download=False).name if args.data == "auto" else sources.name_of(args.data)
    )
    with_runs = [p for p in reversed(PROFILES) if any((top / f"{p}-{data}").is_dir() for top in (RUNS, RESULTS))]
    asked = (with_runs or ["ledger"]) if args.profile == "auto" else [args.profile]
    books = {profile: _judge(args.declarations, declared, profile, data) for profile in asked}
    profile, book = max(books.items(), key=lambda found: _standing(found[1]))  # of equals the first, which is the largest
    if args.json:
        print(json.dumps([] if book is None else book.model_dump(mode="json")["results"], indent=1))
    else:
        console = terminal.console()
        terminal.print_ledger(console, declared, args.declarations, f"{profile} · {data}", book)
        if book is not None:
            judged = {result.id for result in book.results}
            terminal.print_left_out(console, data, {claim.id: () for claim in declared.claims if claim.id not in judged})
    return 0


def _standing(book: Book | None) -> tuple[bool, int]:
    """Return whether any claim is measured, and how many have a verdict from runs."""
    decided = [] if book is None else [r for r in book.results if r.verdict in ("supported", "refuted") and r.seeds]
    return book is not None, len(decided)


def _train(args: argparse.Namespace, declared: Ledger, train: Train) -> int:
    from vitlab.claims import needed
    from vitlab.data import sources
    from vitlab.run import plan

    deadline, options = time.monotonic() + args.budget, flags.options(args)
    console = terminal.console()
    profile = _profile(args)
    source = sources.resolve(args.data, args.data_dir, profile, download=not args.dry_run)
    terminal.print_left_out(console, source.name, needed.left_out(declared, args.only, source.classes))
    book = _judge(args.declarations, declared, profile, source.name)
    only, seeds = (args.only, args.seeds) if args.seeds else needed.due(declared, args.only, profile, source.classes, book)
    if not only and not args.seeds:
        terminal.print_ledger(console, declared, args.declarations, f"{profile} · {source.name}", book)
        console.print(_nothing(args.only, book))
        return 0
    planned = needed.make(declared, only, profile, source, list(seeds), RUNS, RESULTS, book)
    terminal.announce(console, profile, source, list(seeds), planned.runs, args.budget)
    if args.dry_run:
        terminal.print_plan(console, planned.runs, options, plan.measured_speed(RUNS), planned.settles)
        return 0
    code = train(console, planned.runs, set(), source, deadline, options) if planned.runs else 0  # all of them may be published
    if code == 0:
        book = _judge(args.declarations, declared, profile, source.name)
        terminal.print_ledger(console, declared, args.declarations, f"{profile} · {source.name}", book)
        left, stage = needed.due(declared, args.only, profile, source.classes, book)
        if left and stage != seeds and not args.seeds:
            console.print("the next stage has more seeds for what is undecided: the same command trains them")
    return code


def _nothing(only: list[str], book: Book | None) -> str:
    """Return why nothing is to be trained for the claims in `only`, or for all primary ones."""
    from vitlab.claims import ledger

    if book is not None and any(result.id in only and ledger.stage_to_come(result, book) for result in book.results):
        return "nothing to train: what these leave undecided has more seeds once the first stage is complete for all primary claims"
    return "all planned seeds of these claims are there: nothing to train"


def _judge(path: Path, declared: Ledger, profile: str, data: str) -> Book | None:
    """Return the claims as judged now, and write them down if they are somebody's own; the project's own are written when they are published."""
    from vitlab.claims import declarations, ledger, needed

    file = kept(path, f"{profile}-{data}")
    book = needed.judged(declared, profile, data, RUNS, RESULTS, ledger.judged_before(file))
    if book is not None and path.resolve() != declarations.FILE.resolve():
        file.parent.mkdir(parents=True, exist_ok=True)
        ledger.write(book, file)
    return book


def kept(path: Path, name: str) -> Path:
    """Return the file with what was found and said of the claims that are declared in `path`, in the set of runs `name`.

    It lies in results/ for the project's own declarations, else in reports/ under a name that tells two studies' claims.yaml apart.
    """
    from vitlab.claims import declarations, ledger

    if path.resolve() == declarations.FILE.resolve():
        return RESULTS / name / ledger.FILE
    return REPORTS / name / f"claims-{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}.json"


def plan(args: argparse.Namespace) -> int:
    """Carry out `vitlab plan-claims` and return its exit code."""
    from vitlab.claims import declarations, needed
    from vitlab.claims.power import power
    from vitlab.data import sources
    from vitlab.run import plan as plans

    console, profile = terminal.console(), _profile(args)
    source = sources.resolve(args.data, args.data_dir, profile, download=False)
    declared = declarations.load(args.declarations)
    terminal.print_left_out(console, source.name, needed.left_out(declared, (), source.classes))
    declared = needed.about(declared, source.classes)
    terminal.print_power(console, declared, profile, power(declared, profile))
    trained: set[needed.Key] = set()
    for number in range(1, len(declared.stages) + 1):
        runs = needed.make(declared, (), profile, source, declared.seeds(number), RUNS, RESULTS).runs
        more = [run for run in runs if needed.key(run) not in trained]
        trained |= {needed.key(run) for run in more}
        terminal.print_cost(console, number, declared.seeds(number), more, args.jobs, plans.measured_speed(RUNS))
    return 0


def _profile(args: argparse.Namespace) -> str:
    return "ledger" if args.profile == "auto" else args.profile
