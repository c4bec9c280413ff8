"""The GPU's path without a GPU: a step that is replayed, a graph that is captured, what is compiled, and how many operators all of it has."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import signal
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only  # torch has it nowhere else

from benchmarks import gpu_check
from vitlab import config
from vitlab.config import Experiment
from vitlab.data import augment
from vitlab.data.dataset import Dataset
from vitlab.models import registry
from vitlab.models.resnet import fold_batch_norms
from vitlab.paths import EXPERIMENTS
from vitlab.track.journal import Journal
from vitlab.train import evaluate, loop, machine, optim
from vitlab.train.meter import Meter
from vitlab.train.objective import CrossEntropy, Distillation, prepare_teacher
from vitlab.train.step import WARM_UP, Step

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
LADDER = [path.stem for path in sorted(EXPERIMENTS.glob("0*.yaml"))] + [
    f"teachers/{p.stem}" for p in sorted(EXPERIMENTS.glob("teachers/*.yaml"))
]


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Tape(TorchDispatchMode):
    """Record the operators of a step, then execute them again on the same memory: all that a CUDA graph can do.

    What a step tells an operator as a number, or makes anew in memory that is not the tape's, the next one does not see.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage | None]] = {}  # what was there, as it was

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        out = func(*args, **(kwargs or {}))
        for tensor in tensors(out):
            storage = tensor.untyped_storage()
            self.before.setdefault(storage.data_ptr(), (storage, None))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def undo(self) -> None:
        """Restore what was there: a graph that is captured does not run."""
        for storage, kept in self.before.values():
            if kept is not None:
                storage.copy_(kept)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    alive: ClassVar[weakref.WeakSet[Graph]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.log.append("graph")
        self.alive.add(self)
        self.generators: list[torch.Generator] = []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        self.log.append("replay")
        self.tape.replay()


class Stream:
    """Stands for torch.cuda.Stream; what is run on it is run at once."""

    def wait_stream(self, other: Stream) -> None: ...


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: None) -> list[str]:
    """torch.cuda as far as Step needs it, on the CPU. Returns the log of what was asked of it."""
    log: list[str] = []

    @contextlib.contextmanager
    def capture(graph: Graph) -> Iterator[None]:
        log.append("capture")
        gc.collect()
        assert len(Graph.alive) == 1, "the phase before keeps its memory"
        states = [generator.get_state() for generator in (*graph.generators, torch.default_generator)]
        with Tape() as graph.tape:
            yield
        graph.tape.undo()
        for generator, state in zip((*graph.generators, torch.default_generator), states, strict=True):
            generator.set_state(state)

    @contextlib.contextmanager
    def stream(_: Stream) -> Iterator[None]:
        log.append("warm")
        yield

    class Replayed(Step):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.graphed = True

    Graph.log = log
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(loop, "Step", Replayed)
    return log


def teacher(classes: int = 4) -> nn.Module:
    """A small ResNet whose batch norms have statistics of their own."""
    torch.manual_seed(1)
    model = registry.build(config.ResNet(name="resnet", depth=18, width=8), classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def make(cfg: Experiment, data: Dataset, meter: Meter | None = None, batch: int = 16) -> Step:
    torch.manual_seed(7)
    model = registry.build(cfg.model, len(data.classes)).train()
    objective = Distillation(teacher(), 2.0, 0.5)
    ema = optim.EMA(model)
    return Step(cfg, data, model, objective, optim.build(cfg.optim, model), ema, meter or Meter(CPU, 1e9, 1e12), batch=batch, total=10)


# ---------------------------------------------------------------------------------------------------------- replaying


@pytest.mark.parametrize("phase", [0, 1], ids=["strong", "clean"])
def test_a_step_executed_again_is_the_next_step(tiny: Experiment, tiny_data: Dataset, as_on_a_gpu: None, phase: int) -> None:
    """The operators of one step, on the same memory, under other images, rate, decay and seed: to the bit what a step of its own does."""
    chosen = tiny.phases[phase]
    steps = [(torch.arange(i, 48, 3), chosen, 10 + i, 1e-2 / (i + 1), 0.5 + 0.1 * i) for i in range(3)]
    eager, taped = make(tiny, tiny_data), make(tiny, tiny_data)
    for one in (eager, taped):
        torch.manual_seed(3)  # dropout's
        one(*steps[0])
        one(*steps[0])  # by now what is made once is there
    torch.manual_seed(4)
    for step in steps[1:]:
        eager(*step)
    torch.manual_seed(4)
    with Tape() as tape:
        taped.run(chosen)
    tape.undo()
    torch.manual_seed(4)
    run, taped.run = taped.run, lambda _: tape.replay()
    for step in steps[1:]:
        taped(*step)
    taped.run = run
    for a, b in ((eager.model, taped.model), (eager.ema.model, taped.ema.model)):
        for (name, value), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(value, other), name
    assert {name: value.item() for name, value in eager.sums.items()} == {name: value.item() for name, value in taped.sums.items()}


class Silent:
    def step(self, done: int, total: int, loss: float, top1: float) -> None: ...

    def epoch(self, row: dict[str, float]) -> None: ...


class After(loop.Stop):
    """Asks to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def asked(self) -> int | None:
        self.left -= 1
        return signal.SIGINT if self.left <= 0 else None


def train(
    cfg: Experiment, data: Dataset, folder: Path, steps: int = 1_000
) -> tuple[dict[str, Tensor], list[dict[str, float]], list[float]] | None:
    """The weights and the average's, each epoch's row less its times, and the epochs with time for compiling; None where it was stopped
    after `steps`."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(7)
    model = registry.build(cfg.model, len(data.classes))
    with contextlib.closing(Journal(folder / "journal.jsonl")) as journal:
        try:
            trained = loop.train(
                cfg, data, model, Distillation(teacher(), 2.0, 0.5),
                seed=7, folder=folder, journal=journal, meter=Meter(CPU, 1e9, 1e12), bar=Silent(), stop=After(steps), part={}, covered=lambda _: None,
            )  # fmt: skip
        except loop.Interrupted:
            return None
    weights = model.state_dict() | {f"ema.{k}": v for k, v in trained.ema.model.state_dict().items()}
    rows = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in trained.history]
    return weights, rows, [row["epoch"] for row in trained.history if "perf/seconds_compile" in row]


