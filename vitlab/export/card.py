"""The model card of an exported folder, made from the run's record: what the model is, its numbers and its limits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vitlab.paths import CHECKOUT, REPOSITORY, SHIPPED
from vitlab.records import RunRecord
from vitlab.report import words
from vitlab.report.words import md
from vitlab.stats import mean_and_half

if TYPE_CHECKING:
    from vitlab.export.onnx_model import Agreement, Timing

HUB_DATA = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}  # their names on the Hugging Face Hub
METRICS = {
    "test_top1": "Test top-1 (%)",
    "test_top5": "Test top-5 (%)",
    "test_loss": "Test loss",
    "validation_top1": "Validation top-1 (%)",
}

USE = {
    "safetensors": """\
import vitlab
from PIL import Image

model, transform = vitlab.load(".")
logits = model(transform(Image.open("cat.png")).unsqueeze(0))
print(model.classes[logits.argmax()])
""",
    "huggingface": """\
from PIL import Image
from vitlab.export.hub import Model

model = Model.from_pretrained(".")
logits = model(model.transform(Image.open("cat.png")).unsqueeze(0))
print(model.classes[logits.argmax()])
""",
    "onnx": """\
import json
import numpy as np
import onnxruntime
from PIL import Image

how, labels = json.load(open("preprocessing.json")), json.load(open("labels.json"))
image = Image.open("cat.png").convert("RGB").resize(how["input_size"][1:], Image.Resampling.BICUBIC)
mean, std = (np.array(how[key], np.float32).reshape(3, 1, 1) for key in ("mean", "std"))
pixels = (np.asarray(image, np.float32).transpose(2, 0, 1) / 255 - mean) / std  # (3, 32, 32)
logits = onnxruntime.InferenceSession("model.onnx").run(None, {"images": pixels[None]})[0]
print(labels[logits.argmax()])
""",
}


def render(record: RunRecord, seeds: Sequence[RunRecord], to: str, precision: str, weights: Path, checked: Sequence[str] = ()) -> str:
    """Return the card as Markdown; for Hugging Face with the metadata that the Hub reads.

    seeds: the finished runs of this configuration, this one among them; weights: the file; checked: lines about what was compared.
    """
    data = record.dataset
    size = f"{weights.stat().st_size / 1e6:.2f} MB, SHA-256 `{hashlib.sha256(weights.read_bytes()).hexdigest()}`"
    facts = [
        ("Weights", f"`{weights.name}`, {precision}, {size}"),
        ("Trained as", md(f"{record.experiment} {record.variant}".strip() + f", profile {record.profile}, seed {record.seed}")),
        ("Configuration", f"`config.yaml`, fingerprint `{record.fingerprint}`"),
        ("Size", f"{words.millions(record.params)} million parameters, {words.sig(record.flops / 1e9)} GFLOPs per image, forward"),
        ("Takes", "RGB images of any size, squeezed to 32x32 (bicubic) and normalised; `preprocessing.json`"),
        ("Gives", f"logits of {len(data.classes)} classes, in the order of `labels.json`"),
        ("Finished", f"{record.finished[:10]}, code {md(words.commit(record, 12))}"),
    ]
    parts = [
        f"# {md(record.title)}",
        f"{md(_description(record))} Trained on {md(data.name)} by vitlab; every number here is from the run's `record.json`.",
        _pairs(facts),
        f"## Use\n\nIn this folder:\n\n```python\n{USE[to]}```",
        f"## Data\n\n{_data(record)}",
        f"## Recipe\n\n{_recipe(record)}",
        f"## Numbers\n\n{_numbers(record, seeds)}",
        *([] if not checked else ["## As ONNX\n\n" + "\n\n".join(checked)]),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(record, seeds)),
        "## Licence\n\nMIT, as vitlab itself. The data set has terms of its own.",
        f"## Citation\n\n```bibtex\n{_citation()}```",
    ]
    return (_metadata(record) if to == "huggingface" else "") + "\n\n".join(parts) + "\n"


def agreed(found: Agreement, what: str) -> str:
    """Return a sentence or three about how the ONNX file agrees with PyTorch on the images that `what` names."""
    equal = f"{found.images - found.other:,} of {found.images:,} predictions are equal" if found.other else "All predictions are equal"
    ties = (
        f"; to the other {found.other:,} PyTorch gives its own class a logit at most {found.margin:.2g} above that of the ONNX file's class"
        if found.other
        else ""
    )
    top1 = "" if found.top1 is None else f" The ONNX file has {found.top1:.2f} % of them right."
    return (
        f"Compared with PyTorch in single precision on {what}: the largest difference between two logits is {found.difference:.2g}. "
        f"{equal}{ties}.{top1}"
    )


def speed(timings: Sequence[Timing], conditions: str) -> str:
    """Return the table of times, and how they were taken."""
    rows = "\n".join(f"| {t.batch} | {words.sig(t.onnxruntime)} | {words.sig(t.pytorch)} |" for t in timings)
    return f"Milliseconds a batch ({md(conditions)}):\n\n| Batch | onnxruntime | PyTorch |\n|---:|---:|---:|\n{rows}"


def _pairs(facts: Sequence[tuple[str, str]]) -> str:
    return "|  |  |\n|:---|:---|\n" + "\n".join(f"| {name} | {value} |" for name, value in facts)


def _description(record: RunRecord) -> str:
    text = " ".join(str(record.config.get("description") or record.title).split())
    return text if text.endswith(".") else f"{text}."


def _data(record: RunRecord) -> str:
    data = record.dataset
    return (
        f"{md(data.name)}: {data.train:,} images to train, {data.validation:,} to validate, {data.test:,} to test; digest `{data.digest}`. "
        f"Classes: {', '.join(md(name) for name in data.classes)}."
    )


def _recipe(record: RunRecord) -> str:
    """Return the configuration's sections, without titles and claims; the teacher; and what training took."""
    wanted = ("model", "phases", "optim", "train", "ema", "distill", "data")
    shown = yaml.safe_dump({k: _given(record.config[k]) for k in wanted if record.config.get(k)}, sort_keys=False, allow_unicode=True)
    text = f"```yaml\n{shown.replace('`', chr(39))}```\n\n"
    if (teacher := record.teacher) is not None:
        text += (
            f"Teacher: {md(teacher.experiment)}, seed {teacher.seed}, test top-1 {teacher.test_top1:.2f} %; this student has "
            f"{words.signed(teacher.gain)} points, and predicts the same class on {teacher.agreement:.2f} % of the test images. "
        )
    return f"{text}Trained in {words.duration(record.train_seconds)} on {md(record.device)}, in {md(record.precision)}."


