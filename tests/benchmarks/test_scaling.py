"""Several processes beside one: the page from numbers worked by hand, and one training for real."""

from __future__ import annotations

import pytest

from benchmarks import scaling, scaling_page

MADE_UP = {
    "date": "2026-11-22", "device": "AMD EPYC, 2 cores", "precision": "bf16", "profile": "overnight", "epochs": 3, "load": 0.1, "seconds": 90.0,
    "experiments": {
        "01_baseline_vit": [
            {"processes": 1, "threads": 1, "img_s": [100.0, 90.0, 110.0]},
            {"processes": 1, "threads": 2, "img_s": [150.0]},
            {"processes": 2, "threads": 1, "img_s": [180.0]},
        ]
    },
}  # fmt: skip


def test_shares_and_ratios() -> None:
    text = scaling_page.page(MADE_UP)
    assert "in 1.5 minutes, on AMD EPYC, 2 cores; bf16" in text
    assert "| 01_baseline_vit | 1 | 1 | 100 (90–110) |  |  |" in text
    assert "| 01_baseline_vit | 1 | 2 | 150 (150–150) |  | 75 % |" in text
    assert "| 01_baseline_vit | 2 | 1 | 180 (180–180) | 1.20 | 90 % |" in text
    assert "idle" not in text
    assert "**Not on an idle machine:** other work had a load of 2.0" in scaling_page.page(MADE_UP | {"load": 2.0})


@pytest.mark.slow
def test_a_rate_for_each_epoch_but_the_first() -> None:
    found = scaling.rates("01_baseline_vit", "quick", 1, 1, 3)
    assert len(found) == 2
    assert min(found) > 1
