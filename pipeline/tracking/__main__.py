"""Make MLflow's database ready for `mlflow server`: `python -m pipeline.tracking ADDRESS`."""

import sys

from pipeline import paths, process
from pipeline.tracking import client
from pipeline.tracking.records import TrackingServer


def main(address: str) -> None:
    """Make the database whole if there is none, or say what is wrong with it; a server is left alone."""
    client.make_ready(TrackingServer(address, "", paths.home()))


if __name__ == "__main__":
    process.check_arguments()
    with process.one_line_errors():
        main(sys.argv[1])
