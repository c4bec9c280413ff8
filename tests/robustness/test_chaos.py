"""A short version of `make chaos`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from vitlab.paths import REPOSITORY

pytestmark = pytest.mark.slow


def test_a_few_kills_lose_nothing() -> None:
    command = [sys.executable, "-m", "tests.robustness.chaos", "--kills", "6", "--minutes", "3", "--seed", "3", "--worlds", "vit"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1] if done.stdout else done.stderr
    assert re.fullmatch(r"chaos: 6 kills, \d+ runs, 0 lost, 0 duplicated, 0 different", last), done.stdout + done.stderr
