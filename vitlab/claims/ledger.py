"""The ledger of one set: its claims judged by its records, kept as claims.json, and what the pages say of it.

Records alone give the same ledger again, but for two things that only an earlier claims.json knows: which claims were declared
otherwise when they were first measured, and how two single runs compare image by image, which takes their predictions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from vitlab import files, records
from vitlab.claims import declarations, verdicts
from vitlab.claims.verdicts import LOOKED, Result
from vitlab.config import PROFILES, Schema
from vitlab.errors import UserError
from vitlab.records import RunRecord
from vitlab.report import tables
from vitlab.report.tables import NONE, Link, Table
from vitlab.stats import Pair

FILE = "claims.json"
ORDER = ("supported", "refuted", "undecided", "not measured")
DIGITS = {"images": 1, "M parameters": 3, "GFLOPs": 3}  # after the point; 2 for all other units

Predictions = Callable[[RunRecord], "Path | None"]  # where a run's predictions.npz lies, if it is at hand


class Book(Schema):
    """`claims.json`."""

    version: Literal[1] = 1
    profile: str
    dataset: str
    devices: tuple[str, ...]
    confidence: float
    seeds: int  # planned
    results: tuple[Result, ...]

    @property
    def measured(self) -> list[Result]:
        """As pages show them: by verdict, then as declared."""
        judged = [r for r in self.results if r.verdict not in ("not measured", "exploratory")]
        return sorted(judged, key=lambda r: ORDER.index(r.verdict))

    @property
    def exploratory(self) -> list[Result]:
        """What no report claims, measured or not."""
        return [r for r in self.results if r.verdict == "exploratory"]

    @property
    def tested(self) -> int:
        return sum(r.p is not None for r in self.results)


# ------------------------------------------------------------------------------------------------------------ building


def build(runs: Sequence[RunRecord], out_dir: Path, predictions: Predictions) -> Book | None:
    """Judge the declared claims by a set's `runs`, and write `out_dir`/claims.json.

    None where no claim is measured by a run: then there is nothing but formulas, and a claims.json that is there is left as it is. Raises UserError where
    declarations, the earlier claims.json or predictions are damaged.
    """
    path = out_dir / FILE
    # The claims are about CIFAR-10: on other data there is nothing to hold them against.
    about = runs[0].dataset.name == "cifar10" and runs[0].profile in PROFILES
    before = judged_before(out_dir)
    book = _judge(declarations.load(), runs, before, predictions) if about else None
    if book is None:
        return None
    files.write(path, json.dumps(book.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n")
    return book


def judged_before(out_dir: Path) -> dict[str, Result]:
    """What `out_dir`/claims.json says, by claim; nothing where there is none. Raises UserError where it is damaged."""
    path = out_dir / FILE
    return {result.id: result for result in read(path).results} if path.is_file() else {}


def read(path: Path) -> Book:
    """Raises UserError naming the file where it is damaged or of another version."""
    remedy = "restore it, or delete it and 'vitlab report' makes it anew, without the marks of claims that were changed after measuring"
    try:
        return Book.model_validate_json(path.read_bytes())
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e}); {remedy}") from None
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "not a readable ledger"
        raise UserError(f"{path}: {where}: {first['msg']}; {remedy}") from None


def _judge(declared: declarations.Ledger, runs: Sequence[RunRecord], before: Mapping[str, Result], predictions: Predictions) -> Book | None:
    first = runs[0]
    results = verdicts.judge(
        declared,
        first.profile,
        runs,
        lambda claim, arms: verdicts.compare(claim, [predictions(run) for run in arms], declared.confidence),
        before,
    )
    if not any(result.seeds for result in results if result.verdict != "exploratory"):
        return None
    book = Book(
        profile=first.profile, dataset=first.dataset.name, devices=(), confidence=declared.confidence, seeds=declared.seeds,
        results=tuple(_keep_pair(result, before.get(result.id)) for result in results),
    )  # fmt: skip
    return book.model_copy(update={"devices": tuple(sorted({run.device for run in _used(book.results, runs)}))})


def _used(results: Sequence[Result], runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that the results come from."""
    names = {name for result in results for arm in result.arms for name in arm.records.values()}
    return [run for run in runs if records.file_name(run) in names]


def _keep_pair(result: Result, earlier: Result | None) -> Result:
    """Where predictions are not at hand, what they once said of the very same runs still holds."""
    if result.pair is not None or earlier is None or _work(result) != _work(earlier):
        return result
    return result.model_copy(update={"pair": earlier.pair})


def _work(result: Result) -> tuple[Any, ...]:
    return result.declaration, result.seeds, result.values, tuple(arm.fingerprint for arm in result.arms)


# ---------------------------------------------------------------------------------------------------- what the page says


