"""The loop: resuming equals not having stopped, bit for bit; what it logs; what it does when numbers go wrong."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab import config
from vitlab.data.dataset import Dataset
from vitlab.data.rng import epoch_order
from vitlab.models import registry
from vitlab.track.journal import Journal, read_journal
from vitlab.train import checkpoint, loop, machine, optim
from vitlab.train.meter import Meter
from vitlab.train.objective import CrossEntropy, Distillation


class Silent:
    def step(self, done: int, total: int, loss: float, top1: float) -> None: ...

    def epoch(self, row: dict[str, float]) -> None: ...


def train(
    cfg: config.Experiment, data: Dataset, folder: Path, stop_after: int | None = None, objective: Callable | None = None
) -> tuple[nn.Module, loop.Trained | None]:
    """Train with seed 7; `stop_after` steps of this call a signal arrives."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(7)
    model = registry.build(cfg.model, len(data.classes))
    stop, calls = loop.Stop(), 0
    inner = objective or CrossEntropy()

    def counting(images: Tensor, heads: Tensor, targets: Tensor) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            stop.signal = signal.SIGINT
        return inner(images, heads, targets)

    journal = Journal(folder / "journal.jsonl")
    try:
        trained = loop.train(
            cfg,
            data,
            model,
            counting,
            seed=7,
            folder=folder,
            journal=journal,
            meter=Meter(torch.device("cpu"), 1e9, 1e12),
            bar=Silent(),
            stop=stop,
            part={},
            covered=lambda size: None,
        )
    except loop.Interrupted:
        return model, None
    finally:
        journal.close()
    return model, trained


def teacher() -> Distillation:
    torch.manual_seed(1)
    return Distillation(registry.build(config.ResNet(name="resnet", depth=18, width=8), 4), 2.0, 0.5)


