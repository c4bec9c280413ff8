"""The journal: whole lines or none, whatever happens; and what the machine says of itself in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.journals import info
from vitlab.errors import UserError
from vitlab.track.journal import Journal, RunInfo, begun, read_journal
from vitlab.train import machine


def test_journal_keeps_what_json_has_no_number_for(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("metrics", step=3, values={"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.5)})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "j").read_text(), parse_constant=refuse)
    [(end, entry)] = read_journal(tmp_path / "j")
    assert end == journal.size() == (tmp_path / "j").stat().st_size
    assert math.isnan(entry["values"].pop("a"))
    assert entry["values"] == {"b": math.inf, "c": -math.inf, "d": 0.5}
    assert entry["step"] == 3


def test_half_written_line_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append("event", text="one")
    whole = journal.size()
    with path.open("ab") as f:
        f.write(b'{"kind": "event", "ti')
    assert [end for end, _ in read_journal(path)] == [whole]  # a reader beside the writer sees whole lines only
    journal = Journal(path)
    assert journal.size() == whole
    journal.append("event", text="two")
    assert [entry["text"] for _, entry in read_journal(path)] == ["one", "two"]


def test_truncate_goes_back_to_a_checkpoint(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("event", text="covered")
    size = journal.size()
    journal.append("event", text="to be replayed")
    journal.sync()
    journal.truncate(size)
    journal.append("event", text="replayed")
    assert [entry["text"] for _, entry in read_journal(tmp_path / "j")] == ["covered", "replayed"]
    with pytest.raises(UserError, match="the checkpoint speaks of 9999"):
        journal.truncate(9999)


def test_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"kind": "event", "time": 1}\n{"ki\n{"kind": "event", "time": 2}\n')
    with pytest.raises(UserError, match="j:2: not a journal's line"):
        read_journal(tmp_path / "j")
    for line in ("[]", "7", '{"kind": "event"}', '{"kind": "metrics", "time": 1, "values": [1]}', "[" * 9999):
        (tmp_path / "j").write_text(line + "\n")
        with pytest.raises(UserError, match="j:1: not a journal's line"):
            read_journal(tmp_path / "j")


def test_run_info_round_trip_and_damage(tmp_path: Path) -> None:
    about = info("01")
    about.write(tmp_path)
    assert RunInfo.read(tmp_path) == about
    (tmp_path / "run.json").write_text('{"experiment": "01"}')
    with pytest.raises(UserError, match=r"run\.json: not a readable description"):
        RunInfo.read(tmp_path)


def test_system_metrics_are_this_process() -> None:
    values = machine.system_metrics()
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    assert values["system/process_memory_megabytes"] == pytest.approx(int(resident.split()[1]) * 1024 / 1e6, rel=0.05)
    assert 0 <= values["system/cpu_utilization_percentage"] <= 100


def test_system_metrics_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml
    import torch

    uuid = "5b1b0d7f-0000-0000-0000-000000000001"
    handles = {f"GPU-{uuid}": "handle"}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuid))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handles.__getitem__)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", {"handle": SimpleNamespace(used=3_000_000)}.__getitem__)

    def sliced(_: str) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def gpu(init: object, utilisation: object) -> dict[str, float]:
        monkeypatch.setattr(pynvml, "nvmlInit", init)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", utilisation)
        machine.nvml_gpu.cache_clear()
        return {k: v for k, v in machine.system_metrics().items() if k.startswith("system/gpu")}

    memory = {"system/gpu_memory_usage_megabytes": 3.0}
    assert gpu(lambda: None, lambda _: SimpleNamespace(gpu=87)) == memory | {"system/gpu_utilization_percentage": 87.0}
    assert gpu(lambda: None, sliced) == memory
    assert gpu(missing, sliced) == {}
    machine.nvml_gpu.cache_clear()


def test_when_a_journal_was_begun_is_in_its_first_line_and_the_rest_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b'{"kind": "event", "time": 1700000000000, "text": "one"}\n{cut\n')
    assert begun(path) == 1_700_000_000_000
    for nothing in (b"", b'{"kind": "event", "ti'):
        path.write_bytes(nothing)
        assert begun(path) is None
    path.write_bytes(b"{cut\n")
    with pytest.raises(UserError, match="j:1: not a journal's line"):
        begun(path)
    with pytest.raises(UserError, match="no-such"):
        begun(tmp_path / "no-such")
