"""The notebook: made from the script beside it, installed in Colab, and run from top to bottom in a fresh checkout."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from notebooks import make
from tests.support.checkouts import changed, fresh
from vitlab.paths import REPOSITORY

CELLS = nbformat.read(make.NOTEBOOK, nbformat.NO_CONVERT).cells


def test_the_notebook_is_what_the_script_makes() -> None:
    assert make.NOTEBOOK.read_text(encoding="utf-8") == make.render() == make.render(), "make notebook"
    nbformat.validate(nbformat.read(make.NOTEBOOK, nbformat.NO_CONVERT))
    assert [cell.source for cell in CELLS] == [cell.source for cell in jupytext.read(make.SCRIPT).cells]


def test_nothing_that_was_run_is_in_the_repository() -> None:
    for cell in CELLS:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
        assert not re.search(r"(?<![\w.)}~:/])/(home|Users|root|tmp|content|work|mnt)\b", cell.source), cell.source


def test_the_readme_shows_the_badge() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "[![Notebook: open in Colab](docs/badges/colab.svg)](https://colab.research.google.com/github)" in readme
    assert "<title>notebook: open in Colab</title>" in (REPOSITORY / "docs" / "badges" / "colab.svg").read_text(encoding="utf-8")


@pytest.fixture
def in_colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A folder as Colab opens a notebook in, where git clones and pip does nothing; the commands of pip."""
    asked: list[list[str]] = []
    run = subprocess.run

    def without_pip(words: list[Any], **options: Any) -> Any:
        if "pip" in words:
            return asked.append([str(word) for word in words])
        return run(words, **options)

    monkeypatch.setattr(subprocess, "run", without_pip)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return asked


def test_the_first_cell_installs_in_colab(in_colab: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(cell.source for cell in CELLS if cell.cell_type == "code")
    monkeypatch.setattr("builtins.input", lambda prompt: REPOSITORY.as_uri())
    for _ in range(2):  # run again, it finds what it has cloned
        exec(first, {})
        assert Path.cwd() == Path(sys.path[0]) == tmp_path / "vitlab"
        assert (tmp_path / "vitlab" / "vitlab" / "__init__.py").is_file()
        assert in_colab.pop()[1:] == ["-m", "pip", "install", "--quiet", "--editable", str(tmp_path / "vitlab")]
    monkeypatch.setattr(sys.modules["numpy"], "__version__", "1.0")
    with pytest.raises(AssertionError, match="numpy is in use, and pip has replaced it: choose Runtime > Restart session"):
        exec(first, {})


class Client(NotebookClient):
    """Counts how often a picture that is shown already is drawn anew."""

    updates = 0

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        self.updates += msg["msg_type"] == "update_display_data"
        return super().process_message(msg, cell, cell_index)


def of(cell: Any, kind: str) -> list[str]:
    """What the cell shows as this MIME type."""
    return [output.data[kind] for output in cell.outputs if output.output_type == "display_data" and kind in output.data]


def entries(cell: Any) -> list[str]:
    """What stands in the cells of the tables that this cell shows."""
    return re.findall(r"<td[^>]*>([^<]*)</td>", "".join(of(cell, "text/html")))


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On digits, without a GPU, in a fresh checkout whose profile quick has 4 epochs of 285 images."""
    root = fresh(tmp_path / "vitlab", epochs_percent=4, train_limit=300)
    for name in ("VITLAB_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "CUDA_VISIBLE_DEVICES": "",
        "IPYTHONDIR": tmp_path / "ipython",
        "JUPYTER_RUNTIME_DIR": tmp_path / "jupyter",
    }.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(root / "notebooks" / "vitlab.ipynb", nbformat.NO_CONVERT)
    client = Client(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(root / "notebooks")}})
    client.execute()

    assert changed(root) == "", "what it leaves is ignored by git"
    tagged = {tag: [c for c in notebook.cells if tag in c.metadata.get("tags", ())] for tag in ("picture", "table", "verdict")}
    assert {tag: len(cells) for tag, cells in tagged.items()} == {"picture": 8, "table": 5, "verdict": 1}
    for cell in tagged["picture"]:
        drawn = of(cell, "image/png") + of(cell, "image/svg+xml")
        assert drawn, cell.source
        for png in of(cell, "image/png"):
            image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
            assert len(image.getcolors(image.width * image.height)) > 20, f"blank: {cell.source}"
        for svg in of(cell, "image/svg+xml"):
            assert svg.count("<path") > 10, cell.source
    assert client.updates >= 2, "curves are drawn anew while they train, and once more at the end"
    text = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "stream")
    assert "profile quick, data digits, seed 0" in text
    assert "\x1b" not in text, "a terminal's control characters"
    assert re.search(r"^Verdict: (supported|refuted|undecided)$", text, re.MULTILINE)
    assert not [output for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("name") == "stderr"]

    compared, image_by_image, mine, published, mlflow = map(entries, tagged["table"])
    ladder, claim = [], []
    for path in (root / "runs").glob("quick-digits/*/*/record.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        (claim if record["variant"] else ladder).append(record)
    assert sorted(record["experiment"] for record in ladder) == ["01_baseline_vit", "05_kd_r18", "resnet18"]
    assert len(claim) == 8
    for record in ladder:
        top1 = f"{record['metrics']['test_top1']:.2f}"
        assert {record["title"], top1} <= {*compared}
        assert top1 in mine
    assert sum(map(int, image_by_image)) == ladder[0]["dataset"]["test"]
    assert {f"{record['metrics']['test_top1']:.2f}" for record in ladder + claim} <= {*mlflow}
    assert sum("train.epochs=8" in entry for entry in mlflow) == len(claim)
    assert "07 Convolutional stem, distillation" in published
