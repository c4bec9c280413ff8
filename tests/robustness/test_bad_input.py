"""The corpus of bad input, case by case; and input that hypothesis makes up. Whatever comes in: one message with file, place and remedy.

`make bad-input` runs this file alone; its last line counts the cases.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.robustness.bad_input.build import EXPERIMENTS, GOOD, checkpoint_of, cut, flip
from tests.robustness.bad_input.cases import Case, all_cases, plan_of
from tests.support.world import World
from vitlab import cli, config, records
from vitlab.data import dataset
from vitlab.errors import UserError
from vitlab.paths import REPOSITORY
from vitlab.run import execute
from vitlab.track.journal import read_journal
from vitlab.train import checkpoint

pytestmark = pytest.mark.slow

CASES = all_cases()


def contents(root: Path) -> dict[str, str]:
    """What lies below `root`: the digest of each file, by name. Not the cache of decoded images, which is written whole and may stay."""
    found = [p for p in root.rglob("*") if not p.is_symlink() and p.name != "data" and ".cache" not in p.parts]
    return {str(p): hashlib.md5(p.read_bytes()).hexdigest() if p.is_file() and p.stat().st_size < 10**7 else "" for p in found}


def check(code: object, err: str, case: Case, root: Path, before: dict[str, str]) -> None:
    assert "Traceback" not in err
    assert code == 2, err
    assert case.words in err.replace(f"{root}/", "")
    assert len([line for line in err.splitlines() if "error: " in line]) == 1, err
    assert err.startswith(("error: ", "usage: ")), f"something was said before the message: {err}"
    assert len(err) < 2000, "a message is to be read"
    assert contents(root) == before, "something was written"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, world: World, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> None:
    argv = [str(a) for a in case.arrange(world)]
    before = contents(world.root)
    main = cli.run_main if case.command == "runner" else cli.main
    with pytest.raises(SystemExit) as e:
        main(argv)
    err = capsys.readouterr().err
    if "Traceback" in err:
        record_property("traceback", True)
    check(e.value.code, err, case, world.root, before)
    if case.real:
        command = [REPOSITORY / "runner.py"] if case.command == "runner" else ["-m", "vitlab"]
        env = os.environ | {"VITLAB_ROOT": str(world.root), "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, *command, *argv], env=env, cwd=world.root, capture_output=True, text=True, check=False)
        if "Traceback" in done.stderr:
            record_property("traceback", True)
        check(done.returncode, done.stderr, case, world.root, before)


def test_the_corpus_is_as_large_as_it_says() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    files = {p.stem for p in EXPERIMENTS.glob("*.yaml")}
    helpers = {"good", "circular_b", "taught_in_a_circle_too"}  # what the others extend, or learn from
    assert {name.removeprefix("experiment ") for name in names} >= files - helpers


# ------------------------------------------------------------------------------------------------------ what must pass


def test_the_template_is_sound(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The cases start from files that are accepted, so that each is refused for its own fault."""
    for main, argv in ((cli.main, world.predict()), (cli.run_main, world.train("tiny")), (cli.run_main, world.train("taught"))):
        with pytest.raises(SystemExit) as e:
            main([str(a) for a in argv])
        assert e.value.code == 0, capsys.readouterr().err


ODD = {
    "cmyk.jpg": lambda: Image.new("CMYK", (9, 9), (0, 255, 255, 0)),
    "sixteen_bits.png": lambda: Image.fromarray(np.full((9, 9), 40_000, np.uint16)),
    "palette.gif": lambda: Image.new("P", (9, 9)),
    "one_pixel.png": lambda: Image.new("RGB", (1, 1)),
    "one_bit.png": lambda: Image.new("1", (9, 9)),
    "transparent.png": lambda: Image.new("RGBA", (9, 9)),
    "wide.png": lambda: Image.new("L", (30_000, 3)),
}


