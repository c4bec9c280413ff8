"""Shipping a journal, against a real SQLite store: what lies in its tables is read with sqlite3, not through mlflow."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from scipy import stats

from tests.support import database
from tests.support.journals import finish, info, start
from vitlab.errors import UserError
from vitlab.paths import REPOSITORY
from vitlab.stats import interval
from vitlab.track import model as mlflow_model
from vitlab.track import read, registry, shipping, store
from vitlab.track.journal import Journal, read_journal
from vitlab.track.shipper import Shipper

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a root of 100% ü")  # what is special in a URL
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(store, "make_database", database.make)
        store.prepare_store(folder)
    return folder


def query(root: Path, sql: str, *values: object) -> list[tuple]:
    with sqlite3.connect(root / "mlflow.db") as db:
        return db.execute(sql, values).fetchall()


def run_id(run_dir: Path, root: Path) -> str:
    return json.loads((run_dir / "mlflow.json").read_text())["stores"][shipping.tracking_uri(root)]["run_id"]


def metric_rows(root: Path, run: str) -> list[tuple]:
    return query(root, "SELECT key, step, timestamp, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY 1, 2, 3, 4", run)


def latest(root: Path, run: str) -> dict[str, float]:
    return dict(query(root, "SELECT key, value FROM latest_metrics WHERE run_uuid = ?", run))


def tags(root: Path, run: str) -> dict[str, str]:
    return dict(query(root, "SELECT key, value FROM tags WHERE run_uuid = ?", run))


def status(root: Path, run: str) -> str:
    return query(root, "SELECT status FROM runs WHERE run_uuid = ?", run)[0][0]


def runs_of(root: Path, experiment: str, kind: str) -> list[str]:
    sql = """SELECT a.run_uuid FROM tags a JOIN tags b ON a.run_uuid = b.run_uuid JOIN runs r ON r.run_uuid = a.run_uuid
             WHERE a.key = 'vitlab.experiment' AND a.value = ? AND b.key = 'vitlab.kind' AND b.value = ? AND r.lifecycle_stage = 'active'"""
    return [row[0] for row in query(root, sql, experiment, kind)]


def expected_rows(run_dir: Path) -> list[tuple]:
    entries = [e for _, e in read_journal(run_dir / "journal.jsonl") if e["kind"] == "metrics"]
    return sorted((k, e["step"], e["time"], v, 0) for e in entries for k, v in e["values"].items())


# ---------------------------------------------------------------------------------------------------------- the store


def test_mlflow_is_imported_late_and_a_prepared_store_needs_no_import(root: Path) -> None:
    code = f"import sys; from pathlib import Path; from vitlab.track import store; store.prepare_store(Path({str(root)!r}))"
    code += "; print([m for m in ('mlflow', 'torch', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_store_lies_in_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert query(root, "SELECT artifact_location FROM experiments WHERE name = 'vitlab'") == [((root / "mlartifacts").as_uri(),)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org:5000")
    assert shipping.tracking_uri(root) == "http://example.org:5000"


def test_a_database_whose_making_was_stopped_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow refuses one that has some of its tables, so until it has all it does not bear its name."""
    code = f"""
import os
from pathlib import Path
from mlflow import MlflowClient
from vitlab.track import store
MlflowClient.create_experiment = lambda *_, **__: os._exit(9)
store.connect(Path({str(tmp_path)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 9
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setattr(store, "make_database", database.make)
    assert store.connect(tmp_path).find({}) == []


def test_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("what a disk may leave of a database " * 100)
    with pytest.raises(UserError, match=r"mlflow\.db: not a readable database"):
        store.prepare_store(tmp_path)


def test_a_database_that_cannot_be_opened_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    assert store.prepare_store(tmp_path) == "unable to open database file"


def test_names_that_are_url_syntax_lead_to_the_file(tmp_path: Path) -> None:
    from sqlalchemy.engine import make_url

    for name in ("a b", "50%", "%41", "what?", "a#b", "ü"):
        assert make_url(shipping.tracking_uri(tmp_path / name)).database == str(tmp_path / name / "mlflow.db")


# ------------------------------------------------------------------------------------------------------------ shipping


def test_ship_is_idempotent_and_needs_no_memory_of_it(root: Path, tmp_path: Path) -> None:
    about = info("idempotent")
    start(tmp_path, about)
    shipping.ship(tmp_path, root, None, final=False)
    first = run_id(tmp_path, root)
    assert metric_rows(root, first) == expected_rows(tmp_path)
    (tmp_path / "mlflow.json").unlink()  # as another machine would find it
    shipping.ship(tmp_path, root, None, final=False)
    assert run_id(tmp_path, root) == first
    assert metric_rows(root, first) == expected_rows(tmp_path)
    [parent], [child] = runs_of(root, "idempotent", "parent"), runs_of(root, "idempotent", "seed")
    assert child == first
    assert tags(root, child)["mlflow.parentRunId"] == parent
    assert query(root, "SELECT name FROM runs WHERE run_uuid = ?", parent) == [("idempotent · overnight · cifar10",)]
    assert dict(query(root, "SELECT key, value FROM params WHERE run_uuid = ?", child)) == about.params
    said = tags(root, child)
    assert said["vitlab.seed"] == "0"
    assert said["vitlab.finished"] == "false"
    assert said["mlflow.note.content"] == "What it is."
    join = "inputs i JOIN datasets d ON d.dataset_uuid = i.source_id"
    [(name, digest, profile)] = query(root, f"SELECT d.name, d.digest, d.dataset_profile FROM {join} WHERE i.destination_id = ?", child)
    assert (name, digest, json.loads(profile)) == ("cifar10", "d" * 36, {"train": 30, "validation": 4, "test": 5})


def test_the_runs_table_finds_data_set_source_and_commit(root: Path, tmp_path: Path) -> None:
    """Read back as MLflow's UI reads them; of the parent too, except a commit, since its seeds may be of several."""
    start(tmp_path, info("columns", dataset_digest="0123456789abcdef" * 4))
    client = store.connect(root).client
    seen = []
    for _ in range(2):  # a second time nothing is added
        (tmp_path / "mlflow.json").unlink(missing_ok=True)
        shipping.ship(tmp_path, root, None, final=False)
        child = client.get_run(run_id(tmp_path, root))
        parent = client.get_run(child.data.tags["mlflow.parentRunId"])
        for run in (child, parent):
            [given] = run.inputs.dataset_inputs
            assert (given.dataset.name, given.dataset.digest) == ("cifar10", "0123456789abcdef0123456789abcdef0123")
            assert json.loads(given.dataset.profile) == {"train": 30, "validation": 4, "test": 5}
            assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
            assert run.data.tags["mlflow.source.name"] == "runner.py"
            assert run.data.tags["mlflow.source.type"] == "LOCAL"
        assert child.data.tags["mlflow.source.git.commit"] == "c0ffee"
        assert "mlflow.source.git.commit" not in parent.data.tags
        seen.append([query(root, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in ("inputs", "datasets", "tags", "experiment_tags")])
    assert seen[0] == seen[1]


def test_hostile_names_reach_mlflow_as_text(root: Path, tmp_path: Path) -> None:
    """A description is Markdown to MLflow's UI, so its HTML is spelt out; all else is stored as it is, and splits no filter."""
    evil = "<script>alert(1)</script>|../../x' OR tags.`a` = 'b"
    for name, variant in (("one", evil), ("two", evil + " ")):
        start(tmp_path / name, info("evil", variant=variant, title=evil, label=evil, dataset=evil, description=evil, params={"a": evil}))
        shipping.ship(tmp_path / name, root, None, final=False)
    first, second = (run_id(tmp_path / name, root) for name in ("one", "two"))
    assert first != second, "the filter found another run"
    said = tags(root, first)
    assert said["mlflow.note.content"] == tags(root, said["mlflow.parentRunId"])["mlflow.note.content"]
    assert said["mlflow.note.content"].startswith("&lt;script&gt;")
    assert said["vitlab.title"] == said["vitlab.variant"] == said["vitlab.dataset"] == evil
    assert query(root, "SELECT value FROM params WHERE run_uuid = ?", first) == [(evil,)]
    for (uri,) in query(root, "SELECT artifact_uri FROM runs WHERE run_uuid IN (?, ?)", first, second):
        assert ".." not in uri


def test_telemetry_is_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    store.Store(shipping.tracking_uri(root), root)
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"
    assert is_telemetry_disabled()


def test_crash_between_logging_and_remembering_adds_nothing(root: Path, tmp_path: Path) -> None:
    journal = start(tmp_path, info("crash"), epochs=1)
    shipping.ship(tmp_path, root, journal.size(), final=False)
    before = (tmp_path / "mlflow.json").read_text()
    for epoch in range(2, 600):  # more than a batch of 1,000
        journal.append("metrics", step=epoch, values={"train/loss": 1 / epoch, "lr": 0.1})
    shipping.ship(tmp_path, root, journal.size(), final=False)
    (tmp_path / "mlflow.json").write_text(before)
    journal.append("metrics", step=600, values={"train/loss": 0.0})
    shipping.ship(tmp_path, root, journal.size(), final=False)
    assert metric_rows(root, run_id(tmp_path, root)) == expected_rows(tmp_path)


def test_only_what_a_checkpoint_covers_is_shipped_so_a_resume_repeats_nothing(root: Path, tmp_path: Path) -> None:
    journal = start(tmp_path, info("resume"), epochs=1)
    covered = journal.size()
    journal.append("metrics", step=2, values={"train/loss": 0.5})
    shipping.ship(tmp_path, root, covered, final=False)
    assert {row[1] for row in metric_rows(root, run_id(tmp_path, root))} == {1}
    journal = Journal(tmp_path / "journal.jsonl")  # killed; the next process goes on
    journal.truncate(covered)
    journal.append("metrics", step=2, values={"train/loss": 0.25})
    shipping.ship(tmp_path, root, None, final=False)
    assert metric_rows(root, run_id(tmp_path, root)) == expected_rows(tmp_path)
    assert [row[3] for row in metric_rows(root, run_id(tmp_path, root)) if row[:2] == ("train/loss", 2)] == [0.25]


def test_lines_in_the_place_of_others_are_shipped_once(root: Path, tmp_path: Path) -> None:
    """The last checkpoint was damaged, so the resume is from the one before, after more than that was shipped; the bits are the same."""
    journal = start(tmp_path, info("fallback"), epochs=1)
    earlier = journal.size()
    journal.append("metrics", step=2, values={"train/loss": 0.5})
    shipping.ship(tmp_path, root, None, final=False)
    journal.truncate(earlier)
    time.sleep(0.002)  # another timestamp
    journal.append("metrics", step=2, values={"train/loss": 0.5})
    journal.append("metrics", step=3, values={"train/loss": 0.3})
    shipping.ship(tmp_path, root, None, final=False)
    rows = [(row[0], row[1], row[3]) for row in metric_rows(root, run_id(tmp_path, root))]
    assert rows == [("lr", 1, 0.1), ("train/loss", 1, 1.0), ("train/loss", 2, 0.5), ("train/loss", 3, 0.3)]


def test_journal_begun_anew_is_another_run(root: Path, tmp_path: Path) -> None:
    start(tmp_path, info("anew"))
    shipping.ship(tmp_path, root, None, final=False)
    first = run_id(tmp_path, root)
    (tmp_path / "journal.jsonl").unlink()
    start(tmp_path, info("anew"), epochs=3)
    shipping.ship(tmp_path, root, None, final=False)
    assert run_id(tmp_path, root) != first
    assert metric_rows(root, run_id(tmp_path, root)) == expected_rows(tmp_path)


def test_nan_is_stored_as_nan(root: Path, tmp_path: Path) -> None:
    journal = start(tmp_path, info("nan"), epochs=0)
    journal.append("metrics", step=1, values={"train/loss": math.nan})
    for _ in range(2):
        (tmp_path / "mlflow.json").unlink(missing_ok=True)
        shipping.ship(tmp_path, root, None, final=False)
    assert [(row[0], row[1], row[4]) for row in metric_rows(root, run_id(tmp_path, root))] == [("train/loss", 1, 1)]


def test_params_are_immutable_and_tags_are_not(root: Path, tmp_path: Path) -> None:
    from mlflow.exceptions import MlflowException

    start(tmp_path, info("immutable"))
    shipping.ship(tmp_path, root, None, final=False)
    info("immutable", device="another CPU").write(tmp_path)
    shipping.ship(tmp_path, root, None, final=False)
    assert tags(root, run_id(tmp_path, root))["vitlab.device"] == "another CPU"
    info("immutable", params={"group.0": "changed"}).write(tmp_path)
    with pytest.raises(MlflowException, match="Changing param values is not allowed"):
        shipping.ship(tmp_path, root, None, final=False)


def test_final_ship(root: Path, tmp_path: Path) -> None:
    start(tmp_path, info("final", variant="it's"))  # a name that the search language has no escape for
    finish(tmp_path, teacher=True)
    shipping.ship(tmp_path, root, None, final=True)
    child = run_id(tmp_path, root)
    final = {k.removeprefix("final/"): v for k, v in latest(root, child).items() if k.startswith("final/")}
    assert final == {
        "test_top1": 72, "test_top5": 99, "validation_top1": 71.5, "params": 10, "flops": 20, "train_seconds": 12.5, "img_s": 345,
        "teacher_agreement": 90.5, "gain_over_teacher": -2.25,
    }  # fmt: skip
    assert {row[1] for row in metric_rows(root, child) if row[0].startswith("final/")} == {0}  # for which MLflow draws bars
    end = read_journal(tmp_path / "journal.jsonl")[-1][1]["time"]
    assert query(root, "SELECT status, end_time FROM runs WHERE run_uuid = ?", child) == [("FINISHED", end)]
    [parent] = runs_of(root, "final", "parent")
    assert "final/test_top1_sd" not in latest(root, parent)  # of one seed there is none
    assert latest(root, parent)["final/test_top1"] == 72

    [run] = read.finished_runs(root, experiment="final")
    assert (run.run_id, run.parent_id, run.tags["vitlab.finished"]) == (child, parent, "true")
    for name in ("config.yaml", "record.json", "predictions.npz", "weights.safetensors", "report.txt", "figures/confusion.png"):
        assert run.fetch(name, tmp_path / "unused").read_bytes() == (tmp_path / name).read_bytes()
        assert read.download(root, child, name, tmp_path / "copy").read_bytes() == (tmp_path / name).read_bytes()
    assert not (tmp_path / "unused").exists()
    with pytest.raises(UserError, match=r"has no nothing\.txt"):
        run.fetch("nothing.txt", tmp_path / "copy")


def test_parent_has_mean_sd_and_interval_over_seeds(root: Path, tmp_path: Path) -> None:
    values = [70.0, 72.0, 74.0]
    for seed, top1 in enumerate(values):
        start(tmp_path / str(seed), info("seeds", seed))
        finish(tmp_path / str(seed), top1)
        shipping.ship(tmp_path / str(seed), root, None, final=True)
    [parent] = runs_of(root, "seeds", "parent")
    assert len(runs_of(root, "seeds", "seed")) == 3
    summary = latest(root, parent)
    assert summary["final/seeds"] == 3
    assert summary["final/test_top1"] == 72
    assert summary["final/test_top1_sd"] == pytest.approx(2)
    # by hand: 72 -+ t(2, 0.975) * 2 / sqrt(3) = 72 -+ 4.302653 * 1.154701
    assert summary["final/test_top1_ci95_low"] == pytest.approx(67.031725, abs=1e-5)
    assert summary["final/test_top1_ci95_high"] == pytest.approx(76.968275, abs=1e-5)
    assert interval(values)[2:] == pytest.approx(stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)))
    assert tags(root, parent)["vitlab.seeds"] == "0,1,2"
    assert status(root, parent) == "FINISHED"

    child = run_id(tmp_path / "1", root)
    before = metric_rows(root, parent), metric_rows(root, child)
    (tmp_path / "1" / "mlflow.json").unlink()
    shipping.ship(tmp_path / "1", root, None, final=True)
    assert (metric_rows(root, parent), metric_rows(root, child)) == before


