"""Take the pictures of the report that README and tutorial show.

    python docs/screenshots.py                              # docs/images/report.png, of artifacts/report/
    python docs/screenshots.py REPORT.html PICTURE.png      # another report, another picture

Needs Chromium (Debian's package `chromium`) and playwright, which the environment has.
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 1200, 1230
"""Size of the picture in CSS pixels."""
COLOURS = 128
"""Colours of the picture, to keep the file small."""


def main() -> None:
    """Take one picture of the first screen of a report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", nargs="?", type=Path, default=ROOT / "artifacts/report/report.html")
    parser.add_argument("picture", nargs="?", type=Path, default=ROOT / "docs/images/report.png")
    parser.add_argument("--height", type=int, default=HEIGHT, help="in CSS pixels (default: %(default)s)")
    arguments = parser.parse_args()
    take(arguments.report, arguments.picture, arguments.height)


def take(report: Path, picture: Path, height: int) -> None:
    """Write the top of a page as a picture, in light colours."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("error: Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme="light")
        page.goto(report.resolve().as_uri())
        page.screenshot(path=picture)
        browser.close()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    main()
