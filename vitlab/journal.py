"""What a run's folder holds while it trains: its append-only journal, and who it is; and what the machine does meanwhile.

Journal first: what is measured is appended to `<run_dir>/journal.jsonl` before anything else; tracking.py ships it from there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from vitlab import errors, files
from vitlab.errors import UserError


class Journal:
    """Append-only JSON lines `{"kind", "time" (ms since the epoch), ...}`; a line that a kill left half-written is dropped when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole < self.size():
            os.ftruncate(self._file.fileno(), whole)

    def append(self, kind: str, **fields: Any) -> None:
        """Kinds in use: "metrics" (step: int, values: dict[str, float]) and "event" (text). NaN and infinities are kept, as text."""
        if "values" in fields:
            fields["values"] = {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in fields["values"].items()}
        line = json.dumps({"kind": kind, "time": int(time.time() * 1000), **fields}, allow_nan=False).encode() + b"\n"
        size = self.size()
        with files.writing(self.path):
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:  # a full disk: no half line for the next one to be glued to
                os.ftruncate(self._file.fileno(), size)
                raise

    def sync(self) -> None:
        """Wait until all of it is on the disk. Wanted before a checkpoint that refers to the journal's size."""
        with files.writing(self.path):
            os.fsync(self._file.fileno())

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size  # bytes

    def truncate(self, size: int) -> None:
        """Cut off what was written after `size` bytes. Raises UserError where the journal is shorter than that."""
        if size > self.size():
            raise UserError(f"{self.path}: {self.size()} bytes, the checkpoint speaks of {size}; train the run anew with --force")
        os.ftruncate(self._file.fileno(), size)

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Each whole line with the offset of its end, metrics as floats. Raises UserError, with the line's number, where one is damaged;
    and where there is no journal."""
    entries, end = [], 0
    try:
        content = path.read_bytes()
    except FileNotFoundError as e:
        raise errors.refused(e) from None
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # being written at this moment
        end += len(line)
        try:
            entry = json.loads(line)
            if entry["kind"] == "metrics":
                entry["values"] = {k: float(v) for k, v in entry["values"].items()}
            int(entry["time"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{path}:{number}: not a journal's line; delete it, or train the run anew with --force") from None
        entries.append((end, entry))
    return entries


def write_json(path: Path, value: Any) -> None:
    files.write(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


@dataclass(frozen=True)
class RunInfo:
    """What MLflow needs to know of a run beside its journal; `<run_dir>/run.json`, so that any process can ship the folder."""

    experiment: str
    variant: str
    label: str
    title: str
    profile: str
    dataset: str
    dataset_digest: str
    seed: int
    fingerprint: str
    git_commit: str
    git_dirty: str
    device: str
    params: dict[str, str]
    description: str
    params_count: int
    flops: int  # forward, per image
    train: int  # images
    validation: int
    test: int

    @property
    def group(self) -> str:
        """The parent run's name: all seeds of one experiment."""
        return f"{self.label} · {self.profile} · {self.dataset}"

    @property
    def name(self) -> str:
        return f"{self.group} · s{self.seed}"

    def write(self, run_dir: Path) -> None:
        write_json(run_dir / "run.json", asdict(self))

    @classmethod
    def read(cls, run_dir: Path) -> RunInfo:
        """Raises UserError naming the file where it is missing, damaged or of another version."""
        path = run_dir / "run.json"
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as e:
            raise UserError(f"{path}: not a readable description of a run ({e}); the command that trained the run writes it anew") from None


@functools.lru_cache(maxsize=1)
def _gpu() -> tuple[Any, Any] | None:
    """pynvml and the handle of the GPU that torch computes on; by its UUID, since CUDA and NVML count in different orders."""
    import pynvml

    torch = sys.modules["torch"]
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:  # not NVIDIA's, or no driver's library
        return None


def system_metrics() -> dict[str, float]:
    """Load of the processor since the last call in %, this process's memory in MB, and its GPU's, where there is one. Takes < 2 ms."""
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    torch = sys.modules.get("torch")
    gpu = _gpu() if torch is not None and torch.cuda.is_initialized() else None
    if gpu is not None:
        pynvml, handle = gpu
        with contextlib.suppress(pynvml.NVMLError):  # a slice of a GPU (MIG) has no utilisation
            values["system/gpu_memory_usage_megabytes"] = pynvml.nvmlDeviceGetMemoryInfo(handle).used / 1e6
            values["system/gpu_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return values
