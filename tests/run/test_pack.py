"""pack.py: what plain tools unpack are the runs again, to everything that reads runs; and nothing is lost on the way unsaid."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support.cli import run
from tests.support.world import TAUGHT, TINY, World
from vitlab import cli, files, records
from vitlab.errors import UserError
from vitlab.run import execute, pack, published
from vitlab.track import read

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def enter(root: Path, patch: pytest.MonkeyPatch) -> None:
    """The commands work in `root`, with an MLflow store of its own."""
    root.mkdir(exist_ok=True)
    for name, value in (("ROOT", root), ("RUNS", root / "runs"), ("REPORTS", root / "reports"), ("RESULTS", root / "results")):
        patch.setattr(cli, name, value)
    patch.setattr(execute, "ROOT", root)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.chdir(root)


TRAIN = ("taught.yaml", "--profile", "full", "--data", "digits")


def test_what_is_unpacked_elsewhere_are_finished_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained and shipped in one place; packed; in another place shipped, reported, predicted with and learnt from."""
    here, there = tmp_path / "here", tmp_path / "a place of its own"
    enter(here, monkeypatch)
    for place in (here, there):
        place.mkdir(exist_ok=True)
        (place / "tiny.yaml").write_text(TINY)
        (place / "taught.yaml").write_text(TAUGHT)
    code, out, err = run(capsys, *TRAIN)
    assert code == 0, out + err
    (student,) = (here / "runs" / "full-digits" / "taught").iterdir()
    trained = contents(here / "runs")
    assert {"mlflow.json", "journal.jsonl", "run.json", "predictions.npz"} <= {p.name for p in student.iterdir()}

    for name in (
        "checkpoint.pt", "checkpoint.previous.pt", "mlflow.lock", "record.json.01234567.tmp", "figures/curves.png.89abcdef.tmp", "0-1.logits",
    ):  # fmt: skip
        (student / name).write_bytes(b"of no use elsewhere")
    unfinished = student.parent / "0123456789ab-s7"
    shutil.copytree(student, unfinished)
    (unfinished / "record.json").unlink()
    monkeypatch.setattr(pack, "PART_BYTES", 20_000)
    code, out, err = run(capsys, "pack", "runs/full-digits", main=cli.main)
    assert code == 0, err
    said = out.splitlines()
    parts = sorted((here / "packed").iterdir())
    assert [p.name for p in parts] == [f"full-digits.tar.{i:03}" for i in range(len(parts))]
    assert len(parts) > 1
    assert {p.stat().st_size for p in parts[:-1]} == {20_000}
    assert said[0] == "full-digits/taught/0123456789ab-s7: not finished, left out"
    assert said[1:-1] == [f"packed/{p.name}: {p.stat().st_size / 1e6:.1f} MB" for p in parts]

    command = said[-1].partition(": ")[2]
    assert command == "mkdir -p runs && cat packed/full-digits.tar.* | tar xf - -C runs"
    enter(there, monkeypatch)
    shutil.copytree(here / "packed", there / "packed")
    subprocess.run(["bash", "-c", command], check=True, cwd=there)
    unpacked = contents(there / "runs")
    wanted = {name for name in trained if not name.endswith((".lock", ".logits"))}
    assert unpacked.keys() == wanted
    assert {n for n in wanted if unpacked[n] != trained[n]} == {n for n in wanted if n.endswith("/weights.safetensors")}
    for path in (there / "runs").rglob("weights.safetensors"):
        original = load_file(here / path.relative_to(there))
        for name, tensor in load_file(path).items():
            assert torch.equal(tensor, original[name].half())

    # another store, which the runs' mlflow.json says nothing of
    code, out, err = run(capsys, "sync", main=cli.main)
    assert (code, out.count(": shipped")) == (0, 2), out + err
    runs = read.finished_runs(there)
    assert {r.tags["vitlab.experiment"] for r in runs} == {"tiny", "taught"}
    assert run(capsys, "sync", main=cli.main)[1].startswith("nothing outstanding")

    code, _, err = run(capsys, "report", "--publish", main=cli.main)
    assert code == 0, err
    out_dir = there / "results" / "full-digits"
    found = records.read_all(out_dir)
    assert {r.experiment: r for r in found} == {r.experiment: r for r in map(records.read, (here / "runs").glob("*/*/*/record.json"))}
    assert {path.name: r.experiment for path, r in published.find(out_dir, found).items()} == {
        "tiny.safetensors": "tiny", "taught.safetensors": "taught",
    }  # fmt: skip

    image = there / "grey.png"
    Image.new("RGB", (32, 32), "grey").save(image)
    code, out, err = run(capsys, "predict", image, "--run", there / student.relative_to(here), main=cli.main)
    assert (code, err) == (0, "")
    own = out.splitlines()
    (there / "runs").rename(there / "gone")  # as in a fresh clone: the same model, from results/
    code, out, err = run(capsys, "predict", image, "--data", "digits", main=cli.main)
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == own[1:]
    facts, _, _ = own[0].rpartition(": own run ")
    assert out.splitlines()[0] == f"{facts}: published weights {out_dir / published.FOLDER / 'taught.safetensors'}"
    (there / "gone").rename(there / "runs")

    # the ladder goes on where it was: nothing is trained twice, and a new student learns from the teacher that came along
    code, out, err = run(capsys, *TRAIN, "--set", "optim.lr=2e-3")
    assert code == 0, out + err
    assert "1/2" in out.split("finished before, skipped")[0]
    assert out.count("finished before, skipped") == 1
    code, out, _ = run(capsys, *TRAIN)
    assert (code, out.count("finished before, skipped")) == (0, 2)


