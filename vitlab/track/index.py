"""The index of a tracking server's finished runs: what a report needs to know of each, without reading the runs themselves.

MLflow's search gives a run with all its params, metrics and tags, a hundred rows, and so takes minutes for ten thousand runs. Here each has
one row: a tag, named by the run's id, of one of SHARDS runs in an experiment of their own. A run's tag `vitlab.indexed` says that its entry
was written; finished runs without it are found by search.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitlab.track.store import Store

EXPERIMENT = "vitlab-index"
INDEXED = "vitlab.indexed"
RECORD = "vitlab.record"  # an entry's key: the SHA-256 of the run's record.json
URI = "vitlab.artifact_uri"  # an entry's key: where the run's artifacts are
SHARDS = 64  # a server reads a whole one before it writes a tag, so each is kept small
SHARD = "vitlab.shard"


def add(store: Store, run_id: str, entry: dict[str, str]) -> None:
    """Write the run's entry, or write it anew. Raises what mlflow raises."""
    store.client.set_tag(shard(store, shard_number(run_id)), run_id, json.dumps(entry, sort_keys=True))


def remove(store: Store, run_id: str) -> None:
    """Remove the run's entry, if it has one. Raises what mlflow raises."""
    for found in store.find(_tags(shard_number(run_id)), experiment_id=store.experiment(EXPERIMENT)):
        if run_id in found.data.tags:
            store.client.delete_tag(found.info.run_id, run_id)


def read(store: Store) -> dict[str, dict[str, str]]:
    """Return each entry by its run's id. Raises what mlflow raises."""
    entries = {}
    for found in store.client.search_runs([store.experiment(EXPERIMENT)], f"tags.`{SHARD}` LIKE '%'", max_results=10 * SHARDS):
        tags = found.data.tags
        entries |= {key: json.loads(value) for key, value in tags.items() if "." not in key}  # MLflow's and our own tags have dots
    return entries


def shard_number(run_id: str) -> int:
    """Return the number of the shard that has the run's entry."""
    return int(run_id[:4], 16) % SHARDS


def shard(store: Store, number: int) -> str:
    """Return the id of the run that is the shard; it is made where it is missing. Raises what mlflow raises."""
    return store.find_or_create(_tags(number), f"index {number:02d}", 0, {}, store.experiment(EXPERIMENT))


def _tags(number: int) -> dict[str, str]:
    return {SHARD: f"{number:02d}"}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, as an entry has it of the run's record."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
