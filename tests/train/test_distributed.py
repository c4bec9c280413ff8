"""Several processes compute what one does: gradients, batch norm, whole runs; stopped, killed and resumed, also with another number."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from tests.support.experiments import LADDER
from vitlab import config, records
from vitlab.data import augment
from vitlab.data.dataset import Dataset
from vitlab.data.rng import generator
from vitlab.errors import UserError
from vitlab.paths import EXPERIMENTS, REPOSITORY
from vitlab.run import execute
from vitlab.train import checkpoint, distributed, machine, optim
from vitlab.train.meter import Meter
from vitlab.train.objective import CrossEntropy
from vitlab.train.step import Step

BATCH, STEPS = 12, 3
COMPILED = ["06_kd_r50_class_attention", "teachers/resnet18"]  # the latter is not: its batch norms exchange in the midst of it
EVERY = [str(path.relative_to(EXPERIMENTS).with_suffix("")) for path in LADDER]

# ------------------------------------------------------------------------------------------------- one batch, two processes


def random_data() -> Dataset:
    g = generator(0, "distributed", 0, "cpu")
    images, labels = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=g), torch.arange(40) % 10
    half = torch.full((3,), 0.5)
    return Dataset("random", "", tuple("0123456789"), True, half, half / 2, images, labels, images, labels, images, labels)


def model_of(name: str) -> tuple[config.Experiment, nn.Module]:
    """The experiment at its smallest size, in float32 and without draws of the model's own."""
    path = EXPERIMENTS / f"{name}.yaml"
    sets = ["train.precision=fp32", f"train.batch_size={BATCH}"]
    if config.load(path, "quick").config.model.name == "vit":
        sets += ["model.dropout=0", "model.drop_path=0"]
    cfg = config.load(path, "quick", tuple(sets)).config
    return cfg, execute.build_model(cfg, 10, 0, torch.device("cpu"))


def gradients(name: str) -> dict[str, Tensor]:
    """Gradients of STEPS steps, added up, batch norms' statistics, and the mean of each named value.

    In float64. In float32 a sum of another order now and then switches a ReLU, or rounds a teacher's logit to another float16; a tolerance
    for that would hide mistakes as large.
    """
    cfg, model = model_of(name)
    data, objective = random_data(), CrossEntropy()
    if cfg.distill:
        teacher = execute.build_model(config.load(Path(cfg.distill.teacher), "quick").config, 10, 1, torch.device("cpu"))
        objective = execute.distillation(cfg, teacher.eval().double(), data)
    optimizer = optim.build(cfg.optim, model)
    optimizer.step = optimizer.zero_grad = lambda: None
    step = Step(cfg, data, model.train().double(), objective, optimizer, None, Meter(torch.device("cpu"), 1, 1), BATCH, STEPS)
    step.apply = lambda *args: augment.apply(*args).double()
    phase = cfg.phases[0]
    if phase.mix:  # in every batch: unmixed, an image needs nothing of the one before it
        mix = phase.mix.model_copy(update={"prob": 1.0})
        phase = phase.model_copy(update={"mix": mix})
    for number in range(STEPS):
        step(torch.randperm(40, generator=generator(0, "rows", number, "cpu"))[:BATCH], phase, number, 1e-3, 0.0)
    found = {key: p.grad for key, p in model.named_parameters()} | {key: b for key, b in model.named_buffers() if "running" in key}
    return found | {key: torch.tensor(value) for key, value in distributed.mean(step.sums).items()}


def normed(training: bool) -> tuple[Tensor, ...]:
    """A batch norm's output, the gradients and the statistics, for this process's half of a batch."""
    torch.manual_seed(0)
    norm = distributed.synchronised(nn.Sequential(nn.BatchNorm2d(5)))[0].train(training)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, wanted = (torch.randn(8, 5, 6, 6) * 3 + 100, torch.randn(8, 5, 6, 6))
    x = distributed.my_rows(x).requires_grad_()
    y = norm(x)
    (y * distributed.my_rows(wanted)).sum().backward()
    grads = [sum(distributed.every(p.grad)) for p in (norm.weight, norm.bias)]
    rows = [distributed.all_rows(part.detach(), 0) for part in (y, x.grad)]
    return *rows, *grads, norm.running_mean, norm.running_var, norm.num_batches_tracked


