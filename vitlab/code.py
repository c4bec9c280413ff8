"""Which code this is: the commit, and what was changed since."""

from __future__ import annotations

import hashlib
import json
import subprocess

from vitlab.paths import CHECKOUT, REPOSITORY, SHIPPED

STATE = "code.json"  # in SHIPPED: the state that the wheel was built from


def git_state() -> dict[str, str]:
    """Return the commit and, as `dirty`, a hash of uncommitted changes ("" for none); both "" where that is not known."""
    if not CHECKOUT:
        return json.loads((SHIPPED / STATE).read_text(encoding="utf-8"))

    def git(*args: str) -> str:
        try:
            return subprocess.run(["git", "-C", str(REPOSITORY), *args], capture_output=True, text=True, timeout=10, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return ""

    if not git("ls-files", "vitlab/__init__.py"):  # no repository, or another one that this folder happens to lie in
        return {"commit": "", "dirty": ""}
    changes = git("diff", "HEAD")
    return {"commit": git("rev-parse", "HEAD").strip(), "dirty": hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else ""}
