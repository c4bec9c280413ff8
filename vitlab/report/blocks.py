"""Blocks of a page written by hand that are made from measurements: `<!-- results: overnight-cifar10 -->` ... `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

KINDS = ("results", "findings", "benchmark")


def pages(root: Path) -> list[Path]:
    """Return the pages of the repository `root` that may hold blocks: README.md and docs/*.md, those that are there."""
    return [path for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if path.is_file()]


def fill(page: str, kind: str, make: Callable[[str], str]) -> str:
    """Return `page` with the text of its blocks of this kind replaced by `make(name)`, where `name` is what the block names."""
    block = re.compile(rf"(<!-- {kind}: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda found: f"{found[1]}\n{make(found[2]).strip()}\n\n{found[3]}", page)
