"""Experiment files: those of the ladder, and a tiny one that has nearly everything."""

from __future__ import annotations

from vitlab.paths import EXPERIMENTS

LADDER = [*sorted(p for p in EXPERIMENTS.glob("*.yaml") if p.name != "claims.yaml"), *sorted((EXPERIMENTS / "teachers").glob("*.yaml"))]
TINY = """\
title: Tiny
model: {name: vit, dim: 16, depth: 3, heads: 2, patch_size: 8, dropout: 0.1, drop_path: 0.2, layer_scale: 0.1, position: relative, class_attention: 1, distill_token: true}
phases:
  - name: strong
    augment: {crop: 4, flip: true, trivial_augment: 1.0, erase: 0.5, color_jitter: {brightness: 0.2, hue: 0.1}}
    mix: {mixup: 0.4, cutmix: 1.0}
    label_smoothing: 0.1
  - {name: clean, percent: 25}
optim: {name: adamw, lr: 1e-2, warmup: {percent: 10}, grad_clip: 1.0}
train: {epochs: 4, batch_size: 16}
ema: {start: 0.5, end: 0.9}
"""
