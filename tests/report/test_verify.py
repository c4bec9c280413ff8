"""verify.py: what is committed follows from what was measured, and a single digit that does not is found."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from benchmarks import pages
from benchmarks import verify as check
from tests.support import checkouts
from tests.support.cli import run
from tests.support.records import fake_record
from vitlab import cli, records
from vitlab.code import history
from vitlab.paths import REPOSITORY
from vitlab.records import RunRecord
from vitlab.report import blocks, publishing
from vitlab.report.verify import lost

README, INDEX = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "results/README.md"))
SET = re.search(r"<!-- results: ([\w.-]+) -->", README)[1]  # the set that README opens with
TOP = re.search(r"\]\(([\w.-]+)/report\.html\)", INDEX)[1]  # and results/README.md

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The committed pages and records, to be falsified."""
    for folder in ("benchmarks", "docs"):
        (tmp_path / folder).mkdir()
    shutil.copyfile(REPOSITORY / "README.md", tmp_path / "README.md")
    for path in [path for pattern in ("benchmarks/*.md", "benchmarks/*.json", "docs/*.md") for path in REPOSITORY.glob(pattern)]:
        shutil.copyfile(path, tmp_path / path.relative_to(REPOSITORY))
    shutil.copytree(REPOSITORY / "results", tmp_path / "results", ignore=shutil.ignore_patterns("quick-*"))
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(cli, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(pages, "REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verify(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """As `make verify`, which goes on to the second only where the first finds nothing: exit code and output of both."""
    code, out, err = run(capsys, "verify", main=cli.main)
    assert err == ""
    measured = check.main()
    return max(code, measured), out + capsys.readouterr().out


def change(path: Path, pattern: str) -> tuple[int, str]:
    """Another last digit for the number that is the first match's group; its line's number, and the number as it is now."""
    text = path.read_text(encoding="utf-8")
    found = re.search(pattern, text, re.MULTILINE)
    number = f"{found[1][:-1]}{(int(found[1][-1]) + 1) % 10}"
    path.write_text(text[: found.start(1)] + number + text[found.end(1) :], encoding="utf-8")
    return text.count("\n", 0, found.start(1)) + 1, number


def wrong(out: str) -> list[str]:
    return [line for line in out.splitlines() if ": expected" in line]


def rename(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_what_is_committed_follows_from_what_was_measured(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = verify(capsys)
    assert code == 0, out
    set_pages = (f"results/{SET}/README.md", f"results/{SET}/summary.csv")
    for page in ("README.md", "results/README.md", *set_pages, "benchmarks/README.md", "benchmarks/GROWTH.md"):
        assert f"{page}: as measured" in out.splitlines()


BASELINE = r"^\| 01 .*?\| (\d+\.\d\d) "


@pytest.mark.parametrize(
    ("page", "pattern"),
    [
        ("README.md", BASELINE),
        ("docs/speed.md", r"trains (\d+\.\d\d) times"),
        ("README.md", r"Profile \w+: (\d+),"),
        ("results/README.md", BASELINE),
        (f"results/{SET}/README.md", r"^\| Top-5 \| (\d+\.\d\d) "),
        (f"results/{SET}/summary.csv", r"^\w+,cifar10,01_baseline_vit,.*?,(\d+\.\d+),"),
        ("docs/robustness.md", r"^The last full run, .*? (\d+) kills"),
        ("benchmarks/README.md", r"against plain .*?\| (\d+\.\d\d)x"),
        ("benchmarks/GROWTH.md", r"in (\d+\.\d) minutes"),
        ("benchmarks/ACCURACY.md", r"^\| 01.*? (\d+\.\d\d),"),
    ],
)
def test_a_changed_digit_is_found(page: str, pattern: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, number = change(copy / page, pattern)
    code, out = verify(capsys)
    assert code == 1
    (said,) = wrong(out)
    expected, found = re.fullmatch(rf"{page}:{line}: expected (.*), found (.*)", said).groups()
    assert number in found
    assert number not in expected


def test_a_changed_record_is_found_on_every_page_that_shows_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = copy / "results" / SET / "records" / "01_baseline_vit-s0.json"
    change(record, r'"test_top1": (\d+\.\d)')
    code, out = verify(capsys)
    assert code == 1
    pages = {said.partition(":")[0] for said in wrong(out)}
    assert pages - {"results/README.md"} == {
        "README.md",
        f"results/{SET}/README.md",
        f"results/{SET}/summary.csv",
        f"results/{SET}/claims.json",
    }
    assert "results/README.md" in pages or SET != TOP  # another set's is there where a claim measured in both has this run


@pytest.mark.parametrize("kind", ["bf16", "float32"])
def test_changed_measurements_of_the_benchmark_are_found(kind: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(copy / "benchmarks" / f"bench-{kind}.json", r'"cores": (\d+)')
    code, out = verify(capsys)
    assert code == 1
    assert {said.partition(":")[0] for said in wrong(out)} == {"docs/speed.md", "benchmarks/README.md"}


def test_measurements_of_the_benchmark_that_are_gone_are_found(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "benchmarks" / "bench-float32.json").unlink()
    code, out = verify(capsys)
    assert code == 1
    assert {said.partition(":")[0] for said in wrong(out)} == {"docs/speed.md", "benchmarks/README.md"}


def test_pages_without_records_and_numbers_without_marks_are_found(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "results" / "no-records").mkdir()
    (copy / "results" / "no-records" / "README.md").write_text("95.69 %\n")
    (copy / "results" / "no-records" / "summary.csv").write_text("95.69\n")
    (copy / "results" / "README.md").unlink()
    rename(copy / "docs" / "robustness.md", "<!-- benchmark:", "<!--")
    rename(copy / "README.md", "<!-- findings:", "<!--")
    code, out = verify(capsys)
    assert code == 1
    for page in ("README.md", "summary.csv"):
        assert f"results/no-records/{page}: follows from no record" in out
    assert "results/README.md: missing; publishing writes it" in out
    for block in ("benchmark: chaos.json", "findings"):
        assert f"README.md and docs/*.md: none has a block <!-- {block} ... -->: these numbers go unchecked" in out


def test_a_readme_that_names_an_unknown_set_is_a_mistake(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rename(copy / "README.md", f"<!-- results: {SET} -->", "<!-- results: no-such -->")
    code, _, err = run(capsys, "verify", main=cli.main)
    assert (code, "no-such: no finished runs to report" in err) == (2, True)


def test_the_report_writes_the_readmes_numbers_anew(copy: Path) -> None:
    before = (copy / "README.md").read_text(encoding="utf-8")
    change(copy / "README.md", BASELINE)
    assert copy / "README.md" in publishing.publish(copy, copy / "results")
    assert (copy / "README.md").read_text(encoding="utf-8") == before
    assert copy / "README.md" not in publishing.publish(copy, copy / "results")


def test_a_record_whose_code_nobody_can_look_up_is_found(tmp_path: Path) -> None:
    repository, results = tmp_path / "repository", tmp_path / "results"
    repository.mkdir()
    (results / "set" / "records").mkdir(parents=True)
    assert history(repository) is None
    checkouts.git(repository, "init", "--quiet")
    for message in ("one", "two"):
        checkouts.git(repository, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "--message", message)
    first, last = checkouts.git(repository, "rev-parse", "HEAD~", "HEAD").split()
    known = history(repository)
    assert known == {first, last}

    def publish(record: RunRecord) -> None:
        records.write(record, results / "set" / "records" / records.file_name(record))

    def found() -> list[tuple[str, str]]:
        return [
            re.fullmatch(r".*/records/(.*)\.json: trained by commit (\w+), which is not .*", line).groups() for line in lost(results, known)
        ]

    elsewhere = {"commit": "f" * 40, "dirty": ""}
    for seed, commit in enumerate((first, last)):
        publish(fake_record(seed=seed, git={"commit": commit, "dirty": ""}))
    assert found() == []
    begun = records.Part(device="cpu", threads=1, git=elsewhere)
    publish(fake_record(seed=1, git={"commit": last, "dirty": ""}, parts=(begun, begun.model_copy(update={"git": {"commit": last}}))))
    publish(fake_record(seed=2, git={}))
    assert found() == [("01_baseline_vit-s1", "f" * 12), ("01_baseline_vit-s2", "unknown")]
    assert lost(results, None) == []
    assert lost(results, frozenset({"0" * 40})) == [], "another repository's history"

    checkouts.git(tmp_path, "clone", "--quiet", "--depth=1", repository.as_uri(), "shallow")
    assert history(tmp_path / "shallow") is None


def test_only_blocks_of_the_kind_are_made_anew() -> None:
    page = "a\n<!-- x: one -->\nold\n<!-- end -->\nb\n<!-- y: two -->\nold\n<!-- end -->\n<!-- x: three -->\n<!-- end -->\n"
    assert blocks.fill(page, "x", str.upper) == (
        "a\n<!-- x: one -->\n\nONE\n\n<!-- end -->\nb\n<!-- y: two -->\nold\n<!-- end -->\n<!-- x: three -->\n\nTHREE\n\n<!-- end -->\n"
    )


def test_line_ends_of_another_system_change_no_number(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (copy / "README.md", copy / "results" / "README.md"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert verify(capsys)[0] == 0


def test_a_page_that_is_not_utf_8_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "docs" / "notes.md").write_bytes("é".encode("latin-1"))
    code, _, err = run(capsys, "verify", main=cli.main)
    assert (code, "notes.md: byte 0 is not UTF-8" in err) == (2, True)
