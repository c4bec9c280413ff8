"""`vitlab completion`: the script with which a shell completes commands, flags, files and the names of experiments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

Command = Callable[
    [str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser
]  # registers one: its name, what it does, its help
BASH = '_vitlab_experiments() {\n  compgen -f -- "$1"\n  compgen -W "%s" -- "$1"\n}\n'
ZSH = "_vitlab_experiments() {\n  _alternative 'files:file:_files' 'experiments:experiment:(%s)'\n}\n"


def add(command: Command, parser: argparse.ArgumentParser) -> None:
    """Add `vitlab completion` to the commands of `parser`."""
    sub = command(
        "completion",
        lambda args: _print(parser, args.shell),
        'print the script that completes in a shell: eval "$(vitlab completion bash)"',
    )
    sub.add_argument("shell", choices=["bash", "zsh"])


def _print(parser: argparse.ArgumentParser, shell: str) -> int:
    import shtab  # late: only this command needs them

    from vitlab import config

    names = " ".join(config.own_names().values())
    experiments = {"bash": "_vitlab_experiments", "zsh": "_vitlab_experiments"}
    for action in _actions(parser):
        if action.type is Path:
            action.complete = experiments if action.dest == "experiments" else shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell, preamble={"bash": BASH % names, "zsh": ZSH % names}))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield every argument of the parser and of its commands."""
    for action in parser._actions:  # of which argparse has no public list
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
        else:
            yield action
