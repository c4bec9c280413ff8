"""What the README says: its numbers are the records', its links lead somewhere, its tree and commands exist."""

from __future__ import annotations

import re
import subprocess

import pytest
from bad_input.cases import all_cases

from vitlab.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, links reduced to their text."""
    return [
        [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", c).strip() for c in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_result_table_is_the_published_one() -> None:
    """The README opens with rows of results/README.md, which is written from the records."""
    opening = README.split("## Run it")[0]
    published = {(r[0], r[2]) for r in rows((REPOSITORY / "results" / "README.md").read_text(encoding="utf-8")) if len(r) > 3}
    shown = [(r[0], r[2]) for r in rows(opening) if re.match(r"\d\d |ResNet", r[0])]
    assert len(shown) == 8
    assert set(shown) <= published


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_and_pictures_lead_somewhere(file: str) -> None:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text):
        if not target.startswith(("http", "#")):
            assert (REPOSITORY / target.partition("#")[0]).exists(), target


def test_the_file_tree_names_every_module() -> None:
    ours = README.partition("\nvitlab/\n")[2].partition("\nrunner.py")[0]
    named = set(re.findall(r"^  (\w+\.py|\w+/)", ours, re.MULTILINE))
    there = {p.name for p in (REPOSITORY / "vitlab").glob("*.py") if not p.name.startswith("__")} | {"models/"}
    assert named >= there, f"not in the README's tree: {sorted(there - named)}"
    assert named <= there, f"gone: {sorted(named - there)}"


def test_make_has_the_targets_of_the_contract() -> None:
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for target in ("setup", "reproduce-all", "test", "bad-input", "chaos", "lint", "report", "ui", "data", "clean"):
        assert f"make {target} " in done.stdout


def test_the_corpus_has_as_many_cases_as_it_says() -> None:
    assert set(re.findall(r"(\d+) cases", README)) == {str(len(all_cases()))}
