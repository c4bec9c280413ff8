"""verify.py: what is committed follows from what was measured, and a single digit that does not is found."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from test_cli import run
from test_report import undrawn  # noqa: F401 a fixture

from vitlab import blocks, cli, report
from vitlab.paths import REPOSITORY

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The committed pages and records, to be falsified."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("README.md", "benchmarks/README.md", "benchmarks/latest.json"):
        shutil.copyfile(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "results", tmp_path / "results", ignore=shutil.ignore_patterns("quick-*"))
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(cli, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verify(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code, out, err = run(capsys, "verify", main=cli.main)
    assert err == ""
    return code, out


def change(path: Path, old: str, new: str) -> int:
    """Put `new` for the first `old` in the file; its line's number."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def test_what_is_committed_follows_from_what_was_measured(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = verify(capsys)
    assert code == 0, out
    for page in ("README.md", "results/README.md", "results/laptop-cifar10/README.md", "benchmarks/README.md"):
        assert f"{page}: as measured" in out.splitlines()


@pytest.mark.parametrize(
    ("page", "old", "new"),
    [
        ("README.md", "| 50.57 |", "| 50.75 |"),
        ("README.md", "trains 1.", "trains 2."),
        ("results/README.md", "| 57.83 |", "| 57.84 |"),
        ("results/laptop-cifar10/README.md", "42.83", "42.93"),
        ("benchmarks/README.md", "| ≥ 2.5x | 1.", "| ≥ 2.5x | 3."),
    ],
)
def test_a_changed_digit_is_found(page: str, old: str, new: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = change(copy / page, old, new)
    code, out = verify(capsys)
    assert code == 1
    (said, _) = out.splitlines()
    assert re.match(rf"{page}:{line}: expected '.*', found '.*'$", said)
    assert new in said.partition("found")[2]
    assert new not in said.partition("found")[0]


def test_a_changed_record_is_found_on_every_page_that_shows_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = copy / "results" / "laptop-cifar10" / "records" / "01_baseline_vit-s0.json"
    change(record, '"test_top1": 50.5', '"test_top1": 50.6')
    code, out = verify(capsys)
    assert code == 1
    assert {said.partition(":")[0] for said in out.splitlines()[:-1]} == {
        "README.md",
        "results/README.md",
        "results/laptop-cifar10/README.md",
    }


def test_changed_measurements_of_the_benchmark_are_found(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(copy / "benchmarks" / "latest.json", '"cores": 2', '"cores": 8')
    code, out = verify(capsys)
    assert code == 1
    assert {said.partition(":")[0] for said in out.splitlines()[:-1]} == {"README.md", "benchmarks/README.md"}


def test_pages_without_records_and_numbers_without_marks_are_found(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "results" / "full-cifar10").mkdir()
    (copy / "results" / "full-cifar10" / "README.md").write_text("95.69 %\n")
    (copy / "results" / "README.md").unlink()
    change(copy / "README.md", "<!-- benchmark: latest.json -->", "")
    code, out = verify(capsys)
    assert code == 1
    assert "results/full-cifar10/README.md: follows from no record" in out
    assert "results/README.md: missing; 'vitlab report' writes it" in out
    assert "README.md: no block <!-- benchmark: ... -->: these numbers go unchecked" in out


def test_a_readme_that_names_an_unknown_set_is_a_mistake(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(copy / "README.md", "<!-- results: laptop-cifar10 -->", "<!-- results: full-cifar10 -->")
    code, _, err = run(capsys, "verify", main=cli.main)
    assert (code, "full-cifar10: no finished runs to report" in err) == (2, True)


def test_the_report_writes_the_readmes_numbers_anew(copy: Path) -> None:
    before = (copy / "README.md").read_text(encoding="utf-8")
    change(copy / "README.md", "| 50.57 |", "| 99.99 |")
    assert copy / "README.md" in report.publish(copy, copy / "results")
    assert (copy / "README.md").read_text(encoding="utf-8") == before
    assert copy / "README.md" not in report.publish(copy, copy / "results")


def test_only_blocks_of_the_kind_are_made_anew() -> None:
    page = "a\n<!-- x: one -->\nold\n<!-- end -->\nb\n<!-- y: two -->\nold\n<!-- end -->\n<!-- x: three -->\n<!-- end -->\n"
    assert blocks.fill(page, "x", str.upper) == (
        "a\n<!-- x: one -->\n\nONE\n\n<!-- end -->\nb\n<!-- y: two -->\nold\n<!-- end -->\n<!-- x: three -->\n\nTHREE\n\n<!-- end -->\n"
    )
