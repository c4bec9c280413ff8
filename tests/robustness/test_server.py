"""The tracking server of deploy/compose.yaml: PostgreSQL and `mlflow server` with passwords, real ones, on this machine."""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from benchmarks import servers
from benchmarks.growth_server import InServer
from tests.support import cli as commands
from tests.support.outages import assert_all_is_there_once, at_the_second_checkpoint, home, sync, train, wait_for_shippers
from vitlab import cli, records
from vitlab.paths import EXPERIMENTS
from vitlab.report import publishing, stamp
from vitlab.track import index, read, store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(servers.postgres_binary("postgres") is None, reason="PostgreSQL is not installed"),
]
SECRET = servers.SECRETS["MLFLOW_ADMIN_PASSWORD"]


@pytest.fixture(scope="module")
def stack() -> Iterator[servers.Stack]:
    with servers.Stack() as stack:
        yield stack


@pytest.fixture
def uses(stack: servers.Stack, monkeypatch: pytest.MonkeyPatch) -> servers.Stack:
    """The server, with whose address and credentials the environment is set."""
    for key, value in (stack.credentials | {"MLFLOW_TRACKING_URI": stack.uri}).items():
        monkeypatch.setenv(key, value)
    return stack


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    return home(tmp_path / "here", monkeypatch, request.node.name)


def connect(root: Path) -> store.Store:
    """The store, opened with the credentials of now."""
    return store.Store(store.tracking_uri(root), root)


# ------------------------------------------------------------------------------------------------------------ outages


