"""From files and flags to an ordered list of runs: teachers first, each run once. Loads no torch."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from vitlab import config, records
from vitlab.config.places import MAX_DEPTH, cut, shown
from vitlab.data.sources import Source
from vitlab.errors import UserError
from vitlab.models import cost
from vitlab.paths import EXPERIMENTS
from vitlab.train import logits_store, schedule


@dataclass(frozen=True)
class Run:
    """One experiment with one seed: its configuration, its folder, what identifies it, and the run that teaches it."""

    resolved: config.Resolved
    seed: int
    source: Source
    fingerprint: str
    folder: Path
    teacher: Run | None = None
    anew: bool = False  # in a plan with --force: what is there of it does not count

    @property
    def label(self) -> str:
        """Return `<experiment> · seed <seed>`."""
        return f"{self.resolved.label} · seed {self.seed}"

    @property
    def lock(self) -> Path:
        """Return the lock file's path.

        It is not in the folder, which --force removes, nor in the folder's parent, which a user's mistake must not leave behind empty.
        """
        experiment = self.folder.parent
        return experiment.with_name(f"{experiment.name}-{self.folder.name}.lock")

    @property
    def finished(self) -> bool:
        """Return whether the run has a record."""
        return not self.anew and (self.folder / "record.json").is_file()

    def record(self) -> records.RunRecord:
        """Return the finished run's record. Raises UserError where it is damaged or another run's."""
        path = self.folder / "record.json"
        record = records.read(path)
        if (record.fingerprint, record.seed) != (self.fingerprint, self.seed):
            other = f"{record.fingerprint}, seed {record.seed}"
            raise UserError(f"{path}: of another run ({other}), not of this folder's; restore it or train the run anew with --force")
        return record

    @property
    def params(self) -> int:
        """Return the model's number of parameters."""
        return cost.parameters(self.resolved.config.model, len(self.source.classes))

    @property
    def flops(self) -> int:
        """Return the FLOPs of one image's forward pass."""
        return cost.forward_flops(self.resolved.config.model, len(self.source.classes))

    @property
    def step_flops(self) -> int:
        """Return the FLOPs of one image's training step, the teacher's forward pass included."""
        return cost.training_flops(self.resolved.config.model, len(self.source.classes), self.teacher.flops if self.teacher else 0)

    @property
    def train_flops(self) -> float:
        """Return the FLOPs of the whole training."""
        cfg = self.resolved.config
        return float(self.step_flops) * train_images(self.source, cfg.data) * cfg.train.epochs

    @property
    def batch(self) -> int:
        """Return how many images a step has."""
        cfg = self.resolved.config
        return min(cfg.train.batch_size, train_images(self.source, cfg.data))

    @property
    def steps(self) -> int:
        """Return how many steps the training has."""
        cfg = self.resolved.config
        return cfg.train.epochs * (train_images(self.source, cfg.data) // self.batch)

    @property
    def logits_bytes(self) -> int:
        """Return the bytes of a step's logits in float16."""
        return 2 * self.batch * len(self.source.classes)

    @property
    def views(self) -> str:
        """Return 12 hex digits, the same for runs that differ in nothing that shapes the images which they see, step by step.

        A file of stored logits has them in its name, for the plan's estimate. What is read is found by the images themselves.
        """
        cfg = self.resolved.config
        ends = schedule.phase_ends(cfg.phases, self.steps, self.steps // cfg.train.epochs)
        shown = [
            (end, phase.augment.model_dump(), phase.mix and phase.mix.model_dump()) for end, phase in zip(ends, cfg.phases, strict=True)
        ]
        what = [self.seed, self.source.digest, cfg.data.model_dump(), self.batch, self.steps, shown]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def train_images(source: Source, data: config.Data) -> int:
    """Return how many images an epoch has, without reading one."""
    total = min(source.train, data.train_limit or source.train)
    return total - max(1, round(data.validation * total))


def expand(paths: list[Path]) -> list[Path]:
    """Return the experiment files: files as they are, for a folder the YAMLs in it, by name. Raises UserError for what does not exist.

    vitlab's own experiments are found from everywhere, as `01_baseline_vit`, `experiments/01_baseline_vit.yaml` or, all of them, `experiments`.
    """
    files: list[Path] = []
    for given in paths:
        path = given if os.path.exists(given) or given.parts[:1] != ("experiments",) else EXPERIMENTS.joinpath(*given.parts[1:])
        path = path if path.is_dir() else config.file_of(path, Path())
        if path.is_dir():
            found = config.files_in(path)
            if not found:
                raise UserError(f"{path}: no experiments (*.yaml) in this folder")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file; {_meant(path)}")
    return files


def _meant(path: Path) -> str:
    """Return a question for the experiments whose names begin as that of `path`, or are like it; where experiments are if there is none."""
    names = config.own_names()
    near = [name for name in names if path.stem and name.startswith(path.stem)] or difflib.get_close_matches(path.stem, names, n=1)
    if not near:
        return "experiments are in experiments/, for example experiments/01_baseline_vit.yaml"
    return f"did you mean {' or '.join(names[name] for name in near)}?"


def make(paths: list[Path], profile: str, source: Source, seeds: list[int], sets: tuple[str, ...], runs_dir: Path) -> list[Run]:
    """Return every run that `paths` x `seeds` needs, in the order they run: seed by seed, a teacher before its students, each once.

    A student with seed s learns from the teacher trained with seed s, so that a spread over seeds includes the teacher's. Both have the same
    images to train, validate and test on: `sets` that change `data` change the teacher's too. Raises UserError for a damaged experiment,
    for teachers in a circle, and for a student whose file has other settings of `data` than its teacher's.
    """
    ordered: dict[Path, Run] = {}
    root = runs_dir / f"{profile}-{source.name}"
    _check_classes(root, source)

    def add(resolved: config.Resolved, seed: int, students: tuple[Path, ...] = ()) -> Run:
        if resolved.path in students:
            names = " -> ".join(p.name for p in (*students, resolved.path))
            raise UserError(f"{shown(resolved.path)}: circular 'distill.teacher': {names}; let one of them learn from no teacher")
        if len(students) == MAX_DEPTH:
            raise UserError(
                f"{shown(students[0])}: more than {MAX_DEPTH} teachers, one of the other; let one of them learn from no teacher"
            )
        taught_by = resolved.teacher(config.load)
        teacher = add(taught_by, seed, (*students, resolved.path)) if taught_by else None
        digest = config.fingerprint(resolved.config, source.digest, teacher.fingerprint if teacher else None)
        folder = root / resolved.id / f"{digest}-s{seed}"
        return ordered.setdefault(folder, Run(resolved, seed, source, digest, folder, teacher))

    files = expand(paths)
    for seed in seeds:
        for path in files:
            add(config.load(path, profile, sets), seed)
    return list(ordered.values())


def _check_classes(root: Path, source: Source) -> None:
    """Raise UserError where the finished runs in `root` are of a data set with the same name as `source` and other classes."""
    found = next(iter(root.glob("*/*/record.json")), None)  # those of one folder all have the same classes
    if found is None:
        return
    try:
        known = records.read(found).dataset.classes
    except UserError:  # it is told where the record is wanted
        return
    if known != source.classes:
        raise UserError(
            f"{source.path or source.name}: its classes ({cut(', '.join(source.classes))}) are not those that the runs in {shown(root)} have "
            f"learned ({cut(', '.join(known))}); data sets are told apart by their folder's name, so rename the folder"
        )


def anew(runs: list[Run], forced: set[Path]) -> list[Run]:
    """Return `runs` with those whose experiment's file is in `forced` as if nothing were there of them."""
    return [replace(run, anew=run.resolved.path in forced) for run in runs]


def students_first(runs: list[Run]) -> list[Run]:
    """Return `runs` so that within each seed students and their teachers come first, then the others, each in their order.

    It is for a limited time: most claims are about distillation, and at full size the other rungs would leave no time for it.
    """
    teachers = {run.teacher.folder for run in runs if run.teacher}
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(runs, key=lambda run: (seeds.index(run.seed), run.teacher is None and run.folder not in teachers))


def flops_left(runs: list[Run], stores: bool) -> dict[Path, float]:
    """Return the FLOPs of each run's training by its folder, 0 where it is finished.

    `stores`: teachers' logits are stored on this machine. Then a teacher's forward pass is left out for as many steps as are stored, and
    altogether where an earlier one of `runs` sees the same images with the same teacher.
    """
    left: dict[Path, float] = {}
    taught: set[tuple[Path, str]] = set()
    for run in runs:
        left[run.folder] = 0.0 if run.finished else run.train_flops
        if stores and run.teacher and not run.finished:
            lesson = run.teacher.folder, run.views
            done = run.steps if lesson in taught else min(run.steps, logits_store.steps(*lesson, run.logits_bytes))
            left[run.folder] -= float(run.teacher.flops) * done * run.batch
            taught.add(lesson)
    return left


def gpus() -> int:
    """Return how many GPUs NVIDIA's driver knows of; 0 without one."""
    import pynvml  # late: most plans need none

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount()
    return 0


def measured_speed(runs_dir: Path) -> float | None:
    """Return at what FLOP/s the newest finished run trained, on which a plan's time estimate is based; None where no run is finished.

    Plans count with the whole machine: a run that had a part of its threads, since others trained beside it, counts as if it had had them all.
    """
    found = sorted(runs_dir.glob("*/*/*/record.json"), key=lambda p: p.stat().st_mtime)
    for path in reversed(found):
        try:
            record = records.read(path)
        except UserError:
            continue
        if record.perf:
            processor = records.processor(record)
            share = processor[1] / (os.cpu_count() or 1) if processor else 1.0
            return record.perf["tflops"] * 1e12 / min(1.0, share)
    return None