def section(book: Book, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Texts and tables of the pages' section on claims; escaping is the templates' business."""
    return {
        "said": said(book),
        "scale": _scale(book),
        "rate": f"The confidence is that of the {book.seeds} seeds planned. How many more an undecided claim would take is said for planning "
        f"anew, with seeds that are declared before they run: {LOOKED}, and Holm's correction does not make up for it.",
        "table": _table(book, runs),
        "figure": _caption("Effect and interval of every measured claim; shaded: where the claim holds", book, _used(book.results, runs)),
        "details": [_details(result, book, runs) for result in (*book.measured, *(r for r in book.exploratory if r.seeds))],
        "exploratory": _exploratory(book, runs),
        "unmeasured": _unmeasured(book, runs),
    }


def said(book: Book) -> str:
    counts = Counter(result.verdict for result in book.results)
    supported, refuted, undecided, unmeasured = (counts[verdict] for verdict in ORDER)
    changed = sum(result.changed for result in book.results)
    formula = sum(not result.seeds for result in book.measured)
    return (
        f"Of {len(book.results) - len(book.exploratory)} claims of the reports {supported} are supported, {refuted} refuted, {undecided} undecided and "
        f"{unmeasured} not measured"
        + (f" ({formula} judged by formula, without a run)." if formula else ".")
        + (f" Declared otherwise when first measured: {changed}." if changed else "")
    )


def number(value: float, result: Result) -> str:
    """An effect, with a sign where it is a difference."""
    shown = f"{value:{_sign(result)}.{DIGITS.get(result.unit, 2)}f}".replace("-", "−")
    return shown if any(digit in shown for digit in "123456789") else shown.lstrip("+−")


def _sign(result: Result) -> str:
    return "+" if len(result.arms) > 1 or result.unit in ("points", "images") else ""


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
    rows = [
        (
            Link(r.statement, f"#claim-{r.id}"), r.source, _wanted(r), _effect(r), _seeds(r),
            NONE if r.p_holm is None else _p(r.p_holm), _verdict(r, book),
        )
        for r in book.measured
    ]  # fmt: skip
    columns = ("Claim", "Where", "Wanted", "Effect", "Seeds", "p", "Verdict")
    what = (
        "What the reports claim, and the effect: mean over seeds, paired by seed, and its interval (Student's t); p: two-sided, against the "
        f"nearest bound of what is wanted, after Holm; more seeds: as many as it would take at the spread seen. Planned: {book.seeds} seeds"
    )
    return Table(_caption(what, book, _used(book.results, runs)), columns, "lllrrrl", rows)


def _wanted(result: Result) -> str:
    claimed = "" if result.claimed is None else f" (claimed {result.claimed:{_sign(result)}g})"
    return f"{verdicts.rule(result)} {result.unit}{claimed}".replace("-", "−")


def _effect(result: Result) -> str:
    shown = number(result.effect, result)
    if result.low is not None and result.high is not None:
        shown += f" [{number(result.low, result)}, {number(result.high, result)}]"
    return f"{shown} {result.unit}" + ("" if result.seeds else ", by formula")


def _seeds(result: Result) -> str:
    n = len(result.seeds)
    return "1 seed" if n == 1 else str(n or NONE)


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
        f"difference [{tables.signed(pair.low)}, {tables.signed(pair.high)}] points ({100 * book.confidence:g} %, bootstrap over the test images). Of these two runs, not of the experiments"
    )


def _by_seed(result: Result, book: Book, runs: Sequence[RunRecord]) -> Table:
    arms = {arm.label: arm for arm in result.arms}  # one, where a claim compares two numbers of the same run
    rows = [
        (str(seed), *(Link(arm.records[seed], f"records/{arm.records[seed]}") for arm in arms.values()), number(value, result))
        for seed, value in zip(result.seeds, result.values, strict=True)
    ]
    columns = ("Seed", *arms, f"Effect ({result.unit})")
    return Table(_caption("Each seed's effect, and its records", book, _used([result], runs)), columns, "l" + "l" * len(arms) + "r", rows)


def _exploratory(book: Book, runs: Sequence[RunRecord]) -> Table | None:
    rows = [
        (
            Link(r.statement, f"#claim-{r.id}") if r.seeds else r.statement, _arms(r) + _changed(r),
            NONE if r.effect is None else _effect(r), _seeds(r),
        )
        for r in book.exploratory
    ]  # fmt: skip
    what = (
        "What the reports do without claiming that it helps, measured all the same: the effect, mean over seeds and its interval (Student's t), "
        "of no test and in no family"
    )
    where = tables.caption(what, _used(book.exploratory, runs) or _used(book.results, runs))
    return Table(where, ("Exploratory", "Arms", "Effect", "Seeds"), "llrr", rows) if rows else None


def _unmeasured(book: Book, runs: Sequence[RunRecord]) -> Table | None:
    rows = [
        (r.statement, r.source, _wanted(r), _arms(r), (r.note or "no seed with all its arms") + _changed(r))
        for r in book.results
        if r.verdict == "not measured"
    ]
    columns = ("Claim", "Where", "Wanted", "Arms", "Why not")
    return Table(_caption("What has not been measured here", book, _used(book.results, runs)), columns, "lllll", rows) if rows else None
