"""Check that the pages of benchmarks/ and their paragraphs in README.md and docs/ follow from what was measured: `make verify`."""

from __future__ import annotations

import sys

from benchmarks import pages
from vitlab.config.places import shown


def main() -> int:
    """Print each page that follows, or what is wrong with those that do not; return the exit code, 1 where something is wrong."""
    compared, wrong = pages.verify()
    for line in wrong or [f"{shown(path)}: as measured" for path in compared]:
        print(line)
    if wrong:
        print("'python -m benchmarks.bench --page --publish' and '... benchmarks.growth --page --publish' write these pages anew")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
