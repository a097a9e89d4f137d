"""The command `fetch`."""

from argparse import Namespace

from pipeline.process import one_line_errors


def run(_: Namespace) -> None:
    """Download Fashion-MNIST if the parameters use it."""
    from pipeline import parameters
    from pipeline.data.fetch import fetch_fashion_mnist

    with one_line_errors():
        data = parameters.load().data
        if data.source == "fashion_mnist":
            fetch_fashion_mnist(data.path)