@pytest.mark.parametrize("victim", ["database", "server"])
def test_an_outage_amid_a_run_is_caught_up_with(
    victim: str, uses: servers.Stack, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = uses.db if victim == "database" else uses.server

    def strike(folder: Path) -> None:
        service.stop(signal.SIGQUIT if victim == "database" else signal.SIGKILL)  # at once, whatever it is doing
        assert not uses.server.healthy()

    saved = at_the_second_checkpoint(monkeypatch, strike)
    out = train(root, capsys)
    assert len(saved) > 2
    assert "not all of it has reached MLflow" in out, out
    wait_for_shippers()
    if victim == "database":  # which MLflow's own health check does not tell
        assert urllib.request.urlopen(f"{uses.uri}/health", timeout=5).read() == b"OK"
    service.start()
    assert uses.server.healthy()
    assert "shipped" in sync(root, capsys)
    assert_all_is_there_once(root)
    assert "nothing outstanding" in sync(root, capsys)


# -------------------------------------------------------------------------------------------------------- credentials


def test_wrong_credentials_are_said_and_nothing_is_lost(
    uses: servers.Stack, root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-wrong-password")
    out = train(root, capfd)
    said = "the server refuses the password of 'admin' (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    assert f"not all of it has reached MLflow ({said})" in " ".join(out.split()), out
    wait_for_shippers()
    for argv in (["sync", str(root / "runs")], ["report"], ["ui"]):
        code, told, err = commands.run(capfd, *argv, main=cli.main)
        assert code in (1, 2)
        assert said in told + err, argv
        assert "Traceback" not in err
        assert "wrong-password" not in told + err
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    assert "shipped" in sync(root, capfd)
    assert_all_is_there_once(root)
    assert not [path for path in root.rglob("*") if path.is_file() and "password" in path.read_text("latin-1")]


def test_credentials_in_the_address_are_neither_shown_nor_kept(
    uses: servers.Stack, root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in uses.credentials:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uses.uri.replace("://", f"://admin:{SECRET}@"))
    out = train(root, capfd)
    told = out + "".join(commands.run(capfd, *argv, main=cli.main)[1] for argv in (["ui"], ["sync", str(root / "runs")]))
    assert uses.uri in told
    assert SECRET not in told
    assert not [path for path in root.rglob("*") if path.is_file() and SECRET in path.read_text("latin-1")]
    assert uses.psql(f"SELECT count(*) FROM tags WHERE value LIKE '%{SECRET}%'") == "0"
    assert uses.psql(f"SELECT count(*) FROM params WHERE value LIKE '%{SECRET}%'") == "0"


def test_a_user_without_rights_is_told(uses: servers.Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users are made as docs/server.md says: they may write runs, and what they may not do is refused in one line."""
    from mlflow.server.auth.client import AuthServiceClient

    connect(tmp_path)  # the experiment is the admin's
    users = AuthServiceClient(uses.uri)
    users.create_user("lab", "a-lab-password")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "lab")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-lab-password")
    lab = connect(tmp_path)
    lab.client.delete_run(lab.client.create_run(lab.experiment_id).info.run_id)
    with pytest.raises(Exception, match="403") as e:
        users.create_user("another", "a-long-password")
    assert store.reason(e.value) == (
        "the server does not let 'lab' do that (403): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of a user who may"
    )


def test_a_name_that_the_server_does_not_know_is_refused_clearly(uses: servers.Stack) -> None:
    with pytest.raises(requests.HTTPError) as e:
        requests.get(
            f"{uses.uri}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": "elsewhere.example"}, timeout=10
        ).raise_for_status()
    assert (
        store.reason(e.value)
        == "the server does not answer to this name (403): add it, with its port, to MLFLOW_HOSTS in the server's deploy/.env"
    )


# ------------------------------------------------------------------------------------------------------------ reports


def test_runs_of_two_machines_in_one_report(
    uses: servers.Stack, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {run.run_id for run in read.finished_runs(tmp_path)}
    machines = [home(tmp_path / name, monkeypatch, name) for name in ("left", "right")]
    folders = []
    for machine in machines:
        home(machine, monkeypatch, machine.name)
        train(machine, capsys)
        wait_for_shippers()
        sync(machine, capsys)
        folders += [path.parent for path in machine.glob("runs/*/*/*/record.json")]
    third = tmp_path / "third"
    found = [run for run in read.finished_runs(third) if run.run_id not in before]
    assert [run.tags["vitlab.experiment"] for run in found] == ["left", "right"]
    assert [run.digest for run in found] == [index.digest((folder / "record.json").read_bytes()) for folder in folders]
    publishing.own(third, third / "reports")
    for folder in folders:
        record = records.read(folder / "record.json")
        assert (third / "reports" / "full-digits" / "records" / records.file_name(record)).read_bytes() == (
            folder / "record.json"
        ).read_bytes()
    assert stamp.holds(third, third / "reports")  # nothing to do

    client = connect(third).client
    client.delete_run(found[0].run_id)  # deleted in the UI: in no report
    assert not stamp.holds(third, third / "reports")
    assert found[0].run_id not in {run.run_id for run in read.finished_runs(third)}
    client.restore_run(found[0].run_id)
    assert stamp.holds(third, third / "reports")

    # one that is not in the index, as another version may ship it, is found by search
    shard = index.shard(connect(third), index.shard_number(found[1].run_id))
    client.delete_tag(shard, found[1].run_id)
    client.delete_tag(found[1].run_id, index.INDEXED)
    assert [run.run_id for run in read.finished_runs(third) if run.run_id not in before] == [run.run_id for run in found]
    assert read.fetch_records([run for run in read.finished_runs(third) if run.run_id == found[1].run_id], (), tmp_path / "d")[
        0
    ].read_bytes()


def test_the_ladder_a_teacher_and_its_student(uses: servers.Stack, small_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for key, value in (uses.credentials | {"MLFLOW_TRACKING_URI": uses.uri}).items():  # which small_world has taken away
        monkeypatch.setenv(key, value)
    code, out, err = commands.run(capsys, str(EXPERIMENTS / "05_kd_r18.yaml"), "--profile", "quick", "--data", "digits")
    assert code == 0, err
    wait_for_shippers()
    sync(small_world, capsys)
    runs = {run.tags["vitlab.experiment"]: run for run in read.finished_runs(small_world, profile="quick")}
    assert runs.keys() == {"05_kd_r18", "resnet18"}
    assert f"{uses.uri}/#/experiments/" in out
    client = connect(small_world).client
    for run in runs.values():
        (path,) = small_world.glob(f"runs/*/{run.tags['vitlab.experiment']}/*/record.json")
        assert client.get_run(run.run_id).data.metrics["final/test_top1"] == pytest.approx(records.read(path).metrics["test_top1"])
        assert client.get_run(run.parent_id).info.status == "FINISHED"
        assert run.fetch("weights.safetensors", small_world / "fetched").stat().st_size > 1000


# -------------------------------------------------------------------------------------- many runs, backup and restore


def test_a_run_copied_by_sql_is_as_one_that_was_shipped(uses: servers.Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PACKED", 2), ("SHARDS", 4)):
        monkeypatch.setattr(index, name, value)
    runs = InServer(tmp_path / "many", uses)
    del runs.groups[3:]
    runs.grow(40)
    found = [run for run in read.finished_runs(tmp_path) if run.tags["vitlab.profile"] == runs.groups[0].profile]
    assert len(found) == 40
    by_id = {(run.tags["vitlab.fingerprint"], int(run.tags["vitlab.seed"])): run for run in found}
    assert by_id.keys() == {(runs.record(i).fingerprint, runs.record(i).seed) for i in range(40)}
    client = connect(tmp_path).client

    def all_of(key: tuple[str, int]) -> tuple[object, ...]:
        run = client.get_run(by_id[key].run_id)
        own = ("vitlab.seed", "vitlab.fingerprint", "vitlab.variant", "mlflow.parentRunId", "mlflow.runName", "vitlab.started")
        tags = {k: v for k, v in run.data.tags.items() if k not in own}
        steps = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss"))
        inputs = [(i.dataset.name, i.dataset.digest, [(t.key, t.value) for t in i.tags]) for i in run.inputs.dataset_inputs]
        return tags, run.data.params, run.data.metrics, steps, inputs, run.info.status

    shipped = runs.record(39)  # the last one
    copied = next(runs.record(i) for i in range(3, 39) if runs.record(i).experiment == shipped.experiment)
    assert all_of((copied.fingerprint, copied.seed)) == all_of((shipped.fingerprint, shipped.seed))
    parent = client.get_run(by_id[shipped.fingerprint, shipped.seed].parent_id)
    assert parent.data.tags["vitlab.fingerprint"] == shipped.fingerprint

    assert sum(index.PACK in run.tags for run in found) > 20
    asked = []
    monkeypatch.setattr(
        store.Store, "read_artifact", lambda self, uri, real=store.Store.read_artifact: asked.append(uri) or real(self, uri)
    )
    paths = read.fetch_records(found, (), tmp_path / "fetched")
    for run, path in zip(found, paths, strict=True):
        record = records.read(path)
        assert (record.fingerprint, str(record.seed)) == (run.tags["vitlab.fingerprint"], run.tags["vitlab.seed"])
        assert index.digest(path.read_bytes()) == run.digest
    assert len(asked) == len({run.tags[index.PACK] for run in found if index.PACK in run.tags}) + sum(
        index.PACK not in run.tags for run in found
    )
    asked.clear()
    assert read.fetch_records(found, paths, tmp_path / "again") == paths  # an earlier report has them all
    assert not asked


def test_a_backup_brings_everything_back(uses: servers.Stack, tmp_path: Path) -> None:
    """As docs/server.md says: pg_dump while the server runs, and pg_restore into an empty database."""
    before = read.finished_runs(tmp_path)
    assert before
    page = (servers.DEPLOY.parent / "docs" / "server.md").read_text(encoding="utf-8")
    dump = re.search(r"exec -T db (pg_dump .+?) >", page)[1].split()
    restore = re.search(r"exec -T db (pg_restore .+?) <", page)[1].split()
    where = ["-h", "127.0.0.1", "-p", str(uses.db_port)]
    backup = uses.db.folder / "backup"
    made = uses.db.run([str(servers.postgres_binary(dump[0])), *where, *dump[1:], "-f", str(backup)])
    assert made.returncode == 0, made.stderr
    uses.server.stop()
    uses.psql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    back = uses.db.run([str(servers.postgres_binary(restore[0])), *where, *restore[1:], str(backup)])
    assert back.returncode == 0, back.stderr
    uses.server.start()
    assert read.finished_runs(tmp_path) == before
    assert read.fetch_records(before[:1], (), tmp_path / "fetched")[0].read_bytes()


def test_no_secret_is_on_a_command_line_or_in_the_log(stack: servers.Stack) -> None:
    told = " ".join([*stack.server.command, *stack.db.command, *stack.server.health, *stack.db.health])
    told += (
        (stack.server.folder / "log").read_text() + (stack.db.folder / "log").read_text() + (stack.server.folder / "auth.ini").read_text()
    )
    assert not [name for name, secret in servers.SECRETS.items() if secret in told]
