"""The page in a real browser: pictures of every kind, errors, the keyboard, a phone, a dark page; nothing is fetched, nothing is kept."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright import sync_api as playwright

from docs import make_demo
from tests.support.models import write_ladder
from vitlab.data import samples
from vitlab.paths import REPOSITORY

pytestmark = pytest.mark.slow

AUDIT = """
import os, sys
def hook(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) or event == "socket.getaddrinfo":
        host = args[1][0] if event == "socket.connect" else args[0]
        if host not in (None, "", "127.0.0.1", "localhost", b"127.0.0.1"):
            with open(os.environ["ASKED"], "a") as f: f.write(f"{event} {host}\\n")
sys.addaudithook(hook)
"""


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    address: str
    temporary: Path  # the system's folder for temporary files
    asked: Path  # whom the server asked, other than itself


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page with three small models, on a machine whose proxy answers nobody."""
    folder = tmp_path_factory.mktemp("demo")
    runs, temporary = write_ladder(folder / "runs"), folder / "tmp"
    temporary.mkdir()
    (folder / "sitecustomize.py").write_text(AUDIT)
    env = {
        "TMPDIR": str(temporary), "ASKED": str(folder / "asked"), "PYTHONPATH": f"{folder}:{REPOSITORY}", "OMP_NUM_THREADS": "1",
        "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": "example.org",
    }  # fmt: skip
    with make_demo.serving(runs, env=env) as (process, address):
        yield Server(process, address, temporary, folder / "asked")


@pytest.fixture
def page(browser: playwright.Browser, server: Server) -> Iterator[playwright.Page]:
    """The page as a visitor has it; whatever it asks of another host fails the test."""
    yield from visit(browser, server, width=1280, height=900)


def visit(browser: playwright.Browser, server: Server, width: int, height: int, **options: object) -> Iterator[playwright.Page]:
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    page.locator(".card").first.wait_for()
    yield page
    foreign = [url for url in asked if not url.startswith((server.address, "data:", "blob:"))]
    assert foreign == []
    assert errors == []
    context.close()


def photo(path: Path, size: tuple[int, int], **options: object) -> Path:
    y, x = np.mgrid[: size[1], : size[0]].astype(np.uint16)
    Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)).save(path, **options)
    return path


def upload(page: playwright.Page, path: Path) -> None:
    page.locator("#own input[type=file]").set_input_files(path)


def seen(page: playwright.Page, name: str) -> None:
    """Wait until the page shows this picture, with answers and no complaint."""
    page.get_by_alt_text(f"The picture: {name}").wait_for(timeout=20_000)
    assert page.locator(".problem").count() == 0
    assert page.locator(".card").count() == 2


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_a_visitor_finds_the_models_with_their_answers(page: playwright.Page) -> None:
    assert page.title() == "vitlab demo"
    assert "airplane, automobile, bird" in page.locator(".intro").inner_text()
    cards = page.locator(".card")
    assert cards.locator("h2").all_inner_texts() == ["01 Baseline ViT", "06 ResNet-50 distillation, class attention", "ResNet-50 teacher"]
    assert cards.nth(0).locator(".doubt").count() == 0
    assert "None of these?" in cards.nth(1).locator(".doubt").first.inner_text()
    assert cards.nth(1).locator("dt").all_inner_texts() == ["Class head", "Distillation head"]
    looks = cards.nth(1).locator(".look")
    assert looks.count() == 4
    assert all(
        re.match(r"(Class|Distillation) token, attention head [12]: looks most at the ", look.get_attribute("alt")) for look in looks.all()
    )
    assert all(looks.nth(i).evaluate("e => e.naturalWidth") == 32 for i in range(4))
    assert page.locator("footer a").count() == 0


