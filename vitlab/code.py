"""Which code this is: the commit, and what was changed since."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

from vitlab.paths import CHECKOUT, REPOSITORY, SHIPPED

STATE = "code.json"  # in SHIPPED: the state that the wheel was built from


def git_state() -> dict[str, str]:
    """Return the commit and, as `dirty`, a hash of uncommitted changes ("" for none); both "" where that is not known."""
    if not CHECKOUT:
        return json.loads((SHIPPED / STATE).read_text(encoding="utf-8"))

    if not _git(REPOSITORY, "ls-files", "vitlab/__init__.py"):  # no repository, or another one that this folder happens to lie in
        return {"commit": "", "dirty": ""}
    changes = _git(REPOSITORY, "diff", "HEAD")
    commit = _git(REPOSITORY, "rev-parse", "HEAD").strip()
    return {"commit": commit, "dirty": hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else ""}


def history(root: Path) -> frozenset[str] | None:
    """Return the commit that is checked out in the repository `root` and all before it; None where `root` is none, or a shallow clone."""
    if not (root / ".git").exists() or _git(root, "rev-parse", "--is-shallow-repository").strip() != "false":
        return None
    return frozenset(_git(root, "rev-list", "HEAD").split())


def _git(repository: Path, *args: str) -> str:
    """Return what git prints; "" where it fails, or is not there."""
    try:
        return subprocess.run(["git", "-C", str(repository), *args], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
