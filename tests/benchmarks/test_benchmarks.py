"""The peer comparison: the peers are what they claim to be, the numbers are worked right, and the page says what is missed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import accuracy, bench, contenders, page, recipe
from benchmarks.plain import PlainViT
from tests.support.measurements import comparison, experiment, row
from vitlab.models import cost, registry
from vitlab.paths import REPOSITORY

pytestmark = pytest.mark.slow

TINY = ("model.dim=32", "model.depth=5", "model.heads=4", "model.patch_size=8", "train.batch_size=16")
NUMBERS = pytest.mark.parametrize("number", ["01", "06"])


# ------------------------------------------------------------------------------------------------------- contenders


@NUMBERS
def test_plain_is_our_model(number: str) -> None:
    cfg = recipe.load(number, TINY).model
    torch.manual_seed(0)
    ours, plain = registry.build(cfg, 10).eval(), PlainViT(cfg, 10).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.1 * torch.randn_like(p))  # so that no bias, gamma or table is at its start
    plain.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(plain(images)), ours.forward_heads(images), atol=1e-5, rtol=1e-5)


@NUMBERS
def test_all_have_our_size_and_the_flops_the_page_gives_them(number: str) -> None:
    cfg = recipe.load(number).model
    sizes = {"vitlab": cost.parameters(cfg, 10)}

    def examine(name: str, model: nn.Module, flops: int) -> None:
        sizes[name] = sum(p.numel() for p in model.parameters())
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, 32, 32))
        assert counter.get_total_flops() == pytest.approx(flops, rel=1e-3)

    examine("plain", PlainViT(cfg, 10), bench.flops(cfg, "plain"))
    examine("timm", contenders.timm_model(cfg, 10), bench.flops(cfg, "timm"))
    ready = {name: {"parameters": size} for name, size in sizes.items()}
    assert all(page.same_size(ready, name, number) for name in ready), sizes
    assert not page.same_size(ready | {"other": {"parameters": round(1.02 * sizes["vitlab"])}}, "other", number)


def test_the_page_knows_every_contender() -> None:
    assert tuple(contenders.CONTENDERS) == ("vitlab", *page.PEERS)


def test_plain_knows_nothing_of_our_models() -> None:
    code = "import sys, benchmarks.plain; assert 'vitlab.models' not in sys.modules and 'vitlab.train.loop' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """32 images of ten classes, in the file that contenders read."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 3, 32, 32), dtype=np.uint8)
    path = tmp_path / "images.npz"
    recipe.Images(pixels, np.arange(32) % 10, (0.5,) * 3, (0.25,) * 3, 10, True).write(path)
    return path


def test_images_come_back_from_their_file(images: Path) -> None:
    data = recipe.Images.read(images)
    assert data.pixels.shape == (32, 3, 32, 32)
    assert data.labels.tolist() == [i % 10 for i in range(32)]
    assert (data.mean, data.std, data.classes, data.mirror) == ((0.5,) * 3, (0.25,) * 3, 10, True)


