"""Trouble with tracking: training waits for none of it, what is outstanding is said, and later everything is there, once."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.servers import free_port
from tests.support.disk import no_file_above
from tests.support.outages import assert_all_is_there_once, at_the_second_checkpoint, home, sync, train, wait_for_shippers
from tests.support.processes import until
from vitlab.track import store

pytestmark = pytest.mark.slow


class Server:
    """`mlflow server` on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.process = folder, free_port(), None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
        ]  # fmt: skip
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True)
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).read()
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # its workers too
        self.process.wait()


class Proxy:
    """Before the server; `mode` says what happens to what it is sent: "pass", "slow", "500", or "down"."""

    def __init__(self, port: int) -> None:
        self.mode, self.target = "pass", port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self.listener.accept()[:1], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()
            while data := client.recv(1 << 20):
                if self.mode == "down":
                    return
                if self.mode == "500":
                    client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return
                if self.mode == "slow":
                    time.sleep(1)
                server.sendall(data)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    yield proxy
    proxy.listener.close()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Where a run of one experiment is at home, whose name is the test's."""
    return home(tmp_path, monkeypatch, request.node.name)


@pytest.mark.parametrize("mode", ["down", "500"])
def test_a_server_out_of_order_is_caught_up_with_by_sync(mode: str, proxy: Proxy, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proxy.mode = mode
    out = train(root, capsys)
    assert "not all of it has reached MLflow" in out, out
    assert "run 'vitlab sync' later" in out
    wait_for_shippers()
    proxy.mode = "pass"
    assert "shipped" in sync(root, capsys)
    assert_all_is_there_once(root)
    assert "nothing outstanding" in sync(root, capsys)


def test_a_slow_server_holds_nothing_up(proxy: Proxy, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proxy.mode = "slow"  # a second an answer, of some fifty
    out = train(root, capsys)
    assert "still on its way after 3 s" in out
    proxy.mode = "pass"
    sync(root, capsys)  # while the thread that was on its way goes on
    assert_all_is_there_once(root)


def test_a_server_killed_amid_a_run_and_restarted(
    server: Server, proxy: Proxy, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike(folder: Path) -> None:
        noted = folder / "mlflow.json"
        until(lambda: noted.exists() and re.search(r'"offset": [1-9]', noted.read_text(encoding="utf-8")))  # the first epoch has arrived
        server.kill()

    at_the_second_checkpoint(monkeypatch, strike)
    assert "not all of it has reached MLflow" in train(root, capsys)
    wait_for_shippers()
    server.start()
    out = train(root, capsys)  # the same command trains nothing, and ships
    assert "finished before, skipped" in out
    assert "not all has reached" not in out
    assert_all_is_there_once(root)


@pytest.mark.parametrize("trouble", ["locked", "read-only", "full"])
def test_trouble_with_the_database_stops_no_training(trouble: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert store.prepare_store(root) == ""
    with contextlib.ExitStack() as stack:
        if trouble == "locked":
            db = stack.enter_context(contextlib.closing(sqlite3.connect(root / "mlflow.db")))
            db.execute("BEGIN IMMEDIATE")
        elif trouble == "read-only":
            (root / "mlflow.db-journal").mkdir()  # nothing can be written without it, by whomever
        else:
            stack.enter_context(no_file_above(300_000))
        assert "not all" in train(root, capsys)
        wait_for_shippers()
    if trouble == "read-only":
        (root / "mlflow.db-journal").rmdir()
    sync(root, capsys)
    assert_all_is_there_once(root)
