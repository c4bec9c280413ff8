"""The rooms: a package imports only from those before it, and heavy libraries stay where they belong. A new file needs no entry here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitlab
from vitlab.paths import REPOSITORY

PACKAGE = Path(vitlab.__file__).parent
ROOMS = (  # each imports only from those before it; files beside the packages are rooms of their own
    "paths", "code", "files", "errors", "config", "stats", "ranking", "records", "figures", "data", "models", "train", "track", "run",
    "claims", "report", "export", "demo", "terminal", "claiming", "exporting", "demoing", "listing", "completion", "study", "doctor", "cli", "__main__",
    "__init__",  # which offers load() to who imports vitlab
)  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = room(path)
    assert own in ROOMS, f"{own} is a new room: give it its place in ROOMS, and in docs/architecture.md"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "vitlab" and len(parts) > 1 and parts[1] in ROOMS and parts[1] != own:
            assert ROOMS.index(parts[1]) < ROOMS.index(own), f"{path.name} imports {name}, which comes after {own}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    own = room(path)
    packages = {name.split(".")[0] for name in imports(path)}
    if own != "track":
        assert "mlflow" not in packages
    if own not in ("figures", "report"):
        assert not packages & {"matplotlib", "seaborn"}
    if own != "demo":
        assert "gradio" not in packages
    if own != "report":
        assert "pandas" not in packages
    if own in ("config", "stats", "ranking", "records", "figures", "claims", "report") or path.stem in (
        "cost",
        "plan",
        "progress",
        "journal",
    ):
        assert not packages & {"torch", "torchvision"}
    on_import = {name.split(".")[0] for name in imports(path, everywhere=False)}
    assert "mlflow" not in on_import
    if own == "cli" or path.stem == "sources":
        assert not on_import & {"torch", "torchvision"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_order_of_imports_is_the_one_in_the_docs() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    order = page.partition("each imports only from those before it:")[2].strip().splitlines()[0]
    assert re.findall(r"`(\w+)`", order) == [room for room in ROOMS if not room.startswith("__")]


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(REPOSITORY / "tests")))
def test_no_test_module_imports_another(path: Path) -> None:
    """What two of them need is in tests/support/ or a fixture of conftest.py."""
    assert not [name for name in imports(path) if re.search(r"(^|\.)(test_\w+|conftest)$", name)]


PRIVATE = re.compile(r"_[A-Za-z]\w*")
OF_OTHERS = {  # private names of libraries that have no public way to the same; each is explained where it is used
    "_exit", "_python_dispatch", "_pytree", "_subclasses", "_export_format", "_AUGMENTATION_SPACE", "_apply_image_or_video_transform", "_fill", "_dist",
}  # fmt: skip


def private_names(path: Path) -> set[str]:
    """Private names that the file takes from elsewhere: imported, as attributes, by setattr, or within code that it keeps as text."""
    found, own = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found.update([*node.module.split("."), *(alias.name for alias in node.names)])
        elif isinstance(node, ast.Attribute):
            mine = isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"
            (own if mine else found).add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            found.update(arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(re.findall(r"\b[a-z]\w*\.(_[A-Za-z]\w*)", node.value))
    return {name for name in found - own if isinstance(name, str) and PRIVATE.fullmatch(name.rpartition(".")[2])}


@pytest.mark.parametrize("path", [*TESTS, REPOSITORY / "docs" / "make_terminal.py"], ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_private_names_of_vitlab_are_left_alone(path: Path) -> None:
    """What is worth a test has a public name."""
    assert private_names(path) <= OF_OTHERS


def test_the_check_sees_private_names(tmp_path: Path) -> None:
    code = (
        "from vitlab.cli import ~a\nrun.~b()\npatch.setattr(cli, '~c', 1)\npatch.setattr('vitlab.cli.~d', 1)\ncode = 'cli.~e()'\n"
        "class Own:\n    def ~f(self): self.~g = self.~g\n"
    )
    (tmp_path / "x.py").write_text(code.replace("~", "_"))  # so that the check does not find them in this file
    assert {name.rpartition(".")[2] for name in private_names(tmp_path / "x.py")} == {"_a", "_b", "_c", "_d", "_e"}


@pytest.mark.parametrize(
    ("argv", "heavy", "printed"),
    [
        (["--help"], {"torch", "pydantic", "yaml", "rich", "numpy", "pandas", "gradio"}, "usage"),
        (
            ["experiments", "--dry-run", "--profile", "quick", "--data", "digits"],
            {"torch", "mlflow", "matplotlib", "sklearn", "pandas"},
            "06_kd_r50",
        ),
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
