"""The verdicts: each declared claim judged by the records. They depend on the two and on what was measured before, on nothing else."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitlab import config, records
from vitlab.claims.declarations import Claim, Ledger, NotRecorded, exact, fingerprint, measure
from vitlab.config import Schema
from vitlab.errors import UserError
from vitlab.ranking import ranked
from vitlab.records import RunRecord
from vitlab.stats import Pair, distance, estimate, holm, pair, seeds_needed

LOOKED = "where seeds were added because of what was seen, a false verdict is likelier than the confidence says"
Verdict = Literal["supported", "refuted", "undecided", "not measured", "exploratory"]  # the last one: measured or not, never judged


class MeasuredArm(Schema):
    """An arm and the records that were used for it."""

    label: str
    fingerprint: str  # "" where no run is compared
    records: dict[int, str]  # seed -> its record's file


class Result(Schema):
    """One claim as measured and judged."""

    id: str
    statement: str
    source: str
    declaration: str
    changed: bool = False  # declared otherwise when it was first measured
    arms: tuple[MeasuredArm, ...]
    metric: str
    unit: str = "points"  # of the effect
    low_bound: float | None  # of the region that supports the claim
    high_bound: float | None
    claimed: float | None = None
    verdict: Verdict
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()  # one a seed
    effect: float | None = None
    low: float | None = None  # its confidence interval, over seeds
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    more_seeds: int | None = None  # that an undecided claim would take at the spread seen
    pair: Pair | None = None  # with one seed only
    note: str = ""


Pairs = Callable[[Claim, Sequence[RunRecord]], "Pair | None"]


def judge(
    ledger: Ledger, profile: str, runs: Sequence[RunRecord], pairs: Pairs, before: Mapping[str, Result] | None = None
) -> list[Result]:
    """Return every claim's result from the records `runs`, of one profile and data set.

    `pairs(claim, runs)` compares the two runs of a claim that has one seed only, image by image, where their predictions are available.
    `before` is the ledger measured earlier: a claim that was measured under another declaration is marked as changed. Raises UserError
    where a metric cannot be had.
    """
    found = decide(ledger, [_measure(ledger, claim, profile, runs, pairs) for claim in ledger.claims])
    return [_mark_changed(result, (before or {}).get(result.id)) for result in found]


def decide(ledger: Ledger, measured: Sequence[Result]) -> list[Result]:
    """Return the results with their verdicts: all tested claims are one family (Holm), and undecided ones say how many more seeds to add."""
    decided = list(measured)
    tested = [i for i, result in enumerate(decided) if result.p is not None]
    adjusted = holm([decided[i].p for i in tested])
    level = 1 - ledger.confidence
    # If the others stay as they are, an undecided claim is decided once its p is the smallest of the undecided ones and passes Holm's step.
    next_step = level / max(1, sum(p_holm > level for p_holm in adjusted))
    for i, p_holm in zip(tested, adjusted, strict=True):
        result, region = decided[i], ledger.claims[i].region
        update = {"p_holm": p_holm}
        if p_holm <= level:
            update["verdict"] = "supported" if region[0] <= result.effect <= region[1] else "refuted"
        else:
            e = estimate(result.values, region, ledger.confidence)
            update["more_seeds"] = seeds_needed(distance(e.mean, region), e.sd, next_step, len(result.values))
        decided[i] = result.model_copy(update=update)
    return decided


def _mark_changed(result: Result, earlier: Result | None) -> Result:
    measured = earlier is not None and (earlier.effect is not None or earlier.changed)
    if measured and (earlier.changed or earlier.declaration != result.declaration):
        return result.model_copy(update={"changed": True})
    return result


def _measure(ledger: Ledger, claim: Claim, profile: str, runs: Sequence[RunRecord], pairs: Pairs) -> Result:
    """Return the claim's result before the correction over the ledger: `undecided` where it is to be tested."""
    metrics = [claim.metric_of(arm) for arm in claim.arms]
    low, high = (None if math.isinf(bound) else bound for bound in claim.region)
    facts = {
        "id": claim.id, "statement": claim.statement, "source": claim.source, "declaration": ledger.declaration(claim),
        "metric": ("spread over seeds of " if claim.spread else "") + " less ".join(dict.fromkeys(metrics)), "unit": claim.unit, "low_bound": low, "high_bound": high, "claimed": claim.claimed,
    }  # fmt: skip
    resolved = [arm.resolve(profile) for arm in claim.arms]
    no_verdict: Verdict = "exploratory" if claim.exploratory else "not measured"
    if claim.full_size_only and profile != "full":
        return Result(**facts, arms=_unmeasured(resolved), verdict=no_verdict, note="about full size only")
    if claim.exact:
        classes = len(runs[0].dataset.classes) if runs else 10
        effect = round(_effect(claim, [exact(r, m, classes) for r, m in zip(resolved, metrics, strict=True)]), 9)
        inside = claim.region[0] <= effect <= claim.region[1]
        verdict: Verdict = "exploratory" if claim.exploratory else "supported" if inside else "refuted"
        return Result(**facts, arms=_unmeasured(resolved), verdict=verdict, effect=effect, note="by formula: nothing to estimate")

    by_arm = [_runs_of(arm, runs) for arm in resolved]
    measured = [_values(found, metric) for found, metric in zip(by_arm, metrics, strict=True)]
    seeds = tuple(sorted(set.intersection(*map(set, measured))))
    lacking = [m for m, found, values in zip(metrics, by_arm, measured, strict=True) if found.keys() - values.keys()]
    lacks = f"records without {', '.join(dict.fromkeys(lacking))} are left out" if lacking else ""
    arms = tuple(
        MeasuredArm(
            label=arm.label,
            fingerprint=next((found[s].fingerprint for s in seeds), ""),
            records={s: records.file_name(found[s]) for s in seeds},
        )
        for arm, found in zip(resolved, by_arm, strict=True)
    )
    if not seeds:
        return Result(**facts, arms=arms, verdict=no_verdict, note=lacks)
    if claim.spread and len(seeds) == 1:
        return Result(**facts, arms=arms, verdict=no_verdict, note="one seed has no spread")
    columns = [[values[s] for s in seeds] for values in measured]
    if claim.spread:  # Brown and Forsythe's (1974) test of equal spread is one of equal means of these
        columns = [[abs(value - statistics.median(column)) for value in column] for column in columns]
    # Accuracies in records come from float32, 50.24999976 for 50.25: rounded, so that equal ones are equal.
    values = tuple(round(_effect(claim, list(row)), 4) for row in zip(*columns, strict=True))
    facts |= {"arms": arms, "seeds": seeds, "values": values, "verdict": "exploratory" if claim.exploratory else "undecided"}
    if len(seeds) == 1:
        compared = pairs(claim, [found[seeds[0]] for found in by_arm])
        return Result(**facts, effect=values[0], pair=compared, note="; ".join(filter(None, ["one seed: no interval over seeds", lacks])))
    estimates = over_seeds(values, claim.region, ledger.confidence)
    if claim.exploratory:
        estimates["p"] = None
    looked = f"{len(seeds)} seeds, {ledger.seeds} were planned: {LOOKED}" if len(seeds) > ledger.seeds else ""
    estimates["note"] = "; ".join(filter(None, [estimates.get("note"), looked, lacks]))
    return Result(**facts, **estimates)


