"""A command, run in this process."""

from __future__ import annotations

import pytest

from vitlab import cli


def run(capsys: pytest.CaptureFixture[str], *argv: str, main: object = cli.run_main) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return e.value.code, out, err
