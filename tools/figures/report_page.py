#!/usr/bin/env python
"""Pictures of a report page as the documentation shows them: a desktop, a phone, and the gallery.

python tools/figures/report_page.py output/report/report.html --output docs/images
"""

import argparse
import shutil
from pathlib import Path

#: Name -> width, height, colour scheme, what is scrolled to, and what is clicked.
VIEWS = {
    "report_desktop.png": (1280, 1100, "light", "#overview", ""),
    "report_confusion.png": (1280, 860, "light", ".cm-run", ""),
    "report_gallery.jpg": (1280, 900, "dark", "", "#gallery0 .tile"),
    "report_phone.jpg": (390, 844, "dark", "#gallery0", ""),
}


def take_pictures(page_file, output):
    """Open the page in headless Chromium and write a picture for each of :data:`VIEWS`."""
    from playwright.sync_api import sync_playwright

    output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, (width, height, scheme, place, target) in VIEWS.items():
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page = context.new_page()
            page.goto(page_file.resolve().as_uri())
            page.wait_for_selector("html[data-ready=yes]")
            if place:
                page.eval_on_selector(place, "e => e.scrollIntoView()")
            if target:
                page.locator(target).first.click()
            page.wait_for_timeout(800)  # images are decoded and charts drawn
            path = output / name
            page.screenshot(path=str(path), **({"quality": 80} if path.suffix == ".jpg" else {}))
            print(path)
            context.close()
        browser.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="report.html")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    take_pictures(args.page, args.output)


if __name__ == "__main__":
    main()
