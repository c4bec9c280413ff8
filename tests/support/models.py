"""Finished runs of small untrained models, whose records say that they know CIFAR-10's classes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support.records import fake_print, fake_record
from vitlab import config, records
from vitlab.models import registry
from vitlab.paths import EXPERIMENTS
from vitlab.records import RunRecord

SIZES = {
    "01_baseline_vit": ("model.dim=16", "model.depth=1", "model.heads=2", "model.patch_size=8"),
    "06_kd_r50_class_attention": ("model.dim=16", "model.depth=2", "model.heads=2", "model.class_attention=1"),
    "teachers/resnet50": ("model.width=8",),
}
SURE = 400  # by which the baseline's head is larger than as initialised: it is nearly certain of whatever it says


def write_run(folder: Path, experiment: str, seed: int = 0, **changes: object) -> RunRecord:
    """A finished run in `folder`, of one of SIZES. `changes` are made to its record."""
    cfg = config.load(EXPERIMENTS / f"{experiment}.yaml", "full", SIZES[experiment]).config
    torch.manual_seed(seed)
    model = registry.build(cfg.model, 10)
    weights = {name: w.contiguous() * (SURE if name == "heads.0.weight" and experiment.startswith("01") else 1)
               for name, w in model.state_dict().items()}  # fmt: skip
    folder.mkdir(parents=True)
    save_file(weights, folder / "weights.safetensors")
    record = fake_record(experiment.split("/")[-1], seed, **({"config": config.plain(cfg)} | changes))
    records.write(record, folder / "record.json")
    return record


def write_ladder(runs: Path) -> Path:
    """A folder of runs: the baseline, a student with class attention and two heads, and its teacher."""
    for experiment in SIZES:
        name = experiment.split("/")[-1]
        write_run(runs / "full-cifar10" / name / f"{fake_print(name)}-s0", experiment)
    return runs / "full-cifar10"
