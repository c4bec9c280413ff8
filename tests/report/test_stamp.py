"""report/stamp.py: nothing is compiled again while nothing has changed, and everything after any change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.claims import judge
from tests.support.claims import ledger as planned
from tests.support.records import THREE, digits, fake_record, fake_set
from vitlab import records
from vitlab.claims import ledger
from vitlab.errors import UserError
from vitlab.paths import EXPERIMENTS
from vitlab.records import RunRecord
from vitlab.report import publishing, stamp
from vitlab.track import read, store


class Checkout:
    """A root with finished runs on digits, as MLflow has them, and their report."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.reports, self.patch, self.found = root, root / "reports", patch, []
        self.experiments = Path(shutil.copytree(EXPERIMENTS, root / "experiments"))
        self.ledger = "digest"
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(stamp, "EXPERIMENTS", self.experiments)
        patch.setattr(read, "finished_runs", lambda root: list(self.found))
        patch.setattr(store, "own_runs", lambda root: [("a", "", {"vitlab.kind": "ledger", "vitlab.ledger": self.ledger})])
        for run in fake_set(1, THREE):
            self.finish(digits(run))

    def finish(self, run: RunRecord) -> None:
        """Add a finished run."""
        folder = self.root / "store" / records.file_name(run)
        (folder / "figures").mkdir(parents=True)
        records.write(run, folder / "record.json")
        self.found.append(read.FinishedRun(folder.name, "", {}, self.root, folder))

    def compile(self) -> list[str]:
        """Compile and return what was told."""
        told: list[str] = []
        publishing.own(self.root, self.reports, told.append)
        return told

    def holds(self) -> bool:
        return stamp.holds(self.root, self.reports)

    def page(self) -> Path:
        return self.reports / "full-digits" / "README.md"


@pytest.fixture
def checkout(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    made = Checkout(tmp_path, monkeypatch)
    assert not made.holds()
    assert made.compile() == []
    assert made.holds()
    return made


def other_record(c: Checkout) -> None:
    """Another number of as many bytes, and the file's time as it was."""
    path = c.found[0].folder / "record.json"
    before, text = path.stat(), path.read_text()
    assert '"seed": 0' in text
    path.write_text(text.replace('"seed": 0', '"seed": 7'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def template(c: Checkout) -> None:
    copied = shutil.copytree(stamp.CODE, c.root / "vitlab", ignore=shutil.ignore_patterns("__pycache__"))
    c.patch.setattr(stamp, "CODE", copied)
    assert c.holds()  # the same code elsewhere
    edited = shutil.copytree(copied, c.root / "edited")
    append(edited / "report" / "templates" / "set.md.j2")
    c.patch.setattr(stamp, "CODE", edited)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


CHANGES: dict[str, Callable[[Checkout], object]] = {
    "a new run": lambda c: c.finish(digits(fake_record("01_baseline_vit", 5))),
    "a run deleted": lambda c: c.found.pop(),
    "another record": other_record,
    "predictions": lambda c: (c.found[0].folder / "predictions.npz").write_bytes(b""),
    "claims.yaml": lambda c: append(c.experiments / "claims.yaml"),
    "an experiment": lambda c: append(c.experiments / "01_baseline_vit.yaml"),
    "a template": template,
    "a library": lambda c: c.patch.setattr(stamp, "version", lambda name: "0"),
    "a page edited": lambda c: append(c.page()),
    "a page deleted": lambda c: c.page().unlink(),
    "a chart deleted": lambda c: next((c.reports / "full-digits" / "figures").rglob("*.svg")).unlink(),
    "a record of the report edited": lambda c: append(next((c.reports / "full-digits" / "records").iterdir())),
    "the index deleted": lambda c: (c.reports / "README.md").unlink(),
    "a file added": lambda c: (c.reports / "full-digits" / "records" / "x.json").write_text("{}"),
    "a ledger deleted in MLflow": lambda c: setattr(c, "ledger", None),
    "a damaged stamp": lambda c: (c.reports / stamp.FILE).write_text("{"),
}
UNKNOWN: dict[str, Callable[[Checkout], object]] = {  # what has changed there cannot be known without reading it
    "a run elsewhere": lambda c: c.found.append(read.FinishedRun("x", "", {}, c.root, None)),
    "another MLflow store": lambda c: c.patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1"),
}


def test_any_change_has_the_report_compiled_again(checkout: Checkout) -> None:
    for name, change in (CHANGES | UNKNOWN).items():
        assert checkout.holds(), f"before {name}"
        change(checkout)
        assert not checkout.holds(), name
        if name not in UNKNOWN:
            stamp.write(checkout.root, checkout.reports, stamp.sources(checkout.root, checkout.found))
        elif name == "a run elsewhere":
            checkout.found.pop()


def test_the_report_compiled_again_is_whole_and_current(checkout: Checkout) -> None:
    before = checkout.page().read_text()
    checkout.page().write_text("")
    checkout.compile()
    assert checkout.page().read_text() == before
    assert checkout.holds()
    checkout.finish(digits(fake_record("01_baseline_vit", 5)))
    checkout.compile()
    assert checkout.page().read_text() != before
    assert checkout.holds()


def test_what_changes_while_compiling_is_seen_next_time(checkout: Checkout) -> None:
    real = publishing.index

    def meanwhile(folder: Path) -> None:
        real(folder)
        append(checkout.found[0].folder / "record.json")

    checkout.patch.setattr(publishing, "index", meanwhile)
    checkout.compile()
    assert not checkout.holds()


def test_a_report_cut_short_has_no_stamp(checkout: Checkout) -> None:
    def fail(folder: Path) -> None:
        raise UserError("killed")

    checkout.patch.setattr(publishing, "index", fail)
    with pytest.raises(UserError, match="killed"):
        checkout.compile()
    assert not (checkout.reports / stamp.FILE).exists()


def test_what_was_told_is_told_again(checkout: Checkout) -> None:
    (lost,) = judge(planned(), [], profile="full")
    book = ledger.Book(
        profile="full", dataset="digits", devices=(), confidence=0.95, first_seed=0, stages=planned().stages, tested=1, families=(), results=(lost,)
    )  # fmt: skip
    (checkout.reports / "full-digits" / ledger.FILE).write_text(book.model_dump_json())
    for _ in range(2):
        assert not checkout.holds()
        assert "no run measures a claim any more" in " ".join(checkout.compile())


def test_what_is_published_has_no_stamp_and_the_records_as_the_runs_left_them(checkout: Checkout) -> None:
    results = checkout.root / "results"
    publishing.publish(checkout.root, results)
    assert not list(results.rglob(stamp.FILE))
    left = sorted((run.folder / "record.json").read_bytes() for run in checkout.found)
    assert sorted(path.read_bytes() for path in results.glob("*/records/*")) == left


def test_finding_that_nothing_has_changed_loads_nothing_heavy() -> None:
    heavy = "{'matplotlib', 'mlflow', 'numpy', 'pandas', 'pydantic', 'yaml'}"
    code = f"import sys, vitlab.cli, vitlab.report.stamp; print(*({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


def test_a_server_that_stops_answering_costs_the_stamp_and_not_the_report(checkout: Checkout) -> None:
    def fail(root: Path) -> list[Any]:
        raise TimeoutError

    checkout.patch.setattr(store, "ledgers", fail)
    assert not checkout.holds()
    assert checkout.compile() == []
    assert not (checkout.reports / stamp.FILE).exists()
