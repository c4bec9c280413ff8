"""vitlab promote, and predict with what it registered, against a real SQLite store."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import mlflow.pytorch
import pytest
import torch
from PIL import Image

from tests.support.cli import run
from tests.support.journals import info, start
from tests.support.world import World
from vitlab import cli
from vitlab.errors import UserError
from vitlab.run import predict, promoting
from vitlab.track import registry, store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]


@pytest.fixture
def trained(world: World) -> Path:
    """The finished run of tiny.yaml with what MLflow is fed from."""
    folder = world.folder("tiny")
    fingerprint = folder.name.removesuffix("-s0")
    start(folder, info("tiny", dataset="digits", profile="full", fingerprint=fingerprint)).append("event", text="finished")
    (folder / "figures").mkdir()
    Image.new("RGB", (1, 1)).save(folder / "figures" / "predictions.png")
    return folder


def test_a_champion_answers_is_marked_and_stays_until_a_better_one(world: World, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def vitlab(*argv: object) -> tuple[int, str, str]:
        return run(capsys, *argv, main=cli.main)

    def report() -> str:
        assert vitlab("report")[0] == 0
        return (world.root / "reports" / "full-digits" / "README.md").read_text(encoding="utf-8")

    # another alias first: it marks nothing
    code, out, err = vitlab("promote", trained, "--as", "candidate")
    assert (code, out) == (
        0,
        "models:/vitlab-digits@candidate is version 1: Tiny, tiny, profile full, seed 0, validation top-1 10.00 %, test top-1 10.00 %\n",
    ), err
    assert "★" not in report()
    assert vitlab("promote", trained, "--as", "champion")[0] == 0
    assert registry.champions(world.root) == {("tiny", "", trained.name.removesuffix("-s0"), "0")}
    page = report()
    assert "★ Champion of digits in MLflow's registry: “Tiny”, seed 0." in page
    assert "| Tiny ★ |" in page

    # it answers as the run itself does, from the store alone
    image = world.image()
    _, own, _ = vitlab("predict", image, "--run", trained)
    code, out, err = vitlab("predict", image, "--model", "models:/vitlab-digits@champion")
    assert code == 0, err
    assert out.splitlines()[1:] == own.splitlines()[1:]
    assert out.splitlines()[0].endswith(": models:/vitlab-digits@champion, version 1")

    # a worse one, of a run that is elsewhere, is refused; --force insists
    worse = world.root / "carried"
    worse.mkdir()
    for name in ("record.json", "weights.safetensors"):
        shutil.copy(trained / name, worse)
    text = (worse / "record.json").read_text()
    (worse / "record.json").write_text(text.replace('"seed": 0', '"seed": 7').replace('"validation_top1": 10.0', '"validation_top1": 9.0'))
    code, _, err = vitlab("promote", worse, "--as", "champion")
    assert code == 2
    assert "carried: validation top-1 9.00 % is worse than that of vitlab-digits@champion, version 1, tiny, profile full, seed 0" in err
    assert "--force promotes it all the same" in err
    code, out, _ = vitlab("promote", worse, "--as", "champion", "--force")
    assert code == 0
    assert "is version 2: Tiny, tiny, profile full, seed 7" in out
    assert "; before: version 1, tiny, profile full, seed 0" in out
    chosen = promoting.registered("models:/vitlab-digits@champion", world.root)
    assert chosen.record.seed == 7
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(chosen.load()(x), predict.at(trained).load()(x))
    assert "★" not in report()

    # promoting again makes no other version
    assert vitlab("promote", worse, "--as", "champion")[1].endswith("test top-1 10.00 %\n")
    assert vitlab("promote", trained, "--as", "champion")[0] == 0
    with sqlite3.connect(world.root / "mlflow.db") as db:
        assert db.execute("SELECT version, run_id IS NULL FROM model_versions ORDER BY version").fetchall() == [(1, 0), (2, 1)]
    code, _, err = vitlab("predict", image, "--model", "models:/vitlab-digits@second")
    assert (code, "'vitlab promote RUN --as champion' registers a model" in err) == (2, True)

    # MLflow itself loads it, also from a folder that was moved
    moved = world.root.with_name(f"{world.root.name}-moved")
    world.root.rename(moved)
    world.patch.chdir(moved)
    with registry.reaching(moved):
        assert registry.find(moved, "vitlab-digits", "champion").version == "1"
        theirs = mlflow.pytorch.load_model("models:/vitlab-digits@champion")
    torch.testing.assert_close(theirs(x), chosen.load()(x))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("promote", "other", "--as", "champion"), "this run is not finished; the command that started it goes on"),
        (("promote", "nowhere", "--as", "champion"), "nowhere: no such folder"),
        (("promote", "tiny", "--as", "v2"), "--as v2: expected letters, digits, - and _, and not latest"),
        (("promote", "tiny", "--as", "a b"), "--as a b: expected letters"),
        (("predict", "x.png", "--model", "vitlab-digits@champion"), "expected models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_mistakes_are_told(argv: tuple[str, ...], expected: str, world: World, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.image("x.png")
    code, _, err = run(capsys, *(world.folder(a) if a in ("tiny", "other") else a for a in argv), main=cli.main)
    assert (code, expected in err) == (2, True), err
    assert not (world.root / "mlflow.db").exists()


def test_afterwards_mlflow_looks_where_it_is_told_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for told in ("http://127.0.0.1:9", None):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if told:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", told)
        with registry.reaching(tmp_path):
            assert mlflow.get_tracking_uri() == (told or store.own_uri(tmp_path))
        assert os.environ.get("MLFLOW_TRACKING_URI") == told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:8")
    assert mlflow.get_tracking_uri() == "http://127.0.0.1:8"


def test_a_server_that_is_down_is_named_and_marks_nothing(
    world: World, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, _, err = run(capsys, "promote", trained, "--as", "champion", main=cli.main)
    assert (code, "http://127.0.0.1:9: MLflow cannot be reached" in err, "secret" in err) == (2, True, False), err
    assert registry.champions(world.root) == set()


def test_an_alias_that_mlflow_refuses_is_refused_before() -> None:
    for alias in ("latest", "LATEST", "v1", "1st", "a/b", ""):
        with pytest.raises(UserError):
            registry.check_alias(alias)
    registry.check_alias("champion")
