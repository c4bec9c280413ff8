"""One contender in a process of its own: `python -m benchmarks.contenders NAME --experiment 01 --profile full --images FILE.npz`.

It builds everything, trains one epoch to warm up and writes a line {"ready": true, ...}; then, for each line it reads, one epoch more over
the same images and a line {"seconds", "img_s", "loss", "peak_rss_mb"}. The end of its input ends it. An epoch's time is everything
between its first image and its last step: loading, augmentation, training; no evaluation and no checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import recipe
from benchmarks.recipe import Images
from vitlab import config

WORKERS = 2  # of the DataLoader in `plain` and `lightning`
TIMM_WORKERS = 4  # as in timm's train script


class Over(Exception):
    """The harness wants no more epochs."""


def peak_rss_mb() -> float:
    """Return in MB this process's peak resident memory plus the memory that its DataLoader workers now hold unshared.

    Pages that a forked worker still shares with its parent count once, and a worker's own peak does not count: both favour the peers.
    """
    own = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    return (own + sum(p.memory_full_info().uss for p in psutil.Process().children(recursive=True))) / 1e6


class Laps:
    """The conversation with the harness: called after each epoch, it reports and waits until the next one is wanted."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.facts: dict[str, object] | None = None

    def enter(self, model: nn.Module) -> None:
        """Note the model's size, which the first report to the harness contains."""
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.facts = {"ready": True, "parameters": parameters, "threads": torch.get_num_threads()}

    def __call__(self, seconds: float, loss: float) -> None:
        """Report an epoch's seconds and mean loss, and wait. Raises Over where no further epoch is wanted."""
        row = {"seconds": seconds, "img_s": self.images / seconds, "loss": loss, "peak_rss_mb": peak_rss_mb()}
        if self.facts is not None:
            row, self.facts = self.facts | row, None
        print(json.dumps(row), file=sys.__stdout__, flush=True)
        if not sys.stdin.readline():
            raise Over


# ----------------------------------------------------------------------------------------------------------- vitlab


class LapBar:
    """A progress display for the trainer that reports each epoch to the harness."""

    def __init__(self, laps: Laps) -> None:
        self.laps = laps

    def step(self, done: int, total: int, loss: float, top1: float) -> None: ...

    def epoch(self, row: dict[str, float]) -> None:
        self.laps(self.laps.images / row["perf/img_s"], row["train/loss"])


def vitlab(cfg: config.Experiment, data: Images, laps: Laps) -> None:
    """Train with vitlab's own trainer. Its journal, checkpoints and small validation split are not in the time that it reports."""
    from vitlab.data.dataset import Dataset
    from vitlab.run import execute
    from vitlab.track.journal import Journal
    from vitlab.train import loop, machine
    from vitlab.train.meter import Meter
    from vitlab.train.objective import CrossEntropy

    images = torch.from_numpy(data.pixels), torch.from_numpy(data.labels)
    few = images[0][:16], images[1][:16]  # to validate and test: evaluated after each epoch, outside its time
    classes = tuple(map(str, range(data.classes)))
    dataset = Dataset("bench", "", classes, data.mirror, torch.tensor(data.mean), torch.tensor(data.std), *images, *few, *few)
    where = machine.device()
    model = execute.build_model(cfg, data.classes, 0, where)
    laps.enter(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loop.train(
            cfg, dataset, model, CrossEntropy(),
            seed=0, folder=folder, journal=Journal(folder / "journal.jsonl"), meter=Meter(where, 1.0, 1.0), bar=LapBar(laps), stop=loop.Stop(),
            part={}, covered=lambda size: None,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------- plain PyTorch, Lightning


class Pictures(torch.utils.data.Dataset):
    """The images as torchvision's data sets give them: PIL images."""

    def __init__(self, data: Images, transform=None) -> None:
        from PIL import Image

        self.images = [Image.fromarray(p.transpose(1, 2, 0)) for p in data.pixels]
        self.labels = data.labels.tolist()
        self.transform = transform  # timm's create_loader sets it

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        return self.transform(self.images[i]), self.labels[i]


def with_probability(prob: float, transform):
    """Return the torchvision transform such that it is applied with probability `prob`. What is always applied draws nothing for it."""
    from torchvision.transforms import v2

    return transform if prob == 1 else v2.RandomApply([transform], prob)


def torchvision_transform(cfg: config.Augment, data: Images):
    """Return the augmentation in torchvision's transforms, ordered as in its training recipes: PIL image -> (3, 32, 32) float."""
    from torchvision.transforms import v2

    jitter, trivial = cfg.color_jitter, cfg.trivial_augment
    return v2.Compose(
        [
            v2.RandomCrop(32, padding=cfg.crop),
            *([v2.RandomHorizontalFlip()] if cfg.flip and data.mirror else []),
            *([v2.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)] if jitter else []),
            *([with_probability(trivial, v2.TrivialAugmentWide())] if trivial else []),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std),
            *([v2.RandomErasing(cfg.erase)] if cfg.erase else []),
        ]
    )


