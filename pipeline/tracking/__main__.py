"""Make MLflow's database ready for `mlflow server`: `python -m pipeline.tracking ADDRESS PORT`."""

import json
import sys
from contextlib import suppress

from pipeline import paths
from pipeline.running import command_line, process
from pipeline.tracking import client, views
from pipeline.tracking.records import TrackingServer


def main(address: str, port: str) -> None:
    """Make the database whole if there is none, or say what is wrong with it; print the address of its page.

    The page shows the variants of the last `dvc repro` of this checkout, or else of any.
    """
    server = TrackingServer(address, "", paths.home())
    run_id = None
    with suppress(OSError, ValueError, KeyError):
        run_id = json.loads((paths.home() / paths.TRACKED).read_text())["run_id"]
    with client.connect(server) as mlflow:
        parent = client.find_parent(mlflow, run_id)
    page = f"http://127.0.0.1:{port}/"
    if parent is None:
        print(f"variants: {page}#/experiments?{views.PAGES} (none yet; `dvc repro` logs them)")
        return
    print(f"variants: {page}{views.path(parent)}")
    print(f"chart: {page}{views.path(parent, charts=True)}")


if __name__ == "__main__":
    command_line.check()
    with process.one_line_errors():
        main(*sys.argv[1:])
