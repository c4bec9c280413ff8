"""A model as ONNX: written with a dynamic batch, compared with PyTorch image by image, and timed beside it. Needs onnxruntime and onnxscript."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.ranking import ranked
from vitlab.train import machine

BATCHES = (1, 64)  # of the timing: one image as it comes, and many at once
CALLS, TURNS = 5, 2  # several calls in a row, since the other's threads still spin during the first
TOLERANCE = {False: 1e-3, True: 5e-2}  # in half precision or not: the largest difference, as a share of the largest logit


@dataclass(frozen=True)
class Agreement:
    """How far the ONNX file's logits are from PyTorch's."""

    images: int
    difference: float  # the largest between two logits
    other: int  # images to which the two give other classes
    margin: float  # of these images: the most by which PyTorch prefers its class to the ONNX file's
    top1: float | None  # percent of the images that the ONNX file has right; None where there are no labels


@dataclass(frozen=True)
class Timing:
    """Milliseconds that a batch takes, the median over all calls."""

    batch: int
    onnxruntime: float
    pytorch: float


class _Half(nn.Module):
    """A model computed in half precision, with images and logits in single: (B, 3, 32, 32) -> (B, classes)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.half()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.half()).float()


def write(model: nn.Module, path: Path, half: bool) -> None:
    """Write the model to `path`: `images`, float32 (batch, 3, 32, 32), any batch, to `logits`, float32 (batch, classes).

    `half` stores the weights, and computes, in half precision.
    """
    model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
    example = (torch.zeros(2, 3, 32, 32),)  # two: a batch of one would be exported as a constant
    with torch.no_grad():
        graph = torch.export.export(_Half(model) if half else model, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
        program = torch.onnx.export(
            graph, dynamo=True, input_names=["images"], output_names=["logits"], dynamic_shapes=({0: "batch"},), verbose=False
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where the code lay on this machine
    program.save(path, external_data=False)


def compare(path: Path, model: nn.Module, images: Iterable[Tensor], labels: Tensor | None, half: bool) -> Agreement:
    """Return how the ONNX file at `path` agrees with `model` on batches of normalised `images`; labels (N,).

    Raises UserError where, in half precision, it does not; in single that would be our own mistake.
    """
    session = _session(path)
    ours, theirs = [], []
    with torch.inference_mode():
        for batch in images:
            ours.append(model(batch).numpy())
            theirs.append(_run(session, batch))
    a, b = np.concatenate(ours), np.concatenate(theirs)
    difference = float(np.abs(a - b).max())
    if not difference <= TOLERANCE[half] * float(np.abs(a).max()):  # NaN too
        assert half, f"{path}: {difference} from PyTorch's logits"
        raise UserError(
            f"this model does not fit half precision: a logit differs by {difference:.3g} from PyTorch's; export without --half"
        )
    first, second = ranked(a)[:, 0], ranked(b)[:, 0]
    rows = np.flatnonzero(first != second)
    margin = float((a[rows, first[rows]] - a[rows, second[rows]]).max()) if len(rows) else 0.0
    right = None if labels is None else 100 * float((second == labels.numpy()).mean())
    return Agreement(len(a), difference, len(rows), margin, right)


def timed(path: Path, model: nn.Module) -> list[Timing]:
    """Time the ONNX file and `model` by turns, with as many threads each, on images of zeros."""
    session = _session(path)

    def median(size: int) -> Timing:
        images = torch.zeros(size, 3, 32, 32)
        _run(session, images), model(images)  # the first call of each also allocates
        theirs, ours = [], []
        for _ in range(TURNS):
            theirs += [_milliseconds(_run, session, images) for _ in range(CALLS)]
            ours += [_milliseconds(model, images) for _ in range(CALLS)]
        return Timing(size, statistics.median(theirs), statistics.median(ours))

    with torch.inference_mode():
        return [median(size) for size in BATCHES]


def conditions() -> str:
    """Return how, on what and with what the times were taken."""
    threads = torch.get_num_threads()
    versions = f"onnxruntime {onnxruntime.__version__}, PyTorch {torch.__version__.split('+')[0]}"
    return f"median of {CALLS * TURNS} calls, {CALLS} by turns; {machine.device_name(torch.device('cpu'))}, {threads} {'thread' if threads == 1 else 'threads'}; {versions}"


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; not which nodes it folds
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, images: Tensor) -> np.ndarray:
    return session.run(["logits"], {"images": images.numpy()})[0]


def _milliseconds(call: Callable[..., object], *args: object) -> float:
    start = time.perf_counter()
    call(*args)
    return 1000 * (time.perf_counter() - start)
