"""How pages and the terminal write numbers, seeds, devices, commits and text from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from vitlab import records
from vitlab.records import RunRecord

NONE = "–"


def pm(mean: float, half: float | None) -> str:
    """Return `81.50 ± 0.30`, or the mean alone where there is no interval."""
    return f"{mean:.2f}" if half is None else f"{mean:.2f} ± {half:.2f}"


def two(value: float | None) -> str:
    """Return the number with two decimals; `NONE` for None."""
    return NONE if value is None else f"{value:.2f}"


def signed(value: float | None, half: float | None = None) -> str:
    """Return `+0.61 ± 0.20`, with a true minus and no sign for what rounds to nothing; `NONE` for None."""
    if value is None:
        return NONE
    shown = f"{value:+.2f}".replace("-", "−")
    return (shown if shown[1:] != "0.00" else "0.00") + ("" if half is None else f" ± {half:.2f}")


def seed_count(n: int) -> str:
    """Return the number of seeds; a single one is said in words, since it has no interval."""
    return "1 seed" if n == 1 else str(n)


def claims(n: int) -> str:
    """Return `1 claim` or `14 claims`."""
    return "1 claim" if n == 1 else f"{n} claims"


def more_seeds(few: int, many: int) -> str:
    """Return `2 to 5 more seeds`, with one number where both are the same."""
    return f"{few} to {many} more seeds" if few < many else f"{few} more {'seed' if few == 1 else 'seeds'}"


def sig(value: float) -> str:
    """Return the number with three significant digits, or without decimals from a thousand on."""
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:,.0f}"


def millions(value: float) -> str:
    """Return a count in millions, without the word."""
    return sig(value / 1e6)


def duration(seconds: float) -> str:
    """Return `7.3 min`: in seconds below two minutes, in hours from one hour on."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def span(values: Sequence[float]) -> str:
    """Return `3 to 8`, or the one number that all are; "" for no values."""
    if not values:
        return ""
    low, high = min(values), max(values)
    ends = (f"{v:,.0f}" if float(v).is_integer() else f"{v:,g}" for v in dict.fromkeys((low, high)))
    return " to ".join(ends)


def seeds(runs: Iterable[RunRecord]) -> str:
    """Return `seeds 0, 1, 2`."""
    found = sorted({r.seed for r in runs})
    return ("seed " if len(found) == 1 else "seeds ") + ", ".join(map(str, found))


def devices(runs: Iterable[RunRecord]) -> str:
    """Return the devices that the runs were trained on; of a processor, which is named with its cores, also how many threads a run had."""
    found: dict[str, set[int]] = {}  # device: threads of a run, in all its processes
    for part in (part for run in runs for part in run.parts or (run,)):
        name, count = records.processor(part) or (part.device, None)
        found.setdefault(name, set()).update([count] if count else [])
    return " and ".join(f"{name}, {threads(counts)} per run" if counts else name for name, counts in sorted(found.items()))


def device(run: RunRecord) -> str:
    """Return where the run was trained, with how many threads: of a run that went on elsewhere all of that, in turn."""
    return ", then ".join(dict.fromkeys(f"{part.device}, {threads({part.threads})}" for part in run.parts or (run,)))


def threads(counts: set[int]) -> str:
    """Return `1 thread`, `1 or 2 threads`."""
    return " or ".join(map(str, sorted(counts))) + (" thread" if counts == {1} else " threads")


def commit(run: RunRecord, digits: int) -> str:
    """Return the first digits of the code's commit, and what was changed since: of a run that went on with other code both, in turn."""
    return ", then ".join(dict.fromkeys(_commit(part.git, digits) for part in run.parts or (run,)))


def _commit(git: dict[str, str], digits: int) -> str:
    dirty = f" + changes {git['dirty'][:8]}" if git.get("dirty") else ""
    return (git.get("commit") or "unknown")[:digits] + dirty


def md(value: Any) -> str:
    """Return `value` as Markdown that reads as plain text, on one line, in a table's cell as well as in a paragraph."""
    text = " ".join(str(value).split())
    text = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;"), ('"', "&quot;"), ("@", "&#64;"), ("://", "&#58;//")):
        text = text.replace(char, entity)
    text = re.sub(r"^([-+=])(?=[\s\-+=]|$)", r"\\\1", text)  # no list, no rule
    return re.sub(r"^(\d+)(?=[.)]\s)", r"\1\\", text)  # no numbered list
