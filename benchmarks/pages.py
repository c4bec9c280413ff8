"""The pages made from the measurements in this folder, and paragraphs of README.md and docs/. They follow from the JSON files alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from textwrap import fill as wrap
from typing import Any

from benchmarks import accuracy, growth_page, growth_server_page, page, scaling_page
from vitlab import files
from vitlab.config.places import shown
from vitlab.errors import UserError
from vitlab.paths import REPORTS, REPOSITORY
from vitlab.report import blocks
from vitlab.report.verify import difference, unchecked

HERE = Path(__file__).parent


def compared(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `make bench` measured, by kind of processor. A kind that has no file in `folder` is left out."""
    return {kind: _read(folder / name) for kind, name in page.FILES.items() if (folder / name).is_file()}


def chaos(results: dict[str, Any]) -> str:
    """Return the paragraph about the last `make chaos`."""
    minutes, seconds = divmod(round(results["seconds"]), 60)
    return wrap(
        f"The last full run, on {results['date']}: {results['kills']} kills at {results['kinds']} kinds of moments, {results['runs']} runs, "
        f"{results['lost']} lost, {results['duplicated']} duplicated, {results['different']} different, in {minutes} min {seconds} s "
        f"({results['device']}, a load of {results['load']:.1f} when it began).",
        130,
        break_on_hyphens=False,
    )


def growth(folder: Path) -> str:
    """Return GROWTH.md, with its section about thousands of runs where these were measured."""
    text = growth_page.page(_read(folder / "growth.json"))
    many = folder / "growth-server.json"
    return text + "\n" + "\n".join(growth_server_page.section(_read(many))) + "\n" if many.is_file() else text


def chaos_engines(results: dict[str, Any]) -> str:
    """Return the paragraph about the last `make chaos-engines`."""
    kinds = ", ".join(f"{kind} {times} times" for kind, times in sorted(results["kinds"].items()))
    return wrap(
        f"The last full run, on {results['date']}: {results['faults']} faults ({kinds}), {results['runs']} runs, {results['lost']} lost, "
        f"{results['duplicated']} duplicated, {results['different']} different, in {results['seconds'] / 60:.0f} min ({results['device']}, a load of "
        f"{results['load']:.1f} when it began).",
        130,
        break_on_hyphens=False,
    )


PAGES: dict[str, Callable[[Path], str]] = {  # each made from the measurements in a folder
    "README.md": lambda folder: page.page(compared(folder)),
    "GROWTH.md": lambda folder: growth(folder),
    "SCALING.md": lambda folder: scaling_page.page(_read(folder / "scaling.json")),
    "ACCURACY.md": lambda folder: accuracy.page(_read(folder / "accuracy.json")),
}
PARAGRAPHS: dict[str, Callable[[Path], str]] = {
    **{name: lambda folder, kind=kind: page.summary(kind, compared(folder).get(kind)) for kind, name in page.FILES.items()},
    "growth-server.json": lambda folder: growth_server_page.paragraph(_read(folder / "growth-server.json")),
    "chaos.json": lambda folder: chaos(_read(folder / "chaos.json")),
    "chaos-engines.json": lambda folder: chaos_engines(_read(folder / "chaos-engines.json")),
}


def all_pages(folder: Path = HERE) -> dict[Path, str]:
    """Return each page's path and text, made from the measurements in `folder`."""
    return {folder / name: make(folder) for name, make in PAGES.items()}


def fill(text: str, folder: Path = HERE) -> str:
    """Return `text` with its blocks `<!-- benchmark: FILE.json -->` made anew. Raises UserError for a file that no paragraph is made of."""

    def paragraph(name: str) -> str:
        if name not in PARAGRAPHS:
            raise UserError(f"<!-- benchmark: {name} -->: no such paragraph; expected one of {', '.join(PARAGRAPHS)}")
        return PARAGRAPHS[name](folder)

    return blocks.fill(text, "benchmark", paragraph)


def add_out_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags --out and --publish. Both set `out`, the folder for measurements and pages: by default one in reports/."""
    parser.add_argument("--out", type=Path, default=REPORTS / "benchmarks", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--publish", action="store_const", dest="out", const=HERE, help="into benchmarks/, and the blocks of README.md and docs/"
    )


def verify() -> tuple[list[Path], list[str]]:
    """Return the pages of this repository that were compared with its measurements, and what is wrong with them, a line each."""
    folder = REPOSITORY / "benchmarks"
    texts = {path: path.read_text(encoding="utf-8") for path in blocks.pages(REPOSITORY)}
    expected = all_pages(folder) | {path: fill(text, folder) for path, text in texts.items() if blocks.names(text, "benchmark")}
    wrong = list(filter(None, (difference(path, page) for path, page in expected.items())))
    named = {name for text in texts.values() for name in blocks.names(text, "benchmark")}
    return list(expected), wrong + [unchecked(f"benchmark: {name}") for name in PARAGRAPHS if name not in named]


def write_blocks() -> None:
    """Write the blocks of this repository's README.md and docs/ anew from the measurements in this folder."""
    for path in blocks.pages(REPOSITORY):
        text = path.read_text(encoding="utf-8")
        if (filled := fill(text)) != text:
            files.write(path, filled)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{shown(path)}: cannot be read ({e}); restore it, or measure anew") from None
