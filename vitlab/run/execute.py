"""One run of the plan, from its data and configuration to a finished RunRecord. Here everything that training needs is put together."""

from __future__ import annotations

import contextlib
import hashlib
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import nn

import vitlab
from vitlab import config, files, records
from vitlab.code import git_state
from vitlab.data.augment import normalize
from vitlab.data.dataset import Dataset
from vitlab.data.rng import generator
from vitlab.errors import Lost, UserError
from vitlab.models import cost, registry
from vitlab.models.attention import class_attention
from vitlab.paths import ROOT
from vitlab.records import DatasetFacts, RunRecord, TeacherFacts
from vitlab.run import published
from vitlab.run.plan import Run
from vitlab.track.journal import Journal, RunInfo
from vitlab.track.shipper import Shipper
from vitlab.train import checkpoint, distributed, evaluate, loop, machine, optim, schedule
from vitlab.train.logits_store import LogitsStore
from vitlab.train.meter import Meter, total
from vitlab.train.objective import CrossEntropy, Distillation, RememberingTeacher, prepare_teacher

SHIP_SECONDS = 60  # how long a finished run waits for its last metrics to reach MLflow
SHOWN = 36  # test images in a picture
STOP_SECONDS = 5  # how long a run that is to stop waits for that


def build_model(cfg: config.Experiment, classes: int, seed: int, where: torch.device) -> nn.Module:
    """Return the model on the device `where`. Its initial weights are a function of the seed alone, whatever was drawn before."""
    torch.manual_seed(generator(seed, "init", 0, torch.device("cpu")).initial_seed())
    return distributed.synchronised(registry.build(cfg.model, classes).to(where))


def distillation(cfg: config.Experiment, teacher: nn.Module, data: Dataset) -> Distillation:
    """Return the objective of a student that learns from `teacher`, which is on the data's device."""
    assert cfg.distill is not None
    steps = cfg.train.epochs * schedule.epoch_steps(cfg, len(data.train_labels))
    teacher = prepare_teacher(teacher, cfg.train.precision, data.train_images.device, steps)
    return Distillation(teacher, cfg.distill.temperature, cfg.distill.weight)


def load_weights(run: Run, where: torch.device) -> nn.Module:
    """Return the finished run's model in eval mode. Raises UserError where its weights are missing or of another model."""
    return checkpoint.load_model(run.folder / published.WEIGHTS, run.resolved.config.model, len(run.source.classes)).to(where)


def predicted(run: Run) -> torch.Tensor:
    """Return the class, (N,), that the finished run predicts for each test image with its headline weights.

    Raises UserError where its predictions are missing or damaged.
    """
    path = run.folder / "predictions.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            logits = stored["logits_ema" if "logits_ema" in stored else "logits_raw"]  # (H, N, C)
        return evaluate.ranking(torch.from_numpy(logits).mean(0))[:, 0]
    except Exception as e:  # zipfile, zlib and NumPy raise nearly anything on a damaged file
        raise UserError(f"{path}: cannot be read ({str(e) or type(e).__name__}); train the run anew with --force") from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Taught:
    """A teacher's run and record, its class for each test image (N,), its weights' hash, and its validation top-1 in percent once measured."""

    run: Run
    record: RunRecord
    predicted: torch.Tensor
    weights_sha256: str
    validation_top1: float = math.nan


