"""A short version of `make chaos-engines`."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from benchmarks import servers
from vitlab.paths import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(servers.postgres_binary("postgres") is None or os.geteuid() != 0, reason="needs PostgreSQL, and root's rights"),
]


def test_a_lost_worker_and_a_lost_database_lose_nothing() -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "tests.robustness.chaos_engines", "--faults", "2", "--epochs", "100", "--seed", "1"]
    done = subprocess.run([*command, "--kinds", "a worker", "the database"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1] if done.stdout else done.stderr
    assert re.fullmatch(r"chaos of engines: 2 faults, \d+ runs, 0 lost, 0 duplicated, 0 different", last), done.stdout + done.stderr
