"""vitlab export and vitlab.load: what arrives elsewhere is what was trained, and the card says what the record says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config

import vitlab
from tests.support.cli import run
from tests.support.world import World
from vitlab import cli, config, records
from vitlab.data import sources
from vitlab.data.augment import normalize
from vitlab.data.dataset import decode
from vitlab.errors import UserError
from vitlab.export import bundle, hub, onnx_model
from vitlab.models import registry
from vitlab.paths import REPOSITORY
from vitlab.run import predict

PUBLISHED = REPOSITORY / "results" / "overnight-cifar10"


def export(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    return run(capsys, "export", *argv, main=cli.main)


def in_a_new_process(folder: Path, code: str) -> str:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(folder: Path) -> str:
    """The code in the folder's card."""
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]


def noise(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------------------------------------------------------- as a library


def test_importing_vitlab_is_light() -> None:
    out = in_a_new_process(REPOSITORY, "import sys, vitlab; vitlab.load; print({'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules))")
    assert out.strip() == "set()"


def test_two_lines_give_the_published_model_and_its_transform(tmp_path: Path) -> None:
    model, transform = vitlab.load(PUBLISHED)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    record = predict.at(PUBLISHED).record
    batch = torch.from_numpy(decode(tmp_path / "x.png")[None])
    with Image.open(tmp_path / "x.png") as image:
        taken = transform(image)
    assert torch.equal(taken, normalize(batch, torch.tensor(record.dataset.mean), torch.tensor(record.dataset.std))[0])
    opaque = Image.fromarray(pixels[..., :3])
    theirs = create_transform(**resolve_data_config(model=model))(opaque)
    torch.testing.assert_close(transform(opaque), theirs, rtol=0, atol=1e-6)
    assert (model.num_classes, model.classes, model.training) == (10, record.dataset.classes, False)
    weights = load_file(PUBLISHED / "weights" / f"{record.experiment}.safetensors")
    assert all(torch.equal(tensor, weights[name].to(tensor.dtype)) for name, tensor in model.state_dict().items())
    assert model(taken.unsqueeze(0)).shape == (1, 10)


# ------------------------------------------------------------------------------------------------------------- formats


def test_safetensors_come_back_bit_for_bit(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world.folder("tiny")
    code, out, err = export(capsys, folder, "--to", "safetensors", "--out", "there")
    assert (code, err) == (0, "")
    there = world.root / "there"
    assert {line.partition(":")[0] for line in out.splitlines()} == {f"there/{path.name}" for path in there.iterdir()}
    assert (there / "weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()
    record = records.read(folder / "record.json")
    assert records.read(there / "record.json") == record
    assert json.loads((there / "labels.json").read_text()) == list(record.dataset.classes)
    (mine, _), (theirs, transform) = vitlab.load(folder), vitlab.load(there)
    assert torch.equal(mine(noise(5)), theirs(noise(5)))
    assert (transform.mean, transform.std) == (record.dataset.mean, record.dataset.std)
    assert run(capsys, "predict", world.image(), "--run", there, main=cli.main)[0] == 0
    assert export(capsys, folder, "--to", "safetensors", "--out", "there")[0] == 0, "again, into the same folder"


def test_half_precision_and_what_is_in_half_already(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(capsys, world.folder("tiny"), "--to", "safetensors", "--half")[0] == 0
    (there,) = (world.root / "exported").iterdir()
    assert there.name == "tiny-s0-full-digits-safetensors-half"
    single, half = load_file(world.folder("tiny") / "weights.safetensors"), load_file(there / "weights.safetensors")
    assert all(torch.equal(half[name], tensor.half()) for name, tensor in single.items())
    assert "half precision" in (there / "README.md").read_text()
    assert export(capsys, PUBLISHED, "--to", "safetensors", "--out", "published")[0] == 0
    best = PUBLISHED / "weights" / f"{predict.at(PUBLISHED).record.experiment}.safetensors"
    assert (world.root / "published" / "weights.safetensors").read_bytes() == best.read_bytes()
    assert export(capsys, best, "--to", "safetensors", "--out", "named")[0] == 0
    assert (world.root / "named" / "README.md").read_bytes() == (world.root / "published" / "README.md").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("half", [(), ("--half",)], ids=["single", "half"])
def test_a_new_process_loads_what_is_for_hugging_face(half: tuple[str, ...], world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = export(capsys, world.folder("tiny"), "--to", "huggingface", *half, "--out", "there")
    assert code == 0, err
    there = world.root / "there"
    model, transform = vitlab.load(world.folder("tiny"))
    if half:
        model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    image = world.image("there/cat.png")
    torch.save(noise(3), there / "noise.pt")
    saved = "import torch; torch.save(model(torch.load('noise.pt')), 'logits.pt')"
    with torch.inference_mode():
        said = in_a_new_process(there, example(there) + saved).splitlines()[-1]
        assert torch.equal(torch.load(there / "logits.pt"), model(noise(3)))
        assert said == model.classes[model(transform(Image.open(image))[None]).argmax()]


def test_the_hub_reads_the_cards_metadata(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(capsys, PUBLISHED, "--to", "huggingface", "--out", "there")[0] == 0
    card = ModelCard.load(world.root / "there" / "README.md")
    record = predict.at(PUBLISHED).record
    (found,) = card.data.eval_results
    assert (found.metric_type, found.metric_value, found.dataset_name) == ("accuracy", round(record.metrics["test_top1"], 4), "cifar10")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("mit", "vitlab", "image-classification")


def test_push_uploads_the_folder_and_says_why_it_cannot(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: dict[str, Any] = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, exist_ok: f"https://hub/{repo_id}")
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **how: uploaded.update(how))
    argv = (world.folder("tiny"), "--to", "huggingface", "--out", "there", "--push", "me/tiny")
    code, out, _ = export(capsys, *argv)
    assert (code, out.splitlines()[-1]) == (0, "https://hub/me/tiny")
    assert (uploaded["repo_id"], uploaded["folder_path"].name) == ("me/tiny", "there")

    def down(self: HfApi, **how: object) -> None:
        raise OSError("401 Client Error: Unauthorized\nmore")

    monkeypatch.setattr(HfApi, "upload_folder", down)
    code, _, err = export(capsys, *argv)
    assert code == 2
    assert "me/tiny: not pushed (401 Client Error: Unauthorized); the folder there is whole" in err
    assert "hf auth login" in err


def test_a_hub_that_cannot_be_reached_is_no_bug(world: World) -> None:
    world.patch.setattr(hub, "HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9", token="hf_none"))  # nobody listens there
    with pytest.raises(UserError, match=r"me/tiny: not pushed \(.*refused\); the folder .* is whole"):
        hub.push(world.root, "me/tiny")


@pytest.mark.slow
def test_onnx_of_a_run_whose_test_split_is_at_hand(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads((world.folder("tiny") / "record.json").read_text())["dataset"]
    world.change("tiny", dataset=facts | {"digest": sources.DIGITS_DIGEST})
    code, out, err = export(capsys, world.folder("tiny"), "--to", "onnx", "--out", "there")
    assert code == 0, err
    assert "on the 20 images of digits's test split" in out
    there = world.root / "there"
    card = (there / "README.md").read_text(encoding="utf-8")
    assert out.splitlines()[0] in card
    assert re.search(r"\| Batch \| onnxruntime \| PyTorch \|\n.*\n\| 1 \| [\d.]+ \| [\d.]+ \|\n\| 64 \| [\d.]+ \| [\d.]+ \|", card)
    model, transform = vitlab.load(world.folder("tiny"))
    image = world.image("there/cat.png")
    in_a_new_process(there, "import sys; sys.modules['torch'] = None\n" + example(there) + "np.save('logits.npy', logits)")
    with torch.inference_mode():
        np.testing.assert_allclose(np.load(there / "logits.npy"), model(transform(Image.open(image))[None]).numpy(), atol=1e-5)
    assert str(REPOSITORY).encode() not in (there / "model.onnx").read_bytes(), "where the code lies is nobody's business"


MODELS = {
    "class attention": config.ViT(name="vit", dim=16, depth=2, heads=2, patch_size=8, class_attention=1, distill_token=True, position="relative"),
    "convolutional stem": config.ViT(name="vit", dim=16, depth=1, heads=2, stem="resnet18", stem_stages=2, stem_width=8),
    "torch's encoder": config.ViT(name="vit", dim=16, depth=1, heads=2, patch_size=8, encoder="torch"),
    "resnet": config.ResNet(name="resnet", depth=18, width=8),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_as_onnx_takes_any_batch(name: str, tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    model = registry.build(MODELS[name], 10).eval()
    onnx_model.write(model, tmp_path / "m.onnx", half=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    with torch.inference_mode():
        for batch in (1, 3):
            (found,) = session.run(None, {"images": noise(batch).numpy()})
            np.testing.assert_allclose(found, model(noise(batch)).numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_file_of_another_model_is_found_out(tmp_path: Path) -> None:
    cfg = config.ResNet(name="resnet", depth=18, width=8)
    torch.manual_seed(0)
    model, other = (registry.build(cfg, 10).eval() for _ in range(2))
    onnx_model.write(model, tmp_path / "m.onnx", half=True)
    images = noise(4).split(2)
    found = onnx_model.compare(tmp_path / "m.onnx", model, images, None, half=True)
    assert found.images == 4
    assert 0 < found.difference < 0.01
    with pytest.raises(UserError, match="does not fit half precision: a logit differs by"):
        onnx_model.compare(tmp_path / "m.onnx", other, images, None, half=True)
    with pytest.raises(AssertionError):
        onnx_model.compare(tmp_path / "m.onnx", other, images, None, half=False)


# ---------------------------------------------------------------------------------------------------------------- card


def test_the_cards_numbers_are_the_records(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = REPOSITORY / "results" / "ledger-cifar10"
    record = predict.at(ledger).record
    assert export(capsys, ledger, "--to", "safetensors", "--out", "there")[0] == 0
    card = (world.root / "there" / "README.md").read_text(encoding="utf-8")
    for key, name in (("test_top1", "Test top-1 (%)"), ("test_top5", "Test top-5 (%)"), ("validation_top1", "Validation top-1 (%)")):
        assert f"\n| {name} | {record.metrics[key]:.2f} |\n" in card
    for of in record.per_class:
        assert f"\n| {of.name} | {of.precision:.2f} | {of.recall:.2f} | {of.f1:.2f} | 1,000 |\n" in card
    assert f"{record.dataset.train:,} images to train" in card
    assert f"test top-1 {record.teacher.test_top1:.2f} %" in card
    assert "One seed" in card
    cff = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"title = \{(.*)\}", card)[1] == re.search(r'title: "(.*)"', cff)[1]


def test_several_seeds_give_an_interval(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world.folder("tiny")
    again = folder.with_name(folder.name.replace("-s0", "-s1"))
    shutil.copytree(folder, again)
    values = json.loads((again / "record.json").read_text())
    values |= {"seed": 1, "metrics": values["metrics"] | {"test_top1": 20.0}}
    (again / "record.json").write_text(json.dumps(values))
    assert export(capsys, folder, "--to", "safetensors", "--out", "there")[0] == 0
    card = (world.root / "there" / "README.md").read_text(encoding="utf-8")
    assert "\n| | these weights | mean ± 95 % CI, seeds 0, 1 |\n" in card
    assert "\n| Test top-1 (%) | 10.00 | 15.00 ± 63.53 |\n" in card  # t(0.975, 1) = 12.706; times 5
    assert "One seed" not in card


def test_text_from_elsewhere_stays_text(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.change("tiny", title="<img src=x> | [a](b)")
    assert export(capsys, world.folder("tiny"), "--to", "safetensors", "--out", "there")[0] == 0
    assert (world.root / "there" / "README.md").read_text().startswith("# &lt;img src=x&gt; \\| \\[a\\](b)\n")


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("folder", "more", "expected"),
    [
        ("nowhere", (), "nowhere: no such folder; expected a finished run's, as below runs/, or a published set's"),
        ("other", (), "this run is not finished; the command that started it goes on"),
        ("weights/notes.txt", (), "weights/notes.txt: neither a finished run (it has no record.json) nor a published set"),
        ("runs", (), "runs: neither a finished run (it has no record.json) nor a published set with weights (no weights/)"),
        ("tiny", ("--out", "set"), "set: holds a.txt, which this export does not write; name a folder of its own with --out"),
        ("tiny", ("--push", "me/tiny"), "--push: uploads to the Hugging Face Hub; add --to huggingface"),
        ("tiny", ("--to", "tflite"), "invalid choice"),
    ],
)
def test_mistakes_are_told(folder: str, more: tuple[str, ...], expected: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.write("set/a.txt", "mine")
    world.write("weights/notes.txt", "not weights")
    at = world.folder(folder) if folder in ("tiny", "other") else folder
    code, _, err = export(capsys, at, "--to", "safetensors", *more)
    assert (code, expected in err) == (2, True), err
    assert "Traceback" not in err
    assert {path.name for path in (world.root / "set").iterdir()} == {"a.txt"}


def test_one_line_says_what_to_install(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name.startswith("onnx") else find(name, *rest))
    code, _, err = export(capsys, world.folder("tiny"), "--to", "onnx")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "onnx: needs onnx and onnxscript and onnxruntime; install with: pip install" in err
    monkeypatch.undo()
    assert all(importlib.util.find_spec(name) for _, packages in bundle.FORMATS.values() for name in packages)


def test_the_folder_that_one_is_in_is_a_place_too(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder, here = world.folder("tiny"), world.root / "model"
    here.mkdir()
    world.patch.chdir(here)
    assert run(capsys, "export", folder, "--to", "safetensors", "--out", ".", main=cli.main)[0] == 0
    assert any(path.suffix == ".safetensors" for path in here.iterdir())
