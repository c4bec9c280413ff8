"""RunRecord: all that a finished run leaves behind for reporting, and the only link between training and reporting."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vitlab import files
from vitlab.config import PROFILES, Claim
from vitlab.errors import UserError

VERSION = 1
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$")]  # names folders and files, so it must not lead out of them


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetFacts(_Frozen):
    """The data set that a run used."""

    name: Name  # cifar10, cifar100, digits, or the folder's name
    digest: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    train: int  # images trained on, the validation split taken off
    validation: int
    test: int
    mean: tuple[float, float, float]  # per channel in [0, 1], what images are normalised with
    std: tuple[float, float, float]


class TeacherFacts(_Frozen):
    """The run that taught a student."""

    experiment: str
    fingerprint: str
    seed: int
    weights_sha256: str
    validation_top1: float  # percent, measured again just before it taught
    test_top1: float  # percent, its own final number
    agreement: float  # percent of test images on which student and teacher predict the same class
    gain: float  # points of test top-1, student minus teacher
    confusion: list[list[int]] | None = (
        None  # test images by the class that the teacher predicts and the one that the student does; None in old records
    )


class Bin(_Frozen):
    """The test images whose predicted class has a probability within a range of confidence."""

    confidence: float  # percent, mean
    accuracy: float  # percent
    count: int


class ClassFacts(_Frozen):
    """One class on the test split, in percent; `support` counts images."""

    name: str
    precision: float
    recall: float
    f1: float
    accuracy: float  # of this class's images, as the reports quote it: equal to recall
    support: int


class Part(_Frozen):
    """A stretch of a run: where it was trained, and by what code."""

    device: str
    threads: int
    git: dict[str, str]
    teacher: str = ""  # hash of its weights


class RunRecord(_Frozen):
    """One finished run, as `record.json` has it."""

    version: Annotated[int, Field(strict=True)] = VERSION
    experiment: Name
    variant: str = ""  # the --set overrides, "" for the experiment as it stands
    title: str
    claim: Claim | None = None
    profile: Name
    dataset: DatasetFacts
    seed: Annotated[int, Field(ge=0)]
    fingerprint: Name
    config: dict[str, Any]  # resolved
    # percent, but for *loss: test_top1/test_top5/test_loss are the headline (EMA where the experiment has one, all heads
    # averaged); test_raw_top1, test_ema_top1, test_<head>_top1, validation_top1 ... as measured;
    # test_confidence (mean probability of the predicted class), test_confidence_above_90 (share of the images with more than 90 %),
    # test_confidence_above_90_accuracy (how many of these are right), test_calibration_error (points, over the bins of `calibration`); test_ema_or_raw_alone (share of the images that either the averaged or
    # the raw weights alone have right); validation_top1_phase_<i>: after the last whole epoch of phase i,
    # for every phase but the last, which ends with validation_top1. Records of earlier versions lack these.
    metrics: dict[str, float]
    per_class: tuple[ClassFacts, ...]
    confusion: tuple[tuple[int, ...], ...]  # [true][predicted], counts on the test split
    calibration: tuple[Bin, ...] = ()  # the test images by confidence, from the least on; empty in old records
    history: tuple[dict[str, float], ...]  # one per epoch: epoch, train/loss, train/top1, validation/top1, lr, perf/img_s ...
    params: int
    flops: int  # forward, per image; one multiply-add is 2
    train_seconds: float  # of the training loop, evaluation included, over all resumed parts
    img_s: float  # training images per second, evaluation not counted; median over epochs
    # speed, medians over epochs: train_gflops_per_image (a training step's, the teacher's forward included), tflops (of what was computed),
    # peak_tflops (a large matrix product's on this machine), mfu (their ratio, percent); seconds_<phase>: of train_seconds, and of the
    # test split's forward; teacher_logits_read: the percentage of steps that read the teacher's logits as an earlier run had stored them,
    # and cost no forward of it: times compare only where it is the same
    perf: dict[str, float] = {}
    device: str
    precision: str  # of training; predictions are computed in float32, on a GPU with TF32 products
    threads: int
    versions: dict[str, str]
    git: dict[str, str]  # commit, dirty: hash of uncommitted changes or ""
    # of a run that was stopped and went on elsewhere, or with other code or another teacher, the last one as said above; else empty
    parts: tuple[Part, ...] = ()
    started: str  # UTC, ISO 8601
    finished: str
    teacher: TeacherFacts | None = None

    @model_validator(mode="after")
    def _measured(self) -> RunRecord:
        if missing := {"test_top1", "test_top5", "validation_top1"} - self.metrics.keys():
            raise ValueError(f"metrics have no {', '.join(sorted(missing))}")
        return self


def processor(part: Part | RunRecord) -> tuple[str, int] | None:
    """Return the processor that it was trained on, as `AMD EPYC, 2 cores`, and the threads of all its processes; None for a GPU."""
    found = re.fullmatch(r"(.+ cores)(?:, (\d+) processes)?", part.device)
    return found and (found[1], part.threads * int(found[2] or 1))


def to_json(record: RunRecord) -> str:
    """Return the record as it is written: equal records give equal text."""
    return json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n"


def write(record: RunRecord, path: Path) -> None:
    """Write the record atomically."""
    files.write(path, to_json(record))


def read(path: Path) -> RunRecord:
    """Return the record in the file. Raises UserError naming the file where it is missing, damaged or of another version."""
    try:
        return _parse(path.read_bytes())
    except _Damaged as e:
        raise UserError(f"{path}: {e}") from None
    except OSError as e:
        raise UserError(f"{path}: not a readable run record ({e}); restore it or train the run anew with --force") from None


class Outcome(BaseModel):
    """What a listing shows of a finished run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[1]
    metrics: dict[str, float]
    finished: str


