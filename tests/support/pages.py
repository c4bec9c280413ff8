"""Published pages read back: HTML as a browser finds it, rows of Markdown tables, a folder's files; and text that would break a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

EVIL = "<script>alert(1)</script>|`x`[a](javascript:b)\n\n# $\\alpha$ ../ <img src=x onerror=y> \"quote' *b* &amp;"


class Page(HTMLParser):
    """What a browser finds in the page: tags with their attributes, tables as rows of texts by caption, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._rows: list[list[str]] = []
        self._caption, self._cell = "", False
        self._in_caption = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag == "table":
            self._rows, self._caption = [], ""
        self._in_caption = tag == "caption"
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        if tag == "caption":
            self._in_caption = False
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_caption:
            self._caption += data
        elif self._cell:
            self._rows[-1][-1] += data

    def table(self, start: str) -> list[list[str]]:
        (found,) = [rows for caption, rows in self.tables.items() if caption.startswith(start)]
        return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def markdown_rows(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
