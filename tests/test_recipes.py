"""The recipes of CONTRIBUTING.md, each carried out on a copy of the repository: its code is put where it says, its commands are run."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import brier_score_loss

from vitlab import config
from vitlab.data import dataset, ops, sources
from vitlab.models import registry
from vitlab.paths import REPOSITORY
from vitlab.train import optim

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## Add an? ([^\n]+)\n(.*?)(?=^## Add|^# Numbers)", TEXT, flags=re.DOTALL | re.MULTILINE))
HEAD = re.compile(r"# (?:(above|in) (\w+) of )?([\w./-]+\.(?:py|yaml))$")  # where the lines after it go, or the line that it ends
TWO_STEPS = """\
all: {epochs_percent: 1, data: {train_limit: 36, test_limit: 20}, train: {batch_size: 16}}
vit: {model: {dim: 32, depth: 2, heads: 2}}
"""  # the profile quick of the copy: one epoch of 34 images


def parts(recipe: str) -> list[tuple[str, str, str, str]]:
    """Every piece of the recipe's code: (above, in or "", the name, the file, the code)."""
    found: list[tuple[str, str, str, str]] = []
    for block in re.findall(r"^```\w+\n(.*?)^```$", RECIPES[recipe], flags=re.DOTALL | re.MULTILINE):
        goes: tuple[str, str, str] | None = None
        for line in block.splitlines():
            at = HEAD.search(line)
            if at is None:
                assert goes is not None, f"{recipe}: where does this go? {line}"
                found[-1] = (*goes, f"{found[-1][3]}{line}\n")
            elif at.start() == 0:
                goes = (at[1] or "", at[2] or "", at[3])
                found.append((*goes, ""))
            else:
                goes = None
                found.append((at[1], at[2], at[3], line[: at.start()].rstrip() + "\n"))
    return found


def put(tree: Path, how: str, name: str, file: str, code: str) -> None:
    """Write a new file, or put the code above the line that opens `name`, or at the end of what it opens."""
    path = tree / file
    if not how:
        assert not path.exists(), f"{file} is there already"
        path.write_text(code, encoding="utf-8")
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    opens = re.compile(rf"(class )?{name}\b.*[\[({{:]\s*(#.*)?$")
    (start,) = [i for i, line in enumerate(lines) if opens.match(line)]
    if how == "above":
        at, code = start, f"{code}\n\n"
    else:  # before the line that closes it: a bracket, or the first line not indented
        inside = (i for i, line in enumerate(lines[start + 1 :], start + 1) if line.strip() and not line.startswith((" ", "#")))
        at = next(inside, len(lines))
        while not lines[at - 1].strip():
            at -= 1
        code = textwrap.indent(code, "  " if path.suffix == ".yaml" else "    ")
    lines.insert(at, code)
    path.write_text("".join(lines), encoding="utf-8")


class Tree:
    """A copy of the repository, and what is run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, command: str, code: int = 0) -> str:
        """Run it as a shell would in the activated environment, and return what it prints."""
        words = shlex.split(command)
        if words[0] == "vitlab":
            words = ["python", "-m", *words]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "VITLAB_"))}
        environment |= {"PYTHONPATH": str(self.path), "OMP_NUM_THREADS": "1", "VITLAB_ROOT": str(self.path)}
        done = subprocess.run([sys.executable, *words[1:]], cwd=self.path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr[-4000:]
        return done.stdout + done.stderr

    def follow(self, recipe: str) -> str:
        """Apply the recipe's code and run its commands, training two steps; returns what they print."""
        for part in parts(recipe):
            put(self.path, *part)
        printed = ""
        commands = re.findall(
            r"`((?:python runner\.py|vitlab) [^`]+)`", re.sub(r"^```.*?^```$", "", RECIPES[recipe], flags=re.DOTALL | re.M)
        )
        assert commands, recipe
        for command in commands:
            more = ""
            if command.startswith("python"):
                more = " --profile quick" + ("" if "--data" in command else " --data digits")
            elif command.startswith("vitlab claims"):
                more = " --profile quick --data digits"
            printed += self.run(command + more)
        return printed

    @property
    def record(self) -> dict:
        """Of the one finished run."""
        (path,) = (self.path / "runs").glob("*/*/*/record.json")
        record = json.loads(path.read_text(encoding="utf-8"))
        assert (record["dataset"]["train"], record["config"]["train"]["batch_size"]) == (34, 16)
        assert np.isfinite(record["history"][0]["train/loss"])
        return record

    def python(self, code: str) -> str:
        return self.run(f"python -c {shlex.quote(textwrap.dedent(code))}")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("results/", "tests/", "docs/")) and (REPOSITORY / name).is_file():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, tmp_path / "copy" / name)
    (tmp_path / "copy" / "experiments" / "profiles" / "quick.yaml").write_text(TWO_STEPS, encoding="utf-8")
    return Tree(tmp_path / "copy")


def test_every_recipe_is_short_and_carried_out() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    assert len(RECIPES) == TEXT.count("\n## Add "), "a heading that the pattern misses"
    for name, text in RECIPES.items():
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("```")]
        assert len(lines) <= 15, f"{name}: {len(lines)} lines"
        assert f'tree.follow("{name}")' in here


def test_what_has_a_name_can_be_made() -> None:
    assert set(config.MODELS) == set(registry.BUILDERS)
    assert set(config.OPTIMS) == set(optim.BUILDERS)
    assert {*sources.SOURCES, "folder"} == set(dataset.READERS)
    for sections in (config.MODELS, config.OPTIMS):
        assert {name: get_args(section.model_fields["name"].annotation) for name, section in sections.items()} == {
            n: (n,) for n in sections
        }
    assert set(ops.TRANSFORMS) <= set(config.Augment.model_fields)


