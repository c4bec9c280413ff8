# ---
# jupyter:
#   accelerator: GPU
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # vitlab in one notebook
#
# From one augmented image to a tested claim: a small vision transformer, one that a ResNet-18 teaches, and how to tell whether a difference
# between two models is more than luck. Run the cells from top to bottom.
#
# 1. What this machine can do
# 2. One image, augmented
# 3. Train a teacher and two rungs of the ladder, and watch
# 4. Compare the runs
# 5. The ladder: my runs, and what is published
# 6. A claim, from declaration to verdict
# 7. Where a model looks
# 8. What it says of my own picture
# 9. All runs in MLflow
#
# The first cell installs vitlab in Colab. In a checkout `make setup` has done that: choose the Python of its `.venv` as the kernel.

# %%
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPOSITORY = ""  # for Colab: the address of vitlab, or of a fork, as git clone takes it; empty: the cell asks

CHECKOUT = next((folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "runner.py").exists()), Path.cwd() / "vitlab")
if not CHECKOUT.exists():
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY or input("vitlab's address, for git clone: "), CHECKOUT], check=True)
if "google.colab" in sys.modules:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", CHECKOUT], check=True)  # a torch new enough is kept
    stale = [name for name in ("numpy", "pandas") if name in sys.modules and sys.modules[name].__version__ != version(name)]
    assert not stale, f"{' and '.join(stale)} is in use, and pip has replaced it: choose Runtime > Restart session and run all"
os.chdir(CHECKOUT)
sys.path.insert(0, str(CHECKOUT))

# %% [markdown]
# ## 1. What this machine can do
#
# A *profile* is the size at which experiments run. With a GPU this notebook takes `ledger`, which trains on all of CIFAR-10, and downloads
# it. Without one it takes `quick`: small models on 8x8 pictures of handwritten digits, which come with scikit-learn.
# Write other values here if you like, for example `PROFILE, DATA = "quick", "cifar10"`.

# %% tags=["parameters"]
PROFILE = "auto"  # quick, ledger, overnight or full
DATA = "auto"  # digits, cifar10, cifar100, or a folder of images
SEED = 0
PICTURE = None  # for part 8: a picture of my own, as seen from the checkout; in Colab google.colab.files.upload() brings it

# %%
import shlex
import time

import numpy as np
import pandas as pd
import torch
from IPython.display import SVG, display
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image

from vitlab.data import sources
from vitlab.figures import style
from vitlab.paths import REPORTS, ROOT, RUNS
from vitlab.run import plan
from vitlab.train import machine

gpu = torch.cuda.is_available()
PROFILE = ("ledger" if gpu else "quick") if PROFILE == "auto" else PROFILE
DATA = ("cifar10" if gpu else "digits") if DATA == "auto" else DATA
print(f"{machine.device_name(machine.device())}: profile {PROFILE}, data {DATA}, seed {SEED}; runs go to {os.path.relpath(RUNS)}")


def command(line, watch=lambda: None):
    """Carry out a vitlab command, as a terminal would. `watch` is called every other second while it trains."""
    watched = 0
    words = [sys.executable, "-m", "vitlab", *shlex.split(line)]
    plain = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}  # which Jupyter sets; no colours and no bars here
    with subprocess.Popen(words, env=plain, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for said in process.stdout:
            if "  epoch " not in said:  # the line that each epoch has
                print(said, end="")
            elif time.monotonic() > watched + 2:
                watch()
                watched = time.monotonic()
    assert process.returncode == 0, f"vitlab {line}: exit code {process.returncode}"


# Pictures are drawn in the style of vitlab's own pages.
set_matplotlib_formats("retina", bbox_inches=None)
COLORS = style.LIGHT.series


def mosaic(rows, title, about, below=()):
    """Draw rows of images, {name: (N, 32, 32, 3) uint8}, with a text below each of the last."""
    with style.style(style.LIGHT):
        lines = [np.hstack(np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)) for images in rows.values()]
        height, width = len(lines) * 34, lines[0].shape[1]
        figure = style.figure(9.4, 0.9 + 7.8 * height / width)
        ax = figure.add_subplot()
        ax.imshow(np.vstack(lines))
        ax.set_yticks(np.arange(17, height, 34), list(rows), color=style.LIGHT.ink)
        ax.set_xticks(np.arange(17, width, 34)[: len(below)], below)
        ax.spines[:].set_visible(False)
        style.lay_out(figure, title, about)
    return figure