def test_statuses_and_what_a_resume_makes_of_them(root: Path, tmp_path: Path) -> None:
    journal = start(tmp_path, info("statuses"))
    shipping.ship(tmp_path, root, journal.size(), final=False)
    child, [parent] = run_id(tmp_path, root), runs_of(root, "statuses", "parent")
    seen = [(status(root, child), status(root, parent))]
    for end in ("KILLED", "FAILED"):
        shipping.close(tmp_path, root, end)
        seen.append((status(root, child), status(root, parent)))
        shipping.ship(tmp_path, root, journal.size(), final=False)
        seen.append((status(root, child), status(root, parent)))
    assert seen == [(s, s) for s in ("RUNNING", "KILLED", "RUNNING", "FAILED", "RUNNING")]
    assert run_id(tmp_path, root) == child


def test_of_the_attempts_at_a_seed_the_last_finished_one_counts(root: Path, tmp_path: Path) -> None:
    for i, (attempt, top1) in enumerate((("abandoned", None), ("first", 60.0), ("forced", 70.0), ("under way", None))):
        path = tmp_path / attempt / "journal.jsonl"
        start(tmp_path / attempt, info("attempts"))
        path.write_text(re.sub(r'"time": (\d+)', lambda m, i=i: f'"time": {int(m[1]) + 60_000 * i}', path.read_text()))  # a minute apart
        if top1 is not None:
            finish(tmp_path / attempt, top1)
        shipping.ship(tmp_path / attempt, root, None, final=top1 is not None)
    (tmp_path / "first" / "mlflow.json").unlink()  # shipping the first one again does not bring it back
    shipping.ship(tmp_path / "first", root, None, final=True)
    [run] = read.finished_runs(root, experiment="attempts")
    assert run.run_id == run_id(tmp_path / "forced", root)
    assert status(root, run_id(tmp_path / "abandoned", root)) == "KILLED"
    assert status(root, run_id(tmp_path / "under way", root)) == "RUNNING"
    [parent] = runs_of(root, "attempts", "parent")
    assert latest(root, parent)["final/test_top1"] == 70
    assert latest(root, parent)["final/seeds"] == 1


