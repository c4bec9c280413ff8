"""A file is there whole or not at all, and a full disk is told as one."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.support.disk import no_file_above, read_only
from vitlab import files
from vitlab.paths import REPOSITORY
from vitlab.track import journal
from vitlab.train import checkpoint, evaluate

NOISE = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
WRITERS = {
    "checkpoint": ("checkpoint.pt", lambda folder: checkpoint.save(folder, {"w": NOISE})),
    "predictions": ("predictions.npz", lambda folder: evaluate.write_predictions(
        folder / "predictions.npz", {"raw": NOISE.reshape(1, -1, 10)}, torch.zeros(10_000), ("cls",), tuple("0123456789"))),
    "weights": ("weights.safetensors", lambda folder: files.write(folder / "weights.safetensors", save({"w": NOISE}))),
    "json": ("run.json", lambda folder: files.write_json(folder / "run.json", "x" * 400_000)),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_told_and_what_was_there_stays(kind: str, tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    write(tmp_path)
    before = (tmp_path / name).read_bytes()
    with no_file_above(100_000), pytest.raises(files.DiskFull) as e:
        write(tmp_path)
    for part in (str(tmp_path / name), "File too large", f"MB free in {tmp_path}", "Make room", "goes on from the last checkpoint"):
        assert part in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == [name], "the half-written file is taken away, since room is what is wanted"
    assert (tmp_path / name).read_bytes() == before


def test_a_full_disk_leaves_no_half_line_in_the_journal(tmp_path: Path) -> None:
    book = journal.Journal(tmp_path / "journal.jsonl")
    book.append("event", text="one")
    with no_file_above(book.size() + 20), pytest.raises(files.DiskFull, match=r"journal\.jsonl: cannot be written"):
        book.append("event", text="two")
    book.append("event", text="three")
    assert [entry["text"] for _, entry in journal.read_journal(tmp_path / "journal.jsonl")] == ["one", "three"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_becomes_read_only_is_told_and_what_was_there_stays(kind: str, tmp_path: Path) -> None:
    """Though neither what is half written nor a lock can be taken away; nobody holds that lock then."""
    name, write = WRITERS[kind]
    write(tmp_path)
    before = (tmp_path / name).read_bytes()

    def write_with_the_lock(until_then: contextlib.ExitStack) -> None:
        with files.held(tmp_path / "lock", pytest.fail):
            until_then.enter_context(read_only(tmp_path))
            write(tmp_path)

    with contextlib.ExitStack() as until_then, pytest.raises(files.DiskFull) as e:
        write_with_the_lock(until_then)
    for part in (str(tmp_path / name), "Read-only file system", "writable again", "goes on from the last checkpoint"):
        assert part in str(e.value)
    assert (tmp_path / name).read_bytes() == before
    with files.held(tmp_path / "lock", pytest.fail):
        write(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.writing(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from vitlab import files
real, calls = getattr(os, sys.argv[2]), 0
def dying(*args):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(os, sys.argv[2], dying)
with files.replacing(Path(sys.argv[1]) / "new", Path(sys.argv[1]) / "old") as f:
    f.write(b"second")
"""


@pytest.mark.parametrize(
    ("call", "nth", "left"), [("fsync", 1, "first"), ("replace", 1, "first"), ("replace", 2, None), ("fsync", 2, "second")]
)
def test_killed_at_any_of_its_steps_one_of_the_two_is_whole(call: str, nth: int, left: str | None, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("first")
    command = [sys.executable, "-c", KILLED, str(tmp_path), call, str(nth)]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == -signal.SIGKILL
    if left is None:  # between the two renamings
        assert (tmp_path / "old").read_text() == "first"
        assert not (tmp_path / "new").exists()
    else:
        assert (tmp_path / "new").read_text() == left


def test_two_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "a") as one, files.replacing(tmp_path / "a") as other:
        one.write(b"one")
        other.write(b"other")
    assert (tmp_path / "a").read_bytes() == b"one", "the last to be finished"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_kills_have_left_is_removed(tmp_path: Path) -> None:
    for name in ("checkpoint.pt", "figures/curves.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("whole")
        files.temporary(path).write_text("ha")
    files.remove_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["checkpoint.pt", "curves.png"]
