"""A short look at every experiment before hours are spent: `python -m benchmarks.shakeout` writes reports/benchmarks/shakeout.json.

Each trains the first epochs of its real schedule, in a process of its own: does it start, fit into memory, learn; how fast is it, and how
long will all of it take? Students learn from untrained teachers. Nothing goes to runs/ or MLflow. Exit code 1 where one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitlab import config
from vitlab.data import sources
from vitlab.data.sources import Source
from vitlab.errors import UserError
from vitlab.files import write_json
from vitlab.paths import EXPERIMENTS, REPORTS, REPOSITORY, RUNS
from vitlab.run import plan
from vitlab.run.progress import clock

LOG = 4000  # characters that are kept of a failed experiment's log
HEADING = (
    f"{'experiment':28} {'first':>8} {'images/s':>9} {'of peak':>7} {'evaluation':>10} {'memory, MB':>15} {'loss':>14} {'whole run':>10}"
    "  an epoch's seconds"
)


def chosen(runs: list[plan.Run], only: str) -> list[plan.Run]:
    """Return the runs whose experiments' names begin with one of the words in `only`, separated by commas; all for "".

    Raises UserError for a word with which no name begins.
    """
    words = [word for word in only.split(",") if word]
    for word in words:
        if not any(run.resolved.id.startswith(word) for run in runs):
            raise UserError(f"--only: no experiment's name begins with '{word}'; there are {', '.join(run.resolved.id for run in runs)}")
    return [run for run in runs if not words or run.resolved.id.startswith(tuple(words))]


def command(run: plan.Run, data_dir: Path, epochs: int) -> list[str]:
    """Return the command that measures the run's first epochs."""
    source = run.source
    named = str(source.path.resolve()) if source.kind == "folder" and source.path else source.kind
    return [
        sys.executable, "-m", "benchmarks.first_epochs", str(run.resolved.path),
        "--profile", run.resolved.profile, "--data", named, "--data-dir", str(data_dir), "--epochs", str(epochs),
    ]  # fmt: skip


def look(run: plan.Run, data_dir: Path, epochs: int, root: str) -> dict[str, Any]:
    """Measure one experiment; return its "machine" and "row". Where it failed, the row has "error" and "log" instead of numbers."""
    done = subprocess.run(
        command(run, data_dir, epochs), cwd=REPOSITORY, env=os.environ | {"VITLAB_ROOT": root}, capture_output=True, text=True, check=False
    )
    outcome: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        outcome |= json.loads(line)
    if done.returncode < 0:
        outcome["error"] = f"killed by {signal.Signals(-done.returncode).name}"
    elif done.returncode and "error" not in outcome:  # it failed before it could report an error
        outcome["error"] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if "error" in outcome:
        outcome["row"] = {"experiment": run.resolved.id, "error": outcome.pop("error"), "log": done.stderr[-LOG:]}
    return outcome


def line(row: dict[str, Any]) -> str:
    """Return a row as one line of the printed table."""
    if "error" in row:
        return f"{row['experiment']:28} FAILED: {row['error']}"
    first = sum(phase["seconds"] for phase in row["first_steps"])
    memory = "/".join(f"{value:,.0f}" for value in row["memory_mb"].values())
    loss = " → ".join(f"{value:.3f}" for value in row["loss"])
    whole = sum(row["seconds"].values())
    shares = {phase: round(100 * value / whole) for phase, value in row["seconds"].items()}
    spent = ", ".join(f"{phase} {share} %" for phase, share in shares.items() if share)
    return (
        f"{row['experiment']:28} {first:6.1f} s {row['img_s']:9,.0f} {row['mfu']:5.0f} % {row['evaluation_seconds']:8.2f} s {memory:>15} "
        f"{loss:>14} {clock(row['projected_seconds']):>10}  {spent}{'' if row['falling'] else '  LOSS NOT FALLING'}"
    )


def summary(rows: list[dict[str, Any]], count: int) -> str:
    """Return the last printed line: the time for all whole runs, and what failed. `count` is the number of experiments."""
    sound = [row for row in rows if "error" not in row]
    text = f"{clock(sum(row['projected_seconds'] for row in sound))} for {len(sound)} of {count} whole runs, one after the other"
    failed = [row["experiment"] for row in rows if "error" in row]
    return f"{text}; failed: {', '.join(failed)}" if failed else text


def shake_out(runs: list[plan.Run], source: Source, data_dir: Path, profile: str, epochs: int, out: Path) -> bool:
    """Measure all runs and return whether none failed. After each, print a line and write `out`, so that little is lost on a kill."""
    start = time.perf_counter()
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "profile": profile,
        "data": source.name,
        "epochs": epochs,
        "machine": {},
        "experiments": [],
    }
    rows = results["experiments"]
    out.parent.mkdir(parents=True, exist_ok=True)  # now: a folder that cannot be made is found before minutes are spent
    print(f"profile {profile} · data {source.name} · {len(runs)} experiments, {epochs} epochs each", flush=True)
    with tempfile.TemporaryDirectory() as root:  # in place of runs/; the first run leaves its measured peak here for the others
        for run in runs:
            outcome = look(run, data_dir, epochs, root)
            if not results["machine"] and "machine" in outcome:
                results["machine"] = about = outcome["machine"]
                cuda = f" · CUDA {about['cuda']}" if about["cuda"] else ""
                print(f"{about['device']} · {about['precision']} · {about['threads']} threads · torch {about['torch']}{cuda}\n\n{HEADING}")
            rows.append(outcome["row"])
            results["projected_seconds"] = sum(row.get("projected_seconds", 0.0) for row in rows)
            results["seconds"] = time.perf_counter() - start
            write_json(out, results)
            print(line(outcome["row"]), flush=True)
    print(f"\n{summary(rows, len(runs))}\n{out} is written", flush=True)
    return not any("error" in row for row in rows)


def main() -> None:
    """Measure the chosen experiments; exit with 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shakeout", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="full", choices=config.PROFILES)
    parser.add_argument("--data", default="cifar10", help="auto, cifar10, digits or a folder of images")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("VITLAB_DATA_DIR", "data")))
    parser.add_argument("--epochs", type=int, default=2, help="of each experiment; the first warms up where there are more")
    parser.add_argument("--only", default="", metavar="06,resnet50", help="only experiments whose names begin so")
    parser.add_argument("--out", type=Path, default=REPORTS / "benchmarks" / "shakeout.json", metavar="FILE")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by an exception, which also ends the running experiment
    if args.epochs < 1:
        parser.error("--epochs: at least 1")
    data_dir = args.data_dir.resolve()
    try:
        source = sources.resolve(args.data, data_dir, args.profile)
        runs = chosen(plan.make([EXPERIMENTS], args.profile, source, [0], (), RUNS), args.only)
    except UserError as e:
        parser.error(str(e))
    sys.exit(not shake_out(runs, source, data_dir, args.profile, args.epochs, args.out))


if __name__ == "__main__":
    main()