def test_run_deleted_in_mlflow_is_made_again(root: Path, tmp_path: Path) -> None:
    start(tmp_path, info("deleted"))
    finish(tmp_path)
    shipping.ship(tmp_path, root, None, final=True)
    for kind in ("seed", "parent"):
        store.connect(root).client.delete_run(runs_of(root, "deleted", kind)[0])
    assert shipping.sync(tmp_path, root) == [("deleted · overnight · cifar10 · s0", True, "")]
    [child], [parent] = runs_of(root, "deleted", "seed"), runs_of(root, "deleted", "parent")
    assert tags(root, child)["mlflow.parentRunId"] == parent
    assert latest(root, parent)["final/test_top1"] == 72


def test_finished_runs_are_selected_by_tags(root: Path, tmp_path: Path) -> None:
    for i, changes in enumerate(({}, {"profile": "quick"}, {"dataset": "digits"})):
        start(tmp_path / str(i), info("selected", **changes))
        if i < 2:
            finish(tmp_path / str(i))
        shipping.ship(tmp_path / str(i), root, None, final=i < 2)

    def found(**selection: str) -> list[str]:
        return [run.run_id for run in read.finished_runs(root, experiment="selected", **selection)]

    ids = [run_id(tmp_path / str(i), root) for i in range(3)]
    assert sorted(found()) == sorted(ids[:2])
    assert found(profile="quick") == [ids[1]]
    assert found(dataset="digits") == []  # not finished
    assert len(runs_of(root, "selected", "parent")) == 3
    assert read.finished_runs(tmp_path / "no store") == []

    through_mlflow = store.connect(root).find({"vitlab.kind": "seed", "vitlab.finished": "true"})
    both = read.finished_runs(root), [(run.info.run_id, run.data.tags) for run in through_mlflow]
    assert [(run.run_id, run.tags) for run in both[0]] == both[1]


