"""The published pages in a real browser: wide, narrow, on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright import sync_api as playwright

from vitlab.paths import RESULTS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", [1280, 900, 390])
@pytest.mark.parametrize("page_path", sorted(RESULTS.glob("*/report.html")), ids=lambda path: path.parent.name)
def test_every_picture_is_there_and_every_matrix_whole(page_path: Path, width: int, browser: playwright.Browser) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(page_path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    matrices = page.evaluate("[...document.querySelectorAll('.matrix')].map(e => [e.scrollWidth, e.clientWidth])")
    assert matrices
    assert [wide for wide, place in matrices if wide > place + 1] == [], "cut off by more than half a border"
    assert page.evaluate("[...document.images].filter(e => !e.complete || e.naturalWidth === 0).map(e => e.alt)") == []
    page.close()