@pytest.mark.slow
def test_a_run_of_replayed_steps_is_the_run(
    tiny: Experiment, tiny_data: Dataset, tmp_path: Path, as_on_a_gpu: None, request: pytest.FixtureRequest
) -> None:
    """8 epochs of 3 steps, the last 6 steps of another phase: replayed in one go, and stopped in either phase, equal to the bit to no graph."""
    cfg = tiny.model_copy(update={"train": tiny.train.model_copy(update={"epochs": 8})})
    eager, history, none = train(cfg, tiny_data, tmp_path / "eager")
    log = request.getfixturevalue("stand_in")
    started = ["warm"] * WARM_UP + ["graph", "capture"]
    whole, told, compiling = train(cfg, tiny_data, tmp_path / "whole")
    assert log == started + ["replay"] * (18 - WARM_UP) + started + ["replay"] * (6 - WARM_UP)
    log.clear()
    assert train(cfg, tiny_data, tmp_path / "parts", steps=7) is None
    assert train(cfg, tiny_data, tmp_path / "parts", steps=15) is None
    parts, *_ = train(cfg, tiny_data, tmp_path / "parts")
    first = started + ["replay"] * (7 - WARM_UP)
    second = started + ["replay"] * (11 - WARM_UP) + started + ["replay"]
    assert log == first + second + ["warm"] * 2
    assert told == history
    assert (none, compiling) == ([], [1, 2, 7, 8]), "a phase's first steps, and the one that is captured"
    for name, value in eager.items():
        assert torch.equal(value, whole[name]), name
        assert torch.equal(value, parts[name]), name


# ---------------------------------------------------------------------------------------------------------- compiling


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: None) -> list[str]:
    """Compiling pays, on the CPU, and costs little: a graph is run as it is. Returns a list with an entry for each graph."""
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(str(graph))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(machine, "compiles", lambda where, steps: True)
    return graphs


@pytest.mark.slow
def test_every_experiment_compiles_each_graph_once(counted: list[str], tiny_data: Dataset) -> None:
    """All of them in one process, with their teachers, all phases, and evaluation in between, which is not compiled."""
    for name in LADDER:
        cfg = config.load(EXPERIMENTS / f"{name}.yaml", "quick").config
        counted.clear()
        model = registry.build(cfg.model, 4)
        objective: CrossEntropy | Distillation = CrossEntropy()
        if cfg.distill:
            objective = Distillation(prepare_teacher(teacher(), "fp32", GPU, 10), 2.0, 0.5)
        ema = optim.EMA(model) if cfg.ema else None
        step = Step(cfg, tiny_data, model, objective, optim.build(cfg.optim, model), ema, Meter(CPU, 1e9, 1e12), batch=4, total=10)
        step.apply = machine.compiled(augment.apply)  # on a GPU alone
        for phase in (*cfg.phases, cfg.phases[0]):
            for seed in range(2):
                model.train()
                step(torch.arange(seed, seed + 4), phase, seed, 1e-3, 0.9)
            evaluate.logits(model, tiny_data.validation_images, tiny_data.mean, tiny_data.std, 8)
        augmentations = {str(phase.augment) for phase in cfg.phases}
        assert len(counted) == 1 + len(augmentations) + bool(cfg.distill), (name, len(counted))


