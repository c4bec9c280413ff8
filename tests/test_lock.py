"""Two at once: one process holds a run, others wait; a dead holder holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vitlab import files
from vitlab.paths import REPOSITORY

HOLDER = """
import sys, time
from pathlib import Path
from vitlab import files
with files.held(Path(sys.argv[1]), lambda who: None):
    print("held", flush=True)
    time.sleep(20)
"""


class GaveUp(Exception):
    pass


def test_the_waiting_one_is_told_who_and_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "run.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        told = []

        def busy(who: str) -> None:
            told.append(who)
            holder.send_signal(signal.SIGKILL)
            holder.wait()

        with files.held(path, busy):
            assert [who.startswith(f"process {holder.pid} on ") for who in told] == [True]
            assert path.read_text().startswith(f"process {os.getpid()} on ")

            def give_up(who: str) -> None:
                raise GaveUp(who)

            with pytest.raises(GaveUp, match=f"process {os.getpid()} on .* since "), files.held(path, give_up):
                pass
        with files.held(path, give_up):  # free again
            pass
        assert not path.exists()
