"""Which models answer: those of a published set, or of runs of one's own."""

from __future__ import annotations

from pathlib import Path

from vitlab import records
from vitlab.errors import UserError
from vitlab.report import rungs
from vitlab.run import predict, published
from vitlab.run.predict import Candidate


def models(folder: Path) -> list[Candidate]:
    """Return the models in `folder` in the ladder's order, teachers last: of a published set, of one run, or of the runs below it.

    Of each experiment's runs the newest configuration's with the lowest seed is taken, variations by --set aside. Raises UserError where
    there is none, or where the runs are of several data sets or profiles.
    """
    if found := predict.published_in(folder):
        return found
    if (folder / "record.json").exists() or not (paths := sorted(folder.rglob("record.json"))):
        return [predict.at(folder)]
    own = [predict.own(path.parent) for path in paths]
    if len(sets := {f"{c.record.profile}-{c.record.dataset.name}" for c in own}) > 1:
        raise UserError(f"{folder}: holds runs of several sets ({', '.join(sorted(sets))}); name the folder of one")
    kept, _ = rungs.newest(c.record for c in own)
    return [next(c for c in own if c.record is record) for record in published.chosen(kept)] or own[:1]


def largest(results: Path) -> Path:
    """Return the published CIFAR-10 set with most models; of equal ones that of the larger profile. Raises UserError where there is none."""
    sets = {folder: runs for folder, runs in published.sets(results).items() if runs[0].dataset.name == "cifar10"}
    if not sets:
        raise UserError(f"{results}: no published CIFAR-10 set with weights; name a folder of finished runs: vitlab demo runs/quick-digits")
    return min(sets, key=lambda folder: (-len(predict.published_in(folder)), records.rank(sets[folder][0], folder.name)))
