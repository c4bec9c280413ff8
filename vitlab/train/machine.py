"""The machine that a run is on: its device, memory and precision, and its measured peak rate."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from vitlab import files
from vitlab.paths import RUNS
from vitlab.train import distributed

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
COMPILE_FROM = {"cuda": 5_000, "cpu": 11_000}  # steps. On a CPU smaller runs take an hour at most, and compiling up to two minutes
COMPILER = {  # what torch needs to compile
    "cuda": "a C compiler and Python's headers (Debian and Ubuntu: gcc and python3-dev)",
    "cpu": "a C++ compiler (Debian and Ubuntu: g++)",
}


def device() -> torch.device:
    """Return the GPU where there is one, else the CPU, and set it up.

    On a GPU float32 matrix products use TF32, convolutions are chosen by timing, and cuDNN's attention is off. On a CPU glibc keeps freed
    memory.
    """
    if not torch.cuda.is_available():
        _keep_freed_memory()
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    # torch prefers it on Hopper. With one query, as in our last blocks, it has failed or given NaN gradients (pytorch #138529,
    # cudnn-frontend #1072), and with a mask at 64 keys NaN too (pytorch #196678). `make gpu-check` tries it.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda")


def compiling_pays(where: torch.device, steps: int) -> bool:
    """Return whether a training of `steps` steps on the device `where` is worth the minute or two that compiling takes.

    Steps of several GPUs are not compiled.
    """
    return steps >= COMPILE_FROM[where.type] and (where.type == "cpu" or distributed.size() == 1)


def compiles(where: torch.device, steps: int) -> bool:
    """Return whether a training of `steps` steps on the device `where` is compiled: where that pays and can be done."""
    return compiling_pays(where, steps) and not compiler_trouble(where)


@functools.lru_cache(maxsize=1)
def compiler_trouble(where: torch.device) -> str:
    """Return why torch cannot compile for the device `where`; "" where it can. Tried once a process.

    For a GPU it needs Triton, which builds a library of its own with a C compiler and Python's headers; for a CPU a C++ compiler. A machine
    that is there to run programs may lack them.
    """
    try:
        if where.type == "cuda":
            from triton.runtime import driver

            driver.active.get_current_device()  # builds the library, unless it is in Triton's cache
        else:
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where there is nvcc and no GPU
            compiled(torch.neg)(torch.ones(2))
    except Exception as e:  # of the import, of the build, or the driver's
        return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
    return ""


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return `function` compiled as one graph for each set of shapes it is called with; it compiles when it is first called with one.

    A break in the graph is an error, and so is torch's limit on how often one function is compiled, instead of a slow step and a warning.
    Call `torch.compiler.reset()` before a run, so that what earlier runs of this process compiled does not count. `options` are Inductor's.
    """
    return torch.compile(function, fullgraph=True, dynamic=False, options=options or None)


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensor.

    By default an allocation above 32 MB comes from the system and goes back to it, so that each large activation of each step is paid for
    page by page: a quarter of a full-size step's time on two cores. The first few steps still grow the heap: until its neighbours are free
    too, a freed block is too small for an aligned one of its own size.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def device_name(where: torch.device) -> str:
    """Return the GPU's name, as `NVIDIA H100 80GB HBM3`, or the processor's with the number of cores that this process may use."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


def hardware_bf16(where: torch.device) -> bool:
    """Return whether the device multiplies bf16 matrices in hardware. A CPU that does not emulates bf16, slower than float32."""
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in (" avx512_bf16", " amx_bf16"))


def precision(asked: str, where: torch.device) -> str:
    """Return "bf16" where `asked` says so, or says "auto" and the hardware has it; else "fp32"."""
    return "bf16" if asked == "bf16" or (asked == "auto" and hardware_bf16(where)) else "fp32"


def autocast_for(asked: str, where: torch.device) -> torch.autocast:
    """Return the context for a training step's forward pass: bf16 mixed precision, or one that does nothing."""
    return torch.autocast(where.type, torch.bfloat16, enabled=precision(asked, where) == "bf16")


def measured_peak(where: torch.device, dtype: str) -> float:
    """Return the FLOP/s of a large square matrix product in `dtype` ("fp32" or "bf16"): the best of those timed within a second.

    It is measured once per machine and kept in runs/machine.json. It is what the machine was seen to reach, not a data sheet's number, so a
    run's share of it says how much faster the run could be.
    """
    key = f"{device_name(where)}, {torch.get_num_threads()} threads, torch {torch.__version__}, {dtype}"
    path = RUNS / "machine.json"
    with files.held(path.with_suffix(".lock"), lambda holder: None):  # two processes that measure at once would each see half
        known = _read_peaks(path)
        if key not in known:
            known[key] = matrix_product_rate(where, torch.bfloat16 if dtype == "bf16" else torch.float32)
            files.write_json(path, known)
    return known[key]


def _read_peaks(path: Path) -> dict[str, float]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(v, float) and v > 0 for v in known.values()) else {}


def matrix_product_rate(where: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest large square matrix product of those timed within a second.

    On a CPU a product's time is its threads' processor time where that is less than the clock's: what other processes take does not count.
    """
    n = 8192 if where.type == "cuda" else 2048
    own = torch.Generator(where)  # not torch's, or the first run on a machine would have other dropout than its repetition
    a, b = (torch.randn(n, n, device=where, dtype=dtype, generator=own) for _ in range(2))
    out = torch.empty_like(a)
    best, until = float("inf"), time.perf_counter() + 1
    while True:
        wait(where)
        start, used = time.perf_counter(), time.process_time()
        torch.mm(a, b, out=out)
        wait(where)
        end = time.perf_counter()
        busy = math.inf if where.type == "cuda" else (time.process_time() - used) / torch.get_num_threads()
        best = min(best, end - start, busy)
        if end > until:
            return 2 * n**3 / best


def wait(where: torch.device) -> None:
    """Wait until the device has finished all work queued on it. Returns at once on a CPU, which has no queue."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


@functools.lru_cache(maxsize=1)
def nvml_gpu() -> tuple[Any, Any] | None:
    """Return pynvml and its handle of the GPU that torch computes on, or None where NVML has none.

    It is looked up once a process. Found by UUID, since CUDA and NVML count in different orders.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:  # not NVIDIA's, or no driver's library
        return None


def system_metrics() -> dict[str, float]:
    """Return the processor's load since the last call (percent) and this process's memory (MB), and the same of its GPU where it uses one.

    Takes less than 2 ms.
    """
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    gpu = nvml_gpu() if torch.cuda.is_initialized() else None
    if gpu is not None:
        pynvml, handle = gpu
        with contextlib.suppress(pynvml.NVMLError):  # a slice of a GPU (MIG) has no utilisation
            values["system/gpu_memory_usage_megabytes"] = pynvml.nvmlDeviceGetMemoryInfo(handle).used / 1e6
            values["system/gpu_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return values
