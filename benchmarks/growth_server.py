"""Cost with the number of runs in a tracking server: PostgreSQL and `mlflow server` as in deploy/compose.yaml, on this machine."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from benchmarks.growth import Store
from benchmarks.servers import Stack
from vitlab.track import index
from vitlab.track.store import connect

# Copies of runs, row by row. The first ones' rows are MLflow's own; indexes and checks are left out while millions of rows come in.
COPY = """
SET session_replication_role = replica;
CREATE TEMPORARY TABLE copies (old text, new text, seed int);
COPY copies FROM STDIN;
{rows}
\\.
CREATE TEMPORARY TABLE kept AS SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint WHERE conrelid = 'metrics'::regclass AND contype = 'p';
CREATE TEMPORARY TABLE indexes AS SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'metrics' AND indexname NOT IN (SELECT conname FROM kept);
SELECT format('ALTER TABLE metrics DROP CONSTRAINT %I', conname) FROM kept \\gexec
SELECT format('DROP INDEX %I', indexname) FROM indexes \\gexec
{copies}
UPDATE tags SET value = seed FROM copies WHERE run_uuid = new AND key = 'vitlab.seed';
COPY tags (key, value, run_uuid) FROM STDIN;
{entries}
\\.
SELECT indexdef FROM indexes \\gexec
SELECT format('ALTER TABLE metrics ADD CONSTRAINT %I %s', conname, definition) FROM kept \\gexec
VACUUM ANALYZE;
"""
TABLES = {  # table -> its column that names the run
    "runs": "run_uuid", "tags": "run_uuid", "params": "run_uuid", "metrics": "run_uuid", "latest_metrics": "run_uuid", "inputs": "destination_id",
}  # fmt: skip


class ServerStore(Store):
    """Runs as benchmarks.growth.Store makes them, in a server: the first of each group is shipped, the others are copied by SQL."""

    def __init__(self, root: Path, stack: Stack) -> None:
        self.stack = stack
        super().__init__(root)

    def text(self, i: int) -> tuple[str, int, str]:
        """Return run i's fingerprint, seed and record as JSON."""
        seed, group = divmod(i, len(self.groups))
        record = self.groups[group].model_copy(update={"seed": seed})
        return record.fingerprint, seed, json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True)

    def copy_to(self, count: int) -> None:
        """Put runs into the server's database and artifact folder until there are `count`."""
        firsts = connect(self.root).find({"vitlab.kind": "seed", "vitlab.seed": "0"})
        first = {run.data.tags["vitlab.fingerprint"]: run.info for run in firsts}
        store = connect(self.root)
        shards = [index.shard(store, number) for number in range(index.SHARDS)]
        entries = index.read(store)
        rows, listed = [], []
        for i in range(self.count, count):
            fingerprint, seed, text = self.text(i)
            like, new = first[fingerprint], uuid.uuid4().hex
            folder = self.stack.artifacts / like.artifact_uri.removeprefix("mlflow-artifacts:/").replace(like.run_id, new)
            folder.mkdir(parents=True)
            (folder / "record.json").write_text(text)
            rows.append(f"{like.run_id}\t{new}\t{seed}")
            entry = {key: value.replace(like.run_id, new) for key, value in entries[like.run_id].items()}
            entry |= {"vitlab.seed": str(seed), index.RECORD: index.digest(text.encode())}
            listed.append(f"{new}\t{json.dumps(entry, sort_keys=True)}\t{shards[index.shard_number(new)]}")
        copies = []
        for table, run in TABLES.items():
            columns = self.stack.psql(
                f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}' AND table_schema = 'public'"
            ).split()
            values = [f"replace({c}, old, new)" if c in (run, "artifact_uri") else c for c in columns]
            values = ["gen_random_uuid()" if c == "input_uuid" else v for c, v in zip(columns, values)]
            copies.append(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} FROM {table} JOIN copies ON {run} = old;")
        self.stack.psql(COPY.format(rows="\n".join(rows), copies="\n".join(copies), entries="\n".join(listed)))
        for where in shards:
            index.pack(store, where, self.record)
        self.count = count

    def record(self, entry: dict[str, str]) -> bytes:
        """Return an entry's record.json from the server's folder: asking the server for each, as whoever ships runs does, takes longer."""
        return (self.stack.artifacts / entry[index.URI].removeprefix("mlflow-artifacts:/") / "record.json").read_bytes()
