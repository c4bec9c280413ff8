"""What SECURITY.md promises and no other test holds: each fails where its protection is taken out."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.world import World
from vitlab import cli
from vitlab.config import places
from vitlab.paths import REPOSITORY

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def recipe(target: str, *variables: str) -> str:
    """What `make` would run for `target`, less what it depends on."""
    command = ["make", "--no-print-directory", "--dry-run", "--assume-old=.venv/installed", target, *variables]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")


def answer(port: int, host: str, path: str = "/") -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=30) as reply:
        return reply.status
    return 403


def test_the_ui_answers_on_loopback_and_to_its_own_name_alone(tmp_path: Path) -> None:
    """A page of another site whose name was made to lead here (DNS rebinding) is refused, whatever the environment says."""
    port = free_port()
    line = recipe("ui", f"PORT={port}").strip()
    assert "MLFLOW_DISABLE_TELEMETRY=true" in line
    assert "DO_NOT_TRACK=true" in line
    env = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
        "MLFLOW_SERVER_ALLOWED_HOSTS": "*", "MLFLOW_HOST": "0.0.0.0",
    }  # fmt: skip
    line = line.replace(".venv/bin/mlflow", f"{shlex.quote(sys.executable)} -m mlflow")
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(line, shell=True, env=env, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):  # a busy machine takes its time to make the database
            with contextlib.suppress(OSError):
                answer(port, f"127.0.0.1:{port}", "/health")
                break
            time.sleep(0.5)
        assert answer(port, f"127.0.0.1:{port}") == 200, (tmp_path / "log").read_text()
        assert answer(port, f"localhost:{port}") == 200
        assert answer(port, f"evil.example:{port}") == 403
        assert answer(port, f"192.168.1.7:{port}") == 403
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        listening = {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_yaml_makes_no_objects() -> None:
    """Tags are refused before this (bad_input/); were they not, the loader would still know none that makes an object."""
    assert issubclass(places.Loader, yaml.SafeLoader)
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load("!!python/object/apply:os.getcwd []", places.Loader)


def test_nothing_is_unpickled_freely() -> None:
    """Each torch.load says weights_only, each np.load that it allows no pickles, and nothing else could unpickle.

    But for what a Slurm job and its command tell each other: submitit, which starts the job, unpickles from the same folder in any case.
    """
    for path in (REPOSITORY / "vitlab").rglob("*.py"):
        if path.parent.name == "engines" and path.name in ("slurm.py", "slurm_job.py"):
            continue
        text = path.read_text(encoding="utf-8")
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, path
        for call in re.findall(r"np\.load\(.*", text):
            assert "allow_pickle=False" in call, path
        assert not re.search(r"yaml\.(unsafe_|full_)?load\(|pickle\.loads?\(|(?<![.\w])(eval|exec)\(|shell=True", text), path
        assert "import pickle" not in text, path


def test_every_dependency_is_pinned() -> None:
    """Direct ones and theirs, as installed here: `make setup` installs no version that the constraints file does not name."""
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^\s=]+", line) for line in lines)
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    todo, seen = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)], set()
    while todo:
        requirement = Requirement(todo.pop())
        wanted = [{"extra": extra} for extra in ("", *requirement.extras)]
        key = (canonicalize_name(requirement.name), *sorted(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        with contextlib.suppress(metadata.PackageNotFoundError):  # for another platform
            needs = metadata.requires(requirement.name) or []
            todo += [n for n in needs if not (m := Requirement(n).marker) or any(m.evaluate(e) for e in wanted)]
    names = {name for name, *_ in seen} - {"vitlab"}  # an extra may name another one
    assert names <= pinned, f"not in constraints.txt: {sorted(names - pinned)}"
    makefile = (REPOSITORY / "Makefile").read_text()
    assert re.findall(r"pip install.*", makefile) == re.findall(r"pip install.*--constraint constraints\.txt.*", makefile)


def test_a_strangers_record_moves_no_cursor(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.change(
        "tiny", title="\x1b[2J", variant="\x1b]0;owned\x07", finished="\x1b[31m", device="\x1b[5m", claim={"text": "\x1b[1m", "source": "x"}
    )
    for main, argv in ((cli.main, ["runs"]), (cli.main, world.predict()), (cli.run_main, world.train("tiny"))):
        with pytest.raises(SystemExit) as e:
            main([str(a) for a in argv])
        assert e.value.code == 0
        out = capsys.readouterr().out
        assert "\\x1b" in out
        assert "\x1b" not in out
