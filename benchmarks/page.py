"""From the measured numbers (`latest.json`) to ratios, verdicts and the page (`README.md`). Nothing is measured here."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from textwrap import fill
from typing import Any

from benchmarks.recipe import RECIPES

PEERS = {  # with what the page says of each
    "plain": "a plain PyTorch loop: torchvision's v2 transforms, DataLoader with 2 workers, eager",
    "timm": "timm's model, loader, mixing, EMA and optimizer factory, as its train script sets them",
    "timm-amp": "the same with `--amp` in bf16",
    "lightning": "Lightning's Trainer with the plain loop's model and data",
}
TITLES = {"01": "01, the baseline ViT", "06": "06's student, without its teacher"}
FASTER, FASTER_BF16, FASTER_INPUT = 2.5, 1.5, 10.0  # times the peer's images per second
HELP_SECONDS, PLAN_SECONDS, BOOKKEEPING = 0.3, 1.5, 0.01
EPOCH_IMAGES = 47_500  # all of CIFAR-10's but the validation split
# By how much numbers of parameters may differ; timm has no class attention, so in 06 it lacks the parameters of that.
SAME_SIZE, SAME_SIZE_TIMM_06 = 0.01, 0.1


@dataclass(frozen=True)
class Spread:
    """The median of some values, and the least and largest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of these values."""
        return cls(median(values), min(values), max(values))

    def text(self, digits: int, unit: str = "") -> str:
        """Return `1.09x (1.05–1.12)` for two digits and the unit x."""
        return f"{self.median:,.{digits}f}{unit} ({self.low:,.{digits}f}–{self.high:,.{digits}f})"


@dataclass(frozen=True)
class Target:
    """One target: what it is about, what was wanted and what was measured."""

    what: str
    wanted: str
    measured: str
    reached: bool | None  # None: not measured

    @property
    def verdict(self) -> str:
        """Return in Markdown whether the target is reached."""
        return {True: "reached", False: "**not reached**", None: "**not measured**"}[self.reached]


def ratio(rounds: list[dict[str, dict[str, float]]], peer: str) -> Spread:
    """Return the spread of vitlab's images per second over the peer's, over the rounds in which the peer took part."""
    return Spread.of([r["vitlab"]["img_s"] / r[peer]["img_s"] for r in rounds if peer in r])


def peak_rss(experiment: dict[str, Any], name: str) -> float:
    """Return the contender's peak memory in MB."""
    return max(r[name]["peak_rss_mb"] for r in experiment["rounds"] if name in r)


def losses(experiment: dict[str, Any], name: str) -> tuple[float, float]:
    """Return the contender's mean loss in the first epoch (the warm-up) and in the last."""
    return experiment["ready"][name]["loss"], [r[name]["loss"] for r in experiment["rounds"] if name in r][-1]


def learns(experiment: dict[str, Any], name: str) -> bool:
    """Return whether the contender's loss goes down."""
    first, last = losses(experiment, name)
    return last < first


def same_size(ready: dict[str, Any], name: str, number: str) -> bool:
    """Return whether `name` has about as many parameters as vitlab's model of experiment `number`."""
    ours = ready["vitlab"]["parameters"]
    most = SAME_SIZE_TIMM_06 if number == "06" and name.startswith("timm") else SAME_SIZE
    return abs(ready[name]["parameters"] - ours) <= most * ours


