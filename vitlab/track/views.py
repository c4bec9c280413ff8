"""The tables of runs in MLflow's UI: two saved views for each set of runs, and the address that opens the first.

MLflow 3 opens an experiment on a page about traces of language models. The table of runs is at `workflowType=machine_learning`; its filter,
order and columns are read from the experiment's tag that `viewStateShareKey` names (MLflow 3.17: savedViewEnvelope.ts).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from vitlab.errors import UserError
from vitlab.track import store

TAG = "mlflow.sharedViewState."  # and the view's key; those that are saved in the UI have other keys
RUNS, MEANS = "runs:", "means:"
PIXELS = {  # the columns, in this order, and their widths: those of the runs fit into a window of 1,600
    "metrics.`final/test_top1`": 105, "metrics.`final/test_top1_sd`": 120,
    "metrics.`final/test_top1_ci95_low`": 150, "metrics.`final/test_top1_ci95_high`": 155,
    "metrics.`final/params`": 90, "metrics.`final/train_seconds`": 125,
    "tags.`vitlab.experiment`": 138, "tags.`vitlab.profile`": 90, "tags.`vitlab.seed`": 80, "tags.`vitlab.seeds`": 85,
    "attributes.`Dataset`": 105, "attributes.`Source`": 99, "attributes.`Models`": 105,
}  # fmt: skip


def set_name(profile: str, dataset: str) -> str:
    """Return the set's name, `<profile>-<dataset>`, in the characters that an MLflow tag's key may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{profile}-{dataset}")  # a tag's key


def tags(profile: str, dataset: str, created: int) -> dict[str, str]:
    """Return the experiment's tags, key to value, that hold a set's two views: its runs, and the means over seeds.

    created: when the experiment was created, ms since the epoch.
    """
    where = f"tags.`vitlab.profile` = {_quoted(profile)} and tags.`vitlab.dataset` = {_quoted(dataset)}"
    spread = ["metrics.`final/test_top1_sd`", "metrics.`final/test_top1_ci95_low`", "metrics.`final/test_top1_ci95_high`"]
    runs = [column for column in PIXELS if column not in (*spread, "tags.`vitlab.seeds`")]
    means = [column for column in PIXELS if column not in ("tags.`vitlab.seed`", "attributes.`Models`")]  # a model is of one run
    name = f"{profile} · {dataset}"
    parents = "tags.`vitlab.kind` = 'parent'"
    # Runs that --force has superseded are not shown; runs in training are: without a result they come last.
    latest = "tags.`vitlab.kind` = 'seed' and tags.`vitlab.finished` != 'superseded'"
    return {
        f"{TAG}{RUNS}{set_name(profile, dataset)}": _view(name, f"{latest} and {where}", runs, created),
        f"{TAG}{MEANS}{set_name(profile, dataset)}": _view(f"{name} · means over seeds", f"{parents} and {where}", means, created),
    }


def _view(name: str, search: str, columns: list[str], created: int) -> str:
    state = {
        "searchFilter": search,
        "orderByKey": "metrics.`final/test_top1`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: PIXELS[column] for column in columns},
    }
    return json.dumps({"name": name, "createdAt": created, "updatedAt": created, "state": json.dumps(state)})


def _quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"  # the filter language has no escapes


def addresses(root: Path, port: int = 5000) -> dict[str, str]:
    """Return the address of each set's runs in MLflow's UI, by the set's name; under "" that of all runs.

    The UI is the tracking server's where there is one, else the one that is started on `port`. Raises UserError where MLflow cannot be
    reached.
    """
    try:
        experiment_id, found_tags = store.experiment(root)
    except Exception as e:
        raise UserError(f"MLflow at {store.shown_uri(root)} cannot be reached: {store.reason(e)}") from None
    server = store.server(root) or f"http://127.0.0.1:{port}"
    everything = f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    names = sorted(key.removeprefix(TAG + RUNS) for key in found_tags if key.startswith(TAG + RUNS))
    return {"": everything} | {name: f"{everything}&viewStateShareKey={RUNS}{name}" for name in names}
