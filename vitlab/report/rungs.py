"""Runs as rungs: each experiment's runs of all seeds together, with their mean, its interval, and what the report claims."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitlab.config import Claim
from vitlab.figures import style
from vitlab.records import RunRecord
from vitlab.stats import mean_and_half


@dataclass(frozen=True)
class Rung:
    """One experiment's runs, one per seed, with what is said of them together."""

    runs: tuple[RunRecord, ...]
    mean: float  # test top-1, percent
    half: float | None  # half the width of its confidence interval; None for a single seed
    claimed: tuple[float, float] | None  # lowest and highest claimed top-1, percent; equal where one number is claimed
    champion: RunRecord | None = None  # the run that is its data set's champion in MLflow's registry, if one of these is

    @property
    def label(self) -> str:
        """Return `01 Baseline ViT`, for axes and keys."""
        number = self.number
        title = style.short(self.runs[0].title, 44)
        return f"{number} {title}" if number.isdigit() else title

    @property
    def number(self) -> str:
        """Return `01` for an experiment of the ladder, else the experiment's whole name, cut to 16 characters."""
        head = self.runs[0].experiment.split("_")[0]
        return head if head.isdigit() else style.short(self.runs[0].experiment, 16)

    @property
    def difference(self) -> float | None:
        """Return measured less claimed top-1 in points; of a claimed range its middle counts. None where nothing is claimed."""
        return None if self.claimed is None else self.mean - sum(self.claimed) / 2

    @property
    def timed(self) -> RunRecord:
        """Return the run that times and speeds are quoted of."""
        return median_run(self.runs)


def median_run(runs: Sequence[RunRecord]) -> RunRecord:
    """Return the run of median training time, the quicker of the two middle ones. A mean would quote the one run that something else slowed down."""
    return sorted(runs, key=lambda r: (r.train_seconds, r.seed))[(len(runs) - 1) // 2]


def newest(runs: Iterable[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Return `(kept, left out)`. Of each experiment and variant the configuration that finished last is kept, with each seed's last run."""
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for run in sorted(runs, key=lambda r: (r.experiment, r.variant, r.seed, r.finished, r.fingerprint)):
        groups.setdefault((run.experiment, run.variant), []).append(run)
    kept, left_out = [], []
    for group in groups.values():
        last = max(group, key=lambda r: (r.finished, r.fingerprint)).fingerprint
        by_seed = {run.seed: run for run in group if run.fingerprint == last}
        kept += by_seed.values()
        left_out += [run for run in group if run is not by_seed.get(run.seed)]
    return kept, left_out


def ladder(runs: Iterable[RunRecord]) -> list[Rung]:
    """Return the experiments as they stand, without variants: those of the ladder by number, then the others (teachers)."""
    plain: dict[str, list[RunRecord]] = {}
    for run in runs:
        if not run.variant:
            plain.setdefault(run.experiment, []).append(run)
    return [_rung(plain[name]) for name in sorted(plain, key=lambda n: (not n[0].isdigit(), _natural(n)))]


def claimed_range(claim: Claim | None) -> tuple[float, float] | None:
    """Return the lowest and highest claimed top-1 in percent, the same where one number is claimed; None where none is."""
    if claim is None:
        return None
    if claim.low is not None and claim.high is not None:
        return claim.low, claim.high
    return None if claim.top1 is None else (claim.top1, claim.top1)


def claimed_text(claim: Claim | None) -> str:
    """Return `82–83`, `~80` where the report's words hedge, `95.69`; "" where no number is claimed."""
    span = claimed_range(claim)
    if claim is None or span is None:
        return ""
    low, high = span
    if low != high:
        return f"{low:g}–{high:g}"
    return ("~" if re.search(r"[~≈]|about|around", claim.text) else "") + f"{low:g}"


def claim_on(runs: Sequence[RunRecord]) -> Claim | None:
    """Return the runs' claim; None of a variation, and on other data than CIFAR-10, which the claims are about."""
    return runs[0].claim if runs[0].dataset.name == "cifar10" and not runs[0].variant else None


def _rung(runs: list[RunRecord]) -> Rung:
    runs = sorted(runs, key=lambda r: r.seed)
    mean, half = mean_and_half([r.metrics["test_top1"] for r in runs])
    return Rung(tuple(runs), mean, half, claimed_range(claim_on(runs)))


def variants(runs: Iterable[RunRecord]) -> list[Rung]:
    """Return the runs with --set overrides, grouped by experiment and override, in the order of their names."""
    varied: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        if run.variant:
            varied.setdefault((run.experiment, run.variant), []).append(run)
    return [_rung(varied[key]) for key in sorted(varied)]


def marked(rungs: Iterable[Rung], champions: Container[tuple[str, ...]]) -> list[Rung]:
    """Return the rungs, with the `champion` set where one of their runs is among `champions`, as registry.champions has them."""

    def champion(runs: Iterable[RunRecord]) -> RunRecord | None:
        return next((r for r in runs if (r.experiment, r.variant, r.fingerprint, str(r.seed)) in champions), None)

    return [replace(rung, champion=champion(rung.runs)) for rung in rungs]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def picture_folder(run: RunRecord) -> str:
    """Return the name of a run's folder of pictures.

    It has the fingerprint in it, so that no picture is shown beside another configuration's numbers.
    """
    return f"{run.experiment}-s{run.seed}-{run.fingerprint}"


def mean_of(runs: Sequence[RunRecord], key: str) -> float | None:
    """Return a metric's mean over the runs; None where one of them lacks it."""
    values = [r.metrics[key] for r in runs if key in r.metrics]
    return float(np.mean(values)) if len(values) == len(runs) else None