# %% [markdown]
# ## 2. One image, augmented
#
# A network that sees each image exactly as it is soon knows it by heart. So every time an image comes up, it is changed a little. These are
# eight epochs of one image as three experiments see it: plain crops and flips; TrivialAugment and erasing; and Mixup and CutMix, which mix it
# with another image. What is drawn depends on the seed and the step alone, so the same cell gives the same pictures.

# %% tags=["picture"]
from vitlab import config
from vitlab.data import augment, rng, samples
from vitlab.paths import EXPERIMENTS

MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])  # of CIFAR-10's pixels
HORSE, CAR = samples.images()[[72, 13]]  # of the hundred CIFAR-10 test images that come with vitlab


def views(experiment, count=8):
    """Return the horse as the experiment sees it in `count` steps: (count, 32, 32, 3) uint8."""
    phase = config.load(EXPERIMENTS / f"{experiment}.yaml", "full").config.phases[0]
    batch = torch.from_numpy(np.stack([HORSE, CAR])).permute(0, 3, 1, 2)  # (2, 3, 32, 32)
    seen = []
    for step in range(count):
        draws = rng.generator(SEED, "augment", step, "cpu")
        images = augment.augment(batch, phase.augment, MEAN, STD, draws, mirror=True)
        if phase.mix:
            shares = [torch.tensor(share) for share in augment.draw_shares(phase.mix, rng.seed_for(SEED, "augment", step))]
            images, _ = augment.mix(images, torch.eye(2), phase.mix, shares, draws)
        seen.append(images[0] * STD[:, None, None] + MEAN[:, None, None])
    return (255 * torch.stack(seen)).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


white = np.full_like(HORSE, 255)
rows = {
    "as it is, and\nwhat 05 mixes in": np.stack([HORSE, CAR, *[white] * 6]),
    "01: crop, flip": views("01_baseline_vit"),
    "ResNet-18: TrivialAugment,\nerase": views("teachers/resnet18"),
    "05: Mixup, CutMix,\njitter, erase": views("05_kd_r18"),
}
about = "a CIFAR-10 test image; strengths as at full size, smaller profiles weaken them"
display(mosaic(rows, "One image in eight epochs", about))

# %% [markdown]
# ## 3. Train a teacher and two rungs of the ladder
#
# `01_baseline_vit` is a plain vision transformer. `05_kd_r18` is a regularised one that learns from a teacher, so the teacher, a ResNet-18, is
# trained first. This is the plan. Its times come from the last run finished here; before the first they are a guess for a processor, of which
# a GPU takes a small part.

# %%
LADDER = ["01_baseline_vit", "05_kd_r18"]
ON = f"--profile {PROFILE} --data {shlex.quote(DATA)}"
command(f"run {' '.join(LADDER)} {ON} --seeds {SEED} --dry-run")

# %% [markdown]
# The next cell trains them. It may be interrupted at any time: run again, it goes on from the last checkpoint, and what is finished is not
# trained again. The curves are read from the runs' journals, where everything measured is written first.
#
# *Train* is measured on augmented, partly mixed images, *validation* on clean ones that were set aside. So validation may well be the
# better of the two. The student's training loss also counts how far it is from its teacher.

# %% tags=["picture"]
from vitlab.track.journal import read_journal

source = sources.resolve(DATA, Path(os.environ.get("VITLAB_DATA_DIR", "data")), PROFILE, download=True)
runs = plan.make([Path(name) for name in LADDER], PROFILE, source, [SEED], (), RUNS)
runs.sort(key=lambda run: run.resolved.config.model.name)  # the teacher first


def history(run):
    """Return what the run's journal has of each epoch, as a table."""
    path = run.folder / "journal.jsonl"
    entries = read_journal(path) if path.exists() else []
    return pd.DataFrame([entry["values"] for _, entry in entries if entry["kind"] == "metrics"])


