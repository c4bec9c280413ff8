"""`vitlab demo`: a page on which the published models, or one's own, answer side by side."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from vitlab.errors import UserError
from vitlab.files import printable
from vitlab.paths import RESULTS
from vitlab.terminal import short

Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add(command: Command) -> None:
    """Add `vitlab demo` to the commands."""
    demo = command("demo", _demo, "open a page, on this machine alone, that shows what the models see in a picture")
    demo.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER",
        help="a published set, a run or a folder of runs, as runs/quick-digits (default: the published CIFAR-10 set with most models)",
    )  # fmt: skip
    demo.add_argument("--port", type=_port, metavar="PORT", help="the port to listen on (default: the first free one from 7860 on)")
    demo.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"'{text}': expected a port, from 1 to 65535")
    return int(text)


def _demo(args: argparse.Namespace) -> int:
    return _serve(args.folder, "127.0.0.1", args.port, not args.no_browser)


def space() -> None:
    """Serve the default page until the process is stopped, and exit: to every address in a Hugging Face Space, else to this machine."""
    sys.exit(_serve(None, "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1", None, False))


def _serve(folder: Path | None, host: str, port: int | None, browser: bool) -> int:
    if importlib.util.find_spec("gradio") is None:
        raise UserError("vitlab demo: needs gradio; install with: pip install -c constraints.txt -e '.[demo]'")
    if port is not None:
        _be_free(port)
    from vitlab.demo import chosen, server  # late: they take seconds

    folder = folder or chosen.largest(RESULTS)
    found = chosen.models(folder)

    def ready(address: str) -> None:
        count = f"{len(found)} model{'s' * (len(found) > 1)}"
        print(printable(f"{short(folder)}: {count} at {address} (Ctrl-C stops it)"), flush=True)

    return server.serve(found, folder.resolve().name, host, port, ready, browser)


def _be_free(port: int) -> None:
    """Raise UserError where something listens on the port already: before the models are loaded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as e:
            raise UserError(
                f"--port {port}: cannot be listened on ({e.strerror}); name another, or leave --port out to have one found"
            ) from None
