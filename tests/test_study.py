"""`vitlab init`: every command that its README names does what it says; and the names by which a study refers to vitlab's own experiments."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.cli import run
from vitlab import cli, config
from vitlab.claims import declarations
from vitlab.errors import UserError
from vitlab.paths import EXPERIMENTS
from vitlab.run import plan


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "init", "my-study", main=cli.main)
    assert (code, out) == (0, "my-study: start with its README.md\n")
    monkeypatch.chdir("my-study")
    return tmp_path / "my-study"


def test_the_study_is_valid_and_says_what_it_changes(study: Path) -> None:
    was, now = (config.flatten(config.load(path).config) for path in (EXPERIMENTS / "01_baseline_vit.yaml", "../my-study/idea.yaml"))
    assert {key for key in was | now if was.get(key) != now.get(key)} == {"model.patch_size"}
    (claim,) = declarations.load(study / "claims.yaml").claims
    assert [arm.path for arm in claim.arms] == [EXPERIMENTS / "01_baseline_vit.yaml", study / "idea.yaml"]
    for name in ("schema.json", "claims-schema.json"):
        assert (study / name).read_text(encoding="utf-8") == (EXPERIMENTS / name).read_text(encoding="utf-8")


def test_what_is_there_is_not_overwritten(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "init", ".", main=cli.main)
    assert (code, err) == (2, "error: .: is there already; name a new folder\n")


@pytest.mark.slow
def test_every_command_of_its_readme_works(small_world: Path, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = (study / "claims.yaml").read_text(encoding="utf-8")
    (study / "claims.yaml").write_text(
        claims.replace("first_seed: 10", "first_seed: 0").replace("seeds: 5", "seeds: 2"), encoding="utf-8"
    )  # half of them trained already
    blocks = re.findall(r"^```\n(.*?)^```", (study / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    said = {}
    for line in "".join(blocks).splitlines():
        program, *argv = shlex.split(line)
        assert program == "vitlab"
        code, said[line], err = run(capsys, *argv, main=cli.main)
        assert code == 0, (line, err)
    plan_of, trained, planned, judged, reported = said.values()
    assert re.search(r"1\s+idea\s+0\s+new", plan_of)
    assert "report, then" in trained
    assert "stage 1, seeds 0 to 1: 4 runs more, 2 finished" in planned
    assert re.search(r"patches .* (supported|refuted|undecided)", judged)
    assert "the report is in" in reported
    page = (small_world / "reports" / "quick-digits" / "README.md").read_text(encoding="utf-8")
    assert "Baseline ViT, large patches" in page


def test_own_experiments_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, teacher = EXPERIMENTS / "01_baseline_vit.yaml", EXPERIMENTS / "teachers" / "resnet18.yaml"
    found = plan.expand(
        [Path("01_baseline_vit"), Path("experiments/01_baseline_vit.yaml"), Path("teachers/resnet18"), Path("experiments/teachers")]
    )
    assert found == [one, one, teacher, *sorted((EXPERIMENTS / "teachers").glob("*.yaml"))]
    assert plan.expand([Path("experiments")]) == plan.expand([EXPERIMENTS])
    (tmp_path / "taught.yaml").write_text("extends: 05_kd_r18\ntitle: T\ndistill: {teacher: teachers/resnet50}\n", encoding="utf-8")
    assert config.load("taught.yaml").config.distill.teacher == str(EXPERIMENTS / "teachers" / "resnet50.yaml")
    again = config.load("taught.yaml", sets=("distill.teacher=teachers/resnet18",)).config
    assert again.distill.teacher == str(teacher)
    with pytest.raises(UserError, match="no such file"):
        plan.expand([Path("01_baseline")])


def test_a_file_of_ones_own_comes_before_one_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "01_baseline_vit").write_text("extends: 02_regularized_vit\ntitle: Mine\n", encoding="utf-8")
    (tmp_path / "child.yaml").write_text("extends: 01_baseline_vit\ntitle: Child\n", encoding="utf-8")
    assert config.load("child.yaml").config.model.drop_path == 0.1
    assert plan.expand([Path("01_baseline_vit")]) == [Path("01_baseline_vit")]
