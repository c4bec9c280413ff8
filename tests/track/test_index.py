"""track/index.py: the finished runs of a store that others share, here another database than the root's own."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from tests.support import journals
from vitlab.track import index, read, shipping
from vitlab.track.store import Store, connect


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    return connect(tmp_path)


def finish(root: Path, name: str, top1: float, seed: int = 0) -> str:
    """Ship a finished run; returns the SHA-256 of its record."""
    folder = root / "runs" / name
    journals.start(folder, journals.info("indexed", seed)).close()
    journals.finish(folder, top1)
    shipping.ship(folder, root, None, final=True)
    return index.digest((folder / "record.json").read_bytes())


def test_the_index_has_finished_runs_and_the_last_attempt_alone(shared: Store, tmp_path: Path) -> None:
    digests = [finish(tmp_path, "first", 70.0), finish(tmp_path, "other", 71.0, seed=1)]
    runs = read.finished_runs(tmp_path)
    assert [(run.tags["vitlab.seed"], run.digest) for run in runs] == [("0", digests[0]), ("1", digests[1])]
    assert index.read(shared).keys() == {run.run_id for run in runs}
    for run in runs:  # what it says is what the run's own tags say
        tags = shared.client.get_run(run.run_id).data.tags
        assert {k: v for k, v in run.tags.items() if k not in (index.RECORD, index.URI)}.items() <= tags.items()
        assert tags[index.INDEXED] == "true"
        assert run.parent_id == tags["mlflow.parentRunId"]
        assert index.digest(run.fetch("record.json", tmp_path / "d").read_bytes()) == run.digest
    assert read.finished_runs(tmp_path, experiment="indexed", profile="full") == []

    again = finish(tmp_path, "first again", 72.0)  # as with --force
    latest = {run.tags["vitlab.seed"]: run for run in read.finished_runs(tmp_path)}
    assert latest["0"].digest == again
    assert latest["0"].run_id != runs[0].run_id
    assert len(latest) == len(index.read(shared)) == 2

    shipping.ship(tmp_path / "runs" / "other", tmp_path, None, final=True)  # once more: nothing changes
    assert {run.run_id for run in read.finished_runs(tmp_path)} == {run.run_id for run in latest.values()}


def test_runs_whose_shard_was_deleted_stay_until_another_attempt_takes_their_place(shared: Store, tmp_path: Path) -> None:
    digests = [finish(tmp_path, "first", 70.0), finish(tmp_path, "other", 71.0, seed=1)]
    for run in read.finished_runs(tmp_path):
        shared.client.delete_run(index.shard(shared, index.shard_number(run.run_id)))
    assert [run.digest for run in read.finished_runs(tmp_path)] == digests
    again = finish(tmp_path, "first again", 72.0)
    assert {run.digest for run in read.finished_runs(tmp_path)} == {again, digests[1]}


def test_names_that_would_lead_out_of_a_folder_are_no_runs(shared: Store, tmp_path: Path) -> None:
    shard = index.shard(shared, 0)
    entry = json.dumps({"vitlab.kind": "seed", "vitlab.finished": "true", "vitlab.started": "0", "mlflow.parentRunId": "p"})
    for key in ("a/b", "0" * 31, "record"):  # MLflow itself refuses /etc/passwd
        shared.client.set_tag(shard, key, entry)
    assert read.finished_runs(tmp_path) == []
    shared.client.set_tag(shard, "0" * 32, entry)
    assert [run.run_id for run in read.finished_runs(tmp_path)] == ["0" * 32]


def test_a_pack_gives_the_wanted_records_and_no_changed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, record in (("a", b"one"), ("b", b"changed"), ("c", b"three"), ("d", b"far too long")):
            archive.writestr(name, record)
    monkeypatch.setattr(index, "LARGEST", 8)
    wanted = [(name, index.digest(record)) for name, record in (("a", b"one"), ("b", b"two"), ("d", b"far too long"), ("e", b""))]
    assert index.unpack(content.getvalue(), wanted) == {"a": b"one"}
