"""The index of a tracking server's finished runs: what a report needs to know of each, and their records in packs.

MLflow's search gives a run with all its params, metrics and tags, a hundred rows, and so takes minutes for ten thousand runs. Here each has
one row: a tag, named by the run's id, of one of SHARDS runs in an experiment of their own. A run's tag `vitlab.indexed` says that its entry
was written; finished runs without it are found by search.

A server takes as long for a small file as for a large one, so whoever ships a shard's PACKED-th run also puts the records of these runs
into one file, an artifact of the shard, and notes in another tag which these are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Run

    from vitlab.track.store import Store

EXPERIMENT = "vitlab-index"
INDEXED = "vitlab.indexed"
RECORD = "vitlab.record"  # an entry's key: the SHA-256 of the run's record.json
URI = "vitlab.artifact_uri"  # an entry's key: where the run's artifacts are
PACK = "vitlab.pack."  # and a pack's name: the tag of a shard that lists the pack's runs; in an entry as read: where its pack is
SHARDS = 64  # a server reads a whole one before it writes a tag, so each is kept small
SHARD = "vitlab.shard"
PACKED = 20  # records in a pack
LARGEST = 100_000_000  # bytes of a record; a pack that says otherwise is not unpacked
RUN = re.compile("[0-9a-f]{32}")  # a run's id, which names a folder, so that none may lead out of it

Entries = dict[str, dict[str, str]]  # a run's id -> its entry


def add(store: Store, run_id: str, entry: dict[str, str]) -> None:
    """Write the run's entry, or write it anew. Raises what mlflow raises."""
    number = shard_number(run_id)
    where = shard(store, number)
    store.client.set_tag(where, run_id, json.dumps(entry, sort_keys=True))
    with contextlib.suppress(Exception):  # a report does without packs, and the next run tries again
        pack(store, where, lambda loose: store.read_artifact(f"{loose[URI]}/record.json"))


def remove(store: Store, run_id: str) -> None:
    """Remove the run's entry, if it has one. Raises what mlflow raises."""
    tags, where = _tags(shard_number(run_id)), store.experiment(EXPERIMENT)
    for found in store.find(tags, experiment_id=where, deleted=True):
        store.client.restore_run(found.info.run_id)  # or it could not be written
    for found in store.find(tags, experiment_id=where):
        if run_id in found.data.tags:
            store.client.delete_tag(found.info.run_id, run_id)


def read(store: Store) -> Entries:
    """Return each entry by its run's id, those of deleted shards too: their runs are not deleted. Raises what mlflow raises."""
    from mlflow.entities import ViewType

    entries: Entries = {}
    where, shards = [store.experiment(EXPERIMENT)], f"tags.`{SHARD}` LIKE '%'"
    for found in store.client.search_runs(where, shards, ViewType.ALL, max_results=10 * SHARDS):
        entries |= _entries(found)
    return entries


def shard_number(run_id: str) -> int:
    """Return the number of the shard that has the run's entry."""
    return int(run_id[:4], 16) % SHARDS


def shard(store: Store, number: int) -> str:
    """Return the id of the run that is the shard; it is made where it is missing. Raises what mlflow raises."""
    return store.find_or_create(_tags(number), f"index {number:02d}", 0, {}, store.experiment(EXPERIMENT))


def pack(store: Store, where: str, record: Callable[[dict[str, str]], bytes]) -> None:
    """Pack the records of a shard that are in no pack, as long as there are enough for one.

    where: the shard's run; record: gives an entry's record.json. Does nothing where the server does not hand out artifacts itself. Raises
    what mlflow raises.
    """
    entries = _entries(store.client.get_run(where))
    loose = sorted(run_id for run_id, entry in entries.items() if PACK not in entry and store.proxied(entry[URI]))
    while len(loose) >= PACKED:
        chosen, loose = loose[:PACKED], loose[PACKED:]
        with tempfile.TemporaryDirectory() as tmp:
            path = Path(tmp) / f"records-{digest(''.join(chosen).encode())[:16]}.zip"
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for run_id in chosen:
                    archive.writestr(run_id, record(entries[run_id]))
            store.client.log_artifact(where, str(path))
        store.client.set_tag(where, f"{PACK}{path.name}", " ".join(chosen))


def unpack(content: bytes, wanted: Iterable[tuple[str, str]]) -> dict[str, bytes]:
    """Return the records that a pack has, by run id, of those `wanted`: (run id, SHA-256 of the record)."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        found = {run_id: (archive.read(run_id), sha) for run_id, sha in wanted if sizes.get(run_id, LARGEST) < LARGEST}
    return {run_id: record for run_id, (record, sha) in found.items() if digest(record) == sha}


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content, as an entry has it of the run's record."""
    return hashlib.sha256(content).hexdigest()


def _tags(number: int) -> dict[str, str]:
    return {SHARD: f"{number:02d}"}


def _entries(found: Run) -> Entries:
    tags = found.data.tags
    entries = {key: json.loads(value) for key, value in tags.items() if RUN.fullmatch(key)}
    for key, value in tags.items():
        if key.startswith(PACK):
            uri = f"{found.info.artifact_uri}/{key.removeprefix(PACK)}"
            entries |= {run_id: entries[run_id] | {PACK: uri} for run_id in value.split() if run_id in entries}
    return entries
