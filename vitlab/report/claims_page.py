"""What a set's pages say of its claims, as texts and tables. Escaping is left to the templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitlab.claims import verdicts
from vitlab.claims.ledger import Book, number, said, sign, used
from vitlab.claims.verdicts import LOOKED, Result
from vitlab.records import RunRecord
from vitlab.report import tables, words
from vitlab.report.tables import Column, Link, Table, table
from vitlab.stats import Pair


def section(book: Book, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the texts and tables of the pages' section on claims. Escaping is left to the templates."""
    return {
        "said": said(book),
        "scale": _scale(book),
        "rate": f"The confidence is that of the {book.seeds} seeds planned. How many more an undecided claim would take is said for planning "
        f"anew, with seeds that are declared before they run: {LOOKED}, and Holm's correction does not make up for it.",
        "table": _table(book, runs),
        "figure": _caption("Effect and interval of every measured claim; shaded: where the claim holds", book, used(book.results, runs)),
        "details": [_details(result, book, runs) for result in (*book.measured, *(r for r in book.exploratory if r.seeds))],
        "exploratory": _exploratory(book, runs),
        "unmeasured": _unmeasured(book, runs),
    }


def _scale(book: Book) -> str:
    if book.profile == "full":
        return ""
    return (
        f"This is not the reports' scale. A verdict here is about models and training of profile {book.profile}: at the reports' own size it "
        f"may be another. Claims about absolute numbers are judged at full size only."
    )


def _caption(what: str, book: Book, runs: Sequence[RunRecord]) -> str:
    tested = "1 tested claim" if book.tested == 1 else f"{book.tested} tested claims"
    return tables.caption(f"{what}. Confidence {100 * book.confidence:g} %, Holm over the {tested}", runs)


def _table(book: Book, runs: Sequence[RunRecord]) -> Table:
    columns = (
        Column("Claim", {"claim": lambda r: r.statement, "id": lambda r: r.id}, lambda text, id: Link(text, f"#claim-{id}"), left=True),
        Column("Where", {"where": lambda r: r.source}, left=True),
        Column("Wanted", {"wanted": _wanted}, left=True),
        Column("Effect", {"effect": _effect}),
        Column("Seeds", {"seeds": _seeds}),
        Column("p", {"p": lambda r: r.p_holm}, _p),
        Column("Verdict", {"verdict": lambda r: _verdict(r, book)}, left=True),
    )
    what = (
        "What the reports claim, and the effect: mean over seeds, paired by seed, and its interval (Student's t); p: two-sided, against the "
        f"nearest bound of what is wanted, after Holm; more seeds: as many as it would take at the spread seen. Planned: {book.seeds} seeds"
    )
    return table(_caption(what, book, used(book.results, runs)), columns, book.measured)


def _wanted(result: Result) -> str:
    claimed = "" if result.claimed is None else f" (claimed {result.claimed:{sign(result)}g})"
    return f"{verdicts.rule(result)} {result.unit}{claimed}".replace("-", "−")


def _effect(result: Result) -> str:
    shown = number(result.effect, result)
    if result.low is not None and result.high is not None:
        shown += f" [{number(result.low, result)}, {number(result.high, result)}]"
    return f"{shown} {result.unit}" + ("" if result.seeds else ", by formula")


def _seeds(result: Result) -> str:
    n = len(result.seeds)
    return "1 seed" if n == 1 else str(n or words.NONE)


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _verdict(result: Result, book: Book) -> str:
    shown: str = result.verdict
    if result.more_seeds is not None:
        shown += f", {result.more_seeds} more {'seed' if result.more_seeds == 1 else 'seeds'}"
    return shown + _changed(result) + ("; more seeds than planned" if len(result.seeds) > book.seeds else "")


def _changed(result: Result) -> str:
    return "; changed after measuring" if result.changed else ""


def _arms(result: Result) -> str:
    labels = [arm.label for arm in result.arms]
    if len(labels) == 4:
        return f"{labels[0]} less {labels[1]} against {labels[2]} less {labels[3]}"
    return " against ".join(dict.fromkeys(labels))


def _details(result: Result, book: Book, runs: Sequence[RunRecord]) -> dict[str, Any]:
    facts = [
        ("Where", result.source),
        ("Wanted", "" if result.verdict == "exploratory" else _wanted(result)),
        ("Effect", _effect(result)),
        ("Arms", _arms(result)),
        ("Metric", result.metric),
        ("p", "" if result.p is None else f"{_p(result.p)}, after Holm {_p(result.p_holm)}"),
        ("Image by image", "" if result.pair is None else _said_of_pair(result.pair, book)),
        ("Declaration", result.declaration),
        ("Note", result.note),
    ]
    return {
        "id": f"claim-{result.id}",
        "statement": result.statement,
        "effect": _effect(result),
        "verdict": _verdict(result, book),
        "facts": [(name, value) for name, value in facts if value],
        "by_seed": _by_seed(result, book, runs) if result.seeds else None,
    }


def _said_of_pair(pair: Pair, book: Book) -> str:
    return (
        f"only the first right on {pair.only_first:,} test images, only the second on {pair.only_second:,}; McNemar's exact p {_p(pair.p)}; "
        f"difference [{words.signed(pair.low)}, {words.signed(pair.high)}] points ({100 * book.confidence:g} %, bootstrap over the test images). Of these two runs, not of the experiments"
    )


def _by_seed(result: Result, book: Book, runs: Sequence[RunRecord]) -> Table:
    arms = {arm.label: arm for arm in result.arms}  # one, where a claim compares two numbers of the same run

    def record(label: str) -> Column:
        of = {f"record of {label}": lambda item: arms[label].records[item[0]]}
        return Column(label, of, lambda name: Link(name, f"records/{name}"), left=True)

    columns = (
        Column("Seed", {"seed": lambda item: item[0]}, left=True),
        *(record(label) for label in arms),
        Column(f"Effect ({result.unit})", {"effect": lambda item: item[1]}, lambda value: number(value, result)),
    )
    items = zip(result.seeds, result.values, strict=True)
    return table(_caption("Each seed's effect, and its records", book, used([result], runs)), columns, items)


def _exploratory(book: Book, runs: Sequence[RunRecord]) -> Table | None:
    columns = (
        Column("Exploratory", {"claim": lambda r: r.statement, "id": lambda r: r.id if r.seeds else None},
               lambda text, id: Link(text, f"#claim-{id}") if id else text, left=True),
        Column("Arms", {"arms": lambda r: _arms(r) + _changed(r)}, left=True),
        Column("Effect", {"effect": lambda r: None if r.effect is None else _effect(r)}),
        Column("Seeds", {"seeds": _seeds}),
    )  # fmt: skip
    what = (
        "What the reports do without claiming that it helps, measured all the same: the effect, mean over seeds and its interval (Student's t), "
        "of no test and in no family"
    )
    where = tables.caption(what, used(book.exploratory, runs) or used(book.results, runs))
    return table(where, columns, book.exploratory) if book.exploratory else None


def _unmeasured(book: Book, runs: Sequence[RunRecord]) -> Table | None:
    columns = (
        Column("Claim", {"claim": lambda r: r.statement}, left=True),
        Column("Where", {"where": lambda r: r.source}, left=True),
        Column("Wanted", {"wanted": _wanted}, left=True),
        Column("Arms", {"arms": _arms}, left=True),
        Column("Why not", {"why": lambda r: (r.note or "no seed with all its arms") + _changed(r)}, left=True),
    )
    items = [r for r in book.results if r.verdict == "not measured"]
    return table(_caption("What has not been measured here", book, used(book.results, runs)), columns, items) if items else None
