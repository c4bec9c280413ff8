"""The ledger: statements declared in experiments/claims.yaml, measured over seeds, each with an effect, its interval and a verdict.

All of it is a function of the declarations and the records; nothing is trained here, and no torch is loaded.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from vitlab import config, cost, records
from vitlab.config import Schema
from vitlab.paths import EXPERIMENTS
from vitlab.records import RunRecord
from vitlab.yaml_places import MAX_DEPTH, Place, read_yaml, shown

FILE = EXPERIMENTS / "claims.yaml"
EXACT = ("params", "gflops", "gflops_last_third")  # functions of the configuration: nothing to train, nothing to estimate
MOST_SEEDS = 1000  # beyond which no number of seeds is named
BOOTSTRAPS = 10_000
UNITS = {
    "params": "M parameters",
    "gflops": "GFLOPs",
    "gflops_last_third": "GFLOPs",
    "teacher_gain": "points",
    "confusion_lead": "images",
}

Verdict = Literal["supported", "refuted", "undecided", "not measured"]
Metric = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[A-Za-z0-9_-]+)*$")]


# ------------------------------------------------------------------------------------------------------ declarations


class Arm(Schema):
    """An experiment, its settings changed as by --set. `metric` where the claim's arms differ in it."""

    experiment: str  # below experiments/, without .yaml
    set: tuple[str, ...] = ()
    metric: Metric | None = None

    @property
    def path(self) -> Path:
        return EXPERIMENTS / f"{self.experiment}.yaml"

    def resolve(self, profile: str) -> config.Resolved:
        return _load(self.path, profile, self.set)


@functools.cache  # most claims share an arm, and all students a teacher
def _load(path: Path, profile: str, sets: tuple[str, ...] = ()) -> config.Resolved:
    return config.load(path, profile, sets)


class Within(Schema):
    of: float
    margin: Annotated[float, Field(gt=0)]


class Claim(Schema):
    id: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,60}$")]
    statement: str
    source: str  # report and section
    arms: Annotated[tuple[Arm, ...], Field(min_length=1, max_length=2)]
    metric: Metric | None = None
    relative: bool = False  # the difference in percent of the second arm's value
    claimed: float | None = None  # the effect that the report gives
    at_least: float | None = None
    at_most: float | None = None
    within: Within | None = None
    full_size_only: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Claim:
        if sum(v is not None for v in (self.at_least, self.at_most, self.within)) != 1:
            raise ValueError("give exactly one of 'at_least', 'at_most', 'within'")
        if any(arm.metric is None and self.metric is None for arm in self.arms):
            raise ValueError("give 'metric', for the claim or for each arm")
        if self.relative and len(self.arms) == 1:
            raise ValueError("relative: needs a second arm to be relative to")
        if len({self.metric_of(arm) in EXACT for arm in self.arms}) > 1:
            raise ValueError("metric: one arm's is trained for and the other's is not")
        return self

    def metric_of(self, arm: Arm) -> str:
        metric = arm.metric or self.metric
        assert metric is not None
        return metric

    @property
    def exact(self) -> bool:
        return self.metric_of(self.arms[0]) in EXACT

    @property
    def unit(self) -> str:
        """Of the effect."""
        metric = self.metric_of(self.arms[0]).split(".")[0]
        if self.relative:
            return "%"
        if metric.endswith("loss"):
            return "nats"
        return UNITS.get(metric, "points" if len(self.arms) == 2 else "%")

    @property
    def region(self) -> tuple[float, float]:
        """Effects in it are what the claim says; one of the two may be infinite."""
        if self.within is not None:
            return self.within.of - self.within.margin, self.within.of + self.within.margin
        return (self.at_least, math.inf) if self.at_least is not None else (-math.inf, self.at_most)


class Ledger(Schema):
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    seeds: Annotated[int, Field(ge=2)]  # planned
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _unique(self) -> Ledger:
        ids = [claim.id for claim in self.claims]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"claims: two have the id {', '.join(twice)}")
        return self

    def declaration(self, claim: Claim) -> str:
        """12 hex digits of everything that was declared about the claim."""
        said = claim.model_dump(mode="json", exclude_defaults=True)  # so that a key which the schema gains later changes no hash
        what = {"confidence": self.confidence, "seeds": self.seeds, "claim": said}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def load(path: Path = FILE) -> Ledger:
    """Read and validate the declarations. Raises ValueError: `file:line: key: what and remedy`."""
    values, places = read_yaml(path)
    try:
        return Ledger.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as e:
        raise ValueError("\n".join(_explain(error, places) for error in e.errors()[:10])) from None


