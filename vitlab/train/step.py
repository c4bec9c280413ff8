"""One optimisation step. All that changes from step to step comes in through tensors, so a GPU can replay it as one CUDA graph."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitlab.config import Experiment, Phase
from vitlab.data import augment
from vitlab.data.dataset import Dataset
from vitlab.train import distributed, machine
from vitlab.train.meter import Meter
from vitlab.train.objective import smooth_one_hot
from vitlab.train.optim import EMA

WARM_UP = 3  # steps of a phase before it is captured: they compile, allocate, and choose the convolutions


class Step:
    """One training step, in place: batch, augmentation, loss, gradients, update of the weights and of their average.

    `sums` adds up each named value over the steps since it was last zeroed: the loss terms, "top1" (percent) and "grad_norm".
    """

    def __init__(
        self,
        cfg: Experiment,
        data: Dataset,
        model: nn.Module,
        objective: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        ema: EMA | None,
        meter: Meter,
        batch: int,
        total: int,
    ) -> None:
        self.cfg, self.data, self.model, self.objective = cfg, data, model, objective
        self.optimizer, self.ema, self.meter = optimizer, ema, meter
        device = data.train_images.device
        distributed.check(batch)
        self.part = distributed.part(batch, device)
        self.graphed = device.type == "cuda" and self.part is None  # several processes wait for one another within a step
        self.autocast = machine.autocast_for(cfg.train.precision, device)
        self.draws = torch.Generator(device)
        self.rows = torch.zeros(batch, dtype=torch.int64, device=device)
        self.lr, self.rate = torch.zeros((), device=device), torch.zeros((), device=device)
        self.shares = torch.ones((), dtype=torch.float64, device=device), torch.ones((), dtype=torch.float64, device=device)
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        self.sums: dict[str, Tensor] = {}
        self.phase: Phase | None = None
        self.warm = 0  # steps of the phase before its capture
        self.graph: torch.cuda.CUDAGraph | None = None
        heads, self.apply = model.forward_heads, augment.apply
        if machine.compiles(device, total) and not distributed.exchanging(model):
            torch.compiler.reset()
            heads = machine.compiled(heads)
            if device.type == "cuda":  # on a CPU only what is drawn is computed, which no one graph can say
                self.apply = machine.compiled(self.apply)
        self.forward = distributed.forward_of(model, heads)

    def __call__(self, rows: Tensor, phase: Phase, seed: int, lr: float, decay: float) -> None:
        """Train on the images `rows`, (batch,) indices of training images, at the learning rate `lr` and with the EMA decay `decay`.

        `seed` decides the augmentation. Expects the model in training mode.
        """
        self.rows.copy_(rows)
        self.draws.manual_seed(seed)
        self.lr.fill_(lr)
        self.rate.fill_(1 - decay)
        if phase.mix is not None:
            for share, drawn in zip(self.shares, augment.draw_shares(phase.mix, seed), strict=True):
                share.fill_(drawn)
        if self.graphed:
            self._replay(phase)
        else:
            self.run(phase)

    def run(self, phase: Phase) -> None:
        """Do the step that the tensors of this object describe. No operation in it waits for the device, so that a GPU can capture it."""
        data, classes = self.data, len(self.data.classes)
        drawn = augment.draw((len(self.rows), *data.train_images.shape[1:]), phase.augment, self.draws, data.mirror)
        rows = self.rows
        if self.part is not None:
            rows, drawn = rows[self.part], augment.choose(drawn, self.part)
        images = self.apply(data.train_images[rows], drawn, data.mean, data.std)
        targets = smooth_one_hot(data.train_labels[rows], classes, phase.label_smoothing)
        if phase.mix is not None:
            images, targets = augment.mix(images, targets, phase.mix, self.shares, self.draws)
        if self.part is not None:
            images, targets = images[1:], targets[1:]
        self._lap("data")

        with self.autocast:
            heads = self.forward(images)  # (H, B, C)
            terms = self.objective(images, heads, targets)
        terms["loss"].backward()
        self._lap("forward_backward")

        terms["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optim.grad_clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._lap("optimizer")

        if self.ema:
            self.ema.update(self.model, self.rate)
        with torch.no_grad():
            terms["top1"] = (heads.mean(0).argmax(-1) == targets.argmax(-1)).float().mean() * 100  # of a mixed image: its larger part
            for name, value in terms.items():
                if name not in self.sums:
                    self.sums[name] = torch.zeros((), device=value.device)
                self.sums[name] += value.detach().float()
        self._lap("ema")

    def _lap(self, phase: str) -> None:
        if not self.graphed:  # else the parts of a step have no times of their own
            self.meter.lap(phase)

    def _replay(self, phase: Phase) -> None:
        """Run the first WARM_UP steps of a phase on a stream of their own, as capturing demands; then replay one captured graph."""
        if phase != self.phase:  # a graph holds all memory of its step: kept on, the next phase would need as much beside it
            machine.wait(self.rows.device)
            self.phase, self.warm, self.graph = phase, 0, None
        if self.graph is None:
            if self.warm < WARM_UP:
                self.warm += 1
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", ".*capturable")  # that a step runs uncaptured is meant
                    self.run(phase)
                torch.cuda.current_stream().wait_stream(side)
                self.meter.lap("compile")
                return
            graph = torch.cuda.CUDAGraph()
            if hasattr(graph, "register_generator_state"):  # newer versions of torch find a capture's generators themselves
                graph.register_generator_state(self.draws)
            with torch.cuda.graph(graph):
                self.run(phase)
            self.graph = graph
            self.meter.lap("compile")
        self.graph.replay()
        self.meter.lap("step")
