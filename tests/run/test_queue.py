"""queue.py: which engine trains the runs; what becomes of them is tested where each engine is."""

from __future__ import annotations

import sys

import pytest

from tests.support.cli import run
from tests.support.world import World


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_is_one_line(
    engine: str, package: str, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "none")):
        monkeypatch.setenv(name, value)  # a command sets them for Ray in this process
    monkeypatch.delitem(sys.modules, f"vitlab.run.engines.{engine}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(capsys, *world.train("other"), "--engine", engine)
    how = f"pip install -c constraints.txt -e '.[{engine}]'"
    assert (code, err) == (2, f"error: --engine {engine}: {package} is not installed; install it with: {how}\n")
