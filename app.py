"""The page of `vitlab demo` as a Hugging Face Space runs it; docs/demo.md says what else a Space needs."""

from __future__ import annotations

from vitlab import demoing

if __name__ == "__main__":
    demoing.space()
