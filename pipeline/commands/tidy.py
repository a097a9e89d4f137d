"""The command `tidy`."""

from argparse import Namespace

from pipeline.running.process import one_line_errors


def run(arguments: Namespace) -> None:
    """List what can be removed with its size and reason, and what stays; remove it unless it is a trial."""
    from pipeline import parameters
    from pipeline.upkeep import tidying

    with one_line_errors():
        tidying.tidy(parameters.load().variants, dry_run=arguments.dry_run)
