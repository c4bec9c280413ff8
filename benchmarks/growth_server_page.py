"""From `growth-server.json` to GROWTH.md's section about thousands of runs, in a tracking server and in local files. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.growth_page import IDLE, excess
from benchmarks.page import Target, _table
from vitlab.track import index

RUNS = 10_000  # at which the targets hold
WANTED = {
    "server_report": 60,
    "server_again": 10,
    "server_runs": 5,
    "server_ship": 1,
    "local_report": 60,
    "local_again": 10,
    "local_runs": 5,
}
TITLES = {
    "server_report": "server: `vitlab report`, first time on a machine",
    "server_again": "server: `vitlab report`, again",
    "server_runs": "`vitlab runs`, of the folders of the machine that ships them",
    "server_ship": "server: shipping one more run",
    "local_report": "local files: `vitlab report`, first time",
    "local_again": "local files: `vitlab report`, again",
    "local_runs": "local files: `vitlab runs`",
    "local_ship": "local files: shipping one more run",
}


def targets(results: dict[str, Any]) -> list[Target]:
    """Return the targets beside what was measured."""
    found = []
    for name, most in WANTED.items():
        for point in results["series"][name]:
            if point["at"] == RUNS:
                seconds = point["seconds"]
                found.append(
                    Target(f"{TITLES[name]}, {RUNS:,} runs", f"≤ {most} s", f"{seconds:.1f} s{_processor(point)}", seconds <= most)
                )
    return found


def _processor(point: dict[str, Any]) -> str:
    return f" ({point['cpu']:.1f} s of processor time)" if "cpu" in point else ""


def section(results: dict[str, Any]) -> list[str]:
    """Return the section's lines, a function of `growth-server.json` alone."""
    lines = [
        "## Thousands of runs, in a tracking server and in local files",
        "",
        f"Measured on {results['date']} with `python -m benchmarks.growth --server`, in {results['seconds'] / 60:.1f} minutes, on "
        f"{results['device']}, {results['database']}; each number once. Raw numbers in [growth-server.json](growth-server.json).",
        "",
    ]
    if results["load"] > IDLE:
        lines += [
            f"**Not on an idle machine:** other work had a load of {results['load']:.1f} when it began. It lengthens the seconds; processor time "
            "it lengthens less.",
            "",
        ]
    lines += _table(("target", "wanted", "measured", ""), [(t.what, t.wanted, t.measured, t.verdict) for t in targets(results)])
    for name, title in TITLES.items():
        points = results["series"][name]
        heads = [f"{title}; runs", "seconds", "against work"]
        more = {"cpu": "processor seconds", "server_cpu": "of the server and its database", "memory_mb": "memory (MB)"}
        kinds = [key for key in more if key in points[0]]
        formats = {"memory_mb": "{:.0f}"}
        rows = [
            (f"{p['at']:,}", f"{p['seconds']:.2f}", excess(p), *(formats.get(key, "{:.2f}").format(p[key]) for key in kinds))
            for p in points
        ]
        lines += ["", *_table((*heads, *(more[key] for key in kinds)), rows)]
    lines += ["", "What a run takes in PostgreSQL, from the tables with the most runs:", "", *_sizes(results), "", *_how()]
    return lines


def _sizes(results: dict[str, Any]) -> list[str]:
    count, tables = max(((int(at), found) for at, found in results["sizes"].items()), key=lambda pair: pair[0])
    rows = [
        (f"`{name}`", f"{size[2] / count:.1f}", f"{size[0] / count / 1e3:.2f}", f"{size[1] / count / 1e3:.2f}")
        for name, size in sorted(tables.items(), key=lambda pair: -sum(pair[1][:2]))
    ]
    total = [sum(size[i] for size in tables.values()) / count for i in (2, 0, 1)]
    rows.append(("all", f"{total[0]:.1f}", f"{total[1] / 1e3:.2f}", f"{total[2] / 1e3:.2f}"))
    return [
        *_table((f"table, with {count:,} runs", "rows per run", "kB per run", "kB of indexes per run"), rows),
        "",
        f"Beside the database: {results['artifact_bytes'] / count / 1e3:.1f} kB of artifacts per run (records alone), of which "
        f"{results['pack_bytes'] / count / 1e3:.1f} kB are in {results['packs']:,} packs. A report asks for an index of "
        f"{results['index_bytes'] / count:.0f} bytes per run.",
    ]


def _how() -> list[str]:
    return [
        "- The server is that of `deploy/compose.yaml`, one worker, on the machine that measures; so client, server and database share its cores.",
        "- Runs are the published ones in other settings, ten seeds each, with 100 epochs of history. The first of each kind is shipped as any",
        "  run, the others are copied by SQL in MLflow's own tables, each with its own `record.json`, index entry and pack.",
        "- A first report is on a machine that has none of the runs. The second finds that nothing has changed.",
        "- The local store has no metric histories, which no command reads, but all else.",
        "- Memory is the command's own peak. Processor time is of all its threads, and of the processes of server and database while it ran.",
    ]


def paragraph(results: dict[str, Any]) -> str:
    """Return docs/scale.md's table: what was measured with the most runs, and what ten and a hundred times as many come to by proportion."""
    series, count = results["series"], max(map(int, results["sizes"]))
    tables = results["sizes"][str(count)].values()
    last = {name: points[-1] for name, points in series.items()}
    first = series["server_report"][0]
    report = last["server_report"]
    assert report["at"] == count
    grows = {key: (report[key] - first[key]) / (count - first["at"]) for key in ("cpu", "memory_mb")}  # with each run; the rest is fixed

    def row(what: str, at: int, value: Callable[[int], float], unit: str) -> tuple[str, ...]:
        return what, *(f"{value(n):,.{0 if value(n) >= 100 else 1}f} {unit}" for n in (at, 10 * at, 100 * at))

    rows = [
        row("metrics' rows", count, lambda n: results["sizes"][str(count)]["metrics"][2] / count * n / 1e6, "million"),
        row("the database, indexes included", count, lambda n: sum(size[0] + size[1] for size in tables) / count * n / 1e9, "GB"),
        row("records in the artifact store, packs included", count, lambda n: results["artifact_bytes"] / count * n / 1e9, "GB"),
        row("the index, which each report asks for", count, lambda n: results["index_bytes"] / count * n / 1e6, "MB"),
        row(f"one of its {index.SHARDS} shards, which is read before each write", count, lambda n: n / index.SHARDS, "entries"),
        row("a first report's processor time", count, lambda n: report["cpu"] + grows["cpu"] * (n - count), "s"),
        row("a report's memory", count, lambda n: (report["memory_mb"] + grows["memory_mb"] * (n - count)) / 1e3, "GB"),
    ]
    heads = ("", f"{count:,} runs, measured", f"{10 * count:,}", f"{100 * count:,}")
    return "\n".join(_table(heads, rows))
