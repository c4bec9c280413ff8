"""The verdicts: each declared claim judged by the records. They depend on the two and on what was measured before, on nothing else."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vitlab import config, records, stats
from vitlab.claims import declarations, evidence
from vitlab.claims.declarations import Arm, ArmKey, Claim, Ledger, fingerprint
from vitlab.claims.evidence import Evidence, FamilySpread, Least, Values
from vitlab.claims.metrics import NotRecorded, exact, measure
from vitlab.config import Schema
from vitlab.records import RunRecord
from vitlab.stats import Estimate, Pair

# interim: the planned seeds are not complete. undecided: they are, and do not tell. exploratory: not a primary claim, so never judged.
Verdict = Literal["supported", "refuted", "undecided", "interim", "not measured", "exploratory"]
FULL_SIZE = "about full size only"  # the note of a claim that this profile says nothing about
JUDGED = ("supported", "refuted", "undecided")


class MeasuredArm(Schema):
    """An arm and the records that were used for it."""

    label: str
    fingerprint: str  # "" where no run is compared
    records: dict[int, str]  # seed -> its record's file


class Past(Schema):
    """What was once said of a claim, and is no longer, because its declaration, its runs or the verdict changed."""

    declaration: str
    verdict: Verdict
    stage: int | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    effect: float
    low: float | None
    high: float | None
    p_holm: float | None


class Result(Schema):
    """One claim as measured and judged."""

    id: str
    statement: str
    brief: str = ""
    source: str
    declaration: str
    primary: bool
    changed: bool = False  # declared otherwise when it was first measured
    arms: tuple[MeasuredArm, ...]
    metric: str
    family: str = ""  # the families that its arms are in, "" where its spread is not pooled
    unit: str = "points"  # of the effect
    low_bound: float | None  # of the region that supports the claim
    high_bound: float | None
    claimed: float | None = None
    verdict: Verdict
    stage: int | None = None  # whose seeds these are, counted from 1; None: not those of a complete stage
    awaits: int | None = None  # the stage whose seeds are still to come; None: no further ones are planned as things stand
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()  # one a seed
    effect: float | None = None
    low: float | None = None  # its confidence interval, over seeds
    high: float | None = None
    sd: float | None = None  # of one seed's effect, as the interval has it
    df: float | None = None
    spread: str = ""  # where sd comes from
    p: float | None = None  # of this stage's test
    p_holm: float | None = None  # of all stages by their shares, corrected over all primary claims: compared with 1 - confidence
    more_seeds: tuple[int, int] | None = None  # that an undecided claim would take, by the range in which its sd lies
    pair: Pair | None = None  # with one seed only
    note: str = ""
    history: tuple[Past, ...] = ()


Pairs = Callable[[Claim, Sequence[RunRecord]], "Pair | None"]


# ----------------------------------------------------------------------------------------------------------- deciding


@dataclass(frozen=True)
class Decision:
    """What the complete stages say of a primary claim."""

    verdict: Literal["supported", "refuted", "undecided"]
    stage: int
    evidence: Evidence
    estimate: Estimate
    p_holm: float
    more_seeds: tuple[int, int] | None


@dataclass(frozen=True)
class Standing:
    """How far the tested claims have come."""

    decisions: dict[str, Decision]  # by claim; of one whose seeds are not complete there is none
    open: list[list[Claim]]  # of each stage that has begun, the claims that it is for
    awaits: dict[str, int]  # claim -> the stage whose seeds are not complete, its own or those that its spread is pooled over


def decide(ledger: Ledger, tested: Sequence[Claim], values: Values, least: Least) -> Standing:
    """Return the decisions on the `tested` claims, and what the others wait for.

    A stage's p-values are weighted by its share of the level, and a claim's p is the least of its stages'. Over all tested claims these are
    corrected together (Holm 1979); a claim without p counts as 1. So the chance of any false verdict, in all stages, is at most
    1 - confidence, whenever the ledger is looked at. A stage begins when the one before is complete, with the claims that it left open.
    """
    level = 1 - ledger.confidence
    found: dict[str, list[tuple[float, int, Evidence, Estimate]]] = {claim.id: [] for claim in tested}
    adjusted: dict[str, float] = {}
    still_open, begun, awaits = list(tested), [], {}
    for number, stage in enumerate(ledger.stages, 1):
        begun.append(still_open)
        seeds = ledger.seeds(number)
        ready = [claim for claim in still_open if not evidence.lacking(ledger, claim, still_open, seeds, values)]
        for claim in ready:
            seen = evidence.gather(ledger, claim, still_open, seeds, values, least)
            judged = stats.estimate(seen.values, claim.region, ledger.confidence, seen.variance, seen.df)
            found[claim.id].append((min(1.0, judged.p * level / stage.alpha), number, seen, judged))
        ps = [min([1.0, *(p for p, *_ in found[claim.id])]) for claim in tested]
        adjusted = dict(zip(found, stats.holm(ps), strict=True))
        awaits = {claim.id: number for claim in still_open if claim not in ready}
        if awaits:
            break
        still_open = [claim for claim in still_open if adjusted[claim.id] > level]
    undecided = sum(p > level for p in adjusted.values())
    decisions = {}
    for i, claim in enumerate(tested):
        others = [*ps[:i], *ps[i + 1 :]]
        # the stages whose own p is enough, so that a verdict that was given is not given again by a later stage
        alone = [stage for stage in found[claim.id] if stats.holm([stage[0], *others])[0] <= level]
        if found[claim.id]:
            decisions[claim.id] = _decision(claim, alone or found[claim.id], adjusted[claim.id], level, undecided)
    return Standing(decisions, begun, awaits)


def _decision(
    claim: Claim, stages: Sequence[tuple[float, int, Evidence, Estimate]], p_holm: float, level: float, undecided: int
) -> Decision:
    """Return the decision on a claim by the first of `stages` if its corrected p is at most `level`, else by the last."""
    if p_holm <= level:
        _, number, seen, judged = stages[0]
        low, high = claim.region
        return Decision("supported" if low <= judged.mean <= high else "refuted", number, seen, judged, p_holm, None)
    _, number, seen, judged = stages[-1]
    more = None
    if judged.sd:
        gap, have = stats.distance(judged.mean, claim.region), len(seen.seeds)
        # If the others stay as they are, this one is decided once its p is the smallest of the undecided ones and passes Holm's step.
        few, many = (stats.seeds_needed(gap, sd, level / undecided, have) for sd in stats.sd_range(judged.sd, seen.df))
        more = None if few is None or many is None else (few, many)
    return Decision("undecided", number, seen, judged, p_holm, more)


# ------------------------------------------------------------------------------------------------------------ judging


def judge(
    ledger: Ledger, profile: str, runs: Sequence[RunRecord], pairs: Pairs, before: Mapping[str, Result] | None = None
) -> list[Result]:
    """Return every claim's result from the records `runs`, of one profile and data set.

    `pairs(claim, runs)` compares the two runs of a claim that has one seed only, image by image, where their predictions are available.
    `before` is the ledger measured earlier: a claim that was measured under another declaration is marked as changed, and what was said of
    it and no longer holds stays in its history. Raises UserError where a metric cannot be had.
    """
    of_arm = _Runs(profile, runs)
    standing = of_arm.standing(ledger)
    results = [_result(ledger, claim, of_arm, standing, pairs) for claim in ledger.claims]
    known = before or {}
    return [
        _remember(claim, result, known[claim.id], ledger.first_seed, of_arm.values) if claim.id in known else result
        for claim, result in zip(ledger.claims, results, strict=True)
    ]


def families(ledger: Ledger, profile: str, runs: Sequence[RunRecord]) -> list[FamilySpread]:
    """Return how the families' arms spread over each stage's seeds, from the records `runs`."""
    of_arm = _Runs(profile, runs)
    standing = of_arm.standing(ledger)
    return evidence.families(ledger, standing.open, of_arm.values)


class _Runs:
    """The records of each arm, and their values."""

    def __init__(self, profile: str, runs: Sequence[RunRecord]) -> None:
        self.profile, self.runs = profile, runs
        self.classes = len(runs[0].dataset.classes) if runs else 10
        self._known: dict[ArmKey, dict[int, RunRecord]] = {}
        self._measured: dict[tuple[ArmKey, str], dict[int, float]] = {}  # every stage and family asks again

    def standing(self, ledger: Ledger) -> Standing:
        """Return how far the claims have come that runs of this profile are tested for."""
        alike = ledger.spelt_alike(self.profile)
        return decide(alike, alike.tested(self.profile), self.values, self.least)

    def of(self, arm: Arm) -> dict[int, RunRecord]:
        """Return seed -> the run of exactly this configuration, the last one where it was repeated."""
        if arm.key not in self._known:
            wanted = {fingerprint(arm.resolve(self.profile), digest) for digest in {run.dataset.digest for run in self.runs}}
            found = sorted((run for run in self.runs if run.fingerprint in wanted), key=lambda run: run.finished)
            self._known[arm.key] = {run.seed: run for run in found}
        return self._known[arm.key]

    def values(self, arm: Arm, metric: str) -> dict[int, float]:
        """Return seed -> the metric's value, of the runs whose records have it."""
        if (arm.key, metric) not in self._measured:
            values = self._measured[arm.key, metric] = {}
            for seed, run in self.of(arm).items():
                with contextlib.suppress(NotRecorded):
                    values[seed] = measure(run, metric)
        return self._measured[arm.key, metric]

    def least(self, claim: Claim, seeds: Sequence[int]) -> float:
        """Return the least variance that a seed's difference in top-1 can have because of the images it was measured on; else 0.

        Two predictors whose accuracies differ by d disagree on a share q of the N images, and q is at least |d|. If images of this kind are
        drawn anew, the difference has a variance of (q - d^2) / N (McNemar 1947). Records know q for averaged against raw weights.
        """
        metrics = [claim.metric_of(arm) for arm in claim.arms]
        if (
            len(metrics) != 2
            or claim.relative
            or claim.spread
            or not all(re.fullmatch(r"(test|validation)_(\w+_)?top1(_phase_\d+)?", m) for m in metrics)
        ):
            return 0.0
        total = 0.0
        for seed in seeds:
            first, second = (self.of(arm)[seed] for arm in claim.arms)
            d = abs(measure(first, metrics[0]) - measure(second, metrics[1])) / 100
            share = d
            if first is second and set(metrics) == {"test_ema_top1", "test_raw_top1"}:
                share = first.metrics.get("test_ema_or_raw_alone", 100 * d) / 100
            images = first.dataset.test if metrics[0].startswith("test") else first.dataset.validation
            total += 1e4 * (share - d * d) / images
        return total / len(seeds)


