"""Blocks of a page written by hand that are made from measurements: `<!-- results: overnight-cifar10 -->` ... `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable


def fill(page: str, kind: str, make: Callable[[str], str]) -> str:
    """`page` with its blocks of this kind made anew; `make` gives a block's text for its name."""
    block = re.compile(rf"(<!-- {kind}: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda found: f"{found[1]}\n{make(found[2]).strip()}\n\n{found[3]}", page)