def targets(results: dict[str, Any]) -> list[Target]:
    """Return the targets beside what was measured."""
    found = []
    for number, experiment in results["experiments"].items():
        for peer in PEERS:
            least = FASTER_BF16 if peer == "timm-amp" else FASTER
            r = ratio(experiment["rounds"], peer)
            found.append(Target(f"training, {number}: images per second against {peer}", f"≥ {least}x", r.text(2, "x"), r.median >= least))
    speeds = results["input"]["06"]
    r = Spread.of([a / b for a, b in zip(speeds["vitlab"], speeds["torchvision"], strict=True)])
    found.append(
        Target(
            "input path, TrivialAugment: images per second against torchvision",
            f"≥ {FASTER_INPUT:.0f}x",
            r.text(1, "x"),
            r.median >= FASTER_INPUT,
        )
    )
    for number, experiment in results["experiments"].items():
        ours = peak_rss(experiment, "vitlab")
        least, peer = min((peak_rss(experiment, p), p) for p in PEERS)
        found.append(
            Target(
                f"peak memory, {number}: no more than the leanest peer's", f"≤ {least:,.0f} MB ({peer})", f"{ours:,.0f} MB", ours <= least
            )
        )
    for key, what, most in (("help", "`runner.py --help`", HELP_SECONDS), ("plan", "`runner.py experiments --dry-run`", PLAN_SECONDS)):
        r = Spread.of(results["startup"][key])
        found.append(Target(what, f"≤ {most} s", r.text(2, " s"), r.median <= most))
    book = results["bookkeeping"]
    share = bookkeeping_share(book)
    what = f"tracking, checkpoints and bookkeeping: share of 01's time in the profile `{book['profile']}`"
    measured = f"{share:.2%}: {in_loop(book):.2%} while training, then {book['closing']:.1f} s once"
    found.append(Target(what, f"≤ {BOOKKEEPING:.0%}", measured, share <= BOOKKEEPING))
    return found


def in_loop(book: dict[str, float]) -> float:
    """Return the share of the loop's time that goes into checkpoints and tracking."""
    return (book["checkpoint"] + book["tracking"]) / (book["training"] + book["checkpoint"] + book["tracking"])


def bookkeeping_share(book: dict[str, float]) -> float:
    """Return the share of bookkeeping in a whole run of 01 at the short one's speed: that in the loop, and once what the end takes."""
    return in_loop(book) + book["closing"] / (book["epochs"] * EPOCH_IMAGES * book["training"] / book["images"])


def faults(results: dict[str, Any]) -> list[str]:
    """Return a line for each contender that does not learn, since its speed is then worth nothing."""
    experiments = results["experiments"].items()
    return [f"{number}: the loss of {name} does not go down" for number, e in experiments for name in e["ready"] if not learns(e, name)]


def page(results: dict[str, Any]) -> str:
    """Return benchmarks/README.md, a function of `latest.json` alone."""
    machine = results["machine"]
    verdicts = targets(results)
    missed = sum(t.reached is not True for t in verdicts)
    lines = [
        "# vitlab and its peers",
        "",
        f"Measured on {results['date']} with `make bench`, in {results['seconds'] / 60:.1f} minutes, on {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gb']:.0f} GB, {'with' if machine['bf16'] else 'without'} bf16 in hardware. "
        "Medians, with the least and the largest of the rounds in brackets; raw numbers in [latest.json](latest.json).",
        "",
        "All targets are reached." if not missed else f"**{missed} of {len(verdicts)} targets are not reached** or not measured.",
        "",
        *_table(("target", "wanted", "measured", ""), [(t.what, t.wanted, t.measured, t.verdict) for t in verdicts]),
        *(["", *(f"**Fault:** {f}." for f in faults(results))] if faults(results) else []),
    ]
    if results["sets"]:
        lines += ["", f"**Not at full size:** with {', '.join(f'`{s}`' for s in results['sets'])}."]
    if not machine["bf16"]:
        lines += ["", "This processor emulates bf16, so `timm-amp` shows what `--amp` costs here, not what it gains elsewhere."]
    for number, experiment in results["experiments"].items():
        lines += ["", f"## Training: {TITLES[number]}", "", *_training(experiment)]
    lines += ["", "## Input path", "", *_input_path(results["input"]), "", "## How it is measured", "", *_how(results)]
    return "\n".join(lines) + "\n"


def summary(results: dict[str, Any]) -> str:
    """Return the page in one paragraph, for docs/speed.md."""
    machine, peers = results["machine"], ("plain", "timm", "lightning")
    faster = {n: [ratio(e["rounds"], peer).median for peer in peers] for n, e in results["experiments"].items()}
    speeds = results["input"]["06"]
    inputs = median(a / b for a, b in zip(speeds["vitlab"], speeds["torchvision"], strict=True))
    (plain, timm, lightning), (plain_06, timm_06, lightning_06) = faster["01"], faster["06"]
    missed = min(plain, timm, lightning, plain_06, timm_06, lightning_06) < FASTER
    size = f"with {' '.join(results['sets'])}" if results["sets"] else "full size"
    text = (
        f"On {machine['cpu']}, {machine['cores']} cores, {'with' if machine['bf16'] else 'without'} bf16 in hardware, {size}, "
        f"batch {results['batch']}, {results['dataset']}, medians of rounds: 01's ViT trains {plain:.2f} times as fast as a plain PyTorch loop, "
        f"{timm:.2f} as timm, {lightning:.2f} as Lightning; 06's student without its teacher {plain_06:.2f}, {timm_06:.2f} and "
        f"{lightning_06:.2f} times; the input path with TrivialAugment runs at {inputs:.1f} times torchvision's rate. "
        f"The aim was {FASTER} times{', and **is not reached**' if missed else ''}."
    )
    return fill(text, 130, break_on_hyphens=False)


