"""What an editor shows of an experiment file: a real YAML language server, the one in VS Code's extension, completes and checks with the schema."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.experiments import LADDER
from vitlab.paths import EXPERIMENTS

pytestmark = pytest.mark.slow

SERVER = "yaml-language-server@2.0.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vitlab-tests" / SERVER
LINE = "# yaml-language-server: $schema=schema.json\n"


class Editor:
    """As much of an editor as talks to a language server: JSON-RPC over its standard input and output."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.folder, self.last = folder, 0
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.ask("initialize", processId=None, rootUri=folder.as_uri(), capabilities={"workspace": {"configuration": True}})
        self.send(method="initialized", params={})

    def send(self, **message: object) -> None:
        body = json.dumps({"jsonrpc": "2.0"} | message).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The next message; what the server asks of an editor is answered on the way."""
        size = 0
        while line := self.process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            size = int(value) if name.lower() == b"content-length" else size
        assert size, "the server has ended"
        message = json.loads(self.process.stdout.read(size))
        if "id" in message and "method" in message:
            settings = {"validate": True, "completion": True, "hover": True, "schemaStore": {"enable": False}}  # asks no site for schemas
            wanted = [settings if item["section"] == "yaml" else None for item in message["params"].get("items", ())] or None
            self.send(id=message["id"], result=wanted)
        return message

    def ask(self, method: str, **params: object) -> Any:
        self.last += 1
        self.send(id=self.last, method=method, params=params)
        while (message := self.receive()).get("id") != self.last or "method" in message:
            pass
        return message["result"]

    def open(self, path: Path, text: str | None = None) -> list[str]:
        """Open the file, with `text` typed into it, and return what the server finds wrong: the line, counted from 1, and the message."""
        text = path.read_text(encoding="utf-8") if text is None else text
        document = {"uri": path.as_uri(), "languageId": "yaml", "version": 1, "text": text}
        self.send(method="textDocument/didOpen", params={"textDocument": document})
        while (message := self.receive()).get("method") != "textDocument/publishDiagnostics" or message["params"]["uri"] != path.as_uri():
            pass
        return [f"{found['range']['start']['line'] + 1}: {found['message']}" for found in message["params"]["diagnostics"]]

    def complete(self, path: Path, text: str) -> set[str]:
        """What the server offers at the end of `text`."""
        self.open(path, text)
        end = {"line": text.count("\n"), "character": len(text.rpartition("\n")[2])}
        found = self.ask("textDocument/completion", textDocument={"uri": path.as_uri()}, position=end)
        return {item["label"].strip('"') for item in (found["items"] if isinstance(found, dict) else found)}


@pytest.fixture(scope="module")
def server() -> list[str]:
    """The command that starts the language server; it is installed once, into a cache."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: the YAML language server cannot be tried")
    program = CACHE / "node_modules" / "yaml-language-server" / "bin" / "yaml-language-server"
    if not program.is_file():
        install = ["npm", "install", "--prefix", str(CACHE), "--ignore-scripts", "--no-audit", "--no-fund", "--silent", SERVER]
        try:
            subprocess.run(install, check=True, capture_output=True, timeout=60)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as e:
            pytest.skip(f"{SERVER} cannot be installed: npm {e}")
    return ["node", str(program), "--stdio"]


@pytest.fixture
def editor(server: list[str], tmp_path: Path) -> Iterator[Editor]:
    for path in EXPERIMENTS.glob("*.json"):
        shutil.copyfile(path, tmp_path / path.name)
    editor = Editor(server, tmp_path)
    yield editor
    editor.process.kill()
    editor.process.wait()


def test_the_experiments_and_claims_have_nothing_wrong(editor: Editor) -> None:
    files = [*LADDER, EXPERIMENTS / "claims.yaml"]
    assert {path.name: editor.open(path) for path in files} == {path.name: [] for path in files}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("extends: 01_baseline_vit\nmodel:\n  name: vit\n  depht: 3\n", 5, "depht"),
        ("extends: 01_baseline_vit\ntran: {epochs: 3}\n", 3, "tran"),
        ("extends: 01_baseline_vit\nmodel: {name: vit, position: learnt}\n", 3, "learned"),
        ("extends: 01_baseline_vit\ntrain:\n  precision: fp16\n", 4, "bf16"),
        ("extends: 01_baseline_vit\ntrain:\n  epochs: three\n", 4, "integer"),
    ],
    ids=["unknown key", "unknown section", "enum", "enum in a section", "type"],
)
def test_a_mistake_is_underlined(editor: Editor, text: str, line: int, words: str) -> None:
    found = editor.open(editor.folder / "mine.yaml", LINE + text)
    assert any(one.startswith(f"{line}: ") and words in one for one in found), found


def test_a_mistake_in_a_claim_is_underlined(editor: Editor) -> None:
    text = (EXPERIMENTS / "claims.yaml").read_text(encoding="utf-8").replace("    primary: true", "    primry: true", 1)
    (line,) = [n for n, found in enumerate(text.splitlines(), 1) if "primry" in found]
    (found,) = editor.open(editor.folder / "mine.yaml", text)
    assert found.startswith(f"{line}: ")
    assert "primry" in found


def test_keys_and_values_are_completed(editor: Editor) -> None:
    assert editor.complete(editor.folder / "a.yaml", LINE + "train:\n  precision: ") >= {"auto", "fp32", "bf16"}
    assert editor.complete(editor.folder / "b.yaml", LINE + "model:\n  name: vit\n  position: ") >= {"learned"}
    assert editor.complete(editor.folder / "c.yaml", LINE + "train:\n  ") >= {"epochs", "batch_size", "precision"}
    assert editor.complete(editor.folder / "d.yaml", LINE + "mod") >= {"model"}
