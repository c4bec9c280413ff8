"""The command line's flags about engines: which one trains the runs, and how. Loads no torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from vitlab.errors import UserError

OF = {"jobs": ("local",), "address": ("ray",), "cpus_per_run": ("ray",)}  # which engines a flag is for


@dataclass(frozen=True)
class Options:
    """What the flags say. None stands for a flag that was not given."""

    engine: str = "local"
    jobs: int | None = None  # runs side by side
    address: str | None = None  # of a Ray cluster
    cpus_per_run: int | None = None  # CPU cores, and threads, of each run


def whole(text: str) -> int:
    """Return the whole number from 1 to 1024 that a flag's text is. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number from 1 on")
    return int(text)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--jobs", type=whole, metavar="N", help="train so many runs side by side (default: on a CPU what is soonest done, on a GPU 1)"
    )
    group = parser.add_argument_group("engines", "what trains the runs; docs/scale.md")
    group.add_argument("--engine", choices=["local", "ray"], help="processes of this machine, or a Ray cluster (default: local)")
    group.add_argument("--address", metavar="HOST:PORT", help="ray: the cluster's address (default: one on this machine, for these runs)")
    group.add_argument("--cpus-per-run", type=whole, metavar="N", help="ray: CPU cores and threads of each run (default: 1)")


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
    return Options(engine, **{name: getattr(args, name) for name in OF})
