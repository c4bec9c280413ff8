"""Serve the page: on this machine alone, from a folder that is gone afterwards, without asking anybody for anything."""

from __future__ import annotations

import os
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Sequence

from vitlab.demo import answers
from vitlab.run import signals
from vitlab.run.predict import Candidate

LARGEST = "100mb"  # of a file that is uploaded


class _Stopped(BaseException):
    """The signal that ends the server."""

    def __init__(self, number: int, _frame: object) -> None:
        self.number = number


def _stop(number: int, frame: object) -> None:
    raise _Stopped(number, frame)


def serve(candidates: Sequence[Candidate], name: str, host: str, port: int | None, ready: Callable[[str], None], browser: bool) -> int:
    """Serve the page on which these models answer until SIGINT or SIGTERM comes; return 128 + that signal.

    host: the address to listen on; on this machine's own no other host's name is answered to, so that no web page can come in by DNS
    rebinding.
    port: None for the first free one from 7860 on. `ready` is called with the address once the page is there; `browser` opens it.
    """
    models = answers.load(candidates)
    names = ["127.0.0.1", "localhost"] if host == "127.0.0.1" else ["*"]
    try:
        with signals.on_signals(_stop), tempfile.TemporaryDirectory(prefix="vitlab-demo-") as uploads:
            _prepare(uploads)
            from starlette.middleware import Middleware  # late, as the next: Gradio reads the environment, and they come with it
            from starlette.middleware.trustedhost import TrustedHostMiddleware

            from vitlab.demo import page

            blocks = page.build(models, name)
            try:
                _, address, _ = blocks.launch(
                    server_name=host, server_port=port, theme=page.theme(), head=page.head(), max_file_size=LARGEST, prevent_thread_lock=True,
                    quiet=True, share=False, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
                    mcp_server=False, inbrowser=False,
                    app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=names)], "docs_url": None, "redoc_url": None, "openapi_url": None},
                )  # fmt: skip
                ready(address)
                if browser:
                    webbrowser.open(address)
                threading.Event().wait()
            finally:
                blocks.close(verbose=False)
    except _Stopped as stopped:
        return 128 + stopped.number
    raise AssertionError("the page ended by itself")


def _prepare(uploads: str) -> None:
    """Have Gradio keep uploads in the folder, send nothing, and reach its own server past any proxy."""
    os.environ |= {"GRADIO_TEMP_DIR": uploads, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
