"""Claims, ledgers and records as tests make them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vitlab.claims import declarations, verdicts
from vitlab.claims.declarations import Arm, Claim, Ledger, Stage
from vitlab.claims.verdicts import Result
from vitlab.records import DatasetFacts, RunRecord

DIGEST = "c10c" * 8
A, B = Arm(experiment="02_regularized_vit"), Arm(experiment="01_baseline_vit")
UP = (0.0, math.inf)  # the region of at_least: 0
COUNTS = ((50, 7, 3), (5, 60, 5), (1, 2, 27))  # [true][predicted] of cats, dogs and frogs


def run(arm: Arm, seed: int = 0, top1: float = 50.0, *, profile: str = "quick", classes: tuple[str, ...] = ("cat", "dog", "frog"),
        counts: tuple[tuple[int, ...], ...] = COUNTS, metrics: dict[str, float] | None = None, test: int = 10_000_000, **changes: Any) -> RunRecord:  # fmt: skip
    """A record as a run of `arm` leaves it, of so many `test` images that their own variance is next to nothing."""
    resolved = arm.resolve(profile)
    values: dict[str, Any] = {
        "experiment": resolved.id, "variant": resolved.variant, "title": "T", "profile": profile, "seed": seed,
        "fingerprint": declarations.fingerprint(resolved, DIGEST),
        "dataset": DatasetFacts(
            name="pets", digest=DIGEST, classes=classes, train=90, validation=10, test=test, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
        ),
        "config": {}, "metrics": {"test_top1": top1, "test_top5": 90.0, "validation_top1": 50.0} | (metrics or {}),
        "per_class": (), "confusion": counts, "history": ({"epoch": 1, "train/loss": 1.5}, {"epoch": 2, "train/loss": 1.25}),
        "params": 1, "flops": 1, "train_seconds": 1.0, "img_s": 1.0, "device": "a CPU", "precision": "fp32", "threads": 1,
        "versions": {}, "git": {}, "started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T11:00:00+00:00",
    }  # fmt: skip
    return RunRecord(**(values | changes))


def claim(**changes: Any) -> Claim:
    """That A is better than B, a primary claim."""
    values = {"id": "c", "statement": "S.", "source": "§1", "arms": (A, B), "metric": "test_top1", "at_least": 0.0, "primary": True}
    return Claim(**(values | changes))


def ledger(*declared: Claim, confidence: float = 0.95, seeds: tuple[int, ...] = (3,), **changes: Any) -> Ledger:
    """The claims, to be tested after so many `seeds`, from seed 0 on; with several stages each has its equal share of the level."""
    stages = tuple(Stage(seeds=n, alpha=(1 - confidence) / len(seeds)) for n in seeds)
    return Ledger(confidence=confidence, stages=stages, claims=declared or (claim(),), **changes)


def judge(declared: Ledger, runs: Sequence[RunRecord], before: Sequence[Result] = (), profile: str = "quick") -> list[Result]:
    return verdicts.judge(declared, profile, runs, lambda claim, runs: None, {result.id: result for result in before})


def three(arm: Arm, *top1: float, **changes: Any) -> list[RunRecord]:
    return [run(arm, seed, value, **changes) for seed, value in enumerate(top1)]