def told(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The journal's metrics, less those that are times."""
    entries = [e for _, e in read_journal(folder / "journal.jsonl") if e["kind"] == "metrics"]
    return [(e["step"], {k: v for k, v in e["values"].items() if not k.startswith(("perf/", "system/"))}) for e in entries]


def assert_same_state(a: Path, b: Path) -> None:
    one, two = (checkpoint.load(f, torch.device("cpu"))[0] for f in (a, b))

    def same(x: object, y: object, at: str) -> None:
        assert type(x) is type(y), at
        if isinstance(x, Tensor):
            assert torch.equal(x, y), at
        elif isinstance(x, dict):
            x, y = ({k: v for k, v in z.items() if not str(k).startswith("perf/")} for z in (x, y))
            assert x.keys() == y.keys(), at
            for k in x:
                same(x[k], y[k], f"{at}.{k}")
        elif isinstance(x, list | tuple):
            assert len(x) == len(y), at
            for i, (u, v) in enumerate(zip(x, y, strict=True)):
                same(u, v, f"{at}.{i}")
        else:
            assert x == y, at

    for key in one.keys() - {"seconds", "counted", "journal"}:
        same(one[key], two[key], key)


def test_an_average_whose_decay_does_not_rise(tiny_data: Dataset, tmp_path: Path, experiment_file: Callable[..., Path]) -> None:
    """`ema.start: null` trains at the end's decay throughout, resumes as any other, and is what start = end is."""
    path = experiment_file()
    flat, spelt = (config.load(path, "full", (f"ema.start={start}",)).config for start in ("null", "0.9"))
    assert (flat.ema.start, spelt.ema.start) == (None, 0.9)
    _, whole = train(flat, tiny_data, tmp_path / "whole")
    assert [row["ema_decay"] for row in whole.history] == [0.9] * 4
    assert train(flat, tiny_data, tmp_path / "parts", stop_after=4)[1] is None
    _, resumed = train(flat, tiny_data, tmp_path / "parts")
    _, same = train(spelt, tiny_data, tmp_path / "same")
    for other in (resumed, same):
        for name, value in whole.ema.model.state_dict().items():
            assert torch.equal(value, other.ema.model.state_dict()[name]), name
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("distilled", [False, True], ids=["plain", "student"])
@pytest.mark.parametrize("stops", [(1,), (3,), (4, 1, 2), (11,)], ids=str)
def test_resuming_equals_not_having_stopped_bit_for_bit(
    stops: tuple[int, ...], distilled: bool, tiny: config.Experiment, tiny_data: Dataset, tmp_path: Path
) -> None:
    """4 epochs of 3 steps: stopped in the middle of an epoch, at its end, several times; dropout, mixing, EMA and all."""
    objective = teacher if distilled else CrossEntropy
    _, whole = train(tiny, tiny_data, tmp_path / "whole", objective=objective())
    for after in stops:
        _, none = train(tiny, tiny_data, tmp_path / "parts", stop_after=after, objective=objective())
        assert none is None
    _, parts = train(tiny, tiny_data, tmp_path / "parts", objective=objective())
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    assert told(tmp_path / "whole") == told(tmp_path / "parts")
    assert [r["epoch"] for r in parts.history] == [1, 2, 3, 4]
    assert {k for r in whole.history for k in r} >= {
        "train/loss",
        "train/ce",
        "train/top1",
        "validation/top1",
        "validation/ema_top1",
        "lr",
        "ema_decay",
    }


@pytest.mark.slow
def test_a_compiled_training_resumes_bit_for_bit(
    tiny: config.Experiment, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble := machine.compiler_trouble(torch.device("cpu")):
        pytest.skip(trouble)
    train(tiny, tiny_data, tmp_path / "eager")
    monkeypatch.setattr(machine, "COMPILE_FROM", {"cpu": 1})
    train(tiny, tiny_data, tmp_path / "whole")
    for after in (4, 1):
        train(tiny, tiny_data, tmp_path / "parts", stop_after=after)
    train(tiny, tiny_data, tmp_path / "parts")
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    assert told(tmp_path / "whole") == told(tmp_path / "parts")
    assert told(tmp_path / "whole") != told(tmp_path / "eager"), "nothing was compiled: DropPath draws otherwise in a compiled step"


def test_a_resnet_resumes_bit_for_bit(experiment_file: Callable[..., Path], tiny_data: Dataset, tmp_path: Path) -> None:
    """Batch-norm statistics and SGD's momentum are part of the state."""
    text = "title: R\nmodel: {name: resnet, depth: 18, width: 8}\nphases: [{name: all, augment: {crop: 4}}]\n"
    cfg = config.load(experiment_file(text + "optim: {name: sgd, lr: 0.05}\ntrain: {epochs: 2, batch_size: 16}\n")).config
    train(cfg, tiny_data, tmp_path / "whole")
    train(cfg, tiny_data, tmp_path / "parts", stop_after=2)
    train(cfg, tiny_data, tmp_path / "parts")
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_one_epoch_equals_a_loop_written_out(experiment_file: Callable[..., Path], tiny_data: Dataset, tmp_path: Path) -> None:
    """Without randomness in the model, the trainer is torch's SGD on torch's cross-entropy over the permuted batches."""
    text = (
        "title: P\nmodel: {name: vit, dim: 16, depth: 2, heads: 2, patch_size: 8}\nphases: [{name: all}]\n"
        "optim: {name: sgd, lr: 0.05, weight_decay: 0.0, warmup: {steps: 2}}\ntrain: {epochs: 1, batch_size: 16, precision: fp32}\n"
    )
    cfg = config.load(experiment_file(text)).config
    got, _ = train(cfg, tiny_data, tmp_path / "run")
    torch.manual_seed(7)
    model = registry.build(cfg.model, 4)
    optimizer = torch.optim.SGD(
        model.parameters(), momentum=0.9, nesterov=True
    )  # of Adam, rounding would be magnified where a gradient is 0
    order = epoch_order(48, 7, 0)
    for step, factor in enumerate((0.5, 1.0, 1.0)):  # two steps of warm-up; the third is the cosine's first
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * factor
        rows = order[16 * step : 16 * (step + 1)]
        loss = F.cross_entropy(model((tiny_data.train_images[rows].float() / 255 - 0.5) / 0.25), tiny_data.train_labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, a), b in zip(got.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-4, atol=1e-6)


def test_the_journal_tells_every_epoch_once(tiny: config.Experiment, tiny_data: Dataset, tmp_path: Path) -> None:
    train(tiny, tiny_data, tmp_path / "run", stop_after=5)
    with (tmp_path / "run" / "journal.jsonl").open("a") as f:  # what a killed process wrote after its last checkpoint
        f.write(json.dumps({"kind": "metrics", "time": 1, "step": 2, "values": {"train/loss": 9.0}}) + "\n")
    train(tiny, tiny_data, tmp_path / "run")
    assert [step for step, _ in told(tmp_path / "run")] == [1, 2, 3, 4]


def test_what_was_told_before_the_first_checkpoint_is_told_anew(tiny: config.Experiment, tiny_data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "journal.jsonl").open("a") as f:  # killed between the first epoch's line and its checkpoint
        f.write(json.dumps({"kind": "metrics", "time": 1, "step": 1, "values": {"train/loss": 9.0}}) + "\n")
    train(tiny, tiny_data, tmp_path / "run")
    assert [step for step, _ in told(tmp_path / "run")] == [1, 2, 3, 4]


def test_divergence_stops_with_the_window_and_keeps_the_checkpoint(tiny: config.Experiment, tiny_data: Dataset, tmp_path: Path) -> None:
    class Poisoned(CrossEntropy):
        calls = 0

        def __call__(self, images: Tensor, heads: Tensor, targets: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            terms = super().__call__(images, heads, targets)
            return {k: v * float("nan") for k, v in terms.items()} if self.calls == 5 else terms

    with pytest.raises(loop.Diverged, match=r"between steps 3 and 5 .*loss nan.*optim\.lr"):
        train(tiny, tiny_data, tmp_path / "run", objective=Poisoned())
    state, _ = checkpoint.load(tmp_path / "run", torch.device("cpu"))
    assert state["step"] == 3
    assert all(v.isfinite().all() for v in state["model"].values())


def test_a_signal_amid_a_window_never_saves_what_has_diverged(tiny: config.Experiment, tiny_data: Dataset, tmp_path: Path) -> None:
    """The loss is looked at every few steps; the signal comes with the very step whose loss is infinite, the second of an epoch."""

    class Poisoned(CrossEntropy):
        calls = 0

        def __call__(self, images: Tensor, heads: Tensor, targets: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            terms = super().__call__(images, heads, targets)
            return {k: v * float("inf") for k, v in terms.items()} if self.calls == 5 else terms

    with pytest.raises(loop.Diverged, match=r"between steps 3 and 4 .*loss inf"):
        train(tiny, tiny_data, tmp_path / "run", stop_after=5, objective=Poisoned())
    assert checkpoint.load(tmp_path / "run", torch.device("cpu"))[0]["step"] == 3


def test_infinite_weights_are_never_saved_however_good_the_loss(
    tiny: config.Experiment, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step, after which there is always a checkpoint, is too large: its loss and gradients, taken before it, are finite."""
    step, calls = optim.AdamW.step, 0

    def too_far(self: optim.AdamW, *args: object) -> None:
        nonlocal calls
        calls += 1
        step(self, *args)
        if calls == 12:
            self.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(optim.AdamW, "step", too_far)
    with pytest.raises(loop.Diverged, match=r"weights are no longer finite.* between steps 9 and 11"):
        train(tiny, tiny_data, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run", torch.device("cpu"))[0]["step"] == 3


def test_how_often_it_is_looked_at_evaluated_and_saved_changes_no_bit(
    tiny: config.Experiment, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda folder, state: (saved.append(state["step"]), save(folder, state)))
    monkeypatch.setattr(loop, "SAVING_SHARE", 1e9)
    train(tiny, tiny_data, tmp_path / "often")
    monkeypatch.setattr(loop, "SAVING_SHARE", 0.0)
    monkeypatch.setitem(loop.WINDOW, "cpu", 1)
    other = tiny.model_copy(update={"train": tiny.train.model_copy(update={"eval_batch_size": 5})})
    train(other, tiny_data, tmp_path / "seldom")
    assert saved == [3, 6, 9, 12, 3, 12]
    one, two = (checkpoint.load(tmp_path / name, torch.device("cpu"))[0] for name in ("often", "seldom"))
    for part in ("model", "ema"):
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items())
    assert torch.equal(one["rng"][0], two["rng"][0])


def test_checkpoints_take_a_hundredth_of_the_time(
    tiny: config.Experiment, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch takes 30 s here and a checkpoint 0.5 s: after the first one, 50 s must pass; the last is written whatever it costs."""
    now, saves = 0.0, []
    monkeypatch.setattr("vitlab.train.loop.time.perf_counter", lambda: now)

    class Slow(CrossEntropy):
        def __call__(self, images: Tensor, heads: Tensor, targets: Tensor) -> dict[str, Tensor]:
            nonlocal now
            now += 10
            return super().__call__(images, heads, targets)

    def save(folder: Path, state: dict) -> None:
        nonlocal now
        now += 0.5
        saves.append(state["step"])

    monkeypatch.setattr(checkpoint, "save", save)
    cfg = tiny.model_copy(update={"train": tiny.train.model_copy(update={"epochs": 6})})
    train(cfg, tiny_data, tmp_path / "run", objective=Slow())
    assert saves == [3, 9, 15, 18]


def test_bf16_trains(tiny: config.Experiment, tiny_data: Dataset, tmp_path: Path) -> None:
    cfg = tiny.model_copy(update={"train": tiny.train.model_copy(update={"precision": "bf16"})})
    model, trained = train(cfg, tiny_data, tmp_path / "run")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert len(trained.history) == 4
