"""From records to pages: records, charts, summary.csv, README.md and a self-contained report.html for each set, and an index of the sets.

A set is all runs of one profile on one data set. set_page.py and claims_page.py make what its pages say, charts.py and forest.py draw. Everything but
the pictures that show images is made from the records alone, and the same records give the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from vitlab import files, records
from vitlab.claims import ledger
from vitlab.errors import UserError
from vitlab.figures.grids import PICTURES as IMAGE_PICTURES
from vitlab.figures.run import DRAWN, run_figures
from vitlab.records import RunRecord
from vitlab.report import blocks, charts, claims_page, forest, inline, set_page, stamp, tables
from vitlab.report.rungs import Rung, ladder, marked, newest, picture_folder, variants
from vitlab.report.words import md
from vitlab.run import published
from vitlab.track import ledgers, read, registry

TEMPLATES = Path(__file__).resolve().parent / "templates"
SUMMARY = "summary.csv"  # the ladder's numbers, unrounded
LEFT_OUT = "left_out.json"  # beside the records: runs that were measured and are not shown
WRITERS = 16  # threads that write records: each waits for the disk, and the disk serves many together

Stored = dict[tuple[str, ...], read.FinishedRun]  # run -> where MLflow has it


# ------------------------------------------------------------------------------------------------------------ building


def _nowhere(run: RunRecord) -> None:
    """Return None: a run's predictions are not available."""


def build(
    runs: Sequence[RunRecord],
    out_dir: Path,
    pictures: Mapping[tuple[str, int], Sequence[Path]],
    predictions: ledger.Predictions = _nowhere,
    written: Mapping[tuple[str, ...], Path] = MappingProxyType({}),
    champions: Container[tuple[str, ...]] = (),
    earlier: Sequence[dict[str, Any]] = (),
) -> ledger.Book | None:
    """Write a set's records, claims.json, charts, summary.csv, README.md and report.html into `out_dir`; return the claims as judged.

    `runs` is the whole set: records and pictures of earlier builds that are not in it are removed. `pictures` gives, for a run
    `(experiment, seed)`, the pictures that it left, which are copied: those that show images cannot be made from the record, and of the others those
    are drawn anew that were drawn from another record or by other code. `predictions` gives the path of a run's predictions.npz, if it is
    available; `written` the record that a run left, which is copied: writing it anew takes five times as long; `champions` which are marked.
    Of several configurations of one experiment the one finished last is taken, and the report says how many runs were left out, those among
    them that an `earlier` build left out, as it noted them.

    Returns None where no run measures a claim; an earlier claims.json is then left as it is. Raises UserError for no runs, for runs of more
    than one profile or data set, and for damaged claims.
    """
    _check(runs, out_dir)
    kept, left_out = newest(runs)
    folder = out_dir / "records"
    folder.mkdir(parents=True, exist_ok=True)
    names = {records.file_name(run): run for run in kept}
    for stale in set(folder.glob("*.json")) - {folder / name for name in names}:
        stale.unlink()

    def keep(named: tuple[str, RunRecord]) -> None:
        name, run = named
        if (folder / name).exists() and records.read(folder / name) == run:  # writing, and waiting for the disk, takes ten times as long
            return
        if (left := written.get(_identity(run))) is not None:
            files.write(folder / name, left.read_bytes())
        else:
            records.write(run, folder / name)

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(keep, names.items()))
    entries = [_noted(run) for run in left_out]
    entries += [entry for entry in earlier if entry not in entries and entry not in map(_noted, kept)]
    (out_dir / LEFT_OUT).unlink(missing_ok=True)
    if entries:
        files.write(out_dir / LEFT_OUT, json.dumps(entries, indent=1) + "\n")
    for run in (rung.runs[0] for rung in ladder(kept)):
        for picture in pictures.get((run.experiment, run.seed), ()):
            target = out_dir / "figures" / picture_folder(run)
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, target / picture.name)
    return rebuild(out_dir, predictions, champions)