def torchvision_mix(cfg: config.Mix, classes: int):
    """Return Mixup or CutMix by torchvision, of a whole batch: (B, 3, 32, 32) and labels (B,) -> the same mixed, targets (B, C) or labels."""
    from torchvision.transforms import v2

    kinds = v2.MixUp(alpha=cfg.mixup, num_classes=classes), v2.CutMix(alpha=cfg.cutmix, num_classes=classes)
    return with_probability(cfg.prob, v2.RandomChoice(kinds, [1 - cfg.switch_prob, cfg.switch_prob]))


def mixed_batch(mix, rows: list) -> tuple[Tensor, Tensor]:
    """Collate the rows and return what `mix` makes of them."""
    return mix(*torch.utils.data.default_collate(rows))


def torchvision_loader(cfg: config.Experiment, data: Images) -> torch.utils.data.DataLoader:
    """Return a DataLoader with the first phase's augmentation and mixing by torchvision."""
    phase, collate = cfg.phases[0], None
    if phase.mix:
        collate = partial(mixed_batch, torchvision_mix(phase.mix, data.classes))
    pictures = Pictures(data, torchvision_transform(phase.augment, data))
    return torch.utils.data.DataLoader(
        pictures, cfg.train.batch_size, shuffle=True, num_workers=WORKERS, collate_fn=collate, drop_last=True, persistent_workers=True
    )


def loss_of(heads: list[Tensor], targets: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy, mean over the heads; targets are labels (B,) or probabilities (B, C)."""
    return sum(F.cross_entropy(logits, targets, label_smoothing=smoothing) for logits in heads) / len(heads)


def plain(cfg: config.Experiment, data: Images, laps: Laps) -> None:
    """Train with a plain PyTorch loop."""
    from benchmarks.plain import PlainViT

    model = PlainViT(cfg.model, data.classes)
    laps.enter(model)
    loader = torchvision_loader(cfg, data)
    optimizer = torch.optim.AdamW(model.parameters(), cfg.optim.lr, cfg.optim.betas, weight_decay=cfg.optim.weight_decay)
    average = None
    if cfg.ema:
        average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(cfg.ema.start))
    while True:
        start, total = time.perf_counter(), 0.0
        for images, targets in loader:
            loss = loss_of(model(images), targets, cfg.phases[0].label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.grad_clip)
            optimizer.step()
            if average:
                average.update_parameters(model)
            total += loss.item()
        laps(time.perf_counter() - start, total / len(loader))


def lightning(cfg: config.Experiment, data: Images, laps: Laps) -> None:
    """Train the model of `plain` with Lightning's Trainer."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EMAWeightAveraging

    from benchmarks.plain import PlainViT

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = PlainViT(cfg.model, data.classes)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, targets = batch
            return loss_of(self.model(images), targets, cfg.phases[0].label_smoothing)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), cfg.optim.lr, cfg.optim.betas, weight_decay=cfg.optim.weight_decay)

    class Clock(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            self.start, self.losses = time.perf_counter(), []

        def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_idx: int) -> None:
            self.losses.append(outputs["loss"].item())

        def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            laps(time.perf_counter() - self.start, sum(self.losses) / len(self.losses))

    module = Module()
    laps.enter(module)
    trainer = pl.Trainer(
        max_epochs=-1, accelerator="cpu", gradient_clip_val=cfg.optim.grad_clip, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[*([EMAWeightAveraging(decay=cfg.ema.start)] if cfg.ema else []), Clock()],
    )  # fmt: skip
    trainer.fit(module, torchvision_loader(cfg, data))


