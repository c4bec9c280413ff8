"""The page about one run on several processes (`SCALING.md`), made from scaling.json alone."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.page import Spread


def page(results: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    idle = results["load"] < 0.5
    lines = [
        "# One run on several processes",
        "",
        f"Measured on {results['date']} with `python -m benchmarks.scaling`, in {results['seconds'] / 60:.1f} minutes, on {results['device']}; "
        f"{results['precision']}, the sizes of the profile `{results['profile']}`, on the digits. Medians over rounds, with the least and the "
        "largest in brackets; raw numbers in [scaling.json](scaling.json).",
        "",
        *([] if idle else [f"**Not on an idle machine:** other work had a load of {results['load']:.1f} when it began.", ""]),
        "| experiment | processes | threads of each | images/s | times one process with as many threads | share of one thread's rate, by thread |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in results["experiments"].items():
        alone = median(rows[0]["img_s"])
        for row in rows:
            rate, count = Spread.of(row["img_s"]), row["processes"] * row["threads"]
            like = [other for other in rows if other["processes"] == 1 and other["threads"] == count and row["processes"] > 1]
            times = f"{rate.median / median(like[0]['img_s']):.2f}" if like else ""
            share = f"{100 * rate.median / alone / count:.0f} %" if count > 1 else ""
            lines.append(f"| {name} | {row['processes']} | {row['threads']} | {rate.text(0)} | {times} | {share} |")
    lines += [
        "",
        "- The global batch is the same in all rows: each process trains on its part. The rate is the trainer's own (`perf/img_s`), of all epochs but",
        f"  the first of {results['epochs']}.",
        "- The experiment with batch norms exchanges their statistics in every layer, forward and backward.",
        "- The share is what is called scaling efficiency. Two of a machine's threads may be of one core, and then cannot reach 100 %.",
        "",
    ]
    return "\n".join(lines)
