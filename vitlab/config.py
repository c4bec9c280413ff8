"""The schema of an experiment, how its file is resolved, with file:line errors, and the fingerprint.

An experiment file is resolved in this order, later wins: the file it `extends` (recursively), the file itself, the
profile's overlay, `--set` overrides. What comes out is validated once, as a whole, and is frozen.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vitlab.errors import UserError
from vitlab.files import UNPRINTABLE
from vitlab.paths import EXPERIMENTS
from vitlab.yaml_places import MAX_DEPTH, MAX_KEY, Keys, Place, cut, dotted, parse, read_yaml, shown

PROFILES = ("quick", "ledger", "overnight", "full")  # the smaller one first
PROFILE_DIR = EXPERIMENTS / "profiles"
SCHEMA_VERSION = 2  # raised when a default changes, or what a key means: it is part of every fingerprint


class Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------------- the sections


class Length(Schema):
    """A stretch of training in exactly one unit; `schedule.steps` converts it once."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(gt=0)] | None = None
    percent: Annotated[float, Field(gt=0, le=100)] | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Length:
        if sum(v is not None for v in (self.epochs, self.steps, self.percent)) != 1:
            raise ValueError("give exactly one of 'epochs', 'steps', 'percent'")
        return self


Percent = Annotated[float, Field(ge=0, le=100)]


class ClaimedClass(Schema):
    """What a report gives for one class's test images, in percent."""

    precision: Percent
    recall: Percent
    f1: Percent
    accuracy: Percent


class ClaimedRange(Schema):
    low: float
    high: float


class Claim(Schema):
    """What the original report says this experiment reaches; shown beside the measured numbers. No part of a run's fingerprint."""

    text: str  # the claimed accuracy as the report words it
    source: str  # report and section
    top1: Percent | None = None
    low: Percent | None = None  # of a claimed range of top-1, given in place of `top1`
    high: Percent | None = None
    top5: Percent | None = None
    train_loss: Annotated[float, Field(ge=0)] | None = None  # nats
    params: Annotated[float, Field(gt=0)] | None = None  # millions
    train_minutes: Annotated[float, Field(gt=0)] | None = None  # a student's without its teacher's
    device: str | None = None  # that trained it
    teacher_top1: Percent | None = None
    ema_gain: ClaimedRange | None = None  # points of top-1, averaged weights less raw ones
    before_tail_top1: Percent | None = None  # on the test split, when the last phase begins
    confidence: Percent | None = None  # that predictions are said to exceed
    per_class: dict[str, ClaimedClass] = {}
    confusions: dict[str, dict[str, Annotated[int, Field(ge=0)]]] = {}  # true class -> predicted class -> of 1,000 test images

    @model_validator(mode="after")
    def _one_top1(self) -> Claim:
        if (self.low is None) != (self.high is None):
            raise ValueError("give 'low' and 'high' together")
        if self.low is not None and self.high is not None and (self.top1 is not None or self.low >= self.high):
            raise ValueError("'low' and 'high', the lower one first, stand in place of 'top1'")
        return self


class Data(Schema):
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.05  # share of the training images, stratified
    train_limit: Annotated[int, Field(ge=20)] | None = None  # a stratified subset, the same for every seed
    test_limit: Annotated[int, Field(ge=20)] | None = None


