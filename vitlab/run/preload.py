"""What every process of `--jobs` needs, imported once before any of them is forked: see engines/local.py."""

from vitlab.figures import run as _pictures  # noqa: F401 matplotlib and seaborn
from vitlab.run import execute as _execute  # noqa: F401 torch, and all that trains
from vitlab.track.store import import_mlflow

import_mlflow()