# -------------------------------------------------------------------------------------------------------------- timm


def timm_model(cfg: config.ViT, classes: int) -> nn.Module:
    """Return timm's ViT of the same size. It has no class attention, so for 06 it is DeiT's, all of whose tokens pass all blocks."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    build = VisionTransformerDistilled if cfg.distill_token else VisionTransformer
    model = build(
        img_size=32, patch_size=cfg.patch_size, embed_dim=cfg.dim, depth=cfg.depth, num_heads=cfg.heads, mlp_ratio=cfg.mlp_ratio,
        init_values=cfg.layer_scale, num_classes=classes, pos_drop_rate=cfg.dropout, proj_drop_rate=cfg.dropout,
        attn_drop_rate=cfg.dropout, drop_path_rate=cfg.drop_path,
    )  # fmt: skip
    if cfg.distill_token:
        model.set_distilled_training()
    return model


def timm_loader(cfg: config.Experiment, data: Images):
    """Return timm's loader with the first phase's augmentation and mixing: prefetcher (on the CPU too), FastCollateMixup, four workers."""
    from timm.data import FastCollateMixup, create_loader

    phase, mix, trivial = cfg.phases[0], cfg.phases[0].mix, cfg.phases[0].augment.trivial_augment
    collate = None
    if mix:
        collate = FastCollateMixup(
            mix.mixup,
            mix.cutmix,
            prob=mix.prob,
            switch_prob=mix.switch_prob,
            label_smoothing=phase.label_smoothing,
            num_classes=data.classes,
        )
    return create_loader(
        Pictures(data), (3, 32, 32), cfg.train.batch_size, is_training=True, device=torch.device("cpu"), num_workers=TIMM_WORKERS,
        mean=data.mean, std=data.std, interpolation="random", hflip=0.5 if data.mirror else 0.0, color_jitter=None, collate_fn=collate,
        # one operation of uniform magnitude an image: the nearest there is to TrivialAugment
        auto_augment=f"rand-m10-n1-p{trivial:g}-mstd101-inc1" if trivial else None, re_prob=phase.augment.erase, re_mode="pixel",
    )  # fmt: skip


def timm(cfg: config.Experiment, data: Images, laps: Laps, amp: bool = False) -> None:
    """Train with the pieces and defaults of timm's train script."""
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3, dispatch_clip_grad

    phase = cfg.phases[0]
    model = timm_model(cfg.model, data.classes)
    laps.enter(model)
    loader = timm_loader(cfg, data)
    optimizer = create_optimizer_v2(model, "adamw", cfg.optim.lr, cfg.optim.weight_decay, betas=cfg.optim.betas)
    ema = ModelEmaV3(model, decay=cfg.ema.start) if cfg.ema else None
    smoothing = 0.0 if phase.mix else phase.label_smoothing  # mixed targets are smooth already
    updates = 0
    while True:
        start, total = time.perf_counter(), 0.0
        for images, targets in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                heads = model(images)
                loss = loss_of(heads if isinstance(heads, tuple) else [heads], targets, smoothing)
            loss.backward()
            dispatch_clip_grad(model.parameters(), cfg.optim.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            if ema:
                ema.update(model, step=updates)
            total += loss.item()
        laps(time.perf_counter() - start, total / len(loader))


CONTENDERS = {"vitlab": vitlab, "plain": plain, "timm": timm, "timm-amp": partial(timm, amp=True), "lightning": lightning}


def main() -> None:
    """Run one contender until the harness wants no more epochs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--experiment", required=True, help="its number, 01 or 06")
    parser.add_argument("--profile", required=True, choices=recipe.PROFILES)
    parser.add_argument("--images", required=True, type=Path, help="a file of recipe.Images")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    cfg, data = recipe.load(args.experiment, args.profile, tuple(args.set)), Images.read(args.images)
    torch.manual_seed(0)
    # stdout belongs to the harness, so anything that a library prints goes to stderr
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(Over):
        CONTENDERS[args.name](cfg, data, Laps(len(data.labels) // cfg.train.batch_size * cfg.train.batch_size))


if __name__ == "__main__":
    main()
