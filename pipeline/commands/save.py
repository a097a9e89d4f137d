"""The command `save`."""

from argparse import Namespace

from pipeline.running.process import one_line_errors


def run(_: Namespace) -> None:
    """Complete DVC's cache; say whether it is worth while to tidy up."""
    from pipeline import parameters
    from pipeline.upkeep import dvc_cache, tidying

    with one_line_errors():
        for path in dvc_cache.save():
            print(f"{path} is in DVC's cache now, which had no room for it")
        if advice := tidying.advice(parameters.load().variants):
            print(advice)
