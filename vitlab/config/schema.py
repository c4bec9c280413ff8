"""The schema of an experiment: every key with its default and bounds. Also its fingerprint, and its forms for YAML and MLflow."""

from __future__ import annotations

import hashlib
import json
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGE_SIZE = 32  # height and width of every image, in pixels
SCHEMA_VERSION = 2  # part of every fingerprint; raised when a default or the meaning of a key changes


class Schema(BaseModel):
    """A frozen model that refuses unknown keys, values of another type, NaN and infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------------- the sections


class Length(Schema):
    """A length of training, in exactly one unit. `schedule.steps` converts it to steps."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(gt=0)] | None = None
    percent: Annotated[float, Field(gt=0, le=100)] | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Length:
        if sum(v is not None for v in (self.epochs, self.steps, self.percent)) != 1:
            raise ValueError("give exactly one of 'epochs', 'steps', 'percent'")
        return self


Percent = Annotated[float, Field(ge=0, le=100)]
# Channels of a ResNet's first stage. With fewer than 8, oneDNN crashes in the gradients on a processor that has AVX2 but no AVX-512 (its
# issue 6035).
ResNetWidth = Annotated[int, Field(ge=8, le=512)]


class ClaimedClass(Schema):
    """What a report gives for one class's test images, in percent."""

    precision: Percent
    recall: Percent
    f1: Percent
    accuracy: Percent


class ClaimedRange(Schema):
    """A range that a report gives."""

    low: float
    high: float


class Claim(Schema):
    """What the original report says this experiment reaches, shown beside the measured numbers. It is not part of a run's fingerprint."""

    text: str  # the claimed accuracy as the report words it
    source: str  # report and section
    top1: Percent | None = None
    low: Percent | None = None  # of a claimed range of top-1, given in place of `top1`
    high: Percent | None = None
    top5: Percent | None = None
    train_loss: Annotated[float, Field(ge=0)] | None = None  # nats
    params: Annotated[float, Field(gt=0)] | None = None  # millions
    train_minutes: Annotated[float, Field(gt=0)] | None = None  # of a student alone, its teacher's not included
    device: str | None = None  # what it was trained on
    teacher_top1: Percent | None = None
    ema_gain: ClaimedRange | None = None  # points of top-1, averaged weights less raw ones
    before_tail_top1: Percent | None = None  # on the test split, when the last phase begins
    confidence: Percent | None = None  # predictions are said to be more confident than this
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
    """How the data set is limited, and how much of it is set aside for validation."""

    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.05  # share of the training images, stratified
    train_limit: Annotated[int, Field(ge=20)] | None = None  # a stratified subset, the same for every seed
    test_limit: Annotated[int, Field(ge=20)] | None = None


class ViT(Schema):
    """A vision transformer: stem (patch | resnet18) x encoder (torch | explicit) x one or two heads."""

    name: Literal["vit"]
    stem: Literal["patch", "resnet18"] = "patch"
    patch_size: Literal[1, 2, 4, 8, 16, 32] = 4
    stem_width: ResNetWidth = 64  # channels of the ResNet-18 stem's first stage
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
    width: ResNetWidth = 64  # channels of the first stage; 64 is torchvision's


MODELS = {  # by name; vitlab/models/registry.py builds them
    "vit": ViT,
    "resnet": ResNet,
}
Model = Annotated[reduce(or_, MODELS.values()), Field(discriminator="name")]


class ColorJitter(Schema):
    """How far brightness, contrast, saturation and hue are changed, as in torchvision's ColorJitter."""

    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Augment(Schema):
    """How each training image is augmented. By default nothing is on."""

    crop: Annotated[int, Field(ge=0, le=16)] = 0  # RandomCrop's padding in pixels; 0 is off
    flip: bool = False  # left-right, p = 0.5; off where the data set has no such symmetry
    color_jitter: ColorJitter | None = None
    trivial_augment: Annotated[float, Field(ge=0, le=1)] = 0.0  # the probability that an image gets its one operation
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0  # RandomErasing's probability


class Mix(Schema):
    """How batches are mixed: by CutMix or Mixup; where both are on, by CutMix with probability `switch_prob`, as in timm."""

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
    """AdamW (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"]
    lr: Annotated[float, Field(gt=0, le=10)]
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    warmup: Length | None = None
    grad_clip: Annotated[float, Field(gt=0)] | None = None  # largest norm of all gradients together


class SGD(Schema):
    """Stochastic gradient descent with Nesterov momentum."""

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


OPTIMS = {  # by name; vitlab/train/optim.py builds them
    "adamw": AdamW,
    "sgd": SGD,
    "muon": Muon,
}
Optim = Annotated[reduce(or_, OPTIMS.values()), Field(discriminator="name")]


class Train(Schema):
    """How long is trained, in batches of what size and in what precision."""

    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 192
    eval_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 512
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of training; auto: bf16 where the device has it in hardware


class EMA(Schema):
    """Exponential moving average of the weights; the decay goes linearly from start to end over the training."""

    start: Annotated[float, Field(ge=0, lt=1)] | None = None  # None: `end` from the first step on
    end: Annotated[float, Field(ge=0, lt=1)]


class Distill(Schema):
    """loss = (1 - weight) * CE + weight * T^2 * KL(teacher || student), both at temperature T (Hinton et al. 2015)."""

    teacher: str  # its YAML, relative to the file that names it, or one of ours by its name
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5


class Experiment(Schema):
    """One experiment: what is trained, on what, and how."""

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


# ----------------------------------------------------------------------------------------- fingerprint, flat view


def fingerprint(config: Experiment, data_digest: str, teacher: str | None) -> str:
    """Return 12 hex digits that identify a run's work: its configuration (without names and claims), its data, its teacher's fingerprint.

    Only what differs from the defaults is hashed. So a key that is added later, with a default that changes nothing, leaves the
    fingerprints of finished runs as they are.
    """
    what = config.model_dump(mode="json", exclude={"title", "description", "claim"}, exclude_defaults=True)
    what.get("distill", {}).pop("teacher", None)  # its path says nothing; its fingerprint does
    text = json.dumps({"schema": SCHEMA_VERSION, "config": what, "data": data_digest, "teacher": teacher}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(config: Experiment) -> dict[str, str]:
    """Return `{"optim.lr": "0.0006", ...}`, which MLflow shows as a run's parameters."""
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
    """Return the configuration as it is recorded: every default written out, the teacher by its name and not by this machine's path."""
    values = config.model_dump(mode="json")
    if values["distill"]:
        values["distill"]["teacher"] = Path(values["distill"]["teacher"]).stem
    return values


def to_yaml(config: Experiment) -> str:
    """Return `plain` as YAML."""
    return yaml.safe_dump(plain(config), sort_keys=False, width=120)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of an experiment *file*. It has `extends`, and no key is required, since a file may inherit any."""
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
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "the experiment this one changes: a file, relative to this one, or one of vitlab's own by its name",
    }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema
