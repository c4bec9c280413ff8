"""Makes vitlab.ipynb from vitlab.py, the same cells in the form that Jupyter and Colab open: `make notebook`."""

from __future__ import annotations

from pathlib import Path

import jupytext

SCRIPT = Path(__file__).with_name("vitlab.py")
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def render() -> str:
    """Return the notebook, without outputs. The same script gives the same text: a cell's id is its number."""
    notebook = jupytext.read(SCRIPT)
    for number, cell in enumerate(notebook.cells, 1):
        cell["id"] = f"cell-{number}"
    return jupytext.writes(notebook, fmt="ipynb")


if __name__ == "__main__":
    NOTEBOOK.write_text(render(), encoding="utf-8")
