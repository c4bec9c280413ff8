"""A small run at home in a temporary folder, trained and shipped while MLflow is in trouble; and whether all of it is there in the end."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.world import TINY
from vitlab import cli, records
from vitlab.run import execute
from vitlab.track import store
from vitlab.track.journal import read_journal
from vitlab.train import checkpoint, loop, machine

EPOCHS = 3
TRAINING_SECONDS = 20.0  # at most, on a busy machine; a slow server, or a locked database, would hold it up for longer


def home(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """Make `root` the commands' own folder, with one experiment in it."""
    root.mkdir(exist_ok=True)
    for attribute, path in (("ROOT", root), ("RUNS", root / "runs"), ("REPORTS", root / "reports"), ("RESULTS", root / "results")):
        monkeypatch.setattr(cli, attribute, path)
    monkeypatch.setattr(execute, "ROOT", root)
    monkeypatch.setattr(execute, "SHIP_SECONDS", 3)
    monkeypatch.setattr(machine, "measured_peak", lambda *_: 1e11)
    monkeypatch.setattr(loop, "SAVING_SHARE", 1e9)  # a checkpoint each epoch, and so something to ship
    name = re.sub(r"\W+", "-", name.removeprefix("test_")).strip("-")
    (root / f"{name}.yaml").write_text(TINY.replace("epochs: 1", f"epochs: {EPOCHS}"))
    return root


def train(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    (path,) = root.glob("*.yaml")
    with pytest.raises(SystemExit) as e:
        cli.run_main([str(path), "--profile", "full", "--data", "digits"])
    out, err = capsys.readouterr()
    assert e.value.code == 0, out + err
    (record,) = root.glob("runs/*/*/*/record.json")
    assert records.read(record).train_seconds < TRAINING_SECONDS
    return out


def sync(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as e:
        cli.main(["sync", str(root / "runs")])
    out, err = capsys.readouterr()
    assert e.value.code == 0, out + err
    return out


def at_the_second_checkpoint(monkeypatch: pytest.MonkeyPatch, strike: Callable[[Path], object]) -> list[Path]:
    """Have `strike(folder)` called after a run's second checkpoint, and return the list that each checkpoint's folder is added to."""
    save, saved = checkpoint.save, []

    def striking(folder: Path, state: dict) -> None:
        save(folder, state)
        saved.append(folder)
        if len(saved) == 2:
            strike(folder)

    monkeypatch.setattr(checkpoint, "save", striking)
    return saved


def wait_for_shippers() -> None:
    """Until they have given up: as in a process that has ended."""
    for thread in threading.enumerate():
        if thread.name == "mlflow-shipper":
            thread.join(60)


def assert_all_is_there_once(root: Path) -> None:
    """One finished run, each epoch's metrics once as the journal has them, the artifacts, and one model."""
    (folder,) = (p.parent for p in root.glob("runs/*/*/*/record.json"))
    client = MlflowClient(tracking_uri=store.tracking_uri(root))
    experiment_id = client.get_experiment_by_name("vitlab").experiment_id
    runs = client.search_runs([experiment_id], f"tags.`vitlab.kind` = 'seed' AND tags.`vitlab.experiment` = '{folder.parent.name}'")
    assert [(run.info.status, run.data.tags["vitlab.finished"]) for run in runs] == [("FINISHED", "true")]
    run_id = runs[0].info.run_id
    lines = [entry for _, entry in read_journal(folder / "journal.jsonl") if entry["kind"] == "metrics"]
    assert [line["step"] for line in lines] == list(range(1, EPOCHS + 1))
    for key in lines[-1]["values"]:
        expected = [(line["step"], line["values"][key]) for line in lines if key in line["values"]]
        assert sorted((m.step, m.value) for m in client.get_metric_history(run_id, key)) == expected, key
    assert {"record.json", "predictions.npz", "weights.safetensors"} <= {f.path for f in client.list_artifacts(run_id)}
    models = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    assert [str(model.status) for model in models] == ["READY"]
