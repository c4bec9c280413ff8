"""The user's mistakes end in one message and exit code 2; anything else keeps its traceback and ends in exit code 1."""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Callable

import pytest
import torch

from tests.support.world import World
from vitlab import cli, errors, files
from vitlab.data import augment
from vitlab.errors import UserError
from vitlab.paths import REPOSITORY

REPORT = "Please report it as an issue, with the traceback above"


def ends(world: World, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit code and standard error of a training that begins."""
    with pytest.raises(SystemExit) as e:
        cli.run_main([str(a) for a in (*world.train("tiny"), "--force")])
    return e.value.code, capsys.readouterr().err


def raising(e: Exception) -> Callable[..., object]:
    def planted(*_: object, **__: object) -> object:
        raise e

    return planted


@pytest.mark.parametrize(
    "e",
    [ValueError("a"), IndexError("a"), TypeError("a"), FileNotFoundError(errno.ENOENT, "a", "a file of ours"), ConnectionError("a")],
    ids=repr,
)
def test_a_bug_keeps_its_traceback_and_exits_1(e: Exception, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Planted in a step's augmentation, amid the training. Even an OSError that names a file: none of the user's is opened there."""
    world.patch.setattr(augment, "apply", raising(e))
    code, err = ends(world, capsys)
    assert code == 1
    assert err.startswith("Traceback")
    assert "in planted" in err
    assert type(e).__name__ in err.splitlines()[-2]
    assert err.splitlines()[-1].endswith(REPORT)


def test_what_torch_itself_raises_is_a_bug(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.patch.setattr(augment, "apply", lambda *_, **__: torch.Generator("cpu").manual_seed(0).set_state(torch.zeros(1)))
    code, err = ends(world, capsys)
    assert (code, err.startswith("Traceback")) == (1, True), err


def test_a_users_mistake_has_no_traceback_and_exits_2(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.patch.setattr(augment, "apply", raising(UserError("x.yaml:3: what is wrong; what to do")))
    assert ends(world, capsys) == (2, "error: x.yaml:3: what is wrong; what to do\n")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_path_that_the_system_refuses_is_the_users_to_mend(number: int, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Tests may run as root, to whom nothing is refused."""
    e = OSError(number, os.strerror(number), str(world.root / "runs"))
    world.patch.setattr(files, "held", raising(e))
    code, err = ends(world, capsys)
    assert (code, err) == (
        2,
        f"error: {world.root / 'runs'}: {os.strerror(number)}; check the path, its permissions and the disk's space\n",
    )


def test_a_folder_in_a_files_place_is_the_users_to_mend(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (world.root / "file", world.root / "file" / "below"):
        world.write("file", "")
        with pytest.raises(SystemExit) as e:
            cli.main(["pack", "--to", str(path), str(world.root / "runs")])
        err = capsys.readouterr().err
        assert (e.value.code, "Traceback" in err) == (2, False), err
        assert err.startswith(f"error: {path}: ")


def test_an_os_error_without_a_path_is_a_bug() -> None:
    assert errors.message(OSError(errno.EACCES, "no")) is None
    assert errors.message(OSError(errno.EACCES, "no", 3)) is None, "a file descriptor"
    assert errors.message(OSError(errno.EMFILE, "too many open files", "a")) is None


def test_a_users_mistake_is_raised_as_one() -> None:
    """ValueError belongs to libraries, and to the validators of pydantic models, which are methods."""
    for path in [*(REPOSITORY / "vitlab").rglob("*.py"), *(REPOSITORY / "benchmarks").glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        validators = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and any("validator" in ast.unparse(d) for d in node.decorator_list)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None and node not in validators:
                assert not ast.unparse(node.exc).startswith(("ValueError", "OSError")), f"{path}:{node.lineno}: a UserError, or an assert"