def _explain(error: Any, places: Mapping[tuple[str | int, ...], Place]) -> str:
    """One pydantic error as `file:line: key: what was expected`."""
    key = tuple(error["loc"])
    place = next(places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in places)
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        what = "missing; add it"
    elif error["type"] == "extra_forbidden":
        kinds: dict[object, type[Schema]] = {"claims": Claim, "arms": Arm, "within": Within}
        kind = next((kinds[part] for part in reversed(key[:-1]) if part in kinds), Ledger)
        what = f"unknown key, expected one of: {', '.join(kind.model_fields)}"
    return f"{place}: {'.'.join(map(str, key)) or 'ledger'}: {what}"


# ----------------------------------------------------------------------------------------------------------- measuring


def fingerprint(resolved: config.Resolved, digest: str, students: int = 0) -> str:
    """Of the run that the arm stands for, its teacher's in it; as plan.make has it, without reading a data set."""
    if students > MAX_DEPTH:
        raise ValueError(f"{shown(resolved.path)}: distill.teacher: more than {MAX_DEPTH} teachers, one of the other, or a circle of them")
    distill = resolved.config.distill
    teacher = fingerprint(_load(Path(distill.teacher), resolved.profile), digest, students + 1) if distill else None
    return config.fingerprint(resolved.config, digest, teacher)


def measure(record: RunRecord, metric: str) -> float:
    """One run's value of a metric that is not EXACT. Raises ValueError where the record has no such metric."""
    name, *classes = metric.split(".")
    if metric == "teacher_gain" and record.teacher is not None:
        return record.teacher.gain
    if metric == "train_loss" and record.history and "train/loss" in record.history[-1]:
        return record.history[-1]["train/loss"]
    if name in ("confusion", "confusion_lead") and len(classes) == 2:
        if unknown := set(classes) - set(record.dataset.classes):
            names = ", ".join(record.dataset.classes)
            raise ValueError(f"{metric}: {record.dataset.name} has no class {', '.join(sorted(unknown))}; expected two of {names}")
        if name == "confusion_lead" and classes[0] == classes[1]:
            raise ValueError(f"{metric}: expected two different classes")
        return _confusion(record, *classes) if name == "confusion" else _confusion_lead(record, *classes)
    if metric in record.metrics:
        return record.metrics[metric]
    known = ", ".join(sorted(record.metrics))
    raise ValueError(
        f"{metric}: not in the record of {record.experiment}; expected {known}, train_loss, teacher_gain or confusion[_lead].A.B"
    )


def _confusion(record: RunRecord, true: str, predicted: str) -> float:
    names = record.dataset.classes
    row = record.confusion[names.index(true)]
    if not sum(row):
        raise ValueError(f"confusion.{true}.{predicted}: {record.dataset.name} has no test image of {true}")
    return 100 * row[names.index(predicted)] / sum(row)


def _confusion_lead(record: RunRecord, a: str, b: str) -> float:
    counts = np.array(record.confusion)
    either = np.triu(counts + counts.T, k=1)
    i, j = sorted((record.dataset.classes.index(a), record.dataset.classes.index(b)))
    own = float(either[i, j])
    either[i, j] = -1
    return own - float(either.max())


def exact(resolved: config.Resolved, metric: str, classes: int) -> float:
    """Parameters in millions, or GFLOPs of an image's forward pass."""
    model = resolved.config.model
    if metric == "params":
        return cost.parameters(model, classes) / 1e6
    if metric == "gflops":
        return cost.forward_flops(model, classes) / 1e9
    if not isinstance(model, config.ViT):
        raise ValueError(f"{metric}: {resolved.label} is no ViT, so it has no blocks")
    return cost.late_flops(model) / 1e9


# ---------------------------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, and how surely it lies inside (or, where the mean is outside, outside) a region."""

    mean: float
    low: float
    high: float
    sd: float
    p: float


def estimate(values: Sequence[float], region: tuple[float, float], confidence: float) -> Estimate:
    """Of two or more values: mean, t interval, and the two-sided p-value against the nearest bound of the region.

    Where both bounds are finite and the mean is inside, these are the two one-sided tests (Schuirmann 1987), the larger p of
    the two, doubled as that of every other claim: so p <= 1 - confidence exactly where the interval lies on one side of every bound.

    Values that are all the same show no spread to hold the distance against: p is 1. Three runs agree by chance too, the more
    easily the fewer test images there are, and a p of 0 would outlast every correction.
    """
    from scipy.special import stdtrit  # a fraction of scipy.stats' import

    n = len(values)
    assert n >= 2
    if min(values) == max(values):  # asked of the values: their computed mean need not equal them to the last bit
        return Estimate(values[0], values[0], values[0], 0.0, 1.0)
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, sd, _p_value(distance(mean, region), sd, n))


