"""`vitlab init`: a folder to start an ablation of one's own from; and the schemas with which editors help to write its files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from vitlab.errors import UserError
from vitlab.terminal import short

Command = Callable[
    [str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser
]  # registers one: its name, what it does, its help

IDEA = """\
# yaml-language-server: $schema=schema.json
# The baseline with larger patches: what is lost with a quarter of the tokens?
#
# Everything that is not named here is as in the experiment that this one extends: one of vitlab's own by its name, or a file as base.yaml.
# Mappings merge with its, lists replace them. An editor that knows the schema completes the keys; an unknown key is an error.
extends: 01_baseline_vit
title: Baseline ViT, large patches
description: The baseline with patches of 8x8 pixels.

model:
  patch_size: 8 # 16 tokens; the baseline has 64
"""

CLAIMS = """\
# yaml-language-server: $schema=claims-schema.json
# What is expected of the idea. It is written down before anything is trained, and is not changed afterwards.
confidence: 0.95
first_seed: 10 # the seeds before are for trying things out, and test nothing
stages:
  - {seeds: 5, alpha: 0.05}
claims:
  - id: patches
    statement: Patches of 4x4 are better than patches of 8x8.
    brief: patches of 4x4 are ahead of 8x8 by
    source: my own idea
    primary: true # tested
    expected: 3 # points of test top-1, what I think it is
    sd: 1 # points, how much I think the difference varies from seed to seed
    arms: # each is a file of this folder or one of vitlab's own, without .yaml
      - {experiment: 01_baseline_vit}
      - {experiment: idea}
    metric: test_top1
    at_least: 0
"""

README = """\
# An ablation of my own

`idea.yaml` changes one thing in one of vitlab's experiments. `claims.yaml` says what is expected of it. Run these commands in this folder.
`--data digits --profile quick` are minutes on any computer; for CIFAR-10 write `--data cifar10`, for a larger size `--profile ledger`.

Look at the plan, then train the idea and what it is compared with, once each, with a seed that tests nothing:

```
vitlab run idea.yaml 01_baseline_vit --profile quick --data digits --dry-run
vitlab run idea.yaml 01_baseline_vit --profile quick --data digits
```

Ask what the five seeds that `claims.yaml` plans can find out. If the chance of a verdict is small, plan more of them now: later is too late.

```
vitlab plan-claims claims.yaml --profile quick --data digits
```

Train these seeds and read the verdict. The command may be stopped and started again.

```
vitlab claims claims.yaml --run --profile quick --data digits
```

Compile tables, charts and pages on all runs:

```
vitlab report
```
"""


def add(command: Command) -> None:
    """Add `vitlab init` to the commands."""
    sub = command(
        "init", _init, "make a folder to start an ablation of your own from: an experiment, a claim, and a README with the commands"
    )
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="the folder, which must not exist yet")


def write_schemas(path: Path) -> list[Path]:
    """Write the JSON Schema of experiment files to `path`, and that of files of claims beside it; return both paths."""
    from vitlab import config
    from vitlab.claims import declarations

    schemas = {path: config.json_schema(), path.with_name("claims-schema.json"): declarations.json_schema()}
    for to, schema in schemas.items():
        to.write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
    return list(schemas)


def _init(args: argparse.Namespace) -> int:
    try:
        args.folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{args.folder}: is there already; name a new folder") from None
    for name, text in (("idea.yaml", IDEA), ("claims.yaml", CLAIMS), ("README.md", README)):
        (args.folder / name).write_text(text, encoding="utf-8")
    write_schemas(args.folder / "schema.json")
    print(f"{short(args.folder)}: start with its README.md")
    return 0
