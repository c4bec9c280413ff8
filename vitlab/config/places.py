"""Strict YAML that knows where each key was written, so that an error names file and line.

Read with PyYAML. ruamel.yaml also knows lines and refuses duplicate keys, but it accepts aliases, tags, dates, 0x1F and 1_000.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitlab.errors import UserError
from vitlab.files import UNPRINTABLE, printable

MAX_FILE_BYTES = 1 << 16  # an experiment is a page of YAML; anything larger is a mistake
MAX_KEY = 100  # characters
MAX_DEPTH = 20  # of sections within sections (the schema has five), of files that extend one another, and of teachers of teachers

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where a value was written; prints as `file:line` or `--set`."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class Loader(yaml.SafeLoader):
    """YAML 1.2's idea of a float (1e-3 is one) and no dates; `on`, `yes` and the like stay words."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, rx) for tag, rx in rules if tag == "tag:yaml.org,2002:null"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(  # not 010, which is 8 to YAML 1.1, nor 1:30, which is 90
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,17})$"), list("-+0123456789")
)
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$"),
    list("-+0123456789."),
)


def shown(path: Path) -> str:
    """Return `path` as the user would type it: relative to the current directory if it lies below that."""
    try:
        return str(Path(os.path.abspath(path)).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def cut(text: str) -> str:
    """Return `text` for a message, cut to 120 characters."""
    return text if len(text) <= 120 else f"{text[:117]}..."


def parse(text: str, where: Callable[[int], Place]) -> tuple[Any, dict[Keys, Place]]:
    """Return the value that `text` spells, and the place of each of its keys; `where(line)` makes a Place from a line's number.

    Raises UserError, with the place, for text that is not YAML, and for parts of YAML that settings do not need and that can do
    harm: aliases (which multiply without bound), tags (which ask for other types), control characters, deep nesting, and keys that
    are not words or are given twice.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=Loader):
            place = where(event.start_mark.line + 1)
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{place}: aliases (*{event.anchor}) are not allowed; use 'extends'")
            if getattr(event, "tag", None) is not None:
                raise UserError(f"{place}: tags ({event.tag.replace('tag:yaml.org,2002:', '!!')}) are not allowed; write the value alone")
            if isinstance(event, yaml.ScalarEvent) and (bad := UNPRINTABLE.search(event.value)):
                raise UserError(f"{place}: a character that cannot be shown ({printable(bad[0])}); remove it")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError(f"{place}: more than {MAX_DEPTH} levels deep; an experiment has five")
        node = Loader(text).get_single_node()
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        what = ", ".join(part for part in (e.context, e.problem) if part)
        raise UserError(f"{where(line)}: not valid YAML: {what}; mend the line, and indent with spaces") from None
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        raise UserError(f"{where(line)}: not valid YAML: a character that cannot be shown (\\x{e.character:02x}); remove it") from None
    places: dict[Keys, Place] = {}
    if node is None:
        return None, places
    _note_places(node, (), where, places)
    return Loader("").construct_document(node), places


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Keys, Place]]:
    """Return the mapping in the file `path`, and the place of each of its keys.

    Raises UserError, with file and line, for a file that is missing, unreadable, too large, not UTF-8, not a mapping, or
    refused by `parse`.
    """
    name = shown(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise UserError(f"{name}: not a file; expected an experiment's YAML file")
        with path.open("rb") as f:
            content = f.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise UserError(f"{name}: larger than {MAX_FILE_BYTES >> 10} KiB; an experiment is a page of YAML")
        text = content.decode("utf-8-sig")
    except OSError as e:
        raise UserError(f"{name}: cannot be read ({e.strerror or e}); expected an experiment's YAML file") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{name}: not UTF-8 text (byte {e.start}); expected an experiment's YAML file") from None
    values, places = _parse_file(name, text)
    values, places = copy.deepcopy(values), dict(places)
    if values is None:
        raise UserError(f"{name}: empty; expected a mapping such as 'model:', 'train:'")
    if not isinstance(values, dict):
        raise UserError(f"{places[()]}: expected a mapping ('key: value' lines) at the top")
    return values, places


@functools.lru_cache
def _parse_file(name: str, text: str) -> tuple[Any, dict[Keys, Place]]:
    """Return what `parse` does, once for each file: most experiments extend the same few."""
    return parse(text, lambda line: Place(name, line))


def _note_places(node: yaml.Node, path: Keys, where: Callable[[int], Place], places: dict[Keys, Place]) -> None:
    places[path] = where(node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            place = where(key.start_mark.line + 1)
            if key.tag != "tag:yaml.org,2002:str" or len(key.value) > MAX_KEY:
                raise UserError(f"{place}: keys must be plain words")
            if key.value in seen:
                raise UserError(f"{place}: {dotted((*path, key.value))}: given twice; keep one")
            seen.add(key.value)
            _note_places(value, (*path, key.value), where, places)
            places[(*path, key.value)] = place
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _note_places(value, (*path, i), where, places)


def dotted(path: Keys) -> str:
    """Return a key's path as messages show it: `optim.lr`."""
    return ".".join(str(p) for p in path)
