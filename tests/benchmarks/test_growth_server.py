"""The section about thousands of runs: from a result made by hand, and only where it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import growth_server, growth_server_page, pages
from tests.support.measurements import growth

pytestmark = pytest.mark.slow


def made_up(seconds: float = 4.0) -> dict:
    """Each command takes `seconds` at 10,000 runs, and a quarter at 1,000."""
    points = [{"at": at, "work": at, "seconds": s, "cpu": s / 2, "memory_mb": 300.4, "excess": e} for at, s, e in ((1000, seconds / 4, None), (10_000, seconds, 0.4))]  # fmt: skip
    ship = [{"at": at, "work": 1, "seconds": s, "excess": e} for at, s, e in ((1000, 0.5, None), (10_000, seconds / 4, 2.0))]
    series = {name: ship if name.endswith("ship") else points for name in growth_server_page.TITLES}
    sizes = {
        "1000": {"runs": [1, 1, 1]},
        "10000": {"runs": [3_000_000, 1_000_000, 10_100], "metrics": [2_000_000_000, 4_000_000_000, 19_000_000]},
    }
    return {
        "date": "2026-01-01", "device": "A Processor", "database": "PostgreSQL 15", "load": 0.1, "seconds": 540.0, "series": series, "sizes": sizes,
        "index_bytes": 5_000_000, "artifact_bytes": 900_000_000, "packs": 400, "pack_bytes": 100_000_000,
    }  # fmt: skip


def test_targets_and_sizes_of_a_result_worked_by_hand() -> None:
    text = "\n".join(growth_server_page.section(made_up()))
    assert "| server: `vitlab report`, first time on a machine, 10,000 runs | ≤ 60 s | 4.0 s (2.0 s of processor time) | reached |" in text
    assert "| server: shipping one more run, 10,000 runs | ≤ 1 s | 1.0 s | reached |" in text
    assert "| 10,000 | 4.00 | 0.40 | 2.00 | 300 |" in text
    assert "not reached" not in text
    assert "idle" not in text
    assert "| `metrics` | 1900.0 | 200.00 | 400.00 |" in text  # 19,000,000 rows, 2 and 4 GB, for 10,000 runs
    assert "| all | 1901.0 | 200.30 | 400.10 |" in text
    assert (
        "90.0 kB of artifacts per run (records alone), of which 10.0 kB are in 400 packs. A report asks for an index of 500 bytes" in text
    )


def test_what_is_missed_is_said() -> None:
    text = "\n".join(growth_server_page.section(made_up(61.0) | {"load": 2.0}))
    assert text.count("**not reached**") == len(growth_server_page.WANTED)
    assert "**Not on an idle machine:** other work had a load of 2.0 when it began." in text
    assert "**2.00**" in text  # shipping, whose work does not grow


def test_what_ten_and_a_hundred_times_as_many_runs_come_to() -> None:
    text = growth_server_page.paragraph(made_up())
    assert "| | 10,000 runs, measured | 100,000 | 1,000,000 |".replace("| |", "|  |", 1) in text
    assert "| metrics' rows | 19.0 million | 190 million | 1,900 million |" in text
    assert "| the database, indexes included | 6.0 GB | 60.0 GB | 600 GB |" in text
    assert "| the index, which each report asks for | 5.0 MB | 50.0 MB | 500 MB |" in text
    # 2 s at 10,000 and 0.5 s at 1,000: 1/6000 s with each run more
    assert "| a first report's processor time | 2.0 s | 17.0 s | 167 s |" in text


def test_the_page_has_the_section_only_where_it_was_measured(tmp_path: Path) -> None:
    (tmp_path / "growth.json").write_text(json.dumps(growth()))
    before = pages.growth(tmp_path)
    (tmp_path / "growth-server.json").write_text(json.dumps(made_up()))
    after = pages.growth(tmp_path)
    assert after.startswith(before)
    assert "## Thousands of runs" in after
    assert "## Thousands of runs" not in before


def test_local_runs_by_sql_are_found_and_reported(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitlab import records
    from vitlab.track import read

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = growth_server.Many(tmp_path)
    assert runs.grow(14) > 0
    found = read.finished_runs(tmp_path)
    assert {(run.tags["vitlab.fingerprint"], int(run.tags["vitlab.seed"])) for run in found} == {
        (runs.record(i).fingerprint, runs.record(i).seed) for i in range(14)
    }
    assert all(str(records.read(run.folder / "record.json").seed) == run.tags["vitlab.seed"] for run in found)
    assert len({run.parent_id for run in found}) == len(runs.groups)
