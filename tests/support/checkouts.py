"""A copy of this checkout, as a fresh clone of it would be, to run commands in."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from vitlab.paths import REPOSITORY


def fresh(root: Path, epochs_percent: float, train_limit: int) -> Path:
    """Copy this checkout to `root`, uncommitted changes included, and commit all of it there; its profile quick is as quick as said."""
    for name in filter(None, git(REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")):
        if (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, root / name)
    quick = root / "experiments" / "profiles" / "quick.yaml"
    text = re.sub(r"epochs_percent: [\d.]+", f"epochs_percent: {epochs_percent}", quick.read_text(encoding="utf-8"))
    quick.write_text(re.sub(r"train_limit: \d+", f"train_limit: {train_limit}", text), encoding="utf-8")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=all")
    assert changed(root) == ""
    return root


def git(root: Path, *words: str) -> str:
    """Return what git prints there."""
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout


def changed(root: Path) -> str:
    """Return what git sees changed, a line for each file."""
    return git(root, "status", "--porcelain")
