"""The first minutes on a GPU: `python -m benchmarks.gpu_check` says what works there, what is chosen, and where a step's time goes.

Each part is guarded: one that fails is written down and the next begins, until --minutes are over. Images are random and teachers
untrained: nothing here says anything of accuracy. `--device cpu` rehearses all of it at toy sizes, less what needs a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.paths import REPORTS

NEEDED = ("torchvision", "numpy", "pydantic", "yaml", "rich", "safetensors", "filelock", "psutil", "pynvml", "matplotlib", "seaborn")
STUDENT = "06_kd_r50_class_attention"
LADDER = (
    "01_baseline_vit", "02_regularized_vit", "03_hybrid_r18", "04_explicit_transformer", "05_kd_r18", STUDENT, "07_conv_stem_kd",
    "teachers/resnet18", "teachers/resnet50",
)  # fmt: skip
STEPS = 20  # that are timed, or compared; 1 on a CPU
TOP = 25  # kernels of a profile that are shown
EPOCH, VALIDATION = 47_500, 2_500  # images of CIFAR-10's splits


class NeedsGpu(Exception):
    """Nothing of this part can be done without a GPU."""


class Check:
    """The device, random images at its sizes, and what one part leaves for the next."""

    def __init__(self, where: torch.device) -> None:
        self.where, self.gpu = where, where.type == "cuda"
        self.steps = STEPS if self.gpu else 1
        self.tables: list[str] = []  # of profiles, for the text
        self.compiled: Any = None  # the Step that `compiling` leaves

    def configuration(self, path: str | Path) -> Any:
        from vitlab import config
        from vitlab.paths import EXPERIMENTS

        cfg = config.load(EXPERIMENTS / path, "full" if self.gpu else "quick").config
        return cfg if self.gpu else cfg.model_copy(update={"train": cfg.train.model_copy(update={"batch_size": 4, "eval_batch_size": 8})})

    def data(self) -> Any:
        from vitlab.data.dataset import Dataset

        g = torch.Generator().manual_seed(0)

        def split(n: int) -> tuple[Tensor, Tensor]:
            images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g)
            return images.to(self.where), torch.randint(10, (n,), generator=g).to(self.where)

        mean, std = torch.full((3,), 0.5).to(self.where), torch.full((3,), 0.25).to(self.where)
        splits = [tensor for n in ((960, VALIDATION, 10) if self.gpu else (16, 16, 10)) for tensor in split(n)]
        return Dataset("random", "0" * 32, tuple("abcdefghij"), True, mean, std, *splits)

    def teacher(self, cfg: Any) -> torch.nn.Module:
        from vitlab.run import execute

        return execute.build_model(self.configuration(cfg.distill.teacher), 10, 0, self.where).eval().requires_grad_(False)

    def step(self, name: str, compiled: bool = False, regularised: bool = True) -> Any:
        """Return a Step as the trainer makes it; without dropout and DropPath unless `regularised`."""
        from vitlab.run import execute
        from vitlab.train import machine, optim
        from vitlab.train.meter import Meter
        from vitlab.train.objective import CrossEntropy, Distillation, prepare_teacher
        from vitlab.train.step import Step

        cfg = self.configuration(f"{name}.yaml")
        if not regularised:
            cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"dropout": 0.0, "drop_path": 0.0})})
        total = machine.COMPILE_FROM[self.where.type] if compiled else 1
        model = execute.build_model(cfg, 10, 0, self.where)
        objective: Any = CrossEntropy()
        if cfg.distill is not None:
            teacher = prepare_teacher(self.teacher(cfg), cfg.train.precision, self.where, total)
            objective = Distillation(teacher, cfg.distill.temperature, cfg.distill.weight)
        ema, optimizer = optim.EMA(model) if cfg.ema else None, optim.build(cfg.optim, model.train())
        return Step(cfg, self.data(), model, objective, optimizer, ema, Meter(self.where, 1e9, 1e12), cfg.train.batch_size, total)

    def go(self, step: Any, count: int, first: int = 0) -> None:
        """Take `count` steps of the first phase on images that are a function of the step."""
        images = len(step.data.train_labels)
        for i in range(first, first + count):
            rows = (torch.arange(len(step.rows), device=self.where) * 7 + i).remainder(images)
            step(rows, step.cfg.phases[0], i, 1e-4, 0.99)

    def seconds(self, what: Callable[[], object]) -> float:
        """Seconds of one call, the mean of `steps` that are queued one behind the other."""
        from vitlab.train.machine import wait

        what()
        wait(self.where)
        start = time.perf_counter()
        for _ in range(self.steps):
            what()
        wait(self.where)
        return (time.perf_counter() - start) / self.steps

    def replayed(self, what: Callable[[], object]) -> Callable[[], object]:
        """Return `what` as one CUDA graph, so that the host costs nothing; on a CPU as it is."""
        if not self.gpu:
            return what
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                what()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            what()
        return graph.replay

    def kernels(self, what: Callable[[], object], title: str | None = None) -> dict[str, float]:
        """Milliseconds by kernel, the longest first; on a CPU by operator. With a title the table goes into the text."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        from vitlab.train.machine import wait

        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.gpu
        with profile(activities=kinds) as found:
            what()
            wait(self.where)
        averages = found.key_averages()
        kind, field = (DeviceType.CUDA, "self_device_time_total") if self.gpu else (DeviceType.CPU, "self_cpu_time_total")
        if title:
            self.tables.append(f"{title}\n{averages.table(sort_by=field, row_limit=TOP, max_name_column_width=90)}")
        # what a host's operator started counts as its kernels' time too, so these alone
        spent = {event.key: getattr(event, field) / 1000 for event in averages if event.device_type == kind and getattr(event, field) > 0}
        return dict(sorted(spent.items(), key=lambda pair: -pair[1]))


