"""A teacher's logits are computed once: students are the same bit for bit with a store and without, and a damaged store costs time only."""

from __future__ import annotations

import contextlib
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.world import NoShipper, Silent
from vitlab import cli, config, listing
from vitlab.data import dataset, sources
from vitlab.data.dataset import Dataset
from vitlab.models import registry
from vitlab.run import execute, pack, plan
from vitlab.track.journal import Journal, read_journal
from vitlab.train import checkpoint, logits_store, loop, machine
from vitlab.train.logits_store import DIGEST, LogitsStore
from vitlab.train.meter import Meter
from vitlab.train.objective import Distillation, RememberingTeacher

CPU = torch.device("cpu")
STEPS = 12  # of the configuration `tiny` on `tiny_data`: 9 with mixing, 3 without
SIZE = 2 * 16 * 4  # bytes of a step's logits


@pytest.fixture(autouse=True)
def any_disk_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_store, "RESERVE", 0)


class Lesson:
    """Trains students of one teacher in folders of their own, with a store or without, and counts the teacher's forward passes."""

    def __init__(self, data: Dataset, root: Path) -> None:
        self.data, self.root, self.said = data, root, []
        torch.manual_seed(1)
        self.teacher = registry.build(config.ResNet(name="resnet", depth=18, width=8), 4)
        self.teacher.register_forward_hook(self._count)
        self.forwards = 0
        (root / "teacher").mkdir()

    def _count(self, *_: object) -> None:
        self.forwards += 1

    def store(self, views: str = "views", size: int = SIZE) -> LogitsStore:
        return LogitsStore(self.root / "teacher", views, "answers", size, self.said.append)

    @property
    def file(self) -> Path:
        return self.root / "teacher" / "views-answers.logits"

    def train(
        self, cfg: config.Experiment, name: str, stored: bool = True, seed: int = 7, views: str = "views", stop_after: int | None = None
    ) -> dict[str, Any]:
        """Return the student's last checkpoint, and under "forwards" how many forward passes of the teacher that took."""
        self.forwards = 0
        torch.manual_seed(7)
        model, stop, calls = registry.build(cfg.model, 4), loop.Stop(), 0
        (self.root / name).mkdir(exist_ok=True)
        meter, journal = Meter(CPU, 1e9, 1e12, 1e8), Journal(self.root / name / "journal.jsonl")
        with self.store(views, 2 * cfg.train.batch_size * 4) as store:
            teacher: nn.Module = RememberingTeacher(self.teacher, store, meter.answered) if stored else self.teacher
            distillation = Distillation(teacher, cfg.distill.temperature, cfg.distill.weight)

            def objective(images: Tensor, heads: Tensor, targets: Tensor) -> dict[str, Tensor]:
                nonlocal calls
                calls += 1
                stop.signal = signal.SIGINT if calls == stop_after else None
                return distillation(images, heads, targets)

            try:
                loop.train(
                    cfg, self.data, model, objective,
                    seed=seed, folder=self.root / name, journal=journal, meter=meter, bar=Silent(), stop=stop, part={}, covered=lambda size: None,
                )  # fmt: skip
            except loop.Interrupted:
                pass
            finally:
                journal.close()
        state, _ = checkpoint.load(self.root / name, CPU)
        return state | {"forwards": self.forwards}


@pytest.fixture
def lesson(tiny_data: Dataset, tmp_path: Path) -> Lesson:
    return Lesson(tiny_data, tmp_path)


