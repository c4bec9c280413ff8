"""Cost with thousands of runs, in a tracking server and in local files: `python -m benchmarks.growth --server`.

The server is that of deploy/compose.yaml, on this machine (benchmarks/servers.py). Its runs are the published ones with other seeds and
settings, and 100 epochs of history. The first of each kind is shipped as any run. The others are copied from it by SQL, row by row, in the
tables that MLflow writes; they get their own record.json in the artifact store, their own entry in the index, and the packs that shipping
them would have made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from benchmarks.growth import PUBLISHED, Store, seconds_of
from benchmarks.growth_page import series
from benchmarks.servers import Stack
from vitlab.paths import REPOSITORY
from vitlab.records import RunRecord
from vitlab.track import index
from vitlab.track.store import connect
from vitlab.train import machine

COUNTS = 1000, 3000, 10_000
SEEDS = 10  # of each setting
TABLES = {  # table -> its column that names the run
    "runs": "run_uuid", "tags": "run_uuid", "params": "run_uuid", "latest_metrics": "run_uuid", "inputs": "destination_id", "metrics": "run_uuid",
}  # fmt: skip
INPUT = "substr(input_uuid, 1, 4) || new"  # a copy's new id in the table `inputs`
KEYS = ("seed", "variant", "fingerprint", "parent")  # what is a copy's own
# Indexes and checks are left out while millions of rows come in.
POSTGRES = """
SET session_replication_role = replica;
CREATE TEMPORARY TABLE copies (old text, new text, seed text, variant text, fingerprint text, parent text);
COPY copies FROM STDIN;
{rows}
\\.
CREATE TEMPORARY TABLE kept AS
  SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint WHERE conrelid = 'metrics'::regclass AND contype = 'p';
CREATE TEMPORARY TABLE indexes AS
  SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'metrics' AND indexname NOT IN (SELECT conname FROM kept);
SELECT format('ALTER TABLE metrics DROP CONSTRAINT %I', conname) FROM kept \\gexec
SELECT format('DROP INDEX %I', indexname) FROM indexes \\gexec
{copies}
COPY tags (key, value, run_uuid) FROM STDIN;
{entries}
\\.
SET maintenance_work_mem = '512MB';
SELECT indexdef FROM indexes \\gexec
SELECT format('ALTER TABLE metrics ADD CONSTRAINT %I %s', conname, definition) FROM kept \\gexec
VACUUM ANALYZE;
"""
SIZES = """
SELECT relname, pg_table_size(c.oid), pg_indexes_size(c.oid), reltuples::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE nspname = 'public' AND relname IN ({names}) ORDER BY relname
"""


def copying(columns: Callable[[str], Sequence[str]], tables: Sequence[str]) -> str:
    """Return the SQL that copies runs as the temporary table `copies` says; `columns` gives a table's."""
    statements = []
    for table in tables:
        run = TABLES[table]
        values = {c: f"replace({c}, old, new)" if c in (run, "artifact_uri") else INPUT if c == "input_uuid" else c for c in columns(table)}
        statements.append(
            f"INSERT INTO {table} ({', '.join(values)}) SELECT {', '.join(values.values())} FROM {table} JOIN copies ON {run} = old;"
        )
    statements.append(  # what a run's data set was used for
        f"INSERT INTO input_tags (input_uuid, name, value) SELECT {INPUT}, name, value "
        "FROM input_tags JOIN inputs USING (input_uuid) JOIN copies ON destination_id = old;"
    )
    for key in KEYS:
        tag = "mlflow.parentRunId" if key == "parent" else f"vitlab.{key}"
        statements.append(f"UPDATE tags SET value = {key} FROM copies WHERE run_uuid = new AND tags.key = '{tag}';")
    return "\n".join(statements)


