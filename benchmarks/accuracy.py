"""Does speed cost accuracy? `python -m benchmarks.accuracy BEFORE AFTER` compares the runs of two versions, seed by seed.

BEFORE and AFTER are folders of runs, of the same experiments and seeds by the code before a change and after it. Adds the comparison to
accuracy.json, and writes ACCURACY.md, beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

from vitlab import records
from vitlab.records import RunRecord

HERE = Path(__file__).parent


def facts(folder: Path) -> list[dict[str, Any]]:
    """Return what accuracy.json keeps of each finished run below `folder`. Exits where there is none."""
    found = [records.read(path) for path in sorted(folder.glob("*/*/*/record.json"))]
    if not found:
        raise SystemExit(f"{folder}: no finished runs below it; expected a folder such as runs/")
    return [_facts(r) for r in found]


def _facts(r: RunRecord) -> dict[str, Any]:
    return {
        "experiment": r.experiment, "variant": r.variant, "profile": r.profile, "dataset": r.dataset.name, "train": r.dataset.train,
        "test": r.dataset.test, "seed": r.seed, "top1": r.metrics["test_top1"], "epochs": r.config["train"]["epochs"],
        "commit": r.git["commit"][:10], "dirty": r.git["dirty"], "device": r.device, "threads": r.threads, "finished": r.finished,
    }  # fmt: skip


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the differences' mean, and half the width of its 95 % confidence interval (Student's t)."""
    n = len(differences)
    return mean(differences), float(stats.t.ppf(0.975, n - 1)) * stdev(differences) / math.sqrt(n)


def page(comparisons: list[dict[str, list[dict[str, Any]]]]) -> str:
    """Return ACCURACY.md, a function of accuracy.json alone."""
    lines = [
        "# Accuracy before and after the speed work",
        "",
        "Test top-1 in percent, last weights, by the code before a change and after it. The seeds are paired: the same order of images and the same",
        "draws of the augmentation on both sides. The difference is in points, with its 95 % interval (paired t).",
    ]
    for compared in comparisons:
        lines += ["", *_section(compared)]
    return "\n".join(lines) + "\n"


def _section(compared: dict[str, list[dict[str, Any]]]) -> list[str]:
    before, after = ({(r["experiment"], r["seed"]): r for r in compared[side]} for side in ("before", "after"))
    one, other = compared["before"][0], compared["after"][0]
    lines = [
        f"## {one['commit']} and {other['commit']}",
        "",
        f"{other['dataset']}: {other['train']:,} training images, {other['epochs']} epochs, the models of the profile `{other['profile']}` with "
        f"`{other['variant']}`; {other['device']}, {other['threads']} thread.",
        "",
        "| experiment | seeds | before | after | difference |",
        "|---|---|---|---|---|",
    ]
    for name in sorted({experiment for experiment, _ in before}):
        seeds = sorted(seed for experiment, seed in before if experiment == name and (name, seed) in after)
        pairs = [(before[name, s]["top1"], after[name, s]["top1"]) for s in seeds]
        difference, half = interval([b - a for a, b in pairs])
        old, new = (", ".join(f"{x:.2f}" for x in side) for side in zip(*pairs, strict=True))
        lines.append(f"| {name} | {', '.join(map(str, seeds))} | {old} | {new} | {difference:+.2f} ± {half:.2f} |")
    return lines


def main() -> None:
    """Compare the two folders and write the results and the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    kept = HERE / "accuracy.json"
    compared = {"before": facts(args.before), "after": facts(args.after)}
    comparisons = [compared, *(earlier for earlier in json.loads(kept.read_text(encoding="utf-8")) if earlier != compared)]
    kept.write_text(json.dumps(comparisons, indent=1) + "\n", encoding="utf-8")
    (HERE / "ACCURACY.md").write_text(page(comparisons), encoding="utf-8")
    print(page(comparisons))


if __name__ == "__main__":
    main()
