"""The statements declared in experiments/claims.yaml.

vitlab/stats.py has the estimates, verdicts.py decides. Nothing is trained here, and no torch is loaded.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from vitlab import config
from vitlab.claims.metrics import EXACT, OF_CLASSES, UNITS
from vitlab.config import Schema
from vitlab.config.places import MAX_DEPTH, Place, parse, read_yaml, shown
from vitlab.errors import UserError
from vitlab.paths import EXPERIMENTS

FILE = EXPERIMENTS / "claims.yaml"
ArmKey = tuple[str, tuple[str, ...]]  # an arm's experiment and settings
Metric = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[A-Za-z0-9_-]+)*$")]


# ------------------------------------------------------------------------------------------------------ declarations


class Arm(Schema):
    """An experiment, with settings changed as by --set; with a `metric` of its own where the claim's arms differ in it."""

    experiment: str  # beside the file of claims, or one of vitlab's own; without .yaml
    set: tuple[str, ...] = ()
    metric: Metric | None = None
    _beside: Path | None = None  # the experiment's file, where it lies beside the file of claims

    def model_post_init(self, context: dict[str, Path] | None) -> None:
        """Look for the experiment beside the file of claims, whose folder is the context of its validation."""
        beside = None if context is None else context["folder"] / f"{self.experiment}.yaml"
        self._beside = beside if beside is not None and os.path.isfile(beside) else None

    @property
    def path(self) -> Path:
        """Return the experiment's file."""
        return self._beside or EXPERIMENTS / f"{self.experiment}.yaml"

    @property
    def key(self) -> ArmKey:
        """Return what tells arms apart, whatever is measured of them, in whatever order and spelling their settings are given."""
        return self.experiment, tuple(sorted(_spelt(assignment) for assignment in self.set))

    def resolve(self, profile: str) -> config.Resolved:
        """Return the arm's configuration under the profile. Raises UserError for a damaged experiment."""
        return load_arm(self.path, profile, self.set)


@functools.cache  # asked for again and again
def _spelt(assignment: str) -> str:
    """Return KEY=VALUE with the value as JSON, so that 2e-4 and 0.0002 are the same."""
    name, _, text = assignment.partition("=")
    value, _ = parse(text, lambda _: Place(f"set: {assignment}"))
    return f"{name.strip()}={json.dumps(value)}"


@functools.cache  # most claims share an arm, and all students a teacher
def load_arm(path: Path, profile: str, sets: tuple[str, ...] = ()) -> config.Resolved:
    """Return the experiment's configuration as config.load does, read once in a process."""
    return config.load(path, profile, sets)


class Within(Schema):
    """A region with two bounds: `of` plus or minus `margin`."""

    of: float
    margin: Annotated[float, Field(gt=0)]


