"""Configuration: what the experiments say, how files are merged, and what a mistake is answered with."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.experiments import LADDER
from vitlab import config
from vitlab.claims import declarations
from vitlab.config import places
from vitlab.data.sources import CIFAR10_CLASSES
from vitlab.errors import UserError
from vitlab.paths import EXPERIMENTS, REPOSITORY

MINIMAL = """\
title: T
model: {name: vit, dim: 32, depth: 2, heads: 2}
phases:
  - name: all
optim: {name: adamw, lr: 1e-3}
train:
  epochs: 3
"""


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------- the experiments as they stand


@pytest.mark.parametrize("profile", config.PROFILES)
@pytest.mark.parametrize("path", LADDER, ids=lambda p: p.stem)
def test_every_experiment_loads_in_every_profile(path: Path, profile: str) -> None:
    resolved = config.load(path, profile)
    assert resolved.id == path.stem
    assert resolved.config.title
    assert yaml.safe_load(config.to_yaml(resolved.config))["model"]["name"] == resolved.config.model.name


def test_the_ladder_is_what_the_reports_describe() -> None:
    """Numbers of the distillation report, "Best Model Configuration"; and that rungs differ in what their name says alone."""
    at = {p.stem: config.load(p).config for p in LADDER}
    six = at["06_kd_r50_class_attention"]
    assert (six.model.patch_size, six.model.dim, six.model.depth, six.model.heads, six.model.mlp_ratio) == (4, 256, 12, 8, 4.0)
    assert (six.model.dropout, six.model.drop_path, six.model.class_attention, six.model.distill_token) == (0.05, 0.15, 4, True)
    assert (six.optim.lr, six.optim.weight_decay, six.optim.warmup.percent) == (6e-4, 0.05, 5)
    assert (six.train.epochs, six.train.batch_size, six.train.eval_batch_size) == (300, 192, 512)
    strong, clean = six.phases
    assert (strong.augment.trivial_augment, strong.augment.crop, strong.augment.flip, strong.augment.erase) == (1.0, 4, True, 0.25)
    assert (strong.mix.mixup, strong.mix.cutmix, strong.label_smoothing) == (0.4, 1.0, 0.05)
    assert clean.percent / 100 * six.train.epochs == 15
    assert (clean.mix, clean.label_smoothing, clean.augment) == (None, 0.0, strong.augment)
    assert (six.ema.start, six.ema.end) == (0.995, 0.9995)
    assert (six.distill.temperature, six.distill.weight) == (2.0, 0.5)

    def differ(a: str, b: str) -> set[str]:
        one, two = config.flatten(at[a]), config.flatten(at[b])
        return {k for k in one.keys() | two.keys() if one.get(k) != two.get(k)}

    assert differ("03_hybrid_r18", "04_explicit_transformer") == {"model.encoder", "model.layer_scale"}
    assert differ("02_regularized_vit", "03_hybrid_r18") == {
        "model.stem", "model.encoder", "model.layer_scale", "model.drop_path", "model.dropout",
    }  # fmt: skip
    assert all(k.startswith("distill") for k in differ("02_regularized_vit", "05_kd_r18"))
    assert all(k.startswith(("phases", "model.drop_path")) for k in differ("01_baseline_vit", "02_regularized_vit"))


def test_the_committed_schema_is_current() -> None:
    committed = json.loads((EXPERIMENTS / "schema.json").read_text(encoding="utf-8"))
    assert committed == config.json_schema(), "run 'vitlab schema'"


def test_the_committed_schema_of_claims_is_current() -> None:
    committed = json.loads((EXPERIMENTS / "claims-schema.json").read_text(encoding="utf-8"))
    assert committed == declarations.json_schema(), "run 'vitlab schema'"


@pytest.mark.parametrize("path", LADDER, ids=lambda p: p.stem)
def test_every_experiment_names_the_schema_for_editors(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == EXPERIMENTS / "schema.json"


# ------------------------------------------------------------------------------------------------------ merging


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "base.yaml")
    child = write(tmp_path, "extends: base.yaml\ntitle: C\nmodel: {depth: 3}\nphases: [{name: other, label_smoothing: 0.1}]\n")
    got = config.load(child).config
    assert (got.title, got.model.dim, got.model.depth) == ("C", 32, 3)
    assert [p.name for p in got.phases] == ["other"]


def test_another_name_starts_the_section_anew(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "base.yaml")
    child = write(tmp_path, "extends: base.yaml\ntitle: C\noptim: {name: sgd, lr: 0.1}\nmodel: {name: resnet, depth: 18}\n")
    got = config.load(child).config
    assert (got.optim.name, got.model.name, got.model.depth) == ("sgd", "resnet", 18)


def test_title_and_claim_are_not_inherited(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL + "claim: {text: x, source: y}\n", "base.yaml")
    with pytest.raises(UserError, match="title: missing"):
        config.load(write(tmp_path, "extends: base.yaml\n"))


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Make `text` the profile quick."""
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr("vitlab.config.resolve.PROFILE_DIR", tmp_path / "profiles")

    def write_profile(text: str) -> None:
        write(tmp_path / "profiles", text, "quick.yaml")

    return write_profile


