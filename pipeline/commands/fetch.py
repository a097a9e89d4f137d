"""The command `fetch`."""

from argparse import Namespace

from pipeline.running.process import one_line_errors


def run(_: Namespace) -> None:
    """Download the images that the parameters name, if they are not there."""
    from pipeline import parameters
    from pipeline.data.fetch import fetch

    with one_line_errors():
        fetch(parameters.load().data)
