"""The tracking server of deploy/compose.yaml without containers: its commands, environment and health checks on this machine.

PostgreSQL must be installed. Where this process is root's, which PostgreSQL refuses to be, it runs as the user `postgres` or `nobody`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from vitlab.paths import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
START_SECONDS = 120  # on a busy machine
SECRETS = {"POSTGRES_PASSWORD": "a-database-password", "MLFLOW_ADMIN_PASSWORD": "an-admin-password", "MLFLOW_SECRET_KEY": "a-secret-key"}


def postgres_binary(name: str) -> str | None:
    """Return the path of one of PostgreSQL's programs, the newest version's; None where it is not installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[-3]))
    return str(debian[-1]) if debian else shutil.which(name)


def compose(variables: dict[str, str]) -> dict[str, Any]:
    """Return compose.yaml with its `${VARIABLE}`s filled in. Raises KeyError for one that must be set and is not."""

    def fill(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        return variables[name] if operator == ":?" else variables.get(name) or rest

    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"\$\{(\w+)(:\?|:-)([^}]*)\}", fill, text))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    """A service of compose.yaml as a process: its command with this machine's places in it."""

    def __init__(self, folder: Path, about: dict[str, Any], places: dict[str, str], env: dict[str, str], user: str | None = None) -> None:
        self.folder, self.user, self.process = folder, user, None
        self.command = [self._placed(word, places) for word in about["command"]]
        self.health = [self._placed(word, places) for word in about["healthcheck"]["test"][1:]]  # after CMD
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PG"))} | env

    @staticmethod
    def _placed(word: str, places: dict[str, str]) -> str:
        for there, here in places.items():
            word = word.replace(there, here)
        return word

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as `docker compose exec` would: with the service's environment and user."""
        return subprocess.run(
            command, cwd=self.folder, env=self.env, user=self.user, capture_output=True, text=True, check=False, **options
        )

    def start(self) -> None:
        """Start it and wait until its health check succeeds. Raises RuntimeError with its log where it does not."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.env, user=self.user, stdout=log, stderr=log, start_new_session=True
            )
        began = time.monotonic()
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() - began > START_SECONDS:
                raise RuntimeError(f"{self.command[0]} does not start:\n{(self.folder / 'log').read_text()[-4000:]}")
            time.sleep(0.1)

    def healthy(self) -> bool:
        """Return whether the health check succeeds."""
        return self.run(self.health).returncode == 0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and all its processes; does nothing where it has not been started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process.pid, how)
            self.process.wait()
            self.process = None


class Stack:
    """Both services of compose.yaml, on free ports and in a temporary folder. A context manager: it starts and ends them."""

    def __init__(self, workers: int = 1, **variables: str) -> None:
        self._tmp = tempfile.TemporaryDirectory(prefix="vitlab-server-")
        folder = Path(self._tmp.name)
        self.port, self.db_port = free_port(), free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.credentials = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": SECRETS["MLFLOW_ADMIN_PASSWORD"]}
        hosts = f"127.0.0.1:*,localhost:*{variables.pop('more_hosts', '')}"
        services = compose(SECRETS | {"MLFLOW_WORKERS": str(workers), "MLFLOW_HOSTS": hosts} | variables)["services"]
        db, server = folder / "db", folder / "server"
        self.artifacts, self.data = server / "artifacts", db / "data"
        for path in (db, server, self.artifacts):
            path.mkdir()
        self.db = self._database(db, services["db"])
        ini = (DEPLOY / "auth.ini").read_text(encoding="utf-8").replace("db:5432", f"127.0.0.1:{self.db_port}")
        (server / "auth.ini").write_text(ini, encoding="utf-8")
        places = {
            "db:5432": f"127.0.0.1:{self.db_port}", "=/artifacts": f"={self.artifacts}", "=0.0.0.0": "=127.0.0.1",
            "--port=5000": f"--port={self.port}", "127.0.0.1:5000/": f"127.0.0.1:{self.port}/",
        }  # fmt: skip
        self.server = Service(
            server, services["server"], places, services["server"]["environment"] | {"MLFLOW_AUTH_CONFIG_PATH": f"{server}/auth.ini"}
        )
        bin_folder = Path(sys.executable).parent
        self.server.command[0] = str(bin_folder / "mlflow")
        self.server.health[0] = sys.executable

    def _database(self, folder: Path, about: dict[str, Any]) -> Service:
        """Return the database's service; its data are made as the image's entry point makes them."""
        user = None
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            user = "postgres" if "postgres" in names else "nobody"
            for path in (Path(self._tmp.name), folder):
                path.chmod(0o755)
            shutil.chown(folder, user)
        env = about["environment"]
        db = Service(folder, about, {"5432": str(self.db_port)}, {"PGPASSWORD": env["POSTGRES_PASSWORD"]}, user)
        binary = postgres_binary("postgres")
        assert binary is not None, "PostgreSQL is not installed"
        db.command = [binary, *db.command[1:], "-D", str(self.data), "-p", str(self.db_port), "-h", "127.0.0.1", "-k", ""]
        db.health[0] = str(postgres_binary("pg_isready"))
        password = folder / "password"
        password.write_text(env["POSTGRES_PASSWORD"])
        if user is not None:
            shutil.chown(password, user)
        made = db.run(
            [str(postgres_binary("initdb")), "-D", str(self.data), "-U", env["POSTGRES_USER"], f"--pwfile={password}",
             "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"initdb fails:\n{made.stderr}")
        db.start()
        self._psql(db, f"CREATE DATABASE {env['POSTGRES_DB']}", "postgres")
        return db

    def _psql(self, db: Service, sql: str, database: str = "mlflow") -> str:
        program = [str(postgres_binary("psql")), "-h", "127.0.0.1", "-p", str(self.db_port), "-U", "mlflow", "-d", database]
        done = db.run([*program, "-AtqX", "-v", "ON_ERROR_STOP=1"], input=sql)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def psql(self, sql: str) -> str:
        """Return what `psql` prints for a statement: fields with | between."""
        return self._psql(self.db, sql)

    def __enter__(self) -> Stack:
        try:
            self.server.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End both services and remove their data."""
        self.server.stop(signal.SIGKILL)
        self.db.stop(signal.SIGINT)  # PostgreSQL's fast shutdown
        self._tmp.cleanup()
