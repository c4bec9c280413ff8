"""Runs as tasks of a real Ray cluster of two nodes on this machine: to the bit what they are on one machine, whatever is lost meanwhile."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.cli import run
from tests.support.processes import FILES, finish, results, start, until, write_experiments
from tests.support.world import World
from vitlab import records

EPOCHS = 300
LONG = f"train: {{epochs: {EPOCHS}, batch_size: 32}}\n"


@pytest.fixture
def unset_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets for Ray in this process goes with the test."""
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "none")):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("unset_afterwards")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--engine", "ray", "--jobs", "2"], "--jobs: for --engine local, not for ray"),
        (["--address", "a:1"], "--address: for --engine ray, not for local"),
        (
            ["--engine", "ray", "--address", "ray://head:10001"],
            "--address ray://head:10001: not HOST:PORT; give the HOST:PORT that 'ray start",
        ),
        (
            ["--engine", "ray", "--address", "127.0.0.1:9"],
            "--address 127.0.0.1:9: no Ray cluster of ours there ([Errno 111] Connection refused)",
        ),
    ],
    ids=["another engine's", "ray's", "no host and port", "nobody there"],
)
def test_a_mistake_in_a_flag_is_one_line(flags: list[str], expected: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    code, _, err = run(capsys, *world.train("other"), *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert expected in err


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A head without a CPU; each test adds the nodes that it needs."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster  # late, as what is installed only where it is wanted

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False})
    yield made
    made.shutdown()


def journal(root: Path, name: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in root.glob(f"runs/*/{name}/*/journal.jsonl"))


def worker(root: Path, name: str) -> psutil.Process:
    """The process that trains this experiment, as its lock says."""
    (lock,) = root.glob(f"runs/*/{name}-*.lock")
    return psutil.Process(int(lock.read_text().split()[1]))


def logged_steps(root: Path) -> list[int]:
    """How many steps of the training loss MLflow has for each seed's run. Fails where it has one twice."""
    with sqlite3.connect(root / "mlflow.db") as db:
        rows = db.execute(
            "SELECT run_uuid, count(*), count(DISTINCT step) FROM metrics WHERE key = 'train/loss' GROUP BY run_uuid"
        ).fetchall()
    assert all(entries == steps for _, entries, steps in rows)
    return [steps for _, _, steps in rows]


def same(root: Path, reference: Path) -> None:
    """Whether the runs below `root` are to the bit those below `reference`."""
    assert results(root) == results(reference)
    paths = list(reference.glob("runs/*/*/*/record.json"))
    assert len(paths) == len(FILES)
    for path in paths:
        one, other = records.read(path), records.read(root / path.relative_to(reference))
        assert (one.metrics, one.threads, one.fingerprint, one.teacher) == (other.metrics, other.threads, other.fingerprint, other.teacher)
        assert [row["train/loss"] for row in one.history] == [row["train/loss"] for row in other.history]
    assert logged_steps(root) == [EPOCHS] * len(FILES)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which local processes have trained the experiments."""
    folder = tmp_path_factory.mktemp("reference")
    code, out = finish(start(folder / "local", write_experiments(folder / "experiments", LONG), "--jobs", "2"))
    assert code == 0, out
    return folder / "local"


@pytest.mark.slow
def test_stopped_killed_and_without_its_node_a_plan_goes_on_to_the_same_bits(cluster: object, reference: Path, tmp_path: Path) -> None:
    """Ctrl-C; then the same command, of which one run loses its worker, and the other its node; all that is left is one CPU."""
    experiments, root = write_experiments(tmp_path / "experiments", LONG), tmp_path / "root"
    first, second = (cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2))
    command = ("--engine", "ray", "--address", cluster.address)

    process = start(root, experiments, *command)
    until(lambda: all("started" in journal(root, name) for name in ("tiny", "other")))
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code == 128 + signal.SIGINT, out
    assert "Ray: nodes 3, CPUs 2, GPUs 0; each run has 1 CPU" in out
    assert "stopped: all that is done is saved, the last of it in" in out
    assert len(list(root.glob("runs/*/*/*/checkpoint.pt"))) == 2
    assert not list(root.glob("runs/*/*.lock"))

    process = start(root, experiments, *command)
    until(lambda: all("resumed" in journal(root, name) for name in ("tiny", "other")))
    here, there = sorted(
        (worker(root, name) for name in ("tiny", "other")), key=lambda each: second.all_processes["raylet"][0].process.pid == each.ppid()
    )
    assert here.ppid() != there.ppid() == second.all_processes["raylet"][0].process.pid
    os.kill(here.pid, signal.SIGKILL)
    cluster.remove_node(second, allow_graceful=False)
    code, out = finish(process)
    assert code == 0, out
    assert out.count("its worker or node was lost; it goes on from the last checkpoint") == 2
    same(root, reference)
    cluster.remove_node(first)


def unshared_node(address: str, root: Path) -> subprocess.Popen[bytes]:
    """A node with two CPUs that has an empty folder where all others have `root`."""
    ray = f"{sys.executable} -m ray.scripts.scripts start --address {address} --num-cpus 2 --object-store-memory {80 * 2**20} --block"
    return subprocess.Popen(["unshare", "-m", "sh", "-c", f"mount -t tmpfs tmpfs {root} && exec {ray}"], stdout=subprocess.DEVNULL)


def kill(node: subprocess.Popen[bytes]) -> None:
    for process in [*psutil.Process(node.pid).children(recursive=True), node]:
        process.kill()
    node.wait()


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode != 0,
    reason="needs the right to mount",
)
def test_without_shared_storage_all_comes_back_and_a_lost_node_costs_little(cluster: object, reference: Path, tmp_path: Path) -> None:
    """Both runs train on a node that is killed with its storage, and go on from their checkpoints on another one, empty at first."""
    experiments, root = write_experiments(tmp_path / "experiments", LONG), tmp_path / "root"
    root.mkdir()
    node = unshared_node(cluster.address, root)
    try:
        process = start(root, experiments, "--engine", "ray", "--address", cluster.address)
        until(lambda: len(list(root.glob("runs/*/*/*/checkpoint.pt"))) == 2)
        kill(node)
        node = unshared_node(cluster.address, root)
        code, out = finish(process)
        assert code == 0, out
    finally:
        kill(node)
    assert out.count("its worker or node was lost; it goes on from the last checkpoint") == 2
    assert all("resumed" in journal(root, name) for name in ("tiny", "other"))
    assert not list(root.glob("runs/*/*/*/checkpoint*"))
    same(root, reference)


@pytest.mark.slow
def test_one_that_fails_stops_the_others_on_a_cluster_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    experiments = write_experiments(tmp_path / "experiments", LONG)
    tiny = experiments / "tiny.yaml"
    diverging = "{name: sgd, lr: 10, weight_decay: 1}"  # each step makes the weights nine times as large
    tiny.write_text(re.sub("optim: .*", f"optim: {diverging}", tiny.read_text(encoding="utf-8")), encoding="utf-8")
    code, out = finish(start(tmp_path / "root", experiments, "--engine", "ray"))
    assert code == 1, out
    assert "failed tiny · seed 0: the loss, its gradient or the weights are no longer finite" in out
    assert "Traceback" not in out
    assert not list((tmp_path / "root").glob("runs/*/taught/*")), "its teacher has failed"
