"""`vitlab completion`: the script, sourced by a real bash, completes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import run
from vitlab import cli

ASK = """
source ./script
COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_shtab_vitlab
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("vitlab pr", {"predict"}),
        ("vitlab run 0", {"01_baseline_vit", "02_regularized_vit", "07_conv_stem_kd", "0mine.yaml"}),
        ("vitlab run 01_baseline_vit teachers/", {"teachers/resnet18", "teachers/resnet50"}),
        ("vitlab run 01_baseline_vit --profile o", {"overnight"}),
        ("vitlab run 01_baseline_vit --dr", {"--dry-run"}),
        ("vitlab predict c", {"cat.png"}),
        ("vitlab completion z", {"zsh"}),
    ],
)
def test_bash_completes(words: str, offered: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, script, _ = run(capsys, "completion", "bash", main=cli.main)
    assert code == 0
    (tmp_path / "script").write_text(script, encoding="utf-8")
    for name in ("0mine.yaml", "cat.png", "dog.png"):
        (tmp_path / name).touch()
    code = ASK.format(words=words)
    done = subprocess.run(["bash", "--norc", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    replies = set(done.stdout.split())
    assert offered <= replies
    assert all(reply.startswith(words.split()[-1]) for reply in replies), replies


def test_the_script_for_zsh_is_zsh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, script, _ = run(capsys, "completion", "zsh", main=cli.main)
    assert (code, script.splitlines()[0]) == (0, "#compdef vitlab")
    assert "01_baseline_vit" in script
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed: its script is not tried")
    (tmp_path / "script").write_text(script, encoding="utf-8")
    subprocess.run(["zsh", "-n", "script"], cwd=tmp_path, check=True)