def test_every_kind_of_picture_is_answered(page: playwright.Page, tmp_path: Path, server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photo(tmp_path / "phone.jpg", (300, 200), exif=exif)
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(clear)
    large = tmp_path / "large.jpg"
    Image.new("RGB", (8660, 5773), (200, 90, 10)).save(large)  # 49,994,180 pixels
    for path in (turned, clear, photo(tmp_path / "one-pixel.gif", (1, 1)), large):
        upload(page, path)
        seen(page, path.name)
        shown = page.locator(".photo")
        if path == turned:
            assert shown.evaluate("e => [e.naturalWidth, e.naturalHeight]") == [200, 300]
        if path == clear:
            pixel = "e => { const c = document.createElement('canvas').getContext('2d'); c.drawImage(e, 0, 0); return [...c.getImageData(9, 9, 1, 1).data]; }"
            assert max(page.locator(".seen").evaluate(pixel)[:3]) == 0, "transparent is black, as in training"
        assert files(server.temporary) == [], "an upload is deleted as soon as it is read"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.png", b"just text", "notes.png: cannot be used as an image (no image in a format that is read here)"),
        ("cut <b>off.jpg", b"half", "cannot be used as an image"),
        ("${alert(1)} {{x}}.png", b"", "cannot be used as an image"),
    ],
    ids=["text", "cut off", "empty"],
)
def test_a_file_that_is_no_picture_gets_a_clear_message(
    page: playwright.Page, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    if content == b"half":
        photo(path, (300, 300))
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    before = page.locator(".verdict").inner_text()
    upload(page, path)
    problem = page.get_by_role("alert").filter(has_text="picture before")
    problem.wait_for()
    assert said in problem.inner_text()
    assert "/" not in problem.inner_text(), "where the server keeps files is nobody's business"
    assert page.locator(".problem *").count() == 0
    assert page.locator(".verdict").inner_text() == before
    page.get_by_label("frog, image 1 of 10").click()
    seen(page, "frog, test image")


def test_too_many_pixels_are_refused_before_they_are_read(page: playwright.Page, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (8_000, 7_000)).save(path)
    upload(page, path)
    problem = page.get_by_role("alert").filter(has_text="picture before")
    problem.wait_for()
    assert "8000x7000 pixels, at most 50,000,000 are read; make it smaller" in problem.inner_text()


def test_other_files_and_too_large_ones_are_not_even_sent(page: playwright.Page, tmp_path: Path, server: Server) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with (tmp_path / "large.png").open("wb") as f:
        f.truncate(101 * 2**20)
    for name, said in (("notes.txt", "Invalid file type: notes.txt"), ("large.png", "exceed the maximum allowed size of 100.0 Mb")):
        upload(page, tmp_path / name)
        page.get_by_text(said).wait_for()
    assert files(server.temporary) == []


def test_sliders_move_the_picture_and_the_answer(page: playwright.Page) -> None:
    assert page.locator(".was").count() == 0
    before = page.locator(".seen").get_attribute("src")
    slider = page.get_by_role("slider", name="Shift right")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.get_by_alt_text("cat, test image at 32x32 pixels, changed").wait_for()
    page.wait_for_function("document.querySelector('input[type=number]').value === '3'")
    page.locator(".was").first.wait_for()
    assert page.locator(".seen").get_attribute("src") != before
    assert "A mark on a bar" in page.locator(".verdict").inner_text()
    page.wait_for_function(make_demo.MOVED_BY, arg=3)
    page.get_by_label("truck, image 2 of 10").click()  # a new picture stands still
    page.get_by_alt_text("truck, test image at 32x32 pixels, as the models see it").wait_for()
    assert slider.input_value() == "0"


def test_all_works_by_keyboard(page: playwright.Page, tmp_path: Path) -> None:
    mine = photo(tmp_path / "mine.png", (40, 40))
    # Listening from the start: what waits for a chooser begins to listen without waiting for the browser, and a slow one opens it unseen.
    page.on("filechooser", lambda chooser: chooser.set_files(mine))
    for role, name in (("button", "Click to upload or drop files"), ("slider", "Brightness")):  # shown a moment after the answers
        page.get_by_role(role, name=name).wait_for()
    focused = "document.activeElement.getAttribute('aria-label')"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Click to upload or drop files"
    page.keyboard.press("Enter")
    seen(page, "mine.png")
    page.locator(".sample[tabindex='0']").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate(focused) == "bird, image 2 of 10"
    assert page.locator(".sample[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    seen(page, "bird, test image")
    with Image.open(io.BytesIO(page.locator(".seen").screenshot())) as shot:
        corner = np.asarray(shot.convert("RGB"))[4, 12]  # away from the rounded corner, in the second pixel
    assert np.abs(corner.astype(int) - samples.images()[21][0, 1]).max() <= 2
    page.keyboard.press("Tab")
    for name in ("Shift right", "Shift down", "Brightness"):
        for _ in range(4):
            if page.evaluate("document.activeElement.type") == "range":
                break
            page.keyboard.press("Tab")
        assert name in (page.evaluate(focused) or page.evaluate("document.activeElement.labels?.[0]?.innerText") or "")
        page.keyboard.press("Tab")


def test_a_phone_shows_one_card_beside_no_other_and_never_scrolls_sideways(browser: playwright.Browser, server: Server) -> None:
    for page in visit(browser, server, width=390, height=844, has_touch=True):
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        boxes = [box.bounding_box() for box in page.locator(".part").all()]
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
        assert len({box["x"] for box in boxes}) == 1
        page.get_by_label("dog, image 1 of 10").tap()
        seen(page, "dog, test image")


def test_a_dark_page_is_dark_and_can_be_read(browser: playwright.Browser, server: Server) -> None:
    for scheme, dark in (("dark", True), ("light", False)):
        for page in visit(browser, server, width=1280, height=900, color_scheme=scheme):
            page.wait_for_function("(dark) => document.body.classList.contains('dark') === dark", arg=dark)
            for text in (".intro p", ".card h2", ".about", ".bars li.first", ".doubt", ".label", "dt", "[data-testid=block-info]"):
                ratio = page.locator(text).first.evaluate(CONTRAST)
                assert ratio >= 4.5, f"{text} on a {scheme} page: {ratio:.1f}"


CONTRAST = """(e) => {
  const paint = document.createElement('canvas').getContext('2d');
  const rgb = (colour) => { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); return [...paint.getImageData(0, 0, 1, 1).data]; };
  const light = (colour) => {
    const [r, g, b] = rgb(colour).slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = e;
  while (behind && getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
  const [a, b] = [getComputedStyle(e).color, getComputedStyle(behind).backgroundColor].map(light).sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


def test_other_hosts_names_are_refused_and_no_api_is_offered(server: Server) -> None:
    """A web page that has its own name lead here, DNS rebinding, gets nothing."""

    def status(path: str, host: str) -> int:
        request = urllib.request.Request(server.address + path, headers={"Host": host})
        try:
            return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).status
        except urllib.error.HTTPError as e:
            return e.code

    here = server.address.removeprefix("http://").rstrip("/")
    assert status("", here) == 200
    assert status("", "evil.example") == status("config", "evil.example:7860") == 400
    assert {status(path, here) for path in ("docs", "openapi.json", "monitoring")} == {403, 404}


def test_only_what_was_uploaded_is_read_or_deleted(page: playwright.Page, server: Server, tmp_path: Path) -> None:
    """The page's own requests, with another path in them."""
    precious = photo(tmp_path / "precious.png", (9, 9))
    page.route(
        "**/queue/join*",
        lambda route: route.continue_(post_data=re.sub(r'"path":"[^"]+"', f'"path":"{precious}"', route.request.post_data)),
    )
    with page.expect_response("**/queue/data*"):
        upload(page, photo(tmp_path / "mine.png", (9, 9)))
    page.get_by_text("Error", exact=True).first.wait_for()
    assert precious.exists()
    assert page.get_by_alt_text("The picture: precious.png").count() == 0


def test_the_end_leaves_nothing_and_nobody_was_asked(server: Server) -> None:
    """The last test of this file: it stops the server."""
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=30) == 128 + signal.SIGINT
    raised = [line for line in server.process.stdout.read().splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
    assert all("InvalidPathError" in line for line in raised), raised  # of the request for another path
    assert list(server.temporary.iterdir()) == []
    assert not server.asked.exists(), server.asked.read_text()