def test_a_profile_scales_and_never_switches_on(profile: Callable[[str], None], tmp_path: Path) -> None:
    profile(
        "all: {epochs_percent: 50, ema: {start: 0.1, end: 0.2}, train: {batch_size: 8}}\n"
        "vit: {model: {dim: 64, class_attention: 1}}\nresnet: {model: {width: 8}}\n"
    )
    path = write(tmp_path, MINIMAL)
    got = config.load(path, "quick").config
    assert (got.train.epochs, got.train.batch_size, got.model.dim) == (2, 8, 64)  # half of 3 rounds to 2
    assert got.ema is None
    assert got.model.class_attention == 0
    with_ema = write(tmp_path, MINIMAL + "ema: {start: 0.9, end: 0.99}\n", "y.yaml")
    assert config.load(with_ema, "quick").config.ema == config.EMA(start=0.1, end=0.2)
    with_ca = write(tmp_path, MINIMAL.replace("depth: 2", "depth: 4, class_attention: 2"), "z.yaml")
    assert config.load(with_ca, "quick").config.model.class_attention == 1


def test_the_nearest_section_of_a_profile_wins(profile: Callable[[str], None], tmp_path: Path) -> None:
    """all, then the model's, then that of each file that the experiment extends, its own last."""
    profile(
        "all: {epochs_percent: 200, train: {batch_size: 8}}\nvit: {train: {batch_size: 16}, model: {dim: 64}}\n"
        "experiments:\n  base: {epochs_percent: 300, model: {dim: 96}, optim: {lr: 2e-3}}\n  child: {model: {dim: 128}}\n"
    )
    write(tmp_path, MINIMAL, "base.yaml")
    child = write(tmp_path, "extends: base.yaml\ntitle: C\n", "child.yaml")
    stranger = write(tmp_path, MINIMAL, "stranger.yaml")

    def scaled(path: Path) -> tuple[int, int, int, float]:
        got = config.load(path, "quick").config
        return got.train.epochs, got.train.batch_size, got.model.dim, got.optim.lr

    assert scaled(stranger) == (6, 16, 64, 1e-3)
    assert scaled(tmp_path / "base.yaml") == (9, 16, 96, 2e-3)
    assert scaled(child) == (9, 16, 128, 2e-3)