# ------------------------------------------------------------------------------------------------------------- parts


def versions(check: Check) -> dict[str, Any]:
    """Return what is installed, and what is missing of what a training needs. Sets the device up as a training does."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    missing = {}
    for name in (*NEEDED, "triton"):
        try:
            found[name] = getattr(importlib.import_module(name), "__version__", "there")
        except Exception as e:
            missing[name] = f"{type(e).__name__}: {e}"
    if check.gpu:
        about = torch.cuda.get_device_properties(check.where)
        found |= {"device": about.name, "memory_gb": about.total_memory / 1e9, "capability": f"{about.major}.{about.minor}"}
        found["cudnn"] = torch.backends.cudnn.version()
        from vitlab.train import machine

        machine.device()
    return found | {"missing": missing}


def attention(check: Check) -> dict[str, Any]:
    """Return the kernels chosen for each number of queries, and whether their results are finite; with cuDNN's attention and without."""
    rows = {}
    batch = 192 if check.gpu else 2
    before = torch.backends.cuda.cudnn_sdp_enabled()
    for cudnn, (queries, keys) in itertools.product((False, True) if check.gpu else (False,), ((1, 64), (2, 66), (65, 65), (66, 66))):
        for bias in (False, True) if keys == 66 else (False,):
            name = f"{queries} of {keys}{', bias' * bias}{', cuDNN on' * cudnn}"
            try:
                torch.backends.cuda.enable_cudnn_sdp(cudnn)
                rows[name] = _attend(check, batch, queries, keys, bias)
            except Exception as e:
                rows[name] = {"error": f"{type(e).__name__}: {e}"}
            finally:
                torch.backends.cuda.enable_cudnn_sdp(before)
    return rows


