"""The commands as a user meets them: exit codes, messages, the whole ladder end to end, Ctrl-C and going on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pynvml
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from tests.support.cli import run
from tests.support.disk import no_file_above
from vitlab import cli, config, records
from vitlab.paths import EXPERIMENTS, REPOSITORY
from vitlab.report import words
from vitlab.run import execute, progress, signals, task
from vitlab.track import read, shipping
from vitlab.train import checkpoint, evaluate, loop
from vitlab.train.objective import CrossEntropy

pytestmark = pytest.mark.slow

LADDER = {
    "01_baseline_vit", "02_regularized_vit", "03_hybrid_r18", "04_explicit_transformer", "05_kd_r18", "06_kd_r50_class_attention",
    "07_conv_stem_kd", "resnet18", "resnet50",
}  # fmt: skip


@pytest.mark.parametrize(
    ("gpus", "cuda", "profile"), [(None, None, "quick"), (0, None, "quick"), (1, False, "quick"), (1, True, "full")], ids=str
)
def test_the_profile_that_is_chosen(
    gpus: int | None, cuda: bool | None, profile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the GPUs that NVIDIA's driver knows of, where there is one, and by what torch says of CUDA, asked only then."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None if gpus is not None else pynvml.nvmlDeviceGetCount())
    missing = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: raising(missing) if gpus is None else gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("torch was asked") if cuda is None else cuda)
    code, out, _ = run(capsys, EXPERIMENTS / "01_baseline_vit.yaml", "--data", "digits", "--dry-run")
    assert code == 0
    assert f"profile {profile} " in out


def raising(e: Exception) -> None:
    raise e


# -------------------------------------------------------------------------------------------------- the user's mistakes


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("nothing.yaml",), "nothing.yaml: no such file"),
        ((EXPERIMENTS / "01_baseline_vit.yaml", "--set", "train.epoch=3"), "train.epoch: unknown key, did you mean 'epochs'?"),
        ((EXPERIMENTS / "01_baseline_vit.yaml", "--data", "/nowhere"), "no such folder"),
        ((EXPERIMENTS / "01_baseline_vit.yaml", "--seeds", "one"), "expected whole numbers"),
        ((EXPERIMENTS / "01_baseline_vit.yaml", "--budget", "25"), "expected a time with its unit"),
        ((EXPERIMENTS / "01_baseline_vit.yaml", "--budget", "0m"), "expected a time with its unit"),
        ((EXPERIMENTS / "01_baseline_vit.yaml", "--profile", "huge"), "invalid choice"),
    ],
)
def test_mistakes_exit_2_with_one_message(argv: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *argv, *(("--data", "digits") if "--data" not in argv else ()), "--dry-run")
    assert code == 2
    assert expected in err
    assert "Traceback" not in err


def test_an_empty_folder_has_no_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, tmp_path, "--data", "digits", "--dry-run")
    assert code == 2
    assert "no experiments" in err


def test_schema_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run(capsys, "schema", tmp_path / "s.json", main=cli.main)
    assert code == 0
    assert json.loads((tmp_path / "s.json").read_text()) == config.json_schema()


# ---------------------------------------------------------------------------------------------- the ladder, end to end


def test_the_quick_ladder_end_to_end(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (EXPERIMENTS, "--profile", "quick", "--data", "digits")
    code, out, err = run(capsys, *argv)
    assert code == 0, err
    assert "digits" in out.splitlines()[0]

    found = {p.parent.parent.name: records.read(p) for p in (small_world / "runs").glob("*/*/*/record.json")}
    assert found.keys() == LADDER
    for record in found.values():
        assert record.history[-1]["epoch"] == len(record.history) == record.config["train"]["epochs"]
        assert sum(map(sum, record.confusion)) == record.dataset.test == 359
        assert record.threads == torch.get_num_threads()
        assert record.metrics["test_top1"] == pytest.approx(100 * sum(record.confusion[i][i] for i in range(10)) / 359)
    student = found["06_kd_r50_class_attention"]
    assert student.teacher.fingerprint == found["resnet50"].fingerprint
    assert student.teacher.gain == pytest.approx(student.metrics["test_top1"] - found["resnet50"].metrics["test_top1"])
    assert {"test_cls_top1", "test_dist_top1", "test_raw_top1", "test_ema_top1"} <= student.metrics.keys()
    assert {"test_confidence", "test_confidence_above_90"} <= student.metrics.keys()
    assert not [key for record in found.values() for key in record.metrics if "phase" in key]  # so short that the clean tail has no step

    # MLflow: a finished child for each, under a parent, with the record's numbers
    runs = read.finished_runs(small_world)
    assert {r.tags["vitlab.experiment"] for r in runs} == LADDER
    assert len(runs) == len(LADDER)
    client = MlflowClient(tracking_uri=shipping.tracking_uri(small_world))
    where = f"http://127.0.0.1:5000/#/experiments/{client.get_experiment_by_name('vitlab').experiment_id}/runs"
    assert out.splitlines()[-1] == f"compare runs: make ui, then {where}?workflowType=machine_learning&viewStateShareKey=runs:quick-digits"
    for r in runs:
        metrics = client.get_run(r.run_id).data.metrics
        assert metrics["final/test_top1"] == pytest.approx(found[r.tags["vitlab.experiment"]].metrics["test_top1"])
        assert client.get_run(r.parent_id).info.status == "FINISHED"

    # a second time nothing is trained
    stamps = {p: p.stat().st_mtime_ns for p in (small_world / "runs").rglob("*.json*")}
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert out.count("finished before, skipped") == len(LADDER)
    assert {p: p.stat().st_mtime_ns for p in (small_world / "runs").rglob("*.json*")} == stamps
    code, out, _ = run(capsys, *argv, "--dry-run")
    assert out.count("finished") == len(LADDER) + 1  # and the basis of the estimate

    # the report, the list, and a prediction
    code, out, _ = run(capsys, "report", main=cli.main)
    assert code == 0
    assert out.splitlines()[-1].startswith(f"the report is in {os.path.relpath(small_world / 'reports')}; ")
    html = (small_world / "reports" / "quick-digits" / "report.html").read_text(encoding="utf-8")
    assert f"{student.metrics['test_top1']:.2f}" in html
    assert len(list((small_world / "reports" / "quick-digits" / "records").glob("*.json"))) == len(LADDER)
    assert not (small_world / "results").exists()
    code, out, _ = run(capsys, "runs", main=cli.main)
    assert out.count("finished") >= len(LADDER)
    Image.new("RGB", (40, 40), "white").save(small_world / "white.png")
    code, out, _ = run(capsys, "predict", small_world / "white.png", "--data", "digits", main=cli.main)
    assert code == 0
    assert "%" in out.splitlines()[1]
    code, _, err = run(capsys, "predict", small_world / "white.png", main=cli.main)
    assert (code, "--data digits" in err) == (2, True), "digits answer only where they are asked"
    (small_world / "no.png").write_text("not an image")
    code, _, err = run(capsys, "predict", small_world / "no.png", "--data", "digits", main=cli.main)
    assert code == 2
    assert "no.png" in err


ONE = (EXPERIMENTS / "01_baseline_vit.yaml", "--profile", "quick", "--data", "digits", "--set", "train.epochs=2")


def test_numbers_gone_wrong_fail_the_run_and_the_same_command_goes_on(
    small_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoned(CrossEntropy):
        calls = 0

        def __call__(self, *args: torch.Tensor) -> dict[str, torch.Tensor]:
            self.calls += 1
            return {k: v * float("nan") for k, v in super().__call__(*args).items()} if self.calls == 5 else super().__call__(*args)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "CrossEntropy", Poisoned)
        code, out, _ = run(capsys, *ONE)
    assert code == 1
    for part in ("failed", "between steps", "loss nan", "last good checkpoint is kept", "Try a lower optim.lr"):
        assert part in out
    [(run_id, status)] = seed_runs(small_world)
    assert status == "FAILED"
    code, out, _ = run(capsys, *ONE)
    assert (code, "epoch 1/2" in out, "epoch 2/2" in out) == (0, False, True)
    assert seed_runs(small_world) == [(run_id, "FINISHED")]


def test_a_full_disk_exits_1_and_the_same_command_goes_on_to_the_same_bits(
    small_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full when the second checkpoint is written; then, anew, when the predictions are."""
    save, write, saves = checkpoint.save, evaluate.write_predictions, 0

    def full_at_the_second(folder: Path, state: dict) -> None:
        nonlocal saves
        saves += 1
        with no_file_above(50_000) if saves == 2 else contextlib.nullcontext():
            save(folder, state)

    def full(*args: object) -> None:
        with no_file_above(5_000):
            write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full_at_the_second)
        code, out, err = run(capsys, *ONE)
        assert (code, "epoch 2/2" in out) == (1, True)
        assert "checkpoint.pt: cannot be written (File too large" in err
        assert seed_runs(small_world)[0][1] == "KILLED"
        patch.setattr(evaluate, "write_predictions", full)
        code, out, err = run(capsys, *ONE)
        assert (code, "epoch 1/2" in out, "epoch 2/2" in out) == (1, False, True)
        assert "predictions.npz: cannot be written (File too large" in err
    assert run(capsys, *ONE)[0] == 0
    assert [status for _, status in seed_runs(small_world)] == ["FINISHED"]
    (path,) = (small_world / "runs").glob("*/*/*/predictions.npz")
    resumed = path.read_bytes()
    assert run(capsys, *ONE, "--force")[0] == 0
    assert path.read_bytes() == resumed