class ViT(Schema):
    """stem (patch | resnet18) x encoder (torch | explicit) x head."""

    name: Literal["vit"]
    stem: Literal["patch", "resnet18"] = "patch"
    patch_size: Literal[1, 2, 4, 8, 16, 32] = 4
    stem_width: Annotated[int, Field(ge=4, le=512)] = 64  # channels of the ResNet-18 stem's first stage
    stem_stages: Literal[2, 3] = 3  # of ResNet-18's four: 3 leave 8x8 tokens, 2 leave 16x16
    encoder: Literal["torch", "explicit"] = "explicit"
    dim: Annotated[int, Field(ge=4, le=4096)] = 256
    depth: Annotated[int, Field(ge=1, le=64)] = 12
    heads: Annotated[int, Field(ge=1, le=64)] = 8
    mlp_ratio: Annotated[float, Field(gt=0, le=16)] = 4.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the last block; rises linearly from 0
    layer_scale: Annotated[float, Field(gt=0, le=1)] | None = None  # initial gamma
    position: Literal["learned", "relative"] = "learned"
    class_attention: Annotated[int, Field(ge=0)] = 0  # how many of the last blocks are class attention
    distill_token: bool = False  # a second token with a head of its own; inference averages the heads

    @model_validator(mode="after")
    def _consistent(self) -> ViT:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")
        if int(self.dim * self.mlp_ratio) < 1:
            raise ValueError(f"dim {self.dim} x mlp_ratio {self.mlp_ratio:g} leaves the MLP no hidden unit")
        if self.class_attention >= self.depth:
            raise ValueError(f"class_attention {self.class_attention} must be less than depth {self.depth}")
        if self.encoder == "torch":
            for key, off in (("layer_scale", None), ("drop_path", 0.0), ("class_attention", 0), ("position", "learned")):
                if getattr(self, key) != off:
                    raise ValueError(f"encoder 'torch' is PyTorch's own and has no {key}: set {key}: {json.dumps(off)}")
        return self


class ResNet(Schema):
    """torchvision's ResNet with a 3x3 stem of stride 1 and no max-pooling."""

    name: Literal["resnet"]
    depth: Literal[18, 50]
    width: Annotated[int, Field(ge=4, le=512)] = 64  # channels of the first stage; 64 is torchvision's


Model = Annotated[ViT | ResNet, Field(discriminator="name")]


class ColorJitter(Schema):
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Augment(Schema):
    crop: Annotated[int, Field(ge=0, le=16)] = 0  # RandomCrop's padding in pixels; 0 is off
    flip: bool = False  # left-right, p = 0.5; off where the data set has no such symmetry
    color_jitter: ColorJitter | None = None
    trivial_augment: Annotated[float, Field(ge=0, le=1)] = 0.0  # the probability that an image gets its one operation
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0  # RandomErasing's probability


class Mix(Schema):
    """Per batch: CutMix with probability `switch_prob`, else Mixup; as timm does where both are on."""

    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0  # alpha of Beta(alpha, alpha); 0 is off
    cutmix: Annotated[float, Field(ge=0, le=10)] = 0.0
    prob: Annotated[float, Field(ge=0, le=1)] = 1.0
    switch_prob: Annotated[float, Field(ge=0, le=1)] = 0.5


class Phase(Schema):
    """A stretch of training with its own regularisation. One phase may leave its length out: it takes the rest."""

    name: str
    epochs: Annotated[float, Field(gt=0)] | None = None
    percent: Annotated[float, Field(gt=0, le=100)] | None = None
    augment: Augment = Augment()
    mix: Mix | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _one_unit(self) -> Phase:
        if self.epochs is not None and self.percent is not None:
            raise ValueError("give 'epochs' or 'percent', not both")
        return self


class AdamW(Schema):
    name: Literal["adamw"]
    lr: Annotated[float, Field(gt=0, le=10)]
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    warmup: Length | None = None
    grad_clip: Annotated[float, Field(gt=0)] | None = None  # largest norm of all gradients together


class SGD(Schema):
    name: Literal["sgd"]
    lr: Annotated[float, Field(gt=0, le=10)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # Nesterov's
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    warmup: Length | None = None
    grad_clip: Annotated[float, Field(gt=0)] | None = None


class Muon(Schema):
    """Muon (Jordan 2024) for the matrices of a ViT's blocks, its updates as large as AdamW's ("Muon is Scalable", 2025); AdamW for the rest."""

    name: Literal["muon"]
    lr: Annotated[float, Field(gt=0, le=10)]
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95  # Muon's; Nesterov's
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)  # AdamW's
    warmup: Length | None = None
    grad_clip: Annotated[float, Field(gt=0)] | None = None


Optim = Annotated[AdamW | SGD | Muon, Field(discriminator="name")]


class Train(Schema):
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 192
    eval_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 512
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of training; auto: bf16 where the device has it in hardware


