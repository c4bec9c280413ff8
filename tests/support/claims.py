"""Claims, ledgers and records as tests make them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vitlab.claims import declarations, verdicts
from vitlab.claims.declarations import Arm, Claim, Ledger
from vitlab.claims.verdicts import Result
from vitlab.records import DatasetFacts, RunRecord

DIGEST = "c10c" * 8
A, B = Arm(experiment="02_regularized_vit"), Arm(experiment="01_baseline_vit")
UP = (0.0, math.inf)  # the region of at_least: 0
COUNTS = ((50, 7, 3), (5, 60, 5), (1, 2, 27))  # [true][predicted] of cats, dogs and frogs


def run(arm: Arm, seed: int = 0, top1: float = 50.0, *, profile: str = "quick", classes: tuple[str, ...] = ("cat", "dog", "frog"),
        counts: tuple[tuple[int, ...], ...] = COUNTS, metrics: dict[str, float] | None = None, **changes: Any) -> RunRecord:  # fmt: skip
    """A record as a run of `arm` leaves it."""
    resolved = arm.resolve(profile)
    values: dict[str, Any] = {
        "experiment": resolved.id, "variant": resolved.variant, "title": "T", "profile": profile, "seed": seed,
        "fingerprint": declarations.fingerprint(resolved, DIGEST),
        "dataset": DatasetFacts(
            name="pets", digest=DIGEST, classes=classes, train=90, validation=10, test=160, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
        ),
        "config": {}, "metrics": {"test_top1": top1, "test_top5": 90.0, "validation_top1": 50.0} | (metrics or {}),
        "per_class": (), "confusion": counts, "history": ({"epoch": 1, "train/loss": 1.5}, {"epoch": 2, "train/loss": 1.25}),
        "params": 1, "flops": 1, "train_seconds": 1.0, "img_s": 1.0, "device": "a CPU", "precision": "fp32", "threads": 1,
        "versions": {}, "git": {}, "started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T11:00:00+00:00",
    }  # fmt: skip
    return RunRecord(**(values | changes))


def claim(**changes: Any) -> Claim:
    """That A is better than B."""
    return Claim(**({"id": "c", "statement": "S.", "source": "§1", "arms": (A, B), "metric": "test_top1", "at_least": 0.0} | changes))


def ledger(*declared: Claim, confidence: float = 0.95) -> Ledger:
    return Ledger(confidence=confidence, seeds=3, claims=declared or (claim(),))


def judge(declared: Ledger, runs: Sequence[RunRecord], before: Sequence[Result] = (), profile: str = "quick") -> list[Result]:
    return verdicts.judge(declared, profile, runs, lambda claim, runs: None, {result.id: result for result in before})


def three(arm: Arm, *top1: float, **changes: Any) -> list[RunRecord]:
    return [run(arm, seed, value, **changes) for seed, value in enumerate(top1)]


def family(*groups: tuple[tuple[float, float], Sequence[float]]) -> list[Result]:
    """Verdicts on claims of which nothing is known but their region and their values."""
    declared, measured = [], []
    for i, (region, values) in enumerate(groups):
        low, high = region
        if math.isinf(high):
            rule: dict[str, Any] = {"at_least": low}
        elif math.isinf(low):
            rule = {"at_least": None, "at_most": high}
        else:
            rule = {"at_least": None, "within": declarations.Within(of=(low + high) / 2, margin=(high - low) / 2)}
        declared.append(claim(id=str(i), **rule))
        told: dict[str, Any] = {"id": str(i), "statement": "S.", "source": "§1", "declaration": "", "arms": (), "metric": "test_top1"}
        told |= {"low_bound": None, "high_bound": None, "values": tuple(values), "verdict": "undecided"}
        measured.append(Result(**told, **verdicts.over_seeds(values, declared[-1].region, 0.95)))
    return verdicts.decide(ledger(*declared), measured)
