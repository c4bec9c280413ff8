"""The commands. Heavy modules are imported where they are needed: `--help` and `--dry-run` start at once.

Exit codes: 0; 1 where training failed, the disk is full or a published number is wrong, and for a bug, with its traceback; 2 for a
user's mistake, with one message; 128 + the signal where one stopped it.
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vitlab import claiming, completion, demoing, doctor, errors, exporting, listing, study, terminal
from vitlab.errors import Lost, UserError
from vitlab.files import DiskFull, printable, writing
from vitlab.paths import CHECKOUT, EXPERIMENTS, REPORTS, RESULTS, ROOT, RUNS
from vitlab.run import signals
from vitlab.run.engines import flags

if TYPE_CHECKING:
    from rich.console import Console

    from vitlab.data.sources import Source
    from vitlab.run.plan import Run


def _guard(command: Callable[[], int]) -> NoReturn:
    """Run a command; a user's mistake becomes one clear message and exit code 2, anything unexpected a traceback and exit code 1."""
    try:
        with signals.on_signals(signals.stop_at_once):
            code = _together(command) if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "TORCHELASTIC_RUN_ID" in os.environ else command()
        gc.freeze()  # or the interpreter's last collection walks all that torch and MLflow have made: 1.5 s
        sys.exit(code)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (DiskFull, Lost) as e:
        print(f"error: {printable(str(e))}", file=sys.stderr)
        sys.exit(1)
    except Exception as e:
        text = errors.message(e)
        if text is None or os.environ.get("VITLAB_DEBUG"):
            traceback.print_exc()
            if text is None:
                print("This should not have happened. Please report it as an issue, with the traceback above", file=sys.stderr)
            sys.exit(1)
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of torchrun's processes one on each machine says it
            print(f"error: {printable(text)}", file=sys.stderr)
        sys.exit(2)


def _together(command: Callable[[], int]) -> int:
    """Carry out the command on all of torchrun's processes."""
    from vitlab.run import assist

    return assist.together(command)


# ------------------------------------------------------------------------------------------------------- runner.py


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(s) for s in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': expected whole numbers with commas between, for example 0,1,2") from None
    if any(not 0 <= s < 2**32 for s in seeds):
        raise argparse.ArgumentTypeError(f"'{text}': seeds are between 0 and 2^32 - 1")
    return list(dict.fromkeys(seeds))