class Many(Store):
    """Thousands of runs in the local store of `root`. Run i is of group i % 11; each setting of a group has SEEDS seeds."""

    tables = tuple(table for table in TABLES if table != "metrics")  # which no command reads from a local store

    def record(self, i: int) -> RunRecord:
        """Return run i's record."""
        rest, group = divmod(i, len(self.groups))
        setting, seed = divmod(rest, SEEDS)
        record = self.groups[group].model_copy(update={"seed": seed})
        if setting == 0:
            return record
        variant = f"{record.variant} optim.weight_decay=0.{setting:04d}".strip()
        fingerprint = hashlib.sha256(f"{group} {setting}".encode()).hexdigest()[:12]
        return record.model_copy(update={"variant": variant, "fingerprint": fingerprint})

    def write(self) -> Path:
        """Write the next run's folder and return it; no waiting for the disk."""
        record = self.record(self.count)
        folder = self.folder(record)
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True))
        if self.count < len(self.groups):
            (folder / "figures").mkdir()
            for picture in PUBLISHED.glob(f"figures/{record.experiment}-s0-*/predictions.png"):
                shutil.copy(picture, folder / "figures")
        self.count += 1
        return folder

    def grow(self, count: int) -> float:
        """Add runs until there are `count`; return the seconds that shipping the last one took."""
        if self.count == 0:
            for _ in self.groups:
                self.ship(self.write())
            found = connect(self.root).find({"vitlab.kind": "seed"})
            by_fingerprint = {run.data.tags["vitlab.fingerprint"]: run for run in found}
            self.first = [by_fingerprint[group.fingerprint] for group in self.groups]
            self.parents = {name: run.data.tags["mlflow.parentRunId"] for name, run in by_fingerprint.items()}
        self.copy_all(range(self.count, count - 1))
        folder = self.write()
        seconds = seconds_of(lambda: self.ship(folder))
        fingerprint = folder.name.partition("-")[0]
        self.parents[fingerprint] = connect(self.root).find({"vitlab.kind": "parent", "vitlab.fingerprint": fingerprint})[0].info.run_id
        return seconds

    def copy_all(self, numbers: range) -> None:
        """Put runs, and the parents that they need, into MLflow by copying the rows of their group's first run and of its parent."""
        rows: list[tuple[str, ...]] = []
        copies: list[tuple[str, str, RunRecord]] = []
        for i in numbers:
            record, old, new = self.record(i), self.first[i % len(self.first)], uuid.uuid4().hex
            if record.fingerprint not in self.parents:
                self.parents[record.fingerprint] = uuid.uuid4().hex
                like = old.data.tags["mlflow.parentRunId"]
                rows.append((like, self.parents[record.fingerprint], "", record.variant, record.fingerprint, ""))
            rows.append((old.info.run_id, new, str(record.seed), record.variant, record.fingerprint, self.parents[record.fingerprint]))
            copies.append((old.info.run_id, new, record))
            self.place(self.write(), old.info.artifact_uri.replace(old.info.run_id, new))
        self.insert(rows, copies)

    def place(self, folder: Path, uri: str) -> None:
        """Put a run's record where MLflow keeps artifacts."""
        artifacts = Path(uri.removeprefix("file://"))
        artifacts.mkdir(parents=True)
        shutil.copy(folder / "record.json", artifacts)

    def insert(self, rows: list[tuple[str, ...]], copies: list[tuple[str, str, RunRecord]]) -> None:
        """Copy the rows."""
        with contextlib.closing(sqlite3.connect(self.root / "mlflow.db")) as db, db:
            db.execute("CREATE TEMPORARY TABLE copies (old text, new text, seed text, variant text, fingerprint text, parent text)")
            for column in ("old", "new"):
                db.execute(f"CREATE INDEX temp.copies_{column} ON copies ({column})")
            db.executemany("INSERT INTO copies VALUES (?, ?, ?, ?, ?, ?)", rows)
            columns = lambda table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")]  # noqa: E731
            for statement in copying(columns, self.tables).split(";\n"):
                db.execute(statement)


class InServer(Many):
    """Thousands of runs in the tracking server of `stack`, whose URI and credentials the environment has."""

    tables = tuple(TABLES)

    def __init__(self, root: Path, stack: Stack) -> None:
        self.stack = stack
        super().__init__(root)

    def place(self, folder: Path, uri: str) -> None:
        """Put a run's record where the server keeps artifacts."""
        artifacts = self.stack.artifacts / uri.removeprefix("mlflow-artifacts:/")
        artifacts.mkdir(parents=True)
        shutil.copy(folder / "record.json", artifacts)

    def insert(self, rows: list[tuple[str, ...]], copies: list[tuple[str, str, RunRecord]]) -> None:
        """Copy the rows, and add entries and packs."""
        store = connect(self.root)
        shards = [index.shard(store, number) for number in range(index.SHARDS)]
        entries, lines = index.read(store), []
        for old, new, record in copies:
            entry = {key: value.replace(old, new) for key, value in entries[old].items() if key != index.PACK}
            sha = index.digest((self.folder(record) / "record.json").read_bytes())
            own = {"vitlab.seed": str(record.seed), "vitlab.fingerprint": record.fingerprint, index.RECORD: sha}
            own["mlflow.parentRunId"] = self.parents[record.fingerprint]
            lines.append(f"{new}\t{json.dumps(entry | own, sort_keys=True)}\t{shards[index.shard_number(new)]}")
        columns = "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = '{}'"
        copies_sql = copying(lambda table: self.stack.psql(columns.format(table)).split(), self.tables)
        self.stack.psql(POSTGRES.format(rows="\n".join(map("\t".join, rows)), copies=copies_sql, entries="\n".join(lines)))
        for shard in shards:
            index.pack(store, shard, self.stored)

    def stored(self, entry: dict[str, str]) -> bytes:
        """Return an entry's record from the server's folder: asking for it, as whoever ships runs does, would take longer."""
        return (self.stack.artifacts / entry[index.URI].removeprefix("mlflow-artifacts:/") / "record.json").read_bytes()

    def sizes(self) -> dict[str, list[int]]:
        """Return {table: [bytes of its rows, bytes of its indexes, rows]}."""
        names = ", ".join(f"'{name}'" for name in TABLES)
        return {line.split("|")[0]: list(map(int, line.split("|")[1:])) for line in self.stack.psql(SIZES.format(names=names)).splitlines()}


