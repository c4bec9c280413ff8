"""Where things lie: in the checkout, or in the current directory where vitlab is installed; below VITLAB_ROOT where that is set."""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = Path(__file__).resolve().parent / "shipped"  # of an installed vitlab alone: setup.py puts a copy of what is read there
CHECKOUT = not SHIPPED.is_dir()
REPOSITORY = Path(__file__).resolve().parent.parent  # of an installed vitlab: the folder with all packages
ROOT = Path(os.environ.get("VITLAB_ROOT", REPOSITORY if CHECKOUT else "")).resolve()
RUNS = ROOT / "runs"  # one folder a run: <profile>-<dataset>/<experiment>/<fingerprint>-s<seed>
REPORTS = ROOT / "reports"  # pages about what was run and measured here, laid out as RESULTS; git ignores them
# what is published: <profile>-<dataset>/{README.md,report.html,summary.csv,records,figures}
RESULTS = ROOT / "results" if CHECKOUT else SHIPPED / "results"
EXPERIMENTS = (REPOSITORY if CHECKOUT else SHIPPED) / "experiments"