class Claim(Schema):
    """One statement of the reports, with what it says in terms of metrics."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,60}$")]
    statement: str
    brief: str = ""  # the words before the effect in the sentence that opens the page, for example "distillation gives"
    source: str  # report and section
    arms: Annotated[tuple[Arm, ...], Field(min_length=1, max_length=4)]
    metric: Metric | None = None
    relative: bool = False  # the difference in percent of the second arm's value
    spread: bool = False  # how far each seed is from its arm's median over seeds, in place of the value
    claimed: float | None = None  # the effect that the report gives
    expected: float | None = None  # the effect that seeds are planned for, where the report gives none
    sd: Annotated[float, Field(gt=0)] | None = None  # of one seed's effect, as expected: for planning, where no family tells
    at_least: float | None = None
    at_most: float | None = None
    within: Within | None = None
    full_size_only: bool = False
    primary: bool = False  # tested; every other claim is exploratory: measured, and neither tested nor judged

    @field_validator("arms")
    @classmethod
    def _pairs(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        if len(arms) == 3:
            raise ValueError("expected one, two, or four: two differences")
        return arms

    @model_validator(mode="after")
    def _consistent(self) -> Claim:
        if sum(v is not None for v in (self.at_least, self.at_most, self.within)) != 1:
            raise ValueError("give exactly one of 'at_least', 'at_most', 'within'")
        if any(arm.metric is None and self.metric is None for arm in self.arms):
            raise ValueError("give 'metric', for the claim or for each arm")
        if self.relative and len(self.arms) != 2:
            raise ValueError("relative: needs a second arm to be relative to, and no further ones")
        if self.spread and (len(self.arms) != 2 or self.relative or self.exact):
            raise ValueError("spread: needs two arms that are trained, and a plain difference between them")
        if len({self.metric_of(arm) in EXACT for arm in self.arms}) > 1:
            raise ValueError("metric: one arm's is trained for and the other's is not")
        for name, *classes in (self.metric_of(arm).split(".") for arm in self.arms):
            count, _ = OF_CLASSES.get(name, (0, None))
            if len(classes) != count:
                of_classes = ", ".join(".".join((known, *"AB"[:n])) for known, (n, _) in OF_CLASSES.items())
                raise ValueError(f"metric: {'.'.join((name, *classes))} is none; of classes there are {of_classes}")
        return self

    def metric_of(self, arm: Arm) -> str:
        """Return the name of the arm's metric: its own, else the claim's."""
        metric = arm.metric or self.metric
        assert metric is not None
        return metric

    @property
    def exact(self) -> bool:
        """Return whether the claim follows from the configuration alone, without a run."""
        return self.metric_of(self.arms[0]) in EXACT

    @property
    def weights(self) -> tuple[float, ...]:
        """Return by what each arm's value is multiplied in the effect, unless it is `relative`."""
        return (1.0, -1.0, -1.0, 1.0)[: len(self.arms)]

    @property
    def planned_for(self) -> float | None:
        """Return the effect that seeds are planned for: the expected one, else the claimed one."""
        return self.claimed if self.expected is None else self.expected

    def tested_at(self, profile: str) -> bool:
        """Return whether the claim is one that runs of this profile are tested for."""
        return self.primary and not self.exact and (profile == "full" or not self.full_size_only)

    @property
    def unit(self) -> str:
        """Return the effect's unit, for example "points" or "M parameters"."""
        metric = self.metric_of(self.arms[0]).split(".")[0]
        if self.relative:
            return "%"
        if metric.endswith("loss"):
            return "nats"
        return UNITS.get(metric, "%" if len(self.arms) == 1 else "points")

    @property
    def region(self) -> tuple[float, float]:
        """Return the bounds between which an effect supports the claim; one of the two may be infinite."""
        if self.within is not None:
            return self.within.of - self.within.margin, self.within.of + self.within.margin
        return (self.at_least, math.inf) if self.at_least is not None else (-math.inf, self.at_most)


def rule(low: float, high: float) -> str:
    """Return what an effect must be to lie in the region, as `≥ 0.3`, `≤ 1` or `80 ± 1`; a bound may be infinite."""
    if math.isfinite(high - low):
        return f"{(low + high) / 2:g} ± {(high - low) / 2:g}"
    return f"≥ {low:g}" if math.isinf(high) else f"≤ {high:g}"


class Stage(Schema):
    """A planned test: of so many seeds, with its share of the chance of any false verdict."""

    seeds: Annotated[int, Field(ge=2)]  # in all, from the ledger's first one
    alpha: Annotated[float, Field(gt=0, lt=0.5)]


