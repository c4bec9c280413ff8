"""One folder to carry: a run's weights in another format, with its configuration, preprocessing, labels, record and model card."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.numpy import load as parse_safetensors
from torch import Tensor

from vitlab import config, files, records
from vitlab.data import dataset, sources
from vitlab.data.augment import normalize
from vitlab.data.rng import generator
from vitlab.errors import UserError
from vitlab.export import card, library
from vitlab.records import RunRecord
from vitlab.run import half, predict, published
from vitlab.run.predict import Candidate

FORMATS = {  # name -> the weights' file, and the packages that making it needs
    "safetensors": (published.WEIGHTS, ()),  # named as a run's, so that what reads a run reads this
    "onnx": ("model.onnx", ("onnx", "onnxscript", "onnxruntime")),
    "huggingface": ("model.safetensors", ("huggingface_hub",)),
}
DRAWN = 64  # images, where the test split is not at hand
BATCH = 250


def export(folder: Path, to: str, out: Path | None, halved: bool, data_dir: Path, tell: Callable[[str], None]) -> Path:
    """Export the finished run, or the published weights, in `folder` to the format `to`; return the folder written.

    out: by default below exported/. halved: half precision. data_dir: where a data set may lie; nothing is downloaded. `tell` is called
    with what was checked. Raises UserError for no such run, a package that is missing, and an `out` that holds other files.
    """
    weights, packages = FORMATS[to]
    need(to, *packages)
    chosen = predict.at(folder)
    record = chosen.record
    out = out or Path("exported") / f"{Path(records.file_name(record)).stem}-{record.profile}-{record.dataset.name}-{to}{'-half' * halved}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.writing(out), tempfile.TemporaryDirectory(prefix=".export-", dir=out.absolute().parent) as tmp:
        _fill(Path(tmp), chosen, seeds(folder, record), to, halved, data_dir, tell)
        made = sorted(Path(tmp).iterdir())
        if out.is_dir() and (others := sorted({path.name for path in out.iterdir()} - {path.name for path in made})):
            raise UserError(f"{out}: holds {others[0]}, which this export does not write; name a folder of its own with --out")
        out.mkdir(exist_ok=True)
        for path in made:
            os.replace(path, out / path.name)
    assert (out / weights).is_file()
    return out


def need(to: str, *packages: str) -> None:
    """Raise UserError, with what to install, unless all these packages are there."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(f"{to}: needs {' and '.join(missing)}; install with: pip install -c constraints.txt -e '.[export]'")


def seeds(folder: Path, record: RunRecord) -> list[RunRecord]:
    """Return the finished runs of the record's configuration that lie beside it, by seed: in a set's records, or in runs/."""
    published_set = folder.parent.parent if folder.is_file() else folder
    if (published_set / "records").is_dir():
        found = records.read_all(published_set)
    else:
        beside = folder.resolve().parent.glob(f"{record.fingerprint}-s*/record.json")
        found = [records.read(path) for path in sorted(beside)]
    same = {run.seed: run for run in found if run.fingerprint == record.fingerprint and run.experiment == record.experiment}
    return [run for _, run in sorted((same | {record.seed: record}).items())]


def _fill(
    folder: Path, chosen: Candidate, runs: list[RunRecord], to: str, halved: bool, data_dir: Path, tell: Callable[[str], None]
) -> None:
    record, path, checked = chosen.record, folder / FORMATS[to][0], []
    transform = library.Transform(record.dataset.mean, record.dataset.std)
    model, content = chosen.load(), chosen.weights()
    stored_half = any(tensor.dtype == "float16" for tensor in parse_safetensors(content).values())
    if to == "onnx":
        from vitlab.export import onnx_model  # late: it needs packages that the other formats do not

        onnx_model.write(model, path, halved)
        images, labels, what = _images(record, data_dir)
        batches = (normalize(part, torch.tensor(transform.mean), torch.tensor(transform.std)) for part in images.split(BATCH))
        checked = [
            card.agreed(onnx_model.compare(path, model, batches, labels, halved), what),
            card.speed(onnx_model.timed(path, model), onnx_model.conditions()),
        ]
        tell(checked[0])
    elif to == "huggingface":
        from vitlab.export import hub

        files.write(folder / "README.md", "")  # or the Hub's package writes a card of its own
        hub.save(model, record.config["model"], record.dataset, folder)
        if halved or stored_half:
            files.write(path, half.to_half(path.read_bytes(), record.experiment, {"format": "pt"}))
    else:
        files.write(path, half.to_half(content, record.experiment, {"format": "pt"}) if halved and not stored_half else content)
    precision = "half precision" if halved or (stored_half and to != "onnx") else "single precision"
    if stored_half and to == "onnx" and not halved:
        precision += " (made from published weights, which are in half)"
    for name, text in card.sidecars(record, library.preprocessing(transform)).items():
        files.write(folder / name, text)
    records.write(record, folder / "record.json")
    files.write(folder / "README.md", card.render(record, runs, to, precision, path, checked))


def _images(record: RunRecord, data_dir: Path) -> tuple[Tensor, Tensor | None, str]:
    """Return the images, uint8, to compare on, their labels, and what they are: the run's test split where it is at hand, else noise."""
    name = record.dataset.name
    noise = torch.randint(256, (DRAWN, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "export", 0, "cpu"))
    drawn = noise, None, f"{DRAWN} images of random pixels, since the test split of {name} is not at hand"
    if name not in sources.SOURCES:  # a folder of images: where it lies is not in the record
        return drawn
    try:
        source = sources.resolve(name, data_dir, record.profile, download=False)
        if source.digest != record.dataset.digest:
            return drawn
        found = dataset.load(source, config.Data(**record.config["data"]), "cpu")
    except UserError:
        return drawn
    if len(found.test_labels) != record.dataset.test:
        return drawn
    return found.test_images, found.test_labels, f"the {record.dataset.test:,} images of {name}'s test split"
