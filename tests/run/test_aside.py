"""aside.py: all runs of a command but the last are shipped by another process, and the next run does not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import run
from tests.support.world import TAUGHT, TINY
from vitlab import cli
from vitlab.run import drive, execute
from vitlab.run.aside import Aside
from vitlab.track import read, shipping

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]


@pytest.mark.parametrize("patience", [120, 0])
def test_all_but_the_last_arrive_from_another_process(
    patience: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With patience it has arrived when the last run is finished; without, what was on its way is ended, and shipped at the command's end."""
    left: list[Path] = []

    class Noting(Aside):
        def ship(self, run_dir: Path) -> None:
            assert (run_dir / "record.json").is_file(), "killed now, the run is finished all the same"
            assert shipping.outstanding(run_dir, self.root)
            left.append(run_dir)
            super().ship(run_dir)

        def wait(self, _: Callable[[], float]) -> None:
            super().wait(lambda: patience)
            assert [shipping.outstanding(folder, self.root) for folder in left] == [patience == 0], "the model is shipped last"

    for name, value in (("ROOT", tmp_path), ("RUNS", tmp_path / "runs"), ("REPORTS", tmp_path / "reports")):
        monkeypatch.setattr(cli, name, value)
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(drive, "Aside", Noting)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "taught.yaml").write_text(TAUGHT)
    code, out, err = run(capsys, tmp_path / "taught.yaml", "--profile", "full", "--data", "digits", "--jobs", "1")
    assert code == 0, out + err
    assert "has reached MLflow" not in out
    assert [folder.parent.name for folder in left] == ["tiny"], "the last one is shipped by the command's own process"
    folders = [path.parent for path in tmp_path.glob("runs/*/*/*/record.json")]
    assert [shipping.outstanding(folder, tmp_path) for folder in folders] == [False, False]
    assert {found.tags["vitlab.experiment"] for found in read.finished_runs(tmp_path)} == {"tiny", "taught"}
