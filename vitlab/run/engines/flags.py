"""The command line's flags about engines: which one trains the runs, and how. Loads no torch."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from vitlab.errors import UserError

OF = {  # which engines a flag is for
    "jobs": ("local",),
    "address": ("ray",),
    "cpus_per_run": ("ray", "slurm"),
    "gpus_per_run": ("ray", "slurm"),
    "gpus": ("ray", "slurm"),
    "partition": ("slurm",),
    "time": ("slurm",),
}


@dataclass(frozen=True)
class Options:
    """What the flags say. None stands for a flag that was not given."""

    engine: str = "local"
    jobs: int | None = None  # runs side by side
    address: str | None = None  # of a Ray cluster
    cpus_per_run: int | None = None  # CPU cores, and threads, of each run
    gpus_per_run: float | None = None  # GPUs of each run, where there are any
    gpus: int | None = None  # of the cluster, for a schedule
    partition: str | None = None  # of a Slurm cluster
    time: int | None = None  # minutes, after which Slurm ends a job


def share(text: str) -> float:
    """Return the number above 0 and up to 1 that a flag's text is. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number above 0 and up to 1, for example 0.25")
    return value


def whole(text: str) -> int:
    """Return the whole number from 1 to 1024 that a flag's text is. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number from 1 on")
    return int(text)


def minutes(text: str) -> int:
    """Return a time as Slurm writes it, such as 90, 1:30:00 or 2-12:00, in minutes, rounded up. Raises argparse.ArgumentTypeError."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    days, first, second, third = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    hours_first = found and (found[1] or found[4])  # else minutes
    seconds = days * 86400 + (first * 3600 + second * 60 + third if hours_first else first * 60 + second)
    if not seconds:
        raise argparse.ArgumentTypeError(
            f"'{text}': expected a time as Slurm writes it, for example 90 (minutes), 1:30:00 or 2-12:00 (days)"
        )
    return -(-seconds // 60)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--jobs", type=whole, metavar="N", help="train so many runs side by side (default: on a CPU what is soonest done, on a GPU 1)"
    )
    group = parser.add_argument_group("engines", "what trains the runs; docs/scale.md")
    group.add_argument(
        "--engine", choices=["local", "ray", "slurm"], help="processes of this machine, or a Ray or Slurm cluster (default: local)"
    )
    group.add_argument("--address", metavar="HOST:PORT", help="ray: the cluster's address (default: one on this machine, for these runs)")
    group.add_argument("--cpus-per-run", type=whole, metavar="N", help="CPU cores and threads of each run (default: 1)")
    group.add_argument(
        "--gpus-per-run",
        type=share,
        metavar="SHARE",
        help="ray: a run's share of a GPU, where there are any (default: 1); slurm: 1 where the partition has GPUs (default: none)",
    )
    group.add_argument(
        "--gpus", type=whole, metavar="N", help="with --dry-run: print the schedule on so many GPUs (default: one for each run)"
    )
    group.add_argument("--partition", metavar="NAME", help="slurm: where the jobs run (default: the cluster's)")
    group.add_argument(
        "--time",
        type=minutes,
        metavar="TIME",
        help="slurm: a job's limit, in minutes or as Slurm writes it; a run that takes longer goes on in the next job (default: 60)",
    )


def given(args: argparse.Namespace) -> list[str]:
    """Return the flags that were given, as the user writes them."""
    return [f"--{name.replace('_', '-')}" for name in ("engine", *OF) if getattr(args, name) is not None]


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say. Raises UserError for one that is for another engine."""
    engine = args.engine or "local"
    for name, engines in OF.items():
        if getattr(args, name) is not None and engine not in engines:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: for --engine {' or '.join(engines)}, not for {engine}; leave it out, or choose that engine")
    if args.gpus and not args.dry_run:
        raise UserError("--gpus: how many GPUs the schedule of --dry-run is for; when runs are trained, the cluster says how many it has")
    return Options(engine, **{name: getattr(args, name) for name in OF})
