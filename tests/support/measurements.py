"""What the benchmarks would have measured: numbers to work with by hand."""

from __future__ import annotations

from benchmarks import growth_page, page, recipe

SHAKEOUT_ROW = {
    "experiment": "04_explicit_transformer", "first_steps": [{"phase": "all", "steps": 4, "seconds": 2.5}], "img_s": 1234.0, "mfu": 41.0,
    "evaluation_seconds": 0.5, "memory_mb": {"allocated": 1500.0, "reserved": 2500.0}, "loss": [2.3, 2.4], "falling": False,
    "seconds": {"step": 9.0, "evaluation": 1.0, "checkpoint": 0.001}, "projected_seconds": 3725.0,
}  # fmt: skip


def row(img_s: float, loss: float = 2.0, rss: float = 500.0) -> dict[str, float]:
    return {"seconds": 384 / img_s, "img_s": img_s, "loss": loss, "peak_rss_mb": rss}


def experiment(ours: tuple[float, ...] = (60.0, 70.0, 80.0)) -> dict:
    """Peers at 20 images per second, timm-amp absent from the last round."""
    names = ("vitlab", *page.PEERS)
    facts = {"ready": True, "parameters": 9_500_000, "threads": 2, "flops": 1_200_000_000}
    ready = {name: facts | row(20.0, loss=2.3) for name in names}
    ready["timm"] = ready["timm"] | {"flops": 1_800_000_000}
    rounds = [{name: row(mine if name == "vitlab" else 20.0) for name in names} for mine in ours]
    del rounds[-1]["timm-amp"]
    return {"batch": 192, "images": 384, "ready": ready, "rounds": rounds}


def comparison(bf16: bool = True, profiles: tuple[str, ...] = recipe.PROFILES) -> dict:
    """Every target reached at the sizes of these profiles, with bf16 in hardware or without."""
    return {
        "date": "2026-01-01",
        "commit": "0123456789abcdef",
        "dirty": "",
        "seconds": 600.0,
        "machine": {"cpu": "A Processor", "cores": 2, "memory_gb": 16.0, "bf16": bf16},
        "versions": {"torch": "2.11"},
        "dataset": "cifar10",
        "sets": [],
        "training": {profile: {"01": experiment(), "06": experiment()} for profile in profiles},
        "input": {n: {"vitlab": [30_000.0, 40_000.0], "torchvision": [2_000.0, 2_000.0]} for n in recipe.RECIPES},
        "startup": {"help": [0.2] * 5, "plan": [1.0] * 5},
        "bookkeeping": {
            "training": 99.5,
            "checkpoint": 0.3,
            "tracking": 0.2,
            "closing": 1.5,
            "images": 9950.0,
            "profile": "overnight",
            "epochs": 3,
        },
    }


def growth(report: float = 9.0, again: float = 2.0) -> dict:
    """Nothing grows faster than its work; the report over 1,000 runs takes `report` seconds, and then `again`."""
    training = growth_page.series([(1, 10**9, [0.010, 0.011, 0.012]), (2, 2 * 10**9, [0.022])])
    runs = growth_page.series([(10, 10, [2.0]), (100, 100, [3.0]), (1000, 1000, [report, report + 1.0, report - 1.0])])
    unchanged = growth_page.series([(10, 10, [again]), (100, 100, [again]), (1000, 1000, [again, again + 0.1, again - 0.1])])
    ship = growth_page.series([(10, 1, [0.4]), (100, 1, [0.4]), (1000, 1, [0.5])])
    return {
        "date": "2026-01-01", "device": "A Processor, 2 cores", "precision": "fp32", "threads": 2, "versions": {"torch": "2.11"}, "seconds": 90.0, "load": 0.1,
        "series": dict.fromkeys(growth_page.TRAINING, training) | dict.fromkeys(growth_page.RUNS, runs) | {"again": unchanged, "ship": ship},
    }  # fmt: skip