def test_a_profile_weakens_all_regularisation_by_one_factor(profile: Callable[[str], None], tmp_path: Path) -> None:
    profile("regularisation: 0.5\n")
    text = MINIMAL.replace("heads: 2", "heads: 2, dropout: 0.1, drop_path: 0.2").replace(
        "- name: all",
        "- {name: a, percent: 50, augment: {crop: 4, flip: true, trivial_augment: 1.0, erase: 0.25}, mix: {mixup: 0.4}, label_smoothing: 0.1}\n"
        "  - {name: b, mix: {cutmix: 1.0, prob: 0.4}}",
    )
    got = config.load(write(tmp_path, text), "quick").config
    one, two = got.phases
    assert (got.model.dropout, got.model.drop_path, one.label_smoothing, one.mix.prob, two.mix.prob) == (0.05, 0.1, 0.05, 0.5, 0.2)
    assert one.augment == config.Augment(crop=4, flip=True, trivial_augment=0.5, erase=0.125)
    assert (two.augment, two.label_smoothing) == (config.Augment(), 0.0)
    set_after = config.load(tmp_path / "x.yaml", "quick", ("phases.0.label_smoothing=0.1",)).config
    assert set_after.phases[0].label_smoothing == 0.1  # what is set by hand stands as it is written
    profile("regularisation: 1\n")
    as_written = config.load(tmp_path / "x.yaml", "quick").config
    assert (as_written.model.drop_path, as_written.phases[0].mix.prob, as_written.phases[1].mix.prob) == (0.2, 1.0, 0.4)


def test_profiles_name_experiments_that_exist() -> None:
    names = {p.stem for p in LADDER}
    for name in config.PROFILES:
        sections = yaml.safe_load((config.PROFILE_DIR / f"{name}.yaml").read_text(encoding="utf-8")).get("experiments", {})
        assert set(sections) <= names, name


def test_what_a_profile_does_not_know_is_an_error(profile: Callable[[str], None], tmp_path: Path) -> None:
    profile("regularization: 0.5\n")
    with pytest.raises(UserError, match=r"quick\.yaml:1: regularization: unknown key"):
        config.load(write(tmp_path, MINIMAL), "quick")
    profile("all: {epochs_percent: half}\n")
    with pytest.raises(UserError, match=r"quick\.yaml:1: epochs_percent: expected a number above 0, got \"half\""):
        config.load(tmp_path / "x.yaml", "quick")
    profile("vit: {model: {dims: 64}}\n")
    with pytest.raises(UserError, match=r"quick\.yaml:1: model\.dims: unknown key, did you mean 'dim'"):
        config.load(tmp_path / "x.yaml", "quick")