@pytest.mark.slow
def test_compiling_too_often_is_an_error(counted: list[str]) -> None:
    """torch's default is a warning and a function that is not compiled."""
    torch.compiler.reset()
    double = machine.compiled(lambda x: 2 * x)

    def call_with_many_shapes() -> None:
        for size in range(1, 100):
            double(torch.zeros(size, 2))

    with pytest.raises(Exception, match="fullgraph=True"):
        call_with_many_shapes()
    assert 1 < len(counted) < 99


@pytest.mark.slow
def test_the_augmentation_compiles_whole_and_to_the_same_bits(as_on_a_gpu: None, tiny_data: Dataset) -> None:
    cfg = config.Augment(
        crop=4, flip=True, trivial_augment=1, erase=0.5, color_jitter=config.ColorJitter(brightness=0.4, saturation=0.4, hue=0.1)
    )
    drawn = augment.draw(tiny_data.train_images.shape, cfg, torch.Generator().manual_seed(5), mirror=True)
    given = tiny_data.train_images, drawn, tiny_data.mean, tiny_data.std
    compiled = torch.compile(augment.apply, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(*given), augment.apply(*given), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------ the GPU, faked


def faked(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    without_numbers = mode.from_tensor(tensor)
    with mode:
        return without_numbers.to(GPU)


def fake_on_a_gpu(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Give the model's parameters and buffers no numbers, and a device that need not exist."""
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(faked(p.detach(), mode)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, faked(buffer, mode))
    return model


@pytest.mark.parametrize("name", ["02_regularized_vit", "06_kd_r50_class_attention", "07_conv_stem_kd", "teachers/resnet50"])
def test_augmentation_and_forward_stay_on_a_gpu(name: str, tiny_data: Dataset) -> None:
    """With tensors that have no numbers, on a device that need not exist: an operator that mixes devices, or has no kernel there, fails. Backward needs a driver."""
    cfg = config.load(EXPERIMENTS / f"{name}.yaml", "quick").config
    images = tiny_data.train_images[:4]
    drawn = augment.draw(images.shape, cfg.phases[0].augment, torch.Generator(), mirror=True)
    mode = FakeTensorMode()
    model = fake_on_a_gpu(registry.build(cfg.model, 10).train(), mode)
    images, drawn, mean, std = tree_map_only(Tensor, lambda t: faked(t, mode), (images, drawn, tiny_data.mean, tiny_data.std))
    with mode:
        augmented = augment.apply(images, drawn, mean, std)
        heads = model.forward_heads(augmented)
        assert augmented.device == heads.device == GPU
        assert (augmented.shape, heads.shape[1:]) == ((4, 3, 32, 32), (4, 10))


@pytest.mark.parametrize("name", ["02_regularized_vit", "07_conv_stem_kd"])
def test_a_run_begun_on_a_processor_goes_on_on_a_gpu(name: str) -> None:
    """torch would restore that the optimizer was not capturable, and capturing its step then fails."""
    cfg = config.load(EXPERIMENTS / f"{name}.yaml", "quick").config
    here = registry.build(cfg.model, 10)
    saved = optim.build(cfg.optim, here)
    for p in here.parameters():
        p.grad = torch.ones_like(p)
    saved.step()
    assert not any(group["capturable"] for group in saved.param_groups)
    mode = FakeTensorMode()
    there = optim.build(cfg.optim, fake_on_a_gpu(registry.build(cfg.model, 10), mode))
    with mode:
        there.load_state_dict(tree_map_only(Tensor, mode.from_tensor, saved.state_dict()))
    assert all(group["capturable"] for group in there.param_groups)
    state = getattr(there, "adamw", there).state
    assert {kept.device for of in state.values() for kept in of.values()} == {GPU}
    back = optim.build(cfg.optim, registry.build(cfg.model, 10))
    back.load_state_dict(saved.state_dict())
    assert not any(group["capturable"] for group in back.param_groups)


# ------------------------------------------------------------------------------------------------------------ teachers


def test_a_folded_teacher_answers_the_same() -> None:
    model = teacher(10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_batch_norms(model)
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the teacher itself stays"


def test_a_teachers_weights_are_cast_once_to_what_autocast_makes_of_them() -> None:
    model = teacher(10)
    images = torch.randn(8, 3, 32, 32)
    cast = prepare_teacher(model, "bf16", GPU, 10)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast(images), fold_batch_norms(model)(images))
    for module in cast.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.dtype == torch.bfloat16
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(p.dtype == torch.float32 for p in prepare_teacher(model, "fp32", GPU, 10).parameters())
    assert prepare_teacher(model, "bf16", CPU, 10) is model


def test_a_teacher_computes_in_channels_last_on_a_gpu() -> None:
    """Though its images are not: the first convolution's weights decide."""
    seen = []
    mode = FakeTensorMode()
    model = fake_on_a_gpu(fold_batch_norms(registry.build(config.ResNet(name="resnet", depth=50, width=8), 10)), mode)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, given, out: seen.append(out.is_contiguous(memory_format=torch.channels_last)))
    with mode:
        model(torch.empty(4, 3, 32, 32, device=GPU))
    assert len(seen) == 53
    assert all(seen)


def test_cudnns_attention_is_off_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert machine.device().type == "cuda"
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]
        torch.backends.cuda.enable_cudnn_sdp(before[2])


# ----------------------------------------------------------------------------------------------------------- operators

# Operators of one step of 06 that compute (views do not), before compiling; a change that needs more of them raises its number here.
BUDGET = {"data": 310, "forward_backward": 1850, "optimizer": 20, "ema": 20}


class Laps(Meter):
    """Count operators by the step's parts."""

    counts: Counter[str]
    now = 0

    def lap(self, phase: str) -> None:
        self.counts[phase] += self.now
        self.now = 0


class Counting(TorchDispatchMode):
    def __init__(self, laps: Laps) -> None:
        super().__init__()
        self.laps = laps

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.laps.now += not func.is_view
        return func(*args, **(kwargs or {}))


def test_a_step_has_no_more_operators_than_planned(tiny_data: Dataset, as_on_a_gpu: None) -> None:
    """06's student at full depth, narrow, with a ResNet-50 for a teacher, folded; of AdamW's one kernel for all weights counts as one."""
    cfg = config.load(EXPERIMENTS / "06_kd_r50_class_attention.yaml", "full", ("model.dim=16", "model.heads=2")).config
    laps = Laps(CPU, 1e9, 1e12)
    laps.counts = Counter()
    step = make(cfg, tiny_data, laps, batch=4)
    step.objective = Distillation(fold_batch_norms(registry.build(config.ResNet(name="resnet", depth=50, width=8), 4)), 2.0, 0.5)
    step(torch.arange(4), cfg.phases[0], 1, 1e-3, 0.9)
    laps.counts.clear()
    with Counting(laps):
        step.run(cfg.phases[0])
    for part, most in BUDGET.items():
        assert laps.counts[part] <= most, f"{part}: {laps.counts[part]} operators, planned are {most}"


# ---------------------------------------------------------------------------------------------------------- make gpu-check


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments of two blocks and few channels."""
    configuration = gpu_check.Check.configuration

    def narrow(check: gpu_check.Check, path: str | Path) -> Experiment:
        cfg = configuration(check, path)
        sizes = {"width": 8} if cfg.model.name == "resnet" else {"dim": 16, "heads": 2, "depth": 2, "class_attention": 0, "stem_width": 8}
        return cfg.model_copy(update={"model": cfg.model.model_copy(update=sizes)})

    monkeypatch.setattr(gpu_check.Check, "configuration", narrow)


@pytest.mark.slow
def test_the_rehearsal_on_a_cpu_does_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    results = gpu_check.run(CPU, 60, tmp_path)
    assert results == json.loads((tmp_path / "gpu_check.json").read_text())
    parts = results["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        part.__name__: "needs a GPU" if part is gpu_check.waiting else "done" for part in gpu_check.PARTS
    }, [part.get("error") for part in parts.values()]
    assert parts["versions"]["found"]["torch"] == torch.__version__
    assert parts["versions"]["found"]["missing"] == {}
    assert all(row["finite"] for row in parts["attention"]["found"].values())
    assert parts["equality"]["found"]["apart_of_moved"] == 0
    assert all(row["minutes"] > 0 for row in parts["ladder"]["found"].values())
    text = (tmp_path / "gpu_check.txt").read_text()
    assert f"1 steps of {gpu_check.STUDENT}" in text, "the profile's table"


def test_a_part_that_fails_stops_nothing_and_none_begins_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0

    def broken(_: gpu_check.Check) -> dict[str, float]:
        """Breaks."""
        raise ZeroDivisionError("by hand")

    def long(_: gpu_check.Check) -> dict[str, float]:
        """Takes ten minutes."""
        nonlocal now
        now += 600
        return {"value": 1.25}

    def late(_: gpu_check.Check) -> dict[str, float]:
        """Never begins."""
        raise AssertionError

    monkeypatch.setattr(gpu_check.time, "perf_counter", lambda: now)
    monkeypatch.setattr(gpu_check, "PARTS", (broken, long, late))
    parts = gpu_check.run(CPU, 5, tmp_path)["parts"]
    assert [part["status"] for part in parts.values()] == ["failed", "done", "no time left"]
    assert "ZeroDivisionError: by hand" in parts["broken"]["error"]
    assert parts["long"]["found"] == {"value": 1.25}
    said = capsys.readouterr().out
    assert "long (600.0 s): done. Takes ten minutes.\n  value: 1.25" in said