def test_a_spent_budget_saves_exits_0_and_the_same_command_goes_on_to_the_same_bits(
    small_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is up amid the first epoch."""
    asked, step, steps = loop.Stop.asked, loop.Step.__call__, 0

    def counted(self: loop.Step, *args: object) -> None:
        nonlocal steps
        steps += 1
        step(self, *args)

    def up_after_the_second(stop: loop.Stop) -> int | None:
        if steps == 2:
            stop.deadline = 0.0
        return asked(stop)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Step, "__call__", counted)
        patch.setattr(loop.Stop, "asked", up_after_the_second)
        patch.setattr(execute, "git_state", lambda: {"commit": "abc", "dirty": ""})
        code, out, _ = run(capsys, *ONE, "--budget", "1h")
    assert code == 0
    assert "budget 1:00:00" in out.splitlines()[0]
    assert out.splitlines()[-1].startswith("the budget is spent: all that is done is saved, the last of it in")
    [(run_id, status)] = seed_runs(small_world)
    assert status == "KILLED"
    (saved,) = (small_world / "runs").glob("*/*/*/checkpoint.pt")
    assert checkpoint.load(saved.parent, torch.device("cpu"))[0]["step"] == 2
    assert run(capsys, *ONE, "--budget", "1h")[0] == 0
    assert seed_runs(small_world) == [(run_id, "FINISHED")]
    resumed = (saved.parent / "predictions.npz").read_bytes()
    record = records.read(saved.parent / "record.json")
    assert [part.git["commit"] for part in record.parts] == ["abc", record.git["commit"]], "the code that began it is not forgotten"
    assert words.commit(record, 7).startswith(f"abc, then {record.git['commit'][:7]}")
    assert words.device(record) == f"{record.device}, {words.threads({record.threads})}"
    assert run(capsys, *ONE, "--force")[0] == 0
    assert (saved.parent / "predictions.npz").read_bytes() == resumed
    assert records.read(saved.parent / "record.json").parts == ()


def test_a_budget_spent_before_a_run_leaves_it_alone(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *ONE, "--budget", "0.001s")
    assert (code, out.splitlines()[-1]) == (0, "the budget is spent: 0 of 1 runs are finished; the same command goes on from there")
    assert not list((small_world / "runs").glob("*/*/*"))
    assert run(capsys, *ONE)[0] == 0
    assert "1 of 2 runs are finished" in run(capsys, *ONE, "--seeds", "1,0", "--budget", "0.001s")[1]  # whichever comes first
    code, out, _ = run(capsys, *ONE, "--force", "--budget", "0.001s", "--jobs", "1")
    kept = "keeps the earlier results of 1 that were to be trained anew; with it, it begins anew"
    assert (code, out.splitlines()[-1]) == (
        0, f"the budget is spent: 0 of 1 runs are finished; the same command without --force goes on from there, and {kept}"
    )  # fmt: skip


def test_a_signal_after_the_budget_stops_at_once_and_nobody_waits_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []
    monkeypatch.setattr(signals, "stop_at_once", lambda number, frame: stopped.append(number))
    spent = loop.Stop(deadline=0.0)
    signals.stop_after_step(spent)(signal.SIGINT, None)
    assert (stopped, spent.asked()) == ([signal.SIGINT], signal.SIGALRM)
    with pytest.raises(loop.Interrupted):
        task.waiting(print, spent)("process 1")


@pytest.mark.parametrize(("text", "seconds"), [("3600s", 3600), ("90m", 5400), ("2h", 7200), ("0.5h", 1800)])
def test_a_budget_has_a_unit(text: str, seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert f" · budget {progress.clock(seconds)}\n" in run(capsys, *ONE, "--budget", text, "--dry-run")[1]


def test_a_budget_puts_students_and_their_teachers_first(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (EXPERIMENTS, "--profile", "quick", "--data", "digits", "--dry-run")
    rows = [line.split() for line in run(capsys, *argv, "--budget", "25m")[1].splitlines()[2:-1]]
    first = ["resnet18", "05_kd_r18", "resnet50", "06_kd_r50_class_attention", "07_conv_stem_kd", "01_baseline_vit"]
    assert [row[1] for row in rows[:6]] == first
    rows = [line.split() for line in run(capsys, *argv)[1].splitlines()[2:-1]]
    assert rows[0][1] == "01_baseline_vit"


def test_a_full_disk_while_results_are_compiled(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *ONE[:-2])[0] == 0
    with no_file_above(20_000):
        code, _, err = run(capsys, "report", main=cli.main)
    assert (code, "cannot be written (File too large" in err) == (1, True), err
    assert run(capsys, "report", main=cli.main)[0] == 0


def test_force_trains_anew(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (EXPERIMENTS / "01_baseline_vit.yaml", "--profile", "quick", "--data", "digits", "--set", "train.epochs=1")
    assert run(capsys, *argv)[0] == 0
    (path,) = (small_world / "runs").glob("*/*/*/predictions.npz")
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert run(capsys, *argv, "--force")[0] == 0
    assert path.stat().st_mtime_ns != stamp
    assert path.read_bytes() == before, "the same seed gives the same bits"


SMALL = (
    EXPERIMENTS / "01_baseline_vit.yaml",
    "--profile",
    "quick",
    "--data",
    "digits",
    "--set",
    "train.epochs=3",
    "--set",
    "data.train_limit=150",
)


def start(root: Path, patch: str = "") -> subprocess.Popen[str]:
    """The runner in a process of its own, in which `patch` is done first."""
    env = os.environ | {"VITLAB_ROOT": str(root), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"from vitlab import cli\n{patch}\ncli.run_main()", *SMALL]
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Its output up to the line that has `text` in it; all of it where none has."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            break
    return "".join(lines)


def seed_runs(root: Path) -> list[tuple[str, str]]:
    """(id, status) of the seeds' runs in MLflow."""
    client = MlflowClient(tracking_uri=shipping.tracking_uri(root))
    experiment_id = client.get_experiment_by_name("vitlab").experiment_id
    return [(run.info.run_id, run.info.status) for run in client.search_runs([experiment_id], "tags.`vitlab.kind` = 'seed'")]


BARE = """
import sys
class Missing:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_what_full_size_needs_installed_suffices_for_a_run(tmp_path: Path) -> None:
    """Of vitlab's dependencies those that docs/full-size.md does not name are missing, but for what comes with those that it does."""
    page = (REPOSITORY / "docs" / "full-size.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"needs PyTorch \S+ with (.*?)\. Without MLflow", page, flags=re.DOTALL)
    named = {"torch", *re.split(r", | and |,\s|\s", named.lower()), "jinja2", "pandas", "scipy"}  # of torch, seaborn, scikit-learn
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = {re.split("[><=]", line)[0] for line in project["dependencies"]} - named
    assert missing == {"mlflow", "shtab"}
    process = start(tmp_path, BARE.format(missing=missing))
    out, _ = process.communicate()
    assert process.returncode == 0, out
    (path,) = tmp_path.glob("runs/*/*/*/record.json")
    assert records.read(path).metrics["test_top1"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, "from vitlab.run import signals; signals.SAME_SIGNAL = 60")
    out = read_until(process, "epoch 1/3")
    process.send_signal(number)
    out += read_until(process, "stopping")
    process.send_signal(number)  # the same once more: `make` passes on what a scheduler has sent to all
    rest, _ = process.communicate()
    assert process.returncode == 128 + number, out + rest
    assert "goes on from there" in rest.splitlines()[-1]
    assert not list(tmp_path.glob("runs/*/*/*/record.json"))
    [(run_id, status)] = seed_runs(tmp_path)
    assert status == "KILLED"
    process = start(tmp_path)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "epoch 1/3" not in out
    assert "epoch 3/3" in out
    (path,) = tmp_path.glob("runs/*/*/*/record.json")
    assert [row["epoch"] for row in records.read(path).history] == [1, 2, 3]
    assert records.read(path).threads == 1
    assert seed_runs(tmp_path) == [(run_id, "FINISHED")]


def test_a_second_signal_stops_at_once_and_loses_no_checkpoint(tmp_path: Path) -> None:
    process = start(
        tmp_path, "from vitlab.run import execute; import time; execute.finish = lambda *_: print('finishing') or time.sleep(600)"
    )
    out = read_until(process, "finishing")
    process.send_signal(signal.SIGTERM)  # amid what follows the last epoch
    out += read_until(process, "stopping")
    time.sleep(signals.SAME_SIGNAL + 0.1)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=10)
    assert (process.returncode, rest) == (128 + signal.SIGINT, "stopped at once\n"), out
    (folder,) = tmp_path.glob("runs/*/*/*/")
    state, damaged = checkpoint.load(folder, torch.device("cpu"))
    assert ([row["epoch"] for row in state["history"]], damaged) == ([1, 2, 3], [])


def test_a_signal_before_training_stops_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, "from vitlab.data import dataset; import time; dataset.load = lambda *_: time.sleep(600)")
    out = read_until(process, "device")
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=10)
    assert (process.returncode, rest) == (128 + signal.SIGTERM, "stopped at once\n"), out


def test_two_at_once_share_the_runs_and_the_new_database(tmp_path: Path) -> None:
    """Two ladders in one checkout: each run is trained by one of them, and the other waits for it."""
    both = [start(tmp_path, "from vitlab import files; files.PAUSE = 0.05") for _ in range(2)]
    outs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    (waited,) = [out for out in outs if "waiting" in out]
    (trained,) = [out for out in outs if "waiting" not in out]
    assert trained.count("epoch ") == 3
    assert "epoch " not in waited
    assert waited.count("is being trained by process") == 1
    assert "finished meanwhile, skipped" in waited
    assert [status for _, status in seed_runs(tmp_path)] == ["FINISHED"]
