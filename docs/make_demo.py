"""Draw docs/demo-*.png: the page of `vitlab demo` in a browser, light, dark and on a phone; `python -m docs.make_demo`.

The models are those of the default page. It opens with one of the test images that travel with the code, which is moved. Needs Chromium.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, Playwright, sync_playwright

from vitlab.demo import chosen
from vitlab.figures import style
from vitlab.paths import REPOSITORY, RESULTS

DOCS = REPOSITORY / "docs"
VIEWS = {"light": (1320, 900, "light"), "dark": (1320, 900, "dark"), "phone": (390, 1500, "light")}  # width, height, colours
MOVED = 4  # pixels, to the right
MOVED_BY = """(n) => {  // what the models see has exactly n black columns on the left
  const c = document.createElement('canvas').getContext('2d');
  c.drawImage(document.querySelector('.seen'), 0, 0);
  const black = (x) => [...c.getImageData(x, 0, 1, 32).data].every((v, i) => i % 4 === 3 || v === 0);
  return black(n - 1) && !black(n);
}"""


def shown() -> str:
    """Return which numbers of which models the pictures show, as each has it in its note: by this a picture of other records is told."""
    folder = chosen.largest(RESULTS)
    return f"{folder.name}: " + ", ".join(f"{c.record.experiment} {c.record.metrics['test_top1']:.1f}" for c in chosen.models(folder))


def chromium() -> str | None:
    """Return the path of this machine's Chromium or Chrome; None where it has none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def browsing(playwright: Playwright) -> Iterator[Browser]:
    """Start Chromium: this machine's, or the one that Playwright has installed."""
    browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
    try:
        yield browser
    finally:
        browser.close()


@contextlib.contextmanager
def serving(*words: object, env: dict[str, str] | None = None, cwd: Path = REPOSITORY) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `vitlab demo --no-browser` with these words; yield the process and the page's address once it is there."""
    command = [sys.executable, "-m", "vitlab", "demo", "--no-browser", *map(str, words)]
    process = subprocess.Popen(command, cwd=cwd, env=os.environ | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, said + process.stdout.read()
        yield process, found[0]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def keep(screenshot: bytes, path: Path, note: PngInfo | None = None) -> None:
    """Write a screenshot to `path`, in few colours and with the note, and print its size."""
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    image.quantize(96, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True, pnginfo=note)
    print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    note = PngInfo()
    note.add_text(style.NOTE, shown())
    with serving() as (_, address), sync_playwright() as playwright, browsing(playwright) as browser:
        for name, (width, height, scheme) in VIEWS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(address)
            page.locator(".card").first.wait_for()
            for _ in range(MOVED if name != "phone" else 0):
                page.get_by_role("slider", name="Shift right").press("ArrowRight")
            page.wait_for_function(MOVED_BY, arg=MOVED if name != "phone" else 0)
            page.evaluate("document.activeElement.blur()")
            keep(page.screenshot(full_page=name != "phone"), DOCS / f"demo-{name}.png", note)
            page.close()


if __name__ == "__main__":
    main()
