"""From the measured numbers (FILES) to ratios, verdicts and the page (`README.md`). Nothing is measured here."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from textwrap import fill
from typing import Any

from benchmarks.recipe import PROFILES, RECIPES

FILES = {"bf16": "bench-bf16.json", "float32": "bench-float32.json"}  # by kind of processor, named for what vitlab trains in there
KINDS = {"bf16": "with bf16 in hardware", "float32": "without bf16 in hardware"}
PEERS = {  # with what the page says of each
    "plain": "a plain PyTorch loop: torchvision's v2 transforms, DataLoader with 2 workers, eager",
    "timm": "timm's model, loader, mixing, EMA and optimizer factory, as its train script sets them",
    "timm-amp": "the same with `--amp` in bf16",
    "lightning": "Lightning's Trainer with the plain loop's model and data",
}
TITLES = {"01": "01, the baseline ViT", "06": "06's student, without its teacher"}
FASTER, FASTER_AMP, FASTER_INPUT = {"bf16": 2.5, "float32": 1.5}, 1.5, 10.0  # times the peer's images per second
HELP_SECONDS, PLAN_SECONDS, BOOKKEEPING = 0.3, 1.5, 0.01
EPOCH_IMAGES = 47_500  # all of CIFAR-10's but the validation split
# By how much numbers of parameters may differ; timm has no class attention, so in 06 it lacks the parameters of that.
SAME_SIZE, SAME_SIZE_TIMM_06 = 0.01, 0.1
HOW = (
    "- Every contender is a process of its own, with torch's default number of threads. vitlab and one peer warm up for an epoch, then take turns,",
    "  one epoch each while the other waits, first one and then the other first; then comes the next peer. A ratio is taken within a round.",
    "- Two sizes: those of the profiles `full` and `overnight`, each with its own batch. An epoch's time holds loading, augmentation and training, and",
    "  neither evaluation nor checkpoints. AdamW at the experiment's rate, gradients clipped at 1.",
    *(f"- `{name}`: {what}." for name, what in PEERS.items()),
    "- timm's ViT has no class attention and no relative positions: in 06 it is DeiT's, all of whose blocks are full: other parameters, and more work an",
    "  image. *By FLOPs* is the ratio of FLOPs done in a second. In place of padded crops it has its own resized ones; in place of TrivialAugment",
    "  `rand-m10-n1-p1-mstd101-inc1` (at `overnight` with the recipe's probability in place of `p1`), one operation of uniform magnitude an image.",
    "  EMA is constant for all peers.",
    "- Peak memory is the process's own peak (`VmHWM`), vitlab's with a validation and a checkpoint an epoch in it, plus what its",
    "  DataLoader workers hold for themselves at an epoch's end: pages shared with the process count once.",
    "- The input path has the augmentation of `full`, in one thread, by the processor's time. Start-up is the median of five. Bookkeeping is that of a",
    "  short run of 01, MLflow in sqlite; what its end costs (pictures, record, the model into MLflow) is the same after a long run.",
    "- What vitlab's own rate gained by a change is not on this page: a rate of another day or machine is not comparable. [NOTES.md](NOTES.md) has",
    "  measurements of before and after, taken in turn.",
)


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


def kind(machine: dict[str, Any]) -> str:
    """Return the kind of processor, a key of FILES, of a machine as the measurements describe it."""
    return "bf16" if machine["bf16"] else "float32"


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
    """Return all targets, each beside what was measured."""
    faster = FASTER[kind(results["machine"])]
    found = []
    for profile in PROFILES:
        for number in TITLES:
            experiment = results["training"].get(profile, {}).get(number)
            for peer in PEERS:
                r = ratio(experiment["rounds"], peer) if experiment else None
                what = f"training, {number} at `{profile}`: images per second against {peer}"
                found.append(_at_least(what, FASTER_AMP if peer == "timm-amp" else faster, r, 2))
    speeds = results["input"]["06"]
    r = Spread.of([a / b for a, b in zip(speeds["vitlab"], speeds["torchvision"], strict=True)])
    found.append(_at_least("input path, TrivialAugment: images per second against torchvision", FASTER_INPUT, r, 1))
    for number in TITLES:
        what = f"peak memory, {number} at `full`: no more than the leanest peer's"
        if experiment := results["training"].get("full", {}).get(number):
            ours = peak_rss(experiment, "vitlab")
            least, peer = min((peak_rss(experiment, p), p) for p in PEERS)
            found.append(Target(what, f"≤ {least:,.0f} MB ({peer})", f"{ours:,.0f} MB", ours <= least))
        else:
            found.append(Target(what, "", "", None))
    for key, what, most in (("help", "`runner.py --help`", HELP_SECONDS), ("plan", "`runner.py experiments --dry-run`", PLAN_SECONDS)):
        r = Spread.of(results["startup"][key])
        found.append(Target(what, f"≤ {most} s", r.text(2, " s"), r.median <= most))
    what, wanted = "tracking, checkpoints and bookkeeping: share of 01's time", f"≤ {BOOKKEEPING:.0%}"
    if book := results.get("bookkeeping"):
        share = bookkeeping_share(book)
        measured = f"{share:.2%}: {in_loop(book):.2%} while training, then {book['closing']:.1f} s once"
        found.append(Target(f"{what} in the profile `{book['profile']}`", wanted, measured, share <= BOOKKEEPING))
    else:
        found.append(Target(what, wanted, "", None))
    return found


def _at_least(what: str, least: float, measured: Spread | None, digits: int) -> Target:
    if measured is None:
        return Target(what, f"≥ {least:g}x", "", None)
    reached = measured.median >= least
    while (round(measured.median, digits) >= least) != reached:  # 1.4998 is not shown as 1.50, which would be enough
        digits += 1
    return Target(what, f"≥ {least:g}x", measured.text(digits, "x"), reached)


def in_loop(book: dict[str, float]) -> float:
    """Return the share of the loop's time that goes into checkpoints and tracking."""
    return (book["checkpoint"] + book["tracking"]) / (book["training"] + book["checkpoint"] + book["tracking"])


