"""The saved views of MLflow's runs' table: read back through MlflowClient, their filters run by MLflow's own search."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.support.journals import finish, info, start
from vitlab import cli
from vitlab.errors import UserError
from vitlab.paths import REPOSITORY
from vitlab.track import shipping, store, views

pytestmark = pytest.mark.slow

PREFIX = "mlflow.sharedViewState."


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two sets of runs: three seeds and two experiments of the one, one run of the other; one of them trained anew."""
    folder = tmp_path_factory.mktemp("views")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for i, (experiment, seed, top1, changes) in enumerate(
            [("a", 0, 60, {}), ("a", 0, 71, {}), ("a", 1, 73, {}), ("b", 0, 80, {}), ("a", 0, 99, {"dataset": "it's", "profile": "quick"})]
        ):
            run_dir = folder / "runs" / str(i)
            journal = start(run_dir, info(experiment, seed, **changes))
            journal.append("event", text=str(i))
            path = run_dir / "journal.jsonl"
            entries = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(entry | {"time": 1_700_000_000_000 + 60_000 * i}) + "\n" for entry in entries))
            finish(run_dir, top1)
            shipping.ship(run_dir, folder, None, final=True)
        start(folder / "runs" / "5", info("b", 1))  # under way
        shipping.ship(folder / "runs" / "5", folder, None, final=False)
    return folder


@pytest.fixture
def client(root: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=store.own_uri(root))


def shared(client: MlflowClient) -> dict[str, dict]:
    """The views that the UI would offer, by their names: what `viewStateShareKey` leads to, unpacked as the UI does."""
    found = {}
    for key, value in client.get_experiment_by_name("vitlab").tags.items():
        if key.startswith(PREFIX):
            envelope = json.loads(value)
            assert isinstance(envelope["createdAt"], int)
            found[envelope["name"]] = {"key": key.removeprefix(PREFIX), **json.loads(envelope["state"])}
    return found


def table(client: MlflowClient, view: dict) -> list[dict[str, str]]:
    """What the view's columns show of each run, in the table's order."""
    experiment = client.get_experiment_by_name("vitlab").experiment_id
    order = f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"
    rows = []
    for run in client.search_runs([experiment], view["searchFilter"], order_by=[order]):
        has = {f"metrics.`{k}`": v for k, v in run.data.metrics.items()} | {f"tags.`{k}`": v for k, v in run.data.tags.items()}
        has["attributes.`Dataset`"] = [i.dataset.name for i in run.inputs.dataset_inputs]
        has["attributes.`Source`"] = run.data.tags["mlflow.source.name"]
        has["attributes.`Models`"] = [o.model_id for o in run.outputs.model_outputs]
        rows.append({column: has.get(column) for column in view["selectedColumns"]})
    return rows


def test_the_view_shows_the_runs_of_its_set_best_first(client: MlflowClient) -> None:
    rows = table(client, shared(client)["overnight · cifar10"])
    keys = ("metrics.`final/test_top1`", "tags.`vitlab.experiment`", "tags.`vitlab.seed`")
    assert [tuple(row[key] for key in keys) for row in rows] == [(80, "b", "0"), (73, "a", "1"), (71, "a", "0"), (None, "b", "1")]
    for row in rows[:3]:
        assert None not in row.values(), "an empty column"
    others = table(client, shared(client)["quick · it's"])  # a name with what the filter language quotes with
    assert [row["metrics.`final/test_top1`"] for row in others] == [99]


def test_the_other_view_shows_the_means_over_seeds(client: MlflowClient) -> None:
    rows = table(client, shared(client)["overnight · cifar10 · means over seeds"])
    keys = ("metrics.`final/test_top1`", "tags.`vitlab.experiment`", "tags.`vitlab.seeds`")
    assert [tuple(row[key] for key in keys) for row in rows] == [(80, "b", "0"), (72, "a", "0,1")]
    assert rows[1]["metrics.`final/test_top1_sd`"] == pytest.approx(2**0.5)
    assert None not in rows[1].values(), "an empty column"


def test_the_addresses_lead_to_the_views(
    root: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = client.get_experiment_by_name("vitlab").experiment_id
    start = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?workflowType=machine_learning"
    found = views.addresses(root)
    assert found == {
        "": start,
        "overnight-cifar10": f"{start}&viewStateShareKey=runs:overnight-cifar10",
        "quick-it-s": f"{start}&viewStateShareKey=runs:quick-it-s",
    }
    keys = {view["key"] for view in shared(client).values()}
    for name, address in found.items():
        if name:
            [key] = parse_qs(urlsplit(address).fragment.partition("?")[2])["viewStateShareKey"]
            assert key in keys
    monkeypatch.setattr(cli, "ROOT", root)
    with pytest.raises(SystemExit) as e:
        cli.main(["ui", "--port", "5001"])
    assert e.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{name or 'all runs'}: {address.replace(':5000', ':5001')}" for name, address in found.items()
    ]


def test_make_ui_prints_the_addresses_of_the_store_that_it_serves() -> None:
    command = ["make", "--no-print-directory", "-n", "-o", ".venv/installed", "ui", "PORT=5001"]  # make calls these tests itself
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    first, *server = done.stdout.splitlines()
    assert first == ".venv/bin/vitlab ui --port 5001"
    assert "--port 5001" in " ".join(server)
    assert "${VITLAB_ROOT:-" in " ".join(server)  # as vitlab.paths has it


def test_a_view_that_was_saved_or_changed_in_the_ui_is_left_alone(
    root: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.get_experiment_by_name("vitlab").experiment_id
    mine = {"createdAt": 1, "state": "{}"}
    client.set_experiment_tag(experiment, f"{PREFIX}4711", json.dumps(mine | {"name": "mine"}))
    client.set_experiment_tag(experiment, f"{PREFIX}means:quick-it-s", json.dumps(mine | {"name": "changed"}))
    before = client.get_experiment(experiment).tags
    addresses = views.addresses(root)
    assert "4711" not in addresses
    for run_dir in (root / "runs").iterdir():
        (run_dir / "mlflow.json").unlink()
        shipping.ship(run_dir, root, None, final=(run_dir / "record.json").exists())
    assert client.get_experiment(experiment).tags == before
    assert views.addresses(root) == addresses


def test_a_store_without_runs_has_the_experiment_to_show(tmp_path: Path) -> None:
    assert views.addresses(tmp_path, 5001) == {"": "http://127.0.0.1:5001/#/experiments/1/runs?workflowType=machine_learning"}


def test_a_server_shows_its_runs_itself_and_one_that_is_down_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@example.org/mlflow/")
    monkeypatch.setattr(store, "connect", lambda root: (_ for _ in ()).throw(MlflowException("nobody there")))
    with pytest.raises(UserError, match=r"https://example\.org/mlflow/ cannot be reached: nobody there"):
        views.addresses(tmp_path)
    monkeypatch.setattr(store, "experiment", lambda root: ("7", {}))
    assert views.addresses(tmp_path) == {"": "https://example.org/mlflow/#/experiments/7/runs?workflowType=machine_learning"}