def _budget(text: str) -> float:
    """Return a time such as `90m` in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"'{text}': expected a time with its unit, for example 3600s, 90m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def _add_data_flags(parser: argparse.ArgumentParser, data: str = "auto") -> None:
    parser.add_argument("--data", default=data, metavar="auto|cifar10|cifar100|digits|PATH", help="data set (default: %(default)s)")
    _add_data_dir(parser, "where CIFAR-10 is, or is downloaded to")


def _add_data_dir(parser: argparse.ArgumentParser, what: str) -> None:
    default = Path(os.environ.get("VITLAB_DATA_DIR", "data"))
    parser.add_argument("--data-dir", type=Path, default=default, metavar="DIR", help=f"{what} (default: $VITLAB_DATA_DIR or data)")


def _add_profile_flag(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--profile", default="auto", choices=["auto", "quick", "ledger", "overnight", "full"], help=f"default: {default}")


def _add_declarations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "declarations",
        nargs="?",
        type=Path,
        default=EXPERIMENTS / "claims.yaml",
        metavar="FILE",
        help="what is declared (default: experiments/claims.yaml)",
    )


def _add_run_flags(parser: argparse.ArgumentParser, seeds: list[int] | None, default: str) -> None:
    parser.add_argument("--seeds", type=_seeds, default=seeds, metavar="0,1,2", help=f"seeds with commas between (default: {default})")
    parser.add_argument(
        "--budget", type=_budget, default=math.inf, metavar="90m", help="stop cleanly after this time (s, m, h); run again to go on"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, train nothing")
    flags.add(parser)


def run_main(argv: list[str] | None = None) -> NoReturn:
    """Carry out the command line of runner.py, which is that of `vitlab run`, and exit with its code."""
    main(["run", *(sys.argv[1:] if argv is None else argv)])


def _run(args: argparse.Namespace) -> int:
    from vitlab.data import sources
    from vitlab.run import plan

    deadline, options = time.monotonic() + args.budget, flags.options(args)
    console = terminal.console()
    profile = _profile(args.profile)
    source = sources.resolve(args.data, args.data_dir, profile, download=not args.dry_run)
    runs = plan.make(args.experiments, profile, source, args.seeds, tuple(args.set), RUNS)
    if math.isfinite(args.budget):
        runs = plan.students_first(runs)
    named = {p.resolve() for p in plan.expand(args.experiments)}
    terminal.announce(console, profile, source, args.seeds, runs, args.budget)
    if args.dry_run:
        if args.force:
            runs = plan.anew(runs, named)
        terminal.print_plan(console, runs, options, plan.measured_speed(RUNS))
        return 0
    return _train(console, runs, named if args.force else set(), source, deadline, options, in_order=math.isfinite(args.budget))


def _train(
    console: Console, runs: list[Run], forced: set[Path], source: Source, deadline: float, options: flags.Options, in_order: bool
) -> int:
    from vitlab.run import queue

    show = functools.partial(terminal.print_result, console)
    code, done = queue.train(console, runs, forced, source, deadline, ROOT, show, options, in_order)
    if code == 0 and len(done) == len(runs):
        terminal.print_summary(console, done, ROOT, REPORTS)
    return code


def _profile(asked: str) -> str:
    """Return the profile: for auto, full with CUDA, else quick. torch takes seconds to load, so it is asked only if NVML sees a GPU."""
    if asked != "auto":
        return asked
    from vitlab.run import plan

    if plan.gpus():
        import torch

        return "full" if torch.cuda.is_available() else "quick"
    return "quick"


# ---------------------------------------------------------------------------------------------------------- vitlab


def main(argv: list[str] | None = None) -> NoReturn:
    """Carry out the command line of `vitlab` and exit with its code."""
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}{_as_setting(args, unknown)}")
    _guard(lambda: args.run(args))


def _as_setting(args: argparse.Namespace, unknown: list[str]) -> str:
    """Return how to change the setting that somebody named as a flag: `--epochs 3` is `--set train.epochs=3`. "" if there is none such."""
    from vitlab import config

    name = unknown[0].partition("=")[0].removeprefix("--").replace("-", "_")
    found = config.settings_called(name) if "set" in args else []
    return f"; settings are changed by --set, for example --set {found[0]}=..." if found else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vitlab", description="Train experiments, and work with the runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run, parser=sub)
        return sub

    training = command("run", _run, "run experiments: a teacher before its students, finished runs skipped, unfinished ones resumed")
    training.add_argument(
        "experiments", nargs="+", type=Path, metavar="EXPERIMENT", help="a file, a folder of them, or vitlab's own by name: 01_baseline_vit"
    )
    _add_profile_flag(training, "full with CUDA, else quick")
    _add_data_flags(training)
    _add_run_flags(training, [0], "0")
    training.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value, for example optim.lr=1e-3")
    training.add_argument("--force", action="store_true", help="train the named experiments anew, finished or not")
    report = command("report", _report, "compile reports/ (tables, pictures, HTML) from the finished runs in MLflow")
    report.add_argument("--publish", action="store_true", help="add them to results/ and to the blocks of README.md and docs/")
    listing.add(command)
    predict = command("predict", _predict, "classify images with the best CIFAR-10 model, trained here or published")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    model = predict.add_mutually_exclusive_group()
    model.add_argument(
        "--data", default="cifar10", metavar="cifar10|cifar100|digits|PATH",
        help="use this data set's best model by validation top-1, teachers aside (default: %(default)s)",
    )  # fmt: skip
    model.add_argument("--run", type=Path, metavar="FOLDER", dest="folder", help="use this finished run, published set or exported folder")
    model.add_argument("--model", metavar="URI", help="use this model of MLflow's registry, for example models:/vitlab-cifar10@champion")
    pack = command("pack", _pack, "archive finished runs, weights in half precision, in parts small enough to carry")
    pack.add_argument("folder", nargs="?", type=Path, default=RUNS, metavar="FOLDER", help="a run, or a folder of runs (default: all)")
    pack.add_argument("--to", type=Path, default=Path("packed"), metavar="DIR", help="where the archive goes (default: %(default)s)")
    data = command("data", _data, "make CIFAR-10 available under --data-dir and check it")
    _add_data_dir(data, "where CIFAR-10 is, or is downloaded to")
    sync = command("sync", _sync, "ship to MLflow what has not reached it yet")
    sync.add_argument("folder", nargs="?", type=Path, default=RUNS, metavar="RUNS")
    ui = command("ui", _ui, f"print where MLflow's UI shows the runs of each set; '{'make ui' if CHECKOUT else 'mlflow server'}' starts it")
    ui.add_argument("--port", type=int, default=5000, help="the port that the UI listens on (default: %(default)s)")
    schema = command(
        "schema", _schema, "write the JSON Schemas that let editors complete and check files of experiments and, beside it, of claims"
    )
    schema.add_argument(
        "file", nargs="?", type=Path, default=EXPERIMENTS / "schema.json" if CHECKOUT else Path("schema.json"), metavar="FILE"
    )
    claims = command(
        "claims",
        lambda args: claiming.claims(args, functools.partial(_train, in_order=True)),
        "print what was measured of each declared claim; with --run, first train what they need",
    )
    _add_declarations(claims)
    either = claims.add_mutually_exclusive_group()
    either.add_argument("--json", action="store_true", help="print all that is known as JSON")
    either.add_argument(
        "--run", action="store_true", dest="train", help="first train what the claims need, in the order that settles most of them soonest"
    )
    _add_profile_flag(claims, "the one with the most verdicts, of equals the largest; with --run, ledger")
    _add_data_flags(claims, "cifar10")
    _add_run_flags(claims, None, "those of the stage that is due")
    claims.add_argument(
        "--only", type=lambda ids: ids.split(","), default=[], metavar="ID,ID", help="these claims only (default: the primary ones)"
    )
    planned = command(
        "plan-claims", claiming.plan, "print what declared claims can find out: seeds, runs, hours, and the chance of a verdict"
    )
    _add_declarations(planned)
    _add_profile_flag(planned, "ledger")
    _add_data_flags(planned, "cifar10")
    planned.add_argument("--jobs", type=flags.whole, metavar="N", help="runs side by side, for the hours (default: what is soonest done)")
    exporting.add_commands(command, _add_data_dir)
    demoing.add(command)
    command("verify", _verify, "check that the published pages follow from the published records")
    study.add(command)
    _add_data_flags(doctor.add(command))
    completion.add(command, parser)
    return parser


def _in_a_checkout(what: str) -> None:
    """Raise UserError where vitlab is installed: what is published is in a checkout, with the pages that show it."""
    if not CHECKOUT:
        raise UserError(f"{what} is for a checkout of vitlab's repository, and this vitlab is installed in {EXPERIMENTS.parent.parent}")


def _report(args: argparse.Namespace) -> int:
    from vitlab.report import stamp

    if args.publish:
        _in_a_checkout("report --publish")
    if not args.publish and stamp.holds(ROOT, REPORTS):
        print("nothing has changed since the report was compiled")
    else:
        from vitlab.report import publishing  # late: what it imports takes longer than finding that nothing has changed

        compiled, folder = (publishing.publish, RESULTS) if args.publish else (publishing.own, REPORTS)
        with writing(folder):
            for path in compiled(ROOT, folder, lambda text: print(printable(text), file=sys.stderr)):
                print(terminal.short(path))
    if not args.publish:
        publish = f"; 'vitlab report --publish' adds it to {terminal.short(RESULTS)} and README.md" if CHECKOUT else ""
        print(f"the report is in {terminal.short(REPORTS)}{publish}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from vitlab.report import verify

    _in_a_checkout("verify")
    checked, wrong = verify.verify(ROOT, RESULTS)
    for line in wrong:
        print(printable(line))
    if wrong:
        return 1
    for path in checked:
        print(f"{terminal.short(path)}: as measured")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from vitlab.run import predict

    if args.model:
        from vitlab.run import promoting

        chosen = promoting.registered(args.model, ROOT)
    else:
        chosen = predict.at(args.folder) if args.folder else predict.best(args.data, RUNS, RESULTS)
    for line in predict.classify(args.images, chosen):
        print(printable(line))
    return 0


def _pack(args: argparse.Namespace) -> int:
    from vitlab.run import pack

    parts = pack.pack(args.folder, RUNS, args.to, lambda text: print(printable(text)))
    for path in parts:
        print(printable(f"{path}: {path.stat().st_size / 1e6:.1f} MB"))
    every = shlex.quote(str(parts[0].with_suffix(""))) + ".*"
    print(printable(f"to unpack, in another checkout: mkdir -p runs && cat {every} | tar xf - -C runs"))
    return 0


def _data(args: argparse.Namespace) -> int:
    from vitlab.data import sources

    for line in sources.prepare(args.data_dir):
        print(line)
    return 0


def _sync(args: argparse.Namespace) -> int:
    from vitlab.run import predict
    from vitlab.track import shipping

    if not args.folder.is_dir():
        raise UserError(f"{args.folder}: no such folder; expected a folder of runs, by default {terminal.short(RUNS)}")
    outcome = shipping.sync(args.folder, ROOT, predict.model_to_log)
    for label, ok, reason in outcome:
        print(printable(f"{label}: {'shipped' if ok else f'not shipped: {reason}'}"))
    if not outcome:
        print(f"nothing outstanding below {terminal.short(args.folder)}")
    return 0 if all(ok for _, ok, _ in outcome) else 1


def _ui(args: argparse.Namespace) -> int:
    from vitlab.track import views

    for name, address in views.addresses(ROOT, args.port).items():
        print(printable(f"{name or 'all runs'}: {address}"))
    return 0


def _schema(args: argparse.Namespace) -> int:
    try:
        for path in study.write_schemas(args.file):
            print(terminal.short(path))
    except FileNotFoundError as e:  # the folder that they are to be written to
        raise errors.refused(e) from None
    return 0