@pytest.fixture
def student(experiment_file: Callable[..., Path]) -> Callable[..., config.Experiment]:
    """`student("distill.weight=0.9")` is the tiny experiment as a student, with overrides."""
    path = experiment_file()
    experiment_file("title: T\nextends: tiny.yaml\n", "teacher.yaml")

    def make(*sets: str) -> config.Experiment:
        return config.load(path, "full", (f"distill={{teacher: {path.parent / 'teacher.yaml'}}}", *sets)).config

    return make


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Weights, their average, and what the optimizer has."""
    for part in ("model", "ema"):
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), f"{part} {name}"
    moments = [[v for of in x["optimizer"]["state"].values() for v in of.values()] for x in (a, b)]
    assert moments[0]
    assert all(torch.equal(x, y) for x, y in zip(*moments, strict=True))
    assert torch.equal(a["rng"][0], b["rng"][0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_is_the_same_bit_for_bit_with_a_store_and_without(precision: str, lesson: Lesson, student: Callable) -> None:
    cfg = student(f"train.precision={precision}")
    without = lesson.train(cfg, "without", stored=False)
    written = lesson.train(cfg, "written")
    read = lesson.train(cfg, "read")
    assert [x["forwards"] for x in (without, written, read)] == [STEPS, STEPS, 0]
    for other in (written, read):
        assert_same(without, other)
    assert lesson.file.stat().st_size == STEPS * (DIGEST + SIZE + 4)
    for x, share in ((without, None), (written, 0.0), (read, 100.0)):
        assert {row.get("perf/teacher_logits_read") for row in x["history"]} == {share}
    assert not lesson.said


@pytest.mark.parametrize("before", [0, STEPS], ids=["while it is written", "while it is read"])
def test_resuming_changes_no_bit(before: int, lesson: Lesson, student: Callable) -> None:
    cfg = student()
    without = lesson.train(cfg, "without", stored=False)
    if before:
        lesson.train(cfg, "first")
    first = lesson.train(cfg, "parts", stop_after=5)  # amid the second epoch
    parts = lesson.train(cfg, "parts")
    assert first["forwards"] + parts["forwards"] == STEPS - before
    assert_same(without, parts)


def test_steps_taken_again_after_a_kill_are_read(lesson: Lesson, student: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal's size is the last thing before an epoch's checkpoint: there the second epoch is lost, three steps of it stored."""
    cfg = student()
    lesson.train(cfg, "parts", stop_after=3)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", kill)
        with pytest.raises(KeyboardInterrupt):
            lesson.train(cfg, "parts")
    with lesson.file.open("ab") as f:  # and a row that the kill cut short
        f.write(b"\1" * 50)
    parts = lesson.train(cfg, "parts")
    assert parts["forwards"] == STEPS - 6
    assert_same(lesson.train(cfg, "without", stored=False), parts)


FORWARDS = {  # of the teacher, for an arm that comes after one without overrides
    ("distill.weight=0.9",): 0,
    ("distill.temperature=1",): 0,
    ("ema.start=null",): 0,
    ("model.class_attention=0",): 0,
    ("phases.0.label_smoothing=0.3",): 0,
    ("phases.1.augment.flip=true",): 3,  # the tail alone
    ("train.epochs=5", "phases.1.percent=20"): 6,  # the steps that the shorter one does not have, and those that it has in its tail
    ("phases.0.mix={mixup: 1.0}",): STEPS - 3,
    ("phases.0.augment.trivial_augment=0.5",): STEPS - 3,
}


def test_arms_share_the_steps_in_which_they_see_the_same(lesson: Lesson, student: Callable) -> None:
    """Whatever their files are called: it is by the images that logits are found."""
    lesson.train(student(), "first")
    found = {}
    for i, sets in enumerate(FORWARDS):
        found[sets] = lesson.train(student(*sets), f"arm {i}", views="other")["forwards"]
        lesson.file.with_name("other-answers.logits").unlink()
    assert found == FORWARDS


def test_another_seed_sees_other_images(lesson: Lesson, student: Callable) -> None:
    lesson.train(student(), "first")
    assert lesson.train(student(), "other", seed=8)["forwards"] == STEPS


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4 * (DIGEST + SIZE + 4) + DIGEST + 9] ^= 16  # in the fifth row's logits
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 5 * (DIGEST + SIZE + 4) - 7])


def blank(path: Path) -> None:
    """What a power cut may leave of what was not yet on the disk."""
    whole = path.read_bytes()
    path.write_bytes(whole[: 4 * (DIGEST + SIZE + 4)].ljust(len(whole), b"\0"))


@pytest.mark.parametrize("damage", [flip, cut, blank], ids=lambda f: f.__name__)
def test_a_damaged_store_is_computed_anew_with_a_word(damage: Callable[[Path], None], lesson: Lesson, student: Callable) -> None:
    whole = lesson.train(student(), "whole")
    stored = lesson.file.read_bytes()
    damage(lesson.file)
    again = lesson.train(student(), "again")
    assert lesson.said == [f"{lesson.file}: damaged, cut to its first 4 rows; the teacher computes the others anew"]
    assert again["forwards"] == STEPS - 4
    assert_same(whole, again)
    assert lesson.file.read_bytes() == stored
    assert lesson.train(student(), "then")["forwards"] == 0
    assert len(lesson.said) == 1


def test_what_is_damaged_while_it_is_open_is_not_used(lesson: Lesson) -> None:
    with lesson.store() as one, lesson.store() as other:
        for store in (one, other):
            assert store.get(b"a" * DIGEST) is None
        one.put(b"a" * DIGEST, b"x" * SIZE)
        assert one.get(b"a" * DIGEST) == b"x" * SIZE
        lesson.file.write_bytes(lesson.file.read_bytes().replace(b"x", b"y", 1))
        assert one.get(b"a" * DIGEST) is None
        lesson.file.write_bytes(b"")
        assert one.get(b"a" * DIGEST) is None
        other.put(b"b" * DIGEST, b"z" * SIZE)
        assert one.get(b"a" * DIGEST) is None


