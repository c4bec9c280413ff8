"""Whether the published pages follow from the published records: all of them are made anew in a temporary folder, and compared."""

from __future__ import annotations

import shutil
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

from vitlab.config.places import shown
from vitlab.errors import UserError
from vitlab.paths import REPOSITORY
from vitlab.report import publishing

PAGES = ("README.md", "*/README.md", "*/summary.csv", "*/claims.json")  # below results/
AROUND = 40  # characters shown before and after where two lines part


def verify(root: Path, results_dir: Path) -> tuple[list[Path], list[str]]:
    """The pages that were compared, and what is wrong with them: `file:line: expected ..., found ...`.

    `root` has the main README.md, whose numbers stand in blocks (see blocks.py), and benchmarks/. Raises UserError where `root` has
    no README.md or there is no `results_dir`.
    """
    readme, benchmarks, pages = root / "README.md", root / "benchmarks", _pages()
    if not readme.is_file() or not results_dir.is_dir():
        raise UserError(f"{root}: nothing is published here; expected README.md and {shown(results_dir)}")
    text = readme.read_text(encoding="utf-8")
    expected = _results(results_dir) | pages.all_pages(benchmarks)
    expected[readme] = publishing.readme(pages.readme(text, benchmarks), results_dir)
    wrong = [difference(path, page) for path, page in expected.items()]
    unmarked = [f"{shown(readme)}: no block <!-- {kind}: ... -->: these numbers go unchecked" for kind in ("results", "benchmark")
                if f"<!-- {kind}: " not in text]  # fmt: skip
    return list(expected), [*filter(None, wrong), *unmarked]


def _results(results_dir: Path) -> dict[Path, str | None]:
    """The pages of every set and of their index, as the records have them; None for one that does not follow from any."""
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / "results"
        shutil.copytree(results_dir, copy)
        for page in (*copy.glob("*/README.md"), *copy.glob("*/summary.csv")):  # claims.json remembers what the records do not hold
            page.unlink()
        for folder in sorted(copy.glob("*/records")):
            publishing.rebuild(folder.parent)
        publishing.index(copy)
        names = sorted({path.relative_to(top) for top in (results_dir, copy) for page in PAGES for path in top.glob(page)})
        return {results_dir / name: (copy / name).read_text(encoding="utf-8") if (copy / name).is_file() else None for name in names}


def difference(path: Path, expected: str | None) -> str | None:
    """Where the file at `path` first parts from what it should say."""
    if expected is None:
        return f"{shown(path)}: follows from no record"
    if not path.is_file():
        return f"{shown(path)}: missing; 'vitlab report --publish' writes it"
    lines = zip_longest(expected.split("\n"), path.read_bytes().decode().split("\n"), fillvalue="")
    for number, (should, does) in enumerate(lines, 1):
        if should != does:
            at = next((i for i, (a, b) in enumerate(zip(should, does)) if a != b), min(len(should), len(does)))
            part = slice(max(0, at - AROUND), at + AROUND)
            return f"{shown(path)}:{number}: expected {should[part]!r}, found {does[part]!r}"
    return None


def _pages() -> ModuleType:
    sys.path.insert(0, str(REPOSITORY))  # benchmarks/ is no part of the installed package
    try:
        from benchmarks import pages
    finally:
        sys.path.remove(str(REPOSITORY))
    return pages