# --------------------------------------------------------------------------------------------------- one fabricated run


def digest(parts: list[Path]) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in parts)).hexdigest()


def test_the_same_runs_give_the_same_bytes(world: World) -> None:
    runs = world.root / "runs"
    first = pack.pack(runs, runs, world.root / "a", lambda _: None)
    assert [p.name for p in first] == ["runs.tar.000"]
    for path in world.folder("tiny").rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    assert digest(pack.pack(runs, runs, world.root / "b", lambda _: None)) == digest(first)
    listed = subprocess.run(["tar", "tvf", first[0], "--utc"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert all(line.startswith("-rw-r--r-- 0/0 ") and " 2026-01-01 00:01 " in line for line in listed), listed
    assert listed[-1].endswith("/record.json"), "cut short, unpacking would leave a run that seems finished"


def test_parts_of_a_longer_archive_of_that_name_go(world: World) -> None:
    to = world.root / "to"
    to.mkdir()
    stale = {"full-digits.tar.000", "full-digits.tar.007", "full-digits.tar.100"}
    others = {"runs.tar.001", "full-digits.tar.old", "other-full-digits.tar.001"}
    for name in stale | others:
        (to / name).write_text("earlier")
    (to / ".full-digits.tar-killed").mkdir()
    (part,) = pack.pack(world.root / "runs" / "full-digits", world.root / "runs", to, lambda _: None)
    assert {p.name for p in to.iterdir()} == others | {part.name}
    assert part.read_bytes() != b"earlier"


def test_one_run_alone_keeps_its_place(world: World) -> None:
    folder = world.folder("tiny")
    (part,) = pack.pack(folder, world.root / "runs", world.root / "to", lambda _: None)
    listed = subprocess.run(["tar", "tf", part], capture_output=True, text=True, check=True).stdout.split()
    assert {Path(name).parent.as_posix() for name in listed} == {folder.relative_to(world.root / "runs").as_posix()}


def test_a_weight_beyond_half_precision_is_named_and_nothing_left_half_packed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path, runs = world.folder("tiny") / "weights.safetensors", world.root / "runs"
    weights = load_file(path)
    name = max(weights, key=lambda k: weights[k].numel())
    weights[name].view(-1)[3] = 65_504.0  # the largest there is
    save_file(weights, path)
    earlier = contents(world.root / "to") if pack.pack(runs, runs, world.root / "to", lambda _: None) else {}
    assert earlier
    weights[name].view(-1)[3] = -65_536.0
    save_file(weights, path)
    (path.parent / "a.bin").write_bytes(os.urandom(3_000_000))  # before the weights
    monkeypatch.setattr(pack, "PART_BYTES", 100_000)
    written: list[Path] = []
    write = files.write
    monkeypatch.setattr(files, "write", lambda path, content: (written.append(path), write(path, content)))
    with pytest.raises(UserError, match="beyond half precision") as e:
        pack.pack(runs, runs, world.root / "to", lambda _: None)
    assert f"{path}: {name} holds -65536" in str(e.value)
    assert written
    assert contents(world.root / "to") == earlier, "perhaps the last good copy of those weights"


def test_integers_stay_as_they_are(world: World) -> None:
    path, runs = world.folder("tiny") / "weights.safetensors", world.root / "runs"
    save_file({"batches": torch.tensor(2**40 + 1), "mean": torch.tensor([1 / 3])}, path)
    (part,) = pack.pack(runs, runs, world.root / "to", lambda _: None)
    subprocess.run(["tar", "xf", part, "-C", world.root / "to"], check=True)
    found = load_file(world.root / "to" / path.relative_to(runs))
    assert {k: (v.dtype, v.tolist()) for k, v in found.items()} == {
        "batches": (torch.int64, 2**40 + 1),
        "mean": (torch.float16, [0.333251953125]),
    }


def test_a_large_run_streams(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what goes in nor what comes out is held whole."""
    monkeypatch.setattr(pack, "PART_BYTES", 1_000_000)
    with (world.folder("tiny") / "large.bin").open("wb") as f:
        for _ in range(20):
            f.write(os.urandom(1_000_000))
    tracemalloc.start()
    try:
        parts = pack.pack(world.root / "runs", world.root / "runs", world.root / "to", lambda _: None)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert len(parts) == 21
