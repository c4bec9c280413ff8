"""`vitlab doctor`: what of this machine matters for vitlab, and what is wrong with it. Its output is meant for bug reports."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import vitlab
from vitlab.code import git_state
from vitlab.errors import UserError
from vitlab.files import printable
from vitlab.paths import CHECKOUT, REPOSITORY, ROOT, RUNS

Command = Callable[
    [str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser
]  # registers one: its name, what it does, its help
LITTLE = 2e9  # bytes free, below which a night of runs may not end


class Findings:
    """What was found, and what is wrong, each with its remedy."""

    def __init__(self) -> None:
        self.facts: dict[str, dict[str, Any]] = {}
        self.wrong: list[dict[str, str]] = []

    def note(self, part: str, /, **facts: object) -> None:
        """Add facts to a part of the findings."""
        self.facts.setdefault(part, {}).update(facts)

    def blame(self, what: str, remedy: str = "") -> None:
        """Add something that is wrong, and what to do about it, unless the text says that itself."""
        self.wrong.append({"what": what, "do": remedy})


def add(command: Command) -> argparse.ArgumentParser:
    """Add `vitlab doctor` to the commands and return its parser, which lacks the flags about data."""
    sub = command("doctor", _doctor, "print versions, device, speed, data, MLflow and disk, and what is wrong; exit 1 where something is")
    sub.add_argument("--json", action="store_true", help="print it as JSON")
    return sub


def _doctor(args: argparse.Namespace) -> int:
    found = examine(args.data, args.data_dir, ROOT, RUNS)
    if args.json:
        print(json.dumps({**found.facts, "wrong": found.wrong}, indent=1, default=str))
    else:
        for part, facts in found.facts.items():
            print(part)
            for key, value in facts.items():
                print(printable(f"  {key:<12} {value}"))
        print("wrong" if found.wrong else "nothing is wrong")
        for trouble in found.wrong:
            print(printable(f"  {trouble['what']}" + (f"\n    -> {trouble['do']}" if trouble["do"] else "")))
    return 1 if found.wrong else 0


def examine(data: str, data_dir: Path, root: Path, runs_dir: Path) -> Findings:
    """Look at everything, without changing any of it, and return what was found. Takes some seconds, one of them to measure the speed."""
    found = Findings()
    _versions(found)
    _device(found)
    _data(found, data, data_dir)
    _store(found, root, runs_dir)
    _disk(found, root)
    return found


def _versions(found: Findings) -> None:
    git = git_state()
    found.note(
        "versions",
        vitlab=vitlab.__version__,
        commit=(git["commit"] or "not known") + (f", with changes {git['dirty']}" if git["dirty"] else ""),
        installed=f"{'checkout' if CHECKOUT else 'package'} in {REPOSITORY}",
        python=f"{platform.python_version()} on {platform.platform()}",
    )
    for name in ("torch", "torchvision", "mlflow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.note("versions", **{name: metadata.version(name)})
    for need, have in _unmet():
        found.blame(f"{need} is needed, and {have} is installed", f"{Path(sys.executable).name} -m pip install '{need}'")


def _unmet() -> list[tuple[str, str]]:
    """Return (what is needed, what is installed) of each package of which no fitting version is installed."""
    from packaging.requirements import Requirement

    unmet = []
    try:
        needs = [Requirement(text) for text in metadata.requires("vitlab") or ()]
    except metadata.PackageNotFoundError:  # run from a folder, not installed
        return []
    for need in needs:
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            try:
                have = metadata.version(need.name)
            except metadata.PackageNotFoundError:
                have = "no version"
            if have == "no version" or not need.specifier.contains(have, prereleases=True):
                unmet.append((f"{need.name}{need.specifier}", have))
    return unmet


def _device(found: Findings) -> None:
    try:
        with warnings.catch_warnings(record=True) as warned:  # torch warns of a driver that it cannot use
            warnings.simplefilter("always")
            import torch
            import torchvision  # noqa: F401 it refuses a torch that it was not built for

            from vitlab.run import plan
            from vitlab.train import machine

            where = machine.device()
    except Exception as e:  # a torch that is broken raises nearly anything
        found.blame(f"torch cannot be used: {type(e).__name__}: {e}", "install torch and torchvision anew, as https://pytorch.org says")
        return
    if where.type == "cpu" and (gpus := plan.gpus()):
        why = str(warned[0].message).splitlines()[0] if warned else f"torch {torch.__version__} was built for CUDA {torch.version.cuda}"
        found.blame(
            f"NVIDIA's driver sees {gpus} GPU{'s' * (gpus != 1)}, and torch none: {why}",
            "install a torch that is built for the driver's CUDA, as https://pytorch.org says; and look at CUDA_VISIBLE_DEVICES",
        )
    if where.type == "cuda" and (trouble := machine.compiler_trouble(where)):
        found.blame(
            f"torch cannot compile for this GPU, since Triton cannot be used: {trouble}",
            f"install {machine.COMPILER['cuda']}; until then full size trains uncompiled, slower",
        )
    precision = machine.precision("auto", where)
    rate = machine.matrix_product_rate(where, torch.bfloat16 if precision == "bf16" else torch.float32)
    found.note(
        "device",
        name=machine.device_name(where),
        threads=torch.get_num_threads(),
        cuda=f"{torch.version.cuda}, {torch.cuda.device_count()} GPUs" if where.type == "cuda" else "no",
        precision=precision,
        speed=f"{rate / 1e9:,.0f} GFLOP/s in a large matrix product",
    )


def _data(found: Findings, data: str, data_dir: Path) -> None:
    from vitlab.data import sources

    found.note("data", folder=data_dir)
    for name in sources.SOURCES if data == "auto" else (data,):
        try:
            source = sources.resolve(name, data_dir, "full", download=False)
        except UserError as e:
            found.note("data", **{name: "damaged or missing, see below"})
            found.blame(str(e))
        else:
            found.note("data", **{name: source.note or f"found, {len(source.classes)} classes, {source.train:,} images to train on"})


def _store(found: Findings, root: Path, runs_dir: Path) -> None:
    from vitlab.track import shipping, store

    uri = shown(store.tracking_uri(root))
    own = store.tracking_uri(root) == store.own_uri(root)
    found.note("MLflow", store=uri)
    try:
        if own and not (root / "mlflow.db").exists():
            found.note("MLflow", reachable="not made yet; the first run makes it")
        elif own:
            found.note("MLflow", reachable="yes", runs=sum(tags.get("vitlab.kind") == "seed" for *_, tags in store.own_runs(root)))
        else:
            found.note(
                "MLflow", reachable="yes", experiment=store.EXPERIMENT if store.reach(root) else "not made yet; the first run makes it"
            )
    except Exception as e:
        why = store.reason(e).replace(store.tracking_uri(root), uri)
        found.note("MLflow", reachable=f"no: {why}")
        remedy = "start its server, or mend MLFLOW_TRACKING_URI; runs train all the same, and 'vitlab sync' ships them later"
        found.blame(f"MLflow cannot be reached at {uri}: {why}", "" if own else remedy)
    folders = sorted(path for path in runs_dir.glob("*/*/*") if path.is_dir())
    late = []
    for folder in folders:
        try:
            late += [folder] if shipping.outstanding(folder, root) else []
        except UserError as e:
            found.blame(str(e))
    found.note(
        "runs", folder=runs_dir, here=len(folders), finished=sum((f / "record.json").is_file() for f in folders), outstanding=len(late)
    )
    if late:
        found.blame(f"finished runs of which MLflow lacks something: {len(late)}; the first is {late[0]}", "'vitlab sync' ships it")


def shown(uri: str) -> str:
    """Return a tracking URI without what may be secret: user, password and options."""
    scheme, sep, rest = uri.partition("://")
    if not sep or scheme == "sqlite":
        return uri.partition("?")[0]
    place, _, options = rest.partition("?")
    # A password may contain a question mark, against the rules: then nothing tells where the place begins.
    return f"{scheme}://…" if "@" in options else f"{scheme}://{place.rpartition('@')[2]}"


def _disk(found: Findings, root: Path) -> None:
    there = next(path for path in (root, *root.parents) if path.exists())
    usage = shutil.disk_usage(there)
    found.note("disk", folder=root, free=f"{usage.free / 1e9:,.1f} of {usage.total / 1e9:,.1f} GB")
    if usage.free < LITTLE:
        found.blame(
            f"{there}: only {usage.free / 1e9:.2f} GB of disk are free", "free some, or set VITLAB_ROOT to a folder on another disk"
        )
    if not os.access(there, os.W_OK):
        found.blame(f"{there}: cannot be written to", "change its permissions, or set VITLAB_ROOT to a folder of yours")