# A command that notes its peak memory in the file named first. The system's own count begins with that of the process that started it.
NOTING = """
import re, sys
from pathlib import Path
from vitlab import cli
where = sys.argv.pop(1)
try:
    cli.main()
finally:
    Path(where).write_text(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def command(name: str, root: Path) -> dict[str, float]:
    """Run `vitlab NAME` as a process of its own: its seconds, its processor seconds and its memory in MB. Raises RuntimeError where it fails."""
    env = os.environ | {"VITLAB_ROOT": str(root)}
    with tempfile.TemporaryFile() as said, tempfile.NamedTemporaryFile() as peak:
        began = time.perf_counter()
        run = [sys.executable, "-c", NOTING, peak.name, name]
        process = subprocess.Popen(run, cwd=REPOSITORY, env=env, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"vitlab {name} fails:\n{said.read().decode()[-4000:]}")
        memory = int(Path(peak.name).read_text()) * 1024
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "memory_mb": memory / 1e6}


@contextlib.contextmanager
def in_server(stack: Stack) -> Iterator[None]:
    """Have this process and those it starts use the server, as a context manager."""
    added = stack.credentials | {"MLFLOW_TRACKING_URI": stack.uri}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


def processor_seconds(stack: Stack) -> float:
    """Return the processor seconds that server and database have used so far."""
    used = 0.0
    for service in (stack.server, stack.db):
        parent = psutil.Process(service.process.pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used += sum(process.cpu_times()[:4])  # of children that have ended too
    return used


def write(path: Path) -> None:
    """Measure everything and write growth-server.json."""
    start, load = time.perf_counter(), os.getloadavg()[0]
    measured = measure(COUNTS, lambda text: print(f"{time.perf_counter() - start:5.0f} s  {text}", flush=True))
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": machine.device_name(machine.device()),
        "load": load,
        "seconds": time.perf_counter() - start,
    }
    path.write_text(json.dumps(about | measured, indent=1) + "\n", encoding="utf-8")


def measure(counts: tuple[int, ...], say: Callable[[str], None]) -> dict[str, Any]:
    """Return what growth-server.json keeps: series of seconds, by name, with processor seconds and memory; and sizes in bytes."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    points: dict[str, list[dict[str, Any]]] = {}
    found: dict[str, Any] = {}

    def note(name: str, count: int, work: int, measured: dict[str, float]) -> None:
        points.setdefault(name, []).append({"at": count, "work": work, **measured})
        say(f"{count:,} {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in measured.items()))

    with tempfile.TemporaryDirectory() as folder, Stack() as stack:
        with in_server(stack):
            runs, sizes = InServer(Path(folder) / "server", stack), {}
            for count in counts:
                note("server_ship", count, 1, {"seconds": runs.grow(count)})
                sizes[str(count)] = runs.sizes()
                elsewhere = Path(folder) / f"reports-{count}"  # another machine, which has none of these runs
                for name in ("server_report", "server_again"):
                    before = processor_seconds(stack)
                    measured = command("report", elsewhere)
                    note(name, count, count, measured | {"server_cpu": processor_seconds(stack) - before})
                assert len(list(elsewhere.glob("reports/*/records/*.json"))) == count
                shutil.rmtree(elsewhere)
                note("server_runs", count, count, command("runs", runs.root))
            stored = [path for path in stack.artifacts.rglob("*") if path.is_file()]
            packs = [path.stat().st_size for path in stored if path.suffix == ".zip"]
            found = {
                "database": f"PostgreSQL {stack.psql('SHOW server_version').split()[0]}, MLflow {metadata.version('mlflow')}",
                "sizes": sizes,
                "index_bytes": len(json.dumps(index.read(connect(runs.root)))),
                "artifact_bytes": sum(path.stat().st_size for path in stored),
                "packs": len(packs),
                "pack_bytes": sum(packs),
            }
        stack.server.stop()
        local = Many(Path(folder) / "local")
        for count in counts:
            note("local_ship", count, 1, {"seconds": local.grow(count)})
            for name, what in (("local_report", "report"), ("local_again", "report"), ("local_runs", "runs")):
                note(name, count, count, command(what, local.root))
            shutil.rmtree(local.root / "reports")
    grown = {name: series([(p["at"], p["work"], [p["seconds"]]) for p in rows]) for name, rows in points.items()}
    return found | {"series": {name: [p | {"excess": g["excess"]} for p, g in zip(rows, grown[name])] for name, rows in points.items()}}