def _p_value(away: float, sd: float, n: int) -> float:
    """Two-sided, of a mean of n values so far from what it is held against: Student's t test."""
    from scipy.special import stdtr

    return 2 * float(stdtr(n - 1, -away * math.sqrt(n) / sd))


def distance(effect: float, region: tuple[float, float]) -> float:
    """From the region's nearest bound, on whichever side."""
    return min(abs(effect - bound) for bound in region)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): with them the chance of any false verdict in the family stays at the level."""
    order = np.argsort(ps, kind="stable")
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def seeds_needed(away: float, sd: float, level: float, have: int) -> int | None:
    """How many seeds more would make an effect so far from the bound significant at `level`, at this spread; None beyond MOST_SEEDS."""
    if away == 0 or sd == 0:
        return None
    more = range(1, MOST_SEEDS - have + 1)
    first = bisect.bisect_left(more, True, key=lambda k: _p_value(away, sd, have + k) <= level)  # p falls as seeds are added
    return more[first] if first < len(more) else None


class Pair(Schema):
    """Two runs on the same test images: what can be said with one seed, of these two runs and not of the experiments."""

    only_first: int  # images that only the first has right
    only_second: int
    p: float  # exact McNemar test
    low: float  # of the difference in top-1, points: bootstrap over the test images
    high: float


def pair(first: np.ndarray, second: np.ndarray, confidence: float) -> Pair:
    """first, second: (N,) bool, which test images each has right."""
    from scipy.stats import binomtest

    assert first.shape == second.shape
    assert first.dtype == second.dtype == bool
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(b, b + c).pvalue) if b + c else 1.0
    # The difference of a resample depends on how many images of each of the three kinds it drew, and on nothing else.
    n = len(first)
    draws = np.random.default_rng(0).multinomial(n, (b / n, c / n, 1 - (b + c) / n), BOOTSTRAPS)
    low, high = np.quantile(100 * (draws[:, 0] - draws[:, 1]) / n, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Pair(only_first=b, only_second=c, p=p, low=float(low), high=float(high))


def compare(claim: Claim, predictions: Sequence[Path | None], confidence: float) -> Pair | None:
    """The claim's two runs image by image, from their predictions.npz; None where it has one arm, where one of them is not at hand,
    where they are about different images, or say nothing about its metric. Raises ValueError for a damaged file."""
    if len(predictions) != 2 or claim.relative:
        return None
    first, second = (_right(path, claim.metric_of(arm)) for path, arm in zip(predictions, claim.arms, strict=True))
    if first is None or second is None or not np.array_equal(first[0], second[0]):
        return None
    return pair(first[1], second[1], confidence)


def _right(path: Path | None, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(N,) labels, and (N,) bool: which test images a run has right by the logits that `metric`, a top-1, was taken from."""
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
            return stored["labels"], scores.argmax(-1) == stored["labels"]
    except Exception as e:  # zipfile, zlib and NumPy raise nearly anything on a damaged file
        remedy = "train the run anew with --force, or delete it in MLflow, then 'vitlab sync'"
        raise ValueError(f"{path}: no readable predictions ({str(e) or type(e).__name__}); {remedy}") from None


# ------------------------------------------------------------------------------------------------------------- ledger


class MeasuredArm(Schema):
    label: str
    fingerprint: str  # "" where no run is compared
    records: dict[int, str]  # seed -> its record's file


class Result(Schema):
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
    """Every claim's result from the records of one profile and data set.

    `pairs` compares the two runs of a claim that has one seed only, image by image, where their predictions are at hand. `before`
    is the ledger measured earlier: a claim that was measured under another declaration is marked as changed.
    """
    found = _decide(ledger, [_measure(ledger, claim, profile, runs, pairs) for claim in ledger.claims])
    return [_mark_changed(result, (before or {}).get(result.id)) for result in found]


def _decide(ledger: Ledger, measured: Sequence[Result]) -> list[Result]:
    """The verdicts on what was tested, all of it being one family (Holm); and what those left undecided would take."""
    found = list(measured)
    tested = [i for i, result in enumerate(found) if result.p is not None]
    adjusted = holm([found[i].p for i in tested])
    level = 1 - ledger.confidence
    # With all else as it is, an undecided claim is decided once its p is the smallest of those undecided and passes Holm's step there.
    next_step = level / max(1, sum(p_holm > level for p_holm in adjusted))
    for i, p_holm in zip(tested, adjusted, strict=True):
        result, region = found[i], ledger.claims[i].region
        update = {"p_holm": p_holm}
        if p_holm <= level:
            update["verdict"] = "supported" if region[0] <= result.effect <= region[1] else "refuted"
        else:
            e = estimate(result.values, region, ledger.confidence)
            update["more_seeds"] = seeds_needed(distance(e.mean, region), e.sd, next_step, len(result.values))
        found[i] = result.model_copy(update=update)
    return found


