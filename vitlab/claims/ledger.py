"""A set's claims as judged by its records: kept in claims.json, and summed up for the pages.

The records alone give the same claims.json again, except for two things that only the earlier one knows: which claims were declared
otherwise when they were first measured, and how two single runs compare image by image, for which their predictions are needed.
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
from vitlab.claims.verdicts import Result
from vitlab.config import PROFILES, Schema
from vitlab.errors import UserError
from vitlab.records import RunRecord

FILE = "claims.json"
ORDER = ("supported", "refuted", "undecided", "not measured")
DIGITS = {"images": 1, "M parameters": 3, "GFLOPs": 3}  # after the point; 2 for all other units

Predictions = Callable[[RunRecord], "Path | None"]  # where a run's predictions.npz lies, or None


class Book(Schema):
    """The content of `claims.json`."""

    version: Literal[1] = 1
    profile: str
    dataset: str
    devices: tuple[str, ...]
    confidence: float
    seeds: int  # planned
    results: tuple[Result, ...]

    @property
    def measured(self) -> list[Result]:
        """Return the judged results as pages show them: by verdict, then as declared."""
        judged = [r for r in self.results if r.verdict not in ("not measured", "exploratory")]
        return sorted(judged, key=lambda r: ORDER.index(r.verdict))

    @property
    def exploratory(self) -> list[Result]:
        """Return the results of what no report claims, measured or not."""
        return [r for r in self.results if r.verdict == "exploratory"]

    @property
    def tested(self) -> int:
        """Return how many claims have a test, which is the size of the family that Holm corrects for."""
        return sum(r.p is not None for r in self.results)


# ------------------------------------------------------------------------------------------------------------ building


def build(runs: Sequence[RunRecord], out_dir: Path, predictions: Predictions) -> Book | None:
    """Judge the declared claims by a set's `runs`, write `out_dir`/claims.json and return its content.

    Returns None where no run measures a claim; then an existing claims.json is left as it is. Raises UserError where declarations, the
    earlier claims.json or predictions are damaged.
    """
    path = out_dir / FILE
    # The claims are about CIFAR-10: runs on other data say nothing about them.
    applies = runs[0].dataset.name == "cifar10" and runs[0].profile in PROFILES
    before = judged_before(out_dir)
    book = _judge(declarations.load(), runs, before, predictions) if applies else None
    if book is None:
        return None
    files.write(path, json.dumps(book.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n")
    return book


def judged_before(out_dir: Path) -> dict[str, Result]:
    """Return the results in `out_dir`/claims.json by claim, none where there is no such file. Raises UserError where it is damaged."""
    path = out_dir / FILE
    return {result.id: result for result in read(path).results} if path.is_file() else {}


def read(path: Path) -> Book:
    """Return the content of a claims.json. Raises UserError naming the file where it is damaged or of another version."""
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
    return book.model_copy(update={"devices": tuple(sorted({run.device for run in used(book.results, runs)}))})


def used(results: Sequence[Result], runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Return those of `runs` that the results come from."""
    names = {name for result in results for arm in result.arms for name in arm.records.values()}
    return [run for run in runs if records.file_name(run) in names]


def _keep_pair(result: Result, earlier: Result | None) -> Result:
    """Return the result with the earlier image-by-image comparison, if predictions are missing now and it was of the very same runs."""
    if result.pair is not None or earlier is None or _work(result) != _work(earlier):
        return result
    return result.model_copy(update={"pair": earlier.pair})


def _work(result: Result) -> tuple[Any, ...]:
    return result.declaration, result.seeds, result.values, tuple(arm.fingerprint for arm in result.arms)


def said(book: Book) -> str:
    """Return the sentence that counts the verdicts."""
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
    """Return an effect as text, with a sign where it is a difference."""
    shown = f"{value:{sign(result)}.{DIGITS.get(result.unit, 2)}f}".replace("-", "−")
    return shown if any(digit in shown for digit in "123456789") else shown.lstrip("+−")


def sign(result: Result) -> str:
    """Return the format's sign option for a result's effect: "+" for a difference, else ""."""
    return "+" if len(result.arms) > 1 or result.unit in ("points", "images") else ""