def _attend(check: Check, batch: int, queries: int, keys: int, bias: bool) -> dict[str, Any]:
    from vitlab.models.layers import attend

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, device=check.where, dtype=torch.bfloat16).requires_grad_()

    q, k, v = given = leaf(batch, 8, queries, 32), leaf(batch, 8, keys, 32), leaf(batch, 8, keys, 32)
    with torch.no_grad():  # scores about -120, under which cuDNN's gradients were seen to fail
        q[..., 0], k[..., 0] = 1, -120 * 32**0.5
    table = leaf(8, queries, keys) if bias else None

    def both_ways() -> Tensor:
        out = attend(q, k, v, table, 0.05)
        out.float().square().mean().backward()
        return out

    finite = bool(both_ways().isfinite().all()) and all(bool(t.grad.isfinite().all()) for t in (*given, *([table] if bias else [])))
    spent = check.kernels(both_ways)
    return {"finite": finite, "kernels": {name[:120]: spent[name] for name in list(spent)[:6]}}


def attention_compiled(check: Check) -> dict[str, Any]:
    """Milliseconds of attention at 66 tokens with bias, forward and backward, compiled: torch's kernel against a plain product."""
    from vitlab.models.layers import dropout

    def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
        return dropout(logits.softmax(-1), 0.05 if check.gpu else 0.0) @ v

    def built_in(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], dropout_p=0.05 if check.gpu else 0.0)

    shape = (192 if check.gpu else 2, 8, 66, 32)
    given = [torch.randn(shape, device=check.where, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    given.append(torch.randn(8, 66, 66, device=check.where, dtype=torch.bfloat16, requires_grad=True))
    result = {}
    for name, function in (("plain product", plain), ("built in", built_in)):
        compiled = torch.compile(function, fullgraph=True, dynamic=False, backend="inductor" if check.gpu else "eager")
        result[name] = 1000 * check.seconds(check.replayed(lambda f=compiled: f(*given).sum().backward()))
    return result


def equality(check: Check) -> dict[str, Any]:
    """Run the same steps replayed and not, without dropout and DropPath; return the weights' difference as a share of their change."""
    graphed, eager = (check.step(STUDENT, regularised=False) for _ in range(2))
    start = [p.detach().clone() for p in eager.model.parameters()]
    eager.graphed = False
    for step in (graphed, eager):
        check.go(step, check.steps)
    pairs = list(zip(start, graphed.model.parameters(), eager.model.parameters(), strict=True))
    apart = torch.stack([(a - b).detach().norm() for _, a, b in pairs]).norm()
    moved = torch.stack([(b - s).detach().norm() for s, _, b in pairs]).norm()
    losses = [step.sums["loss"].item() / check.steps for step in (graphed, eager)]
    return {"graphed": graphed.graphed, "apart_of_moved": (apart / moved).item(), "mean_loss": losses}


def waiting(check: Check) -> dict[str, Any]:
    """Run a warm step and a replay under `set_sync_debug_mode("error")`; return whether anything in them waits for the device."""
    if not check.gpu:
        raise NeedsGpu
    step = check.step(STUDENT)
    rows = torch.arange(len(step.rows), device=check.where)
    said = {}
    for name, before in (("warm step", 1), ("replay", 4)):
        check.go(step, before)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(rows, step.cfg.phases[0], 9, 1e-4, 0.99)
            said[name] = "does not wait"
        except RuntimeError as e:
            said[name] = f"waits: {e}\n{traceback.format_exc(limit=-8)}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return said


def compiling(check: Check) -> dict[str, Any]:
    """06 as the trainer compiles it: seconds until it replays, graphs, breaks and recompilations; then milliseconds of a step."""
    from torch._dynamo.utils import counters

    from vitlab.train.machine import wait
    from vitlab.train.step import WARM_UP

    counters.clear()
    start = time.perf_counter()
    step = check.step(STUDENT, compiled=True)
    check.go(step, WARM_UP + 1)
    wait(check.where)
    first = time.perf_counter() - start
    graphs = counters["stats"].get("unique_graphs", 0)
    tail = step.cfg.phases[-1]
    for i in range(WARM_UP + 1):
        step(torch.arange(len(step.rows), device=check.where), tail, i, 1e-4, 0.99)
    check.go(step, WARM_UP + 1)  # the first phase is captured anew
    wait(check.where)
    check.compiled = step
    return {
        "seconds_until_it_replays": first,
        "graphs": graphs,
        "graphs_after_the_tail_phase": counters["stats"].get("unique_graphs", 0),
        "breaks": dict(counters["graph_break"]),
        "milliseconds_a_step": 1000 * check.seconds(lambda: check.go(step, 1)),
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if check.gpu else None,
    }


def profiling(check: Check) -> dict[str, Any]:
    """Return a profile of 20 replays of 06: the longest kernels, in milliseconds of one step."""
    step = check.compiled or check.step(STUDENT)
    check.go(step, 4)
    spent = check.kernels(
        lambda: check.go(step, check.steps), f"{check.steps} steps of {STUDENT}, {'compiled' if check.compiled else 'not compiled'}"
    )
    return {
        "sum_ms": sum(spent.values()) / check.steps,
        "kernels": {name[:160]: ms / check.steps for name, ms in list(spent.items())[:TOP]},
    }


def teaching(check: Check) -> dict[str, Any]:
    """Milliseconds of the teacher's part of a step: as it was loaded, folded and cast, and compiled too; and a profile of the last."""
    from vitlab.train import machine
    from vitlab.train.objective import prepare_teacher

    cfg = check.configuration(f"{STUDENT}.yaml")
    images = torch.randn(cfg.train.batch_size, 3, 32, 32, device=check.where)
    loaded = check.teacher(cfg)
    kinds = {"as loaded": loaded, "folded, cast": prepare_teacher(loaded, cfg.train.precision, check.where, 1)}
    kinds["compiled too"] = prepare_teacher(loaded, cfg.train.precision, check.where, machine.COMPILE_FROM["cuda"])
    if check.compiled is not None:
        kinds["compiled too"] = check.compiled.objective.teacher  # compiled already
    result, answers = {}, {}
    for name, teacher in kinds.items():

        def answer(teacher: Any = teacher) -> Tensor:
            with torch.no_grad(), machine.autocast_for(cfg.train.precision, check.where):
                return teacher(images)

        answers[name] = answer().float()
        result[f"{name}, ms"] = 1000 * check.seconds(run := check.replayed(answer))
        if name == "compiled too":
            check.kernels(lambda run=run: [run() for _ in range(check.steps)], f"{check.steps} answers of the teacher")
    apart = (answers["folded, cast"] - answers["as loaded"]).abs().max() / answers["as loaded"].std()
    return result | {"largest_difference_of_deviation": apart.item()}


def augmenting(check: Check) -> dict[str, Any]:
    """Milliseconds of a batch's augmentation, draws left out: operator by operator, and compiled."""
    from vitlab.data import augment
    from vitlab.train import machine

    result = {}
    for name in ("02_regularized_vit", STUDENT):
        cfg, data = check.configuration(f"{name}.yaml"), check.data()
        images = data.train_images[: cfg.train.batch_size]
        drawn = augment.draw(images.shape, cfg.phases[0].augment, torch.Generator(check.where), data.mirror)
        kinds = {"eager": augment.apply} | ({"compiled": machine.compiled(augment.apply)} if check.gpu else {})
        outcome = {}
        for kind, apply in kinds.items():
            outcome[kind] = apply(images, drawn, data.mean, data.std)
            run = check.replayed(lambda f=apply, given=(images, drawn, data.mean, data.std): f(*given))
            result[f"{name}, {kind}, ms"] = 1000 * check.seconds(run)
            result[f"{name}, {kind}, kernels"] = len(check.kernels(run))
        if "compiled" in outcome:
            result[f"{name}, largest difference"] = (outcome["compiled"] - outcome["eager"]).abs().max().item()
    return result


def evaluating(check: Check) -> dict[str, Any]:
    """Seconds to evaluate 06 once on the validation split, as it is and compiled; and what compiling that costs."""
    from vitlab.train import evaluate, machine

    step = check.compiled or check.step(STUDENT)
    size = step.cfg.train.eval_batch_size

    def once(model: Any) -> Callable[[], Tensor]:
        return lambda: evaluate.logits(model, step.data.validation_images, step.data.mean, step.data.std, size)

    result = {"seconds": check.seconds(once(step.model))}
    if check.gpu:

        class Compiled:
            forward_heads = staticmethod(machine.compiled(step.model.forward_heads))
            eval = step.model.eval

        start = time.perf_counter()
        once(Compiled())()
        result |= {"first_compiled_seconds": time.perf_counter() - start, "compiled_seconds": check.seconds(once(Compiled()))}
    return result


def ladder(check: Check) -> dict[str, Any]:
    """Milliseconds of a step of each rung, not compiled, and by it the minutes of a whole run: what compiling saves comes off."""
    from vitlab.train import evaluate

    rungs: dict[str, Any] = {}
    for name in LADDER:
        try:
            step = check.step(name)
            check.go(step, 4)
            ms = 1000 * check.seconds(lambda step=step: check.go(step, 1))
            validation = step.data.validation_images, step.data.mean, step.data.std, step.cfg.train.eval_batch_size
            look = check.seconds(lambda step=step, given=validation: evaluate.logits(step.model, *given))
            looks = look * (2 if step.ema else 1)
            epoch = EPOCH // step.cfg.train.batch_size * ms / 1000 + looks
            rungs[name] = {
                "ms_a_step": ms,
                "evaluation_seconds": looks,
                "evaluation_share": looks / epoch,
                "minutes": step.cfg.train.epochs * epoch / 60,
            }
        except Exception as e:
            rungs[name] = {"error": f"{type(e).__name__}: {e}"}
        if check.gpu:
            torch.cuda.empty_cache()
    return rungs


PARTS: tuple[Callable[[Check], dict[str, Any]], ...] = (
    versions, attention, waiting, equality, compiling, profiling, teaching, augmenting, attention_compiled, ladder, evaluating,
)  # fmt: skip


def lines(found: Any, indent: str = "  ") -> Iterator[str]:
    """Give what a part found as lines to be read."""
    for key, value in found.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {f'{value:.4g}' if isinstance(value, float) else value}"


def run(where: torch.device, minutes: float, out: Path) -> dict[str, Any]:
    """Do all parts, write gpu_check.json and gpu_check.txt in `out` anew after each, and return what the first holds.

    Raises nothing that a part raises.
    """
    begin, results = time.perf_counter(), {"device": str(where), "parts": {}}
    text: list[str] = []
    out.mkdir(parents=True, exist_ok=True)
    check = Check(where)
    for part in PARTS:
        start = time.perf_counter()
        entry: dict[str, Any] = {"about": part.__doc__}
        if start - begin > 60 * minutes:
            entry["status"] = "no time left"
        else:
            try:
                entry |= {"status": "done", "found": part(check)}
            except NeedsGpu:
                entry["status"] = "needs a GPU"
            except Exception:
                entry |= {"status": "failed", "error": traceback.format_exc()}
        entry["seconds"] = time.perf_counter() - start
        results["parts"][part.__name__] = entry
        said = [f"\n{part.__name__} ({entry['seconds']:.1f} s): {entry['status']}. {part.__doc__}"]
        said += [*lines(entry.get("found", {})), entry.get("error", "")]
        print("\n".join(said), flush=True)
        text += said
        (out / "gpu_check.txt").write_text("\n".join([*text, *check.tables]), encoding="utf-8")
        (out / "gpu_check.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"\n{out / 'gpu_check.json'} and {out / 'gpu_check.txt'}, which has the profiles' tables, are written", flush=True)
    return results


def main() -> None:
    """Run all parts, or those that are named, and write what they find after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=5, help="after which no further part begins")
    parser.add_argument("--out", type=Path, default=REPORTS / "benchmarks", metavar="FOLDER")
    args = parser.parse_args()
    where = torch.device(args.device)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is found; --device cpu rehearses at toy sizes")
    run(where, args.minutes, args.out)


if __name__ == "__main__":
    main()
