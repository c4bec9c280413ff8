"""What a set's pages say of its claims, as texts and tables. Escaping is left to the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitlab.claims import verdicts
from vitlab.claims.evidence import FamilySpread
from vitlab.claims.ledger import Book, number, opening, said, sign, so_far, stage_to_come, used
from vitlab.claims.verdicts import Past, Result
from vitlab.records import RunRecord
from vitlab.report import tables, words
from vitlab.report.tables import Column, Link, Table, table
from vitlab.stats import Pair


def section(book: Book, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the texts and tables of the pages' section on claims. Escaping is left to the templates."""
    return {
        "opening": opening(book),
        "so_far": so_far(book),
        "said": said(book),
        "scale": _scale(book),
        "design": _design(book),
        "table": _table(book, runs),
        "figure": _caption("Effect and interval of every measured claim; shaded: where the claim holds", book, used(book.results, runs)),
        "families": _families(book, runs),
        "details": [
            _details(result, book, runs) for result in (*book.measured, *(r for r in book.exploratory if r.seeds), *book.withdrawn)
        ],
        "exploratory": _exploratory(book, runs),
        "unmeasured": _unmeasured(book, runs),
    }


def _scale(book: Book) -> str:
    about = "A result here is about these test images, these recipes and this size of model and training."
    if book.profile == "full":
        return about
    return f"{about} This is not the reports' scale: at their own size it may be another. Claims about absolute numbers are judged at full size only."


def _design(book: Book) -> str:
    looks = ", then ".join(f"{stage.seeds} ({100 * stage.alpha:g} % of the chance of a false verdict)" for stage in book.stages)
    confidence = f"{100 * (1 - book.confidence):.0f} %"
    return (
        f"Seeds planned, from {book.first_seed} on: {looks}. Until those of a stage are complete, a result is interim. All {book.tested} primary claims that "
        f"need runs are tested together: the chance of any false verdict among them is at most {confidence}. docs/statistics.md says how."
    )


def _caption(what: str, book: Book, runs: Sequence[RunRecord]) -> str:
    tested = "1 primary claim" if book.tested == 1 else f"{book.tested} primary claims"
    return tables.caption(f"{what}. Confidence {100 * book.confidence:g} %, Holm over {tested}", runs)


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
        "nearest bound of what is wanted, of all stages and after Holm"
    )
    if any(result.more_seeds and not stage_to_come(result, book) for result in book.measured):
        what += "; more seeds: the range that it would take, by how well the spread is known"
    return table(_caption(what, book, used(book.results, runs)), columns, book.measured)


def _wanted(result: Result) -> str:
    claimed = "" if result.claimed is None else f" (claimed {result.claimed:{sign(result)}g})"
    return f"{verdicts.rule(result)} {result.unit}{claimed}".replace("-", "−")


def _effect(result: Result, past: Past | None = None) -> str:
    """Return the result's effect, "–" where its runs are gone; with `past` the one that was measured then."""
    measured = past or result
    if measured.effect is None:
        return "–"
    shown = number(measured.effect, result)
    if measured.low is not None and measured.high is not None:
        shown += f" [{number(measured.low, result)}, {number(measured.high, result)}]"
    return f"{shown} {result.unit}" + ("" if measured.seeds else ", by formula")


def _seeds(result: Result) -> str:
    n = len(result.seeds)
    return "1 seed" if n == 1 else str(n or words.NONE)


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _verdict(result: Result, book: Book) -> str:
    return verdict(result, book) + _changed(result)


def verdict(result: Result, book: Book) -> str:
    """Return the verdict; of an undecided claim with the seeds that are planned, or else those that it would take."""
    if stage_to_come(result, book):
        return f"{result.verdict} after {len(result.seeds)} seeds; {book.stages[-1].seeds} are planned"
    more = "" if result.more_seeds is None else f", {words.more_seeds(*result.more_seeds)}"
    return result.verdict + more


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
        ("Wanted", _wanted(result) if result.primary else ""),
        ("Effect", _effect(result)),
        ("Arms", _arms(result)),
        ("Metric", result.metric),
        (
            "Spread of a seed's effect",
            ""
            if result.sd is None
            else f"{number(result.sd, result).lstrip('+')} {result.unit} with {result.df:.1f} degrees of freedom, {result.spread}",
        ),
        ("p", "" if result.p is None else f"{_p(result.p)} in stage {result.stage}; of all stages, after Holm {_p(result.p_holm)}"),
        ("Image by image", "" if result.pair is None else _said_of_pair(result.pair, book)),
        ("Declaration", result.declaration),
        ("Note", result.note),
        *(("Said before", _said_before(past, result)) for past in result.history),
    ]
    return {
        "id": f"claim-{result.id}",
        "statement": result.statement,
        "effect": _effect(result),
        "verdict": _verdict(result, book),
        "facts": [(name, value) for name, value in facts if value],
        "by_seed": _by_seed(result, book, runs) if result.seeds else None,
    }


