"""Runs side by side: in what order, how many, and to the bit what each is alone; stopped, killed and failing ones."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.support.cli import run
from tests.support.processes import FILES, LONG, finish, results, start, training, until, write_experiments
from tests.support.records import fake_record
from tests.support.world import World
from vitlab import cli, config, records, terminal
from vitlab.data import sources
from vitlab.paths import REPOSITORY
from vitlab.run import drive, jobs, plan
from vitlab.train import checkpoint

# ------------------------------------------------------------------------------------------------------ order and number


@dataclass
class Work:
    """As much of a plan's run as its order needs: one step an epoch, so that work() is what a test says."""

    folder: str
    train_flops: float
    teacher: Work | None = None
    step_flops: float = 1.0
    resolved: object = replace(config.load(REPOSITORY / "experiments" / "01_baseline_vit.yaml"))


@pytest.fixture
def plain_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that threads share evenly."""
    monkeypatch.setattr(jobs, "work", lambda run, threads: run.train_flops / threads)


@pytest.mark.usefixtures("plain_work")
def test_the_longest_line_of_students_begins_first_and_never_before_its_teacher() -> None:
    alone, teacher = Work("alone", 5), Work("teacher", 2)
    student = Work("student", 4, teacher)
    runs = jobs.by_path([alone, teacher, student])
    assert [run.folder for run in runs] == ["teacher", "alone", "student"]
    assert jobs.ready(runs, []) is teacher
    assert jobs.ready([alone, student], [teacher]) is alone
    assert jobs.ready([student], [teacher]) is None, "its teacher is still in training"
    assert jobs.ready([student], []) is student


@pytest.mark.usefixtures("plain_work")
def test_when_the_last_is_finished() -> None:
    """By hand. One thread each: teacher 0-2, then student 2-6; alone 0-5 beside them. One at a time with both threads: (2 + 4 + 5) / 2."""
    teacher = Work("teacher", 2)
    runs = [Work("alone", 5), teacher, Work("student", 4, teacher)]
    assert jobs.makespan(runs, 2, 2) == 6
    assert jobs.makespan(runs, 1, 2) == 5.5
    assert jobs.best(runs, 2) == 1, "where threads share evenly, nothing is gained side by side"


@pytest.mark.usefixtures("plain_work")
def test_a_schedule_by_hand() -> None:
    """On one: teacher 0-2, alone 2-7, student 7-11, since most waits for the teacher, then 5 is more than 4. On two, alone is beside them."""
    teacher = Work("teacher", 2)
    alone, student = Work("alone", 5), Work("student", 4, teacher)
    runs = [alone, teacher, student]

    def times(slots: int) -> list[tuple[str, float, float]]:
        return [(run.folder, begin, end) for run, begin, end in jobs.schedule(runs, slots, lambda run: run.train_flops)]

    assert times(1) == [("teacher", 0, 2), ("alone", 2, 7), ("student", 7, 11)]
    assert times(2) == times(64) == [("teacher", 0, 2), ("alone", 0, 5), ("student", 2, 6)]
    assert jobs.critical_path(runs, lambda run: run.train_flops) == [teacher, student]
    assert jobs.critical_path([*runs, Work("long", 7)], lambda run: run.train_flops)[0].folder == "long"
    assert jobs.critical_path([alone, student], lambda run: run.train_flops) == [alone], "the student's teacher is finished"


def test_the_schedule_that_is_printed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Three seeds of a run that takes half an hour, by hand: on two GPUs an hour, on more half of one; 1.5 GPU hours of 2.0, and of 3 x 0.5."""
    source = sources.resolve("digits", Path("data"), "full", download=False)
    runs = plan.make([world.root / "other.yaml"], "full", source, [0, 1, 2], (), world.root / "elsewhere")
    speed = runs[0].train_flops / 1800
    for gpus, first in (
        (
            2,
            "2 GPUs, one run on each: finished after about 1:00:00, by the speed of the last finished run here; 1.5 GPU hours, 75% of the 2.0",
        ),
        (
            None,
            "3 GPUs, one run on each: finished after about 30:00, by the speed of the last finished run here; 1.5 GPU hours, 100% of the 1.5",
        ),
    ):
        terminal.print_schedule(terminal.console(), runs, gpus, speed)
        printed = capsys.readouterr().out
        assert printed.startswith(f"{first} until then\n")
        assert printed.endswith("critical path: other · seed 0 (30:00): 30:00, however many GPUs there are\n")


