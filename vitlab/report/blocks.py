"""Blocks of a page written by hand that are made from measurements: `<!-- results: overnight-cifar10 -->` ... `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from vitlab.errors import UserError


def pages(root: Path) -> list[Path]:
    """Return the pages of the repository `root` that may hold blocks: README.md and docs/*.md, those that are there."""
    return [path for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if path.is_file()]


def read(page: Path) -> str:
    """Return a page's text, with line ends as Python has them. Raises UserError for a file that is not UTF-8."""
    try:
        return page.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{page}: byte {e.start} is not UTF-8; save the file as UTF-8") from None


def names(page: str, kind: str) -> list[str]:
    """Return what the blocks of this kind in `page` name: sets, or files of measurements."""
    return [found[2] for found in _block(kind).finditer(page)]


def fill(page: str, kind: str, make: Callable[[str], str]) -> str:
    """Return `page` with the text of its blocks of this kind replaced by `make(name)`, where `name` is what the block names."""
    return _block(kind).sub(lambda found: f"{found[1]}\n{make(found[2]).strip()}\n\n{found[3]}", page)


def _block(kind: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {kind}: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