def outcome(path: Path) -> Outcome | RunRecord:
    """Return the outcome in a record's file, in a quarter of the time that the whole record takes. Raises UserError as `read` does."""
    with contextlib.suppress(OSError, ValidationError):
        return Outcome.model_validate_json(path.read_bytes())
    return read(path)  # which says what is wrong


class _Damaged(Exception):
    """What is wrong with a record, and the remedy. The caller adds the file."""


_parsed: dict[bytes, RunRecord] = {}  # digest -> record


def _parse(content: bytes) -> RunRecord:
    """Return the record, from memory where it was parsed before.

    A report reads each up to four times: from MLflow, as published before, before it is replaced, and for the page.
    """
    digest = hashlib.sha256(content).digest()
    if digest not in _parsed:
        _parsed[digest] = _parse_anew(content)
    return _parsed[digest]


def _parse_anew(content: bytes) -> RunRecord:
    with contextlib.suppress(ValidationError):  # pydantic's own parser takes a third of the time; what is wrong, the other way says better
        record = RunRecord.model_validate_json(content)
        if record.version == VERSION and "version" in record.model_fields_set:
            return record
    try:
        values = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as e:  # neither UTF-8 nor JSON, or a number of a thousand digits
        raise _Damaged(f"not a readable run record ({e}); restore it or train the run anew with --force") from None
    if isinstance(values, dict) and values.get("version") != VERSION:
        raise _Damaged(f"run record of version {values.get('version')!r}, this vitlab reads {VERSION}; update one of the two")
    try:
        return RunRecord.model_validate(values)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "record"
        what = first["msg"].removeprefix("Value error, ")
        raise _Damaged(f"{where}: {what}; restore the record or train the run anew with --force") from None


def read_many(paths: Iterable[Path]) -> list[RunRecord]:
    """Return the record in each file. Raises UserError as `read` does.

    Python looks for cycles again and again while objects are made, among millions here, which have none: that would double the time.
    """
    looking = gc.isenabled()
    gc.disable()
    try:
        return [read(path) for path in paths]
    finally:
        gc.freeze()  # nor are they looked at later
        if looking:
            gc.enable()


def read_all(folder: Path) -> list[RunRecord]:
    """Return every record in `folder`/records, by file name. Raises UserError as `read` does."""
    return read_many(sorted((folder / "records").glob("*.json")))


def file_name(record: RunRecord) -> str:
    """Return the record's file name, `01_baseline_vit-s0.json`.

    A variation's holds its fingerprint, so that it cannot be mistaken for the experiment itself.
    """
    variant = f"-{record.fingerprint}" if record.variant else ""
    return f"{record.experiment}{variant}-s{record.seed}.json"


def rank(record: RunRecord, name: str) -> tuple[Any, ...]:
    """Return the key that sorts the set `name`, which holds this record: CIFAR-10 first, which the claims are about, then the larger
    profile.
    """
    profile = PROFILES.index(record.profile) if record.profile in PROFILES else -1
    return record.dataset.name != "cifar10", -profile, name