def _result(ledger: Ledger, claim: Claim, runs: _Runs, standing: Standing, pairs: Pairs) -> Result:
    decision = standing.decisions.get(claim.id)
    metrics = [claim.metric_of(arm) for arm in claim.arms]
    low, high = (None if math.isinf(bound) else bound for bound in claim.region)
    facts: dict[str, Any] = {
        "id": claim.id, "statement": claim.statement, "brief": claim.brief, "source": claim.source, "declaration": ledger.declaration(claim), "primary": claim.primary,
        "metric": ("spread over seeds of " if claim.spread else "") + " less ".join(dict.fromkeys(metrics)), "unit": claim.unit,
        "family": " and ".join(sorted(evidence.pools(ledger, claim, ()))), "low_bound": low, "high_bound": high, "claimed": claim.claimed,
        "awaits": standing.awaits.get(claim.id),
    }  # fmt: skip
    resolved = [arm.resolve(runs.profile) for arm in claim.arms]
    if claim.full_size_only and runs.profile != "full":
        return Result(**facts, arms=_unmeasured(resolved), verdict=_without(claim), note=FULL_SIZE)
    if claim.exact:
        effect = round(evidence.effect(claim, [exact(r, m, runs.classes) for r, m in zip(resolved, metrics, strict=True)]), 9)
        inside = claim.region[0] <= effect <= claim.region[1]
        verdict: Verdict = "exploratory" if not claim.primary else "supported" if inside else "refuted"
        return Result(**facts, arms=_unmeasured(resolved), verdict=verdict, effect=effect, note="by formula: nothing to estimate")

    by_arm = [runs.of(arm) for arm in claim.arms]
    measured = [runs.values(arm, metric) for arm, metric in zip(claim.arms, metrics, strict=True)]
    lacking = [m for m, found, values in zip(metrics, by_arm, measured, strict=True) if found.keys() - values.keys()]
    notes = [f"records without {', '.join(dict.fromkeys(lacking))} are left out" if lacking else ""]
    common = tuple(sorted(set.intersection(*map(set, measured))))
    seeds = decision.evidence.seeds if decision else common
    if claim.primary and not decision:
        planned = ledger.seeds(len(ledger.stages))
        seeds = tuple(seed for seed in common if seed in planned) or common
        if seeds and seeds[0] not in planned:
            notes.append(f"of seeds that are never tested, which begin with {ledger.first_seed}")
        elif set(ledger.seeds(1)) <= set(seeds):
            others = evidence.lacking(ledger, claim, ledger.tested(runs.profile), ledger.seeds(1), runs.values)
            waits_for = ", ".join(arm.resolve(runs.profile).label for arm in others)
            notes.append(f"its own seeds are complete; its spread is its family's, which lacks seeds of {waits_for}")
    arms = tuple(
        MeasuredArm(
            label=arm.label,
            fingerprint=next((found[s].fingerprint for s in seeds), ""),
            records={s: records.file_name(found[s]) for s in seeds},
        )
        for arm, found in zip(resolved, by_arm, strict=True)
    )
    if claim.spread and len(seeds) == 1:
        notes.append("one seed has no spread")
    if not seeds or (claim.spread and len(seeds) == 1):
        return Result(**facts, arms=arms, verdict=_without(claim), note=_joined(notes))
    facts |= {"arms": arms, "seeds": seeds, "verdict": "interim" if claim.primary else "exploratory"}
    if len(seeds) == 1:
        (value,) = values = evidence.by_seed(claim, seeds, runs.values)
        compared = pairs(claim, [found[seeds[0]] for found in by_arm])
        return Result(**facts, values=values, effect=value, pair=compared, note=_joined(["one seed: no interval over seeds", *notes]))
    if decision is None:
        seen = evidence.gather(ledger, claim, (), seeds, runs.values, runs.least)
        judged = stats.estimate(seen.values, claim.region, ledger.confidence, seen.variance, seen.df)
    else:
        seen, judged = decision.evidence, decision.estimate
        facts |= {"verdict": decision.verdict, "stage": decision.stage, "p": judged.p, "p_holm": decision.p_holm}
        facts["more_seeds"] = decision.more_seeds
    facts |= {"values": seen.values, "effect": judged.mean, "spread": seen.spread}
    if not judged.sd:
        return Result(**facts, note=_joined(["the same in every seed: no spread to test with", *notes]))
    return Result(**facts, low=judged.low, high=judged.high, sd=judged.sd, df=seen.df, note=_joined(notes))