@pytest.mark.parametrize("name", [*ODD, "animated.gif", "no_exif.jpg", "not_what_it_is_called.png"])
def test_odd_images_are_read_in_silence(name: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.root / name
    if name == "animated.gif":
        frames = [Image.new("P", (9, 9), i) for i in range(3)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    elif name == "no_exif.jpg":
        Image.new("RGB", (9, 9)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff")  # a directory that is cut off
    elif name == "not_what_it_is_called.png":
        Image.new("RGB", (9, 9)).save(path, format="WEBP")
    else:
        ODD[name]().save(path)
    with pytest.raises(SystemExit) as e:
        cli.main([str(a) for a in world.predict(path)])
    out, err = capsys.readouterr()
    assert (e.value.code, err) == (0, "")
    assert name in out


def test_an_experiment_with_a_byte_order_mark_is_one(world: World) -> None:
    assert config.load(world.write("bom.yaml", b"\xef\xbb\xbf" + GOOD.encode())).config.title == "T"


def test_brackets_are_printed_and_not_obeyed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich's markup: an unbalanced [/x] would be an exception, [red] would vanish."""
    with pytest.raises(SystemExit) as e:
        cli.run_main([str(a) for a in (*plan_of(EXPERIMENTS / "good.yaml"), "--set", "phases.0.name='[/x] [red]'")])
    assert e.value.code == 0
    assert "[phases.0.name='[/x][red]']" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage", [cut, lambda path: flip(path, 3000), lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"text")]
)
def test_a_damaged_checkpoint_is_named_and_training_goes_on(damage: Callable[[Path], object], world: World) -> None:
    """By design no error: the one before it would be used, and there is none, so that training starts again."""
    folder = world.folder("other")
    damage(folder / "checkpoint.pt")
    world.patch.setattr(execute, "finish", lambda *_: sys.exit("trained"))
    with pytest.raises(SystemExit) as e:
        cli.run_main([str(a) for a in world.train("other")])
    assert e.value.code == "trained"
    said = [entry["text"] for _, entry in read_journal(folder / "journal.jsonl") if entry["kind"] == "event"]
    assert said[0].startswith("started")
    assert "checkpoint.pt: damaged" in said[1]


# ------------------------------------------------------------------------------------------------- what is made up

MADE_UP = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def damaged(whole: bytes, at: float, mask: int, keep: float) -> bytes:
    """A bit or more flipped, and cut off."""
    content = bytearray(whole)
    content[int(at * (len(content) - 1))] ^= mask
    return bytes(content[: int(len(content) * keep)])


damages = st.builds(
    lambda at, mask, keep: lambda whole: damaged(whole, at, mask, keep),
    st.floats(0, 1), st.sampled_from([1 << i for i in range(8)] + [0]), st.one_of(st.just(1.0), st.floats(0, 1)),
)  # fmt: skip


def reads_or_names(read: Callable[[Path], object], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        read(path)
    except UserError as e:
        assert path.name in str(e)  # noqa: PT017


@given(st.one_of(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200).map(str.encode), st.binary(max_size=200)))
@MADE_UP
def test_any_file_as_an_experiment(tmp_path: Path, content: bytes) -> None:
    reads_or_names(config.load, tmp_path / "x.yaml", content)
    reads_or_names(config.load, tmp_path / "x.yaml", GOOD.encode() + content)


@given(damages)
@MADE_UP
def test_any_damage_to_an_experiment(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    reads_or_names(config.load, tmp_path / "x.yaml", damage((REPOSITORY / "experiments" / "01_baseline_vit.yaml").read_bytes()))


@given(
    st.one_of(
        st.text(max_size=80), st.builds("{}={}".format, st.sampled_from(["optim.lr", "phases.0", "ema", "model"]), st.text(max_size=60))
    )
)
@MADE_UP
def test_any_set(assignment: str) -> None:
    with contextlib.suppress(UserError):
        config.load(EXPERIMENTS / "good.yaml", "full", (assignment,))


@given(st.one_of(st.binary(max_size=300), damages))
@MADE_UP
def test_any_file_as_a_record(template_folder: Path, tmp_path: Path, content: bytes | Callable[[bytes], bytes]) -> None:
    whole = next(template_folder.glob("runs/*/tiny/*/record.json")).read_bytes()
    reads_or_names(records.read, tmp_path / "record.json", content(whole) if callable(content) else content)


@given(st.one_of(st.binary(max_size=300), damages), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]))
@MADE_UP
def test_any_file_as_an_image(tmp_path: Path, content: bytes | Callable[[bytes], bytes], kind: str) -> None:
    whole = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(whole, kind)
    reads_or_names(dataset.decode, tmp_path / "image", content(whole.getvalue()) if callable(content) else content)


@given(st.one_of(st.binary(max_size=300), damages), st.booleans())
@MADE_UP
def test_any_file_as_a_checkpoint(template_folder: Path, tmp_path: Path, content: bytes | Callable[[bytes], bytes], summed: bool) -> None:
    whole = next(template_folder.glob("runs/*/other/*/checkpoint.pt")).read_bytes()
    body = content(whole) if callable(content) else content
    body = checkpoint_of(body) if summed else body  # with a checksum that is right: what the disk does not do, a stranger may
    reads_or_names(lambda path: checkpoint.load(path.parent, torch.device("cpu")), tmp_path / "checkpoint.pt", body)


@given(st.one_of(st.binary(max_size=300), damages))
@MADE_UP
def test_any_file_as_weights(template_folder: Path, tmp_path: Path, content: bytes | Callable[[bytes], bytes]) -> None:
    whole = next(template_folder.glob("runs/*/tiny/*/weights.safetensors")).read_bytes()
    cfg = config.ViT(name="vit", dim=8, depth=1, heads=1, patch_size=16)
    reads_or_names(
        lambda path: checkpoint.load_model(path, cfg, 10), tmp_path / "weights", content(whole) if callable(content) else content
    )
