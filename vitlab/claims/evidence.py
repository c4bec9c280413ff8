"""What the seeds of a stage say of a claim: its effect, and the spread that the effect is judged by.

A stage speaks once all its seeds are there, of every arm that the claim's spread is pooled over. Numbers come in through `Values`, so that
records and simulated runs are judged by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitlab import stats
from vitlab.claims.declarations import Arm, Claim, Ledger
from vitlab.config import Schema
from vitlab.errors import UserError

Values = Callable[[Arm, str], Mapping[int, float]]  # an arm and a metric -> seed -> value
Least = Callable[[Claim, Sequence[int]], float]  # a claim and seeds -> the least variance that a seed's effect can have


@dataclass(frozen=True)
class Evidence:
    """A claim's effect by seed, and the variance that one of these values has."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    variance: float
    df: float
    spread: str  # where the variance comes from


def effect(claim: Claim, values: Sequence[float]) -> float:
    """Return the claim's effect from its arms' values. Raises UserError where it is relative to 0."""
    if claim.relative:
        if not values[1]:
            what = f"{claim.id}: relative to {claim.metric_of(claim.arms[1])} of its second arm, which is 0"
            raise UserError(f"{what}; declare it without 'relative', with a bound in the metric's own unit")
        return 100 * (values[0] - values[1]) / values[1]
    return sum(weight * value for weight, value in zip(claim.weights, values, strict=True))


def by_seed(claim: Claim, seeds: Sequence[int], values: Values) -> tuple[float, ...]:
    """Return the claim's effect for each of the seeds, which all arms have."""
    columns = [[values(arm, claim.metric_of(arm))[seed] for seed in seeds] for arm in claim.arms]
    if claim.spread:  # Brown and Forsythe's (1974) test of equal spread is one of equal means of these
        columns = [[abs(value - float(np.median(column))) for value in column] for column in columns]
    # Accuracies in older records come from float32, 50.24999976 for 50.25: rounded, so that equal ones are equal.
    return tuple(round(effect(claim, row), 4) for row in zip(*columns, strict=True))


def pools(ledger: Ledger, claim: Claim, tested: Iterable[Claim]) -> dict[str, list[Arm]]:
    """Return the families of the claim's arms, each with all its arms in the `tested` claims that are compared by the same metric."""
    if not ledger.pooled(claim):
        return {}
    metric = claim.metric_of(claim.arms[0])
    found: dict[str, list[Arm]] = {name: [] for arm in claim.arms if (name := ledger.family(arm)) is not None}
    for other in (claim, *tested):
        for arm in other.arms:
            of = found.get(ledger.family(arm) or "")
            same = ledger.pooled(other) and other.metric_of(arm) == metric
            if of is not None and same and all(arm.key != known.key for known in of):
                of.append(arm)
    return found


def needs(ledger: Ledger, claim: Claim, tested: Iterable[Claim]) -> list[tuple[Arm, str]]:
    """Return the arms that the claim is judged by, its own and its families' in the `tested` claims, each once a metric, with that metric."""
    own = [(arm, claim.metric_of(arm)) for arm in claim.arms]
    families = [(arm, claim.metric_of(claim.arms[0])) for arms in pools(ledger, claim, tested).values() for arm in arms]
    return list({(arm.key, metric): (arm, metric) for arm, metric in (*own, *families)}.values())


def lacking(ledger: Ledger, claim: Claim, tested: Sequence[Claim], seeds: Sequence[int], values: Values) -> list[Arm]:
    """Return those of the arms that the claim is judged by, its own and its families', that lack one of these seeds."""
    found = {arm.key: arm for arm, metric in needs(ledger, claim, tested) if not set(seeds) <= values(arm, metric).keys()}
    return list(found.values())


def gather(ledger: Ledger, claim: Claim, tested: Sequence[Claim], seeds: Sequence[int], values: Values, least: Least) -> Evidence:
    """Return the evidence of two or more seeds.

    The variance is the largest of three: that pooled over the families, unless Levene's test finds that the arms of one spread unequally; the
    effects' own; and what the test images make it at least. The first two have their own degrees of freedom each, the last those of the
    larger of the two.
    """
    effects = by_seed(claim, seeds, values)
    own = 0.0 if min(effects) == max(effects) else float(np.var(effects, ddof=1))
    candidates = [(own, len(seeds) - 1.0, "its own")]
    parts, names, unequal, several = [], [], [], False
    for name, arms in pools(ledger, claim, tested).items():
        metric = claim.metric_of(claim.arms[0])
        table = np.array([[values(arm, metric)[seed] for seed in seeds] for arm in arms])
        weights = [sum(w for w, own_arm in zip(claim.weights, claim.arms, strict=True) if own_arm.key == arm.key) for arm in arms]
        parts += stats.mean_squares(table).parts(weights)
        names.append(name)
        several = several or len(arms) > 1
        if len(arms) > 1 and stats.equal_spread(table) < ledger.levene:
            unequal.append(name)
    if parts and not unequal:
        variance, df = stats.satterthwaite(parts)
        where = f"pooled over {' and '.join(names)}" if several else "its arms' variances, added up"
        candidates = [(variance, df, where), (own, len(seeds) - 1.0, f"its own, larger than {where}")]
    elif unequal:
        candidates = [(own, len(seeds) - 1.0, f"its own, since arms of {' and '.join(unequal)} spread unequally")]
    variance, df, spread = max(candidates, key=lambda candidate: candidate[0])
    if (images := least(claim, seeds)) > variance:
        variance, spread = images, "that of the test images"
    return Evidence(tuple(seeds), effects, variance, df, spread)


class FamilySpread(Schema):
    """How the arms of a family spread over the seeds of a stage, and whether they are pooled."""

    name: str
    metric: str
    arms: tuple[str, ...]  # experiments, with their settings
    seeds: int
    sd: float | None  # of an arm's values, once arm and seed are taken off; None with one arm, which has no more than its own
    seed_sd: float  # between seeds
    df: int  # of sd
    levene: float | None  # p of Levene's test; None with one arm
    pooled: bool


def families(ledger: Ledger, by_stage: Sequence[Sequence[Claim]], values: Values) -> list[FamilySpread]:
    """Return the spread of each family and metric that claims are pooled over, for each stage that is complete for all its arms.

    `by_stage`: the claims that each stage is for, which are pooled with each other.
    """
    found: dict[tuple[int, str, str], FamilySpread] = {}
    for (number, claims), claim in ((stage, claim) for stage in enumerate(by_stage, 1) for claim in stage[1]):
        metric, seeds = claim.metric_of(claim.arms[0]), ledger.seeds(number)
        for name, arms in pools(ledger, claim, claims).items():
            if (number, name, metric) in found or not all(set(seeds) <= values(arm, metric).keys() for arm in arms):
                continue
            table = np.array([[values(arm, metric)[seed] for seed in seeds] for arm in arms])
            squares = stats.mean_squares(table)
            several = len(arms) > 1
            residual = squares.residual if several else 0.0
            p = stats.equal_spread(table) if several else None
            found[number, name, metric] = FamilySpread(
                name=name, metric=metric, arms=tuple(" ".join((arm.experiment, *arm.set)) for arm in arms),
                seeds=len(seeds), sd=math.sqrt(residual) if several else None,
                seed_sd=math.sqrt(max(0.0, (squares.of_seeds - residual) / len(arms))), df=(len(arms) - 1) * (len(seeds) - 1),
                levene=p, pooled=p is not None and p >= ledger.levene,
            )  # fmt: skip
    return list(found.values())