def _without(claim: Claim) -> Verdict:
    return "not measured" if claim.primary else "exploratory"


def _joined(notes: Sequence[str]) -> str:
    return "; ".join(filter(None, notes))


def _unmeasured(arms: Sequence[config.Resolved]) -> tuple[MeasuredArm, ...]:
    return tuple(MeasuredArm(label=arm.label, fingerprint="", records={}) for arm in arms)


# -------------------------------------------------------------------------------------------------------- remembering


def _remember(claim: Claim, result: Result, earlier: Result, first_seed: int, values: Values) -> Result:
    """Return the result with its history: what `earlier` said and is lost, and whether the claim was declared otherwise when measured.

    Seeds before `first_seed` are for tuning: who has seen them alone may still declare anew.
    """
    history = earlier.history
    same = (earlier.declaration, earlier.verdict, earlier.stage) == (result.declaration, result.verdict, result.stage)
    # Of the earlier seeds alone, since a spread is measured from the median, which moves with each seed that is added.
    there = all(set(earlier.seeds) <= values(arm, claim.metric_of(arm)).keys() for arm in claim.arms) if earlier.seeds else True
    kept = there and (not earlier.seeds or evidence.by_seed(claim, earlier.seeds, values) == earlier.values)
    fell_back = earlier.verdict in JUDGED and result.verdict not in JUDGED
    grown = earlier.declaration == result.declaration and earlier.verdict not in ("supported", "refuted") and kept and not fell_back
    if earlier.effect is not None and not (same and kept) and not grown:
        history = (*history, Past(**{name: getattr(earlier, name) for name in Past.model_fields}))
    seen = [past.seeds for past in history] + ([earlier.seeds] if earlier.effect is not None else [])
    measured = any(max(seeds, default=first_seed) >= first_seed for seeds in seen)
    changed = earlier.changed or (measured and earlier.declaration != result.declaration)
    return result.model_copy(update={"history": history, "changed": changed})


def rule(result: Result) -> str:
    """Return what the effect must be for the claim to hold, as `≥ 0.3`, `≤ 1` or `80 ± 1`."""
    low, high = result.low_bound, result.high_bound
    return declarations.rule(-math.inf if low is None else low, math.inf if high is None else high)