def curves():
    """Draw top-1 and loss of each run, by epoch, as far as the runs have come."""
    with style.style(style.LIGHT):
        figure = style.figure(9.4, 4.6)
        axes = figure.subplots(2, len(runs), sharey="row", sharex="col")
        for (top1, loss), run, color in zip(axes.T, runs, COLORS, strict=False):
            rows, epochs = history(run), run.resolved.config.train.epochs
            for part, line in (("train", ":"), ("validation", "-")) if len(rows) else ():
                for ax, name in ((top1, "top1"), (loss, "loss")):
                    ax.plot(rows["epoch"], rows[f"{part}/{name}"], line, color=color, label=part, marker="." if epochs < 13 else "")
            for ax in (top1, loss):
                ax.grid(axis="y")
            top1.set(title=run.resolved.config.title, xlim=(0, 1.02 * epochs), ylim=(0, 100))
            if len(rows):
                top1.legend()
            loss.set_xlabel("epoch")
        axes[0, 0].set_ylabel("top-1 (%)")
        axes[1, 0].set_ylabel("loss")
        done = sum(run.finished for run in runs)
        style.lay_out(figure, "Training", f"{source.name}  ·  profile {PROFILE}  ·  seed {SEED}  ·  {done} of {len(runs)} runs finished")
    return figure


shown = display(curves(), display_id=True)
command(f"run {' '.join(LADDER)} {ON} --seeds {SEED}", watch=lambda: shown.update(curves()))
shown.update(curves())

# %% [markdown]
# ## 4. Compare the runs
#
# Each finished run leaves a record with everything that reports need. The test images were looked at once, after the last epoch; nothing was
# chosen by them. *Gain* is the student's test top-1 less its teacher's, *agreement* the share of test images on which both say the same.

# %% tags=["table"]
records = [run.record() for run in runs]
table = pd.DataFrame(
    {
        "experiment": record.title,
        "test top-1 (%)": record.metrics["test_top1"],
        "validation top-1 (%)": record.metrics["validation_top1"],
        "parameters (M)": record.params / 1e6,
        "GFLOPs per image": record.flops / 1e9,
        "training (s)": record.train_seconds,
        "gain (points)": record.teacher.gain if record.teacher else None,
        "agreement (%)": record.teacher.agreement if record.teacher else None,
    }
    for record in records
)
display(table.style.format(precision=2, na_rep="–").format(precision=3, subset=["parameters (M)", "GFLOPs per image"]).hide())

# %% tags=["picture"]
with style.style(style.LIGHT):
    figure = style.figure(9.4, 4.2)
    left, right = figure.subplots(1, 2)
    for i, (run, record) in enumerate(zip(runs, records, strict=True)):
        rows = history(run)
        share, look = 100 * rows["epoch"] / rows["epoch"].max(), {"color": COLORS[i], "marker": style.MARKERS[i], "markersize": 5}
        left.plot(share, rows["validation/top1"], markevery=[-1], label=record.title, **look)
        right.plot([c.accuracy for c in record.per_class], range(len(record.per_class)), linestyle="", alpha=0.8, **look)
    left.set(title="validation top-1 (%)", xlabel="share of the training (%)")
    left.legend(loc="lower right")
    right.set(title="accuracy on each class's test images (%)", yticks=range(len(record.per_class)))
    right.set_yticklabels([style.short(c.name, 18) for c in record.per_class])
    right.invert_yaxis()
    for ax in (left, right):
        ax.grid()
    style.lay_out(figure, "Three runs", f"{source.name}  ·  profile {PROFILE}  ·  seed {SEED}")
display(figure)

# %% [markdown]
# Two accuracies may differ by luck. Both models saw the same test images, so the sharper question is: on the images where exactly one of them is
# right, which one is it? If they were equally good, each would win half of these (McNemar's test).
# This is about these two runs. Whether distillation *in general* helps takes more seeds; see part 6.

# %% tags=["table"]
from vitlab import stats
from vitlab.claims import images

right = {run.resolved.id: images.correct(run.folder / "predictions.npz", "test_top1")[1] for run in runs}
names = {True: "right", False: "wrong"}
plain, taught = (pd.Series(right[name], name=name).map(names) for name in LADDER)
display(pd.crosstab(plain, taught))
pair = stats.pair(right["05_kd_r18"], right["01_baseline_vit"], confidence=0.95)
print(f"05 alone is right on {pair.only_first} images, 01 alone on {pair.only_second}: p = {pair.p:.2g}")
print(f"test top-1 of 05 less that of 01: {pair.low:+.2f} to {pair.high:+.2f} points, by bootstrap over the test images (95 %)")

