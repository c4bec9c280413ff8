"""A published run, made a finished one of this checkout: `vitlab restore`. So a published teacher teaches without being trained anew."""

from __future__ import annotations

from pathlib import Path

from vitlab import config, files, records
from vitlab.config.places import shown
from vitlab.data import dataset, sources
from vitlab.errors import UserError
from vitlab.records import RunRecord
from vitlab.run import plan, predict, published
from vitlab.run.plan import Run
from vitlab.train import evaluate, machine


def restore(weights: Path, runs_dir: Path, data_dir: Path) -> tuple[Run, float]:
    """Lay the run whose published weights are in the file `weights` into `runs_dir`; return it, and its top-1 on the test split, in percent.

    Its record is the published one, its weights are in half precision, and its predictions, and this top-1, are computed from them. It has no
    journal, so nothing of it is shipped to MLflow. Raises UserError for what is no such file, for a run of an earlier recipe, and for one
    that is there already or has begun.
    """
    if not weights.is_file() or weights.parent.name != published.FOLDER:
        raise UserError(
            f"{weights}: no published weights; expected a file of them, such as results/overnight-cifar10/weights/resnet18.safetensors"
        )
    found = predict.at(weights)
    run = _planned(found.record, weights, runs_dir, data_dir)

    def busy(holder: str) -> None:
        raise UserError(f"{run.folder}: this run is being trained by {files.printable(holder)}")

    with files.held(run.lock, busy):
        if run.folder.exists():
            state = "is finished here already" if run.finished else "has begun here: its command goes on from there, or delete the folder"
            raise UserError(f"{run.folder}: this run {state}")
        cfg = run.resolved.config
        data = dataset.load(run.source, cfg.data, machine.device())
        model = found.load().to(data.test_images.device)
        logits = evaluate.logits(model, data.test_images, data.mean, data.std, cfg.train.eval_batch_size)  # (heads, N, C)
        run.folder.mkdir(parents=True)
        files.write(run.folder / "config.yaml", config.to_yaml(cfg))
        files.write(run.folder / published.WEIGHTS, found.weights())
        kind = "ema" if cfg.ema else "raw"
        evaluate.write_predictions(run.folder / "predictions.npz", {kind: logits}, data.test_labels, model.head_names, data.classes)
        records.write(found.record, run.folder / "record.json")  # last: its presence says that the run is finished
    return run, evaluate.accuracy(logits.mean(0), data.test_labels)["top1"]


def _planned(record: RunRecord, weights: Path, runs_dir: Path, data_dir: Path) -> Run:
    """Return the record's run as a plan has it today. Raises UserError where a plan has it no more."""
    names = config.own_names()
    if record.experiment not in names:
        raise UserError(f"{weights}: of '{record.experiment}', which is not among vitlab's own experiments: nothing would learn from it")
    source = sources.resolve(record.dataset.name, data_dir, record.profile)
    *_, run = plan.make([Path(names[record.experiment])], record.profile, source, [record.seed], (), runs_dir)
    if run.fingerprint != record.fingerprint:
        raise UserError(
            f"{weights}: of another recipe than {shown(run.resolved.path)} has now ({record.fingerprint}, not {run.fingerprint}): no student of "
            f"it would learn from these weights; train it, or take the code that trained them, commit {record.git.get('commit', 'unknown')}"
        )
    return run