def bookkeeping_share(book: dict[str, float]) -> float:
    """Return the share of bookkeeping in a whole run of 01 at the short one's speed: that in the loop, and once what the end takes."""
    return in_loop(book) + book["closing"] / (book["epochs"] * EPOCH_IMAGES * book["training"] / book["images"])


def faults(results: dict[str, Any]) -> list[str]:
    """Return a line for each contender that does not learn, since its speed is then worth nothing."""
    return [
        f"{number} at {profile}: the loss of {name} does not go down"
        for profile, experiments in results["training"].items()
        for number, e in experiments.items()
        for name in e["ready"]
        if not learns(e, name)
    ]


def page(measured: dict[str, dict[str, Any]]) -> str:
    """Return benchmarks/README.md, a function of the measurements by kind of processor alone."""
    lines = [
        "# vitlab and its peers",
        "",
        "`make bench` trains the same models with vitlab and with its peers. vitlab trains in bf16 where the processor multiplies bf16 in hardware, and in",
        "float32 elsewhere, so there is a table for each of these two kinds of processor. Numbers are medians, with the least and the largest in brackets.",
    ]
    for name in KINDS:
        lines += ["", *(_kind(name, measured[name]) if name in measured else [f"A processor {KINDS[name]} is not measured yet."])]
    return "\n".join([*lines, "", "## How it is measured", "", *HOW]) + "\n"


def _kind(name: str, results: dict[str, Any]) -> list[str]:
    machine, verdicts = results["machine"], targets(results)
    missed, unknown = (sum(t.reached is reached for t in verdicts) for reached in (False, None))
    lines = [
        f"## A processor {KINDS[name]}",
        "",
        f"{_processor(machine)}, {machine['memory_gb']:.0f} GB; measured on {results['date']} {_commit(results)}, "
        f"in {results['seconds'] / 60:.1f} minutes. Raw numbers: [{FILES[name]}]({FILES[name]}).",
        f"Versions: {', '.join(f'{package} {version}' for package, version in results['versions'].items())}.",
        "",
        f"**{missed} of {len(verdicts)} targets are not reached; {unknown} are not measured.**"
        if missed or unknown
        else "All targets are reached.",
        "",
        *_table(("target", "wanted", "measured", ""), [(t.what, t.wanted, t.measured, t.verdict) for t in verdicts]),
    ]
    if found := faults(results):
        lines += ["", *(f"**Fault:** {fault}." for fault in found)]
    if results["sets"]:
        lines += ["", f"**Other sizes than the profiles':** with {', '.join(f'`{s}`' for s in results['sets'])}."]
    if not machine["bf16"]:
        lines += ["", "This processor emulates bf16, so `timm-amp` shows what `--amp` costs here, not what it gains elsewhere."]
    for profile in PROFILES:
        if profile not in results["training"]:
            lines += ["", f"### Training at `{profile}`", "", "Not measured yet."]
        for number, experiment in results["training"].get(profile, {}).items():
            lines += ["", f"### Training at `{profile}`: {TITLES[number]}", "", *_training(experiment, results["dataset"])]
    return [*lines, "", "### Input path", "", *_input_path(results["input"])]


