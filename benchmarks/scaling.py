"""One run on several processes: `python -m benchmarks.scaling` writes scaling.json and SCALING.md beside this file.

Whole commands as people start them, `runner.py` alone and under torchrun, at the sizes of a profile: on a CPU one process with one thread, one
with all threads, and as many processes as cores, each with one thread; on GPUs one, and all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import pages, scaling_page
from vitlab import records
from vitlab.paths import REPOSITORY
from vitlab.train import machine

EXPERIMENTS = ("01_baseline_vit", "teachers/resnet18")  # without batch norms, and with many of them, which processes synchronise


def rates(experiment: str, profile: str, processes: int, threads: int, epochs: int) -> list[float]:
    """Return the images per second of each epoch but the first, of a whole training on the digits."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as root:
        command = [
            sys.executable, *(torchrun if processes > 1 else ()), "runner.py", f"experiments/{experiment}.yaml",
            "--profile", profile, "--data", "digits", "--jobs", "1", "--set", f"train.epochs={epochs}",
        ]  # fmt: skip
        env = os.environ | {"VITLAB_ROOT": root, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, cwd=REPOSITORY, env=env, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(root).glob("runs/*/*/*/record.json")
        return [row["perf/img_s"] for row in records.read(path).history[1:]]


def measure(profile: str, rounds: int, epochs: int) -> dict[str, Any]:
    """Measure everything, a configuration after the other in each round, and return what scaling.json keeps."""
    start, load = time.perf_counter(), os.getloadavg()[0]
    where = machine.device()
    many = torch.cuda.device_count() if where.type == "cuda" else len(os.sched_getaffinity(0))
    ways = [(1, 1), (many, 1)] if where.type == "cuda" else [(1, 1), (1, many), (many, 1)]  # processes, threads of each
    found: dict[str, list[dict[str, Any]]] = {
        name: [{"processes": processes, "threads": threads, "img_s": []} for processes, threads in ways] for name in EXPERIMENTS
    }
    for number in range(rounds):
        for name, rows in found.items():
            for row in rows:
                row["img_s"].append(statistics.median(rates(name, profile, row["processes"], row["threads"], epochs)))
                print(
                    f"round {number + 1} of {rounds}: {name}, {row['processes']} x {row['threads']}: {row['img_s'][-1]:.0f} images/s",
                    flush=True,
                )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": machine.device_name(where),
        "precision": machine.precision("auto", where),
        "profile": profile,
        "epochs": epochs,
        "load": load,
        "experiments": found,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Measure, unless --page is given, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    pages.add_out_flags(parser)
    parser.add_argument("--profile", default="overnight", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="of each training, the first of them not counted")
    parser.add_argument("--page", action="store_true", help="only write the page again from scaling.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    latest = args.out / "scaling.json"
    if not args.page:
        latest.write_text(json.dumps(measure(args.profile, args.rounds, args.epochs), indent=1) + "\n", encoding="utf-8")
    (args.out / "SCALING.md").write_text(scaling_page.page(json.loads(latest.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"{args.out / 'SCALING.md'} is written")


if __name__ == "__main__":
    main()