def _training(experiment: dict[str, Any]) -> list[str]:
    rounds, ready = experiment["rounds"], experiment["ready"]
    rows = []
    for name, facts in ready.items():
        speed = Spread.of([r[name]["img_s"] for r in rounds if name in r])
        faster, per_flop = ("", "")
        if name != "vitlab":
            r = ratio(rounds, name)
            faster, per_flop = r.text(2, "x"), f"{r.median * ready['vitlab']['flops'] / facts['flops']:.2f}x"
        first, last = losses(experiment, name)
        rows.append(
            (name, speed.text(1), faster, per_flop, f"{peak_rss(experiment, name):,.0f}", f"{facts['parameters'] / 1e6:.2f}",
             f"{facts['flops'] / 1e9:.2f}", f"{first:.3f} → {last:.3f}{'' if last < first else ' (**does not go down**)'}")
        )  # fmt: skip
    head = (
        "",
        "images per second",
        "vitlab is faster by",
        "by FLOPs",
        "peak memory, MB",
        "parameters, M",
        "GFLOPs",
        "loss, first to last epoch",
    )
    return _table(head, rows)


def _input_path(recipes: dict[str, dict[str, list[float]]]) -> list[str]:
    rows = []
    for number, speeds in recipes.items():
        ours, theirs = (Spread.of(speeds[name]) for name in ("vitlab", "torchvision"))
        r = Spread.of([a / b for a, b in zip(speeds["vitlab"], speeds["torchvision"], strict=True)])
        rows.append((f"{number}: {RECIPES[number]}", ours.text(0), theirs.text(0), r.text(1, "x")))
    head = ("recipe, batches of 192", "vitlab, images per second of CPU", "torchvision", "vitlab is faster by")
    return _table(head, rows)


def _how(results: dict[str, Any]) -> list[str]:
    rounds = {number: len(e["rounds"]) for number, e in results["experiments"].items()}
    threads = sorted({facts["threads"] for e in results["experiments"].values() for facts in e["ready"].values()})
    return [
        f"- Every contender is a process of its own, with {' or '.join(map(str, threads))} threads, torch's default. vitlab and one peer warm up for an epoch, then take turns,",
        "  one epoch each while the other waits, first one and then the other first; then comes the next peer. A ratio is taken within a round. "
        f"Rounds: {', '.join(f'{n} of {number}' for number, n in rounds.items())}.",
        f"- An epoch is the first {results['images']} training images of {results['dataset']} in batches of {results['batch']}; its time holds loading, augmentation",
        "  and training, and neither evaluation nor checkpoints. Sizes of the profile `full`; AdamW at the experiment's rate, gradients clipped at 1.",
        *(f"- `{name}`: {what}." for name, what in PEERS.items()),
        "- timm's ViT has no class attention and no relative positions: in 06 it is DeiT's, with twelve full blocks: a tenth fewer parameters,",
        "  and more work an image. *By FLOPs* is the ratio of FLOPs done in a second. In place of padded crops it has its own resized ones; in place of",
        "  TrivialAugment `rand-m10-n1-p1-mstd101-inc1`, one operation of uniform magnitude an image. EMA is constant for all peers.",
        "- Peak memory is the process's own peak (`VmHWM`), vitlab's with a validation and a checkpoint an epoch in it, plus what its",
        "  DataLoader workers hold for themselves at an epoch's end: pages shared with the process count once.",
        "- The input path is measured in one thread by the processor's time; start-up as the median of five; bookkeeping in a short run of 01",
        f"  in the profile `{results['bookkeeping']['profile']}`, MLflow in sqlite; what its end costs (pictures, record, the model into MLflow) is the same after a long run.",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in results['versions'].items())}.",
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    align = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (head, align, *rows)]
