"""Check that the published pages follow from the published records, and that the code of each record can be looked up."""

from __future__ import annotations

import shutil
import tempfile
from itertools import chain, zip_longest
from pathlib import Path

from vitlab import code, records
from vitlab.config.places import shown
from vitlab.errors import UserError
from vitlab.report import blocks, publishing

PAGES = ("README.md", "*/README.md", "*/summary.csv", "*/claims.json")  # below results/
KINDS = ("results", "findings")  # of blocks
REMEDY = "'vitlab report --publish' writes these pages anew from the records"
AROUND = 40  # characters shown before and after where two lines differ


def verify(root: Path, results_dir: Path) -> tuple[list[Path], list[str]]:
    """Return the pages that were compared, and what is wrong with them and with the records: `file:line: expected ..., found ...`.

    `root` has README.md and docs/, where numbers stand in blocks (see blocks.py). Raises UserError where `root` has no README.md or there
    is no `results_dir`.
    """
    if not (root / "README.md").is_file() or not results_dir.is_dir():
        raise UserError(f"{root}: nothing is published here; expected README.md and {shown(results_dir)}")
    texts = {path: blocks.read(path) for path in blocks.pages(root)}
    expected = expected_pages(results_dir)
    for path, text in texts.items():
        if any(blocks.names(text, kind) for kind in KINDS):
            expected[path] = publishing.fill(text, results_dir)
    wrong = list(filter(None, (difference(path, page) for path, page in expected.items())))
    wrong += [unchecked(kind) for kind in KINDS if not any(blocks.names(text, kind) for text in texts.values())]
    return list(expected), wrong + [REMEDY] * bool(wrong) + lost(results_dir, code.history(root))


def unchecked(block: str) -> str:
    """Return the line that says that no page has this block."""
    return f"README.md and docs/*.md: none has a block <!-- {block} ... -->: these numbers go unchecked"


def lost(results_dir: Path, history: frozenset[str] | None) -> list[str]:
    """Return a line for each published record that was trained, in whole or in part, by a commit which is not in `history`.

    Nobody can look up its code. Nothing is said where the history is not known (None), or has none of these commits: then it is another
    repository's, into which the records were copied.
    """
    if history is None:
        return []
    trained = {}
    for path in sorted(results_dir.glob("*/records/*.json")):
        record = records.read(path)
        trained[path] = {part.git.get("commit") or "unknown" for part in (record, *record.parts)}
    if history.isdisjoint(chain.from_iterable(trained.values())):
        return []
    return [
        f"{shown(path)}: trained by commit {commit[:12]}, which is not in this history; train the run anew and publish it"
        for path, commits in trained.items()
        for commit in sorted(commits - history)
    ]


def expected_pages(results_dir: Path) -> dict[Path, str | None]:
    """Return every set's pages and their index as the records have them, by path; None for a page that follows from no record."""
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
    """Return where the file at `path` first differs from `expected`, as one line for the user; None where it does not.

    `expected` is None for a page that should not be there.
    """
    if expected is None:
        return f"{shown(path)}: follows from no record"
    if not path.is_file():
        return f"{shown(path)}: missing; publishing writes it"
    lines = zip_longest(expected.split("\n"), blocks.read(path).split("\n"), fillvalue="")
    for number, (should, does) in enumerate(lines, 1):
        if should != does:
            at = next((i for i, (a, b) in enumerate(zip(should, does)) if a != b), min(len(should), len(does)))
            part = slice(max(0, at - AROUND), at + AROUND)
            return f"{shown(path)}:{number}: expected {should[part]!r}, found {does[part]!r}"
    return None