@pytest.mark.slow
def test_experiment(tree: Tree) -> None:
    printed = tree.follow("experiment")
    assert "08_no_drop_path" in printed
    record = tree.record
    assert (record["experiment"], record["title"]) == ("08_no_drop_path", "Regularised ViT without DropPath")
    assert record["config"]["model"]["drop_path"] == 0
    tree.run("python runner.py experiments/02_regularized_vit.yaml --set model.drop_path=0 --profile quick --data digits")
    (with_set,) = (tree.path / "runs").glob("*/02_regularized_vit/*/record.json")
    by_set = json.loads(with_set.read_text(encoding="utf-8"))
    assert record["fingerprint"] == by_set["fingerprint"], "the file and --set are one configuration"


@pytest.mark.slow
def test_augmentation(tree: Tree) -> None:
    tree.follow("augmentation")
    assert tree.record["config"]["phases"][0]["augment"]["invert"] == 0.5
    tree.python("""
        import torch
        from vitlab import config
        from vitlab.data.augment import augment, normalize
        mean, std, draws = torch.full((3,), 0.4), torch.full((3,), 0.2), torch.Generator()
        images = torch.arange(40 * 3 * 16, dtype=torch.uint8).view(40, 3, 4, 4)
        for prob, low, high in ((0.0, 0, 0), (0.5, 8, 32), (1.0, 40, 40)):
            got = augment(images, config.Augment(invert=prob), mean, std, draws, mirror=True)
            plain, inverted = normalize(images, mean, std), normalize(255 - images, mean, std)
            turned = (got == inverted).flatten(1).all(1)
            assert torch.equal(got[~turned], plain[~turned]) and low <= turned.sum() <= high
    """)


@pytest.mark.slow
def test_model(tree: Tree) -> None:
    tree.follow("model")
    record = tree.record
    assert (record["params"], record["flops"]) == (3 * 32 * 32 * 10 + 10, 2 * 3 * 32 * 32 * 10)
    assert record["perf"]["train_gflops_per_image"] == pytest.approx(2 * record["flops"] / 1e9), "the image needs no gradient"
    yaml = "extends: 01_baseline_vit.yaml\ntitle: Linear\nmodel: {name: %s}\noptim: {lr: 1e-3}\n"
    (tree.path / "experiments" / "linear.yaml").write_text(yaml % "linear")
    with (tree.path / "experiments" / "profiles" / "quick.yaml").open("a") as f:
        f.write("linear:\n  optim: {lr: 3e-3}\n")
    plan = "python runner.py experiments/linear.yaml --data digits --profile quick --dry-run"
    assert "0.03 M" in tree.run(plan)
    printed = tree.python("from vitlab import config; print(config.load('experiments/linear.yaml', 'quick').config.optim.lr)")
    assert printed.strip() == "0.003"
    (tree.path / "experiments" / "linear.yaml").write_text(yaml % "linaer")
    assert "linear.yaml:3: model.name: 'linaer' is not one of 'vit', 'resnet', 'linear'" in tree.run(plan, code=2)
    (tree.path / "experiments" / "linear.yaml").write_text(yaml % "linear, dpeth: 1")
    assert "linear.yaml:3: model.dpeth: unknown key, expected one of: name" in tree.run(plan, code=2)


@pytest.mark.slow
def test_optimiser(tree: Tree) -> None:
    tree.follow("optimiser")
    assert tree.record["config"]["optim"]["name"] == "radam"
    wrong = "python runner.py experiments/01_baseline_vit.yaml --set optim.name=radm --data digits --profile quick --dry-run"
    assert "'radm' is not one of 'adamw', 'sgd', 'muon', 'radam'" in tree.run(wrong, code=2)


@pytest.mark.slow
def test_metric(tree: Tree) -> None:
    tree.follow("metric")
    (path,) = (tree.path / "runs").glob("*/*/*/predictions.npz")
    stored = np.load(path)
    expected = brier_score_loss(
        stored["labels"], softmax(stored["logits_raw"].mean(0).astype(float), -1), labels=range(10), scale_by_half=False
    )
    assert tree.record["metrics"]["test_brier"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_report_column(tree: Tree) -> None:
    tree.follow("report column")
    pages = tree.path / "reports" / "quick-digits"
    expected = tree.record["metrics"]["test_confidence"]
    (row,) = csv.DictReader((pages / "summary.csv").read_text(encoding="utf-8").splitlines())
    assert float(row["confidence"]) == expected
    lines = (pages / "README.md").read_text(encoding="utf-8").splitlines()
    (head,) = [i for i, line in enumerate(lines) if "| Mean confidence (%) |" in line]
    names, cells = ([cell.strip() for cell in line.split("|")] for line in (lines[head], lines[head + 2]))
    assert cells[names.index("Mean confidence (%)")] == f"{expected:.2f}"


@pytest.mark.slow
def test_claim(tree: Tree) -> None:
    printed = tree.follow("claim")
    runs = [line for line in printed.splitlines() if "01_baseline_vit" in line]
    assert len(runs) == 2 * 6, "two arms, the six seeds of the first stage"
    assert sum("phases.0.augment.flip=false" in line for line in runs) == 6
    assert "flips-help" in runs[-1], "settled with the last of them"


@pytest.mark.slow
def test_data_set(tree: Tree) -> None:
    tree.follow("data set")
    data = tree.record["dataset"]
    assert (data["name"], data["digest"], data["classes"], data["test"]) == ("stripes", "stripes 1", ["down", "across"], 20)
    assert "expected auto, cifar10, cifar100, digits, stripes, or a folder" in tree.run(
        "python runner.py experiments/01_baseline_vit.yaml --data stirpes --profile quick --dry-run", code=2
    )