def _mark_changed(result: Result, earlier: Result | None) -> Result:
    measured = earlier is not None and (earlier.verdict != "not measured" or earlier.changed)
    if measured and (earlier.changed or earlier.declaration != result.declaration):
        return result.model_copy(update={"changed": True})
    return result


def _measure(ledger: Ledger, claim: Claim, profile: str, runs: Sequence[RunRecord], pairs: Pairs) -> Result:
    """The claim's result before the correction over the ledger: `undecided` where it is to be tested."""
    metrics = [claim.metric_of(arm) for arm in claim.arms]
    low, high = (None if math.isinf(bound) else bound for bound in claim.region)
    told = {
        "id": claim.id, "statement": claim.statement, "source": claim.source, "declaration": ledger.declaration(claim),
        "metric": " less ".join(dict.fromkeys(metrics)), "unit": claim.unit, "low_bound": low, "high_bound": high, "claimed": claim.claimed,
    }  # fmt: skip
    resolved = [arm.resolve(profile) for arm in claim.arms]
    if claim.full_size_only and profile != "full":
        return Result(**told, arms=_unmeasured(resolved), verdict="not measured", note="about full size only")
    if claim.exact:
        classes = len(runs[0].dataset.classes) if runs else 10
        effect = round(_effect(claim, [exact(r, m, classes) for r, m in zip(resolved, metrics, strict=True)]), 9)
        inside = claim.region[0] <= effect <= claim.region[1]
        verdict: Verdict = "supported" if inside else "refuted"
        return Result(**told, arms=_unmeasured(resolved), verdict=verdict, effect=effect, note="by formula: nothing to estimate")

    by_arm = [_runs_of(arm, runs) for arm in resolved]
    seeds = tuple(sorted(set.intersection(*(set(found) for found in by_arm))))
    arms = tuple(
        MeasuredArm(
            label=arm.label,
            fingerprint=next((found[s].fingerprint for s in seeds), ""),
            records={s: records.file_name(found[s]) for s in seeds},
        )
        for arm, found in zip(resolved, by_arm, strict=True)
    )
    if not seeds:
        return Result(**told, arms=arms, verdict="not measured")
    # Records have an accuracy as float32 left it, 50.24999976 for 50.25: rounded, what is the same is the same.
    values = tuple(
        round(_effect(claim, [measure(found[s], metric) for found, metric in zip(by_arm, metrics, strict=True)]), 4) for s in seeds
    )
    told |= {"arms": arms, "seeds": seeds, "values": values, "verdict": "undecided"}
    if len(seeds) == 1:
        said = pairs(claim, [found[seeds[0]] for found in by_arm])
        return Result(**told, effect=values[0], pair=said, note="one seed: no interval over seeds")
    return Result(**told, **_over_seeds(values, claim.region, ledger.confidence))


def _over_seeds(values: Sequence[float], region: tuple[float, float], confidence: float) -> dict[str, Any]:
    """What a Result says of two or more values."""
    e = estimate(values, region, confidence)
    if not e.sd:
        return {"effect": e.mean, "p": e.p, "note": "the same in every seed: no spread to test with"}
    return {"effect": e.mean, "low": e.low, "high": e.high, "p": e.p}


def _effect(claim: Claim, values: list[float]) -> float:
    if len(values) == 1:
        return values[0]
    first, second = values
    if claim.relative and not second:
        raise ValueError(f"{claim.id}: relative to {claim.metric_of(claim.arms[1])} of its second arm, which is 0")
    return 100 * (first - second) / second if claim.relative else first - second


def _unmeasured(arms: Sequence[config.Resolved]) -> tuple[MeasuredArm, ...]:
    return tuple(MeasuredArm(label=arm.label, fingerprint="", records={}) for arm in arms)


def _runs_of(arm: config.Resolved, runs: Sequence[RunRecord]) -> dict[int, RunRecord]:
    """seed -> the run of exactly this configuration, the last one where it was repeated."""
    digests = {run.dataset.digest for run in runs}
    wanted = {fingerprint(arm, digest) for digest in digests}
    found = sorted((run for run in runs if run.fingerprint in wanted), key=lambda run: run.finished)
    return {run.seed: run for run in found}


def rule(result: Result) -> str:
    """`≥ 0.3`, `≤ 1`, `80 ± 1`: what the effect must be for the claim to hold."""
    low, high = result.low_bound, result.high_bound
    if low is not None and high is not None:
        return f"{(low + high) / 2:g} ± {(high - low) / 2:g}"
    return f"≥ {low:g}" if high is None else f"≤ {high:g}"