OTHER_PROCESS = """
import sys
from pathlib import Path
import mlflow
from vitlab.track import shipping
print("ready", flush=True)
shipping.ship(Path(sys.argv[1]), Path(sys.argv[2]), None, final=True)
"""


def test_processes_that_start_together_share_store_and_parent_and_a_moved_store_keeps_its_artifacts(tmp_path: Path) -> None:
    old = tmp_path / "old"
    for seed in range(2):
        start(old / "runs" / str(seed), info("fan-out", seed))
        finish(old / "runs" / str(seed), 70.0 + 2 * seed)
    command = [sys.executable, "-c", OTHER_PROCESS, str(old / "runs" / "0"), str(old)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        shipping.ship(old / "runs" / "1", old, None, final=True)
        assert (other.communicate()[1], other.returncode) == ("", 0)
    [parent] = runs_of(old, "fan-out", "parent")
    assert len(runs_of(old, "fan-out", "seed")) == 2
    assert latest(old, parent)["final/test_top1"] == 71
    assert latest(old, parent)["final/seeds"] == 2

    new = tmp_path / "new"
    old.rename(new)
    runs = read.finished_runs(new)
    assert [run.fetch("report.txt", tmp_path / "unused").read_text() for run in runs] == [
        f"report.txt of fan-out · overnight · cifar10 · s{run.tags['vitlab.seed']}" for run in runs
    ]
    assert all(run.folder is not None and run.folder.is_relative_to(new) for run in runs)
    store.prepare_store(new)
    assert [run.folder for run in read.finished_runs(new)] == [run.folder for run in runs]
    start(new / "runs" / "2", info("fan-out", 2))
    finish(new / "runs" / "2", 72.0)
    shipping.ship(new / "runs" / "2", new, None, final=True)
    assert runs_of(new, "fan-out", "parent") == [parent]
    assert latest(new, parent)["final/seeds"] == 3
    assert not old.exists()


# -------------------------------------------------------------------------------------------------------- the Shipper


def test_shipper_exports_no_model_once_nobody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would do so amid the training of the next run in this process."""
    from torch import nn

    answers, exported = threading.Event(), []

    def slow_server(run_dir: Path, root: Path, final_model: shipping.Model) -> None:
        assert answers.wait(60)
        exported.append(final_model())

    monkeypatch.setattr("vitlab.track.shipper.note", lambda *_: None)
    monkeypatch.setattr("vitlab.track.shipper.ship_noted", slow_server)
    shippers = [Shipper(tmp_path, tmp_path) for _ in range(2)]
    model, images = nn.Linear(1, 1), np.zeros((2, 3, 32, 32), np.uint8)
    for shipper in shippers:
        shipper.finish(model, images)
    assert not shippers[0].arrived(lambda: 0)
    answers.set()
    assert shippers[1].arrived(lambda: 60)
    for thread in threading.enumerate():
        if thread.name == "mlflow-shipper":
            thread.join(60)
    assert exported == [(model, images)]


def test_shipper_ships_in_the_background_and_the_model_comes_back(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    model.train()(torch.randn(8, 3, 32, 32))  # running statistics other than the initial ones
    journal = start(tmp_path, info("shipper"), epochs=1)
    shipper = Shipper(root, tmp_path)
    shipper.notify(journal.size())
    journal.append("metrics", step=2, values={"train/loss": 0.5})
    finish(tmp_path)
    shipper.notify(journal.size())
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    shipper.finish(model=model, example=images)
    assert shipper.arrived(lambda: 60), shipper.outstanding
    child = run_id(tmp_path, root)
    assert status(root, child) == "FINISHED"
    assert [row for row in metric_rows(root, child) if not row[0].startswith("final/")] == expected_rows(tmp_path)
    assert model.training  # untouched
    assert not any(thread.name == "mlflow-shipper" for thread in threading.enumerate())

    model_id = json.loads((tmp_path / "mlflow.json").read_text())["stores"][shipping.tracking_uri(root)]["model_id"]
    assert query(root, "SELECT source_run_id, status FROM logged_models WHERE model_id = ?", model_id) == [(child, 2)]  # 2: READY

    def outputs() -> list[str]:
        return [output.model_id for output in store.connect(root).client.get_run(child).outputs.model_outputs]

    assert outputs() == [model_id]
    assert mlflow_model.log_model(root, child, model, images) == model_id  # as after a kill, before it was noted
    assert outputs() == [model_id]
    with sqlite3.connect(root / "mlflow.db") as db:  # and as after one before it was linked
        db.execute("DELETE FROM inputs WHERE destination_id = ?", (model_id,))
    assert mlflow_model.log_model(root, child, model, images) == model_id
    assert outputs() == [model_id]
    assert store.connect(root).client.get_logged_model(model_id).name == "shipper"
    import mlflow.pytorch

    monkeypatch.setenv("MLFLOW_TRACKING_URI", shipping.tracking_uri(root))
    loaded = mlflow.pytorch.load_model(f"models:/{model_id}")
    images = torch.randn(5, 3, 32, 32)  # another batch size than the example's
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))
    about = mlflow.models.get_model_info(f"models:/{model_id}")
    assert [tuple(tensor.shape) for tensor in (*about.signature.inputs, *about.signature.outputs)] == [(-1, 3, 32, 32), (-1, 10)]
    assert mlflow.active_run() is None


def test_server_that_is_down_costs_nothing_and_sync_ships_later(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # and nobody listens there
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    journals = [start(tmp_path / name, info("down", seed), epochs=1) for seed, name in enumerate(("done", "half", "new"))]
    done, half = (Shipper(root, tmp_path / name) for name in ("done", "half"))
    done.notify(journals[0].size())
    half.notify(journals[1].size())
    journals[1].append("metrics", step=2, values={"train/loss": 0.5})  # no checkpoint covers it
    finish(tmp_path / "done")
    done.finish()
    assert not done.arrived(lambda: 30)
    assert not half.close("KILLED", 30)
    assert done.outstanding == "[Errno 111] Connection refused"
    assert store.reason(ValueError("http://user:secret@example.org:5000/api: 403\nand more")) == "http://example.org:5000/api: 403"
    assert [ok for _, ok, _ in shipping.sync(tmp_path, root)] == [False, False]

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [ok for _, ok, _ in shipping.sync(tmp_path, root)] == [True, True]
    assert shipping.sync(tmp_path, root) == []  # nothing outstanding
    assert status(root, run_id(tmp_path / "done", root)) == "FINISHED"
    assert status(root, run_id(tmp_path / "half", root)) == "KILLED"
    assert {row[1] for row in metric_rows(root, run_id(tmp_path / "half", root))} == {1}
    assert len(runs_of(root, "down", "seed")) == 2


def test_server_that_never_answers_holds_nobody_up(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        start(tmp_path, info("silent"))
        finish(tmp_path)
        before = set(threading.enumerate())
        shipper = Shipper(root, tmp_path)
        (thread,) = (t for t in threading.enumerate() if t.name == "mlflow-shipper" and t not in before)
        shipper.finish()
        assert not shipper.arrived(lambda: 0.2)
        assert shipper.outstanding == "still on its way after 0.2 s"
        thread.join(30)
        assert not thread.is_alive()
        assert shipper.outstanding == "timed out"


def test_one_damaged_run_does_not_keep_the_others_from_being_synced(root: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        start(tmp_path / name, info("damaged", seed))
        finish(tmp_path / name)
    (tmp_path / "a" / "record.json").write_text("{")
    outcome = shipping.sync(tmp_path, root)
    assert [(label, ok) for label, ok, _ in outcome] == [(f"damaged · overnight · cifar10 · s{i}", i == 1) for i in range(2)]
    assert "record.json: not a readable run record" in outcome[0][2]
    shutil.rmtree(tmp_path / "a")
    assert shipping.sync(tmp_path, root) == []


def test_a_run_that_another_process_ships_is_waited_for_and_then_left(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that looked at once what is there would both add it, the model above all."""
    start(tmp_path, info("shipped by another"))
    monkeypatch.setattr(shipping, "SHIPPING_SECONDS", 0.2)
    with shipping.FileLock(tmp_path / "mlflow.lock"), pytest.raises(TimeoutError, match="another process is shipping it"):
        shipping.ship(tmp_path, root, None, final=False)
    shipping.ship(tmp_path, root, None, final=False)


@pytest.mark.parametrize(
    "e", [requests.HTTPError("413"), TimeoutError("busy"), ModuleNotFoundError("psycopg2"), ValueError("Invalid IPv6 URL")], ids=repr
)
def test_what_a_store_does_is_told_in_one_line(e: Exception, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(str(e))), registry.reaching(tmp_path):
        raise e


def test_an_own_database_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(root: Path) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(read, "own_runs", locked)
    with pytest.raises(UserError, match="database is locked"):
        read.finished_runs(tmp_path)