def _values(found: Mapping[int, RunRecord], metric: str) -> dict[int, float]:
    """Return seed -> the metric's value, of the runs whose records have it."""
    values = {}
    for seed, run in found.items():
        with contextlib.suppress(NotRecorded):
            values[seed] = measure(run, metric)
    return values


def over_seeds(values: Sequence[float], region: tuple[float, float], confidence: float) -> dict[str, Any]:
    """Return the fields of a Result that follow from two or more values, one a seed, and the region (low, high) that supports the claim."""
    e = estimate(values, region, confidence)
    if not e.sd:
        return {"effect": e.mean, "p": e.p, "note": "the same in every seed: no spread to test with"}
    return {"effect": e.mean, "low": e.low, "high": e.high, "p": e.p}


def _effect(claim: Claim, values: list[float]) -> float:
    if len(values) == 1:
        return values[0]
    first, second, *others = values
    if others:
        return (first - second) - (others[0] - others[1])
    if claim.relative and not second:
        raise UserError(f"{claim.id}: relative to {claim.metric_of(claim.arms[1])} of its second arm, which is 0")
    return 100 * (first - second) / second if claim.relative else first - second


def _unmeasured(arms: Sequence[config.Resolved]) -> tuple[MeasuredArm, ...]:
    return tuple(MeasuredArm(label=arm.label, fingerprint="", records={}) for arm in arms)


def _runs_of(arm: config.Resolved, runs: Sequence[RunRecord]) -> dict[int, RunRecord]:
    """Return seed -> the run of exactly this configuration, the last one where it was repeated."""
    digests = {run.dataset.digest for run in runs}
    wanted = {fingerprint(arm, digest) for digest in digests}
    found = sorted((run for run in runs if run.fingerprint in wanted), key=lambda run: run.finished)
    return {run.seed: run for run in found}


def rule(result: Result) -> str:
    """Return what the effect must be for the claim to hold, as `≥ 0.3`, `≤ 1` or `80 ± 1`."""
    low, high = result.low_bound, result.high_bound
    if low is not None and high is not None:
        return f"{(low + high) / 2:g} ± {(high - low) / 2:g}"
    return f"≥ {low:g}" if high is None else f"≤ {high:g}"


# ------------------------------------------------------------------------------------------------------ image by image


def compare(claim: Claim, predictions: Sequence[Path | None], confidence: float) -> Pair | None:
    """Compare the claim's two runs image by image, from their predictions.npz.

    Returns None where the claim has one arm, where predictions are missing, are about different images, or do not have its metric. Raises
    UserError for a damaged file.
    """
    if len(predictions) != 2 or claim.relative:
        return None
    first, second = (correct(path, claim.metric_of(arm)) for path, arm in zip(predictions, claim.arms, strict=True))
    if first is None or second is None or not np.array_equal(first[0], second[0]):
        return None
    return pair(first[1], second[1], confidence)


def correct(path: Path | None, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (N,) labels, and (N,) bool: whether the run has each test image right, by the logits that `metric`, a top-1, is computed from.

    None where it cannot be had. Raises UserError for a damaged file.
    """
    named = re.fullmatch(r"test_(?:(\w+)_)?top1", metric)
    if path is None or named is None or not path.is_file():
        return None
    name = named[1]
    try:
        with np.load(path, allow_pickle=False) as stored:
            weights = name if name in ("raw", "ema") else "ema" if "logits_ema" in stored else "raw"
            heads = stored["heads"].tolist()
            if f"logits_{weights}" not in stored or name not in (None, "raw", "ema", *heads):
                return None
            logits = stored[f"logits_{weights}"]  # (H, N, C)
            scores = logits[heads.index(name)] if name in heads else logits.mean(0)
            return stored["labels"], ranked(scores)[:, 0] == stored["labels"]
    except Exception as e:  # zipfile, zlib and NumPy raise nearly anything on a damaged file
        remedy = "train the run anew with --force, or delete it in MLflow, then 'vitlab sync'"
        raise UserError(f"{path}: no readable predictions ({str(e) or type(e).__name__}); {remedy}") from None
