"""A set's claims as judged by its records: kept in claims.json, and summed up for the pages.

The records alone give the same claims.json again, except for what only the earlier one knows: what was said of a claim before and is no
longer, and how two single runs compare image by image, for which their predictions are needed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from vitlab import files, records
from vitlab.claims import declarations, images, verdicts
from vitlab.claims.declarations import Claim, Ledger, Stage
from vitlab.claims.evidence import FamilySpread
from vitlab.claims.verdicts import Result
from vitlab.config import PROFILES, Schema
from vitlab.errors import UserError
from vitlab.records import RunRecord
from vitlab.stats import Pair

FILE = "claims.json"
ORDER = ("supported", "refuted", "undecided", "interim", "not measured")
DIGITS = {"images": 1, "M parameters": 3, "GFLOPs": 3}  # after the point; 2 for all other units

Predictions = Callable[[RunRecord], "Path | None"]  # where a run's predictions.npz lies, or None


class Book(Schema):
    """The content of `claims.json`."""

    version: Literal[2] = 2
    profile: str
    dataset: str
    devices: tuple[str, ...]
    confidence: float
    first_seed: int
    stages: tuple[Stage, ...]
    tested: int  # how many claims Holm corrects for: all primary ones that runs of this profile are tested for, measured or not
    families: tuple[FamilySpread, ...]
    results: tuple[Result, ...]
    withdrawn: tuple[Result, ...] = ()  # measured once, and no longer declared

    @property
    def measured(self) -> list[Result]:
        """Return the primary claims' results as pages show them, the unmeasured ones left out: by verdict, then as declared."""
        return sorted((r for r in self.results if r.primary and r.effect is not None), key=lambda r: ORDER.index(r.verdict))

    @property
    def exploratory(self) -> list[Result]:
        """Return the results of what is not a primary claim, measured or not."""
        return [r for r in self.results if not r.primary]


# ------------------------------------------------------------------------------------------------------------ building


def build(runs: Sequence[RunRecord], out_dir: Path, predictions: Predictions) -> Book | None:
    """Judge the declared claims by a set's `runs`, write `out_dir`/claims.json and return its content.

    Returns None where no run measures a claim; then an existing claims.json is left as it is. Raises UserError where declarations, the
    earlier claims.json or predictions are damaged.
    """
    # The claims are about CIFAR-10: runs on other data say nothing about them.
    applies = runs[0].dataset.name == "cifar10" and runs[0].profile in PROFILES
    before = judged_before(out_dir / FILE)
    declared = declarations.load()

    def pairs(claim: Claim, of: Sequence[RunRecord]) -> Pair | None:
        return images.compare(claim, [predictions(run) for run in of], declared.confidence)

    book = judge(declared, runs, pairs, before) if applies else None
    if book is not None:
        write(book, out_dir / FILE)
    return book