@pytest.mark.parametrize("engine", ["ray"])
def test_a_dry_run_prints_the_schedule_and_needs_no_engine(engine: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.patch.setitem(sys.modules, "ray", None)
    code, out, _ = run(capsys, *world.train("taught"), "--engine", engine, "--gpus", "64", "--dry-run", "--force")
    assert code == 0
    assert "64 GPUs, one run on each: finished after about" in out
    code, _, err = run(capsys, *world.train("taught"), "--engine", engine, "--gpus", "64")
    assert (code, err.partition(":")[2].startswith(" --gpus: how many GPUs the schedule of --dry-run is for")) == (2, True)


def test_small_runs_go_side_by_side_and_large_ones_do_not() -> None:
    """What was measured on two cores: 1.32 times the work at the size of `quick`, none more at 51 GFLOP a step."""
    ladder = REPOSITORY / "experiments"
    source = sources.resolve("digits", Path("data"), "quick", download=False)
    assert jobs.best(plan.make([ladder], "quick", source, [0], (), Path("runs")), 2) == 2
    assert jobs.best(plan.make([ladder / "01_baseline_vit.yaml"], "quick", source, [0], (), Path("runs")), 2) == 1
    big = [replace(run, source=replace(run.source, train=50_000)) for run in plan.make([ladder], "full", source, [0], (), Path("runs"))]
    assert jobs.best(big, 2) == 1
    assert jobs.best([], 2) == 1


def test_an_estimate_counts_on_runs_side_by_side_only_where_they_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU runs go one after the other unless --jobs says otherwise."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    source = sources.resolve("digits", Path("data"), "quick", download=False)
    runs = plan.make([REPOSITORY / "experiments"], "quick", source, [0], (), tmp_path)
    for gpus, chosen in ((0, True), (1, False)):
        monkeypatch.setattr(plan, "gpus", lambda gpus=gpus: gpus)
        assert terminal.hours(runs, None, 1e11)[0].endswith(" with --jobs 2") == chosen
        assert terminal.hours(runs, 2, 1e11)[0].endswith(" with --jobs 2")


@pytest.mark.parametrize(
    ("device", "threads", "tflops"),
    [
        ("A Processor, 8 cores", 2, 2.0),
        ("A Processor, 8 cores, 2 processes", 1, 2.0),
        ("A Processor, 8 cores", 8, 0.5),
        ("NVIDIA H100 80GB HBM3", 2, 0.5),
    ],
    ids=["beside three others", "two processes", "alone", "GPU"],
)
def test_a_plan_counts_with_the_whole_machine(
    device: str, threads: int, tflops: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that had two of eight threads says what two of them do."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert plan.measured_speed(tmp_path) is None
    folder = tmp_path / "quick-digits" / "plain" / "0123456789ab-s0"
    folder.mkdir(parents=True)
    records.write(fake_record("01_baseline_vit", 0, device=device, threads=threads, perf={"tflops": 0.5}), folder / "record.json")
    assert plan.measured_speed(tmp_path) == pytest.approx(tflops * 1e12)


CLAIM = """\
confidence: 0.95
first_seed: 10
stages: [{seeds: 2, alpha: 0.05}]
claims:
  - id: taught-is-better
    statement: Taught is better than other.
    source: a test
    brief: teaching gives
    primary: true
    expected: 2
    sd: 1
    arms: [{experiment: other}, {experiment: taught}]
    metric: test_top1
    at_least: 0
"""


def test_where_time_may_not_suffice_runs_begin_in_the_plans_order(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Or the first hours of a claim's runs go to teachers. `other` is more work than `taught`; tiny, its teacher, has both to come."""
    begun: list[str] = []
    world.patch.setattr(
        drive, "by_engine", lambda tasks, *_: begun.extend(task.run.label.replace(" · seed ", "") for task in tasks) or iter(())
    )
    shutil.rmtree(world.root / "runs")

    def order(*words: object) -> str:
        begun.clear()
        code, _, err = run(capsys, *words, "--profile", "full", "--data", "digits", "--jobs", "2", main=cli.main)
        assert code == 0, err
        return " ".join(begun)

    experiments = world.root / "other.yaml", world.root / "taught.yaml"
    assert order("run", *experiments) == "tiny0 other0 taught0"
    assert order("run", *experiments, "--budget", "9m") == "tiny0 taught0 other0"
    claims = world.write("claims.yaml", CLAIM)
    assert order("claims", claims, "--run") == "other10 tiny10 taught10 other11 tiny11 taught11"


# ---------------------------------------------------------------------------------------------------------- real processes


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    return write_experiments(tmp_path / "experiments")


@pytest.mark.slow
def test_side_by_side_each_is_what_it_is_alone(tmp_path: Path, experiments: Path) -> None:
    code, out = finish(start(tmp_path / "alone", experiments, "--jobs", "1"))
    assert code == 0, out
    code, out = finish(start(tmp_path / "beside", experiments, "--jobs", "2"))
    assert code == 0, out
    assert "2 runs side by side, each with 1 of 1 threads" in out
    alone = results(tmp_path / "alone")
    assert len(alone) == 6
    assert results(tmp_path / "beside") == alone
    for path in (tmp_path / "alone").glob("runs/*/*/*/record.json"):
        one, other = records.read(path), records.read(tmp_path / "beside" / path.relative_to(tmp_path / "alone"))
        assert (one.metrics, one.threads, one.fingerprint) == (other.metrics, other.threads, other.fingerprint)
        assert [row["train/loss"] for row in one.history] == [row["train/loss"] for row in other.history]
    code, out = finish(start(tmp_path / "beside", experiments, "--jobs", "2"))
    assert (code, out.count("finished before, skipped")) == (0, 3)


@pytest.mark.slow
def test_stopped_and_killed_ones_go_on_to_the_same_bits(tmp_path: Path, experiments: Path) -> None:
    """SIGTERM to the command alone; then a kill of the command alone, whose runs save themselves; then to its end."""
    for name in FILES:
        path = experiments / name
        path.write_text(path.read_text().replace("train: {epochs: 1, batch_size: 32}\n", LONG))
    reference = start(tmp_path / "alone", experiments, "--jobs", "1")
    root = tmp_path / "beside"
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = start(root, experiments, "--jobs", "2")
        until(lambda: training(root, "tiny") and training(root, "other"))
        process.send_signal(number)
        code, out = finish(process)
        assert code == (128 + signal.SIGTERM if number == signal.SIGTERM else -signal.SIGKILL), out
        if number == signal.SIGTERM:
            assert "stopped: all that is done is saved, the last of it in" in out
        until(lambda: not list(root.glob("runs/*/*.lock")))
        for folder in root.glob("runs/*/*/*/"):
            state, damaged = checkpoint.load(folder, torch.device("cpu"))
            assert state is not None or (folder / "record.json").is_file()
            assert damaged == []
    code, out = finish(start(root, experiments, "--jobs", "2"))
    assert code == 0, out
    assert finish(reference)[0] == 0
    assert results(root) == results(tmp_path / "alone")


KILLED = """
import os, signal
from vitlab.run import execute
real = execute.execute
def execute_(run, *args):
    if run.resolved.id == "other":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(run, *args)
execute.execute = execute_
"""
STOPPED = KILLED.replace("SIGKILL", "SIGTERM")
DIVERGED = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "raise execute.loop.Diverged('the loss is no longer finite')")
MISTAKEN = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "raise execute.UserError('here: this; do that')")
BROKEN = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "raise ZeroDivisionError")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "code", "expected", "traceback"),
    [
        (KILLED, 1, "failed other · seed 0: its process was killed by SIGKILL; if memory ran out, try fewer --jobs", False),
        (STOPPED, 1, "failed other · seed 0: its process alone was asked to stop, by a signal. The same command goes on", False),
        (DIVERGED, 1, "failed other · seed 0: the loss is no longer finite", False),
        (MISTAKEN, 2, "error: here: this; do that", False),
        (BROKEN, 1, "In the process of", True),
    ],
    ids=["killed", "stopped", "diverged", "a mistake", "a bug"],
)
def test_one_that_fails_stops_the_others_and_a_killed_ones_command_goes_on(
    patch: str, code: int, expected: str, traceback: bool, tmp_path: Path, experiments: Path
) -> None:
    ended, out = finish(start(tmp_path / "world", experiments, "--jobs", "3", patch=patch))
    assert ended == code, out
    assert expected in out
    assert ("Traceback" in out) == traceback
    if patch == KILLED:  # which leaves the most behind; going on is the same for all
        code, out = finish(start(tmp_path / "world", experiments, "--jobs", "3"))
        assert code == 0, out
        assert len(results(tmp_path / "world")) == 6
