"""published.py and half.py: whose weights a set publishes, that its pages follow from what lies there, and that `predict` needs no run."""

from __future__ import annotations

import lzma
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input.build import CLASSES, World
from safetensors.torch import load_file, save_file
from test_cli import run
from test_report import THREE, Page, digits, fake_record, fake_set
from test_report import files as contents

from vitlab import checkpoint, cli, config, half, models, published, records, report, tracking
from vitlab.errors import UserError
from vitlab.records import RunRecord

pytestmark = pytest.mark.usefixtures("undrawn")


# ------------------------------------------------------------------------------------------------------- half precision


def model() -> tuple[torch.nn.Module, config.ResNet]:
    torch.manual_seed(0)
    cfg = config.ResNet(name="resnet", depth=18, width=8)
    return models.build(cfg, 10), cfg


def test_weights_in_half_precision_load_as_single(tmp_path: Path) -> None:
    built, cfg = model()
    save_file({name: tensor.contiguous() for name, tensor in built.state_dict().items()}, tmp_path / "single")
    (tmp_path / "half").write_bytes(half.to_half((tmp_path / "single").read_bytes(), "a run"))
    assert (tmp_path / "half").stat().st_size < 0.65 * (tmp_path / "single").stat().st_size
    loaded = checkpoint.load_model(tmp_path / "half", cfg, 10).state_dict()
    for name, tensor in built.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.half().float() if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize("precision", [torch.float16, torch.float32])
def test_a_file_with_fewer_numbers_than_the_model_costs_no_memory(
    precision: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, cfg = model()
    params = sum(p.numel() for p in built.parameters())
    monkeypatch.setattr(models, "build", lambda *_: pytest.fail("memory was taken"))
    save_file({"w": torch.zeros(params - 1, dtype=precision)}, tmp_path / "w")
    with pytest.raises(UserError, match=f"w: cannot be used as the run's weights \\({params - 1:,} numbers, the model has {params:,}"):
        checkpoint.load_model(tmp_path / "w", cfg, 10)


def test_infinities_that_were_there_are_no_loss(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([float("inf"), float("nan"), 1e-9, -65_519.0])}, tmp_path / "w")
    (tmp_path / "h").write_bytes(half.to_half((tmp_path / "w").read_bytes(), "a run"))
    found = load_file(tmp_path / "h")["a"]
    assert torch.equal(found.nan_to_num(7, 8, 9), torch.tensor([8, 7, 0, -65_504], dtype=torch.float16))
    with pytest.raises(UserError, match="a run: cannot be used as the run's weights"):
        half.to_half(b"no weights", "a run")


def test_what_is_compressed_comes_back_and_costs_no_more_than_allowed() -> None:
    content = np.random.default_rng(0).normal(size=50_000).astype(np.float16).tobytes()
    packed = half.compress(content)
    assert lzma.decompress(packed) == content == half.decompress(packed, len(content))
    assert len(packed) < 0.95 * len(content)
    with pytest.raises(UserError, match="more than 99,999 bytes"):
        half.decompress(packed, len(content) - 1)
    with pytest.raises(UserError, match="cut off"):
        half.decompress(packed[:-1], len(content))
    with pytest.raises(UserError, match="something follows its end"):
        half.decompress(packed + b"x", len(content))
    bomb = half.compress(bytes(30_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="more than 1,000 bytes"):
            half.decompress(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    greedy = lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2 * half.MEMORY}])
    with pytest.raises(UserError, match="Memory usage limit"):
        half.decompress(greedy, 1000)


# ------------------------------------------------------------------------------------------------------------ which run


def measured(experiment: str, validation: float, seed: int = 0, **changes: object) -> RunRecord:
    run = fake_record(experiment, seed, **changes)
    return run.model_copy(update={"metrics": run.metrics | {"validation_top1": validation}})


def test_the_best_student_by_validation() -> None:
    teacher, plain = measured("resnet50", 99.0), measured("03_hybrid_r18", 98.0)
    weak, strong = measured("05_kd_r18", 90.0, top1=97.0), measured("06_kd_r50_class_attention", 91.0, seed=1, top1=80.0)
    varied = measured("05_kd_r18", 97.0, variant="optim.lr=1", fingerprint="feedbeef0001")
    assert strong.metrics["test_top1"] < weak.metrics["test_top1"]
    assert published.best([teacher, plain, weak, strong, varied]) == strong
    assert published.best([varied, plain, teacher]) == teacher
    assert published.best([varied]) is None
    tied = measured("06_kd_r50_class_attention", 91.0, seed=2)
    assert published.best([strong, tied]) == published.best([tied, strong])


# -------------------------------------------------------------------------------------------------------------- reports


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tracking.FinishedRun]:
    """What MLflow holds: a set's runs, without any run's weights."""
    found: list[tracking.FinishedRun] = []
    for record in fake_set(1, THREE):
        add(found, tmp_path, record)
    monkeypatch.setattr(tracking, "finished_runs", lambda root: list(found))
    monkeypatch.setattr(tracking, "download", no_download)
    return found


def no_download(root: Path, run_id: str, artifact: str, dst: Path) -> Path:
    raise UserError(f"MLflow run {run_id} has no {artifact}")


def add(found: list[tracking.FinishedRun], tmp_path: Path, run: RunRecord, **weights: torch.Tensor) -> Path:
    folder = tmp_path / "store" / f"{run.experiment}-{run.seed}"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    records.write(run, folder / "record.json")
    if weights:
        save_file(weights, folder / "weights.safetensors")
    found[:] = [r for r in found if r.run_id != folder.name] + [tracking.FinishedRun(folder.name, "", {}, tmp_path, folder)]
    return folder


def test_a_report_publishes_them_keeps_them_and_takes_them_away(
    tmp_path: Path, store: list[tracking.FinishedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    out_dir, said = tmp_path / "results" / "full-cifar10", []
    path = out_dir / published.FILE

    def compiled() -> str:
        report.publish(tmp_path, tmp_path / "results", said.append)
        page, html = (out_dir / "README.md").read_text(encoding="utf-8"), Page(out_dir / "report.html")
        linked = published.FILE in {attrs.get("href") for tag, attrs in html.tags if tag == "a"}
        assert linked == path.exists() == (f"({published.FILE})" in page)
        before = contents(out_dir)
        report.rebuild(out_dir)  # from what lies there
        assert contents(out_dir) == before
        return page

    assert "half precision" not in compiled()
    first = measured("06_kd_r50_class_attention", 96.0)
    add(store, tmp_path, first, w=torch.tensor([1 / 3, 2.0]))
    page = compiled()
    assert "in half precision, of the best student by validation top-1 (96.00 %)" in page
    assert f"“{first.title}”, seed 0: [{published.FILE}]({published.FILE}), [record](records/06_kd_r50_class_attention-s0.json)." in page
    assert lzma.decompress(path.read_bytes()).endswith(torch.tensor([1 / 3, 2.0]).half().numpy().tobytes())

    stamp = path.stat().st_mtime_ns
    assert compiled() == page
    monkeypatch.setattr(tracking, "finished_runs", lambda root: [])  # as on another machine
    assert compiled() == page
    assert path.stat().st_mtime_ns == stamp

    monkeypatch.setattr(tracking, "finished_runs", lambda root: list(store))
    again = add(store, tmp_path, first.model_copy(update={"finished": "2025-01-02T00:00:00+00:00"}))  # the same run anew, other weights
    (again / "weights.safetensors").unlink()
    assert "half precision" not in compiled()
    add(store, tmp_path, first, w=torch.ones(3))
    assert compiled() == page
    add(store, tmp_path, measured("06_kd_r50_class_attention", 96.1, seed=1))  # better, and its weights are not at hand
    assert "half precision" not in compiled()
    add(store, tmp_path, measured("06_kd_r50_class_attention", 96.2, seed=1), w=torch.tensor([1e6]))
    assert said == []
    assert "half precision" not in compiled()
    assert said == [
        "full-cifar10: its best student's weights are not published (06_kd_r50_class_attention, seed 1: w holds 1e+06, beyond half "
        "precision's largest number, 65504; train the run anew with --force, or move its folder away); the report is whole without them"
    ]


def test_a_damaged_file_is_written_anew_or_goes(tmp_path: Path, store: list[tracking.FinishedRun]) -> None:
    run = measured("06_kd_r50_class_attention", 96.0)
    folder = add(store, tmp_path, run, w=torch.arange(99.0))
    out_dir = tmp_path / "results" / "full-cifar10"
    path = out_dir / published.FILE
    report.publish(tmp_path, tmp_path / "results")
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    report.publish(tmp_path, tmp_path / "results")
    assert path.read_bytes() == good
    path.write_bytes(good[:-1])
    (folder / "weights.safetensors").unlink()
    report.publish(tmp_path, tmp_path / "results")
    assert not path.exists()


# ----------------------------------------------------------------------------------------------------------- prediction


def publish(w: World, name: str, record: RunRecord) -> Path:
    out_dir = w.root / "results" / name
    (out_dir / "records").mkdir(parents=True)
    records.write(record, out_dir / "records" / records.file_name(record))
    published.write(out_dir, record, w.folder("tiny") / "weights.safetensors")
    return out_dir


def test_without_a_run_the_published_weights_of_the_foremost_set_predict(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder, image = world.folder("tiny"), world.image()
    weights = folder / "weights.safetensors"
    weights.write_bytes(half.to_half(weights.read_bytes(), "tiny"))
    code, out, _ = run(capsys, "predict", image, main=cli.main)
    own = out.splitlines()
    assert code == 0
    of_digits = records.read(folder / "record.json")
    facts = of_digits.dataset.model_copy(update={"name": "cifar10", "classes": tuple(f"class {c}" for c in CLASSES)})
    sets = {
        "full-digits": of_digits,
        "quick-cifar10": of_digits.model_copy(update={"dataset": facts.model_copy(update={"mean": (-9.0, 0.5, 9.0)}), "profile": "quick"}),
        "ledger-cifar10": of_digits.model_copy(update={"dataset": facts, "profile": "ledger", "title": "A ledger's"}),
        "overnight-cifar10": of_digits.model_copy(update={"dataset": facts, "profile": "overnight", "title": "A night's"}),
        "full-cifar10": of_digits.model_copy(update={"dataset": facts, "title": "The reports' own"}),
    }
    out_dirs = {name: publish(world, name, record) for name, record in sets.items()}
    assert run(capsys, "predict", image, main=cli.main)[1].splitlines() == own, "a run of one's own comes first"
    shutil.rmtree(world.root / "runs")
    for name in ("full-cifar10", "overnight-cifar10", "ledger-cifar10", "quick-cifar10", "full-digits"):
        code, out, err = run(capsys, "predict", image, main=cli.main)
        assert (code, err) == (0, "")
        first, guesses = out.splitlines()
        record = sets[name]
        about = f"{record.title} (tiny, {record.profile}, {record.dataset.name}, test top-1 10.00 %)"
        assert first == f"no finished run here, so the published one, {out_dirs[name] / published.FILE}: {about}"
        wanted = own[1].replace(": ", ": class ").replace(", ", ", class ") if "cifar10" in name else own[1]
        assert (guesses == wanted) == (name != "quick-cifar10"), "classes, mean and deviation are its record's"
        (out_dirs[name] / published.FILE).unlink()


def test_verify_finds_published_weights_that_are_not_the_best_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page names the run, so it does not follow from a file of another one, or a damaged one."""
    from vitlab import verify

    worse, best = measured("05_kd_r18", 90.0), measured("06_kd_r50_class_attention", 96.0)
    out_dir = tmp_path / "full-cifar10"
    save_file({"w": torch.arange(9.0)}, tmp_path / "weights")
    published.write(out_dir, best, tmp_path / "weights")
    report.build([worse, best], out_dir, {})
    report.index(tmp_path)

    def wrong() -> list[str]:
        return [d for path, page in verify._results(tmp_path).items() if (d := verify.difference(path, page))]

    good = (out_dir / published.FILE).read_bytes()
    assert wrong() == []
    for damage in (
        lambda: published.write(out_dir, worse, tmp_path / "weights"),
        lambda: (out_dir / published.FILE).write_bytes(good[:-9]),
    ):
        damage()
        (found,) = wrong()
        assert "Weights for 'vitlab predict'" in found
        (out_dir / published.FILE).write_bytes(good)
    assert wrong() == []


def test_sets_of_other_data_and_smaller_profiles_come_later() -> None:
    runs = [digits(fake_record()), *(fake_record(profile=p) for p in ("a-strangers", "quick", "ledger", "overnight", "full"))]
    ranked = sorted(runs, key=lambda r: records.rank(r, f"{r.profile}-{r.dataset.name}"))
    assert [(r.profile, r.dataset.name) for r in ranked] == [
        *((p, "cifar10") for p in ("full", "overnight", "ledger", "quick", "a-strangers")),
        ("full", "digits"),
    ]