class Family(Schema):
    """Experiments of one architecture. The spread over seeds is pooled over their arms."""

    experiments: Annotated[tuple[str, ...], Field(min_length=1)]
    # Expected, for planning: of an arm's values once arm and seed are taken off, and between seeds.
    sd: Annotated[float, Field(gt=0)]
    seed_sd: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("experiments")
    @classmethod
    def _exist(cls, experiments: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in experiments:  # of a misspelt one no claim would have an arm, and nothing would be pooled
            if not Arm.model_validate({"experiment": name}, context=info.context).path.is_file():
                raise ValueError(f"no experiment {name}; expected the name of a file beside this one or in experiments/, without .yaml")
        return experiments


class Ledger(Schema):
    """All declared claims, and how they are tested."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    first_seed: Annotated[int, Field(ge=0)] = 0  # the seeds before it are for tuning, and never tested
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=2)]
    families: dict[str, Family] = Field(default_factory=dict)
    levene: Annotated[float, Field(gt=0, lt=1)] = 0.2  # a family whose arms spread unequally, by Levene's test at this level, is not pooled
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Ledger:
        ids = [claim.id for claim in self.claims]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"claims: two have the id {', '.join(twice)}")
        experiments = [e for family in self.families.values() for e in family.experiments]
        if twice := sorted({e for e in experiments if experiments.count(e) > 1}):
            raise ValueError(f"families: {', '.join(twice)} is in two of them")
        alpha = sum(stage.alpha for stage in self.stages)
        if not math.isclose(alpha, 1 - self.confidence):
            raise ValueError(f"stages: their alphas add up to {alpha:g}; expected 1 - confidence, {1 - self.confidence:g}")
        if list(self.stages) != sorted(self.stages, key=lambda stage: stage.seeds) or len({stage.seeds for stage in self.stages}) < len(
            self.stages
        ):
            raise ValueError("stages: each has more seeds in all than the one before")
        return self

    def seeds(self, stage: int) -> tuple[int, ...]:
        """Return the seeds of a stage, counted from 1."""
        return tuple(range(self.first_seed, self.first_seed + self.stages[stage - 1].seeds))

    def tested(self, profile: str) -> list[Claim]:
        """Return the claims that runs of this profile are tested for, all together."""
        return [claim for claim in self.claims if claim.tested_at(profile)]

    def family(self, arm: Arm) -> str | None:
        """Return the name of the arm's family; None where it has none."""
        return next((name for name, family in self.families.items() if arm.experiment in family.experiments), None)

    def spelt_alike(self, profile: str) -> Ledger:
        """Return the ledger with each arm's settings as in the first arm of the same experiment and configuration at this profile.

        Two spellings of one arm would else count as two in the spread of their family.
        """
        first: dict[tuple[str, str], tuple[str, ...]] = {}

        def alike(arm: Arm) -> Arm:
            same = first.setdefault((arm.experiment, arm.resolve(profile).config.model_dump_json()), arm.set)
            return arm.model_copy(update={"set": same})

        claims = [claim.model_copy(update={"arms": tuple(map(alike, claim.arms))}) for claim in self.claims]
        return self.model_copy(update={"claims": tuple(claims)})

    def pooled(self, claim: Claim) -> bool:
        """Return whether the claim's spread comes from families: all arms are in one, and are compared by one metric in its own unit."""
        compares = len(claim.arms) > 1 and not claim.relative and not claim.spread
        return compares and len({claim.metric_of(arm) for arm in claim.arms}) == 1 and all(self.family(arm) for arm in claim.arms)

    def declaration(self, claim: Claim) -> str:
        """Return 12 hex digits, a hash of everything that was declared about the claim; of one that is tested, also of the design."""
        declared = claim.model_dump(mode="json", exclude_defaults=True)  # so that a key which the schema gains later changes no hash
        what: dict[str, Any] = {"confidence": self.confidence, "claim": declared}
        if claim.primary and not claim.exact:
            design = self.model_dump(mode="json", exclude={"claims", "confidence"})
            what |= {"design": design, "primaries": sorted(other.id for other in self.claims if other.primary and not other.exact)}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a file of claims, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Ledger.model_json_schema()


def load(path: Path = FILE) -> Ledger:
    """Return the declarations, validated. Raises UserError: `file:line: key: what and remedy`."""
    values, places = read_yaml(path)
    try:
        return Ledger.model_validate_json(json.dumps(values), strict=True, context={"folder": path.parent})
    except ValidationError as e:
        raise UserError("\n".join(_explain(error, places) for error in e.errors()[:10])) from None


def _explain(error: Any, places: Mapping[tuple[str | int, ...], Place]) -> str:
    """Return one pydantic error as `file:line: key: what was expected`."""
    key = tuple(error["loc"])
    place = next(places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in places)
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        what = "missing; add it"
    elif error["type"] == "extra_forbidden":
        kinds: dict[object, type[Schema]] = {"claims": Claim, "arms": Arm, "within": Within, "stages": Stage, "families": Family}
        kind = next((kinds[part] for part in reversed(key[:-1]) if part in kinds), Ledger)
        what = f"unknown key, expected one of: {', '.join(kind.model_fields)}"
    return f"{place}: {'.'.join(map(str, key)) or 'ledger'}: {what}"


# --------------------------------------------------------------------------------------------------------- fingerprints


def fingerprint(resolved: config.Resolved, digest: str, students: int = 0) -> str:
    """Return the fingerprint of the run that the configuration stands for, as plan.make does, but from the data set's digest alone.

    Raises UserError for teachers in a circle.
    """
    if students > MAX_DEPTH:
        raise UserError(f"{shown(resolved.path)}: distill.teacher: more than {MAX_DEPTH} teachers, one of the other, or a circle of them")
    teacher = resolved.teacher(load_arm)
    return config.fingerprint(resolved.config, digest, fingerprint(teacher, digest, students + 1) if teacher else None)
