"""Ships a set's ledger of claims to MLflow, as a run of its own."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from vitlab.track.shipping import digest
from vitlab.track.store import Store, connect, ledgers, reason


def ship_ledger(root: Path, path: Path) -> str:
    """Ship a set's ledger, the claims.json at `path`, to MLflow: one run per set, known by its tags. Doing it again changes nothing.

    Returns why that failed, else "": no report waits for it, and the next one tries again.
    """
    try:
        if digest(path.read_bytes()) not in (version for _, version in ledgers(root)):
            _ship_ledger(connect(root), path)
    except Exception as e:
        return reason(e)
    return ""


def _ship_ledger(store: Store, path: Path) -> None:
    """Ship the ledger's effects, verdicts and file. Its run has no tag `vitlab.finished`, so that nobody takes it for a training."""
    content = path.read_bytes()
    book, version, now = json.loads(content), digest(content), int(time.time() * 1000)
    identity = {"vitlab.kind": "ledger", "vitlab.profile": book["profile"], "vitlab.dataset": book["dataset"]}
    run_id = store.find_or_create(identity, f"ledger {book['profile']}-{book['dataset']}", now, {})
    earlier = store.client.get_run(run_id).data
    if earlier.tags.get("vitlab.ledger") == version:
        return
    names = {"effect": "effect", "low": "effect_low", "high": "effect_high"}  # each a section of MLflow's charts, with all claims in it
    values = {f"claim/{name}/{r['id']}": r[key] for r in book["results"] for key, name in names.items() if r[key] is not None}
    values |= dict.fromkeys(earlier.metrics.keys() - values.keys(), math.nan)  # what is not measured any more: MLflow forgets no metric
    verdicts = {f"claim.{r['id']}": r["verdict"] for r in book["results"]}
    store.log_metrics(run_id, [(key, value, now, 0) for key, value in values.items()])
    store.set_tags(run_id, verdicts)
    for gone in [key for key in earlier.tags if key.startswith("claim.") and key not in verdicts]:
        store.client.delete_tag(run_id, gone)
    store.client.log_artifact(run_id, str(path))
    store.client.set_terminated(run_id, "FINISHED", end_time=now)
    store.set_tags(run_id, {"vitlab.ledger": version})  # last: it says that all of this is there