@pytest.mark.parametrize("name", ["vitlab", "plain"])
def test_a_contender_reports_an_epoch_when_asked_and_ends_with_its_input(name: str, images: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log, bench.Contender(name, "06", images, TINY, log) as contender:
        ready, row = contender.read(), contender.epoch()
    assert contender.process.returncode == 0, (tmp_path / "log").read_text()
    assert ready["ready"] is True
    assert ready["parameters"] == cost.parameters(recipe.load("06", TINY).model, 10)
    assert row["img_s"] * row["seconds"] == pytest.approx(32)
    assert 1 < row["loss"] < 4
    assert row["peak_rss_mb"] > 100


def test_a_contender_that_fails_is_named_with_what_it_said(images: Path, tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w") as log,
        bench.Contender("plain", "01", images, ("model.dim=33",), log) as contender,
        pytest.raises(SystemExit, match=r"(?s)plain has ended:.*multiple of heads"),
    ):
        contender.read()


def test_a_contender_that_dies_between_epochs_is_named(images: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log, bench.Contender("plain", "01", images, TINY, log) as contender:
        contender.read()
        contender.process.kill()
        contender.process.wait()
        with pytest.raises(SystemExit, match="plain has ended"):
            contender.epoch()


# ---------------------------------------------------------------------------------------------------------- numbers


def test_ratios_are_taken_within_rounds() -> None:
    rounds = [{"vitlab": row(30), "a": row(10)}, {"vitlab": row(20), "a": row(10)}, {"vitlab": row(40), "a": row(8), "b": row(16)}]
    assert page.ratio(rounds, "a") == page.Spread(3.0, 2.0, 5.0)
    assert page.ratio(rounds, "b") == page.Spread(2.5, 2.5, 2.5)  # of the one round in which it took part


def test_page_when_all_is_reached() -> None:
    text = page.page(comparison())
    assert "All targets are reached." in text
    assert "not reached" not in text
    assert "| training, 01: images per second against plain | ≥ 2.5x | 3.50x (3.00–4.00) | reached |" in text
    assert "| training, 01: images per second against timm-amp | ≥ 1.5x | 3.25x (3.00–3.50) | reached |" in text
    assert "| input path, TrivialAugment: images per second against torchvision | ≥ 10x | 17.5x (15.0–20.0) | reached |" in text
    # 0.5 of 100 s; and 1.5 s of the 1425 s that 142,500 images take
    assert "in the profile `overnight` | ≤ 1% | 0.61%: 0.50% while training, then 1.5 s once | reached |" in text
    # timm does half as many FLOPs again for an image: 3.5 x 1.2 / 1.8
    assert "| timm | 20.0 (20.0–20.0) | 3.50x (3.00–4.00) | 2.33x | 500 | 9.50 | 1.80 | 2.300 → 2.000 |" in text


def test_page_says_what_is_missed() -> None:
    missed = comparison()
    missed["experiments"]["06"] = experiment(ours=(40.0, 50.0, 40.0))  # 2.0x
    for r in missed["experiments"]["01"]["rounds"]:
        r["vitlab"]["peak_rss_mb"] = 501.0
    missed["startup"]["help"] = [0.31] * 5
    missed["bookkeeping"]["closing"] = 13.5
    text = page.page(missed)
    # 06 against plain, timm and Lightning; memory; --help; bookkeeping
    assert "**6 of 14 targets are not reached** or not measured." in text
    assert "| training, 06: images per second against plain | ≥ 2.5x | 2.00x (2.00–2.50) | **not reached** |" in text
    assert "| peak memory, 01: no more than the leanest peer's | ≤ 500 MB (lightning) | 501 MB | **not reached** |" in text
    assert "| `runner.py --help` | ≤ 0.3 s | 0.31 s (0.31–0.31) | **not reached** |" in text
    assert "| 1.45%: 0.50% while training, then 13.5 s once | **not reached** |" in text


def test_a_contender_that_does_not_learn_is_a_fault() -> None:
    broken = comparison()
    assert page.faults(broken) == []
    broken["experiments"]["01"]["rounds"][-1]["timm"]["loss"] = 2.4
    assert page.faults(broken) == ["01: the loss of timm does not go down"]
    assert "**Fault:** 01: the loss of timm does not go down." in page.page(broken)
    broken["experiments"]["01"]["rounds"][-1]["timm"]["loss"] = float("nan")
    assert page.faults(broken)


def test_page_is_rendered_from_latest_json_alone(tmp_path: Path) -> None:
    (tmp_path / "latest.json").write_text(json.dumps(comparison()))
    subprocess.run([sys.executable, "-m", "benchmarks.bench", "--page", "--out", str(tmp_path)], cwd=REPOSITORY, check=True)
    assert (tmp_path / "README.md").read_text() == page.page(comparison())


def test_accuracy_is_compared_seed_by_seed() -> None:
    """Differences 1, 2 and 3: mean 2, standard deviation 1, and t(0.975, 2) = 4.3027 over the root of 3."""
    assert accuracy.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.30265 / 3**0.5), rel=1e-5)
    facts = {
        "experiment": "01",
        "variant": "x=1",
        "profile": "overnight",
        "dataset": "cifar10",
        "train": 7600,
        "epochs": 6,
        "device": "a CPU",
    }
    facts |= {"threads": 1, "commit": "abc"}
    before = [facts | {"seed": s, "top1": 40.0 + s} for s in (0, 1, 2)]
    after = [facts | {"seed": s, "top1": 41.0 + 2 * s, "commit": "def"} for s in (2, 1, 0)]
    text = accuracy.page({"before": before, "after": after})
    assert "| 01 | 0, 1, 2 | 40.00, 41.00, 42.00 | 41.00, 43.00, 45.00 | +2.00 ± 2.48 |" in text