def _said_before(past: Past, result: Result) -> str:
    seeds = f" with {len(past.seeds)} seeds" if len(past.seeds) > 1 else "".join(f" with seed {seed} alone" for seed in past.seeds)
    anew = "" if past.declaration == result.declaration else f", as declaration {past.declaration}"
    return f"{past.verdict}: {_effect(result, past)}{seeds}{anew}"


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


def _families(book: Book, runs: Sequence[RunRecord]) -> Table | None:
    columns = (
        Column("Family", {"family": lambda f: f.name}, left=True),
        Column("Metric", {"metric": lambda f: f.metric}, left=True),
        Column("Arms", {"arms": lambda f: len(f.arms)}),
        Column("Seeds", {"seeds": lambda f: f.seeds}),
        Column("SD of a run", {"sd": lambda f: f.sd}, words.two),
        Column("SD between seeds", {"seed_sd": lambda f: f.seed_sd}, words.two),
        Column("Degrees of freedom", {"df": lambda f: f.df}),
        Column("Levene's p", {"levene": lambda f: f.levene}, _p),
        Column("Spread", {"pooled": _pooled}, left=True),
    )
    what = "How the arms of each family spread over seeds, in points: a run's own spread, once its arm and its seed are taken off, and that between seeds"
    return table(_caption(what, book, used(book.results, runs)), columns, book.families) if book.families else None


def _pooled(family: FamilySpread) -> str:
    if family.levene is None:
        return "its own"
    return "pooled" if family.pooled else "unequal, so each claim has its own"


def _exploratory(book: Book, runs: Sequence[RunRecord]) -> Table | None:
    columns = (
        Column("Exploratory", {"claim": lambda r: r.statement, "id": lambda r: r.id if r.seeds else None},
               lambda text, id: Link(text, f"#claim-{id}") if id else text, left=True),
        Column("Arms", {"arms": lambda r: _arms(r) + _changed(r)}, left=True),
        Column("Effect", {"effect": lambda r: None if r.effect is None else _effect(r)}),
        Column("Seeds", {"seeds": _seeds}),
    )  # fmt: skip
    what = "Measured, and not tested: the effect, mean over seeds, and its interval (Student's t) for this comparison alone"
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


def across(books: Mapping[str, Book]) -> Table | None:
    """Return the table of the primary claims that two sets or more have measured, each set's effect beside the others'; None where there is none.

    `books`: a set's name -> its ledger, the sets in the table's order.
    """
    found = {name: {result.id: result for result in book.measured if result.seeds} for name, book in books.items()}
    several = [result for of in found.values() for result in of.values() if sum(result.id in other for other in found.values()) > 1]
    several = list({result.id: result for result in several}.values())

    def of(name: str) -> Column:
        def shown(claim: Result) -> str | None:
            result = found[name].get(claim.id)
            return None if result is None else f"{_effect(result)}, {_seeds(result)}, {result.verdict}"

        return Column(name, {name: shown})

    def side(claim: Result) -> str:
        bounds = [bound for bound in (claim.low_bound, claim.high_bound) if bound is not None]
        effects = [measured[claim.id].effect for measured in found.values() if claim.id in measured]
        return "yes" if len({tuple(effect >= bound for bound in bounds) for effect in effects}) == 1 else "no"

    columns = (
        Column("Claim", {"claim": lambda r: r.statement}, left=True),
        Column("Wanted", {"wanted": _wanted}, left=True),
        *(of(name) for name in books if found[name]),
        Column("Same side", {"same": side}, left=True),
    )
    what = (
        "The primary claims at several sizes: effect, its interval (Student's t), seeds and verdict in each set; same side: whether all effects are on "
        "the same side of the bound. Each set's page says data set, profile, seeds and device"
    )
    return table(f"{what}.", columns, several) if several else None
