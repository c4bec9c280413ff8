"""The page itself, built with Gradio. Importing this imports Gradio: server.py has its environment set before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from vitlab.data.sources import CIFAR10_CLASSES
from vitlab.demo import answers, cards
from vitlab.demo.answers import REACH, Model, Picture
from vitlab.errors import UserError
from vitlab.figures.style import DARK, LIGHT

FIRST = 30  # of the test images: what the page opens with
PIECES = 300  # seconds after which a file that was uploaded and never asked for is deleted
STYLE = Path(__file__).with_name("page.css")
SAMPLES_JS = """
const buttons = [...element.querySelectorAll('.sample')];
element.addEventListener('click', (e) => {
  const chosen = e.target.closest('.sample');
  if (chosen) { move(chosen); trigger('click', {index: Number(chosen.dataset.index)}); }
});
element.addEventListener('keydown', (e) => {
  const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10}[e.key];
  const to = buttons[buttons.indexOf(e.target) + step];
  if (step && e.target.closest('.sample')) { e.preventDefault(); if (to) { move(to); to.focus(); } }
});
function move(to) { buttons.forEach((b) => { b.tabIndex = b === to ? 0 : -1; }); }
"""


def head() -> str:
    """Return what goes into the page's <head>."""
    return f"<style>{cards.colours()}{STYLE.read_text(encoding='utf-8')}</style>"


def theme() -> gr.themes.Base:
    """Return Gradio's plainest theme in the report's blue, with the system's fonts: none is fetched."""
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]).set(
        body_background_fill=LIGHT.surface, body_background_fill_dark=DARK.surface, body_text_color=LIGHT.ink, body_text_color_dark=DARK.ink,
        block_background_fill=LIGHT.surface, block_background_fill_dark=DARK.surface, slider_color=LIGHT.accent, slider_color_dark=DARK.accent,
        border_color_primary=LIGHT.rule, border_color_primary_dark=DARK.rule, input_background_fill_dark=DARK.surface,
        block_label_background_fill_dark=DARK.surface, block_label_text_color=LIGHT.muted, block_label_text_color_dark=DARK.muted,
    )  # fmt: skip


def build(models: Sequence[Model], name: str) -> gr.Blocks:
    """Return the page on which these models answer, all of one data set; `name` is what they are called together."""
    paired = answers.pairs(models)
    knows_samples = models[0].record.dataset.classes == CIFAR10_CLASSES

    def show(picture: Picture, right: float, down: float, brightness: float) -> tuple[str, str, str]:
        now = answers.moved(picture.pixels, int(right), int(down), brightness)
        found = {id(model): answers.answer(model, [picture.pixels, now]) for model in models}
        groups = [[(m, *found[id(m)]) for m in pair if m is not None] for pair in paired]
        is_changed = (right, down, brightness) != (0, 0, 1)
        return (
            cards.view(picture, now, is_changed),
            cards.verdict([(m, found[id(m)][1]) for m in models], is_changed),
            cards.cards(groups, now),
        )

    def still(picture: Picture) -> tuple:
        return picture, *show(picture, 0, 0, 1), 0, 0, 1, ""

    def upload(file: str | None, before: Picture, *sliders: float) -> tuple:
        if file is None:
            return before, *show(before, *sliders), *sliders, "", None
        path = Path(file)
        try:
            return *still(answers.read(path)), None
        except UserError as e:
            message = str(e).replace(str(path), path.name)
            return before, *show(before, *sliders), *sliders, cards.problem(f"{message}. Below is the picture before."), None
        finally:
            path.unlink(missing_ok=True)  # nothing is kept

    def choose(event: gr.EventData) -> tuple:
        return still(answers.sample(event.index))

    first = answers.sample(FIRST)
    at_first = show(first, 0, 0, 1)
    with gr.Blocks(title="vitlab demo", analytics_enabled=False, delete_cache=(PIECES, PIECES)) as page:
        picture = gr.State(first)
        gr.HTML(cards.intro(models, name), apply_default_css=False)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                file = gr.File(label="A picture of your own", file_types=["image"], height=150, elem_id="own")
                sample = gr.HTML(cards.chooser(), js_on_load=SAMPLES_JS, visible=knows_samples, apply_default_css=False)
            with gr.Column(scale=2, min_width=320):
                problem = gr.HTML("", apply_default_css=False)
                view = gr.HTML(at_first[0], apply_default_css=False)
                with gr.Row():
                    right = gr.Slider(-REACH, REACH, 0, step=1, label="Shift right (px)", min_width=150)
                    down = gr.Slider(-REACH, REACH, 0, step=1, label="Shift down (px)", min_width=150)
                    bright = gr.Slider(0.5, 1.5, 1, step=0.05, label="Brightness", min_width=150)
                verdict = gr.HTML(at_first[1], apply_default_css=False)
        grid = gr.HTML(at_first[2], apply_default_css=False)
        sliders, shown = [right, down, bright], [view, verdict, grid]
        everything = [picture, *shown, *sliders, problem]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        file.upload(upload, [file, picture, *sliders], [*everything, file], **(quiet | {"show_progress": "full", "show_progress_on": file}))
        sample.click(choose, None, everything, **quiet)
        for slider in sliders:
            slider.input(show, [picture, *sliders], shown, trigger_mode="always_last", **quiet)
    return page