def _processor(machine: dict[str, Any]) -> str:
    product = machine.get("gflops")  # older files lack it
    speed = f" (a large matrix product: {product['float32']:.0f} GFLOP/s in float32, {product['bfloat16']:.0f} in bf16)" if product else ""
    return f"{machine['cpu']}, {machine['cores']} cores{speed}"


def _commit(results: dict[str, Any]) -> str:
    if "commit" not in results:
        return "at an earlier commit, which the file does not name"
    if not results["commit"]:
        return "outside a git repository"
    return f"at commit {results['commit'][:10]}{' with uncommitted changes' if results['dirty'] else ''}"


def summary(name: str, results: dict[str, Any] | None) -> str:
    """Return the measurements of a kind of processor in one paragraph, for docs/speed.md; None: it is not measured."""
    if results is None:
        return f"A processor {KINDS[name]} is not measured yet."
    machine, wanted, peers = results["machine"], FASTER[name], ("plain", "timm", "lightning")
    sizes, slowest = [], []
    for profile in PROFILES:
        if experiments := results["training"].get(profile):
            faster = {n: [ratio(e["rounds"], peer).median for peer in peers] for n, e in experiments.items()}
            slowest.append(min(min(f) for f in faster.values()))
            (plain, timm, lightning), (plain_06, timm_06, lightning_06) = faster["01"], faster["06"]
            sizes.append(
                f"At `{profile}`, batch {experiments['01']['batch']}, 01's ViT trains {plain:.2f} times as fast as a plain PyTorch loop, {timm:.2f} "
                f"as timm, {lightning:.2f} as Lightning; 06's student without its teacher {plain_06:.2f}, {timm_06:.2f} and {lightning_06:.2f} times."
            )
        else:
            sizes.append(f"`{profile}` is not measured yet.")
    speeds = results["input"]["06"]
    inputs = median(a / b for a, b in zip(speeds["vitlab"], speeds["torchvision"], strict=True))
    verdict = "is reached wherever it was measured" if min(slowest, default=0) >= wanted else "**is not reached everywhere**"
    text = (
        f"{KINDS[name].capitalize()}, on {_processor(machine)}, measured on {results['date']} {_commit(results)}; {results['dataset']}"
        f"{', ' + ' '.join(results['sets']) if results['sets'] else ''}, medians of rounds. {' '.join(sizes)} The aim was {wanted} times, and "
        f"{verdict}. The input path with TrivialAugment runs at {inputs:.1f} times torchvision's rate."
    )
    return fill(text, 130, break_on_hyphens=False)


def _training(experiment: dict[str, Any], dataset: str) -> list[str]:
    rounds, ready = experiment["rounds"], experiment["ready"]
    threads = " or ".join(map(str, sorted({facts["threads"] for facts in ready.values()})))
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
    size = f"An epoch: the first {experiment['images']} training images of {dataset} in batches of {experiment['batch']}."
    return [f"{size} {len(rounds)} rounds, {threads} threads.", "", *_table(head, rows)]


def _input_path(recipes: dict[str, dict[str, list[float]]]) -> list[str]:
    rows = []
    for number, speeds in recipes.items():
        ours, theirs = (Spread.of(speeds[name]) for name in ("vitlab", "torchvision"))
        r = Spread.of([a / b for a, b in zip(speeds["vitlab"], speeds["torchvision"], strict=True)])
        rows.append((f"{number}: {RECIPES[number]}", ours.text(0), theirs.text(0), r.text(1, "x")))
    head = ("recipe, batches of 192", "vitlab, images per second of CPU", "torchvision", "vitlab is faster by")
    return _table(head, rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    align = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (head, align, *rows)]