# %% [markdown]
# ## 5. The ladder: my runs, and what is published
#
# `vitlab report` compiles all that is finished here into tables, charts and pages. `report.html` in the folder that it names has more than
# is shown here. *Claimed* is what the reports that vitlab repeats say of CIFAR-10 at their own, much larger size.

# %% tags=["table", "picture"]
command("report")


def ladder(folder):
    """Show a set's table, as its summary.csv has it."""
    columns = {
        "label": "experiment",
        "claimed": "claimed top-1 (%)",
        "top1": "test top-1 (%)",
        "ci95_half": "±, 95 % CI",
        "seeds": "seeds",
        "params": "parameters",
        "gflops": "GFLOPs",
    }
    table = pd.read_csv(folder / "summary.csv")[list(columns)].rename(columns=columns)
    display(table.style.format(precision=2, na_rep="–", thousands=",").format("{:.3g}", subset="GFLOPs").hide())


mine = REPORTS / f"{PROFILE}-{source.name}"
ladder(mine)
display(SVG(mine / "figures" / "accuracy_cost-light.svg"))

# %% [markdown]
# These are the numbers published with vitlab: the whole ladder at the profile `ledger`, on all of CIFAR-10. Claimed and measured stand
# side by side; the sizes, and so the numbers, are not the same.

# %% tags=["table", "picture"]
published = CHECKOUT / "results" / "ledger-cifar10"
ladder(published)
display(SVG(published / "figures" / "claimed_measured-light.svg"))
display(SVG(published / "figures" / "accuracy_cost-light.svg"))

# %% [markdown]
# ## 6. A claim, from declaration to verdict
#
# One run with one seed says little. So a claim is written down *before* anything is trained for it: what is compared, by what metric, with
# which seeds, and which effect would support it. Whatever was chosen above, this one is tested at the profile `quick` on the digits, and with
# few epochs, because it takes several seeds.

# %%
DECLARATION = """\
confidence: 0.95
first_seed: 10  # seeds below are for trying things out
stages:
  - {seeds: 4, alpha: 0.05}
claims:
  - id: patches
    statement: On digits, patches of 4x4 beat 8x8.
    brief: patches of 4x4 are ahead of 8x8 by
    source: my own idea
    primary: true  # tested
    expected: 5    # points of test top-1, what I think it is
    sd: 2          # points, how much I think the difference varies from seed to seed
    arms:
      - {experiment: 01_baseline_vit, set: [train.epochs=8]}
      - {experiment: 01_baseline_vit, set: [train.epochs=8, model.patch_size=8]}
    metric: test_top1
    at_least: 0
"""
REPORTS.mkdir(exist_ok=True)
declared = REPORTS / "patches.yaml"
declared.write_text(DECLARATION, encoding="utf-8")
claim_on = f"{shlex.quote(str(declared))} --profile quick --data digits"

# %% [markdown]
# What can so few seeds find out? The plan says how likely a verdict is if the effect is the expected one, which effect these seeds *see*, and
# how long it takes. If the chance were small, now would be the time for more seeds: later is too late.

# %%
command(f"plan-claims {claim_on}")

# %% [markdown]
# Now the runs, each arm with each seed, and the verdict. *Supported* and *refuted* mean that the effect is further from the bound than chance
# explains. *Undecided* does not mean that there is no effect. A refuted claim is a result too.

# %% tags=["picture", "verdict"]
from vitlab.claiming import kept
from vitlab.claims import ledger
from vitlab.report import forest

command(f"claims {claim_on} --run")
book = ledger.read(kept(declared, "quick-digits"))
forest.draw(book, REPORTS / "quick-digits" / "patches")
display(SVG(REPORTS / "quick-digits" / "patches" / f"{forest.NAME}-light.svg"))
print(f"Verdict: {book.results[0].verdict}")