class EMA(Schema):
    """Exponential moving average of the weights; the decay goes linearly from start to end over the training."""

    start: Annotated[float, Field(ge=0, lt=1)] | None = None  # None: at its end from the first step
    end: Annotated[float, Field(ge=0, lt=1)]


class Distill(Schema):
    """loss = (1 - weight) * CE + weight * T^2 * KL(teacher || student), both at temperature T (Hinton et al. 2015)."""

    teacher: str  # its YAML, relative to the file that names it
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5


class Experiment(Schema):
    title: str
    description: str = ""
    claim: Claim | None = None
    data: Data = Data()
    model: Model
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    optim: Optim
    train: Train
    ema: EMA | None = None
    distill: Distill | None = None

    @model_validator(mode="after")
    def _optim_fits(self) -> Experiment:
        if self.optim.name == "muon" and self.model.name != "vit":
            raise ValueError(f"optim: muon is for the matrices of a ViT's blocks, model '{self.model.name}' has none: use adamw or sgd")
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> Experiment:
        open_ended = [p.name for p in self.phases if p.epochs is None and p.percent is None]
        if len(open_ended) > 1:
            raise ValueError(f"phases: only one may leave its length out, these do: {', '.join(open_ended)}")
        given = sum((p.epochs or 0) / self.train.epochs * 100 + (p.percent or 0) for p in self.phases)
        if given > 100 + 1e-9 or (not open_ended and given < 100 - 1e-9):
            raise ValueError(f"phases: their lengths add up to {given:g} % of the {self.train.epochs} epochs, expected 100 %")
        return self


# -------------------------------------------------------------------------------- extends, profile, --set


def _merge(base: dict[str, Any], over: dict[str, Any], places: dict[Keys, Place], over_places: dict[Keys, Place], at: Keys = ()) -> None:
    """Lay `over` on `base`, in place. Mappings merge, all else replaces; another `name` (of model, optim) starts anew."""
    for key, value in over.items():
        path = (*at, key)
        old = base.get(key)
        renamed = isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) != old.get("name")
        if isinstance(value, dict) and isinstance(old, dict) and not renamed:
            _merge(old, value, places, over_places, path)
        else:
            base[key] = copy.deepcopy(value)
            for p in [p for p in places if p[: len(path)] == path]:
                del places[p]
        places.update({p: place for p, place in over_places.items() if p[: len(path)] == path})


def _read_extended(path: Path, chain: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[Keys, Place], tuple[str, ...]]:
    """Return the file's values laid on those it extends, the place of each, and the names of all these files, its own last."""
    path = path.resolve()
    if path in chain:
        names = " -> ".join(p.name for p in (*chain, path))
        raise UserError(f"{shown(chain[-1])}: circular 'extends': {names}; let one of them stand alone")
    if len(chain) == MAX_DEPTH:
        raise UserError(f"{shown(chain[0])}: extends more than {MAX_DEPTH} files, one by way of the other; extend a nearer one")
    own, own_places = read_yaml(path)
    distill = own.get("distill")
    if isinstance(distill, dict) and isinstance(distill.get("teacher"), str):
        distill["teacher"] = os.path.abspath(path.parent / distill["teacher"])  # relative to the file that names it
    parent = own.pop("extends", None)
    if parent is None:
        return own, own_places, (path.stem,)
    place = own_places[("extends",)]
    if not isinstance(parent, str):
        raise UserError(f"{place}: extends: expected another experiment's file name")
    target = path.parent / parent
    if not os.path.isfile(target):
        raise UserError(f"{place}: extends: {cut(parent)}: no such file; name it relative to the file that extends it")
    values, places, names = _read_extended(target, (*chain, path))
    for inherited in ("title", "description", "claim"):  # these speak of one experiment alone
        values.pop(inherited, None)
    _merge(values, own, places, own_places)
    return values, places, (*names, path.stem)


