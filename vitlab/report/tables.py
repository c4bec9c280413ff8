"""The tables that pages, the terminal and CSV files show. Escaping is not done here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from vitlab.files import printable
from vitlab.records import RunRecord
from vitlab.report import words

RULE = "last weights, test split read once; EMA where the experiment has one"
FORMULA = ("=", "+", "-", "@")  # a text that begins so is run as a formula by spreadsheets


class Link(NamedTuple):
    """A cell that is a link."""

    text: str
    href: str  # relative, or #anchor within the HTML page


Cell = str | Link


@dataclass(frozen=True)
class Column:
    """One column: the values that it takes from a row's item, unrounded, and how a cell shows them."""

    heading: str
    values: Mapping[str, Callable[[Any], Any]]  # name in the frame, and in a CSV file -> the item's value; None where it has none
    show: Callable[..., Cell] = str  # makes a cell from the values, in their order; not called where all are missing
    left: bool = False  # texts flush left, numbers flush right


@dataclass(frozen=True)
class Table:
    """A table with its caption, and its values as a frame."""

    caption: str
    columns: tuple[Column, ...]
    frame: pd.DataFrame  # a row for each item, a column for each value, unrounded
    rule_before: int | None = None  # the row above which a rule is drawn, since another kind of rows begins

    @property
    def rows(self) -> list[list[tuple[Column, Cell]]]:
        """Return each row's cells, each with its column."""
        values = self.frame.astype(object).where(self.frame.notna(), None).to_dict("records")
        return [[(column, _cell(column, row)) for column in self.columns] for row in values]


def table(caption: str, columns: Sequence[Column], items: Iterable[Any], rule_before: int | None = None) -> Table:
    """Return the table with a row for each of the items, in their order."""
    items = list(items)
    frame = pd.DataFrame({name: [value(item) for item in items] for column in columns for name, value in column.values.items()})
    return Table(caption, tuple(columns), frame, rule_before)


def _cell(column: Column, row: Mapping[str, Any]) -> Cell:
    values = [row[name] for name in column.values]
    return words.NONE if all(value is None for value in values) else column.show(*values)


def csv(frame: pd.DataFrame) -> str:
    """Return the values as CSV, numbers in full, each row on one line."""
    return frame.map(lambda value: _plain(value) if isinstance(value, str) else value).to_csv(index=False, lineterminator="\n")


def _plain(text: str) -> str:
    """Return the text on one line and inert: no cursor moves, and an apostrophe before what a spreadsheet would run as a formula."""
    text = printable(" ".join(text.split()))
    return f"'{text}" if text.startswith(FORMULA) else text


def caption(what: str, runs: Sequence[RunRecord], rule: bool = True) -> str:
    """Return a table's caption: `what` it shows, and data set, profile, seeds and device of its runs."""
    first = runs[0]
    where = f"Data set {first.dataset.name}, profile {first.profile}, {words.seeds(runs)}, device {words.devices(runs)}"
    return f"{what}. {where}{'; ' + RULE if rule else ''}."
