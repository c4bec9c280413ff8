"""The runs that the claims need: which exist, and which are still to be trained, in what order. Loads no torch."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitlab import records
from vitlab.claims import declarations, evidence, images
from vitlab.claims.declarations import Claim, Ledger
from vitlab.claims.ledger import Book, judge
from vitlab.claims.metrics import NotRecorded, measure
from vitlab.claims.verdicts import Result
from vitlab.data.sources import Source
from vitlab.errors import UserError
from vitlab.records import RunRecord
from vitlab.run import plan
from vitlab.run.plan import Run
from vitlab.stats import Pair

Key = tuple[str, int]  # fingerprint and seed: the same run, whatever file or claim asks for it


def key(run: Run | RunRecord) -> Key:
    """Return the run's key: its fingerprint and seed."""
    return run.fingerprint, run.seed


# ---------------------------------------------------------------------------------------------------------- what there is


def judged(
    ledger: Ledger, profile: str, data: str, runs_dir: Path, results_dir: Path, before: Mapping[str, Result] | None = None
) -> Book | None:
    """Return the claims as judged by this machine's finished runs and the published ones; of a run that is both the one that finished last.

    `before` is what was judged earlier, as in verdicts.judge. Returns None where no run measures a claim. Raises UserError for damaged records
    or predictions.
    """
    name = f"{profile}-{data}"
    here = [(records.read(path), path.parent) for path in sorted((runs_dir / name).glob("*/*/record.json"))]
    published: list[tuple[RunRecord, Path | None]] = [(record, None) for record in records.read_all(results_dir / name)]
    # of two that finished at the same time, which are copies, the one beside its predictions
    known = {key(record): (record, folder) for record, folder in sorted([*published, *here], key=lambda found: found[0].finished)}
    runs = [record for record, _ in known.values()]
    if not runs:
        return None
    ledger = about(ledger, runs[0].dataset.classes)

    def pairs(claim: Claim, of: Sequence[RunRecord]) -> Pair | None:
        folders = [known[key(run)][1] for run in of]
        return images.compare(claim, [folder and folder / "predictions.npz" for folder in folders], ledger.confidence)

    return judge(ledger, runs, pairs, before or {})


def due(ledger: Ledger, only: Sequence[str], profile: str, classes: Sequence[str], book: Book | None) -> tuple[list[str], tuple[int, ...]]:
    """Return the claims that are next to be trained for, those in `only` or else the primary ones, and the seeds of their stage.

    The first stage comes first; when it is complete for all that are tested, the second one for what it left undecided. Returns no claims
    where nothing is to be trained for now. Raises UserError for an unknown claim, where none is primary, and where none needs a run.
    """
    wanted = [claim.id for claim in _needing_runs(ledger, only, profile, classes)]
    known = {result.id: result for result in book.results} if book else {}
    first, last = ledger.seeds(1), ledger.seeds(len(ledger.stages))
    if any(name not in known or known[name].awaits == 1 or not set(first) <= set(known[name].seeds) for name in wanted):
        return wanted, first
    return [name for name in wanted if known[name].awaits == 2], last


def about(ledger: Ledger, classes: Sequence[str]) -> Ledger:
    """Return the ledger without the claims about classes that the data set does not have."""
    return ledger.model_copy(update={"claims": tuple(claim for claim in ledger.claims if not _lacked(claim, classes))})


def left_out(ledger: Ledger, only: Sequence[str], classes: Sequence[str]) -> dict[str, list[str]]:
    """Return which of the claims in `only`, or else the primary ones, are about classes that the data set does not have, and these classes."""
    return {claim.id: sorted(lacked) for claim in _only(ledger, only).claims if (lacked := _lacked(claim, classes))}


def _lacked(claim: Claim, classes: Sequence[str]) -> set[str]:
    metrics = [claim.metric_of(arm) for arm in claim.arms]
    return {name for metric in metrics for name in metric.split(".")[1:]} - set(classes)


# ------------------------------------------------------------------------------------------------------ what is to be trained


@dataclass(frozen=True)
class Plan:
    """The runs to train, and which claims each of them settles."""

    runs: list[Run]  # in the order they are trained, a teacher before its students
    settles: Mapping[Path, list[str]]  # a run's folder -> the claims that can be judged once it is finished, and not before