def _overlay(values: dict[str, Any], places: dict[Keys, Place], profile: str, names: tuple[str, ...]) -> None:
    """Lay a profile on an experiment. It scales what is there and never switches on what the experiment leaves off.

    Its sections apply in this order: `all`, then `vit` or `resnet`, then `experiments.NAME` for each of `names`, which are the files
    that the experiment extends, the farthest first, and its own. In a section lie sizes and settings as in an experiment, and
    `epochs_percent`, of the epochs that the experiment has. `regularisation` is one factor for all probabilities and rates of
    regularisation.
    """
    over, over_places = read_yaml(PROFILE_DIR / f"{profile}.yaml")
    for key in over:
        if key not in ("regularisation", "all", "vit", "resnet", "experiments"):
            raise UserError(
                f"{over_places[(key,)]}: {key}: unknown key; a profile has 'regularisation', 'all', 'vit', 'resnet', 'experiments'"
            )
    model = values.get("model")
    kind = model.get("name") if isinstance(model, dict) else None
    percent = 100
    for section in (("all",), *((kind,) for _ in [0] if kind in ("vit", "resnet")), *(("experiments", name) for name in names)):
        part: Any = over
        for key in section:
            part = (part or {}).get(key)
        if part is None:
            continue
        percent = _positive(part, "epochs_percent", percent, over_places.get((*section, "epochs_percent")))
        # what is no section, though it should be, stays for the validation to name
        part = {
            k: v
            for k, v in part.items()
            if k != "epochs_percent" and isinstance(values.get(k, {} if k in ("data", "train") else None), dict)
        }
        if "model" in part:
            defaults = (ViT if kind == "vit" else ResNet).model_fields
            part["model"] = {k: v for k, v in part["model"].items() if k not in defaults or model.get(k, defaults[k].default)}
        if "ema" in part and values["ema"].get("start") is None:  # a decay that does not rise stays one that does not
            part["ema"] = {k: v for k, v in part["ema"].items() if k != "start"}
        n = len(section)
        _merge(values, part, places, {p[n:]: place for p, place in over_places.items() if p[:n] == section and p[n:]})
    train = values.get("train")
    if isinstance(train, dict) and type(train.get("epochs")) is int:
        train["epochs"] = max(min(1, train["epochs"]), round(train["epochs"] * percent / 100))
    _weaken(values, _positive(over, "regularisation", 1, over_places.get(("regularisation",))))


