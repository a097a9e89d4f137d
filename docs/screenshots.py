"""Take the pictures of the documentation from a finished run.

    PYTHONPATH=. python docs/screenshots.py report    # docs/images/report.png
    PYTHONPATH=. python docs/screenshots.py mlflow    # docs/images/mlflow_*.png

Needs Chromium (Debian's package `chromium`) and playwright, which the environment has.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pipeline.tracking import views

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
COLOURS = 128
"""Colours of a picture, to keep the file small."""
START_SECONDS = 120
"""Seconds in which MLflow's server must start."""
DRAWN_MILLISECONDS = 3000
"""Milliseconds that MLflow's pages get to draw themselves."""


def main() -> None:
    """Take the pictures that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("report", help="the first screen of the report")
    command.add_argument("--report", type=Path, default=ROOT / "artifacts/report/report.html")
    command.add_argument("--picture", type=Path, default=IMAGES / "report.png")
    command.add_argument("--height", type=int, default=1230, help="in CSS pixels (default: %(default)s)")
    command.set_defaults(run=take_report)
    command = commands.add_parser("mlflow", help="the saved view, its charts, and a parent run")
    command.add_argument("--database", type=Path, default=ROOT / "mlflow.db")
    command.add_argument("--tracked", type=Path, default=ROOT / "artifacts/tracked.json")
    command.set_defaults(run=take_mlflow)
    arguments = parser.parse_args()
    arguments.run(arguments)


def take_report(arguments: argparse.Namespace) -> None:
    """Take the top of a report, in light colours."""
    with browser_page(1200, arguments.height) as page:
        page.goto(arguments.report.resolve().as_uri())
        save(page, arguments.picture)


def take_mlflow(arguments: argparse.Namespace) -> None:
    """Start MLflow's server, and take three of its pages."""
    uri = f"sqlite:///{arguments.database.resolve()}"
    run = MlflowClient(uri).get_run(json.loads(arguments.tracked.read_text())["run_id"])
    of_run = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?{views.PAGES}"
    with server(uri) as address, browser_page(1440, 560) as page:
        page.goto(f"{address}/{views.path(run)}")
        page.wait_for_timeout(DRAWN_MILLISECONDS)
        if page.get_by_text("MLflow Assistant").is_visible():
            page.mouse.click(1404, 36)  # The cross that closes it has no name.
            page.wait_for_timeout(DRAWN_MILLISECONDS)
        save(page, IMAGES / "mlflow_runs.png")

        page.set_viewport_size({"width": 1440, "height": 780})
        page.goto(f"{address}/{views.path(run, charts=True)}")
        page.wait_for_timeout(DRAWN_MILLISECONDS)
        save(page, IMAGES / "mlflow_compare.png")

        page.set_viewport_size({"width": 1280, "height": 760})
        page.goto(f"{address}/{of_run}")
        page.wait_for_timeout(DRAWN_MILLISECONDS)
        page.get_by_text("Show more", exact=True).first.click()
        save(page, IMAGES / "mlflow_parent.png")


@contextmanager
def browser_page(width: int, height: int) -> Iterator[Page]:
    """A page of a new browser."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("error: Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        browser.close()


@contextmanager
def server(uri: str) -> Iterator[str]:
    """The address of an MLflow server of this database on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    with subprocess.Popen([*command, "--host", "127.0.0.1", "--port", port, "--workers", "1"]) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    with urlopen(f"{address}/health"):
                        break
                except URLError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.5)
            yield address
        finally:
            process.terminate()


def save(page: Page, picture: Path) -> None:
    """Write what the page shows, in few colours."""
    page.wait_for_timeout(DRAWN_MILLISECONDS)
    page.screenshot(path=picture)
    with Image.open(picture) as image:
        image.convert("RGB").quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    main()
