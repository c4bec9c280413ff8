"""The measured peak and its cache; the meter against a clock told by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.support.cli import run
from tests.support.world import World
from vitlab.train import distributed, machine
from vitlab.train.meter import Meter, total

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


class NoCompiler:
    """Triton's driver on a GPU machine without a C compiler: it fails when it is first used."""

    @property
    def active(self) -> object:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")


def with_triton(monkeypatch: pytest.MonkeyPatch, driver: object) -> None:
    runtime = ModuleType("triton.runtime")
    runtime.driver = driver
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)


def test_long_trainings_are_compiled_where_that_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "compiler_trouble", machine.compiler_trouble.__wrapped__)  # without its cache
    with_triton(monkeypatch, SimpleNamespace(active=SimpleNamespace(get_current_device=lambda: 0)))
    monkeypatch.setattr(machine, "compiled", lambda function: function)
    for where in (GPU, CPU):
        long = machine.COMPILE_FROM[where.type]
        assert [machine.compiles(where, steps) for steps in (long, long - 1)] == [True, False]
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "size", lambda: 2)
            assert machine.compiles(where, long) == (where == CPU)
    with_triton(monkeypatch, NoCompiler())
    long = machine.COMPILE_FROM["cuda"]
    assert machine.compiling_pays(GPU, long)
    assert not machine.compiles(GPU, long)
    assert machine.compiler_trouble(GPU) == "RuntimeError: Failed to find C compiler. Please specify via CC environment variable."
    monkeypatch.setitem(sys.modules, "triton.runtime", None)
    assert machine.compiler_trouble(GPU).startswith("ModuleNotFoundError: ")


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["", "no-such-compiler"])
def test_whether_torch_can_compile_for_this_processor_is_found_out(compiler: str, tmp_path: Path) -> None:
    if not compiler and not (compiler := shutil.which("g++") or ""):
        pytest.skip("there is no C++ compiler here")
    code = "import torch; from vitlab.train import machine; print(machine.compiler_trouble(torch.device('cpu')))"
    env = os.environ | {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}  # a cache would spare the compiler
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert (said == "\n") == (compiler != "no-such-compiler"), said


def test_the_peak_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RUNS", tmp_path / "runs")
    calls = []
    monkeypatch.setattr(machine, "matrix_product_rate", lambda where, dtype: calls.append(dtype) or 1e11)
    assert [machine.measured_peak(CPU, dtype) for dtype in ("fp32", "bf16", "fp32")] == [1e11] * 3
    assert calls == [torch.float32, torch.bfloat16]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        machine.measured_peak(CPU, "fp32")
    finally:
        torch.set_num_threads(threads)
    assert len(calls) == 3, "another number of threads has another peak"
    known = json.loads((tmp_path / "runs" / "machine.json").read_text())
    assert len(known) == 3
    for damaged in ("", "[]", '{"x": "y"}', '{"x": -1.0}'):
        (tmp_path / "runs" / "machine.json").write_text(damaged)
        assert machine.measured_peak(CPU, "fp32") == 1e11
    assert len(calls) == 7