# %% [markdown]
# ## 7. Where a model looks
#
# The published model ends in class attention: special tokens ask all patches of the image and answer with a class. What they ask can be
# drawn. Orange is where a token looks, mean over its heads; `cls` learns from the labels, `dist` from the teacher. Below each image is what
# the model takes it for. These are CIFAR-10 test images, on which it was not trained.

# %% tags=["picture"]
import vitlab
from vitlab.figures import grids
from vitlab.models.attention import class_attention

model, transform = vitlab.load(published)
some = samples.images()[[3, 12, 25, 38, 41, 54, 66, 72, 85, 97]]  # one of each class
batch = torch.stack([transform(Image.fromarray(image)) for image in some])
looks = class_attention(model, batch).mean(2).numpy()  # (N, tokens, grid, grid)
with torch.inference_mode():
    guesses = model(batch).argmax(-1).tolist()
rows = {"image": some} | {token: grids.overlay(some, looks[:, i]) for i, token in enumerate(model.head_names)}
below = [f"{'✓' if guess == true else '✗'} {model.classes[guess]}" for true, guess in enumerate(guesses)]
display(mosaic(rows, "Where class attention looks", "the last block; each map's largest value is full orange", below))

# %% [markdown]
# ## 8. What it says of my own picture
#
# Set `PICTURE` at the top to the path of a picture, run that cell, then this one. The model knows ten classes and nothing else: it has to choose one of
# them, whatever the picture shows. It sees 32x32 pixels, drawn here as they are.

# %% tags=["picture"]
from PIL import ImageOps

picture = Image.open(PICTURE) if PICTURE else Image.fromarray(HORSE)
with torch.inference_mode():
    shares, best = model(transform(picture).unsqueeze(0)).softmax(-1)[0].topk(3)
with style.style(style.LIGHT):
    figure = style.figure(7.0, 3.0)
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    left.imshow(ImageOps.exif_transpose(picture).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    left.set_axis_off()
    left.set_anchor("N")
    right.barh([model.classes[i] for i in best], 100 * shares, color=COLORS[0], height=0.6)
    right.invert_yaxis()
    right.set(xlim=(0, 100), xlabel="probability that the model gives (%)")
    right.grid(axis="x")
    style.lay_out(
        figure, f"{model.classes[best[0]]}, says the model", style.short(str(PICTURE or "one of the test images that come along"), 80)
    )
display(figure)

# %% [markdown]
# ## 9. All runs in MLflow
#
# Everything above went to MLflow as well: parameters, curves, pictures, models. This is its table of the runs on this data set;
# in a checkout on your own machine `make ui` prints its address and starts MLflow's UI there, where runs can be selected and compared.

# %% tags=["table"]
import warnings

from vitlab.track import store

warnings.filterwarnings("ignore", message="IProgress not found")  # a bar that this notebook has no use for
store.import_mlflow()  # without telemetry
import mlflow

mlflow.set_tracking_uri(store.tracking_uri(ROOT))
found = mlflow.search_runs(
    experiment_names=[store.EXPERIMENT],
    filter_string=f"tags.`vitlab.kind` = 'seed' and tags.`vitlab.finished` = 'true' and tags.`vitlab.dataset` = '{source.name}'",
    order_by=["metrics.`final/test_top1` DESC"],
)
columns = {
    "tags.vitlab.experiment": "experiment",
    "tags.vitlab.variant": "changed by --set",
    "tags.vitlab.profile": "profile",
    "tags.vitlab.seed": "seed",
    "metrics.final/test_top1": "test top-1 (%)",
    "metrics.final/params": "parameters",
    "metrics.final/train_seconds": "training (s)",
    "start_time": "started",
}
table = found[list(columns)].rename(columns=columns)
display(
    table.style.format(precision=2, thousands=",")
    .format("{:,.0f}", subset="parameters")
    .format("{:%Y-%m-%d %H:%M}", subset="started")
    .hide()
)

# %% [markdown]
# ## And now
#
# - Change one thing: `command("run 01_baseline_vit --set model.patch_size=8 " + ON)`, and run part 9 again.
# - `vitlab init my-study` makes a folder for an ablation of my own: an experiment, a claim, and a README with the commands.
# - README.md leads to the rest: profiles, statistics, claims, models to take elsewhere.