def execute(
    run: Run,
    data: Dataset,
    make_bar: Callable[[int], loop.Bar],
    stop: loop.Stop,
    say: Callable[[str], None],
    shipping: contextlib.ExitStack,
) -> RunRecord:
    """Train (or resume) and evaluate one run, leave its record, predictions, weights and pictures in its folder, and return the record.

    Of several processes the first one calls this, and the others do their part of it in `assist`.

    `make_bar(images_per_epoch)` gives the loop its progress display, `say(text)` prints a line. The run's last metrics and its model
    reach MLflow in the background: the end of `shipping` waits for them. Raises loop.Interrupted and loop.Diverged, DiskFull, Lost, and
    UserError for a damaged teacher or checkpoint.
    """
    cfg, where = run.resolved.config, data.train_images.device
    teacher = taught = None
    if run.teacher is not None:  # read all that is needed of it before anything is written, as its folder may be trained anew meanwhile
        teacher = load_weights(run.teacher, where)
        taught = Taught(run.teacher, run.teacher.record(), predicted(run.teacher), file_sha256(run.teacher.folder / published.WEIGHTS))
    distributed.told(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    files.remove_temporaries(run.folder)
    classes = len(data.classes)
    model = build_model(cfg, classes, run.seed, where)
    assert cost.parameters(cfg.model, classes) == sum(p.numel() for p in model.parameters() if p.requires_grad)

    files.write(run.folder / "config.yaml", config.to_yaml(cfg))
    git = git_state()
    part = {"device": identity(run, where)["device"], "threads": torch.get_num_threads(), "git": git}
    part |= {"teacher": taught.weights_sha256} if taught else {}
    run_info(run, data, git).write(run.folder)
    journal = Journal(run.folder / "journal.jsonl")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    shipper = Shipper(ROOT, run.folder)
    if machine.compiling_pays(where, run.steps) and (trouble := machine.compiler_trouble(where)):
        say(f"trains uncompiled, which is slower: torch cannot compile here ({trouble}); install {machine.COMPILER[where.type]}")

    peak = distributed.size() * machine.measured_peak(where, machine.precision(cfg.train.precision, where))
    meter = Meter(where, run.step_flops, peak, run.teacher.flops if run.teacher else 0.0)
    objective: CrossEntropy | Distillation = CrossEntropy()
    store: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    try:
        with distributed.noticing_loss():
            if teacher is not None and taught is not None:
                scores = validation_logits(teacher, data, cfg)
                taught.validation_top1 = evaluate.accuracy(scores.mean(0), data.validation_labels)["top1"]
                say(f"teacher {taught.run.resolved.id}, seed {taught.run.seed}: validation top-1 {taught.validation_top1:.2f} %")
                objective = distillation(cfg, teacher, data)
                if where.type == "cpu" and distributed.size() == 1:
                    store = teacher_store(run, scores, journal)
                    objective.teacher = RememberingTeacher(objective.teacher, store, meter.answered)
            with make_bar(len(data.train_labels)) as bar, store:
                trained = loop.train(
                    cfg, data, model, objective,
                    seed=run.seed, folder=run.folder, journal=journal, meter=meter, bar=bar, stop=stop, part=part, covered=shipper.notify,
                )  # fmt: skip
            clock = time.perf_counter()
            heads = test_logits(model, trained.ema, data, cfg)
            trained.after["test"] = time.perf_counter() - clock
        record = finish(run, data, model, trained, heads, peak, taught, started, git)
        journal.append("event", text="finished")
    except (loop.Interrupted, files.DiskFull, Lost):
        shipper.close("KILLED", STOP_SECONDS)
        raise
    except loop.Diverged as e:
        journal.append("event", text=f"failed: {e}")
        shipper.close("FAILED", STOP_SECONDS)
        raise
    journal.close()
    best = trained.ema.model if trained.ema else model
    example = data.test_images[:2].cpu().numpy()
    shipper.finish(model=best, example=example)

    def wait() -> None:
        if not shipper.arrived(lambda: STOP_SECONDS if stop.asked() else SHIP_SECONDS):
            say(f"not all of it has reached MLflow ({shipper.outstanding}); everything is kept in {run.folder}: run 'vitlab sync' later")

    shipping.callback(wait)
    return record


def validation_logits(teacher: nn.Module, data: Dataset, cfg: config.Experiment) -> torch.Tensor:
    """Return the teacher's logits of the validation images, float32 (heads, N, C)."""
    return evaluate.logits(teacher, data.validation_images, data.mean, data.std, cfg.train.eval_batch_size)


def test_logits(model: nn.Module, ema: optim.EMA | None, data: Dataset, cfg: config.Experiment) -> dict[str, torch.Tensor]:
    """Return the logits of the test images, float32 (heads, N, C): "raw" of the last weights and, where there is one, "ema" of their average."""
    weights = {"raw": model} | ({"ema": ema.model} if ema else {})
    return {kind: evaluate.logits(m, data.test_images, data.mean, data.std, cfg.train.eval_batch_size) for kind, m in weights.items()}


def teacher_store(run: Run, validation_logits: torch.Tensor, journal: Journal) -> LogitsStore:
    """Return the store of the logits that the student's teacher gives on this machine; what goes wrong with it goes to the journal.

    `validation_logits`: the teacher's, as just computed. Their bits stand for its weights, its code and the libraries' that it runs on, and
    are known without a forward pass more. Precision, threads and whether it is compiled are the training's.
    """
    assert run.teacher is not None
    where, precision = validation_logits.device, run.resolved.config.train.precision
    facts = (
        machine.precision(precision, where), torch.get_num_threads(), machine.device_name(where), torch.__version__, run.logits_bytes,
        *(["compiled"] if machine.compiles(where, run.steps) else []),
    )  # fmt: skip
    answers = hashlib.sha256(repr(facts).encode() + validation_logits.numpy().tobytes()).hexdigest()[:12]

    def tell(text: str) -> None:
        with contextlib.suppress(files.DiskFull):  # which is what it may be about
            journal.append("event", text=text)

    return LogitsStore(run.teacher.folder, run.views, answers, run.logits_bytes, tell)


def finish(
    run: Run,
    data: Dataset,
    model: nn.Module,
    trained: loop.Trained,
    heads: dict[str, torch.Tensor],
    peak: float,
    taught: Taught | None,
    started: str,
    git: dict[str, str],
) -> RunRecord:
    """Write predictions, weights, pictures and, last, the record, and return it.

    `heads`: what `test_logits` returned, the one reading of the test split. `peak` in FLOP/s. `taught`: the teacher as it was
    before the training.
    """
    from vitlab.figures.run import run_figures  # 150 MB, which nothing needs while training

    cfg, where, folder = run.resolved.config, data.train_images.device, run.folder
    seconds = total(trained.history, trained.after)
    headline, best = ("ema", trained.ema.model) if trained.ema else ("raw", model)
    scores, labels = heads[headline].mean(0), data.test_labels
    evaluate.write_predictions(folder / "predictions.npz", heads, labels, model.head_names, data.classes)

    metrics = {f"test_{k}": v for k, v in evaluate.measure(scores, labels).items()}
    for kind, z in heads.items():
        metrics |= {f"test_{kind}_{k}": v for k, v in evaluate.accuracy(z.mean(0), labels).items()}
    if len(model.head_names) > 1:
        for head, z in zip(model.head_names, heads[headline], strict=True):
            metrics[f"test_{head}_top1"] = evaluate.accuracy(z, labels)["top1"]
    if trained.ema:
        right = [evaluate.ranking(heads[kind].mean(0))[:, 0] == labels.cpu() for kind in ("ema", "raw")]
        metrics["test_ema_or_raw_alone"] = evaluate.percent(right[0] != right[1])
    by_epoch = [row["validation/ema_top1" if trained.ema else "validation/top1"] for row in trained.history]
    metrics["validation_top1"] = by_epoch[-1]
    for i, epochs in enumerate(schedule.whole_epochs(cfg, len(data.train_labels))[:-1]):
        if 0 < epochs < len(by_epoch):  # in a short training the last phase may have no step
            metrics[f"validation_top1_phase_{i}"] = by_epoch[epochs - 1]

    teacher = teacher_facts(taught, scores, metrics["test_top1"]) if taught is not None else None
    img_s, tflops, mfu = (statistics.median(row[f"perf/{key}"] for row in trained.history) for key in ("img_s", "tflops", "mfu"))
    read = [row["perf/teacher_logits_read"] for row in trained.history if "perf/teacher_logits_read" in row]
    classes = evaluate.ranking(scores)[:, 0]
    record = RunRecord(
        **identity(run, where),
        claim=cfg.claim,
        dataset=DatasetFacts(
            name=data.name, digest=data.digest, classes=data.classes, **sizes(data),
            mean=tuple(data.mean.tolist()), std=tuple(data.std.tolist()),
        ),
        config=config.plain(cfg),
        metrics=metrics,
        per_class=evaluate.per_class(classes, labels, data.classes),
        confusion=evaluate.confusion(classes, labels, len(data.classes)).tolist(),
        calibration=evaluate.calibration(scores, labels),
        history=tuple(trained.history),
        params=run.params,
        train_seconds=trained.seconds,
        img_s=img_s,
        perf={
            "train_gflops_per_image": run.step_flops / 1e9,
            "tflops": tflops,
            "peak_tflops": peak / 1e12,
            "mfu": mfu,
        }
        | ({"teacher_logits_read": statistics.mean(read)} if read else {})
        | {f"seconds_{phase}": value for phase, value in seconds.items()},
        precision=machine.precision(cfg.train.precision, where),
        threads=torch.get_num_threads(),
        versions={"python": platform.python_version(), "vitlab": vitlab.__version__} | {p: metadata.version(p) for p in ("torch", "torchvision")},
        git=git,
        parts=tuple(trained.parts) if len(trained.parts) > 1 else (),
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        teacher=teacher,
    )  # fmt: skip
    kept = {k: v.contiguous() for k, v in best.state_dict().items()}
    files.write(folder / published.WEIGHTS, to_safetensors(kept))
    files.write(folder / "report.txt", evaluate.classification_report(classes, labels, data.classes))
    with files.writing(folder / "figures"):
        run_figures(record, folder / "figures")
        draw_images(record, folder / "figures", data, best, scores)
    records.write(record, folder / "record.json")  # last: its presence says that the run is finished
    checkpoint.remove(folder)
    return record


def draw_images(record: RunRecord, out_dir: Path, data: Dataset, model: nn.Module, scores: torch.Tensor) -> None:
    """Draw the pictures that show test images. scores: (N, C), the test logits of `model`."""
    from vitlab.figures.grids import Shown, image_figures

    def shown(rows: list[int]) -> Shown:
        return Shown(data.test_images[rows].permute(0, 2, 3, 1).cpu().numpy(), evaluate.guesses(scores, data.test_labels, rows))

    few = evaluate.first(SHOWN, len(scores))
    looks = class_attention(model, normalize(data.test_images[few], data.mean, data.std))  # (N, S, h, grid, grid)
    mistakes = evaluate.surest_mistakes(scores, data.test_labels, SHOWN)
    image_figures(record, out_dir, shown(few), shown(mistakes), None if looks is None else (looks.mean(2).cpu().numpy(), model.head_names))


def teacher_facts(taught: Taught, scores: torch.Tensor, top1: float) -> TeacherFacts:
    """Return what a student's record says of its teacher.

    scores: (N, C), the student's test logits. top1: percent, the student's on the test split. The teacher's stored predictions are those
    of its record, not computed again.
    """
    record, theirs, ours = taught.record, taught.predicted, evaluate.ranking(scores)[:, 0]
    return TeacherFacts(
        experiment=taught.run.resolved.id,
        fingerprint=taught.run.fingerprint,
        seed=taught.run.seed,
        weights_sha256=taught.weights_sha256,
        validation_top1=taught.validation_top1,
        test_top1=record.metrics["test_top1"],
        agreement=evaluate.percent(theirs == ours),
        confusion=evaluate.confusion(ours, theirs, scores.shape[1]).tolist(),
        gain=top1 - record.metrics["test_top1"],
    )


def identity(run: Run, where: torch.device) -> dict[str, Any]:
    """Return what the record and MLflow both say of a run, under the same names."""
    return {
        "experiment": run.resolved.id,
        "variant": run.resolved.variant,
        "title": run.resolved.config.title,
        "profile": run.resolved.profile,
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "flops": run.flops,
        "device": distributed.name(machine.device_name(where)),
    }


def sizes(data: Dataset) -> dict[str, int]:
    """Return the number of images in each split."""
    return {"train": len(data.train_labels), "validation": len(data.validation_labels), "test": len(data.test_labels)}


def run_info(run: Run, data: Dataset, git: dict[str, str]) -> RunInfo:
    """Return what MLflow needs to know of the run besides its journal."""
    cfg = run.resolved.config
    return RunInfo(
        **identity(run, data.train_images.device),
        **sizes(data),
        label=run.resolved.label,
        dataset=data.name,
        dataset_digest=data.digest,
        git_commit=git["commit"],
        git_dirty=git["dirty"],
        params=config.flatten(cfg),
        description=cfg.description,
        params_count=run.params,
    )
