"""Draw docs/mlflow-runs.png: the runs of a set in MLflow's user interface; `python -m docs.make_mlflow ADDRESS`.

ADDRESS is one of those that `make ui` prints, while it runs. Needs Chromium.
"""

from __future__ import annotations

import argparse

from playwright.sync_api import sync_playwright

from docs.make_demo import DOCS, browsing, keep


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.make_mlflow", description=__doc__.splitlines()[0])
    parser.add_argument("address", help="of the set's table, as `make ui` prints it")
    with sync_playwright() as playwright, browsing(playwright) as browser:
        page = browser.new_page(viewport={"width": 1600, "height": 660})
        page.goto(parser.parse_args().address)
        page.get_by_text("matching runs").wait_for()
        for what in ("Hide banner", "Close"):  # what the first visit shows: that the view is shared, and MLflow's assistant
            page.get_by_role("button", name=what, exact=True).click()
        page.wait_for_timeout(1000)
        keep(page.screenshot(), DOCS / "mlflow-runs.png")


if __name__ == "__main__":
    main()
