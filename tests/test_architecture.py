"""The rooms: a file imports only from levels below its own, and heavy packages only where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vitlab

PACKAGE = Path(vitlab.__file__).parent
LEVELS = [
    {"__init__", "paths", "files", "blocks"},
    {"errors"},
    {"yaml_places"},
    {"config"},
    {"records", "half", "ranking"},
    {"published", "schedule", "progress", "cost", "sources", "journal", "lock"},
    {"machine", "claims", "statistics"},
    {"meter", "verdicts"},
    {"augment", "models", "models.layers", "models.resnet", "models.vit"},
    {"plan", "data", "optim", "objective", "checkpoint", "evaluate"},
    {"step", "claim_runs"},
    {"store"},
    {"views"},
    {"tracking", "figures", "predict", "trainer", "pack"},
    {"experiment", "tables"},
    {"ledger"},
    {"forest"},
    {"report"},
    {"verify"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Names of imported modules; only those executed on import where `everywhere` is False."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if not everywhere and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downwards(path: Path) -> None:
    own = module_name(path)
    assert own in LEVEL, f"{own} has no level: give it one in {Path(__file__).name} and in the README's file tree"
    for name in imports(path):
        target = name.removeprefix("vitlab.")
        if name.startswith("vitlab.") and target in LEVEL and target != own:
            same_room = own.startswith("models") and target.startswith("models")
            assert same_room or LEVEL[target] < LEVEL[own], f"{own} imports {target}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    own = module_name(path)
    packages = {name.split(".")[0] for name in imports(path)}
    if own not in ("store", "tracking"):
        assert "mlflow" not in packages
    if own not in ("figures", "forest"):
        assert not packages & {"matplotlib", "seaborn"}
    judging = {"claims", "statistics", "ranking", "verdicts", "claim_runs", "ledger"}
    showing = {"figures", "forest", "tables", "report", "published", "half"}
    if own in judging | showing | {"config", "records", "cost", "plan", "schedule", "progress", "journal"}:
        assert not packages & {"torch", "torchvision"}
    on_import = {name.split(".")[0] for name in imports(path, everywhere=False)}
    assert "mlflow" not in on_import
    if own in ("sources", "cli"):
        assert not on_import & {"torch", "torchvision"}


@pytest.mark.parametrize(
    ("argv", "heavy", "printed"),
    [
        (["--help"], {"torch", "pydantic", "yaml", "rich", "numpy"}, "usage"),
        (["experiments", "--dry-run", "--profile", "quick", "--data", "digits"], {"torch", "mlflow", "matplotlib", "sklearn"}, "06_kd_r50"),
    ],
    ids=["help", "plan"],
)
def test_help_and_the_plan_load_nothing_heavy(argv: list[str], heavy: set[str], printed: str) -> None:
    code = (
        f"import sys\nfrom vitlab import cli\ntry: cli.run_main({argv})\nexcept SystemExit as e: assert e.code == 0\n"
        f"assert not {heavy} & set(sys.modules), 'a heavy module was loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
