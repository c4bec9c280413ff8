"""What a declaration can find out, before anything is trained: the chance of a verdict for the effects that it expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitlab import stats
from vitlab.claims import evidence
from vitlab.claims.declarations import ArmKey, Claim, Ledger

LEDGERS = 400  # simulated; a chance is known to 5 points (two standard errors)
WANTED = 0.8  # the chance with which `distance` is found


@dataclass(frozen=True)
class Power:
    """What the planned seeds can find out about one claim."""

    chances: tuple[float, ...]  # of a verdict by the end of each stage, if the effect is the expected one; () where none is expected
    distance: float  # from the nearest bound, at which the last stage decides with WANTED's chance


def power(ledger: Ledger, profile: str) -> dict[str, Power]:
    """Return the power of each claim that is tested at the profile, by id; of those whose spread is not declared there is none.

    Runs are simulated with the declared spreads and judged as real ones are. A claim counts as decided where its p passes Holm's first step, so
    the chances are at least these: each claim decided makes it easier for the next.
    """
    ledger = ledger.spelt_alike(profile)
    tested = ledger.tested(profile)
    level = (1 - ledger.confidence) / max(1, len(tested))
    planned = [claim for claim in tested if ledger.pooled(claim) or claim.sd is not None]
    rng = np.random.default_rng(0)
    decided: dict[str, list[list[bool]]] = {claim.id: [] for claim in planned}
    distances: dict[str, list[float]] = {claim.id: [] for claim in planned}
    for _ in range(LEDGERS):
        arms = _simulated(ledger, tested, rng)
        for claim in planned:
            by_stage, found, expected = [], False, claim.planned_for
            alone = None if ledger.pooled(claim) else rng.normal(0, claim.sd, ledger.stages[-1].seeds)
            for number, stage in enumerate(ledger.stages, 1):
                seeds = ledger.seeds(number)
                if alone is None:
                    seen = evidence.gather(ledger, claim, tested, seeds, arms, lambda claim, seeds: 0.0)
                else:
                    seen = _alone(seeds, alone[: stage.seeds])
                share = level * stage.alpha / (1 - ledger.confidence)
                if expected is not None:
                    shifted = [value + expected for value in seen.values]
                    found |= stats.estimate(shifted, claim.region, ledger.confidence, seen.variance, seen.df).p <= share
                    by_stage.append(found)
                last = stats.least_distance(float(np.mean(seen.values)), seen.variance, seen.df, len(seeds), share)
            decided[claim.id].append(by_stage)
            distances[claim.id].append(last)
    return {
        name: Power(tuple(np.mean(rows, axis=0).tolist()), float(np.quantile(distances[name], WANTED))) for name, rows in decided.items()
    }


def _simulated(ledger: Ledger, tested: list[Claim], rng: np.random.Generator) -> evidence.Values:
    """Return values of all arms in families, around 0, with the declared spreads."""
    seeds = ledger.seeds(len(ledger.stages))
    shared = {name: rng.normal(0, family.seed_sd, len(seeds)) for name, family in ledger.families.items()}
    known: dict[ArmKey, Mapping[int, float]] = {}
    for claim in tested:
        for arm in claim.arms:
            name = ledger.family(arm)
            if name is not None and arm.key not in known:
                own = rng.normal(0, ledger.families[name].sd, len(seeds))
                known[arm.key] = dict(zip(seeds, (shared[name] + own).tolist(), strict=True))
    return lambda arm, metric: known[arm.key]


def _alone(seeds: tuple[int, ...], effects: np.ndarray) -> evidence.Evidence:
    """Return the evidence of these effects (n,), one a seed, of a claim that is judged by its own spread."""
    return evidence.Evidence(seeds, tuple(effects.tolist()), float(np.var(effects, ddof=1)), len(seeds) - 1.0, "its own")