def test_the_peak_is_a_matrix_products_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 n^3 operations in the shortest of the times seen: 4, 3 and 5 seconds by the clock, in the last of which the processor worked for 2."""
    clock = iter([10, 0, 4, 4.5, 7.5, 8, 13])  # the second that it may take, then start and end of each product
    threads = torch.get_num_threads()
    processor = iter([0, 4 * threads, 4 * threads, 7 * threads, 7 * threads, 9 * threads])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(machine.time, "process_time", lambda: next(processor))
    generator = torch.get_rng_state()
    assert machine.matrix_product_rate(CPU, torch.float32) == 2 * 2048**3 / 2
    assert torch.equal(torch.get_rng_state(), generator), "a run on a machine that is measured first has another dropout"


@pytest.mark.slow
def test_freed_memory_is_kept() -> None:
    """After a few steps, steps with large activations pay for few new pages or none; in fresh processes, since the setting is the process's."""
    if sys.platform != "linux" or machine.platform.libc_ver()[0] != "glibc":
        pytest.skip("elsewhere nothing is set")
    code = (
        "import resource, torch\nfrom vitlab.train import machine\n{call}\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256))\n"
        "x = torch.randn(9000, 256)\n"  # the hidden layer's activations: 37 MB, 9,000 pages
        "def step(): model(x).sum().backward(); model.zero_grad()\n"
        "for _ in range(10): step()\n"
        "before = faults()\n"
        "for _ in range(5): step()\n"
        "print(faults() - before)"
    )
    without_gpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", code.format(call=call)], env=without_gpu, capture_output=True, text=True, check=True
            ).stdout
        )
        for call in ("", "machine.device()")
    ]
    assert faults[0] > 5 * 15_000
    assert faults[1] < faults[0] / 3


def test_the_meter_adds_up_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("vitlab.train.meter.time.perf_counter", lambda: now)
    meter = Meter(CPU, flops_per_image=2e9, peak=1e12)
    now = 100.0  # between making it and the start nothing counts
    meter.start({"data": 1.0})
    for phase, at in (
        ("data", 101.0),
        ("forward_backward", 104.0),
        ("optimizer", 104.5),
        ("ema", 105.0),
        ("data", 106.0),
        ("evaluation", 110.0),
    ):
        now = at
        meter.lap(phase)
    row = meter.epoch(images=700)  # in 3 + 3 + 0.5 + 0.5 seconds of training
    assert row == {
        "perf/img_s": 100.0,
        "perf/tflops": 0.2,
        "perf/mfu": 20.0,
        "perf/seconds_data": 3.0,
        "perf/seconds_forward_backward": 3.0,
        "perf/seconds_optimizer": 0.5,
        "perf/seconds_ema": 0.5,
        "perf/seconds_evaluation": 4.0,
    }
    now = 111.0
    meter.lap("checkpoint")
    assert meter.read() == {"checkpoint": 1.0}
    assert total([row, row], meter.read())["data"] == 6.0
    assert total([row, row], meter.read())["checkpoint"] == 1.0


def test_what_stored_logits_spare_is_not_in_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four steps had no teacher's forward, which is half of the FLOPs; the next epoch has it all."""
    now = 0.0
    monkeypatch.setattr("vitlab.train.meter.time.perf_counter", lambda: now)
    meter = Meter(CPU, flops_per_image=2e9, peak=1e12, teacher_flops=1e9)
    for answers, read, tflops in (((True, False, True, True), 75.0, 0.125), ((False,), 0.0, 0.2)):
        for stored in answers:
            meter.answered(stored)
        now += 1.0
        meter.lap("forward_backward")
        row = meter.epoch(images=100)
        assert row["perf/teacher_logits_read"] == read
        assert row["perf/tflops"] == pytest.approx(tflops)
        assert row["perf/mfu"] == pytest.approx(100 * tflops)
    now += 1.0
    meter.lap("forward_backward")
    assert "perf/teacher_logits_read" not in meter.epoch(images=100)  # nobody was asked


def test_autocast_is_bf16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (False, True):
        monkeypatch.setattr(machine, "hardware_bf16", lambda _, has=has: has)
        with machine.autocast_for("auto", CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if has else torch.float32)
        with machine.autocast_for("fp32", CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_run_says_that_it_cannot_be_compiled(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.patch.setattr(machine, "compiling_pays", lambda where, steps: True)
    world.patch.setattr(machine, "compiler_trouble", lambda where: "no compiler")
    code, out, _ = run(capsys, *world.train("other"))
    assert code == 0
    said = "trains uncompiled, which is slower: torch cannot compile here (no compiler); install a C++ compiler (Debian and Ubuntu: g++)"
    assert said in " ".join(out.split())
