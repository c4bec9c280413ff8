"""deploy/: what its files say agrees among them and with the package. tests/robustness/test_server.py runs them."""

from __future__ import annotations

import configparser
import re
import tomllib

import pytest

from benchmarks import servers
from vitlab.paths import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")


def test_compose_needs_its_secrets_and_nothing_else() -> None:
    required, optional = (set(re.findall(rf"\$\{{(\w+){mark}", TEXT)) for mark in (r":\?", ":-"))
    assert required == servers.SECRETS.keys()
    offered = (DEPLOY / "env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^(\w+)=$", offered, re.M)) == required
    assert set(re.findall(r"^# (\w+)=", offered, re.M)) == optional
    for name in required:
        with pytest.raises(KeyError, match=name):
            servers.compose({k: v for k, v in servers.SECRETS.items() if k != name})
    server = servers.compose(servers.SECRETS)["services"]["server"]
    assert server["command"][-2:] == ["--workers=1", "--allowed-hosts=127.0.0.1:5000,localhost:5000"]


def test_the_health_check_is_answered_whatever_the_servers_name() -> None:
    server = servers.compose(servers.SECRETS | {"MLFLOW_HOSTS": "mlflow.lab.example"})["services"]["server"]
    assert server["command"][-1] == "--allowed-hosts=127.0.0.1:5000,mlflow.lab.example"
    assert '"http://127.0.0.1:5000/' in server["healthcheck"]["test"][-1]


def test_services_volumes_and_ports_fit_together() -> None:
    stack = servers.compose(servers.SECRETS)
    db, server = stack["services"]["db"], stack["services"]["server"]
    assert {v.split(":")[0] for s in (db, server) for v in s["volumes"] if not v.startswith(".")} == stack["volumes"].keys()
    assert server["ports"] == ["127.0.0.1:5000:5000"]  # no passwords in plain text over a network, unless somebody says so
    assert "ports" not in db
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in (db, server))
    assert server["depends_on"] == {"db": {"condition": "service_healthy"}}
    assert server["environment"]["PGPASSWORD"] == db["environment"]["POSTGRES_PASSWORD"]
    ini = configparser.ConfigParser()
    ini.read(DEPLOY / "auth.ini")
    (uri,) = (word.partition("=")[2] for word in server["command"] if word.startswith("--backend-store-uri"))
    assert ini["mlflow"]["database_uri"] == uri
    assert "./auth.ini:" + server["environment"]["MLFLOW_AUTH_CONFIG_PATH"] + ":ro" in server["volumes"]
    assert not [secret for secret in servers.SECRETS.values() if secret in " ".join(server["command"] + db["command"])]


def test_the_image_has_what_the_extra_says_in_pinned_versions() -> None:
    extra = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]["server"]
    wanted = {re.split(r"[<>=]", package)[0] for package in extra}
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    installed = re.search(r"--constraint /tmp/constraints.txt (.+?) \\", dockerfile)[1]
    assert {word.strip('"') for word in installed.split()} == wanted
    pinned = {line.partition("==")[0].lower() for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    assert {name.partition("[")[0] for name in wanted} | {"flask-wtf"} <= pinned  # flask-wtf: what mlflow[auth] adds
    assert "COPY constraints.txt" in dockerfile
    assert "!constraints.txt" in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_secrets_are_ignored_by_git() -> None:
    assert "/deploy/.env" in (REPOSITORY / ".gitignore").read_text(encoding="utf-8").splitlines()