def _positive(section: dict[str, Any], key: str, default: float, place: Place | None) -> float:
    value = section.get(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise UserError(f"{place}: {key}: expected a number above 0, got {cut(json.dumps(value))}")
    return value


def _weaken(values: dict[str, Any], factor: float) -> None:
    """Multiply by `factor`: how often batches are mixed, images erased and given TrivialAugment, DropPath's and dropout's rates, label smoothing."""

    def scale(section: Any, key: str, default: float = 0.0) -> None:
        if isinstance(section, dict):
            value = section.get(key, default)
            if type(value) in (int, float) and value:  # anything else stays for the validation to name
                section[key] = round(value * factor, 6)

    if factor == 1:
        return
    scale(values.get("model"), "dropout")
    scale(values.get("model"), "drop_path")
    phases = values.get("phases")
    for phase in phases if isinstance(phases, list) else ():
        if isinstance(phase, dict):
            scale(phase, "label_smoothing")
            scale(phase.get("augment"), "erase")
            scale(phase.get("augment"), "trivial_augment")
            scale(phase.get("mix"), "prob", Mix.model_fields["prob"].default)


def _set(values: dict[str, Any], places: dict[Keys, Place], assignment: str) -> None:
    key, eq, text = assignment.partition("=")
    keys = key.strip().split(".")
    place = Place(f"--set {cut(assignment)}")
    if not eq or not all(0 < len(k) <= MAX_KEY for k in keys) or len(keys) > MAX_DEPTH or UNPRINTABLE.search(key):
        raise UserError(f"{place}: expected KEY=VALUE, for example --set optim.lr=1e-3")
    if keys[0] == "extends":
        raise UserError(f"{place}: only a file can extend another; write one")
    value, inner = parse(text, lambda _: place)
    path = tuple(int(k) if re.fullmatch("[0-9]{1,4}", k) else k for k in keys)
    node: Any = values
    for i, (k, part) in enumerate(zip(keys, path, strict=True)):
        if isinstance(node, list):
            if not isinstance(part, int) or part >= len(node):
                raise UserError(f"{place}: {dotted(path[:i])} has {len(node)} entries, counted from 0; '{k}' is not one")
        elif not isinstance(node, dict):
            raise UserError(f"{place}: {dotted(path[:i])} is not a section, so it has no '{k}'")
        index = part if isinstance(node, list) else k
        if i + 1 < len(keys):
            if isinstance(node, dict) and node.get(k) is None:
                node[k] = {}
            node = node[index]
        else:
            node[index] = value
    places.update({path[: i + 1]: place for i in range(len(path))} | {(*path, *below): at for below, at in inner.items()})


# ------------------------------------------------------------------------------------------------------ resolving


@dataclass(frozen=True)
class Resolved:
    """One experiment under one profile, ready to run."""

    id: str  # the file's name without .yaml
    path: Path
    profile: str
    variant: str  # the --set overrides, sorted and joined by a space; "" for the experiment as it stands
    config: Experiment

    @property
    def label(self) -> str:
        return f"{self.id} [{self.variant}]" if self.variant else self.id


def load(path: str | Path, profile: str = "full", sets: tuple[str, ...] = ()) -> Resolved:
    """Read, extend, scale, override and validate one experiment. Raises UserError: `file:line: key: what and remedy`."""
    path = Path(path)
    if profile not in PROFILES:
        raise UserError(f"profile '{profile}': expected one of {', '.join(PROFILES)}")
    values, places, names = _read_extended(path)
    _overlay(values, places, profile, names)
    for assignment in sets:
        _set(values, places, assignment)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", path.stem):
        raise UserError(f"{shown(path)}: rename the file: letters, digits, '.', '_' and '-' only (it names folders and runs)")
    try:
        config = Experiment.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as e:
        found = e.errors()
        # a list one of whose entries is wrong is also called too short: what is wrong is the entry
        found = [
            err for err in found if err["type"] != "too_short" or all(err is o or o["loc"][: len(err["loc"])] != err["loc"] for o in found)
        ]
        raise UserError("\n".join(_explain(err, values, places, shown(path)) for err in found[:10])) from None
    if config.distill is not None and not os.path.isabs(config.distill.teacher):  # from --set: relative to the experiment, as in its file
        teacher = str(path.resolve().parent / config.distill.teacher)
        config = config.model_copy(update={"distill": config.distill.model_copy(update={"teacher": teacher})})
    if config.distill is not None and not os.path.isfile(config.distill.teacher):
        place = places.get(("distill", "teacher"), shown(path))
        teacher = cut(shown(Path(config.distill.teacher)))
        near = "the experiment" if str(place).startswith("--set") else "the file that names it"
        raise UserError(f"{place}: distill.teacher: {teacher}: no such file; name it relative to {near}")
    return Resolved(path.stem, path.resolve(), profile, " ".join(sorted(s.replace(" ", "") for s in sets)), config)


def _explain(err: Any, values: Any, places: dict[Keys, Place], file: str) -> str:
    """One pydantic error as `file:line: key: what was expected`."""
    path: list[str | int] = []
    node = values
    loc = err["loc"]
    for i, part in enumerate(loc):
        here = (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int) and part < len(node))
        if here:
            path.append(part)
            node = node[part]
        elif i == len(loc) - 1 and err["type"] == "missing":
            path.append(part)
        # else: the tag of a union ('vit', 'adamw'), which is not in the YAML
    key = tuple(path)
    place = next((places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places), Place(file))
    if err["type"] == "extra_forbidden":
        known = _known_keys(loc)
        close = difflib.get_close_matches(str(key[-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(known)}"
        return f"{place}: {dotted(key)}: unknown key, {hint}"
    if err["type"] == "missing":
        return f"{place}: {dotted(key)}: missing; add it"
    if err["type"] == "union_tag_not_found":
        return f"{place}: {dotted(key)}.name: missing; expected one of {_tags(key)}"
    if err["type"] == "union_tag_invalid":
        return f"{place}: {dotted((*key, 'name'))}: '{err['ctx']['tag']}' is not one of {err['ctx']['expected_tags']}"
    if err["type"] in ("too_short", "too_long"):
        bound = f"at least {err['ctx']['min_length']}" if err["type"] == "too_short" else f"at most {err['ctx']['max_length']}"
        return f"{place}: {dotted(key)}: expected a length of {bound}, got {err['ctx']['actual_length']}"
    message = err["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = {"an object": "a section ('key: value' lines)", "a valid array": "a list"}.get(message, message)
    if not key:  # of the experiment as a whole: the message opens with the section that is at fault
        place = places.get((message.partition(":")[0],), place)
    got = "" if isinstance(err["input"], dict | list) else f", got {cut(json.dumps(err['input']))}"
    expected = "expected " if err["msg"].startswith("Input should be ") else ""
    return f"{place}: {dotted(key) + ': ' if key else ''}{expected}{message}{got}"


def _tags(key: Keys) -> str:
    return "'vit', 'resnet'" if key == ("model",) else "'adamw', 'sgd', 'muon'"


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """The keys allowed beside the unknown last one of `loc`, which may pass through union tags."""
    kinds: dict[str, type[Schema]] = {
        "data": Data, "claim": Claim, "ema_gain": ClaimedRange, "per_class": ClaimedClass, "phases": Phase, "augment": Augment,
        "color_jitter": ColorJitter, "mix": Mix, "warmup": Length, "train": Train, "ema": EMA, "distill": Distill, "vit": ViT,
        "resnet": ResNet, "adamw": AdamW, "sgd": SGD, "muon": Muon,
    }  # fmt: skip
    for part in reversed(loc[:-1]):
        if part in kinds:
            return list(kinds[part].model_fields)
    return ["extends", *Experiment.model_fields]


# ----------------------------------------------------------------------------------------- fingerprint, flat view


def fingerprint(config: Experiment, data_digest: str, teacher: str | None) -> str:
    """12 hex digits that name a run's work: the configuration (less names and claims), the data, the teacher's fingerprint.

    Of the configuration counts what differs from the defaults, so that a key added later, whose default changes nothing, leaves every
    finished run its name.
    """
    what = config.model_dump(mode="json", exclude={"title", "description", "claim"}, exclude_defaults=True)
    what.get("distill", {}).pop("teacher", None)  # its path says nothing; its fingerprint does
    text = json.dumps({"schema": SCHEMA_VERSION, "config": what, "data": data_digest, "teacher": teacher}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(config: Experiment) -> dict[str, str]:
    """`{"optim.lr": "0.0006", ...}`: what MLflow shows as a run's parameters."""
    flat: dict[str, str] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                walk(v, f"{key}.{k}" if key else k)
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            for i, v in enumerate(value):
                walk(v, f"{key}.{i}")
        else:
            flat[key] = value if isinstance(value, str) else json.dumps(value)

    walk({k: v for k, v in plain(config).items() if k not in ("title", "description", "claim")}, "")
    return flat


def plain(config: Experiment) -> dict[str, Any]:
    """The resolved experiment as it is recorded, every default spelt out; the teacher by its name, not by this machine's path."""
    values = config.model_dump(mode="json")
    if values["distill"]:
        values["distill"]["teacher"] = Path(values["distill"]["teacher"]).stem
    return values


def to_yaml(config: Experiment) -> str:
    return yaml.safe_dump(plain(config), sort_keys=False, width=120)


def json_schema() -> dict[str, Any]:
    """JSON Schema of an experiment *file*: with `extends`, and nothing required, since the rest may be inherited."""
    schema = Experiment.model_json_schema()

    def relax(node: Any) -> None:
        if isinstance(node, dict):
            node.pop("required", None)
            node.pop("discriminator", None)
            if "oneOf" in node:
                node["anyOf"] = node.pop("oneOf")
            for value in node.values():
                relax(value)
        elif isinstance(node, list):
            for value in node:
                relax(value)

    relax(schema)
    schema["properties"]["extends"] = {"type": "string", "description": "the experiment this one changes, relative to this file"}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema
