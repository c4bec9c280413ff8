"""published.py and half.py: whose weights a set publishes, that its pages follow from what lies there, and that `predict` needs no run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.cli import run
from tests.support.pages import Page
from tests.support.pages import files as contents
from tests.support.records import THREE, digits, fake_record, fake_set
from tests.support.world import CLASSES, World
from vitlab import cli, config, records
from vitlab.errors import UserError
from vitlab.models import registry
from vitlab.records import RunRecord
from vitlab.report import publishing
from vitlab.run import half, published
from vitlab.track import read
from vitlab.train import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]


# ------------------------------------------------------------------------------------------------------- half precision


def model() -> tuple[torch.nn.Module, config.ResNet]:
    torch.manual_seed(0)
    cfg = config.ResNet(name="resnet", depth=18, width=8)
    return registry.build(cfg, 10), cfg


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
    monkeypatch.setattr(registry, "build", lambda *_: pytest.fail("memory was taken"))
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


# ------------------------------------------------------------------------------------------------------------ which run


def measured(experiment: str, validation: float, seed: int = 0, **changes: object) -> RunRecord:
    run = fake_record(experiment, seed, **changes)
    return run.model_copy(update={"metrics": run.metrics | {"validation_top1": validation}})


def test_the_best_by_validation_that_teaches_no_other() -> None:
    teacher, plain = measured("resnet50", 99.0), measured("03_hybrid_r18", 98.0)
    weak, strong = measured("05_kd_r18", 90.0, top1=97.0), measured("06_kd_r50_class_attention", 91.0, seed=1, top1=80.0)
    varied = measured("05_kd_r18", 97.0, variant="optim.lr=1", fingerprint="feedbeef0001")
    assert strong.metrics["test_top1"] < weak.metrics["test_top1"]
    assert published.best([teacher, plain, weak, strong, varied]) == plain
    assert published.best([teacher, weak, strong, varied]) == strong
    assert published.best([varied, plain, teacher]) == teacher, "it teaches none of these"
    assert published.best([varied]) is None
    tied = measured("06_kd_r50_class_attention", 91.0, seed=2)
    assert published.best([strong, tied]) == published.best([tied, strong])


# -------------------------------------------------------------------------------------------------------------- reports


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[read.FinishedRun]:
    """What MLflow holds: a set's runs, without any run's weights."""
    found: list[read.FinishedRun] = []
    for record in fake_set(1, THREE):
        add(found, tmp_path, record)
    monkeypatch.setattr(read, "finished_runs", lambda root: list(found))
    monkeypatch.setattr(read, "download", no_download)
    return found


def no_download(root: Path, run_id: str, artifact: str, dst: Path) -> Path:
    raise UserError(f"MLflow run {run_id} has no {artifact}")


def add(found: list[read.FinishedRun], tmp_path: Path, run: RunRecord, **weights: torch.Tensor) -> Path:
    folder = tmp_path / "store" / f"{run.experiment}-{run.seed}"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    records.write(run, folder / "record.json")
    if weights:
        save_file(weights, folder / "weights.safetensors")
    found[:] = [r for r in found if r.run_id != folder.name] + [read.FinishedRun(folder.name, "", {}, tmp_path, folder)]
    return folder


def test_a_report_publishes_them_keeps_them_and_takes_them_away(
    tmp_path: Path, store: list[read.FinishedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    out_dir, said = tmp_path / "results" / "full-cifar10", []
    folder = out_dir / published.FOLDER
    student, teacher = folder / "06_kd_r50_class_attention.safetensors", folder / "resnet50.safetensors"

    def compiled() -> str:
        publishing.publish(tmp_path, tmp_path / "results", said.append)
        page, html = (out_dir / "README.md").read_text(encoding="utf-8"), Page(out_dir / "report.html")
        linked = {
            attrs.get("href", "").removeprefix("weights/") for tag, attrs in html.tags if tag == "a" and "weights/" in attrs.get("href", "")
        }
        assert linked == {path.name for path in folder.glob("*")}
        assert all(f"](weights/{name})" in page for name in linked)
        before = contents(out_dir)
        publishing.rebuild(out_dir)  # from what lies there
        assert contents(out_dir) == before
        return page

    assert "half precision" not in compiled()
    first = measured("06_kd_r50_class_attention", 96.0)
    add(store, tmp_path, first, w=torch.tensor([1 / 3, 2.0]))
    add(store, tmp_path, measured("resnet50", 97.0), w=torch.ones(2))
    page = compiled()
    assert f"takes the best of them by validation top-1, teachers aside: “{first.title}”, seed 0, 96.00 %." in page
    assert torch.equal(load_file(student)["w"], torch.tensor([1 / 3, 2.0]).half())
    assert torch.equal(load_file(teacher)["w"], torch.ones(2).half())
    assert sorted(folder.iterdir()) == [student, teacher]

    stamp = student.stat().st_mtime_ns
    assert compiled() == page
    monkeypatch.setattr(read, "finished_runs", lambda root: [])  # as on another machine
    assert compiled() == page
    assert student.stat().st_mtime_ns == stamp

    monkeypatch.setattr(read, "finished_runs", lambda root: list(store))
    with_one_seed = student.read_bytes()
    add(store, tmp_path, measured("06_kd_r50_class_attention", 96.1, seed=1), w=torch.ones(3))  # better: the first seed's stay
    compiled()
    assert student.read_bytes() == with_one_seed
    again = add(store, tmp_path, first.model_copy(update={"finished": "2025-01-02T00:00:00+00:00"}))  # the same run anew, other weights
    (again / "weights.safetensors").unlink()
    compiled()
    assert sorted(folder.iterdir()) == [teacher]
    assert said == []
    add(store, tmp_path, first.model_copy(update={"finished": "2025-01-03T00:00:00+00:00"}), w=torch.tensor([1e6]))
    compiled()
    assert sorted(folder.iterdir()) == [teacher]
    assert said == [
        "full-cifar10: weights that are not published (06_kd_r50_class_attention, seed 0: w holds 1e+06, beyond half "
        "precision's largest number, 65504; train the run anew with --force, or move its folder away); the report is whole without them"
    ]


def test_a_damaged_file_is_written_anew_or_goes(tmp_path: Path, store: list[read.FinishedRun]) -> None:
    run = measured("06_kd_r50_class_attention", 96.0)
    folder = add(store, tmp_path, run, w=torch.arange(99.0))
    out_dir = tmp_path / "results" / "full-cifar10"
    path = out_dir / published.FOLDER / "06_kd_r50_class_attention.safetensors"
    publishing.publish(tmp_path, tmp_path / "results")
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    publishing.publish(tmp_path, tmp_path / "results")
    assert path.read_bytes() == good
    path.write_bytes(good[:-1])
    (folder / "weights.safetensors").unlink()
    publishing.publish(tmp_path, tmp_path / "results")
    assert not path.exists()


# ----------------------------------------------------------------------------------------------------------- prediction


def of(record: RunRecord, validation: float, test: float, data: str = "cifar10", **changes: object) -> RunRecord:
    """The record with these numbers, in percent, of CIFAR-10 with classes named otherwise, or of another data set."""
    classes = tuple(f"class {c}" for c in CLASSES) if data == "cifar10" else CLASSES
    facts = record.dataset.model_copy(update={"name": data, "classes": classes})
    metrics = record.metrics | {"validation_top1": validation, "test_top1": test}
    return record.model_copy(update={"dataset": facts, "metrics": metrics} | changes)


def publish(w: World, record: RunRecord) -> Path:
    out_dir = w.root / "results" / f"{record.profile}-{record.dataset.name}"
    (out_dir / "records").mkdir(parents=True)
    records.write(record, out_dir / "records" / records.file_name(record))
    published.write(out_dir, record, w.folder("tiny") / "weights.safetensors")
    return out_dir / published.FOLDER / f"{record.experiment}.safetensors"


def trained(w: World, record: RunRecord) -> Path:
    folder = w.root / "runs" / f"{record.profile}-{record.dataset.name}" / record.experiment / f"{record.fingerprint}-s{record.seed}"
    folder.mkdir(parents=True)
    shutil.copy(w.folder("tiny") / "weights.safetensors", folder)
    records.write(record, folder / "record.json")
    return folder


def said(record: RunRecord, origin: str) -> str:
    which = f"{record.title} ({record.experiment}, profile {record.profile}, seed {record.seed}), trained on {record.dataset.name}"
    metrics = record.metrics
    return f"{which}, validation top-1 {metrics['validation_top1']:.2f} %, test top-1 {metrics['test_top1']:.2f} %: {origin}"


def test_the_best_on_cifar10_predicts_own_or_published(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """By validation top-1, whatever the test split says; a teacher only where it teaches none, and digits only where they are asked."""
    base, image = records.read(world.folder("tiny") / "record.json"), world.image()
    weights = world.folder("tiny") / "weights.safetensors"
    weights.write_bytes(half.to_half(weights.read_bytes(), "tiny"))  # so that own and published weights are the same numbers
    taught = fake_record("05_kd_r18").teacher

    def answer(*flags: object) -> list[str]:
        code, out, err = run(capsys, "predict", image, *flags, main=cli.main)
        assert (code, err) == (0, ""), err
        return out.splitlines()

    def refused(*flags: object) -> str:
        code, out, err = run(capsys, "predict", image, *flags, main=cli.main)
        assert (code, out) == (2, "")
        return err

    first, guesses = answer("--data", "digits")
    assert first == said(base, f"own run {world.folder('tiny')}")
    assert answer("--run", world.folder("tiny")) == [first, guesses]
    named = guesses.replace(": ", ": class ").replace(", ", ", class ")  # the classes of `of`
    for part in ("no model for the data set cifar10", "05_kd_r18 --data cifar10'", "--run FOLDER", "--data digits"):
        assert part in refused()
    assert "--data pets'" in refused("--data", "pets")
    assert "not allowed with argument --data" in refused("--data", "digits", "--run", world.folder("tiny"))

    varied = of(base, 99.0, 99.0, variant="optim.lr=1", teacher=taught, fingerprint="feedbeef0001")
    assert trained(world, varied).is_dir()
    assert "variations by --set aside" in refused()
    teacher = of(base, 90.0, 90.0, experiment="resnet18", title="A teacher")
    folder = trained(world, teacher)
    assert answer() == [said(teacher, f"own run {folder}"), named]
    steps = (  # each beats the ones before it by the validation split, with a test top-1 that is lower
        (publish, of(base, 40.0, 45.0, profile="ledger", title="A student", teacher=taught), "published weights"),
        (trained, of(base, 41.0, 44.0, profile="quick", title="Own student", teacher=taught, seed=3), "own run"),
        (publish, of(base, 42.0, 43.0, profile="overnight", title="A night's", teacher=taught), "published weights"),
    )
    for leave, record, kind in steps:
        path = leave(world, record)
        assert answer() == [said(record, f"{kind} {path}"), named]
    worse = of(base, 20.0, 99.0, profile="full", teacher=taught)
    publish(world, worse), trained(world, worse)
    assert answer() == [said(record, f"{kind} {path}"), named]
    folder = trained(world, record)  # the very run that is published
    assert answer() == [said(record, f"own run {folder}"), named]

    pets = of(base, 30.0, 30.0, data="pets", dataset=base.dataset.model_copy(update={"name": "pets", "mean": (-9.0, 0.5, 9.0)}))
    path = publish(world, pets)
    first, others = answer("--data", world.root / "somewhere" / "pets")
    assert first == said(pets, f"published weights {path}")
    assert others != guesses, "classes, mean and deviation are its record's"
    assert answer("--data", "digits")[1] == guesses


def test_verify_finds_published_weights_that_are_not_the_runs(tmp_path: Path) -> None:
    """The page names what is published, so it does not follow from a file of another run, or a damaged one."""
    from vitlab.report import verify

    worse, best = measured("05_kd_r18", 90.0), measured("06_kd_r50_class_attention", 96.0)
    path = tmp_path / "full-cifar10" / published.FOLDER / "06_kd_r50_class_attention.safetensors"
    out_dir = tmp_path / "full-cifar10"
    save_file({"w": torch.arange(9.0)}, tmp_path / "weights")
    published.write(out_dir, best, tmp_path / "weights")
    publishing.build([worse, best], out_dir, {})
    publishing.index(tmp_path)

    def wrong() -> list[str]:
        return [d for path, page in verify.expected_pages(tmp_path).items() if (d := verify.difference(path, page))]

    good = path.read_bytes()
    assert wrong() == []
    for damage in (
        lambda: published.write(out_dir, best.model_copy(update={"finished": "2025-01-02"}), tmp_path / "weights"),
        lambda: path.write_bytes(good[:-9]),
    ):
        damage()
        (found,) = wrong()
        assert "Weights in half precision" in found
        path.write_bytes(good)
    assert wrong() == []


def test_sets_of_other_data_and_smaller_profiles_come_later() -> None:
    runs = [digits(fake_record()), *(fake_record(profile=p) for p in ("a-strangers", "quick", "ledger", "overnight", "full"))]
    ranked = sorted(runs, key=lambda r: records.rank(r, f"{r.profile}-{r.dataset.name}"))
    assert [(r.profile, r.dataset.name) for r in ranked] == [
        *((p, "cifar10") for p in ("full", "overnight", "ledger", "quick", "a-strangers")),
        ("full", "digits"),
    ]