def write(book: Book, path: Path) -> None:
    """Write a claims.json."""
    files.write(path, json.dumps(book.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n")


def judged_before(path: Path) -> dict[str, Result]:
    """Return the results in a claims.json by claim, withdrawn ones too; none where there is no such file. Raises UserError where it is damaged."""
    if not path.is_file():
        return {}
    book = read(path)
    return {result.id: result for result in (*book.withdrawn, *book.results)}


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


def judge(declared: Ledger, runs: Sequence[RunRecord], pairs: verdicts.Pairs, before: Mapping[str, Result]) -> Book | None:
    """Return the ledger as judged by `runs`, of one profile and data set, and by what was judged `before`.

    Returns None where no run measures any of the claims, unless all of them follow by formula.
    """
    first = runs[0]
    results = verdicts.judge(declared, first.profile, runs, pairs, before)
    if not any(result.seeds for result in results) and not all(claim.exact for claim in declared.claims):
        return None
    named = {claim.id for claim in declared.claims}
    book = Book(
        profile=first.profile, dataset=first.dataset.name, devices=(), confidence=declared.confidence, first_seed=declared.first_seed,
        stages=declared.stages, tested=len(declared.tested(first.profile)), families=tuple(verdicts.families(declared, first.profile, runs)),
        results=tuple(_keep_pair(result, before.get(result.id)) for result in results),
        withdrawn=tuple(r for name, r in before.items() if (r.effect is not None or r.history) and name not in named),
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


def opening(book: Book) -> str:
    """Return the sentence to quote: each decided claim that has a brief name, with its effect and interval.

    Returns "" where no claim is primary, and where none of the decided ones has a brief name.
    """
    if not any(result.primary for result in book.results):
        return ""
    where = f"At the size of profile {book.profile}, on {book.dataset},"
    told = []
    for result in book.measured:
        if result.verdict in ("supported", "refuted") and result.brief and result.seeds:
            against = "" if result.verdict == "supported" else f" ({_wanted(result)})"
            told.append(f"{_effect(result)}{against}")
    if not told and any(result.verdict in ("supported", "refuted") and result.seeds for result in book.measured):
        return ""
    return f"{where} {', '.join(told)}." if told else f"{where} no claim is decided yet."


def _effect(result: Result) -> str:
    """Return the claim's brief name with its effect, and the interval over seeds where there are several: `regularisation gives −0.67 [−1.25, −0.09] points`."""
    interval = "" if result.low is None else f" [{number(result.low, result)}, {number(result.high, result)}]"
    return f"{result.brief} {number(result.effect, result)}{interval} {result.unit}"


def _wanted(result: Result) -> str:
    return f"wanted {verdicts.rule(result)}".replace("-", "−")


def so_far(book: Book) -> str:
    """Return the sentence that tells what was measured of the claims without a verdict that have a brief name; "" where there are none."""
    told = []
    for result in book.measured:
        if result.verdict in ("interim", "undecided") and result.brief and result.seeds:
            wanted = "" if (result.low_bound, result.high_bound) == (0, None) else _wanted(result)
            seed = f"seed {result.seeds[0]} alone" if len(result.seeds) == 1 else ""
            notes = ", ".join(filter(None, (seed, wanted)))
            told.append(_effect(result) + (f" ({notes})" if notes else ""))
    return f"Not decided by the seeds that are there: {', '.join(told)}." if told else ""


def stage_to_come(result: Result, book: Book) -> bool:
    """Return whether the claim is undecided and a further stage is planned for it."""
    return result.verdict == "undecided" and result.stage is not None and result.stage < len(book.stages)


def said(book: Book) -> str:
    """Return the sentence that counts the verdicts."""
    primary = [result for result in book.results if result.primary]
    if not primary:
        return "No claim is primary, so none is tested."
    later = verdicts.FULL_SIZE  # as a note: these are not measured here, nor will they be
    counts = Counter(later if result.note == later else result.verdict for result in primary)
    counted = [f"{counts[verdict]} {'is' if counts[verdict] == 1 else 'are'} {verdict}" for verdict in (*ORDER, later) if counts[verdict]]
    listed = " and ".join(filter(None, [", ".join(counted[:-1]), counted[-1]]))
    changed = sum(result.changed for result in primary)
    formula = sum(result.effect is not None and not result.seeds for result in primary)
    return (
        f"Of {len(primary)} primary {'claim' if len(primary) == 1 else 'claims'}, {listed}"
        + (f"; {formula} of them judged by formula, without a run." if formula else ".")
        + (f" Declared otherwise when first measured: {changed}." if changed else "")
    )


def number(value: float, result: Result) -> str:
    """Return an effect as text, with a sign where it is a difference."""
    shown = f"{value:{sign(result)}.{DIGITS.get(result.unit, 2)}f}".replace("-", "−")
    return shown if any(digit in shown for digit in "123456789") else shown.lstrip("+−")


def sign(result: Result) -> str:
    """Return the format's sign option for a result's effect: "+" for a difference, else ""."""
    return "+" if len(result.arms) > 1 or result.unit in ("points", "images") else ""
