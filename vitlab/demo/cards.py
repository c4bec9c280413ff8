"""The page's HTML: the picture, and a card for each model. Every text that comes from a file or a record is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from vitlab.data import samples
from vitlab.data.sources import CIFAR10_CLASSES
from vitlab.demo.answers import UNSURE, Answer, Model, Picture, png
from vitlab.figures.grids import overlay
from vitlab.figures.style import DARK, LIGHT, Theme
from vitlab.ranking import ranked

HEADS = {"cls": "Class", "dist": "Distillation"}  # heads and their tokens, as the reports call them
BARS = 3
PLACES = (("upper left", "upper edge", "upper right"), ("left edge", "centre", "right edge"), ("lower left", "lower edge", "lower right"))


def percent(share: float, digits: int = 1) -> str:
    """Return a share as `45.0 %`."""
    return f"{100 * share:.{digits}f} %"


def colours() -> str:
    """Return CSS that names the colours of the report's two themes, for a light and for a dark page."""

    def block(theme: Theme) -> str:
        names = {
            "surface": theme.surface, "ink": theme.ink, "muted": theme.muted, "rule": theme.rule, "accent": theme.accent, "unsure": theme.claim,
            "wrong": theme.wrong,
        }  # fmt: skip
        return "".join(f"--v-{name}:{value};" for name, value in names.items())

    return f":root{{{block(LIGHT)}}}.dark{{{block(DARK)}}}.samples .sample{{background-image:url({data_uri(samples.FILE.read_bytes(), 'png')})}}"


def intro(models: Sequence[Model], name: str) -> str:
    """Return the page's heading: what the models know and what is meant by an answer. `name` is the set's or folder's."""
    record = models[0].record
    classes = record.dataset.classes
    each = ", ".join(f"<b>{escape(c)}</b>" for c in classes)
    seeds = sorted({m.record.seed for m in models})
    count, know, answer = (f"{len(models)} models", "know", "they answer") if len(models) > 1 else ("One model", "knows", "it answers")
    return (
        f"<header class='intro'><h1>What do the models see?</h1><p>{count} of <code>{escape(name)}</code> "
        f"({escape(record.dataset.name)}, profile {escape(record.profile)}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}) "
        f"{know} {len(classes)} classes and nothing else: {each}. To a picture of anything else {answer} all the same, now and then with much "
        f"confidence. Below {percent(UNSURE, 0)} a model finds it likelier that its first answer is wrong than right; the page then asks "
        "<b>none of these?</b></p></header>"
    )


def chooser() -> str:
    """Return buttons for the hundred test images. One of them is in the tab order, the arrow keys move among them."""
    buttons = [
        f"<button type='button' class='sample' data-index='{i}' tabindex='{0 if i == 0 else -1}' title='{name}' "
        f"aria-label='{name}, image {i % 10 + 1} of 10' style='background-position:{i % 10 / 9:.4%} {i // 10 / 9:.4%}'></button>"
        for i, name in enumerate(CIFAR10_CLASSES[label] for label in samples.labels())
    ]
    return (
        "<p class='label' id='samples-label'>or one of 100 test images of CIFAR-10, a row for each class</p>"
        f"<div class='samples' role='group' aria-labelledby='samples-label'>{''.join(buttons)}</div>"
    )


def view(picture: Picture, now: np.ndarray, is_changed: bool) -> str:
    """Return the picture beside the 32x32 pixels `now`, uint8 (3, 32, 32), that the models see of it."""
    name, kind = escape(picture.name), "png" if picture.shown.startswith(b"\x89PNG") else "jpeg"
    seen = "changed" if is_changed else "as the models see it"
    return (
        f"<div class='view'><figure><img class='photo' src='{data_uri(picture.shown, kind)}' alt='The picture: {name}'>"
        f"<figcaption>{name}</figcaption></figure><figure>{_pixels(now.transpose(1, 2, 0), 'seen', f'{name} at 32x32 pixels, {seen}')}"
        f"<figcaption>32x32 pixels, {seen}</figcaption></figure></div>"
    )


def problem(message: str) -> str:
    """Return what is shown where a file cannot be used; nothing for ""."""
    return f"<div class='problem' role='alert'>{escape(message)}</div>" if message else ""


def verdict(answers: Sequence[tuple[Model, Answer]], is_changed: bool) -> str:
    """Return in a sentence what the models say, and how the bars are read once the picture is changed."""
    classes = answers[0][0].record.dataset.classes
    votes: dict[str, int] = {}
    for _, answer in answers:
        votes[classes[answer.first]] = votes.get(classes[answer.first], 0) + 1
    unsure, n = sum(answer.unsure for _, answer in answers), len(answers)
    said = ", ".join(f"<b>{escape(name)}</b> ({votes[name]} of {n})" for name in sorted(votes, key=lambda name: -votes[name]))
    doubt = (
        f" <span class='doubt'>None of these? {unsure} of {n} {'is' if unsure == 1 else 'are'} below {percent(UNSURE, 0)}.</span>"
        if unsure
        else ""
    )
    marks = "<span class='label'>A mark on a bar is where it was before the change.</span>" if is_changed else ""
    return f"<p class='verdict' role='status'>{said}.{doubt} {marks}</p>"