def test_what_is_appended_while_a_store_is_opened_is_kept(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    with lesson.store() as one, lesson.store() as other:
        assert one.get(b"a" * DIGEST) is None
        one.put(b"a" * DIGEST, b"x" * SIZE)
        pread = os.pread

        def append_at_the_end(*args: Any) -> bytes:
            if not (row := pread(*args)):  # all rows are read, and the file is not judged yet
                monkeypatch.undo()
                one.put(b"b" * DIGEST, b"y" * SIZE)
            return row

        monkeypatch.setattr(os, "pread", append_at_the_end)
        assert other.get(b"a" * DIGEST) == b"x" * SIZE
        assert other.get(b"b" * DIGEST) == one.get(b"b" * DIGEST) == b"y" * SIZE
    assert lesson.said == []


def test_two_processes_may_write_one_store(lesson: Lesson) -> None:
    """Each reads what the other has appended; what both computed at the same time is there twice, and the same."""
    with lesson.store() as one, lesson.store() as other:
        assert one.get(b"a" * DIGEST) is other.get(b"a" * DIGEST) is None
        one.put(b"a" * DIGEST, b"x" * SIZE)
        other.put(b"a" * DIGEST, b"x" * SIZE)
        one.put(b"b" * DIGEST, b"y" * SIZE)
        assert other.get(b"b" * DIGEST) == b"y" * SIZE
        assert other.get(b"a" * DIGEST) == one.get(b"a" * DIGEST) == b"x" * SIZE
    with lesson.store() as later:
        assert later.get(b"b" * DIGEST) == b"y" * SIZE
    assert not lesson.said


def full(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> str:
    lesson.file.symlink_to("/dev/full")
    return "No space left on device"


def nearly_full(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(logits_store, "RESERVE", 10**18)
    return "less than 1e+09 GB of the disk is free"


def refused(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> str:
    lesson.file.mkdir()
    return "Is a directory"


@pytest.mark.parametrize("trouble", [full, nearly_full, refused], ids=lambda f: f.__name__)
def test_a_store_that_cannot_be_written_stops_no_training(
    trouble: Callable[..., str], lesson: Lesson, student: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = trouble(lesson, monkeypatch)
    trained = lesson.train(student(), "trained")
    assert lesson.said == [f"{lesson.file}: the teacher's logits are stored no further ({reason}); training goes on without"]
    assert trained["forwards"] == STEPS
    assert_same(lesson.train(student(), "without", stored=False), trained)


# ------------------------------------------------------------------------------------------------- one run after another

TEACHER = """\
title: Teacher
model: {name: resnet, depth: 18, width: 8}
phases: [{name: all}]
optim: {name: sgd, lr: 0.05}
train: {epochs: 1, batch_size: 32}
data: {train_limit: 150, test_limit: 20}
"""
STUDENT = """\
title: Student
model: {name: vit, dim: 16, depth: 2, heads: 2, patch_size: 8, distill_token: true}
phases: [{name: all, augment: {crop: 2}}, {name: clean, percent: 50}]
optim: {name: adamw, lr: 3e-3}
train: {epochs: 2, batch_size: 32}
data: {train_limit: 150, test_limit: 20}
distill: {teacher: teacher.yaml}
"""


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., list[plan.Run]]:
    """`planned("distill.weight=0.9", seed=1)`: a teacher and its student."""
    for name, text in (("teacher", TEACHER), ("student", STUDENT)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    source = sources.resolve("digits", tmp_path, "full")

    def make(*sets: str, seed: int = 0) -> list[plan.Run]:
        return plan.make([tmp_path / "student.yaml"], "full", source, [seed], sets, tmp_path / "runs")

    return make


@pytest.mark.parametrize(
    "same",
    ["distill.weight=0.9", "distill.temperature=1", "optim.lr=1e-4", "model.depth=3", "ema={end: 0.9}", "phases.0.label_smoothing=0.1"],
)
def test_the_plan_knows_which_arms_see_the_same(same: str, planned: Callable) -> None:
    (_, one), (_, two) = planned(), planned(same)
    assert one.views == two.views
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize(
    "other",
    ["seed", "train.batch_size=16", "train.epochs=3", "data.train_limit=140", "data.validation=0.2", "phases.0.augment.crop=4",
     "phases.1.augment.erase=0.5", "phases.1.mix={mixup: 1.0}", "phases.1.percent=40"],
)  # fmt: skip
def test_the_plan_knows_which_arms_see_other_images(other: str, planned: Callable) -> None:
    (_, one), (_, two) = planned(), planned(seed=1) if other == "seed" else planned(other)
    assert one.views != two.views


def test_what_decides_a_teachers_answers_is_in_the_files_name(planned: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights, by what it says of the validation images; precision; threads; PyTorch's version; the batch."""
    _, run = planned()
    journal = Journal(tmp_path / "journal.jsonl")
    logits = torch.randn(1, 8, 10)
    names = [execute.teacher_store(run, logits, journal).path.name for _ in range(2)]
    assert names[0] == names[1]
    names.append(execute.teacher_store(run, logits.nextafter(torch.tensor(9.0)), journal).path.name)
    names.append(execute.teacher_store(planned("train.batch_size=16")[1], logits, journal).path.name)
    bf16 = machine.hardware_bf16(CPU)
    for module, name, value in (
        (machine, "hardware_bf16", lambda _: not bf16),
        (torch, "get_num_threads", lambda: 99),
        (torch, "__version__", "0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            names.append(execute.teacher_store(run, logits, journal).path.name)
    assert len({name.partition("-")[2] for name in names}) == len(names) - 1
    journal.close()


def test_a_second_arm_costs_no_forward_and_says_so(
    planned: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the plan to the records, the listing and the archive."""
    monkeypatch.setattr(machine, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(listing, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(execute, "Shipper", NoShipper)
    monkeypatch.setattr("vitlab.figures.run.run_figures", lambda *_: None)
    (teacher, one), (_, two), (_, tail) = planned(), planned("distill.weight=0.9"), planned("phases.1.augment.erase=0.5")
    images = one.batch * one.steps
    assert (one.batch, one.steps, images) == (32, 8, 256)
    nominal, spared = {r.folder: r.train_flops for r in (teacher, one, two, tail)}, float(teacher.flops) * images

    assert plan.flops_left([teacher, one, two, tail], stores=False) == nominal
    assert plan.flops_left([teacher, one, two, tail], stores=True) == nominal | {two.folder: nominal[two.folder] - spared}
    assert plan.flops_left([two, one], stores=True)[two.folder] == nominal[two.folder]  # now it is the first

    loaded = dataset.load(one.source, one.resolved.config.data, "cpu")
    found = {}
    for run in (teacher, one):
        found[run.folder] = execute.execute(run, loaded, lambda n: Silent(), loop.Stop(), lambda text: None, contextlib.ExitStack())
    left = plan.flops_left([two, tail, teacher, one], stores=True)
    assert left == {two.folder: nominal[two.folder] - spared, tail.folder: nominal[tail.folder], teacher.folder: 0.0, one.folder: 0.0}

    (stored,) = teacher.folder.glob("*.logits")
    stored.write_bytes(stored.read_bytes()[:-1])
    for run in (two, tail):
        found[run.folder] = execute.execute(run, loaded, lambda n: Silent(), loop.Stop(), lambda text: None, contextlib.ExitStack())
    assert "teacher_logits_read" not in found[teacher.folder].perf
    assert [found[run.folder].perf["teacher_logits_read"] for run in (one, two, tail)] == [0.0, 87.5, 50.0]
    told = {
        run.folder: [e["text"] for _, e in read_journal(run.folder / "journal.jsonl") if e["kind"] == "event"] for run in (one, two, tail)
    }
    assert [any("damaged" in text for text in lines) for lines in told.values()] == [False, True, False]
    for run, share in ((one, 0.0), (two, 0.875), (tail, 0.5)):  # the speed is of what was computed, the cost that of the recipe
        record = found[run.folder]
        assert record.perf["train_gflops_per_image"] == run.step_flops / 1e9
        computed = [
            row["perf/img_s"] * (run.step_flops - row["perf/teacher_logits_read"] / 100 * teacher.flops) / 1e12 for row in record.history
        ]
        assert [row["perf/tflops"] for row in record.history] == pytest.approx(computed)
        assert record.perf["tflops"] == pytest.approx(sum(computed) / 2)
        assert sum(row["perf/teacher_logits_read"] for row in record.history) / 2 == 100 * share

    size = sum(path.stat().st_size for path in teacher.folder.glob("*.logits"))
    assert size == (8 + 4) * (DIGEST + one.logits_bytes + 4)
    (archive,) = pack.pack(tmp_path / "runs", tmp_path / "runs", tmp_path / "packed", lambda text: None)
    with tarfile.open(archive) as tar:
        assert {Path(name).suffix for name in tar.getnames()} >= {".json", ".safetensors"}
        assert not any(name.endswith(".logits") for name in tar.getnames())
    assert f"{size / 1e6:.1f}" in _vitlab(capsys, "runs").splitlines()[-1]
    assert _vitlab(capsys, "runs", "--clear-logits") == f"deleted {size / 1e6:.1f} MB of teachers' logits\n"
    assert not list(tmp_path.rglob("*.logits"))
    assert plan.flops_left([teacher, one, tail], stores=True)[tail.folder] == 0.0  # finished
    assert plan.flops_left(planned("distill.weight=0.1"), stores=True)[planned("distill.weight=0.1")[1].folder] == nominal[two.folder]


def _vitlab(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as e:
        cli.main(list(argv))
    assert e.value.code == 0
    return capsys.readouterr().out