def rebuild(out_dir: Path, predictions: ledger.Predictions = _nowhere, champions: Container[tuple[str, ...]] = ()) -> ledger.Book | None:
    """Draw and write everything anew from `out_dir`/records and the claims.json there; return what `build` does.

    Existing pictures that show images are kept, and so are published weights of runs that are still there. Raises UserError as `build` does.
    """
    runs = records.read_all(out_dir)
    _check(runs, out_dir)
    book = ledger.build(runs, out_dir, predictions)
    rungs = marked(ladder(runs), champions)
    drawn = out_dir / "figures"
    drawn.mkdir(exist_ok=True)
    wanted = {picture_folder(rung.runs[0]) for rung in rungs}
    for stale in drawn.iterdir():
        if stale.is_dir() and re.fullmatch(r".+-s\d+-[0-9a-f]+", stale.name) and stale.name not in wanted:
            shutil.rmtree(stale)
    for stale in drawn.glob(f"{forest.NAME}-*.svg"):
        stale.unlink()
    if rungs:  # a set may have variations alone
        _draw(rungs, drawn)
    if book is not None:
        forest.draw(book, drawn)
    left_out = _read_left_out(out_dir / LEFT_OUT)
    page = set_page.page(rungs, marked(variants(runs), champions), left_out, out_dir) | {
        "claims": claims_page.section(book, runs) if book is not None else None,
        "weights": set_page.weights(published.keep_current(out_dir, runs), out_dir),
    }
    (out_dir / SUMMARY).unlink(missing_ok=True)
    if page["summary"] is not None:
        files.write(out_dir / SUMMARY, tables.csv(page["summary"].frame))
    _write(out_dir / "README.md", _markdown().get_template("set.md.j2").render(page))
    held = {"css": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")), "picture": lambda p: inline.picture(out_dir / p)}
    held["drawing"] = lambda name: inline.chart(drawn / f"{name}-light.svg", drawn / f"{name}-dark.svg")
    _write(out_dir / "report.html", _html().get_template("report.html.j2").render(page | held))
    return book


def _noted(run: RunRecord) -> dict[str, Any]:
    """Return how a run that is left out is noted."""
    return {"experiment": run.experiment, "variant": run.variant, "fingerprint": run.fingerprint, "seed": run.seed}


def _read_left_out(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path}: not readable ({e}); restore it, or delete it: the page then names no runs that were left out") from None


def _draw(rungs: list[Rung], drawn: Path) -> None:
    """Draw the set's charts and each rung's pictures."""
    charts.set_figures(rungs, drawn)
    for record in (rung.runs[0] for rung in rungs):
        run_figures(record, drawn / picture_folder(record))


def index(results_dir: Path) -> None:
    """Write `results_dir`/README.md: the best set's summary and headline chart, and a link to every set.

    Sets on CIFAR-10, which the claims are about, come before others; among them the larger profile comes first. Raises UserError where no
    set has records.
    """
    sets = {p.parent.name: records.read_all(p.parent) for p in sorted(results_dir.glob("*/records"))}
    sets = {name: runs for name, runs in sets.items() if runs}
    if not sets:
        raise UserError(f"{results_dir}: no set with records in it; train and build a report first")
    order = sorted(sets, key=lambda name: records.rank(sets[name][0], name))
    best_set = order[0]
    page = _summary(sets[best_set], results_dir / best_set)
    books = {name: ledger.read(results_dir / name / ledger.FILE) for name in order if (results_dir / name / ledger.FILE).is_file()}
    page["across"] = claims_page.across(books)
    page |= {"sets": set_page.every_set({name: sets[name] for name in order}), "best": best_set, "best_href": quote(best_set)}
    _write(results_dir / "README.md", _markdown().get_template("index.md.j2").render(page))


def _summary(runs: list[RunRecord], folder: Path) -> dict[str, Any]:
    """Return what a page says of the set in `folder` without showing all of it."""
    book = ledger.read(folder / ledger.FILE) if (folder / ledger.FILE).is_file() else None
    return set_page.page(ladder(runs), variants(runs), [], folder) | {"claims": "" if book is None else ledger.said(book)}


def own(root: Path, reports_dir: Path, tell: Callable[[str], None] = lambda text: None) -> list[Path]:
    """Build the sets of the finished runs in the MLflow store of `root`, and of these alone, then the index; return the pages written.

    A ledger is shipped to MLflow with its runs; where that fails, `tell` is called with the reason, and the report stands. Where nothing had
    to be told, a stamp says from what the report was compiled (see stamp.py). Raises UserError for no runs.
    """
    return _compile(root, reports_dir, tell, publishing=False)


def publish(root: Path, results_dir: Path, tell: Callable[[str], None] = lambda text: None) -> list[Path]:
    """Build as `own` does, with the runs published before; add the weights of each experiment's first seed, and fill the blocks of README.md and docs/.

    What was published before comes from the records in `results_dir`, so results of several machines come together. Without any new run
    everything is rebuilt as it was. Returns the pages written; raises UserError where there is nothing to publish.
    """
    written = [(page, blocks.read(page)) for page in blocks.pages(root)]
    pages = _compile(root, results_dir, tell, publishing=True)
    for page, text in written:
        if (filled := fill(text, results_dir)) != text:
            files.write(page, filled)
            pages.append(page)
    return pages


def _compile(root: Path, results_dir: Path, tell: Callable[[str], None], publishing: bool) -> list[Path]:
    busy = functools.cache(lambda holder: tell(f"{results_dir} is being written by {files.printable(holder)}; waiting"))  # told once
    pages, told = [], []

    def say(text: str) -> None:
        told.append(text)
        tell(text)

    finished = read.finished_runs(root)
    if not finished and not (publishing and any(results_dir.glob("*/records/*.json"))):  # before anything is written
        raise UserError("no finished runs to report; train some first, or ship them with 'vitlab sync'")
    with files.held(results_dir / ".lock", busy), tempfile.TemporaryDirectory() as tmp:
        files.remove_temporaries(results_dir)
        stamp.remove(results_dir)
        compiled_from = None if publishing else stamp.sources(root, finished)  # as of now: what changes meanwhile is seen next time
        champions = set() if publishing else registry.champions(root)  # what is published follows from the records alone
        # set -> run -> record; read only now, as another process may just have published
        published_in = sorted(results_dir.glob("*/records")) if publishing else []
        sets = {folder.parent.name: {_identity(r): r for r in records.read_all(folder.parent)} for folder in published_in}
        stored: dict[str, Stored] = {}
        paths: dict[tuple[str, ...], Path] = {}
        copies = results_dir.glob("*/records/*.json")
        found = read.fetch_records(finished, copies, Path(tmp))
        for run, record, path in zip(finished, records.read_many(found), found, strict=True):
            name, identity = f"{record.profile}-{record.dataset.name}", _identity(record)
            newer = sets.setdefault(name, {}).get(identity)
            if newer is not None and newer.finished > record.finished:  # trained again elsewhere
                continue
            sets[name][identity] = record
            stored.setdefault(name, {})[identity] = run
            paths[(name, *identity)] = path
        for name, runs in sorted(sets.items()):
            if runs:
                out_dir, at_hand = results_dir / name, stored.get(name, {})
                if publishing:
                    for trouble in _publish_weights(list(runs.values()), out_dir, at_hand, Path(tmp)):
                        say(f"{name}: weights that are not published ({trouble}); the report is whole without them")
                written = {identity: paths[(name, *identity)] for identity in at_hand}
                # what is published may come from several stores, and each knows only what was trained beside it
                earlier = _read_left_out(out_dir / LEFT_OUT) if publishing else []
                book = _build(list(runs.values()), out_dir, at_hand, written, Path(tmp), champions, earlier)
                pages += [out_dir / "README.md", out_dir / "report.html"]
                if book is None and (out_dir / ledger.FILE).is_file():
                    say(f"{name}: no run measures a claim any more; {ledger.FILE} is left as it is")
                if at_hand and book is not None and (trouble := ledgers.ship_ledger(root, out_dir / ledger.FILE)):
                    say(f"{name}: the ledger has not reached MLflow ({trouble}); the report is whole, and the next one tries again")
        index(results_dir)
        if not told:  # what was told is told, and what failed tried, by the next report again
            stamp.write(root, results_dir, compiled_from)
    return [*pages, results_dir / "README.md"]


def fill(text: str, results_dir: Path) -> str:
    """Return `text`, a page written by hand, with its blocks about published sets made anew from their records.

    `<!-- results: SET -->` is the set's table, `<!-- findings: SET -->` its scale and what was found. Raises UserError for a set that has
    no records in `results_dir`.
    """

    def runs_of(name: str) -> list[RunRecord]:
        runs = records.read_all(results_dir / name)
        _check(runs, results_dir / name)
        return runs

    def table(name: str) -> str:
        return _tidy(_markdown().get_template("table.md.j2").render(table=set_page.opening(ladder(runs_of(name)))))

    def findings(name: str) -> str:
        return _tidy(_markdown().get_template("findings.md.j2").render(_summary(runs_of(name), results_dir / name)))

    return blocks.fill(blocks.fill(text, "results", table), "findings", findings)


def _build(
    runs: list[RunRecord],
    out_dir: Path,
    stored: Stored,
    written: Mapping[tuple[str, ...], Path],
    tmp: Path,
    champions: Container[tuple[str, ...]],
    earlier: Sequence[dict[str, Any]],
) -> ledger.Book | None:
    """Call `build` with the pictures and predictions that the MLflow store holds of the runs."""
    shown = [rung.runs[0] for rung in ladder(newest(runs)[0])]  # whose pictures are wanted
    found = {(r.experiment, r.seed): stored[_identity(r)] for r in shown if _identity(r) in stored}

    def predictions(run: RunRecord) -> Path | None:
        at = stored.get(_identity(run))
        with contextlib.suppress(UserError):  # without them a comparison image by image is left out, and nothing else
            return at and at.fetch("predictions.npz", tmp / at.run_id)

    pictures = {run: _pictures(at, tmp / at.run_id) for run, at in found.items()}
    return build(runs, out_dir, pictures, predictions, written, champions, earlier)


def _pictures(at: read.FinishedRun, tmp: Path) -> list[Path]:
    """Return the pictures that the run left; of a run on another machine only those that cannot be drawn here, since the others are decoded."""
    folder = at.fetch("figures", tmp)
    return [folder / name for name in (*IMAGE_PICTURES, *(DRAWN if at.folder is not None else ())) if (folder / name).is_file()]


def _publish_weights(runs: list[RunRecord], out_dir: Path, stored: Stored, tmp: Path) -> list[str]:
    """Publish the chosen runs' weights that the MLflow store holds. Returns why others cannot be published."""
    troubles = []
    for run in published.chosen(newest(runs)[0]):
        if (at := stored.get(_identity(run))) is None:
            continue
        with contextlib.suppress(UserError):  # as with predictions: without them the report is made all the same
            weights = at.fetch(published.WEIGHTS, tmp / at.run_id)
            try:
                published.write(out_dir, run, weights)
            except UserError as e:
                troubles.append(str(e))
    return troubles


def _identity(run: RunRecord) -> tuple[str, ...]:
    return run.experiment, run.variant, run.fingerprint, str(run.seed)


def _check(runs: Sequence[RunRecord], where: Path) -> None:
    if not runs:
        raise UserError(f"{where}: no finished runs to report; train some first")
    sets = sorted({f"{r.profile}-{r.dataset.name}" for r in runs})
    if len(sets) > 1:
        raise UserError(f"{where}: a report is of one profile and one data set, got {', '.join(sets)}; build one for each")


# ------------------------------------------------------------------------------------------------------------- templates


def _environment(finalize: Callable[[Any], Any] | None, autoescape: bool) -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=autoescape, finalize=finalize, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def _html() -> Environment:
    env = _environment(None, autoescape=True)
    env.tests["link"] = lambda cell: isinstance(cell, tables.Link)
    return env


def _markdown() -> Environment:
    env = _environment(lambda value: value if isinstance(value, Markup) else md(value), autoescape=False)
    env.tests["link"] = lambda cell: isinstance(cell, tables.Link)
    env.filters["html"] = lambda value: escape(" ".join(str(value).split()))  # within an HTML element Markdown is not read
    return env


def _write(path: Path, text: str) -> None:
    files.write(path, _tidy(text))


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip() + "\n"