def _given(value: Any) -> Any:
    """Return a part of the configuration without what is None: not asked for."""
    if isinstance(value, dict):
        return {k: _given(v) for k, v in value.items() if v is not None}
    return [_given(v) for v in value] if isinstance(value, list) else value


def _numbers(record: RunRecord, seeds: Sequence[RunRecord]) -> str:
    several = len(seeds) > 1
    head = "| | these weights |" + (f" mean ± 95 % CI, {words.seeds(seeds)} |" if several else "")
    rows = [head, "|:---|---:|" + ("---:|" if several else "")]
    for key, name in METRICS.items():
        if key in record.metrics:
            row = f"| {name} | {record.metrics[key]:.{3 if 'loss' in key else 2}f} |"
            values = [run.metrics[key] for run in seeds if key in run.metrics]
            rows.append(row + (f" {words.pm(*mean_and_half(values))} |" if several else ""))
    classes = ["| Class | Precision | Recall | F1 | Images |", "|:---|---:|---:|---:|---:|"]
    classes += [f"| {md(c.name)} | {c.precision:.2f} | {c.recall:.2f} | {c.f1:.2f} | {c.support:,} |" for c in record.per_class]
    rule = "The test split was read once, with the last weights, and selected nothing."
    alone = "" if several else " One seed: no interval can be given."
    return "\n".join(rows) + f"\n\n{rule}{alone}\n\nOn the test split, by class (%):\n\n" + "\n".join(classes)


def _limits(record: RunRecord, seeds: Sequence[RunRecord]) -> list[str]:
    data, metrics = record.dataset, record.metrics
    weakest = min(record.per_class, key=lambda c: c.recall)
    row = record.confusion[data.classes.index(weakest.name)] if weakest.name in data.classes else ()
    wrong = {name: n for name, n in zip(data.classes, row) if name != weakest.name}
    taken = max(wrong, key=wrong.__getitem__, default="")
    limits = [
        f"It knows the {len(data.classes)} classes of {md(data.name)} and answers every picture with one of them, whatever is in it.",
        "It sees 32x32 pixels: what is small in a picture is lost.",
        f"Weakest class: {md(weakest.name)}, {weakest.recall:.2f} % of its test images right"
        + (f", most often taken for {md(taken)} ({wrong[taken]} of {weakest.support:,})." if taken and wrong[taken] else "."),
    ]
    if "test_confidence" in metrics:
        limits.append(
            f"Its confidence is no guarantee: {metrics['test_confidence']:.2f} % on average on the test images, of which "
            f"{metrics['test_top1']:.2f} % are right."
        )
    if record.profile != "full":
        limits.append(f"Trained in the profile {md(record.profile)}, which is smaller than the reports that vitlab repeats.")
    if len(seeds) == 1:
        limits.append("One seed was trained: another would give other numbers, and small differences mean nothing.")
    limits.append(
        "Measured on this data set's own test split alone; on other pictures it will do worse. Made for research, not for decisions."
    )
    return limits


def _citation() -> str:
    """Return CITATION.cff as BibTeX."""
    cff = yaml.safe_load(((REPOSITORY if CHECKOUT else SHIPPED) / "CITATION.cff").read_text(encoding="utf-8"))
    authors = " and ".join(a.get("name") or f"{a['family-names']}, {a['given-names']}" for a in cff["authors"])
    return f"@software{{vitlab,\n  author = {{{{{authors}}}}},\n  title = {{{cff['title']}}},\n  version = {{{cff['version']}}}\n}}\n"


def _metadata(record: RunRecord) -> str:
    """Return the front matter that the Hub reads: licence, tags, data set and results."""
    data = {"type": HUB_DATA.get(record.dataset.name, record.dataset.name), "name": record.dataset.name, "split": "test"}
    found = {"type": "accuracy", "name": METRICS["test_top1"], "value": round(record.metrics["test_top1"], 4)}
    values: dict[str, Any] = {
        "license": "mit",
        "library_name": "vitlab",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "vitlab", "pytorch_model_hub_mixin", "model_hub_mixin"],
        "metrics": ["accuracy"],
        "model-index": [
            {"name": record.title, "results": [{"task": {"type": "image-classification"}, "dataset": data, "metrics": [found]}]}
        ],
    }
    if record.dataset.name in HUB_DATA:
        values["datasets"] = [HUB_DATA[record.dataset.name]]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n\n"


def sidecars(record: RunRecord, preprocessing: dict[str, Any]) -> dict[str, str]:
    """Return the small files beside the weights, by name: configuration, preprocessing and labels."""
    return {
        "config.yaml": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True),
        "preprocessing.json": json.dumps(preprocessing, indent=1) + "\n",
        "labels.json": json.dumps(record.dataset.classes, indent=1, ensure_ascii=False) + "\n",
    }
