"""What README.md and docs/ say: the numbers are the records', links lead somewhere, files, commands and pictures are as they are."""

from __future__ import annotations

import re
import statistics
import subprocess
import tomllib

import pytest
import yaml

import vitlab
from docs import make_demo, make_terminal
from tests.robustness.bad_input.cases import all_cases
from vitlab import config, records
from vitlab.figures import style
from vitlab.paths import REPOSITORY
from vitlab.report import stamp
from vitlab.report.rungs import ladder

PAGES = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
         for path in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]}  # fmt: skip
README = PAGES["README.md"]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, links reduced to their text."""
    return [
        [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", c).strip() for c in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_result_table_is_the_published_one() -> None:
    """The README opens with rows of the set's own page, one for each of its experiments, both written from the records."""
    name = re.search(r"<!-- results: ([\w.-]+) -->", README)[1]
    published = {(r[0], r[2]) for r in rows((REPOSITORY / "results" / name / "README.md").read_text(encoding="utf-8")) if len(r) > 3}
    shown = rows(README.partition("<!-- results: ")[2].partition("<!-- end -->")[0])[2:]
    assert len(shown) == len(ladder(records.read_all(REPOSITORY / "results" / name)))
    assert {(r[0], r[2]) for r in shown} <= published


def test_the_steps_are_differences_of_the_tables_rows() -> None:
    """What the README says of a step from one experiment to another, as "05 over 02: +1.67", follows from the seeds that both have."""
    name = re.search(r"<!-- results: ([\w.-]+) -->", README)[1]
    top1 = {
        rung.number: {run.seed: run.metrics["test_top1"] for run in rung.runs}
        for rung in ladder(records.read_all(REPOSITORY / "results" / name))
    }
    points = r"[+−]\d+\.\d\d"
    steps = re.findall(rf"(\d\d) over (\d\d|ResNet-\d\d): ({points})((?:, seed \d {points})*)", " ".join(README.split()))
    assert len(steps) >= 5
    for one, other, said, by_seed in steps:
        ours, theirs = top1[one], top1[other.lower().replace("-", "")]
        step = {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}
        assert said.replace("−", "-") == f"{statistics.mean(step.values()):+.2f}", (one, other)
        assert by_seed.replace("−", "-") in ("", "".join(f", seed {seed} {value:+.2f}" for seed, value in step.items())), (one, other)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    folder = (REPOSITORY / page).parent
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]) + re.findall(r'(?:src|srcset|href)="([^"]+)"', PAGES[page]):
        if not target.startswith("http"):
            file, _, part = target.partition("#")
            assert (folder / file).exists(), target
            if part:
                text = (folder / file).read_text(encoding="utf-8") if file else PAGES[page]
                headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
                assert part in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


def test_no_picture_is_fetched_from_elsewhere() -> None:
    for page, text in PAGES.items():
        assert not re.search(r'!\[[^\]]*\]\(http|(?:src|srcset)="http', text), page
    for svg in (REPOSITORY / "docs").rglob("*.svg"):
        assert not re.search(r"url\(['\"]?http|href=['\"]http", svg.read_text(encoding="utf-8")), svg


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    for page in PAGES:
        assert page == "README.md" or f"]({page})" in README, page


def test_the_file_tree_is_the_packages() -> None:
    """docs/architecture.md has every package and every module beside them, and no file that is gone."""
    tree = PAGES["docs/architecture.md"].partition("\nvitlab/\n")[2].partition("\nrunner.py")[0]
    top = re.findall(r"^  (\w+\.py|\w+/)", tree, re.MULTILINE)
    own = REPOSITORY / "vitlab"
    assert set(top) == {p.name for p in own.glob("*.py") if not p.name.startswith("__")} | {f"{p.parent.name}/" for p in own.glob("*/__init__.py")} | {"data/"}  # fmt: skip
    for part in re.split(r"\n  (?=\w)", f"\n{tree}")[1:]:
        package, _, rest = part.partition("/")
        for name in re.findall(r"\w+\.py", rest) if re.fullmatch(r"\w+", package) else ():
            assert (own / package / name).is_file(), f"{package}/{name}"


def test_the_command_reference_is_complete() -> None:
    commands = PAGES["docs/commands.md"]
    listed = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^  make (\S+)", listed, re.MULTILINE)
    assert set(targets) >= {"setup", "reproduce-all", "test", "bad-input", "chaos", "lint", "report", "ui", "data", "clean"}
    for target in targets:
        assert f"| `make {target}` |" in commands, target
    source = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "vitlab").glob("*.py"))
    for name in re.findall(r'\bcommand\(\s*"([\w-]+)"', source):
        assert re.search(rf"^\| `vitlab {name}[` ]", commands, re.MULTILINE), name
    for flag in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', source):
        assert flag in commands or flag.removeprefix("--").upper() in commands, flag


def test_every_experiment_and_profile_is_described() -> None:
    for path in (REPOSITORY / "experiments").rglob("*.yaml"):
        assert path.name == "claims.yaml" or f"(../{path.relative_to(REPOSITORY).as_posix()})" in PAGES["docs/profiles.md"], path


def test_the_table_of_profiles_is_what_they_say() -> None:
    baseline = config.load(REPOSITORY / "experiments" / "01_baseline_vit.yaml")
    table = {row[0].strip("`"): row[2:] for row in rows(PAGES["docs/profiles.md"]) if row[0].strip("`") in config.PROFILES}
    assert list(table) == list(config.PROFILES)
    for profile, cells in table.items():
        vit = config.load(baseline.path, profile).config
        resnet = config.load(REPOSITORY / "experiments" / "teachers" / "resnet18.yaml", profile).config
        factor = yaml.safe_load((REPOSITORY / "experiments" / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8"))["regularisation"]
        images = f"{vit.data.train_limit:,}" if vit.data.train_limit else "all"
        epochs = f"{100 * vit.train.epochs / baseline.config.train.epochs:g}"
        assert cells == [images, epochs, f"{vit.model.dim} x {vit.model.depth}", str(resnet.model.width), f"{factor:g}"], profile


def test_the_corpus_has_as_many_cases_as_it_says() -> None:
    said = {count for text in PAGES.values() for count in re.findall(r"(\d+) cases", text)}
    assert said == {str(len(all_cases()))}


def test_the_badges_and_the_citation_are_true() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    badge = {path.stem: path.read_text(encoding="utf-8") for path in (REPOSITORY / "docs" / "badges").glob("*.svg")}
    assert f"<title>python: {project['requires-python'].removeprefix('>=')} or newer</title>" in badge["python"]
    assert f"<title>licence: {project['license']}</title>" in badge["licence"]
    assert "<title>tests: make test</title>" in badge["tests"]
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["license"]) == (vitlab.__version__, project["license"])


def test_the_terminal_shows_what_the_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m docs.make_terminal` draws it anew, after results/ or what the commands print has changed."""
    monkeypatch.setattr(stamp, "holds", lambda *_: True)  # as in a checkout where 'make reproduce-all' has just ended
    assert make_terminal.PICTURE.read_text(encoding="utf-8") == make_terminal.render(make_terminal.ladder(REPOSITORY / "results"))


def test_the_screenshots_show_the_published_models() -> None:
    """`python -m docs.make_demo` takes them anew, after the default page has other models or numbers."""
    for view in make_demo.VIEWS:
        assert style.note(REPOSITORY / "docs" / f"demo-{view}.png") == make_demo.shown()
