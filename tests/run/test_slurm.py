"""Runs as jobs of a real Slurm cluster of one node, to the bit what they are on one machine; and the engine's small parts."""

from __future__ import annotations

import argparse
import pickle
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support import processes, slurm_cluster
from tests.support.cli import run
from tests.support.processes import finish, results, until, write_experiments
from tests.support.world import World
from vitlab import records
from vitlab.run.engines.flags import minutes
from vitlab.run.engines.slurm_job import EventFile
from vitlab.track import store
from vitlab.track.journal import read_journal

# ---------------------------------------------------------------------------------------------------------- without Slurm


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:00", 90), ("0:30", 1), ("1:30:00", 90), ("1:00:01", 61), ("1-0", 1440), ("2-12:30", 3630), ("0-0:0:30", 1)],
)
def test_times_as_slurm_writes_them(text: str, expected: int) -> None:
    """By hand, from sbatch's manual: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, ...:seconds."""
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "1h", "1:2:3:4", "-5", "1-", "0:0:0"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="as Slurm writes it"):
        minutes(text)


def test_events_are_read_once_and_half_written_ones_later(tmp_path: Path) -> None:
    ours, theirs = EventFile(tmp_path / "events"), EventFile(tmp_path / "events")
    assert theirs.read() == []
    ours.append("step", 1, 10, 2.5, 12.0)
    ours.append("failed", ValueError("why"))
    whole = ours.path.read_bytes()
    ours.path.write_bytes(whole[:-3])
    assert theirs.read() == [("step", 1, 10, 2.5, 12.0)]
    assert theirs.read() == []
    ours.path.write_bytes(whole)
    ((kind, error),) = theirs.read()
    assert (kind, repr(error)) == ("failed", "ValueError('why')")
    assert pickle.loads(whole[4:]) == ("step", 1, 10, 2.5, 12.0), "the file's form: a length of 4 bytes, then a pickle"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--engine slurm: there is no 'sbatch' here; run the command where the cluster takes jobs, on its login node"),
        (["--gpus-per-run", "0.5"], "--gpus-per-run: Slurm gives a run a whole GPU: 1, or leave it out"),
    ],
    ids=["no sbatch", "half a GPU"],
)
def test_what_cannot_be_is_one_line(
    flags: list[str], expected: str, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    code, _, err = run(capsys, *world.train("other"), "--engine", "slurm", *flags)
    assert (code, err) == (2, f"error: {expected}\n")


# ------------------------------------------------------------------------------------------------------------- a cluster

EPOCHS = 40
NAMES = ("tiny", "taught", "other")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    pytest.importorskip("submitit", reason="submitit is not installed; pip install -c constraints.txt -e '.[slurm]'")
    if slurm_cluster.missing():
        pytest.skip(slurm_cluster.missing())
    with slurm_cluster.cluster() as env:
        yield env


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """A teacher and two students, of which `other` has a model of another size."""
    folder = write_experiments(tmp_path / "experiments", f"train: {{epochs: {EPOCHS}, batch_size: 32}}\n")
    (folder / "other.yaml").write_text((folder / "taught.yaml").read_text().replace("dim: 8", "dim: 16"), encoding="utf-8")
    return folder


def start(root: Path, experiments: Path, env: dict[str, str], *flags: str, jobs: str = "pass") -> subprocess.Popen[str]:
    """runner.py, whose jobs are warned 20 seconds before their end; `jobs` is what every Python of a job does first."""
    root.mkdir(exist_ok=True)
    own = "from vitlab.run.engines import slurm\n    slurm.WARNING = 20"
    (root / "sitecustomize.py").write_text(f"import os\nif 'SLURM_JOB_ID' in os.environ:\n    {jobs}\nelse:\n    {own}\n", encoding="utf-8")
    return processes.start(root, experiments, "--engine", "slurm", *flags, env=env)


def told(root: Path, name: str) -> list[str]:
    """The events in the journal of the experiment's run."""
    return [e["text"] for path in root.glob(f"runs/*/{name}/*/journal.jsonl") for _, e in read_journal(path) if e["kind"] == "event"]


def queue(env: dict[str, str]) -> list[str]:
    return slurm_cluster.ask(env, "squeue", "--noheader", "--array", "--format=%i %T").splitlines()


def submissions(root: Path) -> dict[str, str]:
    """What sbatch was given, by the job's id."""
    return {path.name.partition("_")[0]: path.read_text() for path in root.glob("slurm/[0-9]*_submission.sh")}


def in_mlflow(root: Path, name: str) -> list[tuple[str, list[int]]]:
    """Each metric of the experiment's only run in MLflow, with its steps."""
    client = MlflowClient(tracking_uri=store.own_uri(root))
    ids = [e.experiment_id for e in client.search_experiments()]
    (found,) = client.search_runs(ids, f"tags.`vitlab.kind` = 'seed' AND tags.`vitlab.experiment` = '{name}'")
    assert found.info.status == "FINISHED"
    return sorted((key, [m.step for m in client.get_metric_history(found.info.run_id, key)]) for key in found.data.metrics)


# A job that is no array's, the teacher's, takes longer than its time limit at first.
SLOW = """\
from vitlab.run.engines.slurm_job import EventFile as F; import time; real = F.append; {'SLURM_RESTART_COUNT', 'SLURM_ARRAY_TASK_ID'} & {*os.environ} or setattr(
        F, 'append', lambda self, kind, *values: (kind == 'step' and time.sleep(2), real(self, kind, *values))[1])"""


@pytest.mark.slow
def test_stopped_then_left_alone_then_at_its_time_limit_it_goes_on_to_the_same_bits(
    tmp_path: Path, experiments: Path, cluster: dict[str, str]
) -> None:
    """Ctrl-C while the teacher trains; then a kill of the command alone, whose jobs go on; then the same command waits for them."""
    reference = processes.start(tmp_path / "alone", experiments, "--jobs", "1")
    root = tmp_path / "cluster"
    flags = ("--partition", "test", "--time", "1")

    process = start(root, experiments, cluster, *flags, jobs=SLOW)
    until(lambda: len(told(root, "tiny")) == 1)
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code == 130, out
    assert "stopped: all that is done is saved, the last of it in" in out
    until(lambda: queue(cluster) == [])

    process = start(root, experiments, cluster, *flags, jobs=SLOW)
    until(lambda: len(told(root, "tiny")) == 2)
    process.kill()
    finish(process)
    texts = submissions(root)
    assert len(texts) == 4, "twice a job for the teacher, and an array for its students"
    teacher, students = sorted(texts, key=int)[-2:]
    assert f"--dependency=afterok:{teacher}\n" in texts[students]
    assert "--array=0-1%2\n" in texts[students]
    assert "--partition=test\n" in texts[teacher]
    assert len(queue(cluster)) == 3

    process = start(root, experiments, cluster, *flags, jobs=SLOW)
    until(lambda: len(told(root, "tiny")) == 3)
    for id in (teacher, students):  # on a busy machine hardly more than a start would fit into each minute
        slurm_cluster.ask(cluster, "scontrol", "update", f"JobId={id}", "TimeLimit=60")
    code, out = finish(process)
    assert code == 0, out
    assert submissions(root) == texts, "what is in the queue is not submitted again"
    assert ("said", "is saved, and queued again") in EventFile(root / "slurm" / f"{teacher}.events").read()
    assert [text.partition(" ")[0] for text in told(root, "tiny")] == ["started", "resumed", "resumed", "finished"]
    assert [len(told(root, name)) for name in NAMES] == [4, 2, 2]

    code, out = finish(reference)
    assert code == 0, out
    assert len(results(root)) == 6
    assert results(root) == results(tmp_path / "alone")
    for path in (tmp_path / "alone").glob("runs/*/*/*/record.json"):
        other = root / path.relative_to(tmp_path / "alone")
        mine, theirs = records.read(path), records.read(other)
        for field in ("metrics", "threads", "fingerprint", "teacher"):
            assert getattr(mine, field) == getattr(theirs, field), field
        assert [row["train/loss"] for row in mine.history] == [row["train/loss"] for row in theirs.history]
    for name in NAMES:
        for key, steps in in_mlflow(root, name):
            assert len(steps) == len(set(steps)), key
        assert sorted(dict(in_mlflow(root, name))["train/loss"]) == list(range(1, EPOCHS + 1))


DIVERGED = """\
from vitlab.run.engines import slurm_job; real = slurm_job.EventFile.append
    def append(self, kind, *values):
        from vitlab.train.loop import Diverged
        if kind == 'bar':
            raise Diverged('the loss is no longer finite')
        real(self, kind, *values)
    slurm_job.EventFile.append = append"""


@pytest.mark.slow
def test_where_a_teacher_fails_no_student_begins(tmp_path: Path, experiments: Path, cluster: dict[str, str]) -> None:
    code, out = finish(start(tmp_path, experiments, cluster, "--cpus-per-run", "2", jobs=DIVERGED))
    assert code == 1, out
    assert "failed tiny · seed 0: the loss is no longer finite" in out
    assert "Traceback" not in out
    assert [told(tmp_path, name) for name in NAMES[1:]] == [[], []]
    until(lambda: queue(cluster) == [])
    assert all(re.search(r"^srun .* --cpus-per-task=2 ", text, re.MULTILINE) for text in submissions(tmp_path).values())


LATE = """\
from vitlab.run.engines.slurm_job import EventFile as F; real = F.append; setattr(
        F, 'append', lambda self, kind, *values: (real(self, kind, *values), kind == 'finished' and os.kill(os.getpid(), 9)))"""


@pytest.mark.slow
def test_where_a_teachers_job_fails_after_its_run_the_students_are_submitted_again(
    tmp_path: Path, experiments: Path, cluster: dict[str, str]
) -> None:
    code, out = finish(start(tmp_path, experiments, cluster, jobs=LATE))
    assert code == 0, out
    first, second, third = (submissions(tmp_path)[key] for key in sorted(submissions(tmp_path), key=int))
    assert "--dependency=afterok:" in second
    assert "--dependency" not in first + third


@pytest.mark.slow
def test_a_job_that_dies_is_named_with_its_log(tmp_path: Path, experiments: Path, cluster: dict[str, str]) -> None:
    code, out = finish(start(tmp_path, experiments / "tiny.yaml", cluster, jobs="print('words'); os.kill(os.getpid(), 9)"))
    assert code == 1, out
    (log,) = re.findall(r"failed tiny · seed 0: its Slurm job \d+ ended as FAILED; what it printed is in (\S+)\.", out.replace("\n", " "))
    assert "words" in Path(log).read_text()


@pytest.mark.slow
def test_what_slurm_refuses_is_told_in_its_words(tmp_path: Path, experiments: Path, cluster: dict[str, str]) -> None:
    code, out = finish(start(tmp_path, experiments, cluster, "--partition", "nowhere"))
    assert code == 2, out
    assert "error: Slurm does not take the job: sbatch: error: invalid partition specified: nowhere" in out
