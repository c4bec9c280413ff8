"""Which models answer: of a set those published, of a folder of runs the newest of each experiment."""

from __future__ import annotations

import importlib.util
import runpy
import socket
from pathlib import Path

import pytest

from tests.support.cli import run
from tests.support.models import write_ladder, write_run
from vitlab import cli, demoing
from vitlab.demo import chosen, server
from vitlab.errors import UserError
from vitlab.paths import REPOSITORY, RESULTS


def names(folder: Path) -> list[str]:
    return [f"{c.record.experiment}-{c.record.fingerprint}-s{c.record.seed}" for c in chosen.models(folder)]


def test_of_runs_the_newest_configuration_of_each_experiment_with_its_lowest_seed(tmp_path: Path) -> None:
    folder = write_ladder(tmp_path)
    baseline, student, teacher = names(folder)
    assert [name.split("-")[0] for name in (baseline, student, teacher)] == ["01_baseline_vit", "06_kd_r50_class_attention", "resnet50"]
    for seed in (3, 2):
        later = f"2026-01-0{4 - seed}T00:00:00+00:00"
        write_run(folder / "01_baseline_vit" / f"new-s{seed}", "01_baseline_vit", seed, fingerprint="new", finished=later)
    write_run(folder / "01_baseline_vit" / "varied-s0", "01_baseline_vit", fingerprint="varied", variant="a=1", finished="2027-01-01")
    assert names(folder) == ["01_baseline_vit-new-s2", student, teacher]
    assert names(folder / "01_baseline_vit" / "varied-s0") == ["01_baseline_vit-varied-s0"]


def test_runs_of_several_sets_do_not_answer_side_by_side(tmp_path: Path) -> None:
    write_ladder(tmp_path)
    write_run(tmp_path / "quick-cifar10" / "01_baseline_vit" / "x-s0", "01_baseline_vit", profile="quick")
    with pytest.raises(UserError, match=r"holds runs of several sets \(full-cifar10, quick-cifar10\); name the folder of one"):
        chosen.models(tmp_path)


def test_a_folder_without_models_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a finished run"):
        chosen.models(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        chosen.models(tmp_path / "there")
    with pytest.raises(UserError, match="no published CIFAR-10 set with weights; name a folder of finished runs"):
        chosen.largest(tmp_path)


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else found(name, *rest))
    assert run(capsys, "demo", main=cli.main) == (
        2,
        "",
        "error: vitlab demo: needs gradio; install with: pip install -c constraints.txt -e '.[demo]'\n",
    )


def test_a_mistake_in_the_folder_is_told_before_the_page_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "demo", tmp_path / "there", main=cli.main)
    assert (code, err.count("\n")) == (2, 1)
    assert "there: no such folder" in err


def test_the_default_is_what_is_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demoing, "RESULTS", tmp_path)
    assert "no published CIFAR-10 set" in run(capsys, "demo", main=cli.main)[2]


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = run(capsys, "demo", "--port", port, main=cli.main)
    assert (code, err) == (
        2,
        f"error: --port {port}: cannot be listened on (Address already in use); name another, or leave --port out to have one found\n",
    )
    assert "expected a port, from 1 to 65535" in run(capsys, "demo", "--port", "65536", main=cli.main)[2]


@pytest.mark.parametrize(("space", "host"), [("me/vitlab", "0.0.0.0"), (None, "127.0.0.1")], ids=["in a Space", "elsewhere"])
def test_app_py_serves_the_published_set_to_everybody_in_a_space_alone(
    monkeypatch: pytest.MonkeyPatch, space: str | None, host: str
) -> None:
    served = []
    monkeypatch.setattr(server, "serve", lambda *args: served.append(args) or 143)
    monkeypatch.delenv("SPACE_ID", raising=False)
    if space:
        monkeypatch.setenv("SPACE_ID", space)
    with pytest.raises(SystemExit, match="143"):
        runpy.run_path(str(REPOSITORY / "app.py"), run_name="__main__")
    ((candidates, name, address, port, _, browser),) = served
    assert (address, port, browser) == (host, None, False)
    published = sorted(path.stem for path in (RESULTS / name / "weights").iterdir())
    assert [candidate.record.experiment for candidate in candidates] == published
    assert len(published) == max(len(list(folder.iterdir())) for folder in RESULTS.glob("*-cifar10/weights"))