def make(
    ledger: Ledger,
    only: Sequence[str],
    profile: str,
    source: Source,
    seeds: Sequence[int],
    runs_dir: Path,
    results_dir: Path,
    book: Book | None = None,
) -> Plan:
    """Return the runs that the claims need (those in `only`; all primary ones if it is empty), so ordered that claims are settled soonest.

    A claim needs the runs of its arms, and one that is tested also those that its families' spread is pooled over; `book`, the claims as judged
    so far, tells which of these a second stage is for. A run whose record is published is needed only as the teacher of a run whose record is
    not. Next is always the claim with the least work left, in FLOPs of its unfinished runs with their teachers; of equals, the first declared.
    Raises UserError for an unknown claim, where no claim needs a run, and for a metric that a finished run's record lacks.
    """
    wanted = _needing_runs(ledger, only, profile, source.classes)
    tested = about(ledger, source.classes).tested(profile)
    if book is not None and not set(seeds) <= set(ledger.seeds(1)) and all(result.awaits != 1 for result in book.results):
        tested = [claim for claim in tested if claim.id in {result.id for result in book.results if result.awaits == 2}]
    published = {key(record): record for record in records.read_all(results_dir / f"{profile}-{source.name}")}

    @functools.cache
    def recorded(folder: Path, known: Key) -> RunRecord | None:
        return records.read(folder / "record.json") if (folder / "record.json").is_file() else published.get(known)

    known: dict[Key, Run] = {}
    arms: dict[tuple[str, tuple[str, ...]], list[Run]] = {}  # kept, because many claims share an arm
    needs: dict[str, dict[Key, Run]] = {}
    for claim in wanted:
        runs = []
        for arm, metric in evidence.needs(ledger, claim, tested if claim in tested else ()):
            if (arm.experiment, arm.set) not in arms:
                made = plan.make([arm.path], profile, source, list(seeds), arm.set, runs_dir)
                arms[arm.experiment, arm.set] = [_the_same(run, known) for run in made]
            runs += arms[arm.experiment, arm.set]
            for run in arms[arm.experiment, arm.set]:
                if run.resolved.id == arm.experiment and (record := recorded(run.folder, key(run))) is not None:
                    _check(claim, record, metric)
        needs[claim.id] = {key(run): run for run in sorted(runs, key=lambda run: seeds.index(run.seed))}

    taught = {key(run.teacher) for k, run in known.items() if run.teacher and k not in published and not run.finished}
    needs = {claim: {k: run for k, run in runs.items() if k not in published or k in taught} for claim, runs in needs.items()}
    wanted = [claim for claim in wanted if needs[claim.id]]
    left = {k: 0.0 if run.finished else run.train_flops for k, run in known.items()}
    ordered: dict[Key, Run] = {}
    settles: dict[Path, list[str]] = {}
    while wanted:
        claim = min(wanted, key=lambda claim: sum(left[k] for k in needs[claim.id] if k not in ordered))
        wanted.remove(claim)
        ordered |= needs[claim.id]  # runs that are in it already keep their places
        last = [run for k, run in ordered.items() if k in needs[claim.id]][-1]
        settles.setdefault(last.folder, []).append(claim.id)
    return Plan(list(ordered.values()), settles)


def _check(claim: Claim, record: RunRecord, metric: str) -> None:
    """Raise UserError where the record lacks the metric: the run is finished, so training would never bring it."""
    try:
        measure(record, metric)
    except NotRecorded as e:
        raise UserError(
            f"{claim.id}: {e}; mend the claim, or train the run anew by runner.py --force if the metric is newer than it"
        ) from None


def _needing_runs(ledger: Ledger, only: Sequence[str], profile: str, classes: Sequence[str]) -> list[Claim]:
    named = about(_only(ledger, only), classes).claims
    wanted = [claim for claim in named if not claim.exact and (profile == "full" or not claim.full_size_only)]
    if not wanted:
        raise UserError("none of these claims needs a run: they follow by formula, or are about full size or about other classes")
    return wanted


def _the_same(run: Run, known: dict[Key, Run]) -> Run:
    """Return the run in `known` with this fingerprint and seed, which another arm may have added under another name; also its teacher."""
    teacher = known[key(run.teacher)] if run.teacher else None
    return known.setdefault(key(run), replace(run, teacher=teacher))


def _only(ledger: Ledger, only: Sequence[str]) -> Ledger:
    ids = [claim.id for claim in ledger.claims]
    for name in only:
        if name not in ids:
            close = difflib.get_close_matches(name, ids, n=3)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"they are declared in {declarations.FILE.name}, for example {ids[0]}"
            )
            raise UserError(f"--only {name}: no such claim; {hint}")
    if not only and not any(claim.primary for claim in ledger.claims):
        raise UserError("no claim is primary, so none is tested; add 'primary: true' to those that are to be, or name some with --only")
    return ledger.model_copy(update={"claims": tuple(c for c in ledger.claims if (c.id in only if only else c.primary))})