def cards(groups: Sequence[Sequence[tuple[Model, Answer, Answer]]], now: np.ndarray) -> str:
    """Return a card for each group: a model, or a student with its teacher behind it; each with its answer before and after the change.

    now: uint8 (3, 32, 32), what the models saw; attention is laid over it.
    """
    return f"<div class='cards'>{''.join(_card(group, now) for group in groups)}</div>"


def _card(group: Sequence[tuple[Model, Answer, Answer]], now: np.ndarray) -> str:
    parts = "".join(_part(*one, "Its teacher" if i else "") for i, one in enumerate(group))
    model, _, after = group[0]
    looks = "" if after.maps is None else _attention(after.maps, now, model.net.head_names)
    return f"<article class='card{' pair' if len(group) > 1 else ''}'>{parts}{looks}</article>"


def _part(model: Model, before: Answer, after: Answer, role: str) -> str:
    record = model.record
    number = record.experiment.split("_")[0]
    mark = f"<span class='number'>{number}</span> " if number.isdigit() else ""
    variant = f" <code>{escape(record.variant)}</code>" if record.variant else ""
    heading = (
        f"<h2>{mark}{escape(record.title)}{variant}</h2><p class='about'>{f'{role} · t' if role else 'T'}est top-1 "
        f"{record.metrics['test_top1']:.1f} %</p>"
    )
    order = ranked(after.shares[None])[0][:BARS].tolist()
    bars = "".join(_bar(record.dataset.classes[i], float(after.shares[i]), float(before.shares[i]), i == order[0]) for i in order)
    doubt = f"<p class='doubt'>None of these? All below {percent(UNSURE, 0)}.</p>" if after.unsure else ""
    heads = "".join(_head(name, shares, record.dataset.classes) for name, shares in after.heads.items())
    both = f"<dl class='heads'>{heads}</dl>" if heads else ""
    return f"<section class='part{' teacher' if role else ''}{' unsure' if after.unsure else ''}'>{heading}<ul class='bars'>{bars}</ul>{doubt}{both}</section>"


def _bar(name: str, share: float, before: float, first: bool) -> str:
    """Return a class's bar, with a mark where it was before the picture was changed."""
    moved = abs(share - before) >= 0.0005
    mark = f"<i class='was' style='left:{before:.2%}'></i>" if moved else ""
    was = f", before the change {percent(before)}" if moved else ""
    return (
        f"<li{' class=first' if first else ''}><span class='name'>{escape(name)}</span><span class='share'>{percent(share)}</span>"
        f"<span class='bar' role='meter' aria-label='{escape(name)}' aria-valuemin='0' aria-valuemax='100' aria-valuenow='{100 * share:.1f}' "
        f"aria-valuetext='{percent(share)}{was}'><i class='fill' style='width:{share:.2%}'></i>{mark}</span></li>"
    )


def _head(name: str, shares: np.ndarray, classes: tuple[str, ...]) -> str:
    best = int(ranked(shares[None])[0][0])
    return f"<div><dt>{escape(HEADS.get(name, name))} head</dt><dd>{escape(classes[best])} {percent(float(shares[best]))}</dd></div>"


def _attention(maps: np.ndarray, now: np.ndarray, tokens: Sequence[str]) -> str:
    """Return, for each special token, the picture with each head's attention (S, heads, grid, grid) laid over it."""
    image = now.transpose(1, 2, 0)
    rows = []
    for token, of_heads in zip(tokens, maps, strict=True):
        tiles = overlay(np.repeat(image[None], len(of_heads), 0), of_heads)
        name = escape(HEADS.get(token, token))
        figures = "".join(
            _pixels(tile, "look", f"{name} token, attention head {i}: looks most at the {place(one)}")
            for i, (tile, one) in enumerate(zip(tiles, of_heads, strict=True), 1)
        )
        rows.append(f"<div><p class='label'>{name} token’s attention, by head</p><div class='looks'>{figures}</div></div>")
    return f"<section class='attention'>{''.join(rows)}</section>"


def place(attention: np.ndarray) -> str:
    """Return in words which ninth of the picture a map (grid, grid) has its largest value in."""
    grid = len(attention)
    row, column = divmod(int(attention.argmax()), grid)
    return PLACES[row * 3 // grid][column * 3 // grid]


def _pixels(image: np.ndarray, style: str, text: str) -> str:
    return f"<img class='{style}' src='{data_uri(png(np.ascontiguousarray(image)), 'png')}' alt='{text}'>"


def data_uri(content: bytes, kind: str) -> str:
    """Return the bytes of an image as what an <img> can show without a file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
