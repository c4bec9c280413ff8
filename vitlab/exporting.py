"""The commands that carry a model elsewhere: export it, promote it in MLflow's registry, and restore a published one as a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from vitlab import terminal
from vitlab.errors import UserError
from vitlab.files import printable
from vitlab.paths import ROOT, RUNS

Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
RUN = "a finished run's folder, a published set's, as results/overnight-cifar10, or a file of its weights"


def add_commands(command: Command, add_data_dir: Callable[[argparse.ArgumentParser, str], None]) -> None:
    """Add `export`, `promote` and `restore` to the command line; `command` makes the parser of one, `add_data_dir` gives it --data-dir."""
    export = command("export", _export, "write a trained model in a format for elsewhere, with its model card, into one folder")
    export.add_argument("folder", type=Path, metavar="RUN", help=RUN)
    export.add_argument("--to", required=True, choices=["safetensors", "onnx", "huggingface"], help="the format")
    export.add_argument("--half", action="store_true", help="in half precision")
    export.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: a folder of its own below exported/)")
    export.add_argument("--push", metavar="USER/NAME", help="with --to huggingface: also upload it to this repository on the Hub")
    add_data_dir(export, "where the test split lies on which ONNX is compared with PyTorch")
    promote = command("promote", _promote, "register a trained model in MLflow, as vitlab-<data set>, under an alias")
    promote.add_argument("folder", type=Path, metavar="RUN", help=RUN)
    promote.add_argument("--as", required=True, dest="alias", metavar="ALIAS", help="for example champion")
    promote.add_argument("--force", action="store_true", help="even where it is worse on validation than the one that has the alias")
    restore = command("restore", _restore, "make a published run a finished one here, so that a teacher need not be trained anew")
    restore.add_argument(
        "weights", type=Path, metavar="WEIGHTS", help="its weights, such as results/overnight-cifar10/weights/resnet18.safetensors"
    )
    add_data_dir(restore, "where the run's data set lies")


def _export(args: argparse.Namespace) -> int:
    if args.push and args.to != "huggingface":
        raise UserError("--push: uploads to the Hugging Face Hub; add --to huggingface")
    from vitlab.export import bundle

    written = bundle.export(args.folder, args.to, args.out, args.half, args.data_dir, lambda text: print(printable(text)))
    for path in sorted(written.iterdir()):
        print(printable(f"{terminal.short(path)}: {path.stat().st_size / 1e3:,.1f} kB"))
    if args.push:
        from vitlab.export import hub

        print(printable(hub.push(written, args.push)))
    return 0


def _promote(args: argparse.Namespace) -> int:
    from vitlab.run import promoting

    print(printable(promoting.promote(args.folder, ROOT, args.alias, args.force)))
    return 0


def _restore(args: argparse.Namespace) -> int:
    from vitlab.run import restoring

    run, top1 = restoring.restore(args.weights, RUNS, args.data_dir)
    print(printable(f"{run.label}: a finished run in {terminal.short(run.folder)}, with a test top-1 of {top1:.2f} % in half precision"))
    return 0