def test_set_overrides_win_and_name_the_variant(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    got = config.load(path, "full", ("optim.lr=1e-2", "ema={start: 0.5, end: 0.6}", "phases.0.augment.crop=2", "optim.warmup.percent=5"))
    assert got.config.optim.lr == 0.01
    assert got.config.ema.end == 0.6
    assert got.config.phases[0].augment.crop == 2
    assert got.config.optim.warmup.percent == 5
    assert got.variant == "ema={start:0.5,end:0.6} optim.lr=1e-2 optim.warmup.percent=5 phases.0.augment.crop=2"


@pytest.mark.parametrize("sets", [("optim.lr=1", "optim.lr=2"), ("ema.end=0.5", "ema={start: 0.5, end: 0.6}")])
def test_an_override_that_discards_another_is_refused(sets: tuple[str, ...], tmp_path: Path) -> None:
    """Sorted, as in a run's name, they do not say which came last."""
    with pytest.raises(UserError, match=re.escape(f"--set {sets[1]}: sets anew what --set {sets[0]} has set")):
        config.load(write(tmp_path, MINIMAL), "full", sets)
    assert config.load(write(tmp_path, MINIMAL), "full", ("ema={start: 0.5, end: 0.6}", "ema.end=0.7")).config.ema.end == 0.7


def test_setting_what_is_so_anyway_is_no_variation(tmp_path: Path) -> None:
    """In a sweep over learning rates the experiment's own one must not take its run out of the ladder."""
    path = EXPERIMENTS / "05_kd_r18.yaml"
    for same in ("optim.lr=6e-4", "optim.lr=0.0006", "distill.teacher=teachers/resnet18.yaml"):
        assert config.load(path, "full", (same,)) == config.load(path, "full")
    assert config.load(path, "full", ("optim.lr=6e-4", "model.depth=3")).variant == "model.depth=3 optim.lr=6e-4"
    assert config.load(path, "ledger", ("optim.lr=6e-4",)).variant == "optim.lr=6e-4"  # which has another
    unfinished = write(tmp_path, MINIMAL.replace("heads: 2", "heads: 0"))
    assert config.load(unfinished, "full", ("model.heads=2",)).variant == "model.heads=2"


def test_an_ema_that_does_not_rise_is_recorded_and_stays_so_in_every_profile(tmp_path: Path) -> None:
    rising = config.load(write(tmp_path, MINIMAL + "ema: {start: 0.9, end: 0.99}\n")).config
    flat = write(tmp_path, MINIMAL + "ema: {end: 0.99}\n", "flat.yaml")
    got = config.load(flat).config
    assert got.ema == config.EMA(start=None, end=0.99)
    assert config.flatten(got)["ema.start"] == "null"
    assert config.load(write(tmp_path, config.to_yaml(got), "again.yaml")).config == got
    assert config.load(tmp_path / "x.yaml", "full", ("ema.start=null",)).config.ema == got.ema
    assert config.fingerprint(got, "d", None) != config.fingerprint(rising, "d", None)
    for profile in config.PROFILES[:-1]:  # which scale the end, and a start that is there
        end = config.load(tmp_path / "x.yaml", profile).config.ema
        assert end.start is not None
        assert config.load(flat, profile).config.ema == config.EMA(start=None, end=end.end)
    with pytest.raises(UserError, match=r"ema\.end: missing"):
        config.load(write(tmp_path, MINIMAL + "ema: {start: 0.9}\n", "z.yaml"))


def test_a_teacher_that_is_set_lies_beside_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that its file names: not beside the parent that it extends, nor in the current directory."""
    for folder in ("experiments/teachers", "base/teachers", "here/teachers"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder, MINIMAL, "other.yaml")
    write(tmp_path / "base" / "teachers", MINIMAL, "own.yaml")
    write(tmp_path / "base", MINIMAL + "distill: {teacher: teachers/own.yaml, weight: 0.3}\n", "base.yaml")
    path = write(tmp_path / "experiments", "extends: ../base/base.yaml\ntitle: C\n")
    monkeypatch.chdir(tmp_path / "here")
    own = config.load(path).config
    assert own.distill.teacher == str(tmp_path / "base" / "teachers" / "own.yaml")
    got = config.load(path, "full", ("distill.teacher=teachers/other.yaml",)).config
    assert got.distill == config.Distill(teacher=str(tmp_path / "experiments" / "teachers" / "other.yaml"), weight=0.3)
    relative = config.load(Path("../experiments/x.yaml"), "full", ("distill.teacher=teachers/other.yaml",)).config
    assert relative == got
    absolute = str(tmp_path / "base" / "teachers" / "other.yaml")
    assert config.load(path, "full", (f"distill.teacher={absolute}",)).config.distill.teacher == absolute
    with pytest.raises(
        UserError, match=r"^--set distill\.teacher=teachers/none\.yaml: distill\.teacher: .*experiments/teachers/none\.yaml: no such"
    ):
        config.load(path, "full", ("distill.teacher=teachers/none.yaml",))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("6E+2", 600.0),
        ("5", 5),
        ("true", True),
        ("null", None),
        ("on", "on"),
        ("0.5", 0.5),
        ("010", "010"),
        ("1:30", "1:30"),
    ],
)
def test_scalars(text: str, value: object, tmp_path: Path) -> None:
    got = places.read_yaml(write(tmp_path, f"key: {text}"))[0]["key"]
    assert got == value
    assert type(got) is type(value)


# -------------------------------------------------------------------------------------------------------- mistakes

MISTAKES = {
    "unknown key": (MINIMAL.replace("epochs: 3", "epochs: 3\n  epoch: 4"), "x.yaml:8: train.epoch: unknown key, did you mean 'epochs'?"),
    "without its section": (MINIMAL + "lr: 1\n", "x.yaml:8: lr: unknown key, did you mean 'optim.lr'?"),
    "unknown section": (MINIMAL + "modell: {}\n", "x.yaml:8: modell: unknown key, did you mean 'model'?"),
    "unknown in a union": (MINIMAL.replace("dim: 32", "dims: 32"), "x.yaml:2: model.dims: unknown key, did you mean 'dim'?"),
    "wrong type": (MINIMAL.replace("epochs: 3", "epochs: three"), 'x.yaml:7: train.epochs: expected a valid integer, got "three"'),
    "a text for a number": (MINIMAL.replace("epochs: 3", "epochs: '3'"), "x.yaml:7: train.epochs: expected a valid integer"),
    "out of range": (MINIMAL.replace("epochs: 3", "epochs: 0"), "x.yaml:7: train.epochs: expected greater than or equal to 1, got 0"),
    "not finite": (MINIMAL.replace("lr: 1e-3", "lr: .nan"), "x.yaml:5: optim.lr: expected a finite number"),
    "unknown model": (MINIMAL.replace("name: vit", "name: vitt"), "x.yaml:2: model.name: 'vitt' is not one of 'vit', 'resnet'"),
    "unknown optimizer": (MINIMAL.replace("adamw", "muonn"), "x.yaml:5: optim.name: 'muonn' is not one of 'adamw', 'sgd', 'muon'"),
    "no optimizer name": (MINIMAL.replace("name: adamw, ", ""), "x.yaml:5: optim.name: missing; expected one of 'adamw', 'sgd', 'muon'"),
    "unknown in muon": (MINIMAL.replace("adamw", "muon, momentun: 0.9"), "x.yaml:5: optim.momentun: unknown key, did you mean 'momentum'?"),
    "muon for a resnet": (
        MINIMAL.replace("name: vit, dim: 32, depth: 2, heads: 2", "name: resnet, depth: 18").replace("adamw", "muon"),
        "x.yaml:5: optim: muon is for the matrices of a ViT's blocks, model 'resnet' has none: use adamw or sgd",
    ),
    "no such stem": (MINIMAL.replace("heads: 2", "heads: 2, stem_stages: 4"), "x.yaml:2: model.stem_stages: expected 2 or 3, got 4"),
    "no model name": (MINIMAL.replace("name: vit, ", ""), "x.yaml:2: model.name: missing"),
    "missing section": (MINIMAL.replace("optim: {name: adamw, lr: 1e-3}\n", ""), "optim: missing; add it"),
    "contradiction": (MINIMAL.replace("heads: 2", "heads: 5"), "x.yaml:2: model: dim 32 must be a multiple of heads 5"),
    "the torch encoder has none": (MINIMAL.replace("heads: 2", "heads: 2, encoder: torch, drop_path: 0.1"), "has no drop_path"),
    "duplicate key": (MINIMAL + "title: again\n", "x.yaml:8: title: given twice"),
    "alias": (MINIMAL + "description: &a x\nclaim: *a\n", "x.yaml:9: aliases (*a) are not allowed"),
    "tab": (MINIMAL + "\tdata: 1\n", "x.yaml:8: not valid YAML"),
    "empty": ("", "x.yaml: empty"),
    "a list": ("- 1\n", "x.yaml:1: expected a mapping"),
    "python object": (MINIMAL + "description: !!python/object/apply:os.system [ls]\n", "x.yaml:8: tags"),
    "no such parent": ("extends: nothing.yaml\n", "x.yaml:1: extends: nothing.yaml: no such file"),
    "no such teacher": (MINIMAL + "distill:\n  teacher: nobody.yaml\n", "x.yaml:9: distill.teacher:"),
    "phases over 100 %": (MINIMAL.replace("- name: all", "- {name: a, percent: 60}\n  - {name: b, percent: 50}"), "add up to 110 %"),
    "two open phases": (MINIMAL.replace("- name: all", "- {name: a}\n  - {name: b}"), "only one may leave its length out"),
    "a range and a number": (MINIMAL + "claim: {text: x, source: y, low: 1, high: 2, top1: 1}\n", "x.yaml:8: claim: 'low' and 'high'"),
    "half a range": (MINIMAL + "claim: {text: x, source: y, low: 1}\n", "x.yaml:8: claim: give 'low' and 'high' together"),
    "a range backwards": (
        MINIMAL + "claim: {text: x, source: y, low: 2, high: 1}\n",
        "x.yaml:8: claim: 'low' and 'high', the lower one first",
    ),
    "unknown of a class": (
        MINIMAL + "claim: {text: x, source: y, per_class: {cat: {precision: 1, recal: 1, f1: 1, accuracy: 1}}}\n",
        "x.yaml:8: claim.per_class.cat.recal: unknown key, did you mean 'recall'?",
    ),
    "two units": (MINIMAL.replace("lr: 1e-3", "lr: 1e-3, warmup: {epochs: 1, steps: 2}"), "exactly one of"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_file_line_and_remedy(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as e:
        config.load(write(tmp_path, text))
    assert expected in str(e.value)


def test_claims_are_no_experiment() -> None:
    """As a shell hands them over where somebody types experiments/*.yaml."""
    with pytest.raises(UserError, match=r"claims\.yaml: expected an experiment, but this file declares claims; name .*folder"):
        config.load(EXPERIMENTS / "claims.yaml", "quick")


def test_circular_extends(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    with pytest.raises(UserError, match=r"circular 'extends': a\.yaml -> b\.yaml -> a\.yaml"):
        config.load(tmp_path / "a.yaml")


def test_an_error_in_the_parent_names_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, MINIMAL.replace("dim: 32", "dim: -1"), "base.yaml")
    with pytest.raises(UserError, match=r"^base\.yaml:2: model\.dim: "):
        config.load(write(tmp_path, "extends: base.yaml\ntitle: C\n"))


@pytest.mark.parametrize("bad", ["optim.lr", "=3", "optim..lr=1", "phases.9.name=x", "title.x=1", "optim.lr=[", "train.epochs=0"])
def test_bad_overrides_are_named(bad: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--set "):
        config.load(write(tmp_path, MINIMAL), "full", (bad,))


@given(st.text(max_size=30), st.sampled_from(["optim.lr", "model", "phases.0", "train.epochs", "ema", "title", "model.heads"]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_set_the_answer_is_a_value_error_or_an_experiment(tmp_path: Path, text: str, key: str) -> None:
    path = write(tmp_path, MINIMAL)
    for assignment in (text, f"{key}={text}", f"{key}.{text}=1"):
        with contextlib.suppress(UserError):
            assert isinstance(config.load(path, "full", (assignment,)).config, config.Experiment)


@given(st.text(alphabet="abc:{}[]&*!|>-#'\"\n\t 01.,%@`?", max_size=60) | st.binary(max_size=60))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_the_answer_names_it(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"x\.yaml"):  # nothing this short is an experiment
        config.load(path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        config.load(tmp_path / "binary.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(UserError, match="larger than 64 KiB"):
        config.load(tmp_path / "huge.yaml")


# ----------------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_is_of_the_work_alone(tmp_path: Path) -> None:
    base = config.load(write(tmp_path, MINIMAL)).config
    renamed = config.load(write(tmp_path, MINIMAL.replace("title: T", "title: Other\nclaim: {text: x, source: y}"), "y.yaml")).config
    changed = config.load(write(tmp_path, MINIMAL.replace("epochs: 3", "epochs: 4"), "z.yaml")).config
    digest = config.fingerprint(base, "data", None)
    assert len(digest) == 12
    assert config.fingerprint(renamed, "data", None) == digest
    assert (
        len(
            {
                digest,
                config.fingerprint(changed, "data", None),
                config.fingerprint(base, "other", None),
                config.fingerprint(base, "data", "t"),
            }
        )
        == 4
    )


PINNED = {
    ("01_baseline_vit", "full"): "51f298a3085f",
    ("03_hybrid_r18", "full"): "afe0f51fa46d",
    ("06_kd_r50_class_attention", "full"): "26108917195b",
    ("resnet50", "full"): "d6858065672c",
}


@pytest.mark.parametrize(("name", "profile"), PINNED)
def test_fingerprints_stand(name: str, profile: str) -> None:
    """Finished runs and published records are found by these: a new key with a default that changes nothing must leave them as they are."""
    path = next(p for p in LADDER if p.stem == name)
    assert config.fingerprint(config.load(path, profile).config, "data", "teacher") == PINNED[name, profile]


def test_a_new_key_leaves_a_fingerprint_as_it_is(tmp_path: Path) -> None:
    class LaterTrain(config.Train):
        new: bool = False

    class Later(config.Experiment):
        train: LaterTrain
        another: int = 3

    now = config.load(write(tmp_path, MINIMAL)).config
    later = Later.model_validate_json(now.model_dump_json())
    assert config.fingerprint(later, "d", None) == config.fingerprint(now, "d", None)
    used = Later.model_validate_json(json.dumps(json.loads(now.model_dump_json()) | {"another": 4}))
    assert config.fingerprint(used, "d", None) != config.fingerprint(now, "d", None)


def test_what_the_report_says_changes_no_fingerprint() -> None:
    cfg = config.load(EXPERIMENTS / "06_kd_r50_class_attention.yaml").config
    assert cfg.claim.per_class
    assert config.fingerprint(cfg.model_copy(update={"claim": None}), "data", "t") == config.fingerprint(cfg, "data", "t")
    assert not [key for key in config.flatten(cfg) if key.startswith("claim")]


def test_the_claimed_classes_agree_with_one_another() -> None:
    """As the report's own numbers must: F1 of precision and recall, accuracy equal to recall, their mean the top-1. It is a slip of the
    pen that this finds."""
    claim = config.load(EXPERIMENTS / "06_kd_r50_class_attention.yaml").config.claim
    assert tuple(claim.per_class) == CIFAR10_CLASSES
    for of in claim.per_class.values():
        assert of.f1 == pytest.approx(2 * of.precision * of.recall / (of.precision + of.recall), abs=0.011)
        assert of.accuracy == of.recall
    assert sum(of.accuracy for of in claim.per_class.values()) / 10 == pytest.approx(claim.top1)
    for true, called in claim.confusions.items():
        assert {true, *called} <= set(CIFAR10_CLASSES)
        assert sum(called.values()) <= 1000 - 10 * claim.per_class[true].recall
    assert claim.top1 - claim.teacher_top1 == pytest.approx(6.98)


def test_spelling_out_a_default_changes_nothing(tmp_path: Path) -> None:
    explicit = MINIMAL.replace("heads: 2", "heads: 2, patch_size: 4, dropout: 0.0")
    one, two = config.load(write(tmp_path, MINIMAL)).config, config.load(write(tmp_path, explicit, "y.yaml")).config
    assert config.fingerprint(one, "d", None) == config.fingerprint(two, "d", None)


def test_nothing_in_the_repository_names_this_machine() -> None:
    assert str(REPOSITORY.parent) not in (EXPERIMENTS / "schema.json").read_text(encoding="utf-8")
