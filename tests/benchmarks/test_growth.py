"""Growth beside work: the arithmetic on numbers worked by hand, the page from a result made by hand, and two tiny sizes for real."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from benchmarks import growth, growth_page
from tests.support.measurements import growth as made_up
from vitlab.models import cost
from vitlab.track import read

pytestmark = pytest.mark.slow


def test_excess_is_growth_of_time_over_growth_of_work() -> None:
    # medians 2, 6, 9; work 1, 2, 4: time x3 for work x2, then x1.5 for work x2
    points = growth_page.series([(8, 1, [2.0, 1.0, 30.0]), (16, 2, [6.0]), (32, 4, [8.0, 10.0])])
    assert [p["excess"] for p in points] == [None, 1.5, 0.75]
    assert [p["at"] for p in points] == [8, 16, 32]


def test_page_when_all_is_reached() -> None:
    text = growth_page.page(made_up())
    assert "not reached" not in text
    assert "idle" not in text
    assert "Faster than its work" not in text
    assert "| report: `vitlab report`, first time, 1,000 runs | ≤ 10 s | 9.0 s (8.0–10.0) | reached |" in text
    assert "| steps whose time grows more than 1.25 times as fast as their work | none | none | reached |" in text
    assert "| 1 | 1.000 | 11.000 (10.000–12.000) | 90.9 |  |" in text  # 1 GFLOP in 11 ms
    assert "| 2 | 2.000 | 22.000 (22.000–22.000) | 90.9 | 1.00 |" in text
    assert "| 1,000 | 9.000 (8.000–10.000) | 0.30 |" in text  # 3 times the seconds for 10 times the runs


def test_page_says_what_is_missed() -> None:
    missed = made_up(report=10.5, again=3.2) | {"load": 3.25}
    missed["series"]["ship"] = growth_page.series([(10, 1, [0.4]), (100, 1, [0.4]), (1000, 1, [0.52])])
    text = growth_page.page(missed)
    assert "| report: `vitlab report`, first time, 1,000 runs | ≤ 10 s | 10.5 s (9.5–11.5) | **not reached** |" in text
    assert "| report: `vitlab report`, again, 1,000 runs | ≤ 3 s | 3.2 s (3.1–3.3) | **not reached** |" in text
    assert "**Faster than its work:** shipping one more run to MLflow, 100 to 1,000: time grows 1.30 times as fast as the work." in text
    assert text.count("**Faster than its work:**") == 1
    assert "**Not on an idle machine:** other work had a load of 3.2 when it began." in text
    assert "| 1,000 | 0.520 (0.520–0.520) | **1.30** |" in text


def test_plots_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        growth_page.plots(copy.deepcopy(made_up()), tmp_path / name)
        drawn.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert drawn[0].keys() == {"growth-training.png", "growth-runs.png"}
    assert drawn[0] == drawn[1]
    assert all(f"({name})" in growth_page.page(made_up()) for name in drawn[0])


def test_training_of_two_sizes_for_real() -> None:
    sizes = {"batch": [growth.Size(8, 2, 2), growth.Size(8, 2, 4)], "depth": [growth.Size(8, 2, 2)]}
    measured = growth.training(sizes, 2, 0.0, torch.device("cpu"), lambda text: None)
    small, large = measured["batch"]
    assert (small["at"], large["at"]) == (2, 4)
    assert small["work"] == large["work"] == cost.training_flops(growth.Size(8, 2, 2).load().model, growth.CLASSES)
    assert all(0 < s < 5 for p in (small, large) for s in p["seconds"])
    assert [len(p["seconds"]) for p in (small, large)] == [2, 2]
    assert measured["depth"][0]["seconds"] == small["seconds"]  # a size in two series is measured once


@pytest.mark.parametrize(("patch", "tokens"), [(8, 16), (4, 64), (2, 256)])
def test_tokens_of_a_patch(patch: int, tokens: int) -> None:
    assert growth.Size(patch=patch).tokens == tokens


def test_a_store_of_many_runs_for_real(tmp_path: Path) -> None:
    """Ten groups, each one's first shipped; two seeds more, one copied and one shipped: all are found, in folders and in MLflow."""
    store = growth.Store(tmp_path)
    assert store.fill(12) > 0
    found = read.finished_runs(tmp_path)
    assert sorted((r.tags["vitlab.fingerprint"], r.tags["vitlab.seed"]) for r in found) == sorted(
        tuple(p.parent.name.split("-s")) for p in tmp_path.glob("runs/*/*/*/record.json")
    )
    assert len(found) == 12
    assert all((r.folder / "record.json").is_file() for r in found)
