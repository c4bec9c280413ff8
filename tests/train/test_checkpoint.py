"""A checkpoint is whole or passed over; two are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitlab.train import checkpoint

CPU = torch.device("cpu")


def test_round_trip_and_rotation(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, CPU) == (None, [])
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, {"step": step, "w": torch.full((3,), float(step)), "history": [{"a": 1.5}], "none": None})
    state, damaged = checkpoint.load(tmp_path, CPU)
    assert state["step"] == 3
    assert torch.equal(state["w"], torch.full((3,), 3.0))
    assert damaged == []
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(checkpoint.NAMES)
    checkpoint.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_one_is_named_and_the_one_before_it_used(damage: str, tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, {"step": step})
    newest = tmp_path / checkpoint.NAMES[0]
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    elif damage == "cut":
        newest.write_bytes(content[:-7])
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        newest.unlink()
    state, damaged = checkpoint.load(tmp_path, CPU)
    assert state == {"step": 1}
    assert len(damaged) == (0 if damage == "gone" else 1)
    assert all(str(newest) in line for line in damaged)


def test_a_failed_write_leaves_the_previous_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path, {"step": 2, "bad": lambda: None})
    assert checkpoint.load(tmp_path, CPU)[0] == {"step": 1}