def everything(folder: Path) -> None:
    """In each of two processes; the first writes what came of it."""
    torch.set_num_threads(1)
    found = {name: gradients(name) for name in EVERY}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "COMPILE_FROM", {"cpu": 1})
        found |= {f"{name}, compiled": gradients(name) for name in COMPILED}
    found |= {"norm": normed(True), "norm in evaluation": normed(False)}
    scores = execute.test_logits(model_of("01_baseline_vit")[1].eval(), None, random_data(), model_of("01_baseline_vit")[0])
    found["logits"] = scores["raw"]
    found["told"] = distributed.told({"from": distributed.rank()})
    found["asked"] = [distributed.asked(None), distributed.asked(signal.SIGTERM if distributed.rank() else None)]
    if distributed.rank() == 0:
        torch.save(found, folder / "found.pt")


def joined(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.start()
    everything(folder)
    distributed.end()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(joined, (port, folder), nprocs=2)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EVERY, *(f"{name}, compiled" for name in COMPILED)])
def test_gradients_are_those_of_one_process(name: str, found: dict[str, Any]) -> None:
    alone = gradients(name.removesuffix(", compiled"))
    assert alone.keys() == found[name].keys()
    assert alone["loss"] > 0
    for key, expected in alone.items():
        difference, largest = (found[name][key] - expected).abs().max(), expected.abs().max()
        assert difference <= 1e-6 * max(largest, 0.1), f"{key}: {difference:.1e} of {largest:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_torchs_over_the_whole_batch(training: bool, found: dict[str, Any]) -> None:
    for ours, theirs in zip(found["norm" if training else "norm in evaluation"], normed(training), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # of numbers around 100


@pytest.mark.slow
def test_logits_are_computed_in_parts_and_what_one_has_all_are_told(found: dict[str, Any]) -> None:
    cfg, model = model_of("01_baseline_vit")
    torch.testing.assert_close(found["logits"], execute.test_logits(model.eval(), None, random_data(), cfg)["raw"])
    assert found["told"] == {"from": 0}
    assert found["asked"] == [None, signal.SIGTERM]


def test_a_part_has_its_images_and_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.part(12, torch.device("cpu")) is None
    monkeypatch.setattr(distributed, "size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(distributed.part(12, torch.device("cpu")).tolist())
    assert parts == [[11, 0, 1, 2, 3], [3, 4, 5, 6, 7], [7, 8, 9, 10, 11]]
    with pytest.raises(UserError, match=r"a batch of 128 images cannot be divided among 3 processes; change train.batch_size"):
        distributed.check(128)


def test_a_part_of_the_draws_augments_as_all_of_them_do() -> None:
    data, rows = random_data(), torch.tensor([7, 2, 30])
    cfg = config.Augment(crop=4, flip=True, trivial_augment=1.0, erase=0.5, color_jitter=config.ColorJitter(brightness=0.2, hue=0.1))
    drawn = augment.draw(data.train_images.shape, cfg, generator(0, "draws", 0, "cpu"), True)
    whole = augment.apply(data.train_images, drawn, data.mean, data.std)
    assert torch.equal(augment.apply(data.train_images[rows], augment.choose(drawn, rows), data.mean, data.std), whole[rows])


# ------------------------------------------------------------------------------------------------------------ whole runs

TEACHER = """\
title: Teacher
model: {name: resnet, depth: 18, width: 8}
phases: [{name: all, augment: {crop: 4}}]
optim: {name: sgd, lr: 1e-2, momentum: 0.9}
train: {epochs: 2, batch_size: 30, precision: fp32}
data: {train_limit: 100, test_limit: 40}
"""
STUDENT = """\
title: Student
model: {name: vit, dim: 8, depth: 2, heads: 1, patch_size: 16}
distill: {teacher: teacher.yaml}
phases: [{name: all, augment: {crop: 4}, mix: {mixup: 0.4, cutmix: 1.0}}]
optim: {name: adamw, lr: 1e-3}
ema: {start: 0.5, end: 0.9}
train: {epochs: 3, batch_size: 30, precision: fp32}
data: {train_limit: 100, test_limit: 40}
"""


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "teacher.yaml").write_text(TEACHER, encoding="utf-8")
    (folder / "student.yaml").write_text(STUDENT, encoding="utf-8")
    return folder


def start(root: Path, processes: int, *command: object) -> subprocess.Popen[str]:
    """runner.py under torchrun; alone for 1 process."""
    root.mkdir(exist_ok=True)
    env = os.environ | {"VITLAB_ROOT": str(root), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    line = [
        sys.executable,
        *(torchrun if processes > 1 else ()),
        REPOSITORY / "runner.py",
        *command,
        "--profile",
        "full",
        "--data",
        "digits",
    ]
    return subprocess.Popen(
        [str(part) for part in line], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=240)
    return process.returncode, out


def journal_of(root: Path, name: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in root.glob(f"runs/*/{name}/*/journal.jsonl"))


def until(process: subprocess.Popen[str], true: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if true():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    pytest.fail("nothing came of it in 100 s")


@pytest.mark.slow
def test_a_ladder_on_two_processes_is_that_of_one(tmp_path: Path, experiments: Path) -> None:
    for root, processes in (("one", 1), ("two", 2)):
        code, out = finish(start(tmp_path / root, processes, experiments))
        assert code == 0, out
    assert "2 processes train each run together" in out
    paths = sorted((tmp_path / "one").glob("runs/*/*/*/record.json"))
    assert len(paths) == 2
    for path in paths:
        one, two = records.read(path), records.read(tmp_path / "two" / path.relative_to(tmp_path / "one"))  # the same fingerprint
        assert two.device == f"{one.device}, 2 processes"
        for a, b in zip(one.history, two.history, strict=True):
            assert a.keys() == b.keys() | ({"perf/teacher_logits_read"} if one.teacher else set())
            for key in ("train/loss", "train/top1", "train/grad_norm", "validation/loss", "lr"):
                assert b[key] == pytest.approx(a[key], rel=1e-3), key
        with (
            np.load(path.with_name("predictions.npz")) as a,
            np.load(tmp_path / "two" / path.relative_to(tmp_path / "one").with_name("predictions.npz")) as b,
        ):
            assert a.files == b.files
            np.testing.assert_allclose(b["logits_raw"], a["logits_raw"], atol=2e-3)
    journal = journal_of(tmp_path / "two", "student")
    assert re.findall(r'"step": (\d+),', journal) == ["1", "2", "3"]


LONG = ("--set", "train.epochs=80", "--set", "model.dropout=0.1")


@pytest.mark.slow
def test_stopped_and_killed_ones_go_on_also_with_another_number(tmp_path: Path, experiments: Path) -> None:
    """To the same bits with the same number of processes, whose draws of dropout are theirs; else from the same step on."""
    student, root = experiments / "student.yaml", tmp_path / "stopped"
    student.write_text(STUDENT.replace("distill: {teacher: teacher.yaml}\n", ""), encoding="utf-8")
    whole = start(tmp_path / "whole", 2, student, *LONG)
    process = start(root, 2, student, *LONG)
    until(process, lambda: '"step": 5,' in journal_of(root, "student"))
    process.send_signal(signal.SIGTERM)  # torchrun passes it on
    _, out = finish(process)
    assert "stopped: all that is done is saved" in out
    (folder,) = root.glob("runs/*/student/*/")
    state, damaged = checkpoint.load(folder, torch.device("cpu"))
    assert state["step"] >= 15
    assert damaged == []
    assert len(state["rng_of_others"]) == 1
    assert not torch.equal(state["rng"][0], state["rng_of_others"][0][0])

    code, out = finish(start(root, 2, student, *LONG))
    assert code == 0, out
    assert finish(whole)[0] == 0
    (expected,) = (tmp_path / "whole").glob("runs/*/student/*/")
    for name in ("weights.safetensors", "predictions.npz"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_with_a_message_and_one_alone_goes_on(rank: int, tmp_path: Path, experiments: Path) -> None:
    student, root = experiments / "student.yaml", tmp_path / "killed"
    student.write_text(STUDENT.replace("distill: {teacher: teacher.yaml}\n", ""), encoding="utf-8")
    process = start(root, 2, student, *LONG)
    until(process, lambda: '"step": 5,' in journal_of(root, "student"))
    children = psutil.Process(process.pid).children()
    (one,) = [child for child in children if child.environ().get("RANK") == str(rank)]
    one.kill()
    code, out = finish(process)
    assert code == 1, out
    assert "Signal 9 (SIGKILL)" in out  # torchrun's own summary
    if rank == 1:
        assert "another process of this run has ended. The same command goes on from the last checkpoint" in out
    if rank == 1:
        code, out = finish(start(root, 1, student, *LONG))
        assert code == 0, out
        steps = re.findall(r'"step": (\d+),', journal_of(root, "student"))
        assert [int(step) for step in steps] == list(range(1, 81)), "each epoch once"


@pytest.mark.slow
def test_mistakes_are_told_once(tmp_path: Path, experiments: Path) -> None:
    code, out = finish(start(tmp_path / "root", 2, experiments / "teacher.yaml", "--set", "train.batch_size=31"))
    assert code == 1, out  # torchrun's
    assert out.count("error: a batch of 31 images cannot be divided among 2 processes") == 1
    assert "exitcode  : 2" in out
