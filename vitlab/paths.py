"""Where things lie: in the repository, or below VITLAB_ROOT where that is set."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOT = Path(os.environ.get("VITLAB_ROOT", REPOSITORY)).resolve()
RUNS = ROOT / "runs"  # one folder a run: <profile>-<dataset>/<experiment>/<fingerprint>-s<seed>
REPORTS = ROOT / "reports"  # pages about what was run and measured here, laid out as RESULTS; git ignores them
RESULTS = ROOT / "results"  # what is published: <profile>-<dataset>/{README.md,report.html,summary.csv,records,figures}
EXPERIMENTS = REPOSITORY / "experiments"
